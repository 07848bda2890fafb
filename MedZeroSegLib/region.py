"""The part of an image in which structures are looked for: a box on the grid, or an oblique box inside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from MedZeroSegLib.extent import Extent

EDGE = 1e-6  # of half an oblique box; a voxel's centre that lies on its face belongs to it


@dataclass(frozen=True)
class Region:
    """A region of interest.

    Attributes
    ----------
    box : first and last index along i, j, k, inclusive; what lies outside isn't looked at.
    ijk_to_unit : rows of the 4x4 matrix to the region's own axes, along which it reaches from -1 to 1; a voxel belongs
        to it when its centre does. None where all of the box belongs to it.
    """

    box: Extent
    ijk_to_unit: tuple[tuple[float, ...], ...] | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels of the box along (k, j, i)."""
        i0, i1, j0, j1, k0, k1 = self.box
        return k1 - k0 + 1, j1 - j0 + 1, i1 - i0 + 1

    def lies_in(self, shape: tuple[int, ...]) -> bool:
        """Whether the box has voxels and leaves no grid of this shape [k, j, i]."""
        pairs = zip(self.box[::2], self.box[1::2], shape[::-1], strict=True)
        return all(0 <= first <= last < count for first, last, count in pairs)

    def mask(self, shape: tuple[int, ...]) -> np.ndarray:
        """Where it is on a grid, bool [k, j, i] of ``shape``."""
        i0, i1, j0, j1, k0, k1 = self.box
        mask = np.zeros(shape, bool)
        for k in range(k0, k1 + 1):  # slice by slice, for memory
            mask[k, j0 : j1 + 1, i0 : i1 + 1] = self._inside(k)
        return mask

    def record(self) -> dict[str, Any]:
        """Itself as JSON."""
        return {"box": list(self.box), "ijk_to_unit": self.ijk_to_unit and [list(row) for row in self.ijk_to_unit]}

    def _inside(self, k: int) -> np.ndarray | bool:
        if self.ijk_to_unit is None:
            return True
        i0, i1, j0, j1 = self.box[:4]
        i, j = np.arange(i0, i1 + 1)[None, :], np.arange(j0, j1 + 1)[:, None]
        rows = self.ijk_to_unit[:3]
        along = (np.abs(a * i + b * j + (c * k + d)) <= 1 + EDGE for a, b, c, d in rows)
        return np.logical_and.reduce(list(along))
