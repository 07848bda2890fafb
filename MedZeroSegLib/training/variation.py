"""Varied copies of labelled slices: turned, zoomed, moved, with other grey levels; what falls outside is ignored."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = 255  # value of a label map where nothing is learnt
FOREGROUND_SHARE = 2 / 3  # of the copies that are centred near a structure; the others lie anywhere
ROTATION_MAX, SCALE_MIN, SCALE_MAX = np.deg2rad(25.0), 0.75, 1.35


def vary(shown: Tensor, labels: Tensor, patch: tuple[int, int], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """The same piece, turn and grey levels for all slices [d, s, s]; → [d, *patch] each. Never mirrored, for sides."""
    size = shown.shape[-1]
    marked = ((labels > 0) & (labels != IGNORED)).nonzero()
    if len(marked) and rng.random() < FOREGROUND_SHARE:
        centre = marked[rng.integers(len(marked)), 1:].numpy() + rng.uniform(-0.25, 0.25, 2) * patch
    else:
        centre = rng.uniform(0, size, 2)
    angle, scale = rng.uniform(-ROTATION_MAX, ROTATION_MAX), np.exp(rng.uniform(np.log(SCALE_MIN), np.log(SCALE_MAX)))
    half = np.array(patch) / size * scale
    low, high = np.minimum(half - 1, 0), np.maximum(1 - half, 0)
    y, x = np.clip((centre + 0.5) * 2 / size - 1, low, high)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = np.hstack([turn * half[::-1], [[x], [y]]])
    theta = torch.tensor(matrix, dtype=torch.float32)[None]
    grid = F.affine_grid(theta, [1, 1, *patch], align_corners=False).expand(len(shown), -1, -1, -1)
    picture = F.grid_sample(shown[:, None], grid, align_corners=False)[:, 0]
    values = (labels.long() + 1)[:, None].float()  # outside lies 0, which becomes IGNORED
    marks = F.grid_sample(values, grid, mode="nearest", align_corners=False)[:, 0].long() - 1
    picture = picture.clamp(0, 1) ** float(np.exp(rng.normal(0, 0.25)))
    picture = picture * float(rng.uniform(0.8, 1.2)) + float(rng.normal(0, 0.03))
    if rng.random() < 0.3:
        noise = rng.normal(0, rng.uniform(0.01, 0.06), tuple(picture.shape)).astype(np.float32)
        picture = picture + torch.from_numpy(noise)
    return picture.clamp(0, 1), torch.where(marks < 0, IGNORED, marks).byte()
