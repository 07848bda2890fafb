"""Choice between the decoder's mask and the head's own, part by part, by evidence; never blindly the decoder's.

The decoder draws sharper outlines than the head's 128 × 128 cells, but answers every box, also a wrong one. Its mask
counts as far as it agrees with the saliency; where it doesn't, the head's own mask stands.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from scipy.special import expit
from torch import Tensor

from MedZeroSegLib.assembly import PART_SHARE_MIN
from MedZeroSegLib.prompts import Prompt, mask_prompt, prompts_of
from MedZeroSegLib.saliency import FOUND_SHARE_MIN, LOST_SHARE_MAX, Saliency

Decode = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
PROMPTS_A_CALL = 8
NEIGHBOURS_IN_SLICE = np.ones((1, 3, 3), bool)
ACROSS_SLICES = ndimage.generate_binary_structure(3, 1)  # of cells that were widened in their slices


@dataclass(frozen=True)
class Choice:
    """When and how far the decoder's mask is believed.

    Attributes
    ----------
    agreement_min
        Least soft Dice between the decoder's mask and the saliency of the part.
    area_ratio_max
        Largest factor by which the decoder's area may differ from the part's, either way.
    stability_min
        Least IoU of the decoder's masks at logits +1 and −1.
    area_max
        Largest part that is decoded, as a share of the canvas; the head's cells are fine enough for larger ones, and
        the decoder cuts lungs where the heart overlaps them.
    decoder_share
        Weight of the decoder in the fused probability of a believed mask, 0..1.
    """

    agreement_min: float = 0.7
    area_ratio_max: float = 1.6
    stability_min: float = 0.7
    area_max: float = 0.08
    decoder_share: float = 0.5


@dataclass(frozen=True)
class Refined:
    """Probability of one structure on the canvas and how it came about.

    Attributes
    ----------
    probability
        float16 [n, size, size].
    decoded, kept
        Parts that the decoder drew, and parts that it was asked for.
    agreement
        float32 [n]: soft Dice between the decoder's answers and the saliency, the mean over a slice's parts by area,
        whether they were believed or not; NaN where the decoder wasn't asked. None where it isn't known.
    """

    probability: np.ndarray
    decoded: int
    kept: int
    agreement: np.ndarray | None = None


def refine(
    saliency: Saliency,
    present: np.ndarray,
    coarse_of: Callable[[list[int]], Tensor],
    decode: Decode,
    size: int,
    choice: Choice,
    parts: int = 0,
) -> Refined:
    """Decode the parts of the present slices and fuse what agrees with the saliency.

    Parameters
    ----------
    present
        bool [n]: key slices in which the structure is believed to be.
    coarse_of
        Embeddings [m, 256, 64, 64] of a list of key slices.
    size
        Side of the canvas in pixels.
    parts
        Components that the structure has at most, 0 for any number; what can't become one of them isn't decoded.
    """
    worth = lasting_cells(saliency.share, present, parts)
    prompts = [
        prompt
        for index in np.flatnonzero(present)
        for prompt in prompts_of(
            saliency.share[index].astype(np.float32), int(index), size, FOUND_SHARE_MIN, choice.area_max
        )
        if worth[index][prompt.part].any()
    ]
    probability = _enlarge(saliency.share, size)
    agreed, areas = np.zeros((2, len(probability)), np.float32)
    decoded = 0
    for start in range(0, len(prompts), PROMPTS_A_CALL):
        batch = prompts[start : start + PROMPTS_A_CALL]
        shares = [saliency.share[prompt.slice_index].astype(np.float32) for prompt in batch]
        logits = _decode(batch, shares, coarse_of, decode, size)
        for prompt, candidate in zip(batch, logits, strict=True):
            own = probability[prompt.slice_index]
            everything = saliency.share[prompt.slice_index] >= FOUND_SHARE_MIN
            part, others = _enlarge(np.stack((prompt.part, everything & ~prompt.part)), size) > 0.5
            agreement = _agreement(candidate, own, part)
            agreed[prompt.slice_index] += agreement * prompt.part.sum()
            areas[prompt.slice_index] += prompt.part.sum()
            if _believed(candidate, part, agreement, choice):
                decoded += 1
                _fuse(own, candidate, part, others, choice.decoder_share)
    _leave_to_rivals(probability, saliency, present)
    with np.errstate(invalid="ignore"):
        return Refined(probability, decoded, len(prompts), agreed / areas)


def lasting_cells(share: np.ndarray, present: np.ndarray, parts: int) -> np.ndarray:
    """Cells whose component through all key slices may last when the ``parts`` largest are kept; bool [n, s, s].

    The decoder sharpens outlines by a cell or so and never doubles a size that it is believed in, so what is smaller
    than half of the least that lasts would be drawn in vain. Pieces one cell apart count as one: slices in between
    might join them.
    """
    cells = (share >= FOUND_SHARE_MIN) & present[:, None, None]
    if not parts or not cells.any():
        return cells
    labels, _ = ndimage.label(ndimage.binary_dilation(cells, NEIGHBOURS_IN_SLICE), ACROSS_SLICES)
    sizes = np.bincount(labels[cells])
    descending = np.sort(sizes[sizes > 0])[::-1]
    least = PART_SHARE_MIN * descending[0]
    if len(share) > 1:
        least = max(least, descending[min(parts, len(descending)) - 1])
    return cells & (sizes >= least / 2)[np.where(cells, labels, 0)]


def _leave_to_rivals(probability: np.ndarray, saliency: Saliency, present: np.ndarray) -> None:
    """Keep exclusive structures apart, in place: what the decoder adds on a rival's cells is undone."""
    for index in np.flatnonzero(present):
        lost = saliency.lost[index]
        if lost.any():
            times = probability.shape[-1] // lost.shape[-1]
            where = lost.repeat(times, 0).repeat(times, 1)
            probability[index][where] = np.minimum(probability[index][where], np.float16(LOST_SHARE_MAX))


def _decode(
    batch: list[Prompt], shares: list[np.ndarray], coarse_of: Callable[[list[int]], Tensor], decode: Decode, size: int
) -> np.ndarray:
    masks = torch.from_numpy(np.stack([mask_prompt(s, prompt.part) for s, prompt in zip(shares, batch, strict=True)]))
    masks = F.interpolate(masks[:, None], (size, size), mode="bilinear", align_corners=False)
    boxes = torch.tensor([prompt.box for prompt in batch], dtype=torch.float32)
    logits, _ = decode(coarse_of([prompt.slice_index for prompt in batch]), boxes, masks)
    return logits[:, 0].float().cpu().numpy()


def _agreement(candidate: np.ndarray, own: np.ndarray, part: np.ndarray) -> float:
    """Soft Dice between the candidate's logits [size, size] and the part's shares; 0 where one of them is empty."""
    mask = candidate > 0
    area, expected = float(mask.sum()), float(part.sum())
    if not area or not expected:
        return 0.0
    return 2 * float(own[mask & part].sum(dtype=np.float32)) / (area + float(own[part].sum(dtype=np.float32)))


def _believed(candidate: np.ndarray, part: np.ndarray, agreement: float, choice: Choice) -> bool:
    """Whether the candidate's logits [size, size] agree with the part's shares and its area."""
    area, expected = float((candidate > 0).sum()), float(part.sum())
    if not area or not expected:
        return False
    ratio = max(area, expected) / min(area, expected)
    stability = float((candidate > 1).sum()) / max(1.0, float((candidate > -1).sum()))
    return agreement >= choice.agreement_min and ratio <= choice.area_ratio_max and stability >= choice.stability_min


def _fuse(own: np.ndarray, candidate: np.ndarray, part: np.ndarray, others: np.ndarray, decoder_share: float) -> None:
    """Blend in place, on the part and what the decoder adds around it; other parts keep their own."""
    seen = expit(np.clip(candidate, -8, 8))
    where = (part | (candidate > 0)) & ~others
    blended = (1 - decoder_share) * own.astype(np.float32) + decoder_share * seen
    own[where] = blended[where].astype(own.dtype)


def _enlarge(maps: np.ndarray, size: int) -> np.ndarray:
    """Bilinear from the saliency's cells to canvas pixels, slice by slice; [n, s, s] → [n, size, size] float16."""
    enlarged = np.empty((len(maps), size, size), np.float16)
    for n, cells in enumerate(maps):
        source = torch.from_numpy(cells.astype(np.float32))[None, None]
        enlarged[n] = F.interpolate(source, (size, size), mode="bilinear", align_corners=False)[0, 0].half().numpy()
    return enlarged
