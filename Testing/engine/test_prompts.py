"""Boxes and mask prompts surround what was seen, with a margin, and nothing where nothing was seen."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from MedZeroSegLib.prompts import (
    AREA_MIN,
    LOGIT_MAX,
    MARGIN_MAX,
    MARGIN_MIN,
    MARGIN_SHARE,
    PARTS_MAX,
    mask_prompt,
    prompts_of,
)

CELLS, CANVAS = 64, 128
SCALE = CANVAS / CELLS


def rectangle(*places: tuple[int, int, int, int]) -> np.ndarray:
    """Shares [CELLS, CELLS]: .9 within the given rows and columns (start, stop, start, stop), else .1."""
    share = np.full((CELLS, CELLS), 0.1, np.float32)
    for top, bottom, left, right in places:
        share[top:bottom, left:right] = 0.9
    return share


def margin(side: float) -> float:
    return min(max(MARGIN_SHARE * side, MARGIN_MIN), MARGIN_MAX)


@settings(deadline=None, max_examples=80)
@given(
    top=st.integers(0, CELLS - 4),
    left=st.integers(0, CELLS - 4),
    height=st.integers(3, CELLS),
    width=st.integers(3, CELLS),
)
def test_the_box_holds_its_part_with_a_margin_and_stays_on_the_canvas(top, left, height, width):
    bottom, right = min(top + height, CELLS), min(left + width, CELLS)
    (prompt,) = prompts_of(rectangle((top, bottom, left, right)), 5, CANVAS, 0.5)
    x0, y0, x1, y1 = prompt.box
    assert prompt.slice_index == 5
    assert (x0, y0) == pytest.approx(
        (max(0, left * SCALE - margin((right - left) * SCALE)), max(0, top * SCALE - margin((bottom - top) * SCALE)))
    )
    assert (x1, y1) == pytest.approx(
        (
            min(CANVAS, right * SCALE + margin((right - left) * SCALE)),
            min(CANVAS, bottom * SCALE + margin((bottom - top) * SCALE)),
        )
    )
    assert 0 <= x0 < x1 <= CANVAS and 0 <= y0 < y1 <= CANVAS
    expected = np.zeros((CELLS, CELLS), bool)
    expected[top:bottom, left:right] = True
    assert np.array_equal(prompt.part, expected)


@pytest.mark.parametrize(("side", "expected"), [(4, MARGIN_MIN), (30, MARGIN_SHARE * 60), (51, 0.1 * 102)])
def test_margins_are_a_tenth_of_the_side_within_bounds(side, expected):
    start = (CELLS - side) // 2
    (prompt,) = prompts_of(rectangle((start, start + side, start, start + side)), 0, CANVAS, 0.5)
    assert start * SCALE - prompt.box[0] == pytest.approx(expected)


def test_the_margin_of_a_large_part_is_bounded():
    share = np.full((128, 128), 0.0, np.float32)
    share[20:110, 20:110] = 1.0
    (prompt,) = prompts_of(share, 0, 512, 0.5)
    assert prompt.box == (80 - MARGIN_MAX, 80 - MARGIN_MAX, 440 + MARGIN_MAX, 440 + MARGIN_MAX)


def test_an_absent_structure_is_not_prompted_and_never_gets_the_whole_frame():
    assert prompts_of(np.full((CELLS, CELLS), 0.49, np.float32), 0, CANVAS, 0.5) == []
    assert prompts_of(np.zeros((CELLS, CELLS), np.float32), 0, CANVAS, 0.5) == []
    noise = np.random.default_rng(0).random((CELLS, CELLS)).astype(np.float32) * 0.4
    assert prompts_of(noise, 0, CANVAS, 0.5) == []


def test_only_a_part_that_fills_the_frame_gets_a_box_around_the_frame():
    (whole,) = prompts_of(np.full((CELLS, CELLS), 0.9, np.float32), 0, CANVAS, 0.5)
    assert whole.box == (0, 0, CANVAS, CANVAS)
    for prompt in prompts_of(rectangle((0, 20, 0, 20), (40, 64, 40, 64)), 0, CANVAS, 0.5):
        x0, y0, x1, y1 = prompt.box
        assert (x1 - x0) * (y1 - y0) < 0.25 * CANVAS**2


def test_specks_keep_the_heads_mask():
    assert AREA_MIN == 6
    assert prompts_of(rectangle((3, 4, 3, 8)), 0, CANVAS, 0.5) == []
    assert len(prompts_of(rectangle((3, 4, 3, 9)), 0, CANVAS, 0.5)) == 1


def test_the_largest_parts_are_prompted_first_and_not_all_of_many():
    places = [(8 * n, 8 * n + 4, 0, 4 + 2 * n) for n in range(PARTS_MAX + 2)]
    prompts = prompts_of(rectangle(*places), 0, CANVAS, 0.5)
    areas = [int(prompt.part.sum()) for prompt in prompts]
    assert areas == sorted(areas, reverse=True)
    assert areas == [4 * (4 + 2 * n) for n in range(PARTS_MAX + 1, 1, -1)]


def test_parts_that_touch_at_a_corner_only_are_two():
    assert len(prompts_of(rectangle((10, 20, 10, 20), (20, 30, 20, 30)), 0, CANVAS, 0.5)) == 2


def test_the_mask_prompt_is_the_logit_of_the_share():
    share = rectangle((10, 20, 10, 20))
    (prompt,) = prompts_of(share, 0, CANVAS, 0.5)
    logits = mask_prompt(share, prompt.part)
    assert logits.dtype == np.float32
    assert logits[15, 15] == pytest.approx(np.log(9), abs=1e-4)
    assert logits[40, 40] == pytest.approx(-np.log(9), abs=1e-4)


def test_the_mask_prompt_forbids_the_structures_other_parts():
    share = rectangle((10, 20, 10, 20), (40, 50, 40, 60))
    one, other = sorted(prompts_of(share, 0, CANVAS, 0.5), key=lambda prompt: prompt.box)
    logits = mask_prompt(share, one.part)
    assert (logits[other.part] == -LOGIT_MAX).all()
    assert (logits[one.part] > 0).all()


def test_certain_shares_give_bounded_logits():
    share = np.zeros((CELLS, CELLS), np.float32)
    share[10:20, 10:20] = 1.0
    logits = mask_prompt(share, share > 0)
    assert logits.max() == LOGIT_MAX and logits.min() == -LOGIT_MAX
