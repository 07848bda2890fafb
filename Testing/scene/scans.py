"""Scans and events for the tests of the scene: asymmetric, on any grid, so that no flip or shift can hide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from MedZeroSegLib.extent import Extent, crop, mask_extent
from MedZeroSegLib.segment_tags import provenance_record

slicer = pytest.importorskip("slicer", reason="slicer-core has no wheel for this Python")
vtk = pytest.importorskip("vtk")
pytest.importorskip("slicer.util")

SHAPE = (9, 14, 17)  # k, j, i
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
LIVER = {"scheme": "SCT", "value": "10200004", "meaning": "Liver"}
STRUCTURE = {"scheme": "SCT", "value": "123037004", "meaning": "Anatomical Structure"}
FINGERPRINT = "f1" * 32


def turned(degrees: tuple[float, float, float]) -> np.ndarray:
    """Rotation [3, 3] about x, then y, then z."""
    a, b, c = np.radians(degrees)
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    about_z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def grid(
    spacing: tuple[float, float, float] = (0.7, 1.1, 2.5),
    degrees: tuple[float, float, float] = (17.0, -11.0, 25.0),
    origin: tuple[float, float, float] = (-101.3, 57.25, 1234.56789),
    axes: np.ndarray | None = None,
) -> np.ndarray:
    """IJK → RAS mm [4, 4]; ``axes`` is a signed permutation [3, 3] applied before the rotation."""
    matrix = np.eye(4)
    matrix[:3, :3] = turned(degrees) @ (np.eye(3) if axes is None else axes) * spacing
    matrix[:3, 3] = origin
    return matrix


def scan(ijk_to_ras: np.ndarray | None = None, shape: tuple[int, int, int] = SHAPE, name: str = "scan") -> Any:
    """A volume node of noise, the same for the same shape."""
    voxels = np.random.default_rng(0).integers(-1000, 1000, shape).astype(np.int16)
    return slicer.util.addVolumeFromArray(voxels, grid() if ijk_to_ras is None else ijk_to_ras, name)


def draw(node: Any, volume: Any, name: str, box: Extent, color: tuple[float, float, float] = (0.1, 0.2, 0.9)) -> str:
    """A segment as a user paints it."""
    from MedZeroSegSlicer.segment_voxels import write_segment

    segment_id = node.GetSegmentation().AddEmptySegment("", name, color)
    write_segment(node, volume, segment_id, crop(block(box), box), box)
    return segment_id


def l_shape(offset: int = 0, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """Arms of 7, 5 and 3 voxels that meet in a corner."""
    mask = np.zeros(shape, bool)
    mask[2, 3, 3 + offset : 10 + offset] = True
    mask[2, 3:8, 3 + offset] = True
    mask[2:5, 3, 3 + offset] = True
    return mask


def block(box: Extent, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """A full box on the grid."""
    mask = np.zeros(shape, bool)
    crop(mask, box)[...] = True
    return mask


def found(folder: Path, name: str, mask: np.ndarray, fingerprint: str = FINGERPRINT, **changes: Any) -> dict[str, Any]:
    """The event that the engine sends for a structure; its mask is written into the folder."""
    extent = mask_extent(mask)
    path = folder / f"mask-{len(list(folder.glob('mask-*.npy')))}.npy"
    np.save(path, crop(mask, extent).astype(np.uint8))
    event = {
        "event": "segment", "index": 0, "typed": name, "name": name, "found": True, "score": 0.8, "box": list(extent),
        "mask": str(path), "code": LIVER, "category": STRUCTURE, "modifier": None, "color": [221, 130, 101],
        "slices": 3, "volume_ml": 1.0, "warnings": [], "trained": True,
        "provenance": {"typed": name, "name": name, "score": 0.8, "volume_fingerprint": fingerprint},
    }  # fmt: skip
    return event | changes


def event_of(folder: Path, segmentation: Any, number: int) -> dict[str, Any]:
    """The event for a segment of an engine's Segmentation, as the command line would have written it to a file."""
    made = segmentation.segments[number]
    codes = {
        key: None if code is None else {"scheme": code.scheme, "value": code.value, "meaning": code.meaning}
        for key, code in (("code", made.code), ("category", made.category), ("modifier", made.modifier))
    }
    return found(
        folder, made.name, made.mask, typed=made.typed, score=made.score, color=list(made.color),
        provenance=provenance_record(made, segmentation), **codes,
    )  # fmt: skip


def transform(matrix: np.ndarray, name: str = "registration") -> Any:
    """A linear transform node."""
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", name)
    node.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(matrix))
    return node


def warp(name: str = "warp") -> Any:
    """A transform node that bends space."""
    spline = vtk.vtkThinPlateSplineTransform()
    source, target = vtk.vtkPoints(), vtk.vtkPoints()
    for point in np.ndindex(2, 2, 2):
        source.InsertNextPoint(*(100.0 * np.array(point)))
        target.InsertNextPoint(*(100.0 * np.array(point) + 3.0 * np.array(point) ** 2 * point[0] * point[1]))
    spline.SetBasisToR()
    spline.SetSourceLandmarks(source)
    spline.SetTargetLandmarks(target)
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode", name)
    node.SetAndObserveTransformToParent(spline)
    return node


def voxels_of(segmentation_node: Any, segment_id: str, volume_node: Any) -> np.ndarray:
    """A segment resampled by Slicer itself to a volume's grid, through world coordinates; bool [k, j, i]."""
    return slicer.util.arrayFromSegmentBinaryLabelmap(segmentation_node, segment_id, volume_node) > 0


def holds(segmentation_node: Any, segment_id: str, world: np.ndarray) -> np.ndarray:
    """Whether world points [n, 3] (RAS mm) lie in a segment: through its own transform and labelmap, nearest voxel."""
    to_world = np.eye(4)
    if segmentation_node.GetParentTransformNode() is not None:
        matrix = vtk.vtkMatrix4x4()
        segmentation_node.GetParentTransformNode().GetMatrixTransformToWorld(matrix)
        to_world = slicer.util.arrayFromVTKMatrix(matrix)
    labelmap = segmentation_node.GetBinaryLabelmapInternalRepresentation(segment_id)
    matrix = vtk.vtkMatrix4x4()
    labelmap.GetImageToWorldMatrix(matrix)
    to_index = np.linalg.inv(to_world @ slicer.util.arrayFromVTKMatrix(matrix))
    indices = np.rint(world @ to_index[:3, :3].T + to_index[:3, 3]).astype(int)
    first, last = np.array(labelmap.GetExtent()).reshape(3, 2).T
    label = segmentation_node.GetSegmentation().GetSegment(segment_id).GetLabelValue()
    return np.array(
        [
            bool(np.all((index >= first) & (index <= last)))
            and labelmap.GetScalarComponentAsDouble(*map(int, index), 0) == label
            for index in indices
        ]
    )


def tags_of(segment: Any) -> dict[str, str]:
    """All tags of a vtkSegment that MedZeroSeg writes."""
    value = vtk.reference("")
    keys = ("MedZeroSeg.Found", "MedZeroSeg.Provenance", "Segmentation.Status", "TerminologyEntry")
    return {key: str(value) for key in keys if segment.GetTag(key, value)}


def names_in(segmentation_node: Any) -> list[str]:
    """Names of the segments in order."""
    inner = segmentation_node.GetSegmentation()
    return [inner.GetNthSegment(number).GetName() for number in range(inner.GetNumberOfSegments())]
