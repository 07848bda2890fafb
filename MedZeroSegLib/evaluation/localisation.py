"""How well saliency ranks a structure's cells above all others, before anything is drawn: the area under the ROC."""

from __future__ import annotations

import numpy as np
import torch.nn.functional as F
from scipy.stats import rankdata

from MedZeroSegLib.saliency_map import SaliencyMap


def saliency_auc(saliency: SaliencyMap, reference: np.ndarray) -> float | None:
    """Chance that a cell of the structure has more saliency than one elsewhere in the looked-at slices, ties half.

    Mann and Whitney's statistic, 0..1. ``reference`` is bool [k, j, i] on the volume's grid; a cell belongs to it from
    half of its area on. None where no cell does, or all do.
    """
    slices = saliency.frame.forward(reference)[saliency.indices]
    if not slices.any():
        return None
    cells = saliency.share.shape[-1]
    placed = saliency.canvas.place(slices.astype(np.uint8) * 255)
    inside = saliency.canvas.inside(cells).expand(len(slices), -1, -1).numpy()
    truth = (F.adaptive_avg_pool2d(placed, cells)[:, 0] >= 0.5).numpy()[inside]
    there, elsewhere = int(truth.sum()), int((~truth).sum())
    if not there or not elsewhere:
        return None
    ranks = rankdata(saliency.share[inside].astype(np.float32))
    return float((ranks[truth].sum() - there * (there + 1) / 2) / (there * elsewhere))
