"""Whether accepted and corrected cases help with the rest, structure by structure: kept beside the results, for the
report and the command line."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from MedZeroSegLib.writers import replacing

FOLDER, FILE = "corrections", "verdicts.json"  # below the results
RISE_MIN = 0.02  # of the mean Dice, for a structure to be drawn so
CASES_MIN = 3  # with the structure; leaving one of fewer out tells nothing


@dataclass(frozen=True)
class Verdict:
    """Whether a structure, in images of one modality, is drawn better with what other cases teach.

    Attributes
    ----------
    cases
        Those that show it.
    before, after
        Mean Dice with the person's masks, each case left out in turn: of the text alone, and with the best weight of
        those that were tried. None where there are too few cases.
    weight
        Of the prototype; 0 where it isn't used.
    """

    structure: str
    modality: str
    cases: int
    before: float | None = None
    after: float | None = None
    weight: float = 0.0

    @property
    def use(self) -> str:
        """What follows from it, in words."""
        if self.before is None:
            return f"not used: {CASES_MIN} cases have to show it"
        return "used for the rest" if self.weight else f"not used: it rises by less than {RISE_MIN}"


@dataclass(frozen=True)
class Taught:
    """What a run learned: from how many cases, with which verdicts, and which cases it couldn't learn from, and why."""

    cases: int
    verdicts: tuple[Verdict, ...]
    failures: tuple[tuple[str, str], ...] = ()

    def lines(self) -> list[str]:
        """The same in sentences."""
        lines = [f"Accepted or corrected cases that were learned from: {self.cases}."]
        for one in self.verdicts:
            dice = ""
            if one.before is not None and one.after is not None:
                dice = f"Dice {one.before:.3f} by the text alone, {one.after:.3f} with the other cases; "
            lines.append(f"  {one.structure} ({one.modality}), {one.cases} cases: {dice}{one.use}.")
        return lines + [f"Not learned from: {name}: {sentence}" for name, sentence in self.failures]


def keep_taught(taught: Taught, folder: Path) -> None:
    """Write what was learned beside the results; raises InstallationError."""
    with replacing(folder / FOLDER / FILE) as file:
        file.write((json.dumps(asdict(taught), ensure_ascii=False, indent=1) + "\n").encode())


def kept_taught(folder: Path) -> Taught | None:
    """What the latest run learned; None where it didn't."""
    try:
        content = json.loads((folder / FOLDER / FILE).read_bytes())
        return Taught(content["cases"], _verdicts(content["verdicts"]), _pairs(content["failures"]))
    except (OSError, ValueError, LookupError, TypeError):
        return None


def forget_taught(folder: Path) -> None:
    """The latest run didn't learn."""
    with suppress(OSError):
        (folder / FOLDER / FILE).unlink()


def _verdicts(rows: Sequence[Mapping[str, object]]) -> tuple[Verdict, ...]:
    return tuple(Verdict(**row) for row in rows)  # type: ignore[arg-type]


def _pairs(rows: Sequence[Sequence[str]]) -> tuple[tuple[str, str], ...]:
    return tuple((name, sentence) for name, sentence in rows)
