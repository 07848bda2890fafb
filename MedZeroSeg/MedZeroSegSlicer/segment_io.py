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

from .segment_voxels import (
    as_bool,
    box_image,
    ijk_to_segmentation,
    labelmap_name,
    labels_on_grid,
    moved,
    read_segment,
    resampled,
    write_segment,
)
from .terminology import code_of, entry_in_slicer
from .translation import _

FILL_OPACITY = 0.4  # with an outline; the anatomy stays visible under the mask
DOUBT_DIGITS = 3  # kept of a slice's doubt, 0..1
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
    elif segmentation.GetSourceRepresentationName() != labelmap_name():
        text = _("{name} holds surfaces; choose another segmentation, or a new one, for the result.")
        raise InputError(text.format(name=segmentation_node.GetName()))
    ijk_to_segmentation(segmentation_node, volume_node)
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
    inside = as_bool(np.load(event["mask"], mmap_mode="r", allow_pickle=False))
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
        inside, box = crop(inside, tight), moved(tight, np.array(box[::2]))
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
    segment.AddRepresentation(labelmap_name(), slicer.vtkOrientedImageData())
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
    held = labels_on_grid(segmentation_node, volume_node, segment_id)
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
    for segment_id in segmentation_node.GetSegmentation().GetSegmentIDs():
        if segment_id == apart_from:
            continue
        held = labels_on_grid(segmentation_node, volume_node, segment_id)
        if held is None:
            reference = box_image(segmentation_node, volume_node, np.zeros(shape, bool), box)
            taken |= resampled(segmentation_node, segment_id, reference, shape)
            continue
        labels, whole, label = held
        first, last = np.maximum(box[::2], whole[::2]), np.minimum(box[1::2], whole[1::2])
        if (first <= last).all():
            (i0, j0, k0), (i1, j1, k1) = first.tolist(), last.tolist()
            shared: Extent = i0, i1, j0, j1, k0, k1
            theirs = crop(labels, moved(shared, -np.array(whole[::2]))) == label
            part = crop(taken, moved(shared, -np.array(box[::2])))
            np.logical_or(part, theirs, out=part)
    return taken


@contextmanager
def _one_modification(node: Any) -> Iterator[None]:
    was = node.StartModify()
    try:
        yield
    finally:
        node.EndModify(was)
