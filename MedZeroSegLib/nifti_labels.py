"""NIfTI label map: one number a voxel on the volume's own grid, and a table that says which number means what.
The grid's fields are copied from the source file when that is NIfTI, so both agree to the last stored digit."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

from .segment import Segment, Segmentation
from .volume import Volume

# https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h, of which these are the fields used here.
HEADER = np.dtype(
    {
        "names": [
            "sizeof_hdr", "dim", "intent_code", "datatype", "bitpix", "pixdim", "vox_offset", "scl_slope", "xyzt_units",
            "qform_code", "sform_code", "quatern", "qoffset", "srow", "magic",
        ],
        "formats": [
            "<i4", "(8,)<i2", "<i2", "<i2", "<i2", "(8,)<f4", "<f4", "<f4", "u1",
            "<i2", "<i2", "(3,)<f4", "(3,)<f4", "(3,4)<f4", "S4",
        ],
        "offsets": [0, 40, 68, 70, 72, 76, 108, 112, 123, 252, 254, 256, 268, 280, 344],
        "itemsize": 352,
    }
)  # fmt: skip
GRID_FIELDS = ("qform_code", "sform_code", "quatern", "qoffset", "srow")
DATATYPES: dict[np.dtype[Any], int] = {np.dtype(np.uint8): 2, np.dtype("<u2"): 512, np.dtype("<u4"): 768}
INTENT_LABEL = 1002
UNITS_MM, SPACE_UNITS = 2, 7  # value, and the bits of xyzt_units that hold the unit of length
SCANNER_ANATOMY = 1
ORTHONORMAL_WITHIN = 1e-4  # largest error of a direction cosine that a quaternion may swallow
GZIP_MAGIC = b"\x1f\x8b"
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
OVERLAP_RULE = "A voxel of several segments goes to the one with the fewest voxels; of equals, to the first by name."


def write_nifti_labels(segmentation: Segmentation, file: BinaryIO, compressed: bool) -> dict[str, Any]:
    """Write the label map and return its table.

    A segment's value is its place in the list, counted from 1, whether it was found or not. Where segments overlap,
    the smaller one keeps the voxel (`OVERLAP_RULE`): a part within a whole stays visible, in whichever order they
    were asked for. The type is the smallest unsigned integer that holds the largest value; a picture stays 2D.

    Returns
    -------
    dict
        "labels": value, typed, name, found, color, code, voxels of the segment and voxels left to it in the map;
        "not_found": names; "overlap": rule and number of voxels that several segments claim.
    """
    dtype = smallest_unsigned(len(segmentation.segments))
    kept = np.zeros(len(segmentation.segments) + 1, np.int64)
    claimed_twice = 0
    with gzip.GzipFile("", "wb", 6, file, mtime=0) if compressed else nullcontext(file) as stream:
        stream.write(nifti_header(segmentation.volume, dtype).tobytes())
        for labels, claims in _slabs(segmentation, dtype):
            kept += np.bincount(labels.ravel(), minlength=kept.size)
            claimed_twice += int(np.count_nonzero(claims > 1))
            stream.write(labels.tobytes())
    return {
        "labels": [
            _label(value, segment, int(kept[value])) for value, segment in enumerate(segmentation.segments, start=1)
        ],
        "not_found": [segment.name for segment in segmentation.segments if not segment.found],
        "overlap": {"rule": OVERLAP_RULE, "voxels": claimed_twice},
    }


def smallest_unsigned(largest: int) -> np.dtype[Any]:
    """The smallest unsigned little-endian type, at most 32 bits, that holds ``largest``."""
    return next(dtype for dtype in DATATYPES if largest < 256**dtype.itemsize)


def _slabs(segmentation: Segmentation, dtype: np.dtype) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each k the label values [j, i] and the number of segments that claim each voxel."""
    numbered = enumerate(segmentation.segments, start=1)
    sizes = [(np.count_nonzero(segment.mask), segment.name, value, segment) for value, segment in numbered]
    smallest_first = sorted(sizes, key=lambda entry: entry[:3])
    depth, *section = segmentation.volume.voxels.shape
    for k in range(depth):
        labels, claims = np.zeros(section, dtype), np.zeros(section, np.uint16)
        for _, _, value, segment in reversed(smallest_first):  # the smallest is painted last
            labels[segment.mask[k]] = value
            claims += segment.mask[k]
        yield labels, claims


def _label(value: int, segment: Segment, kept: int) -> dict[str, Any]:
    return {
        "value": value,
        "name": segment.name,
        "typed": segment.typed,
        "found": segment.found,
        "color": list(segment.color),
        "code": asdict(segment.code) if segment.code else None,
        "side": segment.modifier.meaning.lower() if segment.modifier else None,
        "voxels": int(np.count_nonzero(segment.mask)),
        "voxels_in_map": kept,
    }


def nifti_header(volume: Volume, dtype: np.dtype) -> np.ndarray:
    """NIfTI-1 header, a 0-d `HEADER` array, of an image of type ``dtype`` on the volume's grid.

    sform is the volume's matrix in RAS, rounded to the format's float32; qform says the same as a quaternion, where
    a quaternion can. When the volume was read from a NIfTI file, the file's own geometry fields are used.
    """
    k, j, i = volume.voxels.shape
    header = np.zeros((), HEADER)
    header["sizeof_hdr"], header["magic"], header["vox_offset"] = 348, b"n+1", HEADER.itemsize
    header["dim"] = [volume.dimension, i, j, k, 1, 1, 1, 1]
    header["datatype"], header["bitpix"] = DATATYPES[dtype], 8 * dtype.itemsize
    header["scl_slope"], header["intent_code"] = 1, INTENT_LABEL
    source = _source_header(volume)
    if source is None:
        _set_grid(header, volume)
    else:
        header["pixdim"] = [*source["pixdim"][:4], 1, 1, 1, 1]
        header["xyzt_units"] = source["xyzt_units"] & SPACE_UNITS
        for name in GRID_FIELDS:
            header[name] = source[name]
    return header


def _set_grid(header: np.ndarray, volume: Volume) -> None:
    ijk_to_ras = LPS_TO_RAS @ volume.ijk_to_lps
    directions = ijk_to_ras[:3, :3] / volume.spacing
    handedness = 1.0 if np.linalg.det(directions) > 0 else -1.0
    rotation = Rotation.from_matrix(directions * (1.0, 1.0, handedness))
    header["pixdim"] = [handedness, *volume.spacing, 1, 1, 1, 1]
    header["xyzt_units"] = UNITS_MM if volume.calibrated else 0
    header["sform_code"] = SCANNER_ANATOMY
    header["srow"], header["qoffset"] = ijk_to_ras[:3], ijk_to_ras[:3, 3]
    if np.allclose(rotation.as_matrix() * (1.0, 1.0, handedness), directions, rtol=0, atol=ORTHONORMAL_WITHIN):
        x, y, z, w = rotation.as_quat()
        header["qform_code"] = SCANNER_ANATOMY
        header["quatern"] = np.array([x, y, z]) * (1.0 if w >= 0 else -1.0)  # the format implies w >= 0


def _source_header(volume: Volume) -> np.ndarray | None:
    """The header of the NIfTI-1 file that the volume was read from; None when there is none or its grid differs."""
    path = volume.path
    if path is None or not path.name.lower().endswith((".nii", ".nii.gz")) or not path.is_file():
        return None
    with path.open("rb") as file:
        compressed = file.read(2) == GZIP_MAGIC
    with gzip.open(path) if compressed else path.open("rb") as file:
        content = file.read(HEADER.itemsize)
    for layout in (HEADER, HEADER.newbyteorder(">")):
        header = np.frombuffer(content.ljust(HEADER.itemsize, b"\0"), layout)[0]
        if header["sizeof_hdr"] == 348 and _is_grid_of(path, volume):
            return header
    return None


def _is_grid_of(path: Path, volume: Volume) -> bool:
    """Whether SimpleITK, which read the volume, sees the volume's grid in the file."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return False
    size = reader.GetDimension()
    rank = min(size, 3)
    columns = np.reshape(reader.GetDirection(), (size, size))[:rank, :rank] * reader.GetSpacing()[:rank]
    return (
        reader.GetSize()[:rank] == volume.voxels.shape[::-1][:rank]
        and np.array_equal(columns, volume.ijk_to_lps[:rank, :rank])
        and np.array_equal(reader.GetOrigin()[:rank], volume.ijk_to_lps[:rank, 3])
    )
