"""Agreement of masks, against cases that can be computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from MedZeroSegLib.evaluation.metrics import TOLERANCE, Agreement, agreement, metric_spacing, surface_dice
from MedZeroSegLib.volume import Volume

UNIT = (1.0, 1.0, 1.0)


def box(shape: tuple[int, int, int], k: tuple[int, int], j: tuple[int, int], i: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[slice(*k), slice(*j), slice(*i)] = True
    return mask


def square(rows: tuple[int, int], columns: tuple[int, int]) -> np.ndarray:
    return box((1, 40, 40), (0, 1), rows, columns)


def test_both_empty_is_a_true_negative_without_measures():
    empty = np.zeros((3, 8, 8), bool)
    assert agreement(empty, empty, UNIT) == Agreement(False, False, None, None, None)


def test_one_empty_counts_zero_whichever_it_is():
    empty, full = np.zeros((3, 8, 8), bool), box((3, 8, 8), (1, 2), (2, 5), (2, 5))
    diagonal = float(np.linalg.norm((3 * 4.0, 8, 8)))  # mm
    assert agreement(full, empty, (4.0, 1.0, 1.0)) == Agreement(True, False, 0.0, 0.0, 0.0, diagonal, 0.0)
    assert agreement(empty, full, (4.0, 1.0, 1.0)) == Agreement(False, True, 0.0, 0.0, 0.0, diagonal, None)


def test_equal_masks_agree_fully():
    mask = box((6, 9, 9), (1, 4), (2, 7), (3, 8))
    assert agreement(mask, mask.copy(), (3.0, 0.7, 0.7)) == Agreement(True, True, 1.0, 1.0, 1.0, 0.0, 1.0)


def test_hausdorff_distance_is_in_mm_across_thick_slices():
    one, moved = box((10, 12, 12), (2, 6), (3, 9), (3, 9)), box((10, 12, 12), (3, 7), (3, 9), (3, 9))
    assert agreement(one, moved, (5.0, 1.0, 1.0)).hd95 == pytest.approx(5.0)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_are_counted_where_the_reference_is_and_only_there(axis):
    reference, predicted = box((6, 9, 9), (1, 4), (2, 6), (3, 7)), box((6, 9, 9), (2, 6), (2, 6), (3, 7))
    order = np.argsort((axis, *(other for other in range(3) if other != axis)))
    turned = [np.transpose(mask, order) for mask in (reference, predicted)]
    agreed = agreement(*turned, UNIT, axis)
    assert agreed.slice_dice == pytest.approx(2 / 3)  # slices 1, 2, 3: missed, right, right
    assert agreed.dice == pytest.approx(2 * 2 / (3 + 4))


def test_a_square_moved_by_one_pixel():
    agreed = agreement(square((5, 10), (5, 10)), square((5, 10), (6, 11)), UNIT)
    assert agreed.dice == pytest.approx(2 * 20 / (25 + 25))
    assert agreed.iou == pytest.approx(20 / 30)
    assert agreed.nsd == 1.0
    exactly = surface_dice(square((5, 10), (5, 10)), square((5, 10), (6, 11)), UNIT, tolerance=0.0)
    assert 0.4 < exactly < 0.6  # about half of each outline is shared


def test_a_slice_is_measured_by_its_outline_not_by_its_faces():
    inner, outer = square((13, 20), (13, 20)), square((10, 23), (10, 23))  # outlines 3 pixels apart everywhere
    assert surface_dice(inner, outer, UNIT) == 0.0
    assert surface_dice(inner, outer, UNIT, tolerance=3.0) > 0.7  # all but the outer corners
    repeated = [np.repeat(mask, 9, axis=0) for mask in (inner, outer)]
    assert surface_dice(*repeated, UNIT) > 0.0  # the faces of a volume do agree


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_thin_axis_may_be_any(axis):
    one, other = square((5, 15), (5, 15))[0], square((5, 15), (8, 18))[0]
    flat = surface_dice(one[None], other[None], UNIT)
    assert 0 < flat < 1
    assert surface_dice(np.expand_dims(one, axis), np.expand_dims(other, axis), UNIT) == flat


def test_tolerance_is_in_mm_along_each_axis():
    one = square((10, 20), (10, 20))
    lower, further_right = square((11, 21), (10, 20)), square((10, 20), (11, 21))
    spacing = (1.0, 1.0, 3.0)  # rows 1 mm apart, columns 3 mm
    assert surface_dice(one, lower, spacing) == 1.0
    assert surface_dice(one, further_right, spacing) < 0.9


def test_a_volume_moved_by_a_thick_slice_is_off_at_its_ends_only():
    one = box((10, 12, 12), (2, 6), (3, 9), (3, 9))
    moved = box((10, 12, 12), (3, 7), (3, 9), (3, 9))
    assert surface_dice(one, moved, (1.0, 1.0, 1.0)) == 1.0
    thick = surface_dice(one, moved, (5.0, 1.0, 1.0))
    ends, sides = 2 * 36.0, 4 * 6 * 4 * 5.0  # mm² of faces that moved, and of faces that slid along themselves
    assert thick == pytest.approx(1 - ends / (ends + sides), abs=0.12)  # one slice of the sides is off as well
    assert thick < 1 - ends / (ends + sides) + 1e-9


def test_masks_on_different_grids_are_refused():
    with pytest.raises(ValueError, match="reference"):
        agreement(np.ones((1, 4, 4), bool), np.ones((1, 4, 5), bool), UNIT)


def test_spacing_is_that_of_the_volume_where_it_is_known_and_pixels_else():
    matrix = np.diag([0.5, 0.75, 4.0, 1.0])
    voxels = np.arange(24.0).reshape(2, 3, 4)
    assert metric_spacing(Volume(voxels, matrix, "CT")) == (4.0, 0.75, 0.5)
    assert metric_spacing(Volume(voxels, matrix, "CT", calibrated=False)) == (1.0, 1.0, 1.0)


masks = arrays(bool, (3, 6, 6))


@settings(max_examples=40, deadline=None)
@given(masks, masks)
def test_measures_are_symmetric_bounded_and_dice_follows_from_iou(one, other):
    forth, back = agreement(one, other, (2.0, 1.0, 0.5)), agreement(other, one, (2.0, 1.0, 0.5))
    assert (forth.present, forth.found) == (back.found, back.present) == (one.any(), other.any())
    if forth.dice is None:
        assert not one.any() and not other.any()
        return
    assert forth.dice == back.dice == pytest.approx(2 * forth.iou / (1 + forth.iou))
    assert forth.nsd == pytest.approx(back.nsd)
    assert 0 <= forth.nsd <= 1


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 8))
def test_outlines_within_the_tolerance_agree_and_no_others(distance):
    one, other = square((10, 30), (10, 30)), square((10 - distance, 30 + distance), (10 - distance, 30 + distance))
    assert (surface_dice(one, other, UNIT) > 0.5) == (distance <= TOLERANCE)
