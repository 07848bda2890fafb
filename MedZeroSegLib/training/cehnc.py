"""Context-Enhanced Hard-Negative Contrast and its family: InfoNCE, DCL, HN-NCE, DHN-NCE.

Zhang, Huang, Li, "MedZeroSeg", PLOS ONE 21(3):e0344978, 2026, equations 1-5. ``paper`` is the printed loss;
``normalised`` keeps the sum of the negatives' weights at M − 1 and adds the context weights κ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from MedZeroSegLib.errors import InputError

FALSE_NEGATIVE_COSINE, FALSE_NEGATIVE_WIDTH = 0.95, 0.01  # texts closer than this mean the same thing
HARD_CONTEXT_GAIN = 0.5  # η: extra weight of a negative from the same image or region
LAMBDA_RANGE = (0.01, 8.0)
DIFFICULTY_RATE, DIFFICULTY_MEMORY = 0.05, 0.99
TEMPERATURE = 0.07  # τ = 1/γ of the normalised mode
PUBLISHED_TEMPERATURE, PUBLISHED_BETA = 0.6, 0.15  # of MedCLIP-SAM (Koleilat et al., MIDL 2024) for DHN-NCE
START_HARDNESS = 0.125  # λ


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


@dataclass(frozen=True)
class Contrast:
    """A member of the family by its name, as it is trained with.

    Attributes
    ----------
    settings
        Which member.
    hardness
        λ1 = λ2 at the start.
    dynamic
        Whether `DifficultyController` moves them.
    context
        Whether the context weights κ are used.
    """

    settings: CehncSettings
    hardness: float
    dynamic: bool = False
    context: bool = False


LOSSES = ("cehnc", "cehnc-paper", "infonce", "dcl", "hn-nce", "dhn-nce")


def contrast_named(name: str, temperature: float | None = None) -> Contrast:
    """One of ``LOSSES`` with its own temperature, or another one; β of HN-NCE and DHN-NCE stays where it is."""
    published = name in ("cehnc-paper", "hn-nce", "dhn-nce")
    gamma = 1 / (temperature or (PUBLISHED_TEMPERATURE if published else TEMPERATURE))
    coupled = name not in ("dcl", "dhn-nce")
    if name == "cehnc":
        return Contrast(CehncSettings(gamma), START_HARDNESS, dynamic=True, context=True)
    if name == "cehnc-paper":
        return Contrast(CehncSettings(gamma, mode="paper"), START_HARDNESS, dynamic=True)
    if name in ("infonce", "dcl"):
        return Contrast(CehncSettings(gamma, coupled=coupled), 0.0)
    if name in ("hn-nce", "dhn-nce"):
        return Contrast(CehncSettings(gamma, coupled=coupled), PUBLISHED_BETA * gamma / 2)
    raise InputError(f"The loss '{name}' is unknown; use one of {', '.join(LOSSES)}.")


def cehnc(
    images: Tensor,
    texts: Tensor,
    lambdas: tuple[float, float],
    settings: CehncSettings,
    context: Tensor | None = None,
    twins: Tensor | None = None,
) -> Tensor:
    """`cehnc_of_cosines` of unit vectors ``images`` and ``texts`` [M, d], of which rows n belong together."""
    with torch.autocast(images.device.type, enabled=False):
        cosine = images.float() @ texts.float().T if images.dtype != torch.float64 else images @ texts.T
        return cehnc_of_cosines(cosine, lambdas, settings, context, twins)


def cehnc_of_cosines(
    cosine: Tensor,
    lambdas: tuple[float, float],
    settings: CehncSettings,
    context: Tensor | None = None,
    twins: Tensor | None = None,
) -> Tensor:
    """Loss of M pairs, the sum of both directions.

    Parameters
    ----------
    cosine
        [M, M], float32 or wider: image n against text m; the diagonal holds the pairs.
    lambdas
        Hardness λ1 (image → text) and λ2 (text → image); never trained by gradient, which would send them to infinity.
    context
        κ [M, M] of negative (n, m), image n against text m, or None for 1 everywhere; normalised mode only.
    twins
        bool [M, M], True where pair m shows or says the same as pair n and is no negative of it.

    Returns
    -------
    Scalar.

    Raises
    ------
    ValueError
        For M = 1 without the positive in the denominator: there is nothing to contrast.
    """
    with torch.autocast(cosine.device.type, enabled=False):
        return _direction(cosine, lambdas[0], settings, context, twins) + _direction(
            cosine.T, lambdas[1], settings, _transposed(context), _transposed(twins)
        )


def _transposed(matrix: Tensor | None) -> Tensor | None:
    return None if matrix is None else matrix.T


def _direction(
    cosine: Tensor,
    hardness: float,
    settings: CehncSettings,
    context: Tensor | None = None,
    twins: Tensor | None = None,
) -> Tensor:
    """One direction: rows are anchors, the diagonal the positives."""
    if len(cosine) == 1 and not settings.coupled:
        raise ValueError("a decoupled contrast needs at least two pairs")
    diagonal = _diagonal(cosine)
    left_out = diagonal if twins is None else diagonal | twins
    log_weight = -hardness * _distance(cosine, settings.power, diagonal)
    if settings.mode == "normalised":
        log_weight = _normalised(log_weight, context, left_out)
    logits = settings.gamma * cosine
    denominators = (logits + log_weight).masked_fill(left_out, -torch.inf)
    positive = logits.diagonal()
    if settings.coupled:
        denominators = torch.where(diagonal, logits, denominators)
    else:  # an anchor without negatives has nothing to be told from
        contrasted = ~left_out.all(1)
        denominators, positive = denominators[contrasted], positive[contrasted]
    return (torch.logsumexp(denominators, 1) - positive).sum() / max(1, len(positive))


def _diagonal(matrix: Tensor) -> Tensor:
    return torch.eye(len(matrix), dtype=torch.bool, device=matrix.device)


def _distance(cosine: Tensor, power: int, diagonal: Tensor) -> Tensor:
    """‖z − s‖^p of unit vectors; the diagonal, which isn't used, is kept away from the root's infinite slope."""
    squared = (2 - 2 * cosine).clamp_min(0)
    return squared if power == 2 else squared.masked_fill(diagonal, 1.0).clamp_min(1e-12).sqrt()


def _normalised(log_weight: Tensor, context: Tensor | None, left_out: Tensor) -> Tensor:
    """log w whose exponentials sum to the number of negatives (M − 1 without twins); constant for the gradient."""
    with torch.no_grad():
        logits = log_weight if context is None else log_weight + context.clamp_min(1e-30).log()
        shares = torch.log_softmax(logits.masked_fill(left_out, -torch.inf), 1)
        weight = shares + (~left_out).sum(1, keepdim=True).to(logits.dtype).log()
        return weight.masked_fill(left_out, -torch.inf)


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
    def update(self, cosine: Tensor, power: int, progress: float, twins: Tensor | None = None) -> None:
        """``cosine`` [M, M] of the last batch, ``progress`` of training in 0..1; ``twins`` are no negatives."""
        diagonal = _diagonal(cosine)
        left_out = diagonal if twins is None else diagonal | twins
        anchors = ~left_out.all(1)
        if not anchors.any():
            return
        target = 1 - 0.7 * progress
        for direction, (matrix, away) in enumerate(((cosine, left_out), (cosine.T, left_out.T))):
            weight = torch.exp(-self.lambdas[direction] * _distance(matrix, power, diagonal)).masked_fill(away, 0)
            weight, count = weight[anchors], (~away).sum(1)[anchors]
            share = (weight.sum(1) ** 2 / (count * (weight**2).sum(1))).mean().item()
            memory = DIFFICULTY_MEMORY
            self.shares[direction] = memory * self.shares[direction] + (1 - memory) * share
            step = torch.exp(torch.tensor(DIFFICULTY_RATE * (self.shares[direction] - target))).item()
            self.lambdas[direction] = min(max(self.lambdas[direction] * step, LAMBDA_RANGE[0]), LAMBDA_RANGE[1])

    def state_dict(self) -> dict[str, list[float]]:
        return {"lambdas": list(self.lambdas), "shares": list(self.shares)}

    def load_state_dict(self, state: dict[str, list[float]]) -> None:
        self.lambdas, self.shares = list(state["lambdas"]), list(state["shares"])
