"""How far a decoder's candidate is believed: agreement with the saliency, stability, its own estimate, contrast.

The decoder's own estimate of its IoU alone misleads on medical images; the weights are our choice.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

AGREEMENT, STABILITY, ESTIMATE, CONTRAST = 0.35, 0.25, 0.2, 0.2  # weights of the four; together 1
PENALTY = 0.2  # for each of the following
BODY_SHARE_MAX = 0.6  # of the body in the slice
AREA_RATIO_MAX = 3.0  # of the part that was prompted
SIDES_MAX = 2  # of the box that the mask may reach
IN_BOX_MIN = 0.5  # of the mask; one that lies elsewhere answers another question
RING = 5  # pixels around a mask, whose saliency it is compared with


def candidate_score(
    logits: np.ndarray,
    estimate: float,
    share: np.ndarray,
    expected_area: float,
    box: tuple[float, float, float, float],
    body_area: float,
) -> float:
    """Belief in one candidate; at most 1, and −1 for one that is empty, broken or elsewhere.

    Parameters
    ----------
    logits
        [s, s].
    estimate
        The decoder's own estimate of the IoU.
    share
        Saliency of the part that was prompted, [s, s] in 0..1; other parts and the background are 0.
    expected_area, body_area
        Pixels of the part, and of the body in the slice.
    box
        That was prompted: x0, y0, x1, y1 in pixels.
    """
    mask = logits > 0
    area = int(mask.sum())
    if area == 0 or not np.isfinite(logits).all():
        return -1.0
    x0, y0, x1, y1 = (max(0, round(edge)) for edge in box)
    if mask[y0:y1, x0:x1].sum() < IN_BOX_MIN * area:
        return -1.0
    ring = ndimage.binary_dilation(mask, iterations=RING) & ~mask
    contrast = share[mask].mean() - (share[ring].mean() if ring.any() else 0.0)
    belief = (
        AGREEMENT * soft_dice(mask, share)
        + STABILITY * float((logits > 1).sum()) / float((logits > -1).sum())
        + ESTIMATE * float(np.clip(estimate, 0, 1))
        + CONTRAST * float(contrast)
    )
    faults = (
        (area > BODY_SHARE_MAX * body_area)
        + (area > AREA_RATIO_MAX * expected_area)
        + (sides_reached(mask, box) > SIDES_MAX)
    )
    return belief - PENALTY * faults


def soft_dice(one: np.ndarray, other: np.ndarray) -> float:
    """Dice of two maps in 0..1; 0 where both are empty."""
    total = float(one.sum() + other.sum())
    return 2 * float((one * other).sum()) / total if total else 0.0


def sides_reached(mask: np.ndarray, box: tuple[float, float, float, float]) -> int:
    """How many sides of a box a mask touches or passes, but for those on the edge of the picture."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    size, (x0, y0, x1, y1) = mask.shape[0], box
    return (
        int(x0 >= 1 and columns[0] <= x0)
        + int(y0 >= 1 and rows[0] <= y0)
        + int(x1 <= size - 1 and columns[-1] + 1 >= x1)
        + int(y1 <= size - 1 and rows[-1] + 1 >= y1)
    )
