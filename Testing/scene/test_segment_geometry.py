"""Masks written into the scene lie where the scan's voxels lie, on any grid and under any transform."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from MedZeroSegSlicer.segment_io import create_segmentation, prepare_segmentation
from MedZeroSegSlicer.segment_voxels import read_segment, write_segment
from scans import SHAPE, block, grid, holds, l_shape, scan, transform, turned, voxels_of, warp

from MedZeroSegLib.errors import InputError
from MedZeroSegLib.extent import Extent, crop, mask_extent

SIGNED_AXES = [
    np.eye(3)[list(order)] * np.array(signs)
    for order in permutations(range(3))
    for signs in product((1.0, -1.0), repeat=3)
]
ANGLES = st.floats(-180, 180, allow_nan=False)
SPACINGS = st.floats(0.2, 6, allow_nan=False)
PLACES = st.floats(-2000, 2000, allow_nan=False)
GRIDS = st.builds(
    grid,
    spacing=st.tuples(SPACINGS, SPACINGS, SPACINGS),
    degrees=st.tuples(ANGLES, ANGLES, ANGLES),
    origin=st.tuples(PLACES, PLACES, PLACES),
    axes=st.sampled_from(SIGNED_AXES),
)


@st.composite
def boxes(draw: st.DrawFn) -> Extent:
    """A box inside the grid, of one voxel up to all of it."""
    ends = [sorted(draw(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)))) for n in SHAPE[::-1]]
    return tuple(index for pair in ends for index in pair)


in_the_scene = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)


def written(volume, mask: np.ndarray):
    """A new segmentation with the mask as its only segment, and the segment's ID."""
    node = create_segmentation(volume)
    segment_id = node.GetSegmentation().AddEmptySegment("", "liver")
    extent = mask_extent(mask)
    write_segment(node, volume, segment_id, crop(mask, extent), extent)
    return node, segment_id


def assert_lies_at(node, segment_id: str, ijk_to_world: np.ndarray, mask: np.ndarray) -> None:
    """The segment holds the world positions of exactly the mask's voxels."""
    every_voxel = np.argwhere(np.ones(SHAPE))[:, ::-1]
    held = holds(node, segment_id, every_voxel @ ijk_to_world[:3, :3].T + ijk_to_world[:3, 3])
    assert np.array_equal(held, mask[tuple(every_voxel[:, ::-1].T)])


@in_the_scene
@given(ijk_to_ras=GRIDS)
def test_mask_returns_on_the_grid_it_was_written_on(scene, ijk_to_ras):
    scene.Clear()
    volume = scan(ijk_to_ras)
    node, segment_id = written(volume, l_shape())
    assert np.array_equal(voxels_of(node, segment_id, volume), l_shape())
    inside, box = read_segment(node, volume, segment_id)
    assert box == mask_extent(l_shape())
    assert np.array_equal(inside, crop(l_shape(), box))


@in_the_scene
@given(ijk_to_ras=GRIDS, degrees=st.tuples(ANGLES, ANGLES, ANGLES), shift=st.tuples(PLACES, PLACES, PLACES))
def test_voxels_lie_at_the_same_world_positions_under_a_transform(scene, ijk_to_ras, degrees, shift):
    scene.Clear()
    volume, to_world = scan(ijk_to_ras), np.eye(4)
    to_world[:3, :3], to_world[:3, 3] = turned(degrees), shift
    volume.SetAndObserveTransformNodeID(transform(to_world).GetID())
    mask = l_shape()
    node, segment_id = written(volume, mask)
    assert_lies_at(node, segment_id, to_world @ ijk_to_ras, mask)
    assert np.array_equal(voxels_of(node, segment_id, volume), mask)


@in_the_scene
@given(ijk_to_ras=GRIDS, box=boxes())
def test_mask_ends_half_a_voxel_beyond_the_centres_of_its_box(scene, ijk_to_ras, box):
    scene.Clear()
    volume = scan(ijk_to_ras)
    node, segment_id = written(volume, block(box))
    first, last = np.array(box).reshape(3, 2).T
    middle = (first + last) / 2
    for axis in range(3):
        for end, outward in ((first[axis], -1), (last[axis], 1)):
            points = np.tile(middle, (2, 1))
            points[:, axis] = end + outward * np.array([0.49, 0.51])
            world = points @ ijk_to_ras[:3, :3].T + ijk_to_ras[:3, 3]
            assert holds(node, segment_id, world).tolist() == [True, False]


@in_the_scene
@given(box=boxes(), other=boxes())
def test_no_neighbour_changes_whatever_boxes_meet(scene, box, other):
    scene.Clear()
    volume = scan()
    node = create_segmentation(volume)
    inner = node.GetSegmentation()
    first, second = inner.AddEmptySegment("", "mine"), inner.AddEmptySegment("", "liver")
    for segment_id, extent in ((first, box), (second, other)):
        write_segment(node, volume, segment_id, crop(block(extent), extent), extent)
    inner.CollapseBinaryLabelmaps(False)  # as after loading a file: both in one layer where they don't overlap
    write_segment(node, volume, second, crop(l_shape(), mask_extent(l_shape())), mask_extent(l_shape()))
    assert np.array_equal(voxels_of(node, first, volume), block(box))
    assert np.array_equal(voxels_of(node, second, volume), l_shape())


def test_mask_that_fills_the_grid_reaches_every_corner(scene):
    volume = scan()
    everything = np.ones(SHAPE, bool)
    node, segment_id = written(volume, everything)
    assert voxels_of(node, segment_id, volume).all()
    assert read_segment(node, volume, segment_id)[1] == (0, SHAPE[2] - 1, 0, SHAPE[1] - 1, 0, SHAPE[0] - 1)


def test_single_slice_gets_its_mask(scene):
    shape = (1, 14, 17)
    volume = scan(shape=shape)
    node, segment_id = written(volume, block((3, 9, 2, 4, 0, 0), shape))
    assert np.array_equal(voxels_of(node, segment_id, volume), block((3, 9, 2, 4, 0, 0), shape))


@pytest.mark.parametrize("turn", [(0.0, 0.0, 30.0), (12.0, -7.0, 40.0)])
@pytest.mark.parametrize("which", ["volume", "segmentation", "both"])
def test_result_overlays_the_volume_when_a_filled_segmentation_has_another_transform(scene, which, turn):
    """A segmentation that holds the user's segments keeps its transform; the new segment still lies on the volume."""
    volume = scan()
    node, mine = written(volume, block((1, 3, 1, 4, 1, 2)))
    moved = np.eye(4)
    moved[:3, :3], moved[:3, 3] = turned(turn), (12, -7, 3)
    if which != "segmentation":
        volume.SetAndObserveTransformNodeID(transform(moved).GetID())
    if which != "volume":
        node.SetAndObserveTransformNodeID(transform(np.linalg.inv(moved), "other").GetID())
    kept = node.GetTransformNodeID()
    prepare_segmentation(node, volume)
    assert node.GetTransformNodeID() == kept
    segment_id = node.GetSegmentation().AddEmptySegment("", "liver")
    write_segment(node, volume, segment_id, crop(l_shape(), mask_extent(l_shape())), mask_extent(l_shape()))
    matrix = (np.eye(4) if which == "segmentation" else moved) @ grid()
    assert_lies_at(node, segment_id, matrix, l_shape())
    inside, box = read_segment(node, volume, segment_id)
    assert box == mask_extent(l_shape()) and np.array_equal(inside, crop(l_shape(), box))
    labelmap = node.GetBinaryLabelmapInternalRepresentation(mine)
    assert labelmap.GetExtent() == (1, 3, 1, 4, 1, 2)


def test_volume_under_a_warp_is_segmented_on_its_own_grid(scene):
    volume = scan()
    volume.SetAndObserveTransformNodeID(warp().GetID())
    node, segment_id = written(volume, l_shape())
    assert node.GetTransformNodeID() == volume.GetTransformNodeID()
    inside, box = read_segment(node, volume, segment_id)
    assert box == mask_extent(l_shape()) and np.array_equal(inside, crop(l_shape(), box))


def test_warp_between_volume_and_a_filled_segmentation_is_refused(scene):
    volume = scan()
    node, _segment_id = written(volume, l_shape())
    volume.SetAndObserveTransformNodeID(warp().GetID())
    with pytest.raises(InputError, match="A warp lies between .* choose a new segmentation"):
        prepare_segmentation(node, volume)


def test_segmentation_of_surfaces_is_refused(scene):
    volume = scan()
    node, _segment_id = written(volume, l_shape())
    node.CreateClosedSurfaceRepresentation()
    node.SetSourceRepresentationToClosedSurface()
    with pytest.raises(InputError, match="holds surfaces"):
        prepare_segmentation(node, volume)


def test_segment_of_another_volume_keeps_its_voxels_and_grid(scene):
    """Two volumes on different grids, results of both in one segmentation."""
    head, chest = scan(name="head"), scan(grid((1.3, 0.9, 4.0), (5, 40, -80), (3, -9, 77)), name="chest")
    node, first = written(head, l_shape())
    second = node.GetSegmentation().AddEmptySegment("", "lung")
    prepare_segmentation(node, chest)
    write_segment(node, chest, second, crop(l_shape(2), mask_extent(l_shape(2))), mask_extent(l_shape(2)))
    assert np.array_equal(voxels_of(node, first, head), l_shape())
    assert np.array_equal(voxels_of(node, second, chest), l_shape(2))
    assert read_segment(node, chest, first) is None


@pytest.mark.parametrize("mask", [None, np.zeros((2, 3, 4), bool)])
def test_nothing_clears_the_segment(scene, mask):
    volume = scan()
    node, segment_id = written(volume, l_shape())
    write_segment(node, volume, segment_id, mask, (0, 3, 0, 2, 0, 1))
    assert not voxels_of(node, segment_id, volume).any()
    assert read_segment(node, volume, segment_id)[0].size == 0


@pytest.mark.parametrize("box", [(-1, 2, 0, 2, 0, 1), (14, 17, 0, 2, 0, 1), (0, 3, 0, 1, 0, 1)])
def test_mask_and_box_that_contradict_the_grid_are_refused(scene, box):
    volume = scan()
    node, segment_id = written(volume, l_shape())
    with pytest.raises(ValueError, match="box"):
        write_segment(node, volume, segment_id, np.ones((2, 3, 4), bool), box)
    assert np.array_equal(voxels_of(node, segment_id, volume), l_shape())
