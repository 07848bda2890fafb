"""Saliency → prompts for the mask decoder: a box and a mask for every part of a structure in a slice."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.special import logit

MARGIN_SHARE, MARGIN_MIN, MARGIN_MAX = 0.10, 2.0, 15.0  # of the box's side; canvas pixels (method of tight boxes)
AREA_MIN = 6  # cells; smaller parts keep the head's own mask
PARTS_MAX = 4  # parts of one structure in one slice that are prompted, the largest first
LOGIT_MAX = 8.0  # of the mask prompt, either sign


@dataclass(frozen=True)
class Prompt:
    """One part of a structure in one key slice.

    Attributes
    ----------
    slice_index
        Row among the key slices.
    box
        x0, y0, x1, y1 in canvas pixels, half-open.
    part
        bool [s, s] on the saliency's cells: the component that the box surrounds.
    """

    slice_index: int
    box: tuple[float, float, float, float]
    part: np.ndarray


def prompts_of(
    share: np.ndarray, slice_index: int, canvas_size: int, threshold: float, area_max: float = 1.0
) -> list[Prompt]:
    """Prompts of one slice's shares [s, s]; none where the structure is absent, never a box around everything.

    Parts smaller than ``AREA_MIN`` cells or larger than ``area_max`` (a share of the canvas) get none.
    """
    labels, count = ndimage.label(share >= threshold)
    if count == 0:
        return []
    areas = np.bincount(labels.ravel())[1:]
    largest = np.argsort(-areas, kind="stable")[:PARTS_MAX]
    scale = canvas_size / share.shape[-1]
    places = ndimage.find_objects(labels)
    prompts = []
    for label in largest:
        if not AREA_MIN <= areas[label] <= area_max * share.size:
            continue
        rows, columns = places[label]
        box = _with_margin(
            columns.start * scale, rows.start * scale, columns.stop * scale, rows.stop * scale, canvas_size
        )
        prompts.append(Prompt(slice_index, box, labels == label + 1))
    return prompts


def box_around(part: np.ndarray, canvas_size: int) -> tuple[float, float, float, float]:
    """Tight box of a part bool [s, s] with its margin, x0, y0, x1, y1 in canvas pixels."""
    scale = canvas_size / len(part)
    rows, columns = np.flatnonzero(part.any(1)), np.flatnonzero(part.any(0))
    edges = (columns[0] * scale, rows[0] * scale, (columns[-1] + 1) * scale, (rows[-1] + 1) * scale)
    return _with_margin(*edges, canvas_size)


def mask_prompt(share: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Logits of one part: the share's own, and strongly negative on the structure's other parts; float32 [s, s]."""
    clipped = np.clip(share.astype(np.float32), 1e-4, 1 - 1e-4)
    logits = logit(clipped)
    other = (share >= 0.5) & ~ndimage.binary_dilation(part, iterations=2)
    return np.clip(np.where(other, -LOGIT_MAX, logits), -LOGIT_MAX, LOGIT_MAX)


def _with_margin(x0: float, y0: float, x1: float, y1: float, size: int) -> tuple[float, float, float, float]:
    dx = min(max(MARGIN_SHARE * (x1 - x0), MARGIN_MIN), MARGIN_MAX)
    dy = min(max(MARGIN_SHARE * (y1 - y0), MARGIN_MIN), MARGIN_MAX)
    return max(0.0, x0 - dx), max(0.0, y0 - dy), min(float(size), x1 + dx), min(float(size), y1 + dy)
