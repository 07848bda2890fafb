"""The engine's real loop with a stand-in for the models: a request's "steps" say what happens to it, one by one.

Run     python stand_in_worker.py [idle seconds]
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from MedZeroSegLib.errors import InputError, InstallationError, MemoryShortage
from MedZeroSegLib.request_loop import IDLE_S, Report, serve
from MedZeroSegLib.writers import replacing


def segment(message: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """Go through the steps: ["name of a function below", argument...]."""
    for name, *arguments in message["steps"]:
        STEPS[name](message, report, *arguments)
    return {"pid": os.getpid()}


def work(_message: Mapping[str, Any], report: Report, code: str, seconds: float) -> None:
    """Work that asks often whether it is still wanted."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        report.progress(code, 0.5)
        time.sleep(0.002)


def native(_message: Mapping[str, Any], report: Report, seconds: float) -> None:
    """A call of a library that nothing can interrupt."""
    report.progress("encoding", 0.1)
    report.event("progress", fraction=0.1, seconds_left=None, code="native", values={})
    ctypes.CDLL(None).usleep(int(seconds * 1e6))


def deliver(message: Mapping[str, Any], report: Report, index: int) -> None:
    """A mask on disk and its event."""
    report.check()
    path = Path(message["folder"]) / f"{index}.npy"
    with replacing(path) as file:
        np.save(file, np.ones((2, 3, 4), np.uint8))
    report.event("segment", index=index, name=message["names"][index], mask=str(path))


def throw(_message: Mapping[str, Any], _report: Report, kind: str, text: str) -> None:
    raise {
        "input": InputError,
        "installation": InstallationError,
        "shortage": MemoryShortage,
        "memory": MemoryError,
        "value": ValueError,
        "exit": SystemExit,
    }[kind](text)


def talk(_message: Mapping[str, Any], _report: Report) -> None:
    """Everything that a library may do to stdin and stdout."""
    print("printed")
    print('{"id": 1, "event": "finished"}')
    os.write(1, b"written to the descriptor\n")
    subprocess.run([sys.executable, "-c", "print('printed by a child')"], check=True)
    sys.stdout.flush()
    assert sys.stdin.read() == ""


def end(_message: Mapping[str, Any], _report: Report, name: str) -> None:
    """The process ends here."""
    if name.startswith("SIG"):
        os.kill(os.getpid(), signal.Signals[name])
        time.sleep(5)
    os._exit(int(name))


def child(_message: Mapping[str, Any], report: Report) -> None:
    """Start a process that would outlive this one."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    report.event("result", line=str(process.pid), device="")


def many(_message: Mapping[str, Any], report: Report, count: int) -> None:
    for n in range(count):
        report.progress("encoding", n / count, None, slice=n)


def tell(message: Mapping[str, Any], report: Report) -> None:
    """What has arrived here, and the surroundings."""
    report.event("result", line="", device="", got=message, environment=dict(os.environ))


STEPS: dict[str, Any] = {step.__name__: step for step in (work, native, deliver, throw, talk, end, child, many, tell)}

if __name__ == "__main__":
    serve({"segment": segment, "forget": lambda message, report: {}}, float(sys.argv[1]) if sys.argv[1:] else IDLE_S)
