"""Corrections carried through the volume: from one slice outward, between two from both sides, and no further."""

from __future__ import annotations

import numpy as np
import pytest
from editing_samples import OBLIQUE, engine, organ, scan

from MedZeroSegLib.assembly import shape_between
from MedZeroSegLib.editing import EditingSession

SHAPE = (15, 40, 56)
TRUTH = organ(SHAPE)
VOLUME = scan(TRUTH)
ENGINE = engine()
HOLDS = np.flatnonzero(TRUTH.any(axis=(1, 2)))


def dice(first: np.ndarray, second: np.ndarray) -> float:
    return 2 * float((first & second).sum()) / max(1, int(first.sum() + second.sum()))


def drawn_in(*slices: int, start: np.ndarray | None = None) -> EditingSession:
    """A session in which a person has drawn and confirmed these slices."""
    editing = EditingSession(VOLUME, ENGINE, start)
    for k in slices:
        mask = editing.mask.copy()
        mask[k] = TRUTH[k]
        editing.redraw(mask)
        editing.confirm_slice(k)
    return editing


def test_three_slices_bring_the_whole_organ_better_than_interpolation():
    first, middle, last = (int(HOLDS[int(p * len(HOLDS))]) for p in (1 / 6, 1 / 2, 5 / 6))
    editing = drawn_in(first, middle, last)
    editing.spread()
    rest = [k for k in HOLDS if k not in (first, middle, last)]
    between = np.zeros_like(TRUTH)
    for k in rest:
        low, high = (first, middle) if k < middle else (middle, last)
        share = min(1, max(0, (k - low) / (high - low)))
        between[k] = shape_between(TRUTH[low], TRUTH[high], share) >= 0
    assert dice(editing.mask[rest], TRUTH[rest]) > max(0.85, dice(between[rest], TRUTH[rest]) - 0.02)


class Misled:
    """A corrector that draws something, and always the wrong thing: the mask's place shifted far away."""

    @staticmethod
    def logits(correction, coarse):
        return np.where(np.roll(correction.mask, (60, -70), (0, 1)), 8.0, -8.0).astype(np.float32)


def test_models_that_spoil_slices_that_are_known_leave_the_rest_to_interpolation():
    first, last = int(HOLDS[2]), int(HOLDS[-3])
    editing = drawn_in(first, last)
    editing.corrector = Misled()
    editing.spread()
    for k in range(first + 1, last):
        between = shape_between(TRUTH[first], TRUTH[last], (k - first) / (last - first)) >= 0
        assert dice(editing.mask[k], between) > 0.85, k


def test_confirmed_slices_stay_bit_by_bit():
    editing = drawn_in(4, 8)
    editing.spread()
    assert np.array_equal(editing.mask[[4, 8]], TRUTH[[4, 8]])


def test_nothing_lies_beyond_a_slice_that_the_structure_is_not_in():
    start = TRUTH.copy()
    start[12:] = True
    editing = EditingSession(VOLUME, ENGINE, start)
    editing.confirm_slice(7)
    editing.not_in_slice(12)
    editing.spread()
    assert not editing.mask[12:].any() and editing.mask[8].any()


def test_a_slice_at_one_end_that_the_structure_is_not_in_leaves_the_other_side():
    editing = EditingSession(VOLUME, ENGINE, TRUTH)
    last = int(HOLDS[-2])
    editing.not_in_slice(last)
    editing.spread()
    assert not editing.mask[last:].any() and np.array_equal(editing.mask[:last], TRUTH[:last])


def too_long() -> np.ndarray:
    """The organ, and at its end three slices of a block that isn't it."""
    start = TRUTH.copy()
    start[11:] = False
    start[11:14, 10:20, 10:20] = True
    return start


def test_the_segment_ends_where_a_click_has_emptied_a_slice():
    editing = EditingSession(VOLUME, ENGINE, too_long())
    editing.exclude([[14, 14, 11]])
    editing.spread()
    assert not editing.mask[11:].any() and np.array_equal(editing.mask[:11], TRUTH[:11])


def test_what_a_person_drew_beyond_an_emptied_slice_stays():
    editing = EditingSession(VOLUME, ENGINE, too_long())
    editing.stroke(np.argwhere(TRUTH[13:14])[:, ::-1] + (0, 0, 13), include=True)
    editing.exclude([[14, 14, 11]])
    editing.spread()
    assert editing.mask[13][TRUTH[13]].all()
    assert np.array_equal(editing.mask[:11], TRUTH[:11])  # which is larger


def test_it_stops_where_the_structure_ends():
    editing = drawn_in(int(HOLDS[len(HOLDS) // 2]))
    editing.spread()
    found = np.flatnonzero(editing.mask.any(axis=(1, 2)))
    assert found.min() >= HOLDS.min() - 2 and found.max() <= HOLDS.max() + 2
    assert dice(editing.mask, TRUTH) > 0.6


def test_slices_that_no_correction_reaches_stay_as_they_are():
    editing = EditingSession(VOLUME, ENGINE, TRUTH)
    editing.include([[33, 16, 8]])
    before = editing.mask.copy()
    editing.spread()
    assert np.array_equal(editing.mask, before)


def test_without_a_correction_nothing_is_carried_and_that_is_said():
    change = EditingSession(VOLUME, ENGINE, TRUTH).spread()
    assert not change.slices and change.sentences


def test_what_was_carried_is_not_carried_again():
    editing = drawn_in(7)
    editing.spread()
    before = editing.mask.copy()
    assert not editing.spread().slices and np.array_equal(editing.mask, before)


@pytest.mark.parametrize("flip", [False, True])
def test_the_way_a_volume_is_stored_changes_nothing(flip):
    turn = np.diag([1.0, -1, -1, 1])
    turn[:3, 3] = [0, SHAPE[1] - 1, SHAPE[0] - 1]
    turned = scan(TRUTH[::-1, ::-1], OBLIQUE @ turn) if flip else VOLUME
    if flip:
        turned = type(VOLUME)(VOLUME.voxels[::-1, ::-1], OBLIQUE @ turn, "MR")
    editing = EditingSession(turned, ENGINE)
    mask = np.zeros_like(TRUTH)
    mask[7] = TRUTH[7]
    editing.redraw(mask[::-1, ::-1] if flip else mask)
    editing.spread()
    found = editing.mask[::-1, ::-1] if flip else editing.mask
    reference = EditingSession(VOLUME, ENGINE)
    reference.redraw(mask)
    reference.spread()
    assert np.array_equal(found, reference.mask)
