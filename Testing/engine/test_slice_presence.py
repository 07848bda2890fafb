"""Runs of slices: the most likely path by trying all, and presence that follows the evidence."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from MedZeroSegLib.slice_presence import SURE, most_likely_run, presence


def likelihood(path: tuple[int, ...], probability: np.ndarray, stay: float) -> float:
    total = 1.0
    for k, state in enumerate(path):
        p = float(np.clip(probability[k], SURE, 1 - SURE))
        total *= p if state else 1 - p
        if k:
            total *= stay if state == path[k - 1] else 1 - stay
    return total


@settings(deadline=None, max_examples=60)
@given(
    probability=st.lists(st.floats(0.02, 0.98), min_size=1, max_size=8),
    stay=st.sampled_from([0.6, 0.95, 0.99]),
)
def test_the_run_is_the_most_likely_of_all(probability, stay):
    probability = np.array(probability)
    found = tuple(int(state) for state in most_likely_run(probability, stay))
    best = max(likelihood(path, probability, stay) for path in product((0, 1), repeat=len(probability)))
    assert likelihood(found, probability, stay) == pytest.approx(best, rel=1e-9)


def test_a_lone_doubtful_slice_follows_its_neighbours():
    run = most_likely_run(np.array([0.9, 0.9, 0.4, 0.9, 0.9, 0.1, 0.1, 0.6, 0.1]), 0.95)
    assert run.tolist() == [True] * 5 + [False] * 4


def test_presence_is_a_run_around_the_evidence():
    rng = np.random.default_rng(0)
    there = np.zeros(30, bool)
    there[10:18] = True
    features = there[:, None] * np.array([2.0, 1.0, 0.5, 3.0]) + rng.normal(0, 0.3, (30, 4))
    probability, run = presence(features, 5.0)
    assert (run == there).mean() >= 0.9 and probability.min() >= 0 and probability.max() <= 1
    assert probability[there].min() > probability[~there].max() - 0.35


def test_scales_of_features_and_their_order_do_not_matter():
    features = np.random.default_rng(0).normal(size=(20, 4))
    probability, run = presence(features, 5.0)
    other, same = presence(features[:, [2, 0, 3, 1]] * np.array([100.0, 0.01, 3.0, 1.0]) - 7, 5.0)
    assert np.allclose(probability, other) and np.array_equal(run, same)
    turned, back = presence(features[::-1], 5.0)
    assert np.allclose(turned[::-1], probability)


def test_a_single_slice_counts_as_present():
    probability, run = presence(np.array([[0.1, 0.2, 0.0, 0.3]]), 5.0)
    assert probability.tolist() == [0.5] and run.tolist() == [True]


def test_thick_slices_change_state_more_easily():
    probability = np.array([0.9, 0.9, 0.1, 0.9, 0.9])
    assert most_likely_run(probability, 0.99).all()
    assert not most_likely_run(probability, 0.7)[2]
