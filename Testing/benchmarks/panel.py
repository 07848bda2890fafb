"""Whether the window stays alive: the longest gap between two beats of a timer while a run goes on in the panel, and
the time from the press of Segment to the first progress, on a 512 x 512 x 300 volume with the stand-in engine.

Run     .venv/bin/python Testing/benchmarks/panel.py [--runs N] [--output FILE.json]
Prints  milliseconds over ten runs, by the clock and as far as the window's thread computed: on a machine that does
        other things it also waits for a core. In the first the engine's process starts and voxels are written; in the
        first and the sixth segments are new, in the others they are replaced. Exit status 1 when a gap was over 50 ms,
        or the first progress came after 300 ms though the process was there.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "MedZeroSeg"), str(ROOT / "Testing" / "scene"), str(ROOT / "Testing" / "panel")]

import application  # noqa: E402
from MedZeroSegSlicer.stand_in_engine import LEVELS  # noqa: E402
from mrml_scene import new_scene  # noqa: E402
from PySide6 import QtCore  # noqa: E402

SIZE = (300, 512, 512)  # k, j, i
BODIES = {"liver": (60, 180, 140, 370), "spleen": (150, 240, 250, 390), "aorta": (0, 300, 235, 280)}  # k, then i and j
BEAT_MS = 2
GAP_MOST_MS, FIRST_MOST_MS = 50.0, 300.0


class Heart:
    """A timer that notes when it beats, and how long the window's thread has computed by then."""

    def __init__(self) -> None:
        self.beats: list[tuple[float, float]] = []
        self._timer = QtCore.QTimer()
        self._timer.setTimerType(QtCore.Qt.TimerType.PreciseTimer)
        self._timer.timeout.connect(lambda: self.beats.append((time.perf_counter(), time.thread_time())))
        self._timer.start(BEAT_MS)

    def longest_gaps_ms(self) -> tuple[float, float]:
        """By the clock, and by what was computed in it."""
        gaps = np.diff(self.beats, axis=0).max(axis=0) * 1000
        return float(gaps[0]), float(gaps[1])


def volume() -> Any:
    """Three bodies in noise."""
    import slicer.util

    voxels = np.random.default_rng(0).integers(-1000, 0, SIZE, np.int16)
    for name, (k0, k1, i0, i1) in BODIES.items():
        voxels[k0:k1, i0:i1, i0:i1] = LEVELS[name]
    return slicer.util.addVolumeFromArray(voxels, np.diag([-0.7, -0.7, 1.5, 1.0]), "512 x 512 x 300")


def run(widget: Any, qapp: Any) -> dict[str, float]:
    """One run, from the press of the button to the last segment."""
    heart = Heart()
    for _ in range(20):
        qapp.processEvents()
    started, first = time.perf_counter(), 0.0
    widget.ui.runButton.click()
    pressed, begun = time.perf_counter(), widget.logic.run.state
    while widget.logic.run.state.under_way:
        qapp.processEvents(QtCore.QEventLoop.ProcessEventsFlag.AllEvents, 5)
        if not first and widget.logic.run.state is not begun:
            first = time.perf_counter()
    assert len(widget.logic.run.state.found) == len(BODIES), widget.ui.statusLabel.text
    gap, computed = heart.longest_gaps_ms()
    return {
        "longest gap": round(gap, 1),
        "longest computing": round(computed, 1),
        "press handled": round((pressed - started) * 1000, 1),
        "first progress": round((first - started) * 1000, 1),
        "whole run": round((time.perf_counter() - started) * 1000),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--runs", type=int, default=10, help="the first starts the engine's process")
    arguments = parser.parse_args()
    environment = new_scene(tempfile.mkdtemp())
    qapp = application.install(environment, ROOT / "MedZeroSeg" / "MedZeroSeg.py")
    from MedZeroSegSlicer import logic

    import MedZeroSeg

    engine = ROOT / "MedZeroSeg" / "MedZeroSegSlicer" / "stand_in_engine.py"
    logic.worker_command = lambda: [sys.executable, str(engine)]
    logic.examine = lambda folder, preset: logic.Setup()
    parent = application.panel_parent()
    widget = MedZeroSeg.MedZeroSegWidget(parent)
    widget.setup()
    node = volume()
    widget.enter()
    parent.show()
    assert widget.parameters.inputVolume is node
    widget.ui.promptsEdit.setPlainText("; ".join(BODIES))
    runs = []
    for number in range(arguments.runs):
        if number == arguments.runs // 2:  # from here on segments are replaced
            widget.parameters.segmentation = None
        runs.append(run(widget, qapp))
    widget.cleanup()
    figures = {name: spread([figures[name] for figures in runs]) for name in runs[0]}
    print(json.dumps({"milliseconds": figures, "runs": runs}, indent=1))
    if arguments.output:
        arguments.output.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    late = any(figures["first progress"] > FIRST_MOST_MS for figures in runs[1:])
    return int(figures["longest gap"]["most"] > GAP_MOST_MS or late)


def spread(values: list[float]) -> dict[str, float]:
    """Least, middle and most of several values."""
    return {"least": min(values), "median": round(statistics.median(values), 1), "most": max(values)}


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # Qt and VTK do not agree in which order to go
