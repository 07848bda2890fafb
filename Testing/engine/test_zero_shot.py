"""Saliency without training: one scale for the volume, others' texts to stand against, absence as an answer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from analytic import dice, ellipsoid

from MedZeroSegLib.saliency import FOUND_SHARE_MIN, Saliency
from MedZeroSegLib.zero_shot import (
    Against,
    Ground,
    Relief,
    ZeroShotRules,
    contrast,
    draw,
    feature_surgery,
    reliefs,
    standardised,
    two_means,
)

CELLS, SIZE, COUNT, SCALE = 32, 64, 14, 40.0
TRUTH = ellipsoid((COUNT, CELLS, CELLS), (6.5, 14, 18), (3.5, 6, 7))
BODY = np.repeat(ellipsoid((CELLS, CELLS), (16, 16), (15, 14))[None], COUNT, 0)
ASK = Against(0, (1,), (2, 3, 4))
RULES = ZeroShotRules()


def cosines_of(truth: np.ndarray = TRUTH, seed: int = 0, gain: float = 0.08) -> torch.Tensor:
    """Two maps [2, n, 5, s, s]: query and rival at two places, three negatives, all with noise around .25."""
    rng = np.random.default_rng(seed)
    values = 0.25 + 0.01 * rng.standard_normal((2, COUNT, 5, CELLS, CELLS))
    values[:, :, 0] += gain * truth
    values[:, :, 1] += gain * np.roll(truth, 9, axis=1)
    return torch.from_numpy(values.astype(np.float32))


def whole_of(truth: np.ndarray = TRUTH, seed: int = 0) -> torch.Tensor:
    """Cosines of whole slices [n, 5], larger for the query where there is more of it."""
    rng = np.random.default_rng(seed)
    values = 0.3 + 0.01 * rng.standard_normal((COUNT, 5))
    values[:, 0] += 0.3 * truth.mean((1, 2)) / max(truth.mean((1, 2)).max(), 1e-9)
    return torch.from_numpy(values.astype(np.float32))


def ground_of(count: int = COUNT, body: np.ndarray | None = None) -> Ground:
    pictures = np.full((count, SIZE, SIZE), 90, np.uint8)
    pictures[:, :, :] += np.random.default_rng(0).integers(0, 3, (count, SIZE, SIZE), np.uint8)
    pictures[:COUNT][TRUTH.repeat(2, 1).repeat(2, 2)] += 80
    return Ground(BODY if body is None else body, pictures, 5.0, 5.0)


def ask(
    maps: torch.Tensor | None = None, whole: torch.Tensor | None = None, rules: ZeroShotRules = RULES, slab: int = 5
) -> Relief | None:
    maps = cosines_of() if maps is None else maps
    whole = whole_of() if whole is None else whole
    slabs = [slice(k, min(k + slab, maps.shape[1])) for k in range(0, maps.shape[1], slab)]
    (relief,) = reliefs(slabs, lambda s, rows: maps[:, s][:, :, rows], whole, [ASK], BODY, rules, SCALE, True)
    return relief


def found(saliency: Saliency, needed: float = 0.5) -> np.ndarray:
    mask = saliency.share >= FOUND_SHARE_MIN
    return mask & (saliency.evidence >= needed)[:, None, None]


# Contrast


def test_among_rivals_the_contrast_is_the_log_odds_of_a_softmax():
    maps = cosines_of()
    share = (SCALE * maps).softmax(2)[:, :, 0]
    assert torch.allclose(contrast(maps, 1, SCALE), torch.logit(share), atol=1e-3)


def test_with_negatives_only_it_is_their_standard_score_at_the_place():
    maps = cosines_of()[:, :, [0, 2, 3, 4]]
    others = maps[:, :, 1:].numpy()
    expected = (maps[:, :, 0].numpy() - others.mean(2)) / others.std(2, ddof=1)
    assert np.allclose(contrast(maps, 0, SCALE).numpy(), expected, rtol=1e-3, atol=1e-3)


def test_alone_a_map_is_taken_as_it_is():
    maps = cosines_of()[:, :, :1]
    assert torch.equal(contrast(maps, 0, SCALE), maps[:, :, 0])


def test_feature_surgery_is_the_released_codes():
    """On features and texts, as the code has it: products less their weighed mean over the classes, then summed."""
    features, texts = F.normalize(torch.randn(2, 10, 7), dim=-1), F.normalize(torch.randn(4, 7), dim=-1)
    share = (features[:, :1] @ texts.T * 2).softmax(-1)
    weight = share / share.mean(-1, keepdim=True)
    products = features[:, :, None] * texts[None, None] * weight.reshape(2, 1, 4, 1)
    expected = (products - products.mean(2, keepdim=True)).sum(-1)
    cosines = (features @ texts.T).transpose(1, 2)[None, :, :, :, None]
    found_ = feature_surgery(cosines, features[:, 0] @ texts.T)[0, ..., 0].transpose(1, 2)
    assert torch.allclose(found_, expected, atol=1e-6)


def test_surgery_takes_away_what_all_texts_share():
    common = torch.randn(2, COUNT, 1, CELLS, CELLS)
    maps = cosines_of()
    shifted = feature_surgery(maps + common, torch.zeros(COUNT, 5))
    assert torch.allclose(shifted, feature_surgery(maps, torch.zeros(COUNT, 5)), atol=1e-5)


# Scale


def test_the_scale_is_that_of_the_whole_volumes_body():
    relief = ask()
    inside = relief.height[BODY]
    assert np.median(inside) == pytest.approx(0, abs=0.05)
    assert 1.4826 * np.median(np.abs(inside)) == pytest.approx(1, abs=0.05)
    assert relief.height[TRUTH].mean() > 4


def test_a_positive_factor_on_all_values_changes_nothing():
    values = np.random.default_rng(0).normal(size=(4, 8, 8))
    body = values > -1
    for changed in (7 * values, 0.01 * values, values + 3):
        assert np.allclose(standardised(changed, body), standardised(values, body), atol=1e-6)


def test_what_lies_outside_the_body_does_not_set_the_scale():
    values = np.random.default_rng(0).normal(size=(4, 8, 8))
    body = np.zeros(values.shape, bool)
    body[:, 2:6, 2:6] = True
    other = np.where(body, values, 1e6)
    assert np.allclose(standardised(other, body)[body], standardised(values, body)[body])


def test_a_flat_map_or_no_body_has_no_scale():
    assert standardised(np.full((3, 4, 4), 0.25), np.ones((3, 4, 4), bool)) is None
    assert standardised(np.random.default_rng(0).normal(size=(3, 4, 4)), np.zeros((3, 4, 4), bool)) is None


def test_a_slice_does_not_become_loud_by_being_empty():
    """Min-max in each slice would give every slice a maximum of 1."""
    relief = ask()
    empty = ~TRUTH.any((1, 2))
    assert relief.height[empty].max() < 0.7 * relief.height[TRUTH].mean()


def test_slabs_change_nothing():
    one, other = ask(slab=3), ask(slab=COUNT)
    assert np.allclose(one.height, other.height, atol=1e-4) and np.array_equal(one.lost, other.lost)
    assert np.allclose(one.win, other.win, atol=1e-6)


def test_each_query_gets_what_it_gets_alone():
    maps, whole = cosines_of(), whole_of()
    second = Against(1, (0,), (2, 3, 4))
    slabs = [slice(0, COUNT)]
    both = reliefs(slabs, lambda s, rows: maps[:, s][:, :, rows], whole, [ASK, second], BODY, RULES, SCALE, True)
    assert np.array_equal(both[0].height, ask(slab=COUNT).height)
    assert not (both[0].lost & both[1].lost).any()
    assert both[0].lost[np.roll(TRUTH, 9, 1) & ~TRUTH].mean() > 0.9


# Presence


def test_the_text_wins_where_it_is_and_nowhere_else():
    relief = ask()
    there = TRUTH.sum((1, 2)) > 40
    assert relief.win[there].min() > 0.7
    absent = ask(cosines_of(np.zeros_like(TRUTH)))
    assert relief.win[there].min() > absent.win.max() + 0.1


def test_a_structure_is_drawn_where_it_is():
    saliency = draw(ask(), ground_of(), RULES)
    assert saliency.share.shape == (COUNT, SIZE, SIZE)
    assert dice(found(saliency), TRUTH.repeat(2, 1).repeat(2, 2)) > 0.75
    assert not found(saliency)[[0, 1, -2, -1]].any()


@pytest.mark.parametrize("edges", ["guided", "crf", "none"])
@pytest.mark.parametrize("threshold", ["two-means", "otsu"])
def test_every_way_to_draw_finds_it(edges, threshold):
    saliency = draw(ask(), ground_of(), ZeroShotRules(edges=edges, threshold=threshold))
    assert dice(found(saliency), TRUTH.repeat(2, 1).repeat(2, 2)) > 0.6


def test_without_the_gate_all_slices_count():
    gated, open_ = (draw(ask(), ground_of(), ZeroShotRules(gated=gated)) for gated in (True, False))
    assert (gated.evidence == 0).any()
    assert np.array_equal(open_.evidence, ask().win)


def test_a_structure_that_no_text_map_shows_is_not_found():
    negatives = cosines_of(np.zeros_like(TRUTH))
    negatives[:, :, 2] += 0.05  # a negative wins everywhere
    saliency = draw(ask(negatives, whole_of(np.zeros_like(TRUTH))), ground_of(), RULES)
    assert saliency.score < 0.5


def test_a_flat_volume_is_not_found():
    flat = torch.full((2, COUNT, 5, CELLS, CELLS), 0.25)
    assert ask(flat) is None
    saliency = draw(None, ground_of(), RULES)
    assert saliency.score == 0 and not saliency.share.any()


def test_no_slices_are_an_answer():
    nothing = np.zeros((0, 1, 1), bool)
    (relief,) = reliefs([], lambda *_: torch.zeros(0), torch.zeros(0, 5), [ASK], nothing, RULES, SCALE, True)
    saliency = draw(relief, Ground(nothing, np.zeros((0, SIZE, SIZE), np.uint8), 5.0, 5.0), RULES)
    assert saliency.share.shape == (0, SIZE, SIZE) and saliency.score == 0


def test_a_single_picture_is_drawn():
    maps, whole = cosines_of()[:, 6:7], whole_of()[6:7]
    body = BODY[:1]
    (relief,) = reliefs([slice(0, 1)], lambda s, r: maps[:, s][:, :, r], whole, [ASK], body, RULES, SCALE, True)
    ground = replace(ground_of(), body=body, pictures=ground_of().pictures[6:7])
    saliency = draw(relief, ground, RULES)
    assert dice(found(saliency)[0], TRUTH[6].repeat(2, 0).repeat(2, 1)) > 0.75


def test_saliency_stays_inside_the_body_and_off_what_rivals_hold():
    saliency = draw(ask(), ground_of(), RULES)
    wide = BODY.repeat(2, 1).repeat(2, 2)
    assert not saliency.share[~wide].any()
    assert (saliency.share[saliency.lost] < FOUND_SHARE_MIN).all()


def test_maps_that_are_no_cosines_stand_alone():
    """gScoreCAM and M2IB: one map of the query; the whole slice's texts decide whether it is there."""
    maps = (TRUTH * 5.0 + np.random.default_rng(0).random(TRUTH.shape)).astype(np.float32)
    rows_asked: list[list[int]] = []

    def maps_of(slab: slice, rows: list[int]) -> torch.Tensor:
        rows_asked.append(rows)
        return torch.from_numpy(maps[slab])[None, :, None]

    (relief,) = reliefs([slice(0, COUNT)], maps_of, whole_of(), [ASK], BODY, RULES, SCALE, False)
    assert rows_asked == [[0]]
    saliency = draw(relief, ground_of(), RULES)
    assert dice(found(saliency), TRUTH.repeat(2, 1).repeat(2, 2)) > 0.7
    away = -whole_of()
    (absent,) = reliefs([slice(0, COUNT)], maps_of, away, [ASK], BODY, RULES, SCALE, False)
    assert draw(absent, ground_of(), RULES).score < 0.5


# Threshold


def test_two_means_divides_half_way_between_the_means():
    rng = np.random.default_rng(0)
    values = np.concatenate((rng.normal(0.2, 0.03, 9000), rng.normal(0.8, 0.03, 1000)))
    assert two_means(values) == pytest.approx(0.5, abs=0.02)


def test_the_threshold_becomes_one_half():
    relief = ask()
    rules = ZeroShotRules(edges="none", gated=False)
    drawn = draw(relief, ground_of(), rules).share
    inside = BODY.repeat(2, 1).repeat(2, 2)
    covered = (drawn[inside] >= FOUND_SHARE_MIN).mean()
    assert 0.3 * TRUTH[BODY].mean() < covered < 3 * TRUTH[BODY].mean()
