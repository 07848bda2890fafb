"""Context-Enhanced Hard-Negative Contrast and its family: InfoNCE, DCL, HN-NCE, DHN-NCE.

Zhang, Huang, Li, "MedZeroSeg", PLOS ONE 21(3):e0344978, 2026, equations 1-5. ``paper`` is the printed loss;
``normalised`` keeps the sum of the negatives' weights at M − 1 and adds the context weights κ.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

FALSE_NEGATIVE_COSINE, FALSE_NEGATIVE_WIDTH = 0.95, 0.01  # texts closer than this mean the same thing
HARD_CONTEXT_GAIN = 0.5  # η: extra weight of a negative from the same image or region
LAMBDA_RANGE = (0.01, 8.0)
DIFFICULTY_RATE, DIFFICULTY_MEMORY = 0.05, 0.99


@dataclass(frozen=True)
class CehncSettings:
    """Member of the family.

    λ = 0 without context is InfoNCE (coupled) or DCL (decoupled); p = 2 without context is HN-NCE or DHN-NCE with
    β = 2λ/γ.

    Parameters
    ----------
    gamma
        Inverse temperature γ.
    power
        p in d = ‖z − s‖^p.
    coupled
        δ: whether the positive stands in the denominator.
    mode
        "paper" or "normalised".
    """

    gamma: float = 1 / 0.07
    power: Literal[1, 2] = 2
    coupled: bool = True
    mode: Literal["paper", "normalised"] = "normalised"


def cehnc(
    images: Tensor,
    texts: Tensor,
    lambdas: tuple[float, float],
    settings: CehncSettings,
    context: Tensor | None = None,
) -> Tensor:
    """Loss of M pairs, the sum of both directions.

    Parameters
    ----------
    images, texts
        Unit vectors [M, d]; row n of one belongs to row n of the other.
    lambdas
        Hardness λ1 (image → text) and λ2 (text → image); never trained by gradient, which would send them to infinity.
    context
        κ [M, M] of negative (n, m), image n against text m, or None for 1 everywhere; normalised mode only.

    Returns
    -------
    Scalar, float32 or wider.

    Raises
    ------
    ValueError
        For M = 1 without the positive in the denominator: there is nothing to contrast.
    """
    with torch.autocast(images.device.type, enabled=False):
        cosine = images.float() @ texts.float().T if images.dtype != torch.float64 else images @ texts.T
        return _direction(cosine, lambdas[0], settings, context) + _direction(
            cosine.T, lambdas[1], settings, None if context is None else context.T
        )


def _direction(cosine: Tensor, hardness: float, settings: CehncSettings, context: Tensor | None) -> Tensor:
    """One direction: rows are anchors, the diagonal the positives."""
    count = len(cosine)
    if count == 1 and not settings.coupled:
        raise ValueError("a decoupled contrast needs at least two pairs")
    diagonal = torch.eye(count, dtype=torch.bool, device=cosine.device)
    log_weight = -hardness * _distance(cosine, settings.power, diagonal)
    if settings.mode == "normalised":
        log_weight = _normalised(log_weight, context, diagonal)
    negatives = (settings.gamma * cosine + log_weight).masked_fill(diagonal, -torch.inf)
    positive = settings.gamma * cosine.diagonal()
    if settings.coupled:
        negatives = torch.where(diagonal, settings.gamma * cosine, negatives)
    return (torch.logsumexp(negatives, 1) - positive).mean()


def _distance(cosine: Tensor, power: int, diagonal: Tensor) -> Tensor:
    """‖z − s‖^p of unit vectors; the diagonal, which isn't used, is kept away from the root's infinite slope."""
    squared = (2 - 2 * cosine).clamp_min(0)
    return squared if power == 2 else squared.masked_fill(diagonal, 1.0).clamp_min(1e-12).sqrt()


def _normalised(log_weight: Tensor, context: Tensor | None, diagonal: Tensor) -> Tensor:
    """log w with Σ_m w_nm = M − 1 over the negatives; constant for the gradient."""
    with torch.no_grad():
        logits = log_weight if context is None else log_weight + context.clamp_min(1e-30).log()
        logits = logits.masked_fill(diagonal, -torch.inf)
        if len(logits) == 1:
            return logits
        return torch.log_softmax(logits, 1) + math.log(len(logits) - 1)


def context_weights(text_vectors: Tensor, same_context: Tensor) -> Tensor:
    """κ [M, M]: near 0 for texts that say the same, 1 + η for negatives of the same image or region, else 1.

    Parameters
    ----------
    text_vectors
        [M, d] of the frozen text tower.
    same_context
        bool [M, M], True where pair m comes from the image (or the modality and region) of pair n.
    """
    vectors = F.normalize(text_vectors, dim=-1)
    guard = 1 - torch.sigmoid((vectors @ vectors.T - FALSE_NEGATIVE_COSINE) / FALSE_NEGATIVE_WIDTH)
    return guard * (1 + HARD_CONTEXT_GAIN * same_context)


class DifficultyController:
    """Moves λ so that the effective share of negatives follows a target that falls from 1 to 0.3 during training."""

    def __init__(self, hardness: float = 0.125) -> None:
        self.lambdas = [hardness, hardness]
        self.shares = [1.0, 1.0]

    @torch.no_grad()
    def update(self, cosine: Tensor, power: int, progress: float) -> None:
        """``cosine`` [M, M] of the last batch, ``progress`` of training in 0..1."""
        if len(cosine) < 2:
            return
        target = 1 - 0.7 * progress
        diagonal = torch.eye(len(cosine), dtype=torch.bool, device=cosine.device)
        for direction, matrix in enumerate((cosine, cosine.T)):
            weight = torch.exp(-self.lambdas[direction] * _distance(matrix, power, diagonal)).masked_fill(diagonal, 0)
            share = (weight.sum(1) ** 2 / ((len(matrix) - 1) * (weight**2).sum(1))).mean().item()
            memory = DIFFICULTY_MEMORY
            self.shares[direction] = memory * self.shares[direction] + (1 - memory) * share
            step = torch.exp(torch.tensor(DIFFICULTY_RATE * (self.shares[direction] - target))).item()
            self.lambdas[direction] = min(max(self.lambdas[direction] * step, LAMBDA_RANGE[0]), LAMBDA_RANGE[1])

    def state_dict(self) -> dict[str, list[float]]:
        return {"lambdas": list(self.lambdas), "shares": list(self.shares)}

    def load_state_dict(self, state: dict[str, list[float]]) -> None:
        self.lambdas, self.shares = list(state["lambdas"]), list(state["shares"])
