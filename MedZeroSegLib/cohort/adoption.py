"""Masks that a person has changed become the case's result: its numbers, pictures and DICOM SEG are made of them anew.
The masks' own file is left as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from MedZeroSegLib.cohort.by_hand import labels_in
from MedZeroSegLib.cohort.case import Case
from MedZeroSegLib.cohort.case_record import CaseRecord
from MedZeroSegLib.cohort.masks_file import read_masks
from MedZeroSegLib.cohort.review import CORRECTED
from MedZeroSegLib.cohort.statistics import SegmentStatistics, statistics_of
from MedZeroSegLib.cohort.work import case_folder, read_answer
from MedZeroSegLib.errors import MedZeroSegError
from MedZeroSegLib.mask_resampling import on_grid_of
from MedZeroSegLib.queries import resolve
from MedZeroSegLib.segment import Segment, Segmentation
from MedZeroSegLib.slices import slice_frame
from MedZeroSegLib.volume import Volume
from MedZeroSegLib.volume_io import read_volume
from MedZeroSegLib.weights_catalogue import sha256_of

CHANGED = "A person has changed the masks; numbers and pictures are of theirs."
NOT_TAKEN = "A person has changed the masks, and numbers and pictures are still of those before: "


def adopted(case: Case, record: CaseRecord, folder: Path, status: str) -> CaseRecord:
    """The record of what the masks' file holds now, with pictures and DICOM SEG written; itself where it is that.

    Parameters
    ----------
    status
        As in the review list. What was corrected is doubted no more.
    """
    place = case_folder(folder, case.name)
    labels = labels_in(place)
    mark = sha256_of(labels) if labels is not None else ""
    if labels is None or mark == (record.masks_sha256 or _computed(place, labels)):
        return record
    said = tuple(text for text in record.warnings if text != CHANGED and not text.startswith(NOT_TAKEN))
    try:
        volume = read_volume(case.image, case.modality, case.frame, case.files or None)
        result = _segmentation(volume, record, labels)
        _write(result, record, case, folder)
    except MedZeroSegError as problem:
        return replace(record, warnings=(*said, f"{NOT_TAKEN}{problem}"))
    before = {segment.name: segment for segment in record.segments}
    segments = [_numbers(found, before.get(found.name), status) for found in statistics_of(result)]
    provenance = {**record.provenance, "masks": "changed by a person"}
    return replace(
        record, segments=tuple(segments), warnings=(*said, CHANGED), provenance=provenance, masks_sha256=mark
    )


def _computed(place: Path, labels: Path) -> str:
    """The hash of the masks' file as the engine wrote it."""
    answer = read_answer(place)
    return str(answer["outputs"].get(labels.name, ("",))[0]) if answer else ""


def _numbers(found: SegmentStatistics, before: SegmentStatistics | None, status: str) -> SegmentStatistics:
    doubt = 0.0 if status == CORRECTED else before.doubt if before else found.doubt
    return replace(found, doubt=doubt, typed=before.typed if before else found.typed)


def _segmentation(volume: Volume, record: CaseRecord, labels: Path) -> Segmentation:
    """What the file holds, and without voxels what was asked for and isn't in it."""
    stored = read_masks(labels)
    masks = {one.name: on_grid_of(volume, one.mask, stored.ijk_to_lps)[0] for one in stored.segments if one.name}
    nothing = np.zeros(volume.shape, bool)
    masks = {**{segment.name: nothing for segment in record.segments}, **masks}
    scores = {segment.name: segment.score for segment in record.segments}
    made: Mapping[str, Any] = record.provenance
    return Segmentation(
        volume=volume,
        segments=tuple(_segment(name, mask, scores.get(name, 1.0), volume) for name, mask in masks.items()),
        preset=made["preset"],
        weights=tuple(made["weights"]),
        device=made["device"],
        seconds={},
        settings=made["settings"],
        version=made["version"],
        warnings=record.warnings,
    )


def _segment(name: str, mask: np.ndarray, score: float, volume: Volume) -> Segment:
    query = resolve([name])[0]
    return Segment(
        typed=name,
        name=name,
        found=bool(mask.any()),
        score=score,
        mask=mask,
        code=query.code,
        category=query.category,
        modifier=query.modifier,
        color=query.color,
        slices=int(slice_frame(volume).forward(mask).any(axis=(1, 2)).sum()),
        provenance={"corrected": True},
    )


def _write(result: Segmentation, record: CaseRecord, case: Case, folder: Path) -> None:
    from MedZeroSegLib.cohort.mosaic import write_mosaic, write_thumbnail

    write_mosaic(result, folder / record.files["mosaic"])
    write_thumbnail(result, folder / record.files["thumbnail"])
    if "dicom_seg" in record.files:
        from MedZeroSegLib.dicom_seg import write_dicom_seg

        write_dicom_seg(result, case.image, folder / record.files["dicom_seg"], case.files or None)
