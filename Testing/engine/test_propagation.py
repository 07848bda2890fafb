"""The decoder sharpens what the saliency says and cannot overrule it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from analytic import dice, ellipse_logits, ellipsoid, without_margin
from torch import Tensor

from MedZeroSegLib.assembly import KeySlices, keep_parts, restore_mask
from MedZeroSegLib.canvas import fit_canvas
from MedZeroSegLib.propagation import PROMPTS_A_CALL, Choice, refine
from MedZeroSegLib.saliency import FOUND_SHARE_MIN, Saliency, evidence_of

SIZE, CELLS = 128, 64
SHAPE = (14, 60, 50)  # slices, rows, columns
TRUTH = ellipsoid(SHAPE, (6.5, 28, 24), (6, 20, 15))
CANVAS = fit_canvas(SHAPE[1:], (2.0, 2.0), SIZE)


def saliency_of_masks(masks: np.ndarray, inside: float = 0.95, outside: float = 0.02) -> Saliency:
    """What a head would say that sees the masks [n, h, w] with some doubt."""
    placed = CANVAS.place(masks.astype(np.uint8) * 255)
    cells = F.adaptive_avg_pool2d(placed, CELLS)[:, 0].numpy()
    share = (outside + (inside - outside) * cells).astype(np.float16)
    return Saliency(share, np.zeros(share.shape, bool), evidence_of(share))


def rows_of(rows: list[int]) -> Tensor:
    """An "embedding" that only tells which key slice it belongs to."""
    return torch.tensor(rows, dtype=torch.float32)[:, None, None, None]


def box_decoder(scale: float = 1.0, margin: bool = True) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    def decode(coarse: Tensor, boxes: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        assert masks.shape == (len(boxes), 1, SIZE, SIZE)
        return ellipse_logits(boxes if margin else without_margin(boxes), SIZE, scale), torch.ones(len(boxes))

    return decode


def constant_decoder(logit: float) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    def decode(coarse: Tensor, boxes: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        return torch.full((len(boxes), 1, SIZE, SIZE), logit), torch.ones(len(boxes))

    return decode


def noise_decoder(coarse: Tensor, boxes: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return 5 * torch.randn(len(boxes), 1, SIZE, SIZE, generator=generator), torch.ones(len(boxes))


def misplaced_decoder(coarse: Tensor, boxes: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    return ellipse_logits(boxes, SIZE).roll(SIZE // 3, 3), torch.ones(len(boxes))


def speck_decoder(coarse: Tensor, boxes: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    return ellipse_logits(boxes, SIZE, 0.3), torch.ones(len(boxes))


def unsure_decoder(coarse: Tensor, boxes: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """The right ellipse, but at logits that are hardly above 0."""
    return ellipse_logits(without_margin(boxes), SIZE).clamp(-0.5, 0.5), torch.ones(len(boxes))


def mask_of(probability: np.ndarray, present: np.ndarray) -> np.ndarray:
    keys = KeySlices(np.arange(len(probability)), len(probability))
    return restore_mask(probability, present, keys, CANVAS, FOUND_SHARE_MIN)


def run(
    saliency: Saliency,
    decode,
    choice: Choice | None = None,
    present: np.ndarray | None = None,
    area_max: float = 1.0,
    parts: int = 0,
):
    present = saliency.evidence >= 0.5 if present is None else present
    chosen = replace(choice or Choice(), area_max=area_max)
    return refine(saliency, present, rows_of, decode, SIZE, chosen, parts)


@pytest.mark.parametrize("margin", [True, False], ids=["ellipse of the box", "ellipse without the box's margin"])
def test_an_ellipsoid_comes_back_with_any_decoder_that_works(margin):
    saliency = saliency_of_masks(TRUTH)
    refined = run(saliency, box_decoder(margin=margin))
    assert refined.decoded == refined.kept == np.count_nonzero(saliency.evidence >= 0.5) > 8
    mask = mask_of(refined.probability, saliency.evidence >= 0.5)
    assert dice(mask, TRUTH) >= 0.9
    assert not mask[0].any() and not mask[-1].any()  # nothing beyond the ends


@pytest.mark.parametrize(("parts", "lasting"), [(0, 3), (1, 1), (2, 2), (3, 2)])
def test_a_part_that_will_be_dropped_is_not_drawn_and_the_mask_is_the_same(parts, lasting):
    organ = ellipsoid(SHAPE, (6.5, 20, 14), (6, 16, 11))
    second = ellipsoid(SHAPE, (4, 45, 40), (3, 9, 7))
    third = ellipsoid(SHAPE, (11, 12, 40), (1.5, 4, 4))  # less than a tenth of the organ
    saliency = saliency_of_masks(organ | second | third)
    present = saliency.evidence >= 0.5
    all_drawn, some_drawn = (run(saliency, box_decoder(margin=False), parts=n) for n in (0, parts))
    masks = [mask_of(refined.probability, present) for refined in (all_drawn, some_drawn)]
    for mask in masks:
        keep_parts(mask, parts)
    assert np.array_equal(*masks)
    kept = [organ, second, third][:lasting]
    assert all(masks[1][one].mean() > 0.7 for one in kept)
    alone = run(saliency_of_masks(np.logical_or.reduce(kept)), box_decoder(margin=False), present=present)
    assert some_drawn.kept == alone.kept


def test_an_organ_that_is_thin_in_the_middle_is_drawn_at_both_ends():
    bulbs = ellipsoid(SHAPE, (3, 28, 24), (3, 14, 10)) | ellipsoid(SHAPE, (10, 28, 24), (3, 14, 10))
    saliency = saliency_of_masks(bulbs | ellipsoid(SHAPE, (6.5, 28, 24), (5, 4, 4)))
    assert run(saliency, box_decoder(), parts=1).kept == run(saliency, box_decoder()).kept


def test_the_decoder_mends_a_ragged_saliency():
    ragged = TRUTH & (np.random.default_rng(0).random(SHAPE) > 0.2)
    saliency = saliency_of_masks(ragged)
    present = saliency.evidence >= 0.5
    alone = mask_of(run(saliency, constant_decoder(-9.0)).probability, present)
    mended = mask_of(run(saliency, box_decoder(margin=False)).probability, present)
    assert dice(mended, TRUTH) > max(0.9, dice(alone, TRUTH) + 0.01)


@pytest.mark.parametrize(
    "decode",
    [
        constant_decoder(9.0),
        constant_decoder(-9.0),
        constant_decoder(float("nan")),
        noise_decoder,
        misplaced_decoder,
        speck_decoder,
        box_decoder(2.0),
        unsure_decoder,
    ],
    ids=["everything", "nothing", "NaN", "noise", "elsewhere", "a speck", "far too large", "unsure"],
)
def test_a_decoder_that_answers_rubbish_changes_nothing(decode):
    saliency = saliency_of_masks(TRUTH)
    refined = run(saliency, decode)
    own = run(saliency, decode, present=np.zeros(SHAPE[0], bool))
    assert refined.decoded == 0 < refined.kept
    assert own.kept == 0
    assert np.array_equal(refined.probability, own.probability)
    assert dice(mask_of(refined.probability, saliency.evidence >= 0.5), TRUTH) >= 0.9


def test_a_weak_saliency_of_the_right_shape_still_believes_the_decoder():
    saliency = saliency_of_masks(TRUTH, inside=0.6)
    refined = run(saliency, box_decoder(margin=False))
    assert refined.decoded == refined.kept > 8


@pytest.mark.parametrize(("scale", "believed"), [(1.2, True), (1.35, False), (0.83, True), (0.7, False)])
def test_the_decoders_area_may_differ_from_the_parts_by_a_factor(scale, believed):
    choice = Choice(agreement_min=0, stability_min=0, area_ratio_max=1.6)
    saliency = saliency_of_masks(TRUTH[6:7], inside=1.0, outside=0.0)
    assert run(saliency, box_decoder(scale, margin=False), choice).decoded == int(believed)


def test_each_prompt_is_decoded_on_its_own_slice():
    """An oracle that draws what is on the slice named by the embedding, for more prompts than fit into one call."""
    masks = np.stack([ellipsoid(SHAPE[1:], (20 + n, 18 + n), (14, 9 + 0.5 * n)) for n in range(PROMPTS_A_CALL + 3)])
    placed = CANVAS.place(masks.astype(np.uint8) * 255)

    def decode(coarse: Tensor, boxes: Tensor, masks_: Tensor) -> tuple[Tensor, Tensor]:
        assert len(boxes) <= PROMPTS_A_CALL
        return (placed[coarse[:, 0, 0, 0].long()] - 0.5) * 16, torch.ones(len(boxes))

    refined = run(saliency_of_masks(masks), decode, Choice(0.9, 1.2, 0.9, decoder_share=1.0))
    assert refined.decoded == refined.kept == len(masks)
    present = np.ones(len(masks), bool)
    assert all(dice(a, b) > 0.97 for a, b in zip(mask_of(refined.probability, present), masks, strict=True))


def test_the_mask_prompt_lies_where_the_box_lies():
    saliency = saliency_of_masks(TRUTH)

    def decode(coarse: Tensor, boxes: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        for box, mask in zip(boxes, masks[:, 0], strict=True):
            rows, columns = torch.nonzero(mask > 0, as_tuple=True)
            x0, y0, x1, y1 = box.tolist()
            assert x0 <= columns.min() and columns.max() < x1
            assert y0 <= rows.min() and rows.max() < y1
            assert columns.max() - columns.min() > 0.6 * (x1 - x0)
        return masks, torch.ones(len(boxes))

    assert run(saliency, decode).decoded > 8


def test_absent_slices_are_not_decoded_and_keep_their_shares():
    saliency = saliency_of_masks(TRUTH)
    present = np.zeros(SHAPE[0], bool)
    present[5] = True
    refined = run(saliency, box_decoder(), present=present)
    own = run(saliency, box_decoder(), present=np.zeros(SHAPE[0], bool))
    assert (refined.decoded, refined.kept) == (1, 1)
    changed = (refined.probability != own.probability).any(axis=(1, 2))
    assert changed.tolist() == present.tolist()


def test_the_decoders_share_goes_from_nothing_to_all():
    saliency = saliency_of_masks(TRUTH[6:7])
    own = run(saliency, constant_decoder(-9.0)).probability
    nothing = run(saliency, box_decoder(), Choice(decoder_share=0.0)).probability
    assert np.array_equal(nothing, own)
    everything = run(saliency, box_decoder(0.9, margin=False), Choice(decoder_share=1.0)).probability
    assert own[everything < 0.1].max() > 0.9  # taken away from the head's part
    assert everything.max() > 0.99 > own.max()


def test_a_parts_decoding_leaves_the_other_parts_alone():
    """The decoder draws the larger part well but spills over the smaller one, and gives no answer for that."""
    both = np.zeros((1, *SHAPE[1:]), bool)
    large, small = ellipsoid(SHAPE[1:], (20, 24), (15, 18)), ellipsoid(SHAPE[1:], (50, 24), (6, 9))
    both[0] = large | small
    saliency = saliency_of_masks(both)
    placed = CANVAS.place(np.stack((large, small)).astype(np.uint8) * 255)[:, 0]
    spilled = ((placed[0] + placed[1]).clamp_max(1) - 0.5) * 16

    def decode(coarse: Tensor, boxes: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        answers = [spilled if box[3] - box[1] > 50 else torch.full((SIZE, SIZE), -9.0) for box in boxes]
        return torch.stack(answers)[:, None], torch.ones(len(boxes))

    own = run(saliency, constant_decoder(-9.0)).probability[0]
    refined = run(saliency, decode)
    assert (refined.decoded, refined.kept) == (1, 2)
    inside_small = placed[1].numpy() > 0.9
    assert np.array_equal(refined.probability[0][inside_small], own[inside_small])
    inside_large = placed[0].numpy() > 0.9
    assert (refined.probability[0][inside_large] != own[inside_large]).any()


def test_what_a_rival_holds_is_not_taken_by_the_decoder():
    """The decoder's ellipse reaches into a neighbour that won those cells."""
    saliency = saliency_of_masks(TRUTH[6:7])
    lost = np.zeros(saliency.share.shape, bool)
    lost[0, :, 34:] = saliency.share[0, :, 34:] < 0.9
    contested = lost[0].repeat(2, 0).repeat(2, 1)
    decode, choice = box_decoder(), Choice(decoder_share=1.0)
    free = run(saliency, decode, choice).probability[0]
    fenced = run(replace(saliency, lost=lost), decode, choice).probability[0]
    assert (free[contested] >= FOUND_SHARE_MIN).any()
    assert (fenced[contested] < FOUND_SHARE_MIN).all()
    assert np.array_equal(fenced[~contested], free[~contested])


def test_parts_larger_than_the_limit_keep_the_heads_mask():
    saliency = saliency_of_masks(TRUTH[6:7])
    share = (saliency.share >= FOUND_SHARE_MIN).mean()
    assert run(saliency, box_decoder(), area_max=0.9 * share).kept == 0
    assert run(saliency, box_decoder(), area_max=1.1 * share).kept == 1
