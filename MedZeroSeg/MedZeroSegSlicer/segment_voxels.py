"""Voxels of segments on a volume's grid: only the box of a mask goes in and out, and no other segment changes.
To be called from Slicer's main thread."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np

from MedZeroSegLib.errors import InputError
from MedZeroSegLib.extent import EMPTY_EXTENT, Extent, crop, mask_extent

from .translation import _

GRID_TOLERANCE = 1e-4  # of a voxel; the digits that a grid may lose in a file


def write_segment(
    segmentation_node: Any, volume_node: Any, segment_id: str, mask: np.ndarray | None, box: Extent
) -> None:
    """Replace the voxels of one segment; no other segment changes, and surfaces of the others stay.

    Parameters
    ----------
    mask : array [k, j, i], nonzero inside; only the voxels of ``box``. None clears the segment.
    box : first and last index along i, j, k on the volume's grid, inclusive.

    Raises
    ------
    ValueError
        When mask and box contradict each other or the volume's grid.
    """
    import slicer

    logic = slicer.vtkSlicerSegmentationsModuleLogic
    inside = None if mask is None else as_bool(mask)
    if inside is None or not inside.any():
        logic.ClearSegment(segmentation_node, segment_id)
        return
    image = box_image(segmentation_node, volume_node, inside, box)
    segmentation = segmentation_node.GetSegmentation()
    # In a layer that segments share, Slicer would write all of the layer anew: slow, and on another grid not the same.
    segmentation.SeparateSegmentLabelmap(segment_id)
    if not logic.SetBinaryLabelmapToSegment(image, segmentation_node, segment_id, logic.MODE_REPLACE, list(box)):
        raise RuntimeError(f"Slicer refused the labelmap of segment {segment_id}")


def read_segment(segmentation_node: Any, volume_node: Any, segment_id: str) -> tuple[np.ndarray, Extent] | None:
    """The voxels of a segment, bool [k, j, i], in the smallest box that holds them, on the volume's grid.

    None when the segment lies on another grid, so that it could only be resampled.
    """
    held = labels_on_grid(segmentation_node, volume_node, segment_id)
    if held is None:
        return None
    labels, whole, label = held
    mask = labels == label
    extent = mask_extent(mask)
    if extent == EMPTY_EXTENT:
        return np.zeros((0, 0, 0), bool), EMPTY_EXTENT
    return crop(mask, extent), moved(extent, np.array(whole[::2]))


def labels_on_grid(segmentation_node: Any, volume_node: Any, segment_id: str) -> tuple[np.ndarray, Extent, int] | None:
    """What the labelmap of a segment holds, not copied [k, j, i], where that is on the volume's grid, and the segment's
    value in it; None when it lies on another grid."""
    from vtk.util.numpy_support import vtk_to_numpy

    labelmap = segmentation_node.GetBinaryLabelmapInternalRepresentation(segment_id)
    if labelmap is None or labelmap.GetPointData().GetScalars() is None or labelmap.GetNumberOfPoints() == 0:
        return np.zeros((0, 0, 0), np.uint8), EMPTY_EXTENT, 1
    between = _between_grids(segmentation_node, volume_node, labelmap)
    shift = np.rint(between[:3, 3]).astype(int)
    if np.abs(between - np.eye(4) - np.pad(shift[:, None], ((0, 1), (3, 0)))).max() > GRID_TOLERANCE:
        return None
    label = segmentation_node.GetSegmentation().GetSegment(segment_id).GetLabelValue()
    labels = vtk_to_numpy(labelmap.GetPointData().GetScalars()).reshape(labelmap.GetDimensions()[::-1])
    return labels, moved(labelmap.GetExtent(), shift), label


def _between_grids(segmentation_node: Any, volume_node: Any, labelmap: Any) -> np.ndarray:
    """Index in a labelmap → index in the volume [4, 4]."""
    import slicer.util
    import vtk

    matrix = vtk.vtkMatrix4x4()
    labelmap.GetImageToWorldMatrix(matrix)
    grid = ijk_to_segmentation(segmentation_node, volume_node)
    return np.linalg.solve(grid, slicer.util.arrayFromVTKMatrix(matrix))


def read_on_grid(segmentation_node: Any, volume_node: Any, segment_id: str) -> tuple[np.ndarray, Extent, bool]:
    """As ``read_segment``, but for any segment, and whether it had to be resampled for it (by the nearest voxels)."""
    voxels = read_segment(segmentation_node, volume_node, segment_id)
    if voxels is not None:
        return *voxels, False
    box = segment_box(segmentation_node, volume_node, segment_id)
    if box == EMPTY_EXTENT:
        return np.zeros((0, 0, 0), bool), EMPTY_EXTENT, True
    nothing = np.zeros([box[n + 1] - box[n] + 1 for n in (4, 2, 0)], bool)
    reference = box_image(segmentation_node, volume_node, nothing, box)
    mask = resampled(segmentation_node, segment_id, reference, nothing.shape)
    extent = mask_extent(mask)
    if extent == EMPTY_EXTENT:
        return np.zeros((0, 0, 0), bool), EMPTY_EXTENT, True
    return crop(mask, extent), moved(extent, np.array(box[::2])), True


def segment_box(segmentation_node: Any, volume_node: Any, segment_id: str) -> Extent:
    """A box on the volume's grid that holds a segment, found without looking at its voxels; seldom much too large."""
    labelmap = segmentation_node.GetBinaryLabelmapInternalRepresentation(segment_id)
    if labelmap is None or labelmap.GetNumberOfPoints() == 0:
        return EMPTY_EXTENT
    ends = np.array(labelmap.GetExtent(), float).reshape(3, 2) + (-0.5, 0.5)
    corners = np.stack([*np.meshgrid(*ends), np.ones((2, 2, 2))]).reshape(4, -1)
    seen = (_between_grids(segmentation_node, volume_node, labelmap) @ corners)[:3]
    size = np.array(volume_node.GetImageData().GetDimensions())
    first = np.maximum(np.ceil(seen.min(axis=1) - GRID_TOLERANCE), 0).astype(int)
    last = np.minimum(np.floor(seen.max(axis=1) + GRID_TOLERANCE), size - 1).astype(int)
    if (first > last).any():
        return EMPTY_EXTENT
    (i0, j0, k0), (i1, j1, k1) = first.tolist(), last.tolist()
    return i0, i1, j0, j1, k0, k1


def voxels_stamp(segmentation_node: Any, volume_node: Any, segment_id: str) -> Hashable:
    """Names what ``read_on_grid`` gives now; while it is the same, the segment and the grids are."""
    labelmap = segmentation_node.GetBinaryLabelmapInternalRepresentation(segment_id)
    segment = segmentation_node.GetSegmentation().GetSegment(segment_id)
    times = segment.GetMTime(), labelmap and labelmap.GetMTime(), volume_node.GetImageData().GetMTime()
    return segment_id, *times, ijk_to_segmentation(segmentation_node, volume_node).tobytes()


def box_image(segmentation_node: Any, volume_node: Any, inside: np.ndarray, box: Extent) -> Any:
    """The voxels of a box as vtkOrientedImageData where the segmentation node has them."""
    import slicer
    import vtk
    from vtk.util.numpy_support import numpy_to_vtk

    size = volume_node.GetImageData().GetDimensions()
    if any(first < 0 or last >= n for first, last, n in zip(box[::2], box[1::2], size, strict=True)):
        raise ValueError(f"the box {box} leaves the volume's grid of {size} voxels")
    if inside.shape != tuple(last - first + 1 for first, last in zip(box[-2::-2], box[::-2], strict=True)):
        raise ValueError(f"the mask is {inside.shape} [k, j, i] and doesn't fill the box {box}")
    image = slicer.vtkOrientedImageData()
    image.SetExtent(list(box))
    flat = np.ascontiguousarray(inside).view(np.uint8).ravel()  # bool; its bytes are 0 and 1
    image.GetPointData().SetScalars(numpy_to_vtk(flat, array_type=vtk.VTK_UNSIGNED_CHAR))  # not a copy
    image.SetImageToWorldMatrix(slicer.util.vtkMatrixFromArray(ijk_to_segmentation(segmentation_node, volume_node)))
    return image


def as_bool(mask: np.ndarray) -> np.ndarray:
    """Where a mask isn't zero; bool masks are taken as they are, for each pass over a large one can be felt."""
    return mask if mask.dtype == bool else mask != 0


def ijk_to_segmentation(segmentation_node: Any, volume_node: Any) -> np.ndarray:
    """IJK of the volume → RAS mm inside the segmentation node [4, 4]; the volume's own matrix under one transform."""
    import slicer
    import vtk

    matrix = vtk.vtkMatrix4x4()
    volume_node.GetIJKToRASMatrix(matrix)
    of_volume, of_segmentation = volume_node.GetParentTransformNode(), segmentation_node.GetParentTransformNode()
    if of_volume is not of_segmentation:
        between, linear = vtk.vtkGeneralTransform(), vtk.vtkTransform()
        slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(of_volume, of_segmentation, between)
        if not slicer.vtkMRMLTransformNode.IsGeneralTransformLinear(between, linear):
            text = _("A warp lies between {segmentation} and {volume}; choose a new segmentation for the result.")
            raise InputError(text.format(segmentation=segmentation_node.GetName(), volume=volume_node.GetName()))
        vtk.vtkMatrix4x4.Multiply4x4(linear.GetMatrix(), matrix, matrix)
    return slicer.util.arrayFromVTKMatrix(matrix)


def labelmap_name() -> str:
    import slicer

    return slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName()


def moved(extent: Extent, offset: np.ndarray) -> Extent:
    i0, i1, j0, j1, k0, k1 = (int(index + offset[n // 2]) for n, index in enumerate(extent))
    return i0, i1, j0, j1, k0, k1


def resampled(segmentation_node: Any, segment_id: str, reference: Any, shape: tuple[int, ...]) -> np.ndarray:
    """A segment's voxels on the grid of a vtkOrientedImageData, bool [k, j, i], each by the nearest one."""
    import slicer
    from vtk.util.numpy_support import vtk_to_numpy

    labelmap = segmentation_node.GetBinaryLabelmapInternalRepresentation(segment_id)
    there = slicer.vtkOrientedImageData()
    if not slicer.vtkOrientedImageDataResample.ResampleOrientedImageToReferenceOrientedImage(
        labelmap, reference, there
    ):
        return np.zeros(shape, bool)
    label = segmentation_node.GetSegmentation().GetSegment(segment_id).GetLabelValue()
    return vtk_to_numpy(there.GetPointData().GetScalars()).reshape(shape) == label
