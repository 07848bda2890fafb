"""Results to files: the segmentation as .seg.nrrd or NIfTI label map, and the report as JSON.
A file appears under its name when it is whole, or not at all."""

from __future__ import annotations

import errno
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, BinaryIO

from .errors import InputError, InstallationError
from .segment import Segment, Segmentation
from .volume import Volume

DICOM_SUFFIX = ".dcm"
SUFFIXES = (".seg.nrrd", ".nii.gz", ".nii", DICOM_SUFFIX)
TABLE_SUFFIX = ".labels.json"  # beside a NIfTI label map, whose format has no room for names
WRONG_PATH = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EINVAL, errno.ELOOP)
NOTICE = "For research use; every segment is to be reviewed by a qualified person."


def write_segmentation(segmentation: Segmentation, path: str | Path) -> tuple[Path, ...]:
    """Write a segmentation in the format that the path's suffix names.

    .seg.nrrd keeps every segment in full with name, color, code and provenance, and opens in 3D Slicer. .nii and
    .nii.gz hold a label map; a table of its labels is written beside it as NAME.labels.json. .dcm is a DICOM SEG object
    that refers to the image, which must be DICOM too. Missing folders are made.

    Returns
    -------
    tuple of Path
        The files written, the masks first.

    Raises
    ------
    InputError
        When the path cannot be an output: see `check_output`.
    InstallationError
        When the folder cannot be written to or is full; nothing is left behind then.
    """
    from .nifti_labels import write_nifti_labels  # bring SimpleITK, which who only wants `replacing` needn't wait for
    from .seg_nrrd import write_seg_nrrd

    path = Path(path)
    suffix = check_output(path, segmentation.volume.path)
    if suffix == DICOM_SUFFIX:
        from .dicom_seg import write_dicom_seg

        return (write_dicom_seg(segmentation, segmentation.volume.path, path),)
    if suffix == ".seg.nrrd":
        with replacing(path) as file:
            write_seg_nrrd(segmentation, file)
        return (path,)
    table_path = path.with_name(path.name[: -len(suffix)] + TABLE_SUFFIX)
    with replacing(path) as file:
        table = write_nifti_labels(segmentation, file, compressed=suffix == ".nii.gz")
        file.flush()  # a full disk shows here, before the table has its name
        with replacing(table_path) as table_file:
            table_file.write(_json({"file": path.name, **table}))
    return path, table_path


def check_output(path: str | Path, source: Path | None = None) -> str:
    """The suffix, one of `SUFFIXES`, of a path that a segmentation may be written to; worth asking before a long run.

    Raises
    ------
    InputError
        When the format is not supported, or refers to DICOM images and ``source`` is none; when the path is a folder,
        or the image itself.
    """
    path = Path(path)
    suffix = next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), None)
    if suffix is None:
        raise InputError(f"'{path}' names no format that masks can be written in; end it in {', '.join(SUFFIXES)}.")
    if os.path.isdir(path):  # unlike Path.is_dir, also answers for a name that is too long
        raise InputError(f"'{path}' is a folder; give the name of a file in it, ending in {', '.join(SUFFIXES)}.")
    if source is not None and os.path.exists(path) and os.path.exists(source) and os.path.samefile(path, source):
        raise InputError(f"'{path}' is the image itself, which would be lost; give another name for the output.")
    if suffix == DICOM_SUFFIX:
        from .dicom_seg import require_dicom

        require_dicom(source)
    return suffix


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file in the same folder that takes the name ``path`` when the block ends well, and vanishes otherwise.

    Raises
    ------
    InputError
        When the path itself is at fault: a part of it is not a folder, or it is one, or its name is too long.
    InstallationError
        When the system refuses the writing: no permission, no room.
    """
    part = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("xb") as file:
            yield file
        os.replace(part, path)
    except OSError as error:
        reason = (error.strerror or "the system gives no reason").lower()
        if error.errno in WRONG_PATH:
            raise InputError(f"'{path}' cannot be written ({reason}); give another path.") from error
        raise InstallationError(
            f"'{path}' cannot be written ({reason}); give a folder that has room and that you may write to."
        ) from error
    finally:
        with suppress(OSError):
            part.unlink()


def write_report(segmentation: Segmentation, path: str | Path) -> Path:
    """Write what was asked, understood, found and measured, and how, as JSON.

    Raises
    ------
    InputError, InstallationError
        As `write_segmentation`.
    """
    path = Path(path)
    with replacing(path) as file:
        file.write(_json(report(segmentation)))
    return path


def report(segmentation: Segmentation) -> dict[str, Any]:
    """The report's content; JSON-able."""
    return {
        "notice": NOTICE,
        "version": segmentation.version,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "input": _input(segmentation.volume),
        "preset": segmentation.preset,
        "settings": segmentation.settings,
        "weights": segmentation.weights,
        "device": segmentation.device,
        "seconds": {stage: round(seconds, 3) for stage, seconds in segmentation.seconds.items()},
        "structures": [_structure(segment, segmentation) for segment in segmentation.segments],
        "warnings": [*segmentation.volume.warnings, *segmentation.warnings],
    }


def _input(volume: Volume) -> dict[str, Any]:
    k, j, i = volume.voxels.shape
    return {
        "path": str(volume.path) if volume.path else None,
        "fingerprint": volume.fingerprint,
        "modality": volume.modality,
        "modality_source": volume.modality_source,
        "size_ijk": [i, j, k],
        "spacing_mm": list(volume.spacing) if volume.calibrated else "uncalibrated",
    }


def _structure(segment: Segment, segmentation: Segmentation) -> dict[str, Any]:
    return {
        "typed": segment.typed,
        "understood_as": segment.name,
        "side": segment.modifier.meaning.lower() if segment.modifier else None,
        "code": asdict(segment.code) if segment.code else None,
        "found": segment.found,
        "score": round(segment.score, 4),
        **_trust(segment),
        **_measure(segment, segmentation),
        "slices": segment.slices,
        "warnings": segment.warnings,
    }


def _trust(segment: Segment) -> dict[str, Any]:
    """The expected Dice, 0..1, and the slices that are most worth a look, as indices from 0 along their axis."""
    confidence = segment.confidence
    if confidence is None:
        return {"expected_dice": None, "doubtful_slices": []}
    return {
        "expected_dice": round(confidence.expected_dice, 3),
        "slice_axis": "kji"[confidence.slice_axis],
        "doubtful_slices": [
            {"slice": index, "doubt": round(float(confidence.slice_doubt[index]), 3)}
            for index in confidence.doubtful_slices()
        ],
    }


def _measure(segment: Segment, segmentation: Segmentation) -> dict[str, Any]:
    """Volume in ml, or area in mm² of a picture; "uncalibrated" where the spacing is not known in mm."""
    if segmentation.volume.dimension == 2:
        name, measure = "area_mm2", segmentation.area_mm2(segment)
    else:
        name, measure = "volume_ml", segmentation.volume_ml(segment)
    return {name: "uncalibrated" if measure is None else float(f"{measure:.6g}")}


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, ensure_ascii=False, indent=2) + "\n").encode("utf-8")
