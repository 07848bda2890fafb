"""What is to be done: which cases are whole as they lie there, and why the others are computed. Nothing is changed.

A result is whole when image, settings and weights are those that it was made from and every file has its hash. Masks
that people have accepted or changed are their work: while they lie there, they are never computed anew."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from MedZeroSegLib.cohort.by_hand import Outputs, belongs_to_a_person
from MedZeroSegLib.cohort.case import Case
from MedZeroSegLib.cohort.case_record import CaseRecord
from MedZeroSegLib.cohort.journal import Entry
from MedZeroSegLib.cohort.settings import CaseMarks, EngineMarks, RunSettings, case_marks
from MedZeroSegLib.cohort.work import case_folder, read_answer, work_place
from MedZeroSegLib.errors import InputError
from MedZeroSegLib.weights_catalogue import sha256_of

if TYPE_CHECKING:
    from MedZeroSegLib.cohort.corrections import Learned

NEW, INTERRUPTED, FAILED = "new", "interrupted", "failed before"
IMAGE, SETTINGS, WEIGHTS = "image changed", "settings changed", "weights changed"
MISSING, DAMAGED = "output missing", "output damaged"


@dataclass(frozen=True)
class Turn:
    """A case that is to be computed, and why."""

    case: Case
    marks: CaseMarks
    reason: str


@dataclass(frozen=True)
class Plan:
    """All cases of a cohort, sorted by what is to happen with them.

    Attributes
    ----------
    turns
        To be computed, in the cohort's order; those in the middle of which a run ended come last, so that a case that
        stops the machine keeps no other waiting, and none is begun again and again.
    ready
        Whole in a folder, though the journal doesn't say so: the run ended before it was noted. Folder and answer.
    kept
        Whole, or a person's work, with their signature to note.
    failed
        Failed before, and neither image nor settings changed since.
    reviewed, by_hand
        Names of those, of ready and kept, that would be computed but for the person who has accepted or corrected
        them, or changed them without a mark on the list.
    learned
        What accepted and corrected cases teach about the rest.
    """

    turns: tuple[Turn, ...]
    ready: tuple[tuple[Case, Path, dict[str, Any]], ...]
    kept: tuple[tuple[Case, str], ...]
    failed: tuple[Case, ...]
    reviewed: tuple[str, ...] = ()
    by_hand: tuple[str, ...] = ()
    learned: Learned | None = None

    @property
    def reasons(self) -> dict[str, int]:
        """How many cases are computed for which reason."""
        return dict(Counter(turn.reason for turn in self.turns))


def make_plan(
    cases: tuple[Case, ...],
    entries: Mapping[str, Entry],
    outputs: Mapping[str, Outputs],
    folder: Path,
    settings: RunSettings,
    engine: EngineMarks,
    retry_failed: bool = False,
    reviews: Mapping[str, str] | None = None,
    learned: Learned | None = None,
) -> Plan:
    """Compare the cases with the journal's entries and outputs, and with what lies in the folder.

    Parameters
    ----------
    reviews
        Status of the cases that people have accepted or corrected, see ``review.reviewed_cases``.
    learned
        What such cases teach about the rest, where that is wanted.
    """
    reviews = reviews or {}
    turns, ready, kept, failed = [], [], [], []
    reviewed: list[str] = []
    by_hand: list[str] = []
    for case in cases:
        corrections = learned.mark_of(case) if learned else ""
        marks, entry = case_marks(case, settings, engine, corrections), entries.get(case.name)
        signature = case.signature()
        place, noted = case_folder(folder, case.name), outputs.get(case.name, {})
        unnoted = _unnoted(case, marks, signature, entry, folder)
        reason = "" if unnoted else _reason(case, marks, signature, entry, place, noted, retry_failed)
        if reason and belongs_to_a_person(place, noted, reviews.get(case.name, "")):
            unnoted, reason = _persons(entry, place, reason)
            (reviewed if case.name in reviews else by_hand).append(case.name)
            # With the old signature: should the case be opened again, what has changed since is still known.
            signature = entry.signature or signature if entry else signature
        if unnoted is not None:
            ready.append((case, *unnoted))
        elif reason:
            turns.append(Turn(case, marks, reason))
        elif entry is not None and entry.status == "failed":
            failed.append(case)
        else:
            kept.append((case, signature))
    turns.sort(key=lambda turn: turn.reason == INTERRUPTED)
    return Plan(tuple(turns), tuple(ready), tuple(kept), tuple(failed), tuple(reviewed), tuple(by_hand), learned)


def _reason(
    case: Case, marks: CaseMarks, signature: str, entry: Entry | None, place: Path, noted: Outputs, retry_failed: bool
) -> str:
    """Why a case is to be computed; "" for one that is whole, or failed before."""
    if entry is None:
        return NEW
    if entry.status in ("waiting", "running"):
        return INTERRUPTED if entry.status == "running" else entry.sentence or NEW
    if changed := _changed(case, marks, signature, entry):
        return changed
    if entry.status == "failed":
        return FAILED if retry_failed else ""
    return _fault(place, noted)


def _persons(entry: Entry | None, place: Path, reason: str) -> tuple[tuple[Path, dict[str, Any]] | None, str]:
    """Folder and answer of a person's case that is to be noted as done, and why it is computed all the same: where
    nobody knows any more how it was made, which its masks survive."""
    if entry is not None and entry.status == "done":
        return None, ""
    answer = read_answer(place)
    return (None, reason) if answer is None else ((place, answer), "")


def _changed(case: Case, marks: CaseMarks, signature: str, entry: Entry) -> str:
    """What a case that had its turn would now be made from otherwise; "" for nothing."""
    if marks.settings != entry.settings:
        return SETTINGS
    if marks.weights != entry.weights:
        return WEIGHTS
    if signature == entry.signature:
        return ""
    return "" if _same_content(case, entry.image_sha256) else IMAGE


def _same_content(case: Case, sha256: str | None) -> bool:
    if sha256 is None:
        return False
    try:
        return case.content_sha256() == sha256
    except InputError:
        return False


def _fault(place: Path, outputs: Outputs) -> str:
    """What is wrong with the files of a case; "" for nothing."""
    if not outputs:
        return MISSING
    for name, (sha256, size) in outputs.items():
        try:
            if (place / name).stat().st_size != size or sha256_of(place / name) != sha256:
                return DAMAGED
        except FileNotFoundError:
            return MISSING
        except OSError:
            return DAMAGED
    return ""


def _unnoted(
    case: Case, marks: CaseMarks, signature: str, entry: Entry | None, folder: Path
) -> tuple[Path, dict[str, Any]] | None:
    """Folder and answer of a result that was ready, or in its place already, when the run ended."""
    if entry is None or entry.status not in ("waiting", "running"):
        return None
    for place in (case_folder(folder, case.name), work_place(folder, case.name, entry.attempts)):
        answer = read_answer(place)
        if answer is None or (answer["settings"], answer["weights"]) != (marks.settings, marks.weights):
            continue
        same = signature == answer["signature"] or _same_content(case, answer["image_sha256"])
        if same and not _fault(place, {name: (mark, size) for name, (mark, size) in answer["outputs"].items()}):
            return place, answer
    return None


def renewed(record: CaseRecord, case: Case) -> CaseRecord:
    """The record with the columns and the place that the input has for the case now."""
    return replace(record, image=str(case.image), carried=dict(case.carried))
