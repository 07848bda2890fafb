"""Volumes that the stand-in engine can segment by their grey levels: ellipsoids on an oblique grid, no two alike."""

from __future__ import annotations

from typing import Any

import numpy as np

SHAPE = (24, 56, 64)  # k, j, i
# Grey level, center and half axes (i, j, k) of each body; the stand-in engine knows the grey levels.
BODIES = {
    "liver": (80, (20, 26, 12), (12, 11, 8)),
    "spleen": (110, (48, 36, 10), (6, 8, 6)),
    "aorta": (150, (34, 44, 12), (3, 3, 11)),
}


def oblique_grid() -> np.ndarray:
    """IJK → RAS mm [4, 4]: 3.1 x 2.7 x 5 mm, turned by 20 degrees about S."""
    c, s = np.cos(np.radians(20)), np.sin(np.radians(20))
    matrix = np.eye(4)
    matrix[:3, :3] = np.array([[-c, s, 0], [-s, -c, 0], [0, 0, 1]]) * (3.1, 2.7, 5.0)
    matrix[:3, 3] = (90.5, 70.25, -40.0)
    return matrix


def grey_levels() -> np.ndarray:
    """int16 [k, j, i]: air at -900, tissue at 20, the bodies."""
    k, j, i = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    voxels = np.full(SHAPE, -900, np.int16)
    voxels[np.broadcast_to(((i - 32) / 30) ** 2 + ((j - 28) / 26) ** 2 < 1, SHAPE)] = 20
    for level, (ci, cj, ck), (ri, rj, rk) in BODIES.values():
        voxels[((i - ci) / ri) ** 2 + ((j - cj) / rj) ** 2 + ((k - ck) / rk) ** 2 < 1] = level
    return voxels


def phantom(name: str) -> Any:
    """The phantom as a volume node of the scene."""
    import slicer.util

    return slicer.util.addVolumeFromArray(grey_levels(), oblique_grid(), name)


def body(name: str) -> np.ndarray:
    """Where a body lies, bool [k, j, i]."""
    return grey_levels() == BODIES[name][0]
