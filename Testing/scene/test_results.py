"""Structures of the engine become segments: named, coded, placed; whatever the user made stays as it is."""

from __future__ import annotations

import json

import numpy as np
import pytest
from MedZeroSegSlicer.segment_io import add_result, create_segmentation, prepare_segmentation, provenance_of
from MedZeroSegSlicer.segment_voxels import read_segment, write_segment
from MedZeroSegSlicer.volumes import volume_stamp
from scans import (
    SHAPE,
    block,
    draw,
    found,
    grid,
    l_shape,
    names_in,
    scan,
    slicer,
    tags_of,
    transform,
    turned,
    voxels_of,
)

from MedZeroSegLib.extent import Extent, crop

KIDNEY = {"scheme": "SCT", "value": "64033007", "meaning": "Kidney"}
LEFT = {"scheme": "SCT", "value": "7771000", "meaning": "Left"}
BLOCK: Extent = (2, 8, 3, 9, 1, 5)


def paint(node, segment_id: str, value: int = 0) -> None:
    """Change one voxel of a segment's labelmap, as a brush does."""
    labelmap = node.GetBinaryLabelmapInternalRepresentation(segment_id)
    i, _, j, _, k, _ = labelmap.GetExtent()
    label = node.GetSegmentation().GetSegment(segment_id).GetLabelValue()
    old = labelmap.GetScalarComponentAsDouble(i, j, k, 0)
    labelmap.SetScalarComponentFromDouble(i, j, k, 0, 0 if old == label else label)
    labelmap.Modified()


def segment(node, segment_id: str):
    return node.GetSegmentation().GetSegment(segment_id)


# What a segment carries


def test_result_has_name_color_terminology_status_and_provenance(node, volume, tmp_path):
    event = found(
        tmp_path, "left kidney", l_shape(), code=KIDNEY, modifier=LEFT, color=[185, 102, 83], typed="lt kidney"
    )
    event["provenance"]["typed"] = "lt kidney"
    made = segment(node, add_result(node, volume, event))
    assert made.GetName() == "left kidney"
    assert np.allclose(np.array(made.GetColor()) * 255, (185, 102, 83))
    assert "SCT^64033007^Kidney~SCT^7771000^Left" in made.GetTerminology()
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    assert logic.GetSegmentStatus(made) == logic.InProgress
    record = json.loads(tags_of(made)["MedZeroSeg.Provenance"])
    assert record["typed"] == "lt kidney" and record["score"] == 0.8 and record["mask_sha256"]
    assert np.array_equal(voxels_of(node, node.GetSegmentation().GetNthSegmentID(0), volume), l_shape())


def test_name_without_our_code_takes_the_entry_of_slicers_own_list(node, volume, tmp_path, terminologies_of_slicer):
    event = found(tmp_path, "gracilis muscle", l_shape(), code=None)
    assert "SCT^99999^Gracilis" in segment(node, add_result(node, volume, event)).GetTerminology()
    event = found(tmp_path, "hello world", l_shape(), code=None)
    made = segment(node, add_result(node, volume, event))
    assert "^Tissue~^^~" in made.GetTerminology()  # Slicer's word for a segment of which nothing is known


def test_structure_that_was_not_found_makes_no_segment(node, volume, tmp_path):
    event = found(tmp_path, "spleen", l_shape()) | {"found": False, "mask": None, "box": None}
    assert add_result(node, volume, event) is None
    assert names_in(node) == []


def test_segmentation_lies_beside_its_volume_with_its_grid_and_transform(scene):
    volume = scan(name="CT chest")
    moved = np.eye(4)
    moved[:3, :3], moved[:3, 3] = turned((0, 0, 30)), (12, -7, 3)
    volume.SetAndObserveTransformNodeID(transform(moved).GetID())
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    patient = hierarchy.CreateSubjectItem(hierarchy.GetSceneItemID(), "Müller^Jörg")
    study = hierarchy.CreateStudyItem(patient, "chest")
    hierarchy.CreateItem(study, volume)  # in the application its widgets do this
    node = create_segmentation(volume)
    assert hierarchy.GetItemParent(hierarchy.GetItemByDataNode(node)) == study
    assert node.GetTransformNodeID() == volume.GetTransformNodeID()
    assert node.GetNodeReference(node.GetReferenceImageGeometryReferenceRole()) is volume
    assert "CT chest" in node.GetName()
    assert node.GetDisplayNode().GetOpacity2DFill() == 0.4
    elsewhere = hierarchy.CreateFolderItem(hierarchy.GetSceneItemID(), "my folder")
    hierarchy.SetItemParent(hierarchy.GetItemByDataNode(node), elsewhere)
    prepare_segmentation(node, volume)
    assert hierarchy.GetItemParent(hierarchy.GetItemByDataNode(node)) == elsewhere  # where the user put it


# What the user made


@pytest.mark.parametrize("shared_layer", [False, True])
def test_segments_of_the_user_stay_bit_for_bit(node, volume, tmp_path, shared_layer):
    mine, other = draw(node, volume, "my ROI", BLOCK), draw(node, volume, "liver", (9, 12, 3, 9, 1, 5))
    if shared_layer:
        node.GetSegmentation().CollapseBinaryLabelmaps(False)
        assert node.GetSegmentation().GetNumberOfLayers() == 1
    tags = tags_of(segment(node, other))
    made = add_result(node, volume, found(tmp_path, "liver", l_shape()))
    assert names_in(node) == ["my ROI", "liver", "liver 2"]
    assert np.array_equal(voxels_of(node, mine, volume), block(BLOCK))
    assert np.array_equal(voxels_of(node, other, volume), block((9, 12, 3, 9, 1, 5)))
    assert np.array_equal(voxels_of(node, made, volume), l_shape())
    assert tags_of(segment(node, other)) == tags and "MedZeroSeg.Provenance" not in tags
    assert segment(node, mine).GetColor() == (0.1, 0.2, 0.9)


def test_surfaces_of_other_segments_stay_and_the_new_one_gets_its_own(node, volume, tmp_path):
    mine = draw(node, volume, "my ROI", BLOCK)
    node.CreateClosedSurfaceRepresentation()
    surface = segment(node, mine).GetRepresentation("Closed surface")
    made = add_result(node, volume, found(tmp_path, "liver", l_shape()))
    assert segment(node, mine).GetRepresentation("Closed surface") is surface
    assert segment(node, made).GetRepresentation("Closed surface").GetNumberOfPoints() > 0
    again = add_result(node, volume, found(tmp_path, "liver", block(BLOCK)))
    assert again == made
    assert segment(node, mine).GetRepresentation("Closed surface") is surface


@pytest.mark.parametrize("stay_out", [False, True])
def test_overlap_is_kept_unless_asked_to_stay_out(node, volume, tmp_path, stay_out):
    mine = draw(node, volume, "my ROI", BLOCK)
    made = add_result(node, volume, found(tmp_path, "liver", l_shape()), stay_out=stay_out)
    expected = l_shape() & ~block(BLOCK) if stay_out else l_shape()
    assert np.array_equal(voxels_of(node, made, volume), expected)
    assert np.array_equal(voxels_of(node, mine, volume), block(BLOCK))
    assert provenance_of(segment(node, made)).get("stays_out_of_other_segments", False) == stay_out


def test_staying_out_also_heeds_segments_on_another_grid(node, volume, tmp_path):
    """The user's segment comes from a scan with voxels of half the size."""
    fine = scan(grid() @ np.diag([0.5, 0.5, 0.5, 1.0]), tuple(2 * n for n in SHAPE), name="fine")
    box = (2, 17, 4, 19, 2, 11)
    mine = node.GetSegmentation().AddEmptySegment("", "mine")
    write_segment(node, fine, mine, crop(block(box, tuple(2 * n for n in SHAPE)), box), box)
    made = add_result(node, volume, found(tmp_path, "liver", np.ones(SHAPE, bool)), stay_out=True)
    assert np.array_equal(voxels_of(node, made, volume), ~voxels_of(node, mine, volume))


def test_result_that_lies_wholly_in_other_segments_is_not_added(node, volume, tmp_path):
    draw(node, volume, "all", (0, 16, 0, 13, 0, 8))
    assert add_result(node, volume, found(tmp_path, "liver", l_shape()), stay_out=True) is None
    assert names_in(node) == ["all"]


# Rerun


def test_rerun_that_stays_out_of_others_does_not_stay_out_of_itself(node, volume, tmp_path):
    """The user's segment cuts the end off the mask, so that its box shrinks."""
    draw(node, volume, "my ROI", (6, 16, 0, 13, 0, 8))
    expected = l_shape() & ~block((6, 16, 0, 13, 0, 8))
    first = add_result(node, volume, found(tmp_path, "liver", l_shape()), stay_out=True)
    assert add_result(node, volume, found(tmp_path, "liver", l_shape()), stay_out=True) == first
    assert np.array_equal(voxels_of(node, first, volume), expected)


def test_box_wider_than_the_mask_makes_no_difference(node, volume, tmp_path):
    wide = found(tmp_path, "liver", l_shape()) | {"box": [0, SHAPE[2] - 1, 0, SHAPE[1] - 1, 0, SHAPE[0] - 1]}
    np.save(wide["mask"], l_shape().astype(np.uint8))
    first = add_result(node, volume, wide)
    assert np.array_equal(voxels_of(node, first, volume), l_shape())
    assert add_result(node, volume, found(tmp_path, "liver", l_shape())) == first


def test_rerun_replaces_what_it_made_and_keeps_the_color_that_the_user_chose(node, volume, tmp_path):
    first = add_result(node, volume, found(tmp_path, "liver", l_shape()))
    segment(node, first).SetColor(0, 1, 0)
    again = add_result(node, volume, found(tmp_path, "liver", block(BLOCK), score=0.9))
    assert again == first and names_in(node) == ["liver"]
    assert np.array_equal(voxels_of(node, first, volume), block(BLOCK))
    assert segment(node, first).GetColor() == (0, 1, 0)
    assert add_result(node, volume, found(tmp_path, "liver", l_shape())) == first  # the new fingerprint holds too


def test_rerun_replaces_in_a_layer_shared_with_a_neighbour(node, volume, tmp_path):
    mine = draw(node, volume, "my ROI", (11, 16, 3, 9, 1, 5))
    made = add_result(node, volume, found(tmp_path, "liver", l_shape()))
    node.GetSegmentation().CollapseBinaryLabelmaps(False)
    assert node.GetSegmentation().GetNumberOfLayers() == 1
    assert add_result(node, volume, found(tmp_path, "liver", np.ones(SHAPE, bool))) == made
    assert np.array_equal(voxels_of(node, mine, volume), block((11, 16, 3, 9, 1, 5)))
    assert voxels_of(node, made, volume).all()


def complete(node, segment_id):
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    logic.SetSegmentStatus(segment(node, segment_id), logic.Completed)


def flag(node, segment_id):
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    logic.SetSegmentStatus(segment(node, segment_id), logic.Flagged)


def rename(node, segment_id):
    segment(node, segment_id).SetName("liver, checked")


def spoil_the_tag(node, segment_id):
    segment(node, segment_id).SetTag("MedZeroSeg.Provenance", "{not JSON")


def strip_the_tag(node, segment_id):
    segment(node, segment_id).RemoveTag("MedZeroSeg.Provenance")


@pytest.mark.parametrize("touch", [paint, complete, flag, rename, spoil_the_tag, strip_the_tag])
def test_rerun_leaves_alone_what_the_user_touched(node, volume, tmp_path, touch):
    first = add_result(node, volume, found(tmp_path, "liver", l_shape()))
    touch(node, first)
    name, voxels = segment(node, first).GetName(), voxels_of(node, first, volume)
    second = add_result(node, volume, found(tmp_path, "liver", block(BLOCK)))
    assert second != first
    assert segment(node, first).GetName() == name
    assert np.array_equal(voxels_of(node, first, volume), voxels)
    assert np.array_equal(voxels_of(node, second, volume), block(BLOCK))
    # The one it made itself is replaced from now on.
    assert add_result(node, volume, found(tmp_path, "liver", l_shape())) == second
    assert len(names_in(node)) == 2


def test_rerun_on_another_image_adds_a_segment(node, volume, tmp_path):
    first = add_result(node, volume, found(tmp_path, "liver", l_shape()))
    second = add_result(node, volume, found(tmp_path, "liver", l_shape(), fingerprint="0b" * 32))
    assert second != first and names_in(node) == ["liver", "liver 2"]


def test_result_without_fingerprint_replaces_nothing(node, volume, tmp_path):
    for name in ("liver", "liver 2"):
        event = found(tmp_path, "liver", l_shape())
        del event["provenance"]["volume_fingerprint"]
        assert segment(node, add_result(node, volume, event)).GetName() == name


def test_two_names_that_differ_by_a_number_are_two_structures(node, volume, tmp_path):
    assert add_result(node, volume, found(tmp_path, "vertebra L1", l_shape()))
    assert add_result(node, volume, found(tmp_path, "vertebra L1 2", l_shape()))
    assert names_in(node) == ["vertebra L1", "vertebra L1 2"]


# Volumes that go or change while the engine works


def test_result_for_a_volume_that_has_gone_writes_nothing(scene, node, volume, tmp_path):
    scene.RemoveNode(volume)
    assert add_result(node, volume, found(tmp_path, "liver", l_shape())) is None
    assert names_in(node) == []


def test_result_for_a_segmentation_that_has_gone_writes_nothing(scene, node, volume, tmp_path):
    scene.RemoveNode(node)
    assert add_result(node, volume, found(tmp_path, "liver", l_shape())) is None


def test_scene_closed_while_running_gets_nothing(scene, node, volume, tmp_path):
    add_result(node, volume, found(tmp_path, "liver", l_shape()))
    scene.Clear()
    assert add_result(node, volume, found(tmp_path, "spleen", l_shape())) is None
    assert scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 0


def test_stamp_tells_that_voxels_changed_or_went(scene, volume):
    stamp = volume_stamp(volume)
    volume.SetOrigin(1, 2, 3)
    volume.CreateDefaultDisplayNodes()
    assert volume_stamp(volume) == stamp  # neither place nor display are voxels
    slicer.util.arrayFromVolume(volume)[0, 0, 0] += 1
    slicer.util.arrayFromVolumeModified(volume)
    assert volume_stamp(volume) != stamp
    scene.RemoveNode(volume)
    assert volume_stamp(volume) is None


def test_volume_cut_smaller_while_running_is_an_error_and_leaves_no_half_segment(node, volume, tmp_path):
    event = found(tmp_path, "liver", l_shape())
    slicer.util.updateVolumeFromArray(volume, np.zeros((3, 4, 5), np.int16))
    with pytest.raises(ValueError, match="leaves the volume's grid"):
        add_result(node, volume, event)
    assert names_in(node) == []


def test_two_volumes_keep_their_results_apart(scene, tmp_path):
    head, chest = scan(name="head"), scan(grid((1.3, 0.9, 4.0), (5, 40, -80), (3, -9, 77)), name="chest")
    of_head, of_chest = create_segmentation(head), create_segmentation(chest)
    first = add_result(of_head, head, found(tmp_path, "brain", l_shape()))
    second = add_result(of_chest, chest, found(tmp_path, "lung", block(BLOCK), fingerprint="0b" * 32))
    assert np.array_equal(voxels_of(of_head, first, head), l_shape())
    assert np.array_equal(voxels_of(of_chest, second, chest), block(BLOCK))
    assert read_segment(of_chest, chest, second)[1] == BLOCK
    assert of_head.GetName() != of_chest.GetName()
