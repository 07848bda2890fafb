"""A structure's share of a cell depends on what competes there, not on what else is asked or on other slices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from MedZeroSegLib.saliency import (
    EVIDENCE_CELLS,
    FOUND_SHARE_MIN,
    LOST_SHARE_MAX,
    RIVAL_MARGIN,
    Competition,
    Saliency,
    compete,
    evidence_of,
    saliency_of,
    smooth_across,
)

CELLS = 8


def logits_of(slices: int, texts: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(0, 3, (slices, texts, CELLS, CELLS)).astype(np.float32))


def ask(logits: torch.Tensor, competitions, body=None, slab: int = 2) -> list[Saliency]:
    slabs = [slice(start, min(start + slab, len(logits))) for start in range(0, len(logits), slab)]
    return saliency_of(slabs, lambda piece: logits[piece], competitions, body, len(logits), CELLS)


def test_parts_together_are_a_whole_and_no_rivals_of_one_another():
    logits = torch.full((1, 3, 1, 3), -4.0)
    logits[0, 0, 0, 0] = logits[0, 1, 0, 1] = logits[0, 2, 0, 2] = 4.0  # a cell for each of two parts and a rival
    share, lost = compete(logits, Competition(0, (2,), (1,)))
    assert (share[0, 0] >= FOUND_SHARE_MIN).tolist() == [True, True, False]
    assert lost[0, 0].tolist() == [False, False, True]


def test_shares_are_a_softmax_with_the_background_at_0_and_lowered_rivals():
    logits = logits_of(2, 4)
    share, lost = compete(logits, Competition(1, (0, 3)))
    exponents = np.exp(logits.numpy().astype(float) - np.array([RIVAL_MARGIN, 0, 0, RIVAL_MARGIN])[:, None, None])
    total = 1 + exponents[:, [0, 1, 3]].sum(1)
    expected = np.where(lost, np.minimum(exponents[:, 1] / total, LOST_SHARE_MAX), exponents[:, 1] / total)
    assert share.numpy() == pytest.approx(expected, abs=1e-6)


def test_a_cell_is_lost_where_a_rival_beats_query_and_background():
    logits = logits_of(2, 4).numpy()
    _, lost = compete(torch.from_numpy(logits), Competition(1, (0, 3)))
    strongest = np.maximum(logits[:, 0], logits[:, 3])
    assert np.array_equal(lost.numpy(), (strongest > logits[:, 1]) & (strongest > 0))


def test_structures_that_exclude_one_another_share_no_cell():
    logits = logits_of(3, 3)
    answers = [compete(logits, Competition(n, tuple({0, 1, 2} - {n})))[0] >= FOUND_SHARE_MIN for n in range(3)]
    assert (torch.stack(answers).sum(0) <= 1).all()
    assert all(answer.any() for answer in answers)


def test_without_rivals_the_share_is_the_sigmoid_and_nothing_is_lost():
    logits = logits_of(2, 3)
    share, lost = compete(logits, Competition(2, ()))
    assert torch.allclose(share, torch.sigmoid(logits[:, 2]))
    assert not lost.any()


def test_a_rival_takes_its_share_and_a_far_off_one_takes_none():
    logits = torch.zeros(1, 3, CELLS, CELLS)
    logits[:, 0], logits[:, 1], logits[:, 2] = 2.0, 5.0, -40.0
    alone = compete(logits, Competition(0, ()))[0]
    assert torch.allclose(compete(logits, Competition(0, (2,)))[0], alone, atol=1e-6)
    assert (compete(logits, Competition(0, (1,)))[0] < alone - 0.3).all()


def test_huge_logits_give_no_nan():
    logits = torch.full((1, 2, CELLS, CELLS), 1e4)
    share, lost = compete(logits, Competition(0, (1,)))
    assert torch.isfinite(share).all() and not lost.any()


def test_a_querys_answer_does_not_depend_on_the_other_queries():
    logits = logits_of(5, 6)
    competitions = [Competition(0, (1, 2)), Competition(3, ()), Competition(5, (0, 4))]
    together = ask(logits, competitions)
    for competition, from_list in zip(competitions, together, strict=True):
        (alone,) = ask(logits, [competition])
        assert np.array_equal(alone.share, from_list.share)
        assert np.array_equal(alone.lost, from_list.lost)
        assert np.array_equal(alone.evidence, from_list.evidence)


@pytest.mark.parametrize("slab", [1, 3, 7, 16])
def test_the_size_of_a_slab_changes_nothing(slab):
    logits, competition = logits_of(7, 3), Competition(1, (0, 2))
    assert np.array_equal(ask(logits, [competition], slab=slab)[0].share, ask(logits, [competition], slab=2)[0].share)


def test_outside_the_body_there_is_no_saliency():
    body = torch.zeros(3, CELLS, CELLS, dtype=torch.bool)
    body[:, 2:5, 3:7] = True
    logits = logits_of(3, 2)
    (inside,), (everywhere,) = ask(logits, [Competition(0, (1,))], body), ask(logits, [Competition(0, (1,))])
    assert not inside.share[~body.numpy()].any()
    assert np.array_equal(inside.share[body.numpy()], everywhere.share[body.numpy()])


def test_an_air_slice_changes_no_other_slice():
    logits, competition = logits_of(4, 3), Competition(1, (0, 2))
    air = torch.cat((logits[:2], torch.full((1, 3, CELLS, CELLS), -9.0), logits[2:]))
    (plain,), (with_air,) = ask(logits, [competition]), ask(air, [competition])
    others = [0, 1, 3, 4]
    assert np.array_equal(with_air.share[others], plain.share)
    assert np.array_equal(with_air.evidence[others], plain.evidence)
    assert with_air.evidence[2] < 0.01 < plain.evidence.min()
    assert with_air.score == plain.score


def test_no_key_slices_are_an_answer_and_not_an_error():
    """A constant volume has no body and so no slice to look at."""
    (nothing,) = saliency_of([], lambda slab: torch.zeros(0), [Competition(0, ())], None, 0, 1)
    assert nothing.share.shape == (0, 1, 1)
    assert nothing.evidence.shape == (0,)
    assert nothing.score == 0.0


def test_evidence_is_the_mean_of_the_strongest_cells_of_each_slice():
    share = np.zeros((3, CELLS, CELLS), np.float16)
    share[1].flat[5] = 1.0
    share[2].flat[10 : 10 + EVIDENCE_CELLS] = 0.75
    assert evidence_of(share).tolist() == pytest.approx([0.0, 1 / EVIDENCE_CELLS, 0.75])


@settings(deadline=None, max_examples=25)
@given(order=st.permutations(range(5)), seed=st.integers(0, 9))
def test_slices_in_another_order_give_the_same_slices_in_that_order(order, seed):
    logits, competition = logits_of(5, 3, seed), Competition(0, (1, 2))
    (plain,), (shuffled,) = ask(logits, [competition]), ask(logits[list(order)], [competition])
    assert np.array_equal(shuffled.share, plain.share[list(order)])
    assert shuffled.score == plain.score


def test_smoothing_across_slices_keeps_the_sum_and_never_the_plane():
    share = np.zeros((9, CELLS, CELLS), np.float16)
    share[4, 2, 3] = 1.0
    smooth = smooth_across(share, 2.0, 2.0)
    assert smooth.dtype == np.float16
    assert smooth.astype(float).sum() == pytest.approx(1.0, abs=5e-3)
    assert smooth[3, 2, 3] == smooth[5, 2, 3] > 0.1
    assert np.count_nonzero(smooth.any(axis=0)) == 1


def test_thick_slices_and_pairs_of_slices_are_not_smoothed():
    share = np.random.default_rng(1).random((5, CELLS, CELLS)).astype(np.float16)
    assert np.array_equal(smooth_across(share, 10.0, 2.0), share)
    assert np.array_equal(smooth_across(share[:2], 0.1, 2.0), share[:2])
    assert not np.array_equal(smooth_across(share, 3.0, 2.0), share)
