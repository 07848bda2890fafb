"""The stand-in engine with faults: a plan, read anew at each request, says what is to go wrong, and when.

The environment variable FAKE_ENGINE_PLAN names the plan's file, JSON with any of

- seconds_loading, seconds_per_slice, seconds_opening, seconds_editing, seconds_spreading: how long these take
- fault: abort, deaf, disk, error, installation, mask, memory or print
- at: the name at which the fault happens; without it, before the first

Beside the plan lie PLAN.asked, the requests that came, and PLAN.pid, the process.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "MedZeroSeg")]

import fake_editing  # noqa: E402
from MedZeroSegSlicer import stand_in_engine  # noqa: E402

from MedZeroSegLib.edit_protocol import EDIT_COMMANDS  # noqa: E402
from MedZeroSegLib.errors import InstallationError  # noqa: E402
from MedZeroSegLib.request_loop import Report, serve  # noqa: E402

PLAN = Path(os.environ["FAKE_ENGINE_PLAN"])
FULL = 100  # bytes that a full disk takes
ASK_S = 0.005  # between two looks whether the request is still wanted


def ask(message: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """Any request: keep it, and answer it as planned."""
    with PLAN.with_suffix(".asked").open("a", encoding="utf-8") as file:
        file.write(json.dumps(message) + "\n")
    plan = json.loads(PLAN.read_text(encoding="utf-8")) if PLAN.exists() else {}
    if message["cmd"] in ("check", "forget"):
        return {"check": stand_in_engine.check, "forget": stand_in_engine.forget}[message["cmd"]](message, report)

    if message["cmd"].startswith("edit"):
        return correct(message, report, plan)

    def step(code: str, name: str) -> None:
        if plan.get("fault") and (code, name) == ("segmenting" if "at" in plan else "encoding", plan.get("at", "")):
            fail(plan["fault"])
        slices = 1 if code == "encoding" else stand_in_engine.SLICES_A_STEP
        wait(report, plan.get("seconds_loading", 0) if code == "loading" else slices * plan.get("seconds_per_slice", 0))

    if message["cmd"] == "fetch":
        return stand_in_engine.fetch(message, report, step)
    misplaced = plan["at"] if plan.get("fault") == "mask" else None
    return stand_in_engine.segment(message, Misplacing(report, misplaced), step)


def correct(message: Mapping[str, Any], report: Report, plan: Mapping[str, Any]) -> dict[str, Any]:
    """A request of correcting by hand; faults happen in "edit" alone."""
    if message["cmd"] == "edit-end":
        return fake_editing.end_edit(message, report)
    if message["cmd"] == "edit" and plan.get("fault"):
        fail(plan["fault"])
    answer = fake_editing.start_edit if message["cmd"] == "edit-start" else fake_editing.edit
    return answer(message, report, lambda what: wait(report, plan.get(f"seconds_{what}", 0)))


def fail(fault: str) -> None:
    """The fault happens now."""
    if fault == "abort":
        os.abort()
    if fault == "deaf":
        ctypes.CDLL(None).usleep(60_000_000)
    if fault == "disk":  # the system refuses to write more than a few bytes, as on a full one
        resource.setrlimit(resource.RLIMIT_FSIZE, (FULL, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    if fault == "print":
        print("printed")
        os.write(1, b"written to the descriptor\n")
    if fault == "memory":
        raise MemoryError
    if fault == "error":
        raise KeyError("a fault of the programmer")
    if fault == "installation":
        raise InstallationError("PyTorch can't be loaded; install it again.")


def wait(report: Report, seconds: float) -> None:
    """Work that asks often whether it is still wanted."""
    end = time.monotonic() + seconds
    while True:
        report.check()
        if time.monotonic() >= end:
            return
        time.sleep(ASK_S)


class Misplacing:
    """A report that puts the mask of one name outside the image."""

    def __init__(self, report: Report, name: str | None) -> None:
        self.check, self.progress, self._report, self._name = report.check, report.progress, report, name

    def event(self, event: str, **fields: Any) -> None:
        if fields.get("name") == self._name and fields.get("box"):
            fields["box"] = [index - 100 for index in fields["box"]]
        self._report.event(event, **fields)


if __name__ == "__main__":
    PLAN.with_suffix(".pid").write_text(str(os.getpid()), encoding="utf-8")
    serve({"segment": ask, "check": ask, "fetch": ask, "forget": ask} | dict.fromkeys(EDIT_COMMANDS, ask))
