"""A mask on its way out of the engine's process: a file of its box, then the event that tells of it, and the fields of
the event "segment". Needs no PyTorch."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from MedZeroSegLib.errors import InputError, InstallationError
from MedZeroSegLib.extent import crop, mask_extent
from MedZeroSegLib.protocol import SegmentRequest
from MedZeroSegLib.request_loop import Cancelled, Report
from MedZeroSegLib.segment import Segment, Segmentation
from MedZeroSegLib.segment_tags import provenance_record
from MedZeroSegLib.writers import replacing


def deliver(request: SegmentRequest, segment: Segment, segmentation: Segmentation, report: Report) -> None:
    """Hand over a segment's mask and tell of it; raises Cancelled, and then there is no mask."""
    report.check()
    fields = segment_fields(request, segment, segmentation)
    mask = None if fields["box"] is None else crop(segment.mask, fields["box"])
    file = request.folder / f"{request.id}-{fields['index']}.npy"
    hand_over("segment", fields, mask, file, "press Segment again", report)


def hand_over(
    event: str, fields: dict[str, Any], mask: np.ndarray | None, file: Path, remedy: str, report: Report
) -> None:
    """Write a mask, whole or not at all, and then tell of it.

    Parameters
    ----------
    fields
        Of the event; ``mask``, the file's path or null, is added.
    mask
        bool [k, j, i] of a box; None where there is nothing to write.
    remedy
        What the user can do when the folder has gone.

    Raises
    ------
    Cancelled
        Then there is no file.
    InstallationError
        When the folder has gone.
    InputError
        When the disk is full.
    """
    written = None if mask is None else write_mask(file, mask, remedy)
    try:
        report.event(event, **fields, mask=written and str(written))
    except Cancelled:
        if written is not None:
            with suppress(OSError):
                written.unlink()
        raise


def segment_fields(request: SegmentRequest, segment: Segment, segmentation: Segmentation) -> dict[str, Any]:
    """Fields of the event "segment", but for ``mask``: path of the .npy with bool [k, j, i] of the box, or null.

    ``index`` is the place among the request's names; ``box`` is i0, i1, j0, j1, k0, k1, inclusive, or null when the
    structure was not found; ``code``, ``category`` and ``modifier`` are {"scheme", "value", "meaning"} or null;
    ``color`` is 0..255; ``expected_dice`` is 0..1, ``slice_axis`` the axis of [k, j, i] across which the slices of
    ``slice_doubt`` lie (0 sure .. 1 doubtful, one for each), all null where nothing is known of the segment's quality;
    ``volume_ml`` is null where no mm are known or the image has no depth; ``provenance`` is what
    `segment_tags.provenance_record` keeps, with the date.
    """
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    codes = {"code": segment.code, "category": segment.category, "modifier": segment.modifier}
    return {
        "index": [name.strip() for name in request.names].index(segment.typed),
        "typed": segment.typed,
        "name": segment.name,
        "found": segment.found,
        "score": segment.score,
        "box": mask_extent(segment.mask) if segment.found else None,
        **{key: code and asdict(code) for key, code in codes.items()},
        "color": segment.color,
        "slices": segment.slices,
        **_trust(segment),
        "volume_ml": segmentation.volume_ml(segment),
        "warnings": segment.warnings,
        "trained": segment.provenance["trained"],
        "provenance": {**provenance_record(segment, segmentation), "date": date},
    }


def _trust(segment: Segment) -> dict[str, Any]:
    confidence = segment.confidence
    if confidence is None:
        return {"expected_dice": None, "slice_axis": None, "slice_doubt": None}
    return {
        "expected_dice": round(confidence.expected_dice, 3),
        "slice_axis": confidence.slice_axis,
        "slice_doubt": [round(float(doubt), 3) for doubt in confidence.slice_doubt],
    }


def write_mask(file: Path, mask: np.ndarray, remedy: str) -> Path:
    """The .npy of a box; ``remedy`` says what to do where its folder has gone, which raises InstallationError, or where
    the disk is full, which raises InputError: another installation wouldn't help."""
    if not file.parent.is_dir():
        raise InstallationError(f"The folder for the results has gone; {remedy}.")
    try:
        with replacing(file) as stream:
            np.save(stream, np.ascontiguousarray(mask, dtype=bool), allow_pickle=False)
    except InstallationError as error:
        raise InputError(f"The result can't be written to the disk; make room on it and {remedy}.") from error
    return file
