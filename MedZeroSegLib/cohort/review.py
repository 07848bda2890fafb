"""The list of cases to look at, in order of doubt: `review.csv`, which the run writes, people work through, and both
may change at once. Needs neither torch nor the run, so the Slicer module opens it as a work list."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from MedZeroSegLib.cohort.outliers import outliers_of
from MedZeroSegLib.errors import InputError
from MedZeroSegLib.writers import replacing

if TYPE_CHECKING:
    from MedZeroSegLib.cohort.case_record import CaseRecord
    from MedZeroSegLib.cohort.statistics import SegmentStatistics

OPEN, ACCEPTED, CORRECTED = "open", "accepted", "corrected"
STATUSES = (OPEN, ACCEPTED, CORRECTED)
CONCERN_MIN = 0.3  # doubt from which a segment is named among the reasons
OUTLIER_DOUBT = 0.9  # at least, of a segment of unusual size
MISSING_DOUBT = 0.95  # at least, of a structure that is missing here and found in nearly all other cases
USUAL_SHARE = 0.8  # of the cases; what is found in more is expected in all
USUAL_CASES_MIN = 8
LIST_SEPARATOR = "; "


@dataclass(frozen=True, kw_only=True)
class ReviewRow:
    """One case on the list.

    Attributes
    ----------
    case, image : str
        As in the case's record.
    labels : str
        The masks' file, relative to the list's folder with "/" between its parts; empty when there is none.
    structures : tuple of str
        The doubtful ones, the most doubtful first.
    doubt : float
        0..1, of the most doubtful structure.
    reason : str
        Sentences.
    status : "open", "accepted" or "corrected"
    seconds : float or None
        Time that the reviewer took.
    masks : str
        Fingerprint of the case's masks. Masks that were made anew and differ want to be accepted anew.
    """

    case: str
    image: str
    labels: str
    structures: tuple[str, ...]
    doubt: float
    reason: str
    status: str = OPEN
    seconds: float | None = None
    masks: str = ""


COLUMNS = tuple(field.name for field in fields(ReviewRow))


def write_review(records: Sequence[CaseRecord], file: Path) -> tuple[ReviewRow, ...]:
    """Write the list of all cases that are done, the most doubtful first; what people marked before is kept.

    Safe while others call ``mark``. A case that was accepted is open again when its masks are no longer the same; one
    that was corrected stays so. Marked cases that aren't among the records stay on the list, at its end.

    Returns
    -------
    tuple of ReviewRow
        As written.

    Raises
    ------
    InputError, InstallationError
        When the file can't be read or written.
    """
    rows = review_rows(records)
    with _locked(file):
        before = {row.case: row for row in read_review(file)} if file.exists() else {}
        merged = [_with_mark(row, before.pop(row.case, None)) for row in rows]
        merged += [row for row in before.values() if row.status != OPEN]
        _write(merged, file)
    return tuple(merged)


def read_review(file: Path) -> tuple[ReviewRow, ...]:
    """The list as it stands.

    Raises
    ------
    InputError
        When there is no such list, or a row makes no sense.
    """
    raise NotImplementedError


def mark(file: Path, case: str, status: str, seconds: float | None = None) -> ReviewRow:
    """Set the status of a case, and add the time that the reviewer took; returns the row as it is now.

    Atomic, and safe while the run or other people write the list.

    Raises
    ------
    InputError
        When the list doesn't have the case, or there is no such status.
    """
    raise NotImplementedError
