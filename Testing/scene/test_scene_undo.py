"""Undo takes back one run or action as a whole, never what the user drew, and redo brings it again."""

from __future__ import annotations

import numpy as np
import pytest
from MedZeroSegSlicer.scene_undo import SceneUndo
from MedZeroSegSlicer.segment_io import add_result, create_segmentation
from MedZeroSegSlicer.segment_voxels import write_segment
from scans import SHAPE, block, draw, found, l_shape, names_in, tags_of, voxels_of

from MedZeroSegLib.extent import Extent, crop

BLOCK: Extent = (2, 8, 3, 9, 1, 5)
OTHER: Extent = (9, 15, 3, 9, 1, 5)


@pytest.fixture
def undo(node, volume):
    history = SceneUndo(node, volume)
    yield history
    history.close()


def run(undo, node, volume, folder, **masks) -> list[str]:
    """A run that delivers its structures one by one."""
    undo.begin_step()
    made = []
    for name, mask in masks.items():
        with undo.change():
            made.append(add_result(node, volume, found(folder, name, mask)))
    return made


def state(node, volume) -> list:
    """All that undo has to restore."""
    inner = node.GetSegmentation()
    return [
        (
            segment_id,
            inner.GetSegment(segment_id).GetName(),
            inner.GetSegment(segment_id).GetColor(),
            tags_of(inner.GetSegment(segment_id)),
            voxels_of(node, segment_id, volume).tobytes(),
        )
        for segment_id in inner.GetSegmentIDs()
    ]


def test_a_run_of_three_structures_is_one_step(node, volume, undo, tmp_path):
    mine = draw(node, volume, "my ROI", BLOCK)
    before = state(node, volume)
    run(undo, node, volume, tmp_path, liver=l_shape(), spleen=block(OTHER), kidney=l_shape(3))
    after = state(node, volume)
    assert len(after) == 4 and undo.can_undo and not undo.can_redo
    undo.undo()
    assert state(node, volume) == before and not undo.can_undo and undo.can_redo
    undo.redo()
    assert state(node, volume) == after and not undo.can_redo
    assert np.array_equal(voxels_of(node, mine, volume), block(BLOCK))


def test_runs_are_undone_and_redone_in_their_order(node, volume, undo, tmp_path):
    states = [state(node, volume)]
    for masks in ({"liver": l_shape()}, {"liver": block(BLOCK)}, {"spleen": block(OTHER)}, {"liver": l_shape(2)}):
        run(undo, node, volume, tmp_path, **masks)
        states.append(state(node, volume))
    for earlier in states[-2::-1]:
        undo.undo()
        assert state(node, volume) == earlier
    assert not undo.can_undo
    for later in states[1:]:
        undo.redo()
        assert state(node, volume) == later
    assert not undo.can_redo


def test_an_undone_rerun_may_be_replaced_again(node, volume, undo, tmp_path):
    (first,) = run(undo, node, volume, tmp_path, liver=l_shape())
    run(undo, node, volume, tmp_path, liver=block(BLOCK))
    undo.undo()
    assert run(undo, node, volume, tmp_path, liver=block(OTHER)) == [first]
    assert names_in(node) == ["liver"]


def test_a_run_that_finds_nothing_leaves_no_step(node, volume, undo, tmp_path):
    undo.begin_step()
    assert not undo.can_undo
    run(undo, node, volume, tmp_path, liver=l_shape())
    undo.begin_step()
    undo.undo()
    assert names_in(node) == [] and not undo.can_undo


def test_overlap_and_surfaces_come_back(node, volume, undo, tmp_path):
    mine = draw(node, volume, "my ROI", BLOCK)
    run(undo, node, volume, tmp_path, liver=l_shape())
    node.CreateClosedSurfaceRepresentation()
    run(undo, node, volume, tmp_path, liver=np.ones(SHAPE, bool))
    undo.undo()
    inner = node.GetSegmentation()
    (made,) = (segment_id for segment_id in inner.GetSegmentIDs() if segment_id != mine)
    assert np.array_equal(voxels_of(node, mine, volume), block(BLOCK))
    assert np.array_equal(voxels_of(node, made, volume), l_shape())
    for segment_id in (mine, made):
        assert inner.GetSegment(segment_id).GetRepresentation("Closed surface").GetNumberOfPoints() > 0


@pytest.mark.parametrize("drawn", ["new segment", "brush stroke", "removed segment"])
def test_undo_never_takes_away_what_the_user_drew_since(node, volume, undo, tmp_path, drawn):
    made, second = run(undo, node, volume, tmp_path, liver=l_shape(), spleen=block(OTHER))
    if drawn == "new segment":
        draw(node, volume, "my ROI", BLOCK)
    elif drawn == "brush stroke":
        write_segment(node, volume, made, crop(block(BLOCK), BLOCK), BLOCK)
    else:
        node.GetSegmentation().RemoveSegment(second)
    after = state(node, volume)
    assert not undo.can_undo
    undo.undo()
    assert state(node, volume) == after
    run(undo, node, volume, tmp_path, kidney=l_shape(3))  # a later run can be undone, up to the user's drawing
    undo.undo()
    assert state(node, volume) == after and not undo.can_undo


def test_saving_keeps_the_history(scene, node, volume, undo, tmp_path):
    """Slicer joins the layers of segments when it writes a file."""
    mine = draw(node, volume, "my ROI", BLOCK)
    undo.begin_step()
    before = state(node, volume)
    run(undo, node, volume, tmp_path, spleen=block(OTHER))
    storage = scene.AddNewNodeByClass("vtkMRMLSegmentationStorageNode")
    storage.SetFileName(str(tmp_path / "a.seg.nrrd"))
    assert storage.WriteData(node) == 1
    assert node.GetSegmentation().GetNumberOfLayers() == 1
    undo.undo()
    assert state(node, volume) == before
    undo.redo()
    assert names_in(node) == ["my ROI", "spleen"]
    assert np.array_equal(voxels_of(node, mine, volume), block(BLOCK))


def test_showing_surfaces_and_choosing_colors_keep_the_history(node, volume, undo, tmp_path):
    (made,) = run(undo, node, volume, tmp_path, liver=l_shape())
    node.CreateClosedSurfaceRepresentation()
    node.GetSegmentation().GetSegment(made).SetColor(0, 1, 0)
    assert undo.can_undo
    undo.undo()
    assert names_in(node) == []


def test_editor_node_is_hidden_not_saved_and_goes_with_the_history(scene, node, volume, undo):
    editor = scene.GetNthNodeByClass(0, "vtkMRMLSegmentEditorNode")
    assert editor.GetHideFromEditors() and not editor.GetSaveWithScene()
    assert editor.GetOverwriteMode() == editor.OverwriteNone
    undo.close()
    assert scene.GetNumberOfNodesByClass("vtkMRMLSegmentEditorNode") == 0


def test_histories_of_two_segmentations_do_not_mix(node, volume, undo, tmp_path):
    second = create_segmentation(volume)
    other = SceneUndo(second, volume)
    run(undo, node, volume, tmp_path, liver=l_shape())
    run(other, second, volume, tmp_path, spleen=block(OTHER))
    undo.undo()
    assert (names_in(node), names_in(second)) == ([], ["spleen"])
    other.undo()
    undo.redo()
    assert (names_in(node), names_in(second)) == (["liver"], [])
    other.close()


def test_closing_lets_the_scene_go(scene, node, volume, undo, tmp_path):
    run(undo, node, volume, tmp_path, liver=l_shape())
    undo.close()
    scene.Clear()
    assert not undo.can_undo
    undo.undo()
    undo.close()
    assert scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 0


def test_scene_closed_first_is_survived(scene, node, volume, undo, tmp_path):
    run(undo, node, volume, tmp_path, liver=l_shape())
    scene.Clear()
    undo.undo()
    undo.redo()
    assert scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 0
