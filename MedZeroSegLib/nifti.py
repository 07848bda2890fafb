"""Voxels of NIfTI-1 files, exactly as stored; geometry stays with SimpleITK, so that masks fit in other ITK programs.

SimpleITK's reader turns NaN and infinity into 0 and fills a file that was cut short with 0, both without a word."""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from MedZeroSegLib.errors import InputError
from MedZeroSegLib.reading import rescale

HEADER_SIZE = 348  # bytes
OFFSET_MAX = 2**31  # bytes; header extensions are far smaller
DEFLATE_RATIO_MAX = 1032  # how much gzip can shrink
MAPPED_SIZE_MIN = 2**30  # bytes; larger frames of uncompressed files stay on disk behind a memory map
TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
COLOURS = {128: 3, 2304: 4}  # channels of the types that hold bytes of colour
COMPLEX = (32, 1792, 2048)


@dataclass(frozen=True)
class NiftiHeader:
    """What it takes to find the voxels, and the sform matrix for the angle of a shear."""

    shape: tuple[int, ...]  # i, j and, but for pictures, k
    frames: int  # product of the dimensions beyond the third
    channels: int  # of colour
    planar: bool  # colours as three or four whole images (the vectors that ITK writes), not voxel by voxel
    datatype: int
    byte_order: str  # "<" or ">"
    offset: int  # bytes
    slope: float
    intercept: float
    sform: np.ndarray  # [4, 4], RAS


def read_nifti_header(path: Path) -> NiftiHeader | None:
    """The header of a single-file NIfTI-1 image, gzipped or not; None for all other files.

    Raises
    ------
    InputError
        When it is a NIfTI file that can't be used.
    """
    with _opened(path) as file:
        header = file.read(HEADER_SIZE)
    if header[4:8] in (b"n+2\0", b"ni2\0"):
        raise InputError(f"'{path}' is a NIfTI-2 file, which is not read; save it as NIfTI-1.")
    if len(header) < HEADER_SIZE or header[344:348] != b"n+1\0":
        return None
    order = "<" if struct.unpack_from("<i", header)[0] == HEADER_SIZE else ">"
    rank, *dimensions = struct.unpack_from(order + "8h", header, 40)
    offset, slope, intercept = struct.unpack_from(order + "3f", header, 108)
    if not 2 <= rank <= 7 or min(dimensions[:rank]) < 1 or not HEADER_SIZE <= offset <= OFFSET_MAX:
        raise InputError(f"'{path}' has a damaged header (its dimensions make no image); export it again.")
    datatype = struct.unpack_from(order + "h", header, 70)[0]
    planar = rank == 5 and dimensions[3] == 1 and dimensions[4] in (3, 4) and TYPES.get(datatype) == "u1"
    return NiftiHeader(
        shape=tuple(dimensions[: min(rank, 3)]),
        frames=1 if planar else int(np.prod(dimensions[3:rank], dtype=np.int64)),
        channels=dimensions[4] if planar else COLOURS.get(datatype, 1),
        planar=planar,
        datatype=datatype,
        byte_order=order,
        offset=int(offset),
        slope=slope,
        intercept=intercept,
        sform=np.vstack([np.reshape(struct.unpack_from(order + "12f", header, 280), (3, 4)), (0, 0, 0, 1)]),
    )


def read_nifti_voxels(path: Path, header: NiftiHeader, frame: int) -> np.ndarray:
    """One frame as array [k, j, i] or [j, i], scaled as the header says; colours as [..., channel].

    Raises
    ------
    InputError
        When the file is shorter than its header says, or holds complex or other exotic numbers.
    """
    if header.datatype in COMPLEX:
        raise InputError(f"'{path}' holds complex numbers; save its magnitude as an image and give that.")
    if header.datatype not in TYPES and header.datatype not in COLOURS:
        raise InputError(f"'{path}' holds numbers of an unusual type; save it with 32-bit numbers.")
    dtype = np.dtype(header.byte_order + TYPES.get(header.datatype, "u1"))
    shape = header.shape[::-1]
    if header.channels > 1:
        shape = (header.channels, *shape) if header.planar else (*shape, header.channels)
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    start = header.offset + frame * size
    compressed = is_gzipped(path)
    if start + size > path.stat().st_size * (DEFLATE_RATIO_MAX if compressed else 1):
        raise InputError(f"'{path}' is shorter than its header says; copy or export it again.")
    if size >= MAPPED_SIZE_MIN and not compressed:
        stored: np.ndarray = np.memmap(path, dtype, "r", start, shape)
    else:
        with _opened(path) as file:
            file.seek(start)
            content = file.read(size)
        if len(content) < size:
            raise InputError(f"'{path}' is shorter than its header says; copy or export it again.")
        stored = np.frombuffer(content, dtype).reshape(shape)
    if not dtype.isnative:
        stored = stored.astype(dtype.newbyteorder("="))
    if header.channels > 1:
        return np.moveaxis(stored, 0, -1) if header.planar else stored
    scaled = np.isfinite([header.slope, header.intercept]).all() and header.slope != 0
    return rescale(stored, header.slope, header.intercept) if scaled else stored


def is_gzipped(path: Path) -> bool:
    """Whether a file starts as gzip does, whatever its name."""
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with gzip.open(path) if is_gzipped(path) else path.open("rb") as file:
            yield file  # type: ignore[misc]
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"'{path}' is damaged or cut short; copy or export it again.") from error
