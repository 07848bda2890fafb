"""Masks of a cohort as labels to learn from: which of them are good enough, how much each counts, and what is left out.

A structure that wasn't found in an image, or not well enough, is unknown there: it may be anywhere outside the others.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from MedZeroSegLib.canvas import fit_canvas
from MedZeroSegLib.cohort.case_record import CaseRecord
from MedZeroSegLib.cohort.journal import Journal
from MedZeroSegLib.cohort.masks_file import read_masks
from MedZeroSegLib.embeddings import key_slices
from MedZeroSegLib.errors import InputError, MedZeroSegError
from MedZeroSegLib.intensity import body_mask, picture
from MedZeroSegLib.queries import resolve
from MedZeroSegLib.slices import SliceFrame, slice_frame
from MedZeroSegLib.training.stored_cases import StoredCase, StoredCases
from MedZeroSegLib.training.variation import IGNORED
from MedZeroSegLib.volume import Volume
from MedZeroSegLib.volume_io import read_volume

ENTROPY_MAX = 0.5  # nat; voxels above it are ignored: where p lies between .2 and .8
TRUST_MIN = 0.5  # masks that are expected to be more wrong than right teach nothing
CASES_MIN = 5  # with a usable mask, or a structure isn't learnt
SIZE = 256  # side of the square on which slices are shown, as to all models

Tell = Callable[[str], None]


@dataclass(frozen=True)
class PseudoCase:
    """One case of a cohort.

    Attributes
    ----------
    trust
        For each structure with a usable mask, how much it counts, 0..1: its expected Dice, the score where that isn't
        known, 1 where a person accepted or corrected it.
    doubted
        Structures whose masks are too doubtful to be used.
    """

    name: str
    image: Path
    labels: Path
    uncertainty: Path | None
    table: Path | None
    report: Path
    trust: dict[str, float]
    doubted: tuple[str, ...]
    reviewed: bool


@dataclass(frozen=True)
class PseudoLabels:
    """The usable cases of a cohort, its ``structures`` by name without side, and who drew their masks."""

    cases: tuple[PseudoCase, ...]
    structures: tuple[str, ...]
    teacher: dict[str, Any]


def read_pseudo_labels(folder: Path, keep: float, tell: Tell) -> PseudoLabels:
    """Choose the masks to learn from.

    Parameters
    ----------
    folder
        Made by ``medzeroseg cohort``, best with ``--uncertainty``.
    keep
        Share of each structure's masks that are used, the surest first, 0..1.
    tell
        Told what is left out.

    Raises
    ------
    InputError
        When the folder holds no cohort, cases of several presets, or no structure with ``CASES_MIN`` usable masks.
    """
    if not 0 < keep <= 1:
        raise InputError(f"The share of masks to keep is {keep:g}; give a number above 0 and up to 1, such as 0.7.")
    journal = Journal(folder)
    records = [record for record in journal.records() if record.status == "done"]
    journal.close()
    if not records:
        raise InputError(f"'{folder}' holds no finished case; run `medzeroseg cohort` on it first.")
    records = _with_reviews(records, folder)
    trust = _trusted(records, keep)
    counts = Counter(name for known in trust.values() for name in known)
    structures = tuple(sorted(name for name, count in counts.items() if count >= CASES_MIN))
    asked = sorted({_sideless(segment.name) for record in records for segment in record.segments})
    for name in asked:
        if name not in structures:
            tell(f"{name} has {counts[name]} usable masks and isn't learnt; {CASES_MIN} are needed.")
    if not structures:
        raise InputError(
            f"'{folder}' has no structure with {CASES_MIN} usable masks ({', '.join(asked)} were asked for); "
            "run the cohort on more images or for other names."
        )
    cases = [_case(record, folder, trust[record.case], structures) for record in records]
    usable = tuple(case for case in cases if case.trust)
    if any(case.uncertainty is None for case in usable):
        tell("Some cases have no map of doubtful voxels, which `cohort --uncertainty` makes; all their voxels count.")
    return PseudoLabels(usable, structures, _teacher(records, folder))


def store_cases(labels: PseudoLabels, folder: Path, tell: Tell) -> list[StoredCase]:
    """The cases as a student sees them, kept in ``folder``; what an earlier run has stored is taken from there."""
    store = StoredCases(folder)
    stored = []
    for case in labels.cases:
        plan = _plan(case, labels.structures)
        if not store.has(case.name, plan):
            try:
                store.add(case.name, plan, *_shown(case, labels.structures))
            except MedZeroSegError as problem:
                tell(f"{case.name} is left out: {problem}")
                continue
        stored.append(store.case(case.name))
    stored = [case for case in stored if len(case)]
    if not stored:
        raise InputError("No image of the cohort can be read any more; bring the images back to where they were.")
    return stored


def volumes_of(labels: PseudoLabels, tell: Tell) -> Iterator[tuple[PseudoCase, Volume, np.ndarray]]:
    """Each case on its image's own grid: the volume and its labels, uint8 [k, j, i]."""
    for case in labels.cases:
        try:
            volume = _volume(case)
            yield case, volume, _label_map(case, volume, labels.structures)
        except MedZeroSegError as problem:
            tell(f"{case.name} is left out: {problem}")


def _with_reviews(records: Sequence[CaseRecord], folder: Path) -> list[CaseRecord]:
    from MedZeroSegLib.cohort.review import REVIEW_FILE, read_review, with_reviews

    file = folder / REVIEW_FILE
    return list(with_reviews(records, read_review(file)) if file.is_file() else records)


def _trusted(records: Sequence[CaseRecord], keep: float) -> dict[str, dict[str, float]]:
    """For each case the structures that are usable there and how much they count."""
    trust: dict[str, dict[str, float]] = {record.case: {} for record in records}
    for record in records:
        for segment in record.segments:
            if segment.found:
                name, own = _sideless(segment.name), trust[record.case]
                known = segment.score if segment.expected_dice is None else segment.expected_dice
                value = 1.0 if record.reviewed != "open" else known
                own[name] = min(value, own.get(name, 1.0))  # of two sides the less sure one
    missing = {
        (record.case, _sideless(segment.name)) for record in records for segment in record.segments if not segment.found
    }
    for case, name in missing:  # one side alone doesn't make a pair
        trust[case].pop(name, None)
    for name in {name for known in trust.values() for name in known}:
        values = sorted((known[name] for known in trust.values() if name in known), reverse=True)
        least = max(TRUST_MIN, values[max(1, round(keep * len(values))) - 1])
        for own in trust.values():
            if own.get(name, 1.0) < least:
                del own[name]
    return trust


def _case(record: CaseRecord, folder: Path, known: dict[str, float], structures: tuple[str, ...]) -> PseudoCase:
    files = {kind: folder / path for kind, path in record.files.items()}
    found = {_sideless(segment.name) for segment in record.segments if segment.found}
    return PseudoCase(
        name=record.case,
        image=Path(record.image),
        labels=files["labels"],
        uncertainty=files.get("uncertainty"),
        table=files.get("uncertainty_table"),
        report=files["report"],
        trust={name: value for name, value in known.items() if name in structures},
        doubted=tuple(sorted(found - set(known))),
        reviewed=record.reviewed != "open",
    )


def _teacher(records: Sequence[CaseRecord], folder: Path) -> dict[str, Any]:
    """Preset, version and weights that drew the masks, and the sources whose masks had taught it."""
    made = [{key: record.provenance[key] for key in ("preset", "version", "weights")} for record in records]
    if any(one != made[0] for one in made):
        raise InputError(f"'{folder}' holds cases of several presets or weights; run the cohort once more with one.")
    return {**made[0], "sources": list(records[0].provenance["settings"].get("trained_sources", ()))}


def _sideless(name: str) -> str:
    return resolve([name])[0].concept


def _plan(case: PseudoCase, structures: tuple[str, ...]) -> str:
    """Names all that the stored case depends on; the masks' file by size and time, as the image."""
    states = [
        (file.stat().st_size, file.stat().st_mtime_ns) if file.exists() else None
        for file in (case.image, case.labels, case.uncertainty or case.labels)
    ]
    content = json.dumps([asdict(case), structures, states, ENTROPY_MAX], default=str, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _volume(case: PseudoCase) -> Volume:
    try:
        made = json.loads(case.report.read_bytes())["input"]
    except (OSError, ValueError, KeyError) as problem:
        raise InputError(f"'{case.report}' can't be read; run the cohort once more.") from problem
    volume = read_volume(case.image, modality=made["modality"])
    if volume.fingerprint != made["fingerprint"]:
        raise InputError(
            f"'{case.image}' isn't what was segmented: it has changed, or only a frame or series of it was taken; "
            "give each frame or series as a file of its own."
        )
    return volume


def _label_map(case: PseudoCase, volume: Volume, structures: tuple[str, ...]) -> np.ndarray:
    """uint8 [k, j, i]: 0 background, 1.. the structures in their order, ``IGNORED``; smaller segments come on top."""
    masks: dict[str, np.ndarray] = {}
    for segment in read_masks(case.labels).segments:
        if segment.mask.shape != volume.shape:
            raise InputError(f"'{case.labels}' isn't on the grid of its image; run the cohort once more.")
        name = _sideless(segment.name)
        masks[name] = segment.mask | masks[name] if name in masks else segment.mask
    labels = np.zeros(volume.shape, np.uint8)
    if case.uncertainty is not None and not case.reviewed:
        labels[_doubtful(read_volume(case.uncertainty).voxels)] = IGNORED
    for name in sorted(case.trust, key=lambda name: -np.count_nonzero(masks[name])):
        where = masks[name] & (labels != IGNORED)
        labels[where] = structures.index(name) + 1
    for name in case.doubted:
        if name in masks:
            labels[masks[name] & (labels == 0)] = IGNORED
    return labels


def _doubtful(uncertainty: np.ndarray) -> np.ndarray:
    """Voxels whose binary entropy exceeds ``ENTROPY_MAX``; the map is 255 · (1 − |2p − 1|)."""
    p = np.clip(np.arange(256) / 510, 1e-9, 0.5)
    entropy = -p * np.log(p) - (1 - p) * np.log(1 - p)
    return (entropy > ENTROPY_MAX)[uncertainty.astype(np.uint8)]


def _shown(case: PseudoCase, structures: tuple[str, ...]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and facts of a stored case: the key slices on the canvas, as the line shows them to a model."""
    volume = _volume(case)
    frame = slice_frame(volume)
    grey, body = frame.forward(picture(volume)), frame.forward(body_mask(volume))
    keys = key_slices(body, frame)
    labels = frame.forward(_label_map(case, volume, structures))[keys.indices]
    canvas = fit_canvas(grey.shape[1:], frame.spacing[1:], SIZE)
    shown = (canvas.place(grey[keys.indices])[:, 0].numpy() * 255).round().astype(np.uint8)
    marks = canvas.place_labels(labels)
    marks[:, canvas.rows :], marks[:, :, canvas.columns :] = IGNORED, IGNORED
    arrays = {
        "pictures": shown.reshape(-1, SIZE, SIZE),
        "labels": marks.reshape(-1, SIZE, SIZE),
        "doubt": _slice_doubt(case, frame, grey.shape[0])[keys.indices],
    }
    pixel_mm = max(canvas.height * frame.spacing[1], canvas.width * frame.spacing[2]) / SIZE
    facts = {
        "trust": case.trust,
        "distance_mm": frame.spacing[0] * keys.step,
        "pixel_mm": pixel_mm,
        "spacing_ratio": frame.spacing[0] / min(frame.spacing[1:]),
        "dimension": volume.dimension,
        "modality": volume.modality,
    }
    return arrays, facts


def _slice_doubt(case: PseudoCase, frame: SliceFrame, count: int) -> np.ndarray:
    """Largest doubt of the used structures in each canonical slice, float32 [N]; 0 where nothing is known."""
    doubt = np.zeros(count, np.float32)
    if case.table is None or case.reviewed:
        return doubt
    try:
        rows = json.loads(case.table.read_bytes())["structures"]
    except (OSError, ValueError, KeyError) as problem:
        raise InputError(f"'{case.table}' can't be read; run the cohort once more.") from problem
    for row in rows:
        if row["slice_doubt"] is not None and _sideless(row["name"]) in case.trust:
            along = np.array(row["slice_doubt"], np.float32)
            doubt = np.maximum(doubt, along[::-1] if frame.flips[0] else along)
    return doubt
