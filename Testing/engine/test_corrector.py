"""The corrector: what it looks at, and what the simulated user of its training does."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from MedZeroSegLib.mask_decoder.corrector import (
    SURE,
    WINDOW_SIDES,
    Correction,
    anchor_means,
    load_corrector,
    planes_of,
    where_of,
    window_around,
)
from MedZeroSegLib.training.simulated_hints import Hints, click, disc, mark, spoil, stroke

NOTHING = np.zeros((256, 256), bool)


def rectangle(row: int, column: int, height: int, width: int) -> np.ndarray:
    mask = NOTHING.copy()
    mask[row : row + height, column : column + width] = True
    return mask


@settings(max_examples=60, deadline=None)
@given(row=st.integers(0, 255), column=st.integers(0, 255), height=st.integers(1, 256), width=st.integers(1, 256))
def test_window_holds_what_is_marked_and_lies_on_whole_cells(row, column, height, width):
    marked = rectangle(row, column, height, width)
    window = window_around(marked)
    assert window.of(marked).sum() == marked.sum()
    assert window.side in WINDOW_SIDES and window.row % 4 == window.column % 4 == 0
    assert window.of(NOTHING).shape == (window.side, window.side)
    assert window.of(np.zeros((3, 64, 64))).shape == (3, window.side // 4, window.side // 4)


def test_what_lies_outside_the_window_stays_as_it_is():
    mask = rectangle(20, 30, 12, 18)
    correction = Correction(np.zeros((256, 256), np.uint8), mask, rectangle(40, 40, 2, 2), NOTHING)
    logits = load_corrector().logits(correction, np.zeros((256, 64, 64), np.float32))
    window = window_around(mask | correction.include)
    outside = ~NOTHING
    window.of(outside)[:] = False
    assert (logits[outside] == -SURE).all() and (np.abs(logits) <= SURE).all()


def test_hints_fade_with_their_distance():
    planes = planes_of(Correction(np.zeros((256, 256), np.uint8), NOTHING, disc((256, 256), 50, 60, 2), NOTHING))
    assert planes[2, 50, 60] == planes[3, 50, 60] == 1
    assert planes[2, 50, 60 + 6] == pytest.approx(np.exp(-1)) and not planes[4:].any()


def test_hints_count_for_their_own_mean_only():
    mask = rectangle(40, 40, 40, 40)
    where = where_of(Correction(np.zeros((256, 256), np.uint8), mask, NOTHING, rectangle(60, 60, 20, 20)))
    assert where[0, 15:20, 15:20].sum() == 0 and where[3, 15:20, 15:20].sum() == 25 and not (where[0] * where[1]).any()


def test_means_are_those_of_mask_and_ring():
    coarse = np.zeros((256, 64, 64), np.float32)
    coarse[0, 10:20, 10:20], coarse[1] = 3, 2
    inside, ring = anchor_means(coarse, rectangle(40, 40, 40, 40))
    assert inside[:2] == pytest.approx([3, 2]) and ring[:2] == pytest.approx([0, 2])


# The simulated user


def test_the_click_is_in_the_middle_of_the_largest_error():
    truth, mask = rectangle(50, 60, 21, 31), rectangle(150, 150, 9, 9)
    assert click(mask, truth, None) == (60, 70, True) or click(mask, truth, None)[0] == 60
    row, column, inside = click(mask | truth, truth, None)
    assert (row, column, inside) == (154, 154, False)
    assert click(truth, truth, None) is None


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_hints_are_drawn_where_they_are_true(seed):
    rng = np.random.default_rng(seed)
    truth = rectangle(int(rng.integers(30, 120)), int(rng.integers(30, 120)), 60, 45)
    mask = spoil(truth, NOTHING, rng)
    hints = stroke(mask, truth, Hints(NOTHING, NOTHING), rng)
    place = click(mask, truth, rng)
    if place is not None:
        row, column, inside = place
        assert truth[row, column] == inside and mask[row, column] != inside
        hints = mark(hints, row, column, inside)
    assert not (hints.include & hints.exclude).any()


def test_the_newest_of_two_hints_on_one_place_counts():
    hints = mark(mark(Hints(NOTHING, NOTHING), 50, 50, True), 50, 50, False)
    assert not hints.include.any() and hints.exclude[50, 50]
