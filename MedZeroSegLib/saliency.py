"""Dense logits → saliency: for each query, the share of every cell that it wins against what may lie there instead.

Logits have one scale for all slices and volumes, so shares are never rescaled per slice: an empty slice stays empty.
Which structures compete is fixed by the vocabulary and the training, not by what else was asked, so that a list of
names gives for each the mask that it would get alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

FOUND_SHARE_MIN = 0.5  # a cell belongs to the structure from here on
LOST_SHARE_MAX = 0.49  # of a cell that is a rival's
RIVAL_MARGIN = 2.0  # logits
EVIDENCE_CELLS = 5  # strongest cells whose mean is a slice's evidence; an adrenal gland has about six


@dataclass(frozen=True)
class Competition:
    """One query among its rivals: rows of the text matrix; more ``parts`` of the query count as the query."""

    query: int
    rivals: tuple[int, ...]
    parts: tuple[int, ...] = ()


@dataclass(frozen=True)
class Saliency:
    """One query's evidence on the canvas of the key slices.

    Attributes
    ----------
    share
        float16 [n, s, s] in 0..1: probability of the structure against background and rivals.
    lost
        bool [n, s, s]: cells that belong to a rival, whose logit is larger there.
    evidence
        float32 [n]: mean of the strongest cells of each slice; the slice's presence.
    """

    share: np.ndarray
    lost: np.ndarray
    evidence: np.ndarray

    @property
    def score(self) -> float:
        """Evidence of the whole volume, 0..1: that of its best slice."""
        return float(self.evidence.max(initial=0.0))


def compete(logits: Tensor, competition: Competition) -> tuple[Tensor, Tensor]:
    """Logits [n, k, s, s] of all texts → share of the query and the cells lost to a rival, each [n, s, s].

    The background's logit is 0, as in training. Rivals are lowered by ``RIVAL_MARGIN``, so that many weak ones don't
    add up to a strong one; a cell in which one rival beats query and background is that rival's all the same, so
    exclusive structures never share a cell.
    """
    own = logits[:, [competition.query, *competition.parts]].logsumexp(1)
    if not competition.rivals:
        return torch.sigmoid(own), torch.zeros_like(own, dtype=torch.bool)
    rivals = logits[:, list(competition.rivals)]
    everything = torch.cat((torch.zeros_like(own)[:, None], own[:, None], rivals - RIVAL_MARGIN), 1)
    lost = rivals.amax(1) > own.clamp_min(0)
    share = torch.softmax(everything, 1)[:, 1]
    return torch.where(lost, share.clamp_max(LOST_SHARE_MAX), share), lost


def saliency_of(
    slabs: Sequence[np.ndarray],
    score_slab: Callable[[np.ndarray], Tensor],
    competitions: Sequence[Competition],
    body: Tensor | None,
    count: int,
    cells: int,
) -> list[Saliency]:
    """Saliency of all queries over ``count`` key slices, slab by slab.

    Parameters
    ----------
    slabs
        Rows of the key slices that are looked at, in pieces; the others hold nothing.
    score_slab
        Gives logits [n, k, cells, cells] of the key slices of a slab.
    body
        bool [count, cells, cells]: where the patient is; saliency outside is 0. None: everywhere.
    """
    shares = [np.zeros((count, cells, cells), np.float16) for _ in competitions]
    losses = [np.zeros((count, cells, cells), bool) for _ in competitions]
    for slab in slabs:
        logits = score_slab(slab)
        inside = 1.0 if body is None else body[slab].to(logits.device)
        for row, competition in enumerate(competitions):
            share, lost = compete(logits, competition)
            shares[row][slab] = (share * inside).half().cpu().numpy()
            losses[row][slab] = lost.cpu().numpy()
    return [Saliency(share, lost, evidence_of(share)) for share, lost in zip(shares, losses, strict=True)]


def evidence_of(share: np.ndarray) -> np.ndarray:
    """Mean of the ``EVIDENCE_CELLS`` largest shares of each slice; [n, s, s] → float32 [n]."""
    if not len(share):
        return np.zeros(0, np.float32)
    flat = share.reshape(len(share), -1).astype(np.float32)
    strongest = np.partition(flat, -EVIDENCE_CELLS, axis=1)[:, -EVIDENCE_CELLS:]
    return strongest.mean(1)


def smooth_across(share: np.ndarray, distance_mm: float, sigma_mm: float) -> np.ndarray:
    """Gaussian across the slices; [n, s, s] with ``distance_mm`` between slices."""
    sigma = sigma_mm / distance_mm
    if len(share) < 3 or sigma < 0.3:
        return share
    return ndimage.gaussian_filter1d(share.astype(np.float32), sigma, axis=0, mode="nearest").astype(np.float16)
