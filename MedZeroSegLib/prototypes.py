"""What accepted and corrected images teach about others of the same kind, without training: the direction in the
decoder's embedding along which a structure differs from what surrounds it, and how that is blended into its saliency.

The direction is Fisher's linear discriminant of two mean features under one covariance: Hastie, Tibshirani & Friedman,
The Elements of Statistical Learning (2009), section 4.3, with the regularised covariance of Friedman, Regularized
Discriminant Analysis, JASA 84 (1989)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.special import expit, logit

from MedZeroSegLib.concepts import Concept
from MedZeroSegLib.embeddings import EncodedVolume
from MedZeroSegLib.pipeline import Adjust
from MedZeroSegLib.saliency import FOUND_SHARE_MIN, LOST_SHARE_MAX, Saliency, evidence_of
from MedZeroSegLib.vocabulary import may_overlap

INSIDE_MIN, OUTSIDE_MAX = 0.5, 0.05  # share of a cell that the structure takes
SHRINKAGE = 0.1  # of the covariance towards a multiple of the identity
LOGIT_MAX = 8.0  # of what the prototype says of a cell, either sign
SHARE_MIN = 1e-4  # of the text's, whose logit is blended


@dataclass(frozen=True, eq=False)
class Side:
    """The cells on one side of an outline: how many, their mean feature float64 [c] and mean outer product float32
    [c, c]."""

    count: int
    mean: np.ndarray
    product: np.ndarray


@dataclass(frozen=True, eq=False)
class Moments:
    """The cells inside and outside of one structure in one image; None for a side without cells."""

    inside: Side | None
    outside: Side | None


@dataclass(frozen=True, eq=False)
class Prototype:
    """What the cells of a structure have in common.

    Attributes
    ----------
    direction, offset
        float32 [c] and a number: ``features @ direction + offset`` is the logit of a cell.
    weight
        0..1, of this logit against the text's.
    window
        CT level and width in HU in which the images were looked at, or None.
    """

    direction: np.ndarray
    offset: float
    weight: float
    window: tuple[float, float] | None = None


def moments_of(encoded: EncodedVolume, mask: np.ndarray, ignored: np.ndarray | None = None) -> Moments:
    """Moments of the key slices' cells.

    Parameters
    ----------
    mask, ignored
        bool [N, h, w] on all canonical slices: the structure, and what is neither inside nor outside.
    """
    cells = encoded.coarse.shape[-1]
    share, body = _shares(encoded, mask, cells), _on(cells, encoded.body)
    outside = (share <= OUTSIDE_MAX) & body
    if ignored is not None:
        outside &= _shares(encoded, ignored, cells) <= OUTSIDE_MAX
    return Moments(_side(encoded, share >= INSIDE_MIN), _side(encoded, outside))


def _shares(encoded: EncodedVolume, mask: np.ndarray, cells: int) -> np.ndarray:
    """How much of each cell of the key slices a mask takes, float32 [n, cells, cells]."""
    placed = encoded.canvas.place(mask[encoded.keys.indices].astype(np.uint8) * 255)
    return F.adaptive_avg_pool2d(placed, cells)[:, 0].numpy()


def _on(cells: int, body: np.ndarray) -> np.ndarray:
    return F.adaptive_max_pool2d(torch.from_numpy(body).float()[:, None], cells)[:, 0].numpy() > 0


def _side(encoded: EncodedVolume, chosen: np.ndarray) -> Side | None:
    """Sums run slice by slice, so that memory doesn't grow with the volume."""
    channels = encoded.coarse.shape[1]
    total, products = np.zeros(channels), np.zeros((channels, channels))
    for slice_features, where in zip(encoded.coarse, chosen, strict=True):
        features = np.asarray(slice_features, np.float64).reshape(channels, -1)[:, where.ravel()]
        total += features.sum(axis=1)
        products += features @ features.T
    count = int(chosen.sum())
    return Side(count, total / count, (products / count).astype(np.float32)) if count else None


def prototype_of(
    images: Iterable[Moments], weight: float = 1.0, window: tuple[float, float] | None = None
) -> Prototype | None:
    """The prototype of a structure; each image counts alike. None where it is in none of them, or fills all.

    Images without the structure count as surroundings.
    """
    images = list(images)
    inside = [image.inside for image in images if image.inside]
    outside = [image.outside for image in images if image.outside]
    both = [(image.inside.count, image.outside.count) for image in images if image.inside and image.outside]
    if not both:
        return None
    (mean_in, covariance_in), (mean_out, covariance_out) = _pooled(inside), _pooled(outside)
    covariance = (covariance_in + covariance_out) / 2
    size = np.trace(covariance) / len(covariance)
    covariance = (1 - SHRINKAGE) * covariance + SHRINKAGE * size * np.eye(len(covariance))
    direction = np.linalg.solve(covariance, mean_in - mean_out)
    offset = -direction @ (mean_in + mean_out) / 2 + logit(np.mean([here / (here + around) for here, around in both]))
    return Prototype(direction.astype(np.float32), float(np.float32(offset)), weight, window)


def _pooled(sides: Sequence[Side]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of sides that count alike."""
    mean = np.mean([side.mean for side in sides], axis=0)
    return mean, np.mean([side.product for side in sides], axis=0, dtype=np.float64) - np.outer(mean, mean)


def adjusting(prototypes: Mapping[str, Prototype]) -> Adjust:
    """What `pipeline.segment` does with the saliency, given prototypes by the name of the concept.

    A cell that the text gave to a rival may be won back; one that looks more like a rival with a prototype is that
    rival's, whatever else is asked for.
    """

    def adjust(encoded: EncodedVolume, concepts: Sequence[Concept], found: list[Saliency]) -> list[Saliency]:
        window = concepts[0].window  # that of all, in which the volume was encoded
        usable = {name: prototype for name, prototype in prototypes.items() if prototype.window == window}
        if not any(concept.name in usable for concept in concepts):
            return found
        logits = _logits(encoded, usable)
        return [
            _blended(saliency, encoded, concept.name, usable, logits) if concept.name in usable else saliency
            for concept, saliency in zip(concepts, found, strict=True)
        ]

    return adjust


def _logits(encoded: EncodedVolume, prototypes: Mapping[str, Prototype]) -> dict[str, np.ndarray]:
    """What each prototype says of each cell of the embedding, float32 [n, c, c]."""
    directions = np.stack([prototype.direction for prototype in prototypes.values()])
    offsets = np.array([prototype.offset for prototype in prototypes.values()], np.float32)[:, None, None]
    cells = encoded.coarse.shape[-1]
    drawn = np.zeros((len(prototypes), len(encoded.coarse), cells, cells), np.float32)
    for n, features in enumerate(encoded.coarse):
        drawn[:, n] = np.einsum("pc,chw->phw", directions, features.astype(np.float32)) + offsets
    return dict(zip(prototypes, drawn, strict=True))


def _blended(
    saliency: Saliency,
    encoded: EncodedVolume,
    name: str,
    prototypes: Mapping[str, Prototype],
    logits: Mapping[str, np.ndarray],
) -> Saliency:
    weight = prototypes[name].weight
    rivals = [other for other in prototypes if not may_overlap(name, other)]
    share, lost = np.empty_like(saliency.share), np.empty_like(saliency.lost)
    for n in range(len(share)):
        own, *others = (_enlarged(logits[one][n], share.shape[-1]) for one in (name, *rivals))
        text = logit(np.clip(saliency.share[n].astype(np.float32), SHARE_MIN, 1 - SHARE_MIN))
        new = expit((1 - weight) * text + weight * np.clip(own, -LOGIT_MAX, LOGIT_MAX)) * encoded.body[n]
        lost[n] = saliency.lost[n] & (new < FOUND_SHARE_MIN)
        for other in others:
            lost[n] |= other > np.maximum(own, 0)
        share[n] = np.where(lost[n], np.minimum(new, LOST_SHARE_MAX), new)
    return Saliency(share, lost, evidence_of(share))


def _enlarged(cells: np.ndarray, size: int) -> np.ndarray:
    """Bilinear, float32 [size, size]."""
    tensor = torch.from_numpy(cells)[None, None]
    enlarged = F.interpolate(tensor, (size, size), mode="bilinear", align_corners=False)
    return enlarged[0, 0].numpy()
