"""How soon the engine's process answers: from submit to progress, from cancel to "cancelled", from start to ready.

Run     .venv/bin/python Testing/benchmarks/worker.py [--slices 12] [--repeats 5]
Prints  a table of seconds. The process holds the models of `lite`; the volume is 512 × 512 × slices voxels. "First
        byte" is the first event after submit, "first look" the first that comes from work on the volume, which has
        been read and fingerprinted. "Worker free" is how long the process needs after cancel for the slice it is at.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "MedZeroSeg")]

from MedZeroSegSlicer.engine_process import EngineProcess  # noqa: E402

POLL_S = 0.002
NAMES = ("liver", "spleen", "kidney")


class Timed:
    """An engine process whose events are timed."""

    def __init__(self, folder: str) -> None:
        self.folder, self.events, self.submitted = folder, [], 0.0
        worker = str(ROOT / "MedZeroSegLib" / "worker.py")
        without_store = {**os.environ, "MEDZEROSEG_EMBEDDINGS_GB": "0"}
        self.engine = EngineProcess([sys.executable, worker], self._on_event, environment=without_store)

    def _on_event(self, event: dict[str, Any]) -> None:
        self.events.append((time.perf_counter() - self.submitted, event))

    def submit(self, **message: Any) -> None:
        self.events.clear()
        self.submitted = time.perf_counter()
        self.engine.submit({"preset": "lite", "device": "cpu", "folder": self.folder, **message})

    def until(self, wanted: Callable[[dict[str, Any]], Any]) -> float:
        """Seconds from submit to the first event that is wanted."""
        while True:
            for seconds, event in self.events:
                if wanted(event):
                    return seconds
            self.engine.poll()
            time.sleep(POLL_S)

    def finish(self) -> float:
        """Seconds from submit to the end, and the process free."""
        while self.engine.poll():
            time.sleep(POLL_S)
        return time.perf_counter() - self.submitted


def phantom(folder: str, slices: int, seed: int) -> dict[str, Any]:
    """The "volume" entry of a body with an organ in it, in HU with noise."""
    row, column = np.mgrid[0:512, 0:512]
    section = np.where(((column - 256) / 200) ** 2 + ((row - 256) / 140) ** 2 < 1, 40, -1000)
    section[((column - 180) / 90) ** 2 + ((row - 230) / 80) ** 2 < 1] = 110
    noise = np.random.default_rng(seed).normal(0, 12, (slices, 512, 512))
    path = os.path.join(folder, f"{seed}.npy")
    np.save(path, (section + noise).astype(np.int16))
    matrix = np.diag([0.8, 0.8, 5.0, 1.0]).tolist()
    common = {"modality": "CT", "modality_source": "given", "dimension": 3, "calibrated": True}
    return {"voxels": path, "ijk_to_lps": matrix, **common}


def is_work(event: dict[str, Any]) -> bool:
    return event["event"] == "progress" and event["code"] not in ("starting", "loading")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--slices", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    rows: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        timed = Timed(folder)
        timed.submit(cmd="check")
        rows["process started: first byte"] = [timed.until(lambda event: True)]
        rows["process started: models ready and tried"] = [timed.finish()]
        volumes = [phantom(folder, arguments.slices, seed) for seed in range(arguments.repeats)]
        for volume in volumes:
            timed.submit(cmd="segment", volume=volume, names=list(NAMES))
            rows.setdefault("warm, new volume: first byte", []).append(timed.until(lambda event: True))
            rows.setdefault("warm, new volume: first look", []).append(timed.until(is_work))
            timed.until(lambda event: (event.get("values") or {}).get("slice"))
            asked = time.perf_counter()
            timed.engine.cancel()
            timed.until(lambda event: event["event"] == "cancelled")
            rows.setdefault("cancel while encoding: cancelled", []).append(time.perf_counter() - asked)
            timed.finish()
            rows.setdefault("cancel while encoding: worker free", []).append(time.perf_counter() - asked)
        for names in (NAMES, ("aorta", "pancreas", "stomach")):
            timed.submit(cmd="segment", volume=volumes[-1], names=list(names))
            first = timed.until(lambda event: event["event"] == "segment")
            whole = timed.finish()
            which = "first names" if names is NAMES else "other names on the volume"
            rows[f"warm, {which}: first result"], rows[f"warm, {which}: all three"] = [first], [whole]
        started = time.perf_counter()
        timed.engine.close()
        rows["close"] = [time.perf_counter() - started]
    print(f"{'':45s} {'median':>8s} {'largest':>8s}   s")
    for name, seconds in rows.items():
        print(f"{name:45s} {median(seconds):8.3f} {max(seconds):8.3f}")


if __name__ == "__main__":
    main()
