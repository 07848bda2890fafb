"""What a worker does with one case: read, segment, write everything into a folder of its own, tell the hashes.

A worker's process runs two cases at a time, of which one may read and one may compute: so the next image is read while
this one is computed, and never more than two are in memory."""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from MedZeroSegLib.cohort.case import Case
from MedZeroSegLib.cohort.settings import CaseMarks, RunSettings
from MedZeroSegLib.errors import MEMORY_RAN_OUT, InputError, InstallationError, MedZeroSegError

if TYPE_CHECKING:
    from MedZeroSegLib.cohort.case_record import CaseRecord
    from MedZeroSegLib.cohort.corrections import Learned
    from MedZeroSegLib.segment import Segmentation
    from MedZeroSegLib.volume import Volume

CASES_FOLDER, WORK_FOLDER = "cases", ".work"
ANSWER = "case.json"  # written last: where it lies, all the others are whole
CASES_AT_ONCE = 2  # in one process: one is computed, one is read or written

_reading, _computing = threading.Lock(), threading.Lock()


class WorkerLost(Exception):
    """The process that had begun a case ended before it was done."""


def run_case(
    case: Case,
    settings: RunSettings,
    marks: CaseMarks,
    folder: Path,
    attempt: int,
    alone: bool = False,
    learned: Learned | None = None,
) -> dict[str, Any]:
    """Compute one case. Its files stay in the folder ``work_place(...)``.

    Parameters
    ----------
    marks
        Kept with the answer.
    folder
        Of the cohort's results.
    attempt
        Number of this attempt at the case, over all runs.
    alone
        Whether to do nothing else meanwhile: for cases during which a process has died before.
    learned
        What other cases teach about this one.

    Returns
    -------
    dict
        "record" (JSON of CaseRecord), "signature", "image_sha256", "settings", "weights" and "outputs" (file → SHA-256
        and size), or "record" and "signature" alone where it failed.

    Raises
    ------
    WorkerLost
        When the attempt was begun before: the process in which that was has died.
    """
    with ExitStack() as held:
        if alone:
            held.enter_context(_computing)
        place = work_place(folder, case.name, attempt)
        started = time.perf_counter()
        try:
            with _as_sentence(case, place, folder):
                if not _begin(place):
                    return _earlier_answer(place, case)
                return _compute(case, settings, marks, folder, place, alone, learned)
        except MedZeroSegError as problem:
            shutil.rmtree(place, ignore_errors=True)
            return _failure(case, str(problem), time.perf_counter() - started)


@contextmanager
def alone() -> Iterator[None]:
    """Nothing else computes in this process meanwhile."""
    with _computing:
        yield


def work_place(folder: Path, name: str, attempt: int) -> Path:
    """Where the files of an attempt at a case lie until it is done."""
    return folder / WORK_FOLDER / f"{name}.{attempt}"


def case_folder(folder: Path, name: str) -> Path:
    """Where the files of a case lie when it is done."""
    return folder / CASES_FOLDER / name


def _begin(place: Path) -> bool:
    """Make the attempt's folder; False where it is there already."""
    try:
        place.mkdir(parents=True)
    except FileExistsError:
        return False
    return True


def _earlier_answer(place: Path, case: Case) -> dict[str, Any]:
    """The answer that an earlier process had ready when it died, and nobody got."""
    answer = read_answer(place)
    if answer is None:
        raise WorkerLost(case.name)
    return answer


def read_answer(place: Path) -> dict[str, Any] | None:
    """The answer that lies in a folder of a case; None where there is none."""
    try:
        return json.loads((place / ANSWER).read_bytes())
    except (OSError, ValueError):
        return None


def _compute(
    case: Case,
    settings: RunSettings,
    marks: CaseMarks,
    folder: Path,
    place: Path,
    alone: bool,
    learned: Learned | None,
) -> dict[str, Any]:
    from MedZeroSegLib.cohort.case_record import done_record

    with _reading:
        started = time.perf_counter()
        volume, signature, sha256 = _read(case)
    waiting = time.perf_counter()
    with ExitStack() as held:
        if not alone:
            held.enter_context(_computing)
        waited = time.perf_counter() - waiting
        segmentation = _segment(volume, case, settings, learned)
    files, lacking = _write(segmentation, case, settings, place)
    seconds = time.perf_counter() - started - waited
    shown = {kind: case_folder(folder, case.name).relative_to(folder) / name for kind, name in files.items()}
    record = done_record(
        segmentation,
        case.name,
        str(case.image),
        round(seconds, 3),
        case.carried,
        {kind: path.as_posix() for kind, path in shown.items()},
        case.frame,
    )
    record = replace(record, warnings=(*record.warnings, *lacking))
    return _answer(record, {"signature": signature, "image_sha256": sha256, **asdict(marks)}, place)


def _read(case: Case) -> tuple[Volume, str, str]:
    from MedZeroSegLib.volume_io import read_volume

    signature, sha256 = case.signature(), case.content_sha256()
    return read_volume(case.image, case.modality, case.frame, case.files or None), signature, sha256


def _segment(volume: Volume, case: Case, settings: RunSettings, learned: Learned | None) -> Segmentation:
    from MedZeroSegLib.encoding import forget_volumes
    from MedZeroSegLib.pipeline import segment

    asked = (volume, case.structures, settings.preset, settings.device, settings.weights_folder)
    adjust = learned.adjust_for(volume.modality) if learned else None
    try:
        if learned is None or adjust is None:
            return segment(*asked)
        return learned.credited(segment(*asked, adjust=adjust))
    finally:
        forget_volumes()  # nobody asks about this one again


def _write(
    segmentation: Segmentation, case: Case, settings: RunSettings, place: Path
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Write all files of a case and return their names by kind, and sentences on what could not be made."""
    from MedZeroSegLib.cohort.mosaic import write_mosaic, write_thumbnail
    from MedZeroSegLib.dicom_io import is_dicom
    from MedZeroSegLib.writers import write_report, write_segmentation

    names = {
        "labels": f"{case.name}.{settings.format}",
        "report": f"{case.name}.json",
        "mosaic": f"{case.name}.png",
        "thumbnail": f"{case.name}.jpg",
    }
    write_segmentation(segmentation, place / names["labels"])
    write_report(segmentation, place / names["report"])
    write_mosaic(segmentation, place / names["mosaic"])
    write_thumbnail(segmentation, place / names["thumbnail"])
    if settings.uncertainty:
        from MedZeroSegLib.uncertainty_map import write_uncertainty

        chart, table = write_uncertainty(segmentation, place, case.name)
        names |= {"uncertainty": chart.name, "uncertainty_table": table.name}
    if not settings.dicom_seg or not is_dicom(case.image):
        return names, ()
    from MedZeroSegLib.dicom_seg import write_dicom_seg

    try:
        write_dicom_seg(segmentation, case.image, place / f"{case.name}.dcm", case.files or None)
    except InputError as problem:  # the image can't be referred to; its masks are as good as any
        return names, (f"No DICOM SEG: {problem}",)
    return {**names, "dicom_seg": f"{case.name}.dcm"}, ()


def _answer(record: CaseRecord, marks: dict[str, str], place: Path) -> dict[str, Any]:
    """Hash what was written, keep the answer beside it, and return it."""
    from MedZeroSegLib.weights_catalogue import sha256_of
    from MedZeroSegLib.writers import replacing

    outputs = {file.name: [sha256_of(file), file.stat().st_size] for file in sorted(place.iterdir())}
    answer = {"record": record.to_json(), **marks, "outputs": outputs}
    with replacing(place / ANSWER) as file:
        file.write(json.dumps(answer, ensure_ascii=False, indent=1).encode())
        os.fsync(file.fileno())
    return json.loads((place / ANSWER).read_bytes())


def _failure(case: Case, sentence: str, seconds: float) -> dict[str, Any]:
    from MedZeroSegLib.cohort.case_record import failed_record

    record = failed_record(case.name, str(case.image), sentence, round(seconds, 3), case.carried)
    return {"record": asdict(record), "signature": case.signature()}


@contextmanager
def _as_sentence(case: Case, place: Path, folder: Path) -> Iterator[None]:
    """Turn whatever goes wrong with a case into a sentence, which names files by the place that they were to get."""
    try:
        yield
    except WorkerLost:
        raise
    except MedZeroSegError as problem:
        told = str(problem).replace(str(place), str(case_folder(folder, case.name)))
        raise type(problem)(told) from problem
    except MemoryError as problem:
        raise InstallationError(MEMORY_RAN_OUT) from problem
    except OSError as problem:
        reason = (problem.strerror or "the system gives no reason").lower()
        where = str(problem.filename or place).replace(str(place), str(case_folder(folder, case.name)))
        raise InstallationError(f"'{where}' cannot be read or written ({reason}).") from problem
    except Exception as problem:
        traceback.print_exc(file=sys.stderr)
        raise InstallationError(
            f"An error inside the program ended this case ({type(problem).__name__}: {problem}); the others go on."
        ) from problem
