"""What the panel chooses by itself: the image to begin with, and the result that belongs to an image."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .segment_io import provenance_of
from .volumes import describe_volume


def likely_volume(scene: Any, active_id: str | None) -> Any:
    """The active volume, else the first that can be segmented, else the first; None without any."""
    volumes = list(_nodes(scene, "vtkMRMLScalarVolumeNode"))
    volumes.sort(key=lambda node: node.GetID() != active_id)
    states = ((volume, describe_volume(volume, wait=False)) for volume in volumes)
    usable = (volume for volume, state in states if state.usable or state.looking)
    return next(usable, volumes[0] if volumes else None)


def belongs_to(segmentation: Any, volume: Any) -> bool:
    """Whether a segmentation, or None, was made on a volume's grid."""
    if segmentation is None:
        return False
    return segmentation.GetNodeReference(segmentation.GetReferenceImageGeometryReferenceRole()) is volume


def result_of(volume: Any) -> Any:
    """The newest segmentation on a volume's grid that holds segments of ours; None without one."""
    nodes = _nodes(volume.GetScene(), "vtkMRMLSegmentationNode")
    made = [node for node in nodes if belongs_to(node, volume) and _holds_ours(node)]
    return made[-1] if made else None


def _holds_ours(segmentation: Any) -> bool:
    segments = segmentation.GetSegmentation()
    return any(provenance_of(segments.GetNthSegment(number)) for number in range(segments.GetNumberOfSegments()))


def _nodes(scene: Any, kind: str) -> Iterator[Any]:
    return (scene.GetNthNodeByClass(number, kind) for number in range(scene.GetNumberOfNodesByClass(kind)))
