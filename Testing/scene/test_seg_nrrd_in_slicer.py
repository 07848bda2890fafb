"""Our .seg.nrrd files, read by Slicer's own vtkMRMLSegmentationStorageNode."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from MedZeroSegLib.segment import Segment, Segmentation
from MedZeroSegLib.vocabulary import ANATOMICAL_STRUCTURE, SIDE_CODES, Code
from MedZeroSegLib.volume import Volume
from MedZeroSegLib.writers import write_segmentation

slicer = pytest.importorskip("slicer", reason="slicer-core has no wheel for this Python")

KIDNEY = Code("SCT", "64033007", "Kidney")
LIVER = Code("SCT", "10200004", "Liver")
SHAPE = (9, 14, 17)  # k, j, i
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def oblique_grid(handedness: float = 1.0) -> np.ndarray:
    """IJK → LPS, turned about two axes, three different spacings, an origin with many digits."""
    a, b = 0.3, -0.2
    turn_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    turn_z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    grid = np.eye(4)
    grid[:3, :3] = turn_x @ turn_z * (0.7, 1.1 / 3, 2.5 * handedness)
    grid[:3, 3] = (-101.3 / 3, 57.25, 1234.56789)
    return grid


def l_shape(offset: int = 0) -> np.ndarray:
    """Arms of 7, 5 and 3 voxels that meet in a corner: no symmetry can hide a flip."""
    mask = np.zeros(SHAPE, bool)
    mask[2, 3, 3 + offset : 10 + offset] = True
    mask[2, 3:8, 3 + offset] = True
    mask[2:5, 3, 3 + offset] = True
    return mask


def segment(name: str, mask: np.ndarray, **changes: object) -> Segment:
    fields: dict = {
        "typed": name, "name": name, "found": bool(mask.any()), "score": 0.75, "mask": mask, "code": None,
        "category": None, "modifier": None, "color": (10, 200, 99), "slices": int(mask.any(axis=(1, 2)).sum()),
    }  # fmt: skip
    return Segment(**(fields | changes))


def segmentation(*segments: Segment, grid: np.ndarray | None = None, dimension: int = 3) -> Segmentation:
    volume = Volume(
        voxels=np.zeros(segments[0].mask.shape, np.int16),
        ijk_to_lps=oblique_grid() if grid is None else grid,
        modality="CT",
        dimension=dimension,
    )
    return Segmentation(
        volume=volume, segments=segments, preset="lite", device="cpu", seconds={}, settings={"threshold": 0.5},
        weights=({"name": "head", "file": "head.safetensors", "sha256": "ab" * 32, "licence": "Apache-2.0"},),
        version="1.2.3",
    )  # fmt: skip


def load(scene: slicer.vtkMRMLScene, result: Segmentation, path: Path) -> slicer.vtkMRMLSegmentationNode:
    """Write, then read with the storage node alone."""
    write_segmentation(result, path)
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "read")
    storage = scene.AddNewNodeByClass("vtkMRMLSegmentationStorageNode")
    storage.SetFileName(str(path))
    assert storage.ReadData(node) == 1
    return node


def volume_node(result: Segmentation) -> slicer.vtkMRMLScalarVolumeNode:
    """The scan as Slicer has it, on its own grid."""
    return slicer.util.addVolumeFromArray(result.volume.voxels.copy(), LPS_TO_RAS @ result.volume.ijk_to_lps, "scan")


def masks_in(node: slicer.vtkMRMLSegmentationNode, result: Segmentation) -> list[np.ndarray]:
    """Each segment resampled by Slicer to the scan's grid, through world coordinates."""
    scan = volume_node(result)
    ids = node.GetSegmentation().GetSegmentIDs()
    return [slicer.util.arrayFromSegmentBinaryLabelmap(node, segment_id, scan) > 0 for segment_id in ids]


def names_in(node: slicer.vtkMRMLSegmentationNode) -> list[str]:
    inner = node.GetSegmentation()
    return [inner.GetNthSegment(number).GetName() for number in range(inner.GetNumberOfSegments())]


def tag(node: slicer.vtkMRMLSegmentationNode, number: int, key: str) -> str | None:
    import vtk

    value = vtk.reference("")
    return str(value) if node.GetSegmentation().GetNthSegment(number).GetTag(key, value) else None


@pytest.mark.parametrize("handedness", [1.0, -1.0])
def test_voxels_lie_where_they_lay_on_an_oblique_grid(scene, tmp_path, handedness):
    result = segmentation(segment("liver", l_shape()), grid=oblique_grid(handedness))
    node = load(scene, result, tmp_path / "a.seg.nrrd")
    (mask,) = masks_in(node, result)
    assert np.array_equal(mask, l_shape())


def test_labelmap_keeps_the_grid_to_the_last_digit(scene, tmp_path):
    import vtk

    result = segmentation(segment("liver", l_shape()))
    node = load(scene, result, tmp_path / "a.seg.nrrd")
    matrix = vtk.vtkMatrix4x4()
    node.GetBinaryLabelmapInternalRepresentation("Segment_1").GetImageToWorldMatrix(matrix)
    # VTK keeps spacing and direction apart, so the product may differ in the last bits.
    assert np.allclose(slicer.util.arrayFromVTKMatrix(matrix), LPS_TO_RAS @ oblique_grid(), rtol=1e-14, atol=1e-14)


def test_reference_geometry_is_the_scan(scene, tmp_path):
    result = segmentation(segment("liver", l_shape()))
    node = load(scene, result, tmp_path / "a.seg.nrrd")
    converter = slicer.vtkSegmentationConverter
    stored = node.GetSegmentation().GetConversionParameter(converter.GetReferenceImageGeometryParameterName())
    image = slicer.vtkOrientedImageData()
    assert converter.DeserializeImageGeometry(stored, image, False)
    assert image.GetDimensions() == SHAPE[::-1]
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume_node(result))
    of_scan = node.GetSegmentation().GetConversionParameter(converter.GetReferenceImageGeometryParameterName())
    numbers = [[float(part) for part in text.split(";") if part] for text in (stored, of_scan)]
    assert np.allclose(*numbers, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("order", [("lung", "tumor"), ("tumor", "lung")])
def test_overlapping_segments_stay_whole_in_either_order(scene, tmp_path, order):
    lung, tumor = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    lung[1:8, 2:12, 2:15] = True
    tumor[3:6, 4:8, 4:9] = True
    masks = {"lung": lung, "tumor": tumor}
    result = segmentation(*(segment(name, masks[name]) for name in order))
    node = load(scene, result, tmp_path / "a.seg.nrrd")
    assert names_in(node) == list(order)
    for name, mask in zip(order, masks_in(node, result), strict=True):
        assert np.array_equal(mask, masks[name]), name


def test_separate_segments_share_a_layer_and_crossing_ones_do_not(scene, tmp_path):
    result = segmentation(segment("a", l_shape()), segment("b", l_shape(1)), segment("c", l_shape(1)[::-1]))
    node = load(scene, result, tmp_path / "a.seg.nrrd")
    assert node.GetSegmentation().GetNumberOfLayers() == 2
    for mask, expected in zip(masks_in(node, result), result.segments, strict=True):
        assert np.array_equal(mask, expected.mask), expected.name


@pytest.mark.parametrize(
    "name", ["Vorhof (Ö)", "左心房", "o\u0308 decomposed", "a|b:c~d^e", 'back\\slash "quoted"', "n\\not a line"]
)
def test_names_and_provenance_come_back_code_point_for_code_point(scene, tmp_path, name):
    folder = tmp_path / "Sättiger 肺 (1) & co"
    result = segmentation(segment(name, l_shape(), typed=f" {name}\n|:"))
    node = load(scene, result, folder / "çt mask.seg.nrrd")
    assert names_in(node) == [name]
    assert json.loads(tag(node, 0, "MedZeroSeg.Provenance"))["typed"] == f" {name}\n|:"


def test_color_terminology_and_status_are_read(scene, tmp_path):
    kidney = segment(
        "left kidney", l_shape(), code=KIDNEY, category=ANATOMICAL_STRUCTURE, modifier=SIDE_CODES["left"],
        color=(185, 102, 83),
    )  # fmt: skip
    liver = segment("liver", l_shape(5), code=LIVER, category=ANATOMICAL_STRUCTURE)
    node = load(scene, segmentation(kidney, liver), tmp_path / "a.seg.nrrd")
    assert np.allclose(node.GetSegmentation().GetNthSegment(0).GetColor(), np.array((185, 102, 83)) / 255)
    entry = slicer.vtkSlicerTerminologyEntry()
    serialised = node.GetSegmentation().GetNthSegment(0).GetTerminology()
    assert slicer.modules.terminologies.logic().DeserializeTerminologyEntry(serialised, entry)
    assert entry.GetTypeObject().GetCodeValue() == "64033007"
    assert entry.GetTypeObject().GetCodeMeaning() == "Kidney"
    assert entry.GetCategoryObject().GetCodeValue() == "123037004"
    assert entry.GetTypeModifierObject().GetCodeValue() == "7771000"
    assert "SCT^10200004^Liver~^^~" in node.GetSegmentation().GetNthSegment(1).GetTerminology()
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    assert logic.GetSegmentStatus(node.GetSegmentation().GetNthSegment(0)) == logic.InProgress


def test_provenance_tells_how_a_segment_was_made(scene, tmp_path):
    made = segment("liver", l_shape(), provenance={"prompts": {"box": [1, 2, 3, 4]}})
    result = segmentation(made)
    node = load(scene, result, tmp_path / "a.seg.nrrd")
    record = json.loads(tag(node, 0, "MedZeroSeg.Provenance"))
    assert record["prompts"] == {"box": [1, 2, 3, 4]}
    assert record["weights"][0]["sha256"] == "ab" * 32
    assert record["version"] == "1.2.3"
    assert record["volume_fingerprint"] == result.volume.fingerprint


def test_structure_that_was_not_found_is_an_empty_named_segment(scene, tmp_path):
    nothing = np.zeros(SHAPE, bool)
    result = segmentation(segment("spleen", nothing), segment("liver", l_shape()), segment("heart", nothing))
    node = load(scene, result, tmp_path / "a.seg.nrrd")
    assert names_in(node) == ["spleen", "liver", "heart"]
    assert [tag(node, number, "MedZeroSeg.Found") for number in range(3)] == ["false", "true", "false"]
    assert [mask.sum() for mask in masks_in(node, result)] == [0, l_shape().sum(), 0]


def test_nothing_found_at_all_is_still_a_segmentation(scene, tmp_path):
    result = segmentation(segment("spleen", np.zeros(SHAPE, bool)), segment("liver", np.zeros(SHAPE, bool)))
    node = load(scene, result, tmp_path / "a.seg.nrrd")
    assert names_in(node) == ["spleen", "liver"]
    assert not any(mask.any() for mask in masks_in(node, result))


def test_picture_becomes_one_slice_at_its_place(scene, tmp_path):
    mask = l_shape()[2:3]
    result = segmentation(segment("lung", mask), grid=np.diag([0.139, 0.139, 1.0, 1.0]), dimension=2)
    node = load(scene, result, tmp_path / "a.seg.nrrd")
    assert np.array_equal(masks_in(node, result)[0], mask)


def test_more_than_255_segments_keep_their_voxels(scene, tmp_path):
    masks = np.zeros((300, *SHAPE), bool)
    for number, mask in enumerate(masks):
        mask.reshape(-1)[7 * number] = True
    result = segmentation(*(segment(f"lesion {number}", mask) for number, mask in enumerate(masks)))
    node = load(scene, result, tmp_path / "a.seg.nrrd")
    found = masks_in(node, result)
    assert [int(np.flatnonzero(mask)[0]) for mask in found] == [7 * number for number in range(300)]


def test_file_survives_being_saved_again_by_slicer(scene, tmp_path):
    result = segmentation(segment("Niere (links) ö", l_shape(), code=KIDNEY, category=ANATOMICAL_STRUCTURE))
    node = load(scene, result, tmp_path / "a.seg.nrrd")
    storage = scene.AddNewNodeByClass("vtkMRMLSegmentationStorageNode")
    storage.SetFileName(str(tmp_path / "again.seg.nrrd"))
    assert storage.WriteData(node) == 1
    again = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "again")
    assert storage.ReadData(again) == 1
    assert names_in(again) == ["Niere (links) ö"]
    assert tag(again, 0, "MedZeroSeg.Provenance") == tag(node, 0, "MedZeroSeg.Provenance")
    assert np.array_equal(masks_in(again, result)[0], l_shape())
