"""Points for decoders that take them, where a box says too little: structures that are concave or in several pieces."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

POINTS_MAX = 3  # inside, and as many outside
CORE_SHARE = 0.5  # of the largest distance from the outline; points inside lie at least so deep
SOLIDITY_MIN = 0.8  # of the convex hull's area; shapes that fill less of it are concave
RING = 5  # pixels around the part, where points outside are looked for
INSIDE, OUTSIDE = 1, 0  # labels, as Segment Anything has them


def needs_points(part: np.ndarray) -> bool:
    """Whether a part bool [s, s] is concave or in pieces."""
    from skimage.morphology import convex_hull_image

    rows, columns = ndimage.find_objects(part.astype(np.uint8))[0]
    return part.sum() < SOLIDITY_MIN * convex_hull_image(part[rows, columns]).sum()


def points_of(
    share: np.ndarray, part: np.ndarray, rivals: np.ndarray, box: tuple[float, float, float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Where the part surely is, and where it surely isn't.

    Parameters
    ----------
    share
        Saliency [s, s], 0..1.
    part
        bool [s, s].
    rivals
        bool [s, s], pixels that other structures hold.
    box
        x0, y0, x1, y1 in pixels; points outside lie in it.

    Returns
    -------
    Pixel centres [p, 2] as x y, and labels [p].
    """
    depth = ndimage.distance_transform_edt(np.pad(part, 1))[1:-1, 1:-1]
    core = depth >= CORE_SHARE * depth.max()
    inside = _peaks(np.where(core & part, depth * share, 0), float(depth.max()))
    window = np.zeros_like(part)
    x0, y0, x1, y1 = (round(edge) for edge in box)
    window[y0:y1, x0:x1] = True
    held = window & rivals & ~part
    if held.any():
        away = np.where(held, ndimage.distance_transform_edt(np.pad(held, 1))[1:-1, 1:-1], 0)
    else:
        ring = ndimage.binary_dilation(part, iterations=RING) & ~ndimage.binary_dilation(part) & window
        away = np.where(ring, 1 - share, 0)
    outside = _peaks(away, RING)
    points = [(column + 0.5, row + 0.5) for row, column in (*inside, *outside)]
    labels = [INSIDE] * len(inside) + [OUTSIDE] * len(outside)
    return np.array(points, np.float32).reshape(-1, 2), np.array(labels, np.int64)


def _peaks(values: np.ndarray, distance: float) -> list[tuple[int, int]]:
    """At most ``POINTS_MAX`` places of largest positive values, none nearer than ``distance`` to a larger one."""
    found: list[tuple[int, int]] = []
    left = values.copy()
    rows, columns = np.indices(values.shape)
    while len(found) < POINTS_MAX and left.max() > 0:
        row, column = (int(n) for n in np.unravel_index(int(left.argmax()), left.shape))
        found.append((row, column))
        left[(rows - row) ** 2 + (columns - column) ** 2 <= distance**2] = 0
    return found
