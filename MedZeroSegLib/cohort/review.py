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
from MedZeroSegLib.errors import InputError, InstallationError
from MedZeroSegLib.writers import replacing

if TYPE_CHECKING:
    from MedZeroSegLib.cohort.case_record import CaseRecord
    from MedZeroSegLib.cohort.statistics import SegmentStatistics

REVIEW_FILE = "review.csv"  # in the folder of a cohort's results
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
    note : str
        The reviewer's.
    masks : str
        Fingerprint of the case's masks. Masks that were made anew and differ want to be accepted anew.
    frame : int or None
        Of an image that holds several, from 0.
    """

    case: str
    image: str
    labels: str
    structures: tuple[str, ...]
    doubt: float
    reason: str
    status: str = OPEN
    seconds: float | None = None
    note: str = ""
    masks: str = ""
    frame: int | None = None


COLUMNS = tuple(field.name for field in fields(ReviewRow))
LATER_COLUMNS = ("frame",)  # which lists of earlier versions lack


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


def review_rows(records: Sequence[CaseRecord]) -> list[ReviewRow]:
    """A row for each case that is done, the most doubtful first."""
    rows = [
        _row(record, concerns)
        for record, concerns in zip(records, concerns_of(records), strict=True)
        if record.status == "done"
    ]
    return sorted(rows, key=lambda row: (-row.doubt, row.case))


def _row(record: CaseRecord, concerns: Sequence[Concern]) -> ReviewRow:
    worst_first = sorted(concerns, key=lambda concern: -concern.doubt)
    told = [concern for concern in worst_first if concern.doubt >= CONCERN_MIN] or worst_first[:1]
    masks = "".join(segment.mask_sha256 for segment in record.segments)
    return ReviewRow(
        case=record.case,
        image=record.image,
        labels=record.files.get("labels", ""),
        structures=tuple(dict.fromkeys(concern.structure for concern in told)),
        doubt=round(worst_first[0].doubt, 3) if concerns else 0.0,
        reason=" ".join(concern.reason for concern in told),
        status=record.reviewed,
        frame=record.frame,
        masks=sha256(masks.encode()).hexdigest()[:16],
    )


@dataclass(frozen=True)
class Concern:
    """How doubtful one segment is, 0..1, also in view of the other cases; and the sentence that says why."""

    structure: str
    doubt: float
    reason: str
    unusual: bool  # in size, or in being missing


def concerns_of(records: Sequence[CaseRecord]) -> list[list[Concern]]:
    """For each record a concern for each of its segments, in their order."""
    unusual, usual = outliers_of(records), _usual_structures(records)
    return [
        [
            _concern(segment, unusual.get((record.case, segment.name)), usual.get(segment.name))
            for segment in record.segments
        ]
        for record in records
    ]


def _concern(segment: SegmentStatistics, z: float | None, usual_share: float | None) -> Concern:
    name = segment.name
    if not segment.found and usual_share is not None:
        reason = f"{name}: not found, though it was in {100 * usual_share:.0f} % of the cases."
        return Concern(name, max(segment.doubt, MISSING_DOUBT), reason, True)
    if not segment.found:
        return Concern(name, segment.doubt, f"{name}: not found, score {segment.score:.2f}.", False)
    if z is not None:
        reason = f"{name}: unusually {'large' if z > 0 else 'small'}, robust z {z:+.1f}."
        return Concern(name, max(segment.doubt, OUTLIER_DOUBT), reason, True)
    if segment.expected_dice is not None:
        return Concern(name, segment.doubt, f"{name}: expected Dice {segment.expected_dice:.2f}.", False)
    return Concern(name, segment.doubt, f"{name}: score {segment.score:.2f}.", False)


def _usual_structures(records: Sequence[CaseRecord]) -> dict[str, float]:
    """Structure → share of the cases in which it was found, of those found in nearly all."""
    found: dict[str, list[bool]] = {}
    for record in records:
        for segment in record.segments:
            found.setdefault(segment.name, []).append(segment.found)
    shares = {name: sum(each) / len(each) for name, each in found.items() if len(each) >= USUAL_CASES_MIN}
    return {name: share for name, share in shares.items() if share >= USUAL_SHARE}


def with_reviews(records: Sequence[CaseRecord], rows: Sequence[ReviewRow]) -> list[CaseRecord]:
    """The records with the status that the list has for them."""
    status = {row.case: row.status for row in rows}
    return [replace(record, reviewed=status.get(record.case, OPEN)) for record in records]


def _with_mark(row: ReviewRow, before: ReviewRow | None) -> ReviewRow:
    """The new row with what people marked on the old one."""
    if before is None:
        return row
    status = before.status
    if status == ACCEPTED and before.masks and before.masks != row.masks:
        status = OPEN
    return replace(row, status=status, seconds=before.seconds, note=before.note)


def read_review(file: Path) -> tuple[ReviewRow, ...]:
    """The list as it stands; a spreadsheet may have saved it with semicolons.

    Raises
    ------
    InputError
        When there is no such list, or a row makes no sense.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as problem:
        raise InputError(f"'{file}' is no review list that can be read; give the review.csv of a cohort.") from problem
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=";" if text.startswith("case;") else ",")
    if not set(COLUMNS) - set(LATER_COLUMNS) <= set(reader.fieldnames or ()):
        raise InputError(f"'{file}' is no review list (columns are missing); give the review.csv of a cohort.")
    rows = tuple(_parsed(cells, f"'{file}', line {number}") for number, cells in enumerate(reader, start=2))
    if len({row.case for row in rows}) < len(rows):
        raise InputError(f"'{file}' has a case twice; remove one of its lines.")
    return rows


def reviewed_cases(folder: Path) -> dict[str, str]:
    """Name and status of the cases, of the results in a folder, that people have accepted or corrected.

    Raises
    ------
    InputError
        When there is a list that can't be read.
    """
    if not (folder / REVIEW_FILE).exists():
        return {}
    return {row.case: row.status for row in read_review(folder / REVIEW_FILE) if row.status != OPEN}


def _parsed(cells: Mapping[str, str], place: str) -> ReviewRow:
    status = (cells["status"] or "").strip().lower()
    if status not in STATUSES:
        raise InputError(f"{place} has the status '{cells['status']}'; write {', '.join(STATUSES)}.")
    try:
        doubt, seconds = float(cells["doubt"]), float(cells["seconds"]) if cells["seconds"] else None
        frame = int(cells["frame"]) if cells.get("frame") else None
    except (TypeError, ValueError) as problem:
        raise InputError(f"{place} has a doubt, a time or a frame that is no number; correct it.") from problem
    structures = tuple(part for part in (cells["structures"] or "").split(LIST_SEPARATOR) if part)
    texts = {name: cells[name] or "" for name in ("case", "image", "labels", "reason", "note", "masks")}
    return ReviewRow(structures=structures, doubt=doubt, status=status, seconds=seconds, frame=frame, **texts)


def mark(file: Path, case: str, status: str, seconds: float | None = None, note: str | None = None) -> ReviewRow:
    """Set the status of a case, add the time that the reviewer took, and keep a note; returns the row as it is now.

    Atomic, and safe while the run or other people write the list.

    Raises
    ------
    InputError
        When the list doesn't have the case, or there is no such status.
    InstallationError
        When the list can't be written.
    """
    if status not in STATUSES:
        raise InputError(f"'{status}' is no status of a case; use {', '.join(STATUSES)}.")
    with _locked(file):
        rows = list(read_review(file))
        place = next((number for number, row in enumerate(rows) if row.case == case), None)
        if place is None:
            raise InputError(f"'{file}' has no case '{case}'; take a name from its first column.")
        before = rows[place]
        spent = before.seconds if seconds is None else (before.seconds or 0.0) + seconds
        rows[place] = replace(before, status=status, seconds=spent, note=before.note if note is None else note)
        _write(rows, file)
    return rows[place]


def _write(rows: Sequence[ReviewRow], file: Path) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        seconds = "" if row.seconds is None else f"{row.seconds:.1f}"
        structures = LIST_SEPARATOR.join(row.structures)
        writer.writerow({**asdict(row), "structures": structures, "doubt": f"{row.doubt:.3f}", "seconds": seconds})
    with replacing(file) as target:
        target.write(text.getvalue().encode("utf-8"))


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Nobody else who asks for this lock writes meanwhile; the system frees it when its holder dies."""
    guard = file.with_name(f".{file.name}.lock")
    try:
        guard.parent.mkdir(parents=True, exist_ok=True)
        lock = guard.open("ab")
    except OSError as problem:
        raise InstallationError(
            f"'{file}' cannot be written ({(problem.strerror or 'no reason given').lower()}); "
            "give a folder that you may write to."
        ) from problem
    with lock:
        _wait_for(lock.fileno())
        yield


if sys.platform == "win32":
    import msvcrt

    def _wait_for(descriptor: int) -> None:
        while True:
            try:
                msvcrt.locking(descriptor, msvcrt.LK_LOCK, 1)  # gives up after ten seconds
                return
            except OSError:
                continue

else:
    import fcntl

    def _wait_for(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
