"""What in an array of voxels is no image: NaN and infinity, and padding. It is marked as outside and filled with the
smallest grey level of the image, before anything is measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from MedZeroSegLib.errors import InputError

if TYPE_CHECKING:
    from MedZeroSegLib.reading import Reading

PADDING_GAP = 10_000  # grey levels that lie free between a padding value at the end of a 16-bit type and the image


def mark_outside(reading: Reading, path: str | Path) -> Reading:
    """The reading with voxels that are no image marked and filled; ``path`` names the image in messages.

    Raises
    ------
    InputError
        When nothing is left.
    """
    return _fill_outside(_mark_padding(_mark_not_finite(reading)), path)


def padding_value(voxels: np.ndarray, dimension: int, ends: tuple[Any, Any] | None = None) -> int | None:
    """The end of a 16-bit type, where voxels of a volume have it and no other value lies near; in pictures it's white.

    Voxels that hold nothing else have no padding. ``ends`` are the smallest and the largest value, if known.
    """
    end = {np.dtype(np.int16): -32768, np.dtype(np.uint16): 65535}.get(voxels.dtype)
    if end is None or dimension == 2 or end not in (ends or (voxels.min(), voxels.max())):
        return None
    image = voxels != end
    nearest = voxels.min(where=image, initial=32767) if end < 0 else voxels.max(where=image, initial=0)
    return end if image.any() and abs(int(nearest) - end) >= PADDING_GAP else None


def _mark_not_finite(reading: Reading) -> Reading:
    """The reading with NaN and infinity outside and set to 0, and float64 as float32, slice by slice for memory."""
    voxels = reading.voxels
    if voxels.dtype.kind != "f":
        return reading
    bad = [k for k, section in enumerate(voxels) if not np.isfinite(section).all()]
    if voxels.dtype != np.float32 or bad:
        limit = np.finfo(np.float32).max
        voxels = np.empty(reading.voxels.shape, np.float32)
        for section, source in zip(voxels, reading.voxels, strict=True):
            section[...] = np.clip(np.nan_to_num(source, nan=0.0, posinf=0.0, neginf=0.0), -limit, limit)
    if not bad:
        return replace(reading, voxels=voxels)
    outside = np.zeros(voxels.shape, bool) if reading.outside is None else reading.outside.copy()
    count = 0
    for k in bad:
        not_finite = ~np.isfinite(reading.voxels[k])
        outside[k] |= not_finite
        count += int(np.count_nonzero(not_finite))
    which = "1 voxel is" if count == 1 else f"{count} voxels are"
    warning = f"{which} NaN or infinite and will be treated as outside the image."
    return replace(reading, voxels=voxels, outside=outside, warnings=(*reading.warnings, warning))


def _mark_padding(reading: Reading) -> Reading:
    end = padding_value(reading.voxels, reading.dimension) if reading.outside is None else None
    if end is None:
        return reading
    padding = reading.voxels == end
    warning = f"{np.count_nonzero(padding)} voxels with the value {end} were taken as padding outside the image."
    return replace(reading, outside=padding, warnings=(*reading.warnings, warning))


def _fill_outside(reading: Reading, path: str | Path) -> Reading:
    """The reading with the smallest value of the image in all voxels outside it."""
    if reading.outside is None:
        return reading
    smallest = [
        section.min(where=~hidden, initial=section.max())
        for section, hidden in zip(reading.voxels, reading.outside, strict=True)
        if not hidden.all()
    ]
    if not smallest:
        raise InputError(f"'{path}' holds nothing but padding, NaN or infinity; export the image again.")
    voxels = reading.voxels.copy()
    for section, hidden in zip(voxels, reading.outside, strict=True):
        section[hidden] = min(smallest)
    return replace(reading, voxels=voxels)
