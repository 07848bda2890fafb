"""A region that the user has drawn as a markups ROI, turned and moved as it may be, as a region of a volume's grid."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np

from MedZeroSegLib.errors import InputError
from MedZeroSegLib.region import Region

from .translation import _

EDGE = 1e-3  # of a voxel; a voxel's centre that lies on the region's face belongs to it
WARPED_POINTS = 9  # along each axis of the region, where a warp lies between it and the volume


def region_of(roi_node: Any, volume_node: Any, grid_node: Any = None) -> Region:
    """The voxels of a volume whose centres lie in a vtkMRMLMarkupsROINode, and the box around them.

    Parameters
    ----------
    grid_node : what a sequence holds for a frame of the volume; its grid is taken, under the volume's transform.

    Raises
    ------
    InputError
        When it isn't drawn yet, or lies outside the volume.
    """
    half = np.array(roi_node.GetSize()) / 2
    if roi_node.GetNumberOfControlPoints() == 0 or not half.all():
        text = _("The region {name} is not drawn yet: place it in a view, or choose none.")
        raise InputError(text.format(name=roi_node.GetName()))
    to_ijk, is_linear = _object_to_ijk(roi_node, volume_node, grid_node or volume_node)
    count = 2 if is_linear else WARPED_POINTS
    along = [np.linspace(-length, length, count) for length in half]
    points = np.array([to_ijk(point) for point in product(*along)])
    size = (grid_node or volume_node).GetImageData().GetDimensions()
    first, last = _indices(points.min(0), points.max(0))
    i0, j0, k0 = (int(index) for index in np.maximum(first, 0))
    i1, j1, k1 = (int(index) for index in np.minimum(last, np.array(size) - 1))
    region = Region((i0, i1, j0, j1, k0, k1), _to_unit(to_ijk, half) if is_linear else None)
    if not region.lies_in(size[::-1]):
        text = _("The region {name} lies outside {volume}: move it, or choose none.")
        raise InputError(text.format(name=roi_node.GetName(), volume=volume_node.GetName()))
    return region


def _object_to_ijk(roi_node: Any, volume_node: Any, grid_node: Any) -> tuple[Any, bool]:
    """The way from the region's own axes, in mm, to indices; and whether it is a matrix."""
    import slicer
    import slicer.util
    import vtk

    matrix, between, linear = vtk.vtkMatrix4x4(), vtk.vtkGeneralTransform(), vtk.vtkTransform()
    kind = slicer.vtkMRMLTransformNode
    kind.GetTransformBetweenNodes(roi_node.GetParentTransformNode(), volume_node.GetParentTransformNode(), between)
    grid_node.GetRASToIJKMatrix(matrix)
    ras_to_ijk = slicer.util.arrayFromVTKMatrix(matrix)
    to_ras = slicer.util.arrayFromVTKMatrix(roi_node.GetObjectToNodeMatrix())
    if kind.IsGeneralTransformLinear(between, linear):
        whole = ras_to_ijk @ slicer.util.arrayFromVTKMatrix(linear.GetMatrix()) @ to_ras
        return (lambda point: (whole @ [*point, 1])[:3]), True
    return (lambda point: (ras_to_ijk @ [*between.TransformPoint((to_ras @ [*point, 1])[:3]), 1])[:3]), False


def _indices(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and last index whose voxel's centre lies between; a region thinner than a slice takes the nearest."""
    first, last = np.ceil(low - EDGE), np.floor(high + EDGE)
    thin = last < first
    middle = np.rint((low + high) / 2)
    return np.where(thin, middle, first), np.where(thin, middle, last)


def _to_unit(to_ijk: Any, half: np.ndarray) -> tuple[tuple[float, ...], ...] | None:
    """Matrix from indices to the region's axes, -1 to 1; None where these run along those of the grid."""
    origin = to_ijk(np.zeros(3))
    axes = np.array([to_ijk(row) - origin for row in np.diag(half)]).T
    if (np.abs(axes) > EDGE).sum() == 3:
        return None
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = axes, origin
    return tuple(tuple(float(number) for number in row) for row in np.linalg.inv(matrix))
