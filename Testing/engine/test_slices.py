"""Slices look the same however a volume is stored, and masks return to its grid exactly."""

from __future__ import annotations

import numpy as np
import phantoms
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from MedZeroSegLib.slices import SliceFrame, slice_frame
from MedZeroSegLib.volume import Volume


def stored_volume(canonical: np.ndarray, matrix: np.ndarray, storage: phantoms.Storage) -> Volume:
    """A canonical array [i, j, k] stored in another axis order."""
    return Volume(storage.store(canonical).T, storage.matrix(canonical.shape, matrix), "MR")


def plain_volume(spacing: tuple[float, float, float], shape_ijk: tuple[int, int, int], rotation=None) -> Volume:
    return Volume(np.zeros(shape_ijk[::-1], np.int16), phantoms.lps_matrix(spacing, rotation=rotation), "MR")


@pytest.mark.parametrize("storage", list(phantoms.storages()), ids=str)
def test_the_picture_is_the_same_for_all_48_ways_to_store_the_phantom(storage):
    canonical, matrix = phantoms.l_phantom(), phantoms.lps_matrix()
    volume = stored_volume(canonical, matrix, storage)
    frame = slice_frame(volume)
    assert frame.plane == "axial"
    assert frame.spacing == pytest.approx((2.7, 1.1, 0.8))
    slices = frame.forward(volume.voxels)
    assert np.array_equal(slices, canonical.T)  # n to superior, h to posterior, w to the left
    mask = frame.inverse(slices == 100)
    assert np.array_equal(
        phantoms.world_points(mask.T, volume.ijk_to_lps), phantoms.world_points(canonical == 100, matrix)
    )


@settings(max_examples=60, deadline=None)
@given(
    axis=st.tuples(*[st.floats(-1, 1)] * 3).filter(lambda vector: np.linalg.norm(vector) > 0.1),
    degrees=st.one_of(st.floats(-180, 180), st.sampled_from([0, 30, 45, 90, 135, 180])),
    spacing=st.tuples(*[st.sampled_from([0.8, 1.0, 1.1, 3.0])] * 3),
    storage=st.sampled_from(list(phantoms.storages())),
)
def test_oblique_volumes_give_one_picture_in_every_storage(axis, degrees, spacing, storage):
    matrix = phantoms.lps_matrix(spacing, rotation=phantoms.rotation_about(axis, degrees))
    canonical = np.arange(5 * 4 * 3).reshape(5, 4, 3)
    plain = Volume(canonical.T, matrix, "MR")
    stored = stored_volume(canonical, matrix, storage)
    frame, stored_frame = slice_frame(plain), slice_frame(stored)
    assert stored_frame.plane == frame.plane
    assert stored_frame.spacing == pytest.approx(frame.spacing)
    assert np.array_equal(stored_frame.forward(stored.voxels), frame.forward(plain.voxels))
    assert np.array_equal(stored_frame.inverse(stored_frame.forward(stored.voxels)), stored.voxels)


@given(
    order=st.permutations(range(3)),
    flips=st.tuples(*[st.booleans()] * 3),
    shape=st.tuples(*[st.integers(1, 5)] * 3),
)
def test_inverse_undoes_forward_and_both_are_views(order, flips, shape):
    frame = SliceFrame(tuple(order), flips, "axial", (1.0, 1.0, 1.0))
    array = np.arange(np.prod(shape)).reshape(shape)
    slices = frame.forward(array)
    assert np.array_equal(frame.inverse(slices), array)
    assert np.array_equal(frame.forward(frame.inverse(slices)), slices)
    assert np.shares_memory(slices, array) and np.shares_memory(frame.inverse(slices), array)


@pytest.mark.parametrize(
    ("thick", "plane", "down", "right"),
    [
        (2, "axial", (0, 1, 0), (1, 0, 0)),
        (1, "coronal", (0, 0, -1), (1, 0, 0)),
        (0, "sagittal", (0, 0, -1), (0, 1, 0)),
    ],
)
def test_slices_follow_the_thick_axis_and_look_radiological(thick, plane, down, right):
    spacing = tuple(5.0 if axis == thick else 1.0 for axis in range(3))
    volume = plain_volume(spacing, (6, 5, 4))
    frame = slice_frame(volume)
    assert frame.plane == plane
    position = np.stack(np.meshgrid(*[np.arange(size) for size in volume.shape], indexing="ij"))[::-1]  # i, j, k
    world = [frame.forward(component) for component in position]
    assert [int(np.sign(axis[0, 1, 0] - axis[0, 0, 0])) for axis in world] == list(down)
    assert [int(np.sign(axis[0, 0, 1] - axis[0, 0, 0])) for axis in world] == list(right)


def test_near_isotropic_volumes_are_sliced_axially():
    assert slice_frame(plain_volume((1.0, 1.4, 1.0), (4, 4, 4))).plane == "axial"
    assert slice_frame(plain_volume((1.0, 1.5, 1.0), (4, 4, 4))).plane == "coronal"


@pytest.mark.parametrize(
    ("shape", "plane"), [((64, 48, 1), "axial"), ((64, 1, 48), "coronal"), ((1, 64, 48), "sagittal")]
)
def test_a_single_slice_is_found_on_any_axis(shape, plane):
    volume = plain_volume((0.8, 0.8, 5.0), shape)
    frame = slice_frame(volume)
    assert frame.plane == plane
    assert frame.forward(volume.voxels).shape[0] == 1


def test_a_picture_is_taken_as_it_is():
    matrix = np.diag([-0.5, 0.25, 1.0, 1.0])
    volume = Volume(np.arange(12).reshape(1, 3, 4), matrix, "X-ray", dimension=2)
    frame = slice_frame(volume)
    assert frame.plane == "picture"
    assert frame.spacing == (1.0, 0.25, 0.5)
    assert np.array_equal(frame.forward(volume.voxels), volume.voxels)


def test_a_short_axis_stack_keeps_the_right_ventricle_at_image_left():
    # Columns run to the left, posterior and inferior; rows to posterior and inferior; slices towards the apex.
    column, down = np.array([0.66, 0.50, -0.56]), np.array([0.10, 0.68, -0.73])
    down = down - column * (down @ column) / (column @ column)
    rotation = np.stack([column / np.linalg.norm(column), down / np.linalg.norm(down), np.zeros(3)], axis=1)
    rotation[:, 2] = np.cross(rotation[:, 0], rotation[:, 1])
    volume = plain_volume((1.4, 1.4, 8.0), (6, 5, 4), rotation)
    frame = slice_frame(volume)
    assert frame.permutation == (0, 1, 2)
    assert frame.flips[1:] == (False, False)
