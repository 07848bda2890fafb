"""Masks of a case from their file (.seg.nrrd, NIfTI label map with its table), as the engine or a person left them."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from MedZeroSegLib.errors import InputError
from MedZeroSegLib.nifti import read_nifti_header, read_nifti_voxels
from MedZeroSegLib.reading import silent_libraries
from MedZeroSegLib.uncertainty_map import MAP_SUFFIX
from MedZeroSegLib.writers import TABLE_SUFFIX

LABEL_MAP_SUFFIXES = (".nii.gz", ".nii")
MASK_SUFFIXES = (".seg.nrrd", *LABEL_MAP_SUFFIXES)
PIECE_BYTES = 1 << 20


@dataclass(frozen=True, eq=False)
class NamedMask:
    """A segment's name and its voxels, bool [k, j, i]."""

    name: str
    mask: np.ndarray


@dataclass(frozen=True, eq=False)
class MasksFile:
    """All segments of a file on one grid, whose index (i, j, k) the matrix takes to LPS in mm."""

    segments: tuple[NamedMask, ...]
    ijk_to_lps: np.ndarray


def is_masks(name: str) -> bool:
    """Whether a file of this name, among those of a case, holds its masks."""
    return name.endswith(MASK_SUFFIXES) and not name.endswith(MAP_SUFFIX) and not name.startswith(".")


def table_of(labels: Path) -> Path | None:
    """The table beside a NIfTI label map; None for a format that holds the names itself."""
    suffix = next((suffix for suffix in LABEL_MAP_SUFFIXES if labels.name.lower().endswith(suffix)), None)
    return None if suffix is None else labels.with_name(labels.name[: -len(suffix)] + TABLE_SUFFIX)


def read_masks(labels: Path) -> MasksFile:
    """Read masks by name; where the segments of a label map overlap, only the smaller ones are whole.

    Raises
    ------
    InputError
        When the file is missing, cut short or damaged.
    """
    table = table_of(labels)
    try:
        return _read_seg_nrrd(labels) if table is None else _read_label_map(labels, table)
    except (InputError, OSError, EOFError, RuntimeError, ValueError, LookupError, TypeError, zlib.error) as problem:
        raise InputError(f"'{labels}' can't be read as masks; delete it, and the case is computed anew.") from problem


def _read_seg_nrrd(labels: Path) -> MasksFile:
    _require_whole(labels)
    with silent_libraries():
        image = sitk.ReadImage(str(labels))
    values = sitk.GetArrayFromImage(image)  # [k, j, i], with layers last where there are several
    segments: list[NamedMask] = []
    while image.HasMetaDataKey(f"Segment{len(segments)}_Name"):
        name, value, layer = (
            image.GetMetaData(f"Segment{len(segments)}_{key}") for key in ("Name", "LabelValue", "Layer")
        )
        segments.append(NamedMask(name, (values[..., int(layer)] if values.ndim == 4 else values) == int(value)))
    return MasksFile(tuple(segments), _matrix(image))


def _require_whole(labels: Path) -> None:
    """Unpack what is packed, which proves its checksum; ITK takes what can't be unpacked for zeros."""
    with labels.open("rb") as file:
        packed = any(line.replace(b" ", b"").rstrip() in (b"encoding:gzip", b"encoding:gz") for line in _header(file))
        if not packed:
            return
        with gzip.GzipFile(fileobj=file) as stream:
            while stream.read(PIECE_BYTES):
                pass


def _header(file: Iterator[bytes]) -> list[bytes]:
    """The lines of a NRRD header, after which the file stands at the voxels."""
    lines: list[bytes] = []
    for line in file:
        if not line.strip():
            break
        lines.append(line)
    return lines


def _read_label_map(labels: Path, table: Path) -> MasksFile:
    header, reader = read_nifti_header(labels), sitk.ImageFileReader()
    if header is None:
        raise InputError(f"'{labels}' is no NIfTI file.")
    reader.SetFileName(str(labels))
    with silent_libraries():
        reader.ReadImageInformation()
    values = read_nifti_voxels(labels, header, 0)  # which refuses a file that is cut short
    values = values.reshape(1, *values.shape) if values.ndim == 2 else values
    rows = json.loads(table.read_bytes())["labels"]
    return MasksFile(tuple(NamedMask(str(row["name"]), values == row["value"]) for row in rows), _matrix(reader))


def _matrix(image: sitk.Image | sitk.ImageFileReader) -> np.ndarray:
    """IJK → LPS."""
    rank, matrix = image.GetDimension(), np.eye(4)
    matrix[:rank, :rank] = np.reshape(image.GetDirection(), (rank, rank)) * image.GetSpacing()
    matrix[:rank, 3] = image.GetOrigin()
    return matrix
