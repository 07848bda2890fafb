"""One slice under correction: what a person drew in it, the mask so far and the models' answers → the mask meant."""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage

from MedZeroSegLib.assembly import signed_distance
from MedZeroSegLib.canvas import Canvas
from MedZeroSegLib.drawing import Hints
from MedZeroSegLib.mask_decoder.corrector import SURE, Correction, Corrector
from MedZeroSegLib.mask_decoder.decoder import Prompted
from MedZeroSegLib.mask_decoder.lite_medsam import IMAGE_SIZE
from MedZeroSegLib.prompts import LOGIT_MAX, box_around
from MedZeroSegLib.saliency import FOUND_SHARE_MIN
from MedZeroSegLib.slice_embeddings import SliceEmbedding

CLICK_RADIUS = 2  # pixels of the canvas that a click marks
ADJOINING = np.ones((3, 3), bool)
DECODER_SHARE = 0.4  # of the decoder's logits, against the corrector's
AGREEMENT_MIN = 0.7  # Dice between corrector and decoder, for the decoder to count
PASSES = 3  # of the corrector where there was nothing: the first answer is timid, the next ones start from it
NEAR = 3  # pixels: a change belongs to a hint that is this near
PUSHED_SHARE = 0.4  # of the outline that clicks push, against the models
PUSH_DEPTHS, PUSH_MIN = 1.5, 0.5  # how far they push it, in depths of the click and pixels more
PUSH_WIDTH, PUSH_WIDTH_MIN = 1.0, 3.0  # how wide: standard deviation, likewise
TEXT_SHARE, TEXT_SCALE, TEXT_MARGIN = 0.25, 2.0, 1.0  # of the text's evidence; its logits' scale, and at the click
MIDDLE_SHARE = 0.9  # of a piece's greatest depth: a click as deep as that lies in its middle
REACH_SHARE, REACH_MIN = 3.0, 5.0  # how far it goes, in depths of the hint and pixels more
DEPTH_SHARE = 1.5  # how deep it cuts into the mask, in depths of the hint


def no_hints() -> Hints:
    nothing = np.zeros((IMAGE_SIZE, IMAGE_SIZE), bool)
    return Hints(nothing, nothing)


def marked(hints: Hints, spots: np.ndarray, inside: bool) -> Hints:
    """The hints with new spots, bool [256, 256]; the newest counts where two contradict each other."""
    mine, other = (hints.include, hints.exclude) if inside else (hints.exclude, hints.include)
    mine, other = mine | spots, other & ~spots
    return Hints(mine, other) if inside else Hints(other, mine)


def spots_on(canvas: Canvas, places: np.ndarray, radius: int) -> np.ndarray:
    """Discs around pixels (row, column) [m, 2] of the slice, bool [256, 256] on the canvas."""
    centres = centres_on(canvas, places)
    spots = np.zeros((canvas.size, canvas.size), bool)
    spots[centres[:, 0], centres[:, 1]] = True
    rows, columns = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    return ndimage.binary_dilation(spots, rows**2 + columns**2 <= radius**2)


def centres_on(canvas: Canvas, places: np.ndarray) -> np.ndarray:
    """Pixels (row, column) [m, 2] of the slice as pixels of the canvas."""
    scale = np.array([canvas.rows / canvas.height, canvas.columns / canvas.width])
    return np.minimum(((places + 0.5) * scale).astype(int), [canvas.rows - 1, canvas.columns - 1])


def pieces_in_whose_middle(mask: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """The pieces of a mask bool [256, 256] that are meant whole by clicks, (row, column) [m, 2]: people point at the
    middle of what is wrong, and where that is the middle of a piece, all of it is."""
    labels, _ = ndimage.label(mask)
    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    meant = np.zeros_like(mask)
    for row, column in centres:
        piece = mask & (labels == labels[row, column])
        if mask[row, column] and depth[row, column] >= MIDDLE_SHARE * depth[piece].max():
            meant |= piece
    return meant


def on_canvas(canvas: Canvas, mask: np.ndarray) -> np.ndarray:
    """A slice's mask bool [h, w] on the canvas, bool [256, 256]."""
    return canvas.place(mask[None].astype(np.uint8) * 255)[0, 0].numpy() >= 0.5


def off_canvas(canvas: Canvas, logits: np.ndarray, before: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The slice's mask bool [h, w] after a change on the canvas; where nothing changed it stays voxel by voxel.

    ``before`` is the mask on the canvas before the change, ``mask`` the one on the slice's own pixels.
    """
    changed = ndimage.binary_dilation((logits > 0) != before, ADJOINING)
    maps = torch.from_numpy(np.stack((logits, changed.astype(np.float32))))[None]
    field, zone = canvas.restore(maps.float())[0].numpy()
    return np.where(zone > 0.25, field > 0, mask)


def correct_slice(
    seen: SliceEmbedding,
    mask: np.ndarray,
    hints: Hints,
    corrector: Corrector,
    decoder: Prompted,
    share: np.ndarray | None = None,
    anchors: np.ndarray | None = None,
) -> np.ndarray:
    """Logits float32 [256, 256] of the mask meant.

    Parameters
    ----------
    mask
        bool [256, 256], the mask so far.
    share
        The text's share of each cell [s, s], from which an empty mask starts; or None.
    anchors
        Mean embeddings [2, 256] of structure and surroundings in slices that are right, or None.
    """
    start = mask
    if not mask.any() and share is not None:
        start = _part_at(share, hints.include)
    for _ in range(1 if mask.any() else PASSES):
        correction = Correction(seen.picture, start, hints.include, hints.exclude, anchors)
        logits = corrector.logits(correction, seen.coarse)
        start = logits > 0
    logits = with_decoder(seen, logits, decoder, DECODER_SHARE)
    return np.where(hints.include, SURE, np.where(hints.exclude, -SURE, logits)).astype(np.float32)


def with_decoder(seen: SliceEmbedding, logits: np.ndarray, decoder: Prompted, share: float) -> np.ndarray:
    """Logits [256, 256] with a share of the decoder's, where that understands the same: it fills rings, for one."""
    mask = logits > 0
    if not share or not mask.any():
        return logits
    drawn = decoded(seen.coarse, logits, decoder)
    both = mask.sum() + (drawn > 0).sum()
    if 2 * (mask & (drawn > 0)).sum() < AGREEMENT_MIN * both:
        return logits
    return (1 - share) * logits + share * drawn


def decoded(coarse: np.ndarray, logits: np.ndarray, decoder: Prompted) -> np.ndarray:
    """The decoder's logits [256, 256], with the box around logits [256, 256] and these as mask."""
    box = torch.tensor([box_around(logits > 0, IMAGE_SIZE)], dtype=torch.float32)
    prompt = torch.from_numpy(np.clip(logits, -LOGIT_MAX, LOGIT_MAX))[None, None].float()
    drawn, _ = decoder.decode(torch.from_numpy(coarse)[None], box, prompt)
    return np.clip(drawn[0, 0].float().cpu().numpy(), -SURE, SURE)


def with_pushed(logits: np.ndarray, before: np.ndarray, centres: np.ndarray, inside: bool) -> np.ndarray:
    """Logits [256, 256] with a share of the outline before, pushed by clicks (row, column) [m, 2].

    A click in the middle of an error lies as far from the outline before as from the one that is meant.
    """
    if not before.any():
        return logits
    field, side = signed_distance(before), 1 if inside else -1
    for row, column in centres:
        depth = abs(float(field[row, column]))
        field = field + side * (PUSH_DEPTHS * depth + PUSH_MIN) * _around(row, column, depth)
    return (1 - PUSHED_SHARE) * logits + PUSHED_SHARE * np.clip(field, -SURE, SURE)


def with_text(
    logits: np.ndarray, before: np.ndarray, share: np.ndarray, centres: np.ndarray, inside: bool
) -> np.ndarray:
    """Logits [256, 256] with a share of the text's, which clicks (row, column) [m, 2] raise or lower around them.

    Where the text was of two minds, its evidence tells how far what is meant goes: places that are as likely as the
    clicked one follow it. Where it was sure and yet wrong, it counts for little. ``share`` [s, s] is the text's share
    of each cell.
    """
    if not before.any():
        return logits
    shares = np.clip(_enlarged(share), 1e-4, 1 - 1e-4)
    evidence, depths, side = TEXT_SCALE * np.log(shares / (1 - shares)), signed_distance(before), 1 if inside else -1
    doubt = 0.0
    for row, column in centres:
        doubt = max(doubt, 1 - abs(2 * float(shares[row, column]) - 1))
        lacking = max(0.0, TEXT_MARGIN - side * float(evidence[row, column]))
        evidence = evidence + side * lacking * _around(row, column, abs(float(depths[row, column])))
    weight = TEXT_SHARE * min(1.0, 2 * doubt)
    return (1 - weight) * logits + weight * np.clip(evidence, -SURE, SURE)


def _around(row: int, column: int, depth: float) -> np.ndarray:
    """A bell [256, 256] around a pixel, as wide as a click of that depth reaches."""
    away = np.hypot(*np.ogrid[-row : IMAGE_SIZE - row, -column : IMAGE_SIZE - column])
    return np.exp(-((away / (PUSH_WIDTH * depth + PUSH_WIDTH_MIN)) ** 2) / 2)


def only_at(spots: np.ndarray, before: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Logits whose mask differs from the one before only in pieces that adjoin the spots, and no farther than the
    error can go; all [256, 256].

    People point at the middle of an error, so its half width is about the distance from there to the outline. What is
    cut away goes not much deeper, though it may be long: a click at the rim of a ring doesn't cut through it.
    """
    distance = ndimage.distance_transform_edt(~spots)
    depth = np.where(before, ndimage.distance_transform_edt(before), ndimage.distance_transform_edt(~before))
    reach = REACH_SHARE * float(depth[spots].max(initial=0)) + REACH_MIN
    cut = depth[spots & before]
    deepest = DEPTH_SHARE * float(np.median(cut)) if len(cut) else 0.0
    near = (distance <= reach) & (~before | (depth <= deepest))
    labels, count = ndimage.label(((logits > 0) != before) & near, ADJOINING)
    touched = np.zeros(count + 1, bool)
    touched[labels[distance <= NEAR]] = True
    elsewhere = ((logits > 0) != before) & ~(touched[labels] & (labels > 0))
    return np.where(elsewhere, np.where(before, 0.1, -0.1), logits).astype(np.float32)


def _part_at(share: np.ndarray, spots: np.ndarray) -> np.ndarray:
    """The parts of what the text shows on which there are spots, bool [256, 256]."""
    labels, _ = ndimage.label(_enlarged(share) >= FOUND_SHARE_MIN)
    chosen = np.unique(labels[spots])
    return np.isin(labels, chosen[chosen > 0])


def _enlarged(cells: np.ndarray) -> np.ndarray:
    tensor = torch.from_numpy(np.ascontiguousarray(cells, dtype=np.float32))[None, None]
    size = (IMAGE_SIZE, IMAGE_SIZE)
    return torch.nn.functional.interpolate(tensor, size, mode="bilinear", align_corners=False)[0, 0].numpy()
