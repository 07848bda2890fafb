"""Regions drawn as markups, wherever they and the volume have been moved, and the voxels that they hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

slicer = pytest.importorskip("slicer", reason="slicer-core has no wheel for this Python")
vtk = pytest.importorskip("vtk")

from MedZeroSegSlicer.region_of_interest import region_of  # noqa: E402

from MedZeroSegLib.errors import InputError  # noqa: E402

SHAPE = (7, 9, 12)  # k, j, i
CENTRE = np.array([5.5, 4.0, 3.0])  # i, j, k


def oblique() -> np.ndarray:
    """IJK to RAS mm, 1.1 x 1.7 x 4 mm, turned about two axes, left-handed."""
    turn = vtk.vtkTransform()
    turn.Translate(33, -21, 8)
    turn.RotateX(24)
    turn.RotateZ(-38)
    return slicer.util.arrayFromVTKMatrix(turn.GetMatrix()) @ np.diag([-1.1, 1.7, 4.0, 1.0])


@pytest.fixture
def volume(scene):
    import slicer.util

    return slicer.util.addVolumeFromArray(np.zeros(SHAPE, np.int16), oblique(), "MR")


def moved(node, degrees: float, shift: tuple[float, float, float]):
    """A node under a linear transform of its own."""
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    turn = vtk.vtkTransform()
    turn.Translate(*shift)
    turn.RotateY(degrees)
    transform.SetMatrixTransformToParent(turn.GetMatrix())
    node.SetAndObserveTransformNodeID(transform.GetID())
    return transform


def roi_at(centre, size, axes=None):
    """A region around a point of the world; its axes are those of the world, or the columns of a matrix."""
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "region")
    node.SetCenter([0.0, 0.0, 0.0])
    node.SetSize(*size)
    matrix = np.eye(4)
    if axes is not None:
        matrix[:3, :3] = axes
    matrix[:3, 3] = centre
    node.SetAndObserveObjectToNodeMatrix(slicer.util.vtkMatrixFromArray(matrix))
    return node


def to_world(volume) -> np.ndarray:
    """IJK to world RAS mm of a volume under linear transforms."""
    matrix = vtk.vtkMatrix4x4()
    slicer.vtkMRMLTransformNode.GetMatrixTransformBetweenNodes(volume.GetParentTransformNode(), None, matrix)
    ijk_to_ras = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(ijk_to_ras)
    return slicer.util.arrayFromVTKMatrix(matrix) @ slicer.util.arrayFromVTKMatrix(ijk_to_ras)


def holds(roi, point) -> bool:
    """Whether a point of the world lies in the region as Slicer draws it."""
    to_world = slicer.util.arrayFromVTKMatrix(roi.GetObjectToWorldMatrix())
    own = np.linalg.solve(to_world, [*point, 1])[:3]
    return bool((np.abs(own) <= np.array(roi.GetSize()) / 2 + 1e-9).all())


def by_slicer(roi, volume) -> np.ndarray:
    """Which voxels' centres lie in the region, bool [k, j, i]."""
    world, inside = to_world(volume), np.zeros(SHAPE, bool)
    for k, j, i in np.ndindex(SHAPE):
        inside[k, j, i] = holds(roi, (world @ [i, j, k, 1])[:3])
    return inside


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    angles=st.tuples(*3 * [st.floats(-90, 90)]),
    size=st.tuples(st.floats(3, 14), st.floats(3, 14), st.floats(4.5, 20)),
    shift=st.tuples(*3 * [st.floats(-3, 3)]),
    transformed=st.booleans(),
)
def test_region_holds_the_voxels_that_slicer_says_it_holds(scene, angles, size, shift, transformed):
    scene.Clear()
    volume = slicer.util.addVolumeFromArray(np.zeros(SHAPE, np.int16), oblique(), "MR")
    if transformed:
        moved(volume, 31.0, (5.0, -9.0, 2.5))
    turn = vtk.vtkTransform()
    turn.RotateX(angles[0])
    turn.RotateY(angles[1])
    turn.RotateZ(angles[2])
    axes = slicer.util.arrayFromVTKMatrix(turn.GetMatrix())[:3, :3]
    roi = roi_at((to_world(volume) @ [*CENTRE, 1])[:3] + shift, size, axes)
    wanted = by_slicer(roi, volume)
    found = region_of(roi, volume).mask(SHAPE)
    assert np.count_nonzero(found != wanted) <= 1, "only a centre on the very face may differ"


def test_region_along_the_grid_is_its_box(volume):
    axes = to_world(volume)[:3, :3] / np.linalg.norm(to_world(volume)[:3, :3], axis=0)
    roi = roi_at((to_world(volume) @ [5, 4, 3, 1])[:3], (6 * 1.1, 4 * 1.7, 2 * 4.0), axes)
    region = region_of(roi, volume)
    assert region.box == (2, 8, 2, 6, 2, 4) and region.ijk_to_unit is None
    assert np.array_equal(region.mask(SHAPE), by_slicer(roi, volume))


def test_region_under_a_transform_of_its_own(volume):
    roi = roi_at((0, 0, 0), (9, 7, 11))
    moved(volume, 31.0, (5.0, -9.0, 2.5))
    moved(roi, -17.0, tuple((to_world(volume) @ [*CENTRE, 1])[:3]))
    wanted = by_slicer(roi, volume)
    assert wanted.sum() > 20 and np.array_equal(region_of(roi, volume).mask(SHAPE), wanted)


def test_region_larger_than_the_volume_is_all_of_it(volume):
    roi = roi_at((to_world(volume) @ [*CENTRE, 1])[:3], (500, 500, 500))
    assert region_of(roi, volume).mask(SHAPE).all()


def test_region_thinner_than_a_slice_takes_the_nearest(volume):
    axes = to_world(volume)[:3, :3] / np.linalg.norm(to_world(volume)[:3, :3], axis=0)
    roi = roi_at((to_world(volume) @ [5, 4, 3.3, 1])[:3], (6 * 1.1, 4 * 1.7, 0.5), axes)
    assert region_of(roi, volume).box[4:] == (3, 3)


def test_region_beside_the_volume_is_a_sentence(volume):
    with pytest.raises(InputError, match="region lies outside MR"):
        region_of(roi_at((900, 0, 0), (10, 10, 10)), volume)


def test_region_that_is_not_drawn_yet_is_a_sentence(volume):
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "new")
    with pytest.raises(InputError, match="new is not drawn yet"):
        region_of(node, volume)


def test_region_of_a_warped_volume_is_the_box_around_it(volume):
    points = vtk.vtkPoints()
    for point in ((0, 0, 0), (60, 0, 0), (0, 60, 0), (0, 0, 60)):
        points.InsertNextPoint(*point)
    shifted = vtk.vtkPoints()
    for index in range(4):
        x, y, z = points.GetPoint(index)
        shifted.InsertNextPoint(x + 4 * (index == 1), y - 3, z + 2)
    spline = vtk.vtkThinPlateSplineTransform()
    spline.SetSourceLandmarks(points)
    spline.SetTargetLandmarks(shifted)
    spline.SetBasisToR()
    warp = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode", "warp")
    warp.SetAndObserveTransformToParent(spline)
    volume.SetAndObserveTransformNodeID(warp.GetID())
    between = vtk.vtkGeneralTransform()
    slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(warp, None, between)
    centre = between.TransformPoint((oblique() @ [*CENTRE, 1])[:3])
    roi = roi_at(centre, (9, 8, 10))
    found = region_of(roi, volume)
    inside = np.zeros(SHAPE, bool)
    for k, j, i in np.ndindex(SHAPE):
        inside[k, j, i] = holds(roi, between.TransformPoint((oblique() @ [i, j, k, 1])[:3]))
    assert found.ijk_to_unit is None and inside.sum() > 20
    assert not (inside & ~found.mask(SHAPE)).any()
