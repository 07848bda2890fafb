"""Maps of a model that never saw masks → saliency: against other texts, on one scale for the whole volume.

Nothing is scaled slice by slice: that gives every slice a maximum, and a mask with it. Whether the structure is there
at all is decided by its text against the others', which have one meaning for all volumes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from scipy.special import expit, logit
from torch import Tensor

from MedZeroSegLib.edges import dense_crf, guided_filter
from MedZeroSegLib.saliency import EVIDENCE_CELLS, LOST_SHARE_MAX, Saliency
from MedZeroSegLib.slice_presence import presence

DEVIATION_OF_MAD = 1.4826  # of a normal distribution
RAISED = 2.0  # standard deviations above the volume's median, which is background, where a share is one half
SMOOTHING_MM, ACROSS_MM = 2.0, 4.0  # standard deviations in the slice and across, there at most one slice
SURGERY_GAIN = 2.0  # of the class token's cosines in feature surgery
LEAST_DEVIATION = 1e-6  # of negatives' cosines, and of a map over a volume
PRESENT_MIN = 1e-3  # evidence of a slice that is present, however its text fares there; absent ones have 0
SHARE_EDGE = 1e-4  # least distance of a share from 0 and 1 when it becomes a logit
LEVELS = 256  # of the histogram of shares


@dataclass(frozen=True)
class ZeroShotRules:
    """How maps become saliency.

    Attributes
    ----------
    surgery
        Subtract from each text's map what all texts have in common (CLIP Surgery's feature surgery).
    gated
        Whether slices without the structure are told apart; else all are taken.
    edges
        What draws the map to the picture's edges.
    threshold
        What divides the volume's shares in two.
    """

    surgery: bool = False
    gated: bool = True
    edges: Literal["guided", "crf", "none"] = "guided"
    threshold: Literal["two-means", "otsu"] = "two-means"


@dataclass(frozen=True)
class Against:
    """One query and what it stands against: rows of the text matrix. Rivals are structures, which may win cells."""

    query: int
    rivals: tuple[int, ...]
    negatives: tuple[int, ...]

    @property
    def rows(self) -> list[int]:
        return [self.query, *self.rivals, *self.negatives]


@dataclass(frozen=True)
class Ground:
    """What is known of the slices besides the maps.

    Attributes
    ----------
    body
        bool [n, s, s], cells that hold the patient.
    pictures
        uint8 [n, S, S], the slices on their square.
    cell_mm, distance_mm
        Side of a cell, and distance between slices.
    """

    body: np.ndarray
    pictures: np.ndarray
    cell_mm: float
    distance_mm: float


@dataclass(frozen=True)
class Relief:
    """One query's map over the volume before it is drawn.

    Attributes
    ----------
    height
        float32 [n, s, s], in robust standard deviations of the volume's body; 0 is its median.
    lost
        bool [n, s, s], cells that a rival wins.
    win
        float32 [n] in 0..1: in the strongest cells of each slice, the text against the strongest other one.
    margin
        float32 [n]: cosine of the whole slice with the text, above the largest with another.
    """

    height: np.ndarray
    lost: np.ndarray
    win: np.ndarray
    margin: np.ndarray


def feature_surgery(maps: Tensor, whole: Tensor) -> Tensor:
    """What is a text's own: cosines [m, n, k, s, s] less their mean over the texts, each weighed by how much the whole
    slice, with cosines [n, k], is about it (Li et al., CLIP Surgery, Pattern Recognition 2025)."""
    share = (SURGERY_GAIN * whole).softmax(-1)
    weighed = maps * (share / share.mean(-1, keepdim=True))[None, :, :, None, None]
    return weighed - weighed.mean(2, keepdim=True)


def contrast(maps: Tensor, rivals: int, scale: float) -> Tensor:
    """Cosines [m, n, k, s, s], the query's first, then those of so many rivals, then negatives → [m, n, s, s].

    Among rivals: the log-odds of the query in a softmax of all. With negatives only: how many of their standard
    deviations the query lies above their mean at that place. Alone: as it is.
    """
    own, others = maps[:, :, 0], maps[:, :, 1:]
    if rivals:
        return scale * own - (scale * others).logsumexp(2)
    if others.shape[2] > 1:
        return (own - others.mean(2)) / others.std(2).clamp_min(LEAST_DEVIATION)
    return own


def standardised(values: np.ndarray, body: np.ndarray) -> np.ndarray | None:
    """Robust standard score over the body of all slices; None where the values are all alike."""
    inside = values[body]
    if not inside.size:
        return None
    median = np.median(inside)
    deviation = DEVIATION_OF_MAD * np.median(np.abs(inside - median))
    return (values - median) / deviation if deviation > LEAST_DEVIATION * max(1.0, abs(float(median))) else None


def reliefs(
    slabs: Sequence[np.ndarray],
    maps_of: Callable[[np.ndarray, list[int]], Tensor],
    whole: Tensor,
    queries: Sequence[Against],
    body: np.ndarray,
    rules: ZeroShotRules,
    scale: float,
    contrastive: bool,
) -> list[Relief | None]:
    """Each query's relief; None where its map is flat.

    Parameters
    ----------
    maps_of
        Maps [m, n, len(rows), s, s] of a slab's slices for some rows of the text matrix.
    whole
        Cosines [n, k] of whole slices with all rows.
    contrastive
        Whether maps are cosines, to be compared with those of other texts.
    """
    if not slabs:
        return [None] * len(queries)
    raw: list[list[Tensor]] = [[] for _ in queries]
    lost, win = np.zeros((len(queries), *body.shape), bool), np.zeros((len(queries), len(body)), np.float32)
    rows = list(dict.fromkeys(row for query in queries for row in (query.rows if contrastive else [query.query])))
    for slab in slabs:
        maps = maps_of(slab, rows).float()
        for n, query in enumerate(queries):
            mine = maps[:, :, [rows.index(row) for row in (query.rows if contrastive else [query.query])]]
            if not contrastive:
                raw[n].append(mine[:, :, 0].cpu())
                continue
            lost[n, slab], win[n, slab] = _contest(mine.mean(0), len(query.rivals), body[slab], scale)
            if rules.surgery:
                mine = feature_surgery(mine, whole[slab][:, query.rows])
            raw[n].append(contrast(mine, len(query.rivals), scale).cpu())
    return [
        _relief(
            torch.cat(raw[n], 1).numpy(), body, lost[n], win[n] if contrastive else None, _margin(whole, query), scale
        )
        for n, query in enumerate(queries)
    ]


def averaged(relief: Relief | None, more: np.ndarray | None, body: np.ndarray) -> Relief | None:
    """A relief with what slices along another axis say of the same places [n, s, s], on the volume's scale again."""
    if relief is None or more is None:
        return relief
    height = standardised((relief.height + more) / 2, body)
    return relief if height is None else replace(relief, height=height.astype(np.float32))


def draw(relief: Relief | None, ground: Ground, rules: ZeroShotRules) -> Saliency:
    """A relief → saliency on the pixels of the square, .5 where the volume's shares divide.

    Order: slice presence, smoothing in 3D, the picture's edges, threshold.
    """
    count, size = len(ground.pictures), ground.pictures.shape[-1]
    nothing = np.zeros((count, size, size), np.float16)
    if relief is None:
        return Saliency(nothing, nothing > 0, np.zeros(count, np.float32))
    own = ground.body & ~relief.lost
    share = expit(relief.height - RAISED) * own
    present = np.ones(count, bool)
    if rules.gated:
        _, present = presence(_features(relief, own), ground.distance_mm)
    smooth = _smoothed(share, ground)
    inside, lost = _enlarged(ground.body, size), _enlarged(relief.lost, size)
    drawn = np.empty((count, size, size), np.float32)
    for k in range(count):
        wide = torch.from_numpy(smooth[k])[None, None]
        section = F.interpolate(wide, (size, size), mode="bilinear", align_corners=False)[0, 0].numpy()
        drawn[k] = _to_edges(section, ground.pictures[k], rules) * inside[k]
    chosen = drawn[present][inside[present]]
    if not chosen.size or chosen.min() == chosen.max():
        return Saliency(nothing, nothing > 0, np.zeros(count, np.float32))
    divided = expit(_logit(drawn) - _logit(np.array(_threshold(chosen, rules)))) * inside
    divided[lost] = np.minimum(divided[lost], LOST_SHARE_MAX)
    return Saliency(
        divided.astype(np.float16), lost, np.where(present, np.maximum(relief.win, PRESENT_MIN), 0).astype(np.float32)
    )


def two_means(values: np.ndarray) -> float:
    """Half way between the means of the two classes that it separates (k-means in one dimension)."""
    counts, edges = np.histogram(values, LEVELS)
    centres = (edges[:-1] + edges[1:]) / 2
    threshold = (edges[0] + edges[-1]) / 2
    for _ in range(LEVELS):
        low, high = centres <= threshold, centres > threshold
        if not counts[low].any() or not counts[high].any():
            break
        means = [np.average(centres[side], weights=counts[side]) for side in (low, high)]
        if abs(sum(means) / 2 - threshold) < (edges[1] - edges[0]) / 2:
            break
        threshold = sum(means) / 2
    return float(threshold)


def _contest(cosines: Tensor, rivals: int, body: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Cosines [n, k, s, s], the query's first → cells that a rival wins, and how the query fares in its best cells."""
    own, others = cosines[:, 0], cosines[:, 1:]
    strongest = others.amax(1) if others.shape[1] else torch.zeros_like(own)
    if rivals:
        negatives = others[:, rivals:].amax(1) if others.shape[1] > rivals else torch.full_like(own, -torch.inf)
        lost = others[:, :rivals].amax(1) > torch.maximum(own, negatives)
    else:
        lost = torch.zeros_like(own, dtype=torch.bool)
    ahead = (own - strongest).masked_fill(~torch.from_numpy(body).to(own.device), -torch.inf)
    best = ahead.flatten(1).topk(EVIDENCE_CELLS, 1).values.mean(1)
    return lost.cpu().numpy(), torch.sigmoid(scale * best).cpu().numpy()


def _margin(whole: Tensor, query: Against) -> np.ndarray:
    others = [*query.rivals, *query.negatives]
    own = whole[:, query.query]
    return (own - whole[:, others].amax(1) if others else own).float().cpu().numpy()


def _relief(
    raw: np.ndarray, body: np.ndarray, lost: np.ndarray, win: np.ndarray | None, margin: np.ndarray, scale: float
) -> Relief | None:
    """Maps [m, n, s, s] → their mean in standard deviations of the volume."""
    scores = [score for score in (standardised(one, body) for one in raw) if score is not None]
    if not scores:
        return None
    height = scores[0] if len(scores) == 1 else standardised(np.mean(scores, 0), body)
    if height is None:
        return None
    return Relief(height.astype(np.float32), lost, expit(scale * margin) if win is None else win, margin)


def _features(relief: Relief, own: np.ndarray) -> np.ndarray:
    """[n, 4]: the whole slice's margin, and peak, coverage and focus of the map on the cells that aren't lost.

    The peak is taken before it becomes a share, which saturates where a volume is plain.
    """
    height = np.where(own, relief.height, 0).clip(0).reshape(len(own), -1)
    peak = np.partition(height, -EVIDENCE_CELLS, axis=1)[:, -EVIDENCE_CELLS:].mean(1)
    covered = (height >= RAISED).sum(1) / np.maximum(own.sum((1, 2)), 1)
    return np.stack([relief.margin, peak, covered, peak * (1 - covered)], 1)


def _smoothed(share: np.ndarray, ground: Ground) -> np.ndarray:
    across = min(ACROSS_MM / ground.distance_mm, 1.0) if len(share) > 1 else 0.0
    sigma = (across, SMOOTHING_MM / ground.cell_mm, SMOOTHING_MM / ground.cell_mm)
    return ndimage.gaussian_filter(share.astype(np.float32), sigma, mode="nearest")


def _to_edges(share: np.ndarray, grey: np.ndarray, rules: ZeroShotRules) -> np.ndarray:
    if rules.edges == "guided":
        return guided_filter(grey / 255.0, share)
    return dense_crf(grey, share) if rules.edges == "crf" else share


def _threshold(values: np.ndarray, rules: ZeroShotRules) -> float:
    if rules.threshold == "two-means":
        return two_means(values)
    from skimage.filters import threshold_otsu

    return float(threshold_otsu(values))


def _enlarged(cells: np.ndarray, size: int) -> np.ndarray:
    """bool [n, s, s] → [n, size, size], each cell as the pixels whose centres it holds."""
    index = np.arange(size) * cells.shape[-1] // size
    return cells[:, index[:, None], index]


def _logit(share: np.ndarray) -> np.ndarray:
    return logit(np.clip(share, SHARE_EDGE, 1 - SHARE_EDGE))
