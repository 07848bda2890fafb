"""The table of scores: one row per case and structure, in a CSV file that is whole after every image."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from MedZeroSegLib.errors import InputError
from MedZeroSegLib.evaluation.manifest import Case
from MedZeroSegLib.writers import replacing

DIGITS = 5  # of the measures in the file


@dataclass(frozen=True)
class Score:
    """One name asked in one case; the measures are None where the structure is absent and wasn't found.

    ``seconds`` is the image's time divided by the names asked. ``kind`` is "marked" (by the mask), "whole" (union of
    marked parts) or "far" (of another body region). ``typed`` is the text that stood for the structure. ``auc`` is
    `localisation.saliency_auc`, None for sides and methods without saliency. The last four are None or "" in tables of
    older versions.
    """

    case: str
    source: str
    structure: str
    present: bool
    found: bool
    dice: float | None
    iou: float | None
    nsd: float | None
    seconds: float
    patient: str
    modality: str
    kind: str
    hd95: float | None = None
    slice_dice: float | None = None
    typed: str = ""
    auc: float | None = None


COLUMNS = tuple(field.name for field in fields(Score))


class ScoreTable:
    """The scores of one method, kept in a file.

    Parameters
    ----------
    path
        Read if it exists; raises InputError when it isn't such a table.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[Score] = read_scores(path) if path.is_file() else []

    def holds(self, image: Sequence[Case]) -> bool:
        """Whether an image's rows are there; they are put together."""
        return any(row.case == image[0].case_id for row in self.rows)

    def put(self, rows: Iterable[Score]) -> None:
        """Add an image's rows in place of earlier ones of the same cases, and save."""
        added = list(rows)
        cases = {row.case for row in added}
        self.rows = [row for row in self.rows if row.case not in cases] + added
        self.save()

    def clear(self) -> None:
        """Forget all rows and remove the file."""
        self.rows = []
        self.path.unlink(missing_ok=True)

    def save(self) -> None:
        """Raises InputError or InstallationError when the file can't be written."""
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows([_cell(getattr(row, column)) for column in COLUMNS] for row in self.rows)
        with replacing(self.path) as file:
            file.write(text.getvalue().encode("utf-8"))


def read_scores(path: Path) -> list[Score]:
    """Rows of a table; raises InputError."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [_score(row) for row in csv.DictReader(file)]
    except (KeyError, TypeError, ValueError) as problem:
        raise InputError(f"{path} isn't a table of scores; give another output folder or remove the file.") from problem


def _score(row: dict[str, str]) -> Score:
    def measure(column: str) -> float | None:
        return float(row[column]) if row[column] else None

    def truth(column: str) -> bool:
        return {"true": True, "false": False}[row[column]]

    return Score(
        case=row["case"],
        source=row["source"],
        structure=row["structure"],
        present=truth("present"),
        found=truth("found"),
        dice=measure("dice"),
        iou=measure("iou"),
        nsd=measure("nsd"),
        seconds=float(row["seconds"]),
        patient=row["patient"],
        modality=row["modality"],
        kind=row["kind"],
        hd95=measure("hd95") if "hd95" in row else None,
        slice_dice=measure("slice_dice") if "slice_dice" in row else None,
        typed=row.get("typed", ""),
        auc=measure("auc") if "auc" in row else None,
    )


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{round(value, DIGITS):g}" if isinstance(value, float) else str(value)
