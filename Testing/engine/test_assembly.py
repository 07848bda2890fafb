"""Probabilities on key slices become masks on every slice; sides are the patient's, in every storage of the volume."""

from __future__ import annotations

import numpy as np
import phantoms
import pytest
from analytic import dice, ellipsoid
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from MedZeroSegLib.assembly import (
    VOXELS_MIN,
    KeySlices,
    Midline,
    fill_holes,
    keep_parts,
    leftness,
    midline_of,
    restore_mask,
    sides_visible,
    take_side,
)
from MedZeroSegLib.canvas import Canvas
from MedZeroSegLib.slices import slice_frame
from MedZeroSegLib.volume import Volume

SIDE = 32
PLAIN = Canvas(SIDE, SIDE, SIDE, SIDE, SIDE)

# Two kidneys in a body, canonical array [i, j, k] in LPS: x from -59 to 59 mm, left is x > 0.
BODY_SHAPE, BODY_SPACING = (60, 20, 8), (2.0, 3.0, 6.0)
ORIGIN = (-59.0, -28.5, -21.0)
BODY = ellipsoid(BODY_SHAPE, (29.5, 9.5, 3.5), (29, 9.4, 9))
RADII = (6.0, 4.0, 3.2)
LEFT = ellipsoid(BODY_SHAPE, (29.5 + 20, 9.5, 3.5), RADII)  # at R = -40 mm
RIGHT = ellipsoid(BODY_SHAPE, (29.5 - 20, 9.5, 3.5), RADII)  # at R = +40 mm


def stored(canonical: np.ndarray, storage: phantoms.Storage, rotation: np.ndarray | None = None) -> Volume:
    matrix = phantoms.lps_matrix(BODY_SPACING, ORIGIN, rotation)
    return Volume(storage.store(canonical).T.astype(np.int16), storage.matrix(canonical.shape, matrix), "CT")


def side_of(volume: Volume, storage: phantoms.Storage, whole: np.ndarray, side: str, body: np.ndarray) -> np.ndarray:
    """The side of a canonical mask, computed on the stored volume's slices and brought back to the canonical grid."""
    frame = slice_frame(volume)
    slices = frame.forward(storage.store(whole).T)
    position = leftness(volume, frame)
    midline = midline_of(frame.forward(storage.store(body).T), position, slices)
    taken = frame.inverse(take_side(slices, position, midline, side))
    canonical = np.zeros(whole.shape, bool)
    storage.store(canonical)[...] = taken.T
    return canonical


@pytest.mark.parametrize("storage", list(phantoms.storages()), ids=str)
def test_left_is_the_patients_left_in_all_48_storages(storage):
    whole = LEFT | RIGHT
    volume = stored(whole, storage)
    assert np.array_equal(side_of(volume, storage, whole, "left", BODY), LEFT)
    assert np.array_equal(side_of(volume, storage, whole, "right", BODY), RIGHT)


@pytest.mark.parametrize("storage", list(phantoms.storages())[::5], ids=str)
def test_a_horseshoe_is_cut_in_the_middle_of_the_body(storage):
    horseshoe = ellipsoid(BODY_SHAPE, (29.5, 9.5, 3.5), (24, 4, 3.2))
    volume = stored(horseshoe, storage)
    left, right = (side_of(volume, storage, horseshoe, side, BODY) for side in ("left", "right"))
    assert not (left & right).any()
    assert np.array_equal(left | right, horseshoe)
    assert np.array_equal(left, right[::-1])
    assert np.argwhere(left)[:, 0].min() == 30


def test_sides_hold_in_an_oblique_volume():
    rotation = phantoms.rotation_about((0.2, 0.3, 1.0), 25)
    for storage in list(phantoms.storages())[::7]:
        volume = stored(LEFT | RIGHT, storage, rotation)
        assert np.array_equal(side_of(volume, storage, LEFT | RIGHT, "left", BODY), LEFT)
        assert np.array_equal(side_of(volume, storage, LEFT | RIGHT, "right", BODY), RIGHT)


def test_one_kidney_alone_has_one_side():
    storage = next(phantoms.storages())
    volume = stored(LEFT, storage)
    assert np.array_equal(side_of(volume, storage, LEFT, "left", BODY), LEFT)
    assert not side_of(volume, storage, LEFT, "right", BODY).any()


def test_two_pieces_of_one_kidney_are_on_one_side():
    pieces = LEFT.copy()
    pieces[48:51] = False
    assert ndimage.label(pieces)[1] == 2
    storage = next(phantoms.storages())
    volume = stored(pieces, storage)
    assert np.array_equal(side_of(volume, storage, pieces, "left", BODY), pieces)
    assert not side_of(volume, storage, pieces, "right", BODY).any()


def test_in_a_crop_the_middle_lies_between_the_two_parts():
    """A crop shows no outline of the body; its own middle may be far from the patient's."""
    crop = slice(2, 60)
    whole = (LEFT | RIGHT)[crop]
    position = np.arange(58.0)[None, None, :]
    slices = whole.T
    midline = midline_of(np.ones(slices.shape, bool), position, slices)
    assert midline == Midline(pytest.approx(27.5), True)
    assert np.array_equal(take_side(slices, position, midline, "left"), LEFT[crop].T)


def test_without_outline_and_second_part_the_middle_is_uncertain():
    slices, position = LEFT.T, np.arange(60.0)[None, None, :]
    assert midline_of(np.ones(slices.shape, bool), position, slices) == Midline(pytest.approx(29.5), False)
    assert midline_of(BODY.T, position, slices) == Midline(pytest.approx(29.5), True)


def test_a_small_second_part_does_not_move_the_middle():
    speck = ellipsoid(BODY_SHAPE, (20, 9.5, 3.5), (1.2, 1.2, 1.2))
    position = np.arange(60.0)[None, None, :]
    assert midline_of(BODY.T, position, (LEFT | speck).T).position == pytest.approx(29.5)


@pytest.mark.parametrize(("right_voxels", "left", "right"), [(0, 10, 0), (1, 10, 0), (2, 10, 0), (3, 7, 3), (5, 5, 5)])
def test_a_part_that_hardly_crosses_the_middle_stays_whole(right_voxels, left, right):
    mask = np.zeros((1, 1, 20), bool)
    mask[..., 10 - right_voxels : 20 - right_voxels] = True
    position = np.arange(20.0)[None, None, :]
    midline = Midline(9.5, True)
    assert take_side(mask, position, midline, "left").sum() == left
    assert take_side(mask, position, midline, "right").sum() == right


@settings(deadline=None, max_examples=120)
@given(
    mask=st.lists(st.integers(0, 2**12 - 1), min_size=1, max_size=6).map(
        lambda rows: np.array([[(row >> bit) & 1 for bit in range(12)] for row in rows], bool)[None]
    ),
    middle=st.floats(-1, 12),
)
def test_left_and_right_share_no_voxel_and_lose_none(mask, middle):
    position = np.arange(12.0)[None, None, :]
    left, right = (take_side(mask, position, Midline(middle, True), side) for side in ("left", "right"))
    assert not (left & right).any()
    assert np.array_equal(left | right, mask)


def test_in_a_picture_the_patients_right_is_at_image_left():
    matrix = np.diag([-0.2, 0.2, 1.0, 1.0])  # geometry that a picture's file may state is not the patient's
    volume = Volume(np.arange(200, dtype=np.int16).reshape(1, 10, 20), matrix, "X-ray", dimension=2)
    frame = slice_frame(volume)
    mask = np.zeros((1, 10, 20), bool)
    mask[0, 2:8, 2:7] = mask[0, 2:8, 12:18] = True
    position = leftness(volume, frame)
    midline = midline_of(np.ones(mask.shape, bool), position, mask)
    assert midline == Midline(pytest.approx((4 + 14.5) / 2), True)
    assert np.argwhere(take_side(mask, position, midline, "right"))[:, 2].max() == 6
    assert np.argwhere(take_side(mask, position, midline, "left"))[:, 2].min() == 12


@settings(deadline=None, max_examples=40)
@given(
    storage=st.sampled_from(list(phantoms.storages())),
    axis=st.sampled_from([(0.0, 0.0, 1.0), (0.3, -0.5, 0.8)]),
    degrees=st.sampled_from([0, 20, 90]),
)
def test_leftness_is_the_lps_x_of_each_voxel(storage, axis, degrees):
    canonical = np.zeros((4, 3, 5), np.int16)
    volume = stored(canonical, storage, phantoms.rotation_about(axis, degrees))
    frame = slice_frame(volume)
    indices = np.stack(np.meshgrid(*[np.arange(n) for n in volume.shape], indexing="ij"), -1)[..., ::-1].reshape(-1, 3)
    x = volume.ijk_to_world_lps(indices)[:, 0].reshape(volume.shape)
    position = leftness(volume, frame)
    assert np.broadcast_to(position, frame.forward(x).shape) == pytest.approx(frame.forward(x))


def test_leftness_of_an_upright_volume_takes_no_memory():
    for rotation in (None, phantoms.rotation_about((0, 0, 1), 180)):  # the second has cosines of 1e-16
        volume = Volume(np.zeros((30, 40, 50), np.int16), phantoms.lps_matrix(rotation=rotation), "CT")
        assert leftness(volume, slice_frame(volume)).size == 50


@pytest.mark.parametrize(
    ("shape_ijk", "visible"), [((1, 20, 20), False), ((20, 1, 20), True), ((20, 20, 1), True), ((5, 20, 20), True)]
)
def test_only_a_single_sagittal_slice_has_no_sides(shape_ijk, visible):
    volume = Volume(np.zeros(shape_ijk[::-1], np.int16), phantoms.lps_matrix((1, 1, 1)), "MR")
    frame = slice_frame(volume)
    assert sides_visible(frame, frame.forward(volume.voxels).shape[0]) is visible


def square(value: float = 1.0) -> np.ndarray:
    probability = np.zeros((SIDE, SIDE), np.float16)
    probability[8:20, 5:15] = value
    return probability


def restored(probability: list[np.ndarray], present: list[bool], indices: list[int], count: int) -> np.ndarray:
    keys = KeySlices(np.array(indices), count)
    return restore_mask(np.stack(probability), np.array(present), keys, PLAIN, 0.5)


def test_slices_between_two_key_slices_are_filled_and_those_beyond_are_empty():
    mask = restored([square(), square()], [True, True], [2, 6], 9)
    assert mask.any(axis=(1, 2)).tolist() == [False, False, True, True, True, True, True, False, False]
    assert all(np.array_equal(mask[n], square() > 0) for n in range(2, 7))


def test_towards_a_key_slice_without_the_structure_it_ends_half_way():
    ends = [True, True, True, False, False, False]
    assert restored([square(), square(0.0)], [True, True], [0, 5], 6).any(axis=(1, 2)).tolist() == ends
    assert restored([square(), square()], [True, False], [0, 5], 6).any(axis=(1, 2)).tolist() == ends
    assert restored([square(), square()], [False, True], [0, 5], 6).any(axis=(1, 2)).tolist() == ends[::-1]


def test_a_slice_in_which_the_structure_is_not_present_is_empty_whatever_its_shares():
    mask = restored([square(), square(), square()], [True, False, True], [0, 1, 2], 3)
    assert mask.any(axis=(1, 2)).tolist() == [True, False, True]


def test_a_moving_edge_lies_between_its_two_places():
    ramp = np.linspace(1, 0, SIDE, dtype=np.float32)
    first = np.tile(ramp, (SIDE, 1)).astype(np.float16)
    second = np.clip(first + np.float16(0.25), 0, 1).astype(np.float16)
    mask = restored([first, second], [True, True], [0, 2], 3)
    widths = mask[:, 0].sum(1)
    assert widths[0] < widths[1] < widths[2]
    assert abs(widths[1] - (widths[0] + widths[2]) / 2) <= 1


def test_masks_have_the_size_of_the_slice():
    canvas = Canvas(height=20, width=60, rows=11, columns=32, size=32)
    probability = np.zeros((1, 64, 64), np.float16)
    probability[0, :22, 32:] = 1  # the right half of the slice
    mask = restore_mask(probability, np.array([True]), KeySlices(np.array([0]), 1), canvas, 0.5)
    assert mask.shape == (1, 20, 60)
    expected = np.zeros((20, 60), bool)
    expected[:, 30:] = True
    assert dice(mask[0], expected) > 0.95


@given(indices=st.sets(st.integers(0, 30), min_size=1), count=st.integers(31, 35))
def test_every_slice_lies_between_its_nearest_key_slices(indices, count):
    chosen = np.array(sorted(indices))
    keys = KeySlices(chosen, count)
    for index in range(count):
        between = keys.neighbours(index)
        if index < chosen[0] or index > chosen[-1]:
            assert between is None
        else:
            before, after, weight = between
            assert chosen[before] <= index <= chosen[after]
            assert after - before == (0 if index in indices else 1)
            assert (1 - weight) * chosen[before] + weight * chosen[after] == pytest.approx(index)


def test_the_usual_step_is_not_that_to_the_last_slice():
    assert KeySlices(np.array([0, 5, 10, 15, 16]), 20).step == 5
    assert KeySlices(np.array([3]), 20).step == 20
    assert KeySlices(np.array([], int), 20).step == 20


def blocks(*sizes: int) -> np.ndarray:
    """One slice of 1-pixel-high bars of the given lengths, two rows apart."""
    mask = np.zeros((1, 2 * len(sizes), max(sizes)), bool)
    for n, size in enumerate(sizes):
        mask[0, 2 * n, :size] = True
    return mask


def parts_kept(mask, parts):
    """The mask after `keep_parts`, which changes what it is given."""
    kept = mask.copy()
    keep_parts(kept, parts)
    return kept


def holes_filled(mask):
    """The mask after `fill_holes`."""
    filled = mask.copy()
    fill_holes(filled)
    return filled


@pytest.mark.parametrize(
    ("sizes", "parts", "kept"),
    [
        ((40, 30, 20), 1, [40]),
        ((20, 40, 30), 2, [40, 30]),
        ((40, 30, 20), 0, [40, 30, 20]),
        ((40, 30, 20), 9, [40, 30, 20]),
        ((200, 30, 10), 9, [200, 30]),
        ((200, 30, 10), 0, [200, 30, 10]),
        ((VOXELS_MIN, VOXELS_MIN - 1), 0, [VOXELS_MIN]),
        ((VOXELS_MIN - 1,), 1, []),
    ],
)
def test_as_many_parts_stay_as_a_structure_has_and_no_specks(sizes, parts, kept):
    one = blocks(*sizes)
    mask = parts_kept(np.concatenate((one, np.zeros_like(one))), parts)
    assert sorted((int(n) for n in mask.sum(2).ravel() if n), reverse=True) == kept


def test_in_a_single_slice_the_pieces_of_one_part_stay():
    mask = parts_kept(blocks(40, 30, 3), 1)
    assert sorted((int(n) for n in mask.sum(2).ravel() if n), reverse=True) == [40, 30]


def test_voxels_that_touch_at_a_corner_are_one_part():
    diagonal = np.eye(VOXELS_MIN, dtype=bool)[None]
    assert np.array_equal(parts_kept(diagonal, 1), diagonal)
    apart = np.kron(np.eye(5, dtype=bool), np.array([[True, False], [False, False]]))[None]
    assert not parts_kept(apart, 0).any()


def test_nothing_stays_nothing():
    empty = np.zeros((2, 5, 5), bool)
    assert not parts_kept(empty, 1).any()
    assert not holes_filled(empty).any()


def test_small_holes_are_closed_slice_by_slice():
    mask = np.zeros((3, 20, 20), bool)
    mask[1, 4:16, 4:16] = True
    mask[1, 8:10, 8:10] = False
    mask[2, 4:16, 4:16] = True
    mask[2, 8:10, 4:10] = False  # open to the outside
    filled = holes_filled(mask)
    assert filled[1, 4:16, 4:16].all()
    assert np.array_equal(filled[2], mask[2])
    assert not filled[0].any()


def test_a_cavity_is_not_a_hole():
    """The skull isn't the brain: what is large beside the structure stays open."""
    row, column = np.indices((40, 40)) - 19.5
    distance = np.hypot(row, column)
    skull = ((distance < 18) & (distance > 13))[None]
    porous = skull.copy()
    porous[0, 19:21, 3:5] = False
    assert np.array_equal(holes_filled(porous), skull)


def test_more_components_than_16_bits_can_number_are_told_apart():
    specks = np.zeros((60, 100, 100), bool)
    specks[::2, ::2, ::2] = True  # 75,000
    specks[0, :9, :9] = True
    kept = parts_kept(specks, 1)
    assert kept[0, :9, :9].all() and kept.sum() == 81
