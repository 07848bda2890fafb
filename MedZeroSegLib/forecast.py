"""How much of the predicted time of a run has gone, and how much is left. What a stage takes is measured in every run
and remembered for this machine, so that the next prediction is better."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import platformdirs

from MedZeroSegLib.errors import MedZeroSegError
from MedZeroSegLib.writers import replacing

# Seconds a unit on two cores of a laptop; they count until this machine has been measured.
DEFAULT_RATES: Mapping[str, float] = {
    "planned": 0.03,  # a million voxels that are windowed and searched for the body
    "encoding": 0.8,  # a slice
    "segmenting": 0.05,  # a slice and name
}
FRACTION_MAX = 0.99  # until the run has ended


class Forecast:
    """Follows the progress that `pipeline.segment` tells.

    Parameters
    ----------
    megavoxels
        Millions of voxels in the volume.
    remembered
        Seconds a unit of each stage, from earlier runs.
    clock
        Gives seconds.
    """

    def __init__(
        self, megavoxels: float, remembered: Mapping[str, float], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._remembered = remembered
        self._clock = clock
        self._units = {"planned": megavoxels, "encoding": 0.0, "segmenting": 0.0}
        self._done = dict.fromkeys(self._units, 0.0)
        self._seconds = dict.fromkeys(self._units, 0.0)
        self._first = (0.0, 0.0)  # units and seconds of the first slices, in which more is built than their embedding
        self._encodings = 0
        self._started = self._last = clock()
        self._stage = ""
        self._fraction = 0.0

    def tell(self, stage: str, share: float, values: Mapping[str, str | int]) -> tuple[float, float | None]:
        """Take in where the run is.

        Returns
        -------
        Fraction of the predicted time that has gone, 0..1 and never falling, and the seconds that are left; None while
        nothing has been measured that tells.
        """
        now = self._clock()
        if self._stage in self._seconds:
            self._seconds[self._stage] += now - self._last
        self._last = now
        self._stage = "segmenting" if stage == "scoring" else stage
        if stage == "planned":
            self._plan(int(values["encodings"]), int(values["slices"]), int(values["names"]))
        elif stage == "encoding":
            self._count_encoded(share, int(values["slices"]))
        elif stage == "segmenting":
            self._done[stage] = max(self._done[stage], share * self._units[stage])
        left = sum(max(0.0, units - self._done[name]) * self._rate(name) for name, units in self._units.items())
        gone = now - self._started
        if stage != "loading" and gone + left > 0:
            self._fraction = max(self._fraction, min(FRACTION_MAX, gone / (gone + left)))
        return self._fraction, left if stage != "loading" and self._tells() else None

    def measured(self) -> dict[str, float]:
        """Seconds a unit of each stage that this run went through."""
        rates = {name: self._measured(name) for name in self._units}
        return {name: rate for name, rate in rates.items() if rate is not None}

    def _plan(self, encodings: int, slices: int, names: int) -> None:
        self._encodings = encodings
        self._units["planned"] *= min(1, encodings)
        self._units["encoding"] = float(encodings * slices)
        self._units["segmenting"] = float(names * slices)

    def _count_encoded(self, share: float, slices: int) -> None:
        self._done["planned"] = self._units["planned"]
        self._units["encoding"] = float(max(1, self._encodings) * slices)  # slices of a kept volume may lack as well
        self._done["encoding"] = share * self._units["encoding"]
        if not self._first[0] and self._done["encoding"]:
            self._first = (self._done["encoding"], self._seconds["encoding"])

    def _measured(self, stage: str) -> float | None:
        done, seconds = self._done[stage], self._seconds[stage]
        if stage == "encoding":
            done, seconds = done - self._first[0], seconds - self._first[1]
        return seconds / done if done > 0 else None

    def _rate(self, stage: str) -> float:
        """Seconds a unit: of this run for slices, which are all alike; names differ, so there memory weighs in."""
        measured, remembered = self._measured(stage), self._remembered.get(stage)
        if stage == "segmenting" and remembered is not None:
            return remembered if measured is None else (measured + remembered) / 2
        if measured is not None:
            return measured
        if remembered is not None:
            return remembered
        encoding = self._measured("encoding") or self._remembered.get("encoding") or DEFAULT_RATES["encoding"]
        return DEFAULT_RATES[stage] * encoding / DEFAULT_RATES["encoding"]

    def _tells(self) -> bool:
        """Whether the longest of the stages to come is known from a measurement."""
        longest = "encoding" if self._done["encoding"] < self._units["encoding"] else "segmenting"
        names = (longest, "encoding")
        return any(self._measured(name) is not None or name in self._remembered for name in names)


def rates_file() -> Path:
    """This user's file of remembered rates; it need not exist yet."""
    return platformdirs.user_state_path("MedZeroSeg", appauthor=False) / "seconds.json"


def remembered_rates(file: Path, setting: str) -> dict[str, float]:
    """Seconds a unit of each stage on this machine with a ``setting`` (preset and device), where known."""
    rates = _read(file).get(_key(setting))
    if not isinstance(rates, dict):
        return {}
    return {
        name: float(rate)
        for name, rate in rates.items()
        if name in DEFAULT_RATES and isinstance(rate, (int, float)) and 0 < rate < 1e6
    }


def remember_rates(file: Path, setting: str, measured: Mapping[str, float]) -> None:
    """Mix new rates half and half with those remembered; a file that can't be written costs a prediction, no more."""
    earlier = remembered_rates(file, setting)
    rates = {name: (rate + earlier.get(name, rate)) / 2 for name, rate in measured.items()}
    content = {**_read(file), _key(setting): {**earlier, **rates}}
    try:
        with replacing(file) as stream:
            stream.write(json.dumps(content, indent=1).encode("utf-8"))
    except MedZeroSegError:
        pass


def _key(setting: str) -> str:
    """Home folders are shared between machines, so the machine's name is part of it."""
    return f"{platform.node()}: {setting}"


def _read(file: Path) -> dict[str, object]:
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
