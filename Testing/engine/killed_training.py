"""A real training process, killed without a warning once it has written a checkpoint; both it and the run that it is
compared with compute in one thread, for sums in another order end in other digits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
LONGEST = 240  # seconds until the first checkpoint
BEGIN = f"import torch; torch.set_num_threads(1)\nimport sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch on one thread in this process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def kill_after_checkpoint(code: str, folder: Path) -> None:
    """Run ``code``, which trains into ``folder`` and may import the modules beside this one, and kill it."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", BEGIN + code], env=environment)
    limit = time.monotonic() + LONGEST
    while not (folder / "checkpoint.pt").is_file() and time.monotonic() < limit and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
