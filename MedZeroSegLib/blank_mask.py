"""Masks as large as the volume, of which only the part that is drawn takes memory."""

from __future__ import annotations

import mmap
from math import prod

import numpy as np

SMALL_BYTES = 1 << 24  # NumPy's own arrays are quicker to begin with, and as good in size


def blank_mask(shape: tuple[int, ...]) -> np.ndarray:
    """A mask bool of this shape in which nothing is set, and whose pages take memory only once they are written to.

    NumPy asks the system for pages of 2 MB, four slices of a CT and more, so that a thin structure through all slices
    would take as much memory as the volume.
    """
    size = prod(shape)
    if size < SMALL_BYTES or not hasattr(mmap, "MADV_NOHUGEPAGE"):
        return np.zeros(shape, bool)
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # shared ones fill when they are read
    pages.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(pages, bool).reshape(shape)
