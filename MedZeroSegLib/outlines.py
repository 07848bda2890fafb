"""Shape-based interpolation between two slices that a person corrected: the outline goes with the structure's middle,
and a hole, as in the heart's wall, has an outline of its own.

Blended signed distances (Raya and Udupa 1990) lose what moves from slice to slice and what is thin; both matter where
corrected slices lie far apart.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from MedZeroSegLib.assembly import shape_between, signed_distance


class Outlines:
    """Between two masks bool [s, s]."""

    def __init__(self, first: np.ndarray, second: np.ndarray) -> None:
        self._ends = first, second
        self._both = bool(first.any() and second.any())
        if not self._both:
            return
        solid = [ndimage.binary_fill_holes(mask) for mask in self._ends]
        middles = [np.array(ndimage.center_of_mass(mask)) for mask in solid]
        self._way = middles[1] - middles[0]
        self._place = _around(solid[0] | solid[1], int(np.abs(self._way).max()) + 2)
        self._outer = [signed_distance(mask[self._place]) for mask in solid]
        holes = [(mask & ~end)[self._place] for mask, end in zip(solid, self._ends, strict=True)]
        self._inner = [signed_distance(hole) for hole in holes] if all(hole.any() for hole in holes) else None

    def field(self, share: float) -> np.ndarray:
        """float32 [s, s], not negative inside; ``share`` is that of the second mask."""
        first, second = self._ends
        if not self._both:
            return shape_between(first, second, share)
        field = self._blended(self._outer, share)
        if self._inner:
            field = np.minimum(field, -self._blended(self._inner, share))
        whole = np.full(first.shape, field.min(), np.float32)
        whole[self._place] = field
        return whole

    def _blended(self, distances: list[np.ndarray], share: float) -> np.ndarray:
        first, second = distances
        moved = ndimage.shift(first, share * self._way, order=1, mode="nearest")
        return (1 - share) * moved + share * ndimage.shift(second, (share - 1) * self._way, order=1, mode="nearest")


def _around(mask: np.ndarray, margin: int) -> tuple[slice, slice]:
    rows, columns = ndimage.find_objects(mask.astype(np.uint8))[0]
    first, second = (slice(max(0, side.start - margin), side.stop + margin) for side in (rows, columns))
    return first, second
