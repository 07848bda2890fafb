"""Regions of a picture that belong together, found by Segment Anything from a grid of points; no name, no mask given.

As the automatic masks of Kirillov et al., "Segment Anything", ICCV 2023, on a coarser grid, at the cells of a map.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from MedZeroSegLib.canvas import Canvas
from MedZeroSegLib.mask_decoder.sam import LOGITS_SIZE, SamModel

POINTS = 8  # a side of the grid
POINTS_AT_ONCE = 32
QUALITY_MIN = 0.88  # the network's own estimate of the IoU, as in the release
STABLE_MIN, STABLE_LOGIT = 0.95, 1.0  # IoU of the masks at ±1, as in the release
CELLS_MIN, SHARE_MAX = 4, 0.8  # smaller regions have no usable mean, larger ones are the whole picture
REGIONS_MAX = 255


def region_map(decoder: SamModel, shown: np.ndarray, canvas: Canvas, cells: int) -> np.ndarray:
    """Regions of a grey slice uint8 [h, w] on its square: uint8 [cells, cells], 0 where there is none.

    Where regions overlap the smaller counts.
    """
    canvas = canvas.at(LOGITS_SIZE)
    coarse = decoder.embed_slices(shown[None], canvas).coarse
    masks, quality = [], []
    for piece in _grid(canvas).split(POINTS_AT_ONCE):
        labels = torch.ones(len(piece), 1)
        logits, estimated = decoder.decode(coarse.expand(len(piece), -1, -1, -1), None, None, (piece[:, None], labels))
        kept = (estimated >= QUALITY_MIN) & (_stability(logits) >= STABLE_MIN)
        masks.append(F.adaptive_avg_pool2d((logits[kept] > 0).float(), cells).cpu() > 0.5)
        quality.append(estimated[kept].cpu())
    return _painted(torch.cat(masks) & canvas.inside(cells), torch.cat(quality), cells)


def _grid(canvas: Canvas) -> Tensor:
    """Points [n, 2] as x, y in canvas pixels, spread over the part of the square that the slice covers."""
    place = (torch.arange(POINTS) + 0.5) / POINTS
    y, x = torch.meshgrid(place * canvas.rows, place * canvas.columns, indexing="ij")
    return torch.stack((x, y), -1).reshape(-1, 2)


def _stability(logits: Tensor) -> Tensor:
    """IoU of the masks at a higher and a lower threshold, [m, 3]."""
    inner, outer = ((logits > limit).sum((2, 3)) for limit in (STABLE_LOGIT, -STABLE_LOGIT))
    return inner / outer.clamp_min(1)


def _painted(masks: Tensor, quality: Tensor, cells: int) -> np.ndarray:
    sizes = masks.sum((1, 2))
    fitting = (sizes >= CELLS_MIN) & (sizes <= SHARE_MAX * cells**2)
    best = torch.where(fitting)[0][quality[fitting].argsort(descending=True)[:REGIONS_MAX]]
    painted = np.zeros((cells, cells), np.int32)
    for number, index in enumerate(best[sizes[best].argsort(descending=True)].tolist(), 1):
        painted[masks[index].numpy()] = number
    _, numbers = np.unique(np.append(painted.ravel(), 0), return_inverse=True)
    return numbers[:-1].reshape(cells, cells).astype(np.uint8)
