"""What an action of a correction gives back: the box that changed, the segment in it, and what the user must know;
and the way between the volume's voxels and the canonical slices on which corrections are made."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from MedZeroSegLib.errors import InputError
from MedZeroSegLib.extent import EMPTY_EXTENT, Extent
from MedZeroSegLib.slices import SliceFrame


@dataclass(frozen=True, eq=False)
class Change:
    """What an action changed.

    Attributes
    ----------
    box
        i0, i1, j0, j1, k0, k1, inclusive; ``EMPTY_EXTENT`` where nothing changed.
    mask
        bool [k, j, i] of the box: the segment in it, afterwards.
    slices
        Indices of the slices that changed, along the axis of the correction.
    revision
        Of the session, afterwards.
    sentences
        For the user.
    """

    box: Extent
    mask: np.ndarray
    slices: tuple[int, ...]
    revision: int
    sentences: tuple[str, ...] = ()


@dataclass(frozen=True)
class Grid:
    """The volume's grid and its canonical slices.

    Parameters
    ----------
    frame
        How the one becomes the other.
    shape
        Of the volume, [k, j, i].
    """

    frame: SliceFrame
    shape: tuple[int, int, int]

    @property
    def canonical_shape(self) -> tuple[int, int, int]:
        """Slices, rows, columns."""
        n, h, w = (self.shape[axis] for axis in self.frame.permutation)
        return n, h, w

    def canonical(self, points: np.ndarray) -> np.ndarray:
        """Positions (i, j, k) [m, 3], rounded to voxels, as (slice, row, column) [m, 3].

        Raises InputError for the first that lies outside the image.
        """
        voxels = np.floor(np.asarray(points, dtype=np.float64).reshape(-1, 3) + 0.5)
        if not self.holds(voxels).all():
            i, j, k = np.asarray(points).reshape(-1, 3)[~self.holds(voxels)][0]
            size = " × ".join(str(n) for n in self.shape[::-1])
            raise InputError(
                f"The point ({i:g}, {j:g}, {k:g}) lies outside the image of {size} voxels; click inside the image."
            )
        indices = voxels.astype(np.int64)[:, ::-1][:, list(self.frame.permutation)]
        for axis, flip in enumerate(self.frame.flips):
            if flip:
                indices[:, axis] = self.canonical_shape[axis] - 1 - indices[:, axis]
        return indices

    def holds(self, points: np.ndarray) -> np.ndarray:
        """Whether positions (i, j, k) [m, 3] lie inside the image, bool [m]; not for NaN and infinity."""
        voxels = np.floor(np.asarray(points, dtype=np.float64).reshape(-1, 3) + 0.5)
        with np.errstate(invalid="ignore"):
            return np.asarray(((voxels >= 0) & (voxels < np.array(self.shape[::-1]))).all(axis=1))

    def canonical_slice(self, index: int) -> int:
        """A slice counted along the volume's axis as one of the canonical slices, and back; InputError if outside."""
        count = self.canonical_shape[0]
        if not 0 <= index < count:
            raise InputError(f"There is no slice {index}; the image has {count} slices, counted from 0.")
        return count - 1 - index if self.frame.flips[0] else index

    def extent(self, low: np.ndarray, high: np.ndarray) -> Extent:
        """The box of canonical indices (slice, row, column), inclusive, on the volume's grid."""
        size = np.array(self.canonical_shape)
        flips = np.array(self.frame.flips)
        low, high = np.where(flips, size - 1 - high, low), np.where(flips, size - 1 - low, high)
        first, last = np.empty(3, int), np.empty(3, int)
        first[list(self.frame.permutation)], last[list(self.frame.permutation)] = low, high
        return int(first[2]), int(last[2]), int(first[1]), int(last[1]), int(first[0]), int(last[0])


def changed_box(grid: Grid, before: dict[int, np.ndarray], mask: np.ndarray) -> tuple[Extent, tuple[int, ...]]:
    """The box around all voxels that differ from what they were in some canonical slices, and those slices as the
    volume counts them; ``mask`` is bool [n, h, w]."""
    lows, highs, slices = [], [], []
    for index, was in before.items():
        places = np.argwhere(was != mask[index])
        if len(places):
            lows.append((index, *places.min(0)))
            highs.append((index, *places.max(0)))
            slices.append(grid.canonical_slice(index))
    if not slices:
        return EMPTY_EXTENT, ()
    return grid.extent(np.min(lows, 0), np.max(highs, 0)), tuple(sorted(slices))
