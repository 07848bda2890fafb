"""The one door between the engine's masks and a vtkMRMLSegmentationNode: only the box of a mask goes through, beside
what the user already made, which is never touched. To be called from Slicer's main thread."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from MedZeroSegLib.errors import InputError
from MedZeroSegLib.extent import EMPTY_EXTENT, Extent, crop, mask_extent, mask_sha256
from MedZeroSegLib.segment_tags import PROVENANCE_TAG, TERMINOLOGY_TAG, provenance_text, segment_tags

from .scene_undo import SceneUndo
from .terminology import code_of, entry_in_slicer
from .translation import _

__all__ = [
    "SceneUndo",
    "add_result",
    "create_segmentation",
    "prepare_segmentation",
    "keep_provenance",
    "provenance_of",
    "read_on_grid",
    "read_segment",
    "write_segment",
]

FILL_OPACITY = 0.4  # with an outline; the anatomy stays visible under the mask
DOUBT_DIGITS = 3  # kept of a slice's doubt, 0..1
GRID_TOLERANCE = 1e-4  # of a voxel; the digits that a grid may lose in a file
FRESH_STATUSES = ("NotStarted", "InProgress")  # any other status is the user's word


def create_segmentation(volume_node: Any) -> Any:
    """A new segmentation for the results of a volume, named after it, with fill and outline visible."""
    scene = volume_node.GetScene()
    name = scene.GetUniqueNameByString(f"{volume_node.GetName()} MedZeroSeg")
    segmentation_node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
    prepare_segmentation(segmentation_node, volume_node)
    segmentation_node.GetDisplayNode().SetOpacity2DFill(FILL_OPACITY)
    return segmentation_node


def prepare_segmentation(segmentation_node: Any, volume_node: Any) -> None:
    """Make a segmentation ready for results of a volume; to be called before a run.

    An empty one gets the volume's grid, parent transform and place in the subject hierarchy. One that holds segments
    keeps its own, because another transform would move them; results still go where the volume is.

    Raises
    ------
    InputError
        When results cannot be put into it: it holds surfaces, or a warp lies between it and the volume.
    """
    segmentation = segmentation_node.GetSegmentation()
    if segmentation.GetNumberOfSegments() == 0:
        segmentation_node.SetSourceRepresentationToBinaryLabelmap()
        segmentation_node.SetAndObserveTransformNodeID(volume_node.GetTransformNodeID())
        segmentation_node.SetReferenceImageGeometryParameterFromVolumeNode(volume_node)
    elif segmentation.GetSourceRepresentationName() != _labelmap_name():
        text = _("{name} holds surfaces; choose another segmentation, or a new one, for the result.")
        raise InputError(text.format(name=segmentation_node.GetName()))
    _ijk_to_segmentation(segmentation_node, volume_node)
    segmentation_node.CreateDefaultDisplayNodes()
    _place_beside(segmentation_node, volume_node)


def _place_beside(segmentation_node: Any, volume_node: Any) -> None:
    """Put it under the volume's parent in the subject hierarchy, unless the user has already given it a place."""
    import slicer

    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(volume_node.GetScene())
    item, of_volume = hierarchy.GetItemByDataNode(segmentation_node), hierarchy.GetItemByDataNode(volume_node)
    if not of_volume:
        return
    parent = hierarchy.GetItemParent(of_volume)
    if not item:
        hierarchy.CreateItem(parent, segmentation_node)
    elif hierarchy.GetItemParent(item) == hierarchy.GetSceneItemID():
        hierarchy.SetItemParent(item, parent)


# Voxels


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
    inside = None if mask is None else _as_bool(mask)
    if inside is None or not inside.any():
        logic.ClearSegment(segmentation_node, segment_id)
        return
    image = _box_image(segmentation_node, volume_node, inside, box)
    segmentation = segmentation_node.GetSegmentation()
    # In a layer that segments share, Slicer would write all of the layer anew: slow, and on another grid not the same.
    segmentation.SeparateSegmentLabelmap(segment_id)
    if not logic.SetBinaryLabelmapToSegment(image, segmentation_node, segment_id, logic.MODE_REPLACE, list(box)):
        raise RuntimeError(f"Slicer refused the labelmap of segment {segment_id}")


def read_segment(segmentation_node: Any, volume_node: Any, segment_id: str) -> tuple[np.ndarray, Extent] | None:
    """The voxels of a segment, bool [k, j, i], in the smallest box that holds them, on the volume's grid.

    None when the segment lies on another grid, so that it could only be resampled.
    """
    held = _labels_on_grid(segmentation_node, volume_node, segment_id)
    if held is None:
        return None
    labels, whole, label = held
    mask = labels == label
    extent = mask_extent(mask)
    if extent == EMPTY_EXTENT:
        return np.zeros((0, 0, 0), bool), EMPTY_EXTENT
    return crop(mask, extent), _moved(extent, np.array(whole[::2]))


def _labels_on_grid(segmentation_node: Any, volume_node: Any, segment_id: str) -> tuple[np.ndarray, Extent, int] | None:
    """What the labelmap of a segment holds, not copied [k, j, i], where that is on the volume's grid, and the segment's
    value in it; None when it lies on another grid."""
    import slicer.util
    import vtk
    from vtk.util.numpy_support import vtk_to_numpy

    labelmap = segmentation_node.GetBinaryLabelmapInternalRepresentation(segment_id)
    if labelmap is None or labelmap.GetPointData().GetScalars() is None or labelmap.GetNumberOfPoints() == 0:
        return np.zeros((0, 0, 0), np.uint8), EMPTY_EXTENT, 1
    matrix = vtk.vtkMatrix4x4()
    labelmap.GetImageToWorldMatrix(matrix)
    grid = _ijk_to_segmentation(segmentation_node, volume_node)
    between = np.linalg.solve(grid, slicer.util.arrayFromVTKMatrix(matrix))  # labelmap's index → volume's index
    shift = np.rint(between[:3, 3]).astype(int)
    if np.abs(between - np.eye(4) - np.pad(shift[:, None], ((0, 1), (3, 0)))).max() > GRID_TOLERANCE:
        return None
    label = segmentation_node.GetSegmentation().GetSegment(segment_id).GetLabelValue()
    labels = vtk_to_numpy(labelmap.GetPointData().GetScalars()).reshape(labelmap.GetDimensions()[::-1])
    return labels, _moved(labelmap.GetExtent(), shift), label


def read_on_grid(segmentation_node: Any, volume_node: Any, segment_id: str) -> tuple[np.ndarray, Extent, bool]:
    """As ``read_segment``, but for any segment, and whether it had to be resampled for it (by the nearest voxels)."""
    voxels = read_segment(segmentation_node, volume_node, segment_id)
    if voxels is not None:
        return *voxels, False
    i, j, k = volume_node.GetImageData().GetDimensions()
    whole: Extent = (0, i - 1, 0, j - 1, 0, k - 1)
    reference = _box_image(segmentation_node, volume_node, np.zeros((k, j, i), bool), whole)
    mask = _resampled(segmentation_node, segment_id, reference, (k, j, i))
    extent = mask_extent(mask)
    return (np.zeros((0, 0, 0), bool) if extent == EMPTY_EXTENT else crop(mask, extent)), extent, True


def _box_image(segmentation_node: Any, volume_node: Any, inside: np.ndarray, box: Extent) -> Any:
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
    image.SetImageToWorldMatrix(slicer.util.vtkMatrixFromArray(_ijk_to_segmentation(segmentation_node, volume_node)))
    return image


def _as_bool(mask: np.ndarray) -> np.ndarray:
    """Where a mask isn't zero; bool masks are taken as they are, for each pass over a large one can be felt."""
    return mask if mask.dtype == bool else mask != 0


def _ijk_to_segmentation(segmentation_node: Any, volume_node: Any) -> np.ndarray:
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


def _labelmap_name() -> str:
    import slicer

    return slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName()


def _moved(extent: Extent, offset: np.ndarray) -> Extent:
    i0, i1, j0, j1, k0, k1 = (int(index + offset[n // 2]) for n, index in enumerate(extent))
    return i0, i1, j0, j1, k0, k1


# Results


def add_result(
    segmentation_node: Any, volume_node: Any, event: Mapping[str, Any], stay_out: bool = False
) -> str | None:
    """Put the structure of a "segment" event into the scene.

    A segment that an earlier run made for the same name in the same region of the same image is replaced, if nobody has
    edited its voxels, renamed it or set its status since; its color stays. Else the result is a segment of its own.

    Parameters
    ----------
    stay_out : leave out voxels that another segment already has.

    Returns
    -------
    The segment's ID; None when there is nothing to write: not found, volume or segmentation gone, or all voxels
    belong to other segments.
    """
    # Not the same scene: each sequence keeps its frames in one of its own.
    are_there = volume_node.GetScene() is not None and segmentation_node.GetScene() is not None
    if not event["found"] or not are_there:
        return None
    inside = _as_bool(np.load(event["mask"], mmap_mode="r", allow_pickle=False))
    box: Extent = tuple(event["box"])
    record = dict(event["provenance"])
    name = record.setdefault("name", event["name"])
    if event.get("slice_doubt") is not None:
        doubt = [round(float(value), DOUBT_DIGITS) for value in event["slice_doubt"]]
        record.update(slice_axis=event["slice_axis"], slice_doubt=doubt)
    earlier = _replaceable(segmentation_node, volume_node, record)
    if stay_out:
        record["stays_out_of_other_segments"] = True
        inside = inside & ~_taken(segmentation_node, volume_node, box, inside.shape, apart_from=earlier)
    if stay_out or "mask_sha256" not in record:  # else the engine's, of this very mask in its smallest box
        tight = mask_extent(inside)
        if tight == EMPTY_EXTENT:
            return None
        inside, box = crop(inside, tight), _moved(tight, np.array(box[::2]))
        record["mask_sha256"] = mask_sha256(inside, box)
    with _one_modification(segmentation_node):
        if earlier is not None:
            write_segment(segmentation_node, volume_node, earlier, inside, box)
            _set_tags(segmentation_node, earlier, record, event)
            return earlier
        return _new_segment(segmentation_node, volume_node, name, inside, box, record, event)


def _new_segment(
    segmentation_node: Any, volume_node: Any, name: str, inside: np.ndarray, box: Extent,
    record: Mapping[str, Any], event: Mapping[str, Any],
) -> str:  # fmt: skip
    import slicer

    segmentation = segmentation_node.GetSegmentation()
    color = [part / 255 for part in event["color"]]
    segment_id = segmentation.AddEmptySegment("", _free_name(segmentation, name), color)
    segment = segmentation.GetSegment(segment_id)
    # Slicer puts an empty segment into the layer of the first one; this one gets a layer of the size of its box.
    segment.SetLabelValue(1)
    segment.AddRepresentation(_labelmap_name(), slicer.vtkOrientedImageData())
    segment.SetNameAutoGenerated(False)
    segment.SetColorAutoGenerated(False)
    try:
        write_segment(segmentation_node, volume_node, segment_id, inside, box)
        _set_tags(segmentation_node, segment_id, record, event)
    except BaseException:
        segmentation.RemoveSegment(segment_id)  # no half segment
        raise
    return segment_id


def _set_tags(segmentation_node: Any, segment_id: str, record: Mapping[str, Any], event: Mapping[str, Any]) -> None:
    segment = segmentation_node.GetSegmentation().GetSegment(segment_id)
    category, code, modifier = (code_of(event[key]) for key in ("category", "code", "modifier"))
    tags = segment_tags(record, True, category, code, modifier)
    if code is None and (entry := entry_in_slicer(record["name"])):
        tags[TERMINOLOGY_TAG] = entry
    for key, value in tags.items():
        segment.SetTag(key, value)


def _free_name(segmentation: Any, name: str) -> str:
    """The name, or with the first number from 2 on that makes it unlike those of all other segments."""
    taken = {segmentation.GetNthSegment(n).GetName() for n in range(segmentation.GetNumberOfSegments())}
    number = 1
    while (free := name if number == 1 else f"{name} {number}") in taken:
        number += 1
    return free


def _replaceable(segmentation_node: Any, volume_node: Any, record: Mapping[str, Any]) -> str | None:
    """ID of the segment that a run with this record made before, if it is still as it was made."""
    segmentation = segmentation_node.GetSegmentation()
    ours = re.compile(re.escape(record["name"]) + r"( \d+)?")
    for segment_id in segmentation.GetSegmentIDs():
        segment = segmentation.GetSegment(segment_id)
        made = provenance_of(segment)
        same = made.get("name") == record["name"] and ours.fullmatch(segment.GetName())
        image, there = made.get("volume_fingerprint"), made.get("region") == record.get("region")
        if not same or not there or not image or image != record.get("volume_fingerprint") or not _is_fresh(segment):
            continue
        if _holds(segmentation_node, volume_node, segment_id, made.get("mask_sha256")):
            return segment_id
    return None


def _holds(segmentation_node: Any, volume_node: Any, segment_id: str, fingerprint: str | None) -> bool:
    """Whether a segment's voxels are those of a `mask_sha256`. As a result is written, its labelmap is the smallest
    box, and one look at it is enough; from a file it may be larger."""
    held = _labels_on_grid(segmentation_node, volume_node, segment_id)
    if held is None or fingerprint is None:
        return False
    if mask_sha256(*held) == fingerprint:
        return True
    voxels = read_segment(segmentation_node, volume_node, segment_id)
    return voxels is not None and mask_sha256(*voxels) == fingerprint


def provenance_of(segment: Any) -> dict[str, Any]:
    """What our tag of a vtkSegment says of how it was made; empty where there is no such tag."""
    import vtk

    text = vtk.reference("")
    if not segment.GetTag(PROVENANCE_TAG, text):
        return {}
    try:
        made = json.loads(str(text))
    except ValueError:
        return {}
    return made if isinstance(made, dict) else {}


def keep_provenance(segment: Any, record: Mapping[str, Any]) -> None:
    """Write a record into our tag of a vtkSegment."""
    segment.SetTag(PROVENANCE_TAG, provenance_text(record))


def _is_fresh(segment: Any) -> bool:
    import slicer

    logic = slicer.vtkSlicerSegmentationsModuleLogic
    return logic.GetSegmentStatus(segment) in [getattr(logic, status) for status in FRESH_STATUSES]


def _taken(
    segmentation_node: Any, volume_node: Any, box: Extent, shape: tuple[int, ...], apart_from: str | None
) -> np.ndarray:
    """Where other segments lie in a box, bool [k, j, i]; those on another grid by their nearest voxels."""
    taken = np.zeros(shape, bool)
    reference = _box_image(segmentation_node, volume_node, taken, box)
    for segment_id in segmentation_node.GetSegmentation().GetSegmentIDs():
        labelmap = segmentation_node.GetBinaryLabelmapInternalRepresentation(segment_id)
        if segment_id == apart_from or labelmap is None or labelmap.GetNumberOfPoints() == 0:
            continue
        taken |= _resampled(segmentation_node, segment_id, reference, shape)
    return taken


def _resampled(segmentation_node: Any, segment_id: str, reference: Any, shape: tuple[int, ...]) -> np.ndarray:
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


@contextmanager
def _one_modification(node: Any) -> Iterator[None]:
    was = node.StartModify()
    try:
        yield
    finally:
        node.EndModify(was)
