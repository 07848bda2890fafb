"""All frames of a time sequence, with the real sequence nodes and browser: image and segments change together."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

slicer = pytest.importorskip("slicer", reason="slicer-core has no wheel for this Python")
pytest.importorskip("PySide6", reason="PySide6 shows the panel")

from MedZeroSegSlicer.segment_io import provenance_of  # noqa: E402
from phantoms_of_panel import body, grey_levels, phantom  # noqa: E402

COUNT = 4
SHIFTS = (0, 3, 5, 2)  # voxels along i by which the bodies of each frame lie elsewhere


def shifted(array: np.ndarray, frame: int) -> np.ndarray:
    return np.roll(array, SHIFTS[frame], axis=2)


@pytest.fixture
def cine(module):
    """A volume that shows the second of four frames; only it has a spleen, which is there in two of them."""
    volume = phantom("cine")
    sequence = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceNode", "cine frames")
    sequence.SetIndexName("trigger time")
    sequence.SetIndexUnit("ms")
    for frame in range(COUNT):
        voxels = shifted(grey_levels(), frame)
        if frame >= 2:
            voxels[voxels == 110] = 20
        slicer.util.updateVolumeFromArray(volume, voxels)
        sequence.SetDataNodeAtValue(volume, str(40.5 * frame))
    browser = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", "cine browser")
    browser.SetAndObserveMasterSequenceNodeID(sequence.GetID())
    browser.AddProxyNode(volume, sequence, False)
    browser.SetSelectedItemNumber(1)
    return volume, browser


@pytest.fixture
def all_frames(cine, panel):
    panel.widget.parameters.inputVolume = cine[0]
    panel.ui.allFramesBox.click()
    assert panel.widget.parameters.allFrames
    return panel


def show(panel, browser, frame: int) -> None:
    browser.SetSelectedItemNumber(frame)
    panel.qapp.processEvents()


def assert_frames(panel, browser, name: str, frames: range | tuple[int, ...]) -> None:
    """The segment is, in each of these frames, where the frame's image has the body; in the others it isn't."""
    for frame in range(COUNT):
        show(panel, browser, frame)
        if frame in frames:
            assert np.array_equal(panel.mask(name), shifted(body(name), frame)), frame
        else:
            assert name not in panel.segments


def test_choice_is_offered_for_sequences_only(volume, cine, panel):
    panel.widget.parameters.inputVolume = volume
    assert not panel.ui.allFramesBox.visible
    panel.widget.parameters.inputVolume = cine[0]
    assert panel.ui.allFramesBox.visible and panel.ui.allFramesBox.text == "All 4 frames of the sequence"
    assert "Frame 2 of 4" in panel.ui.volumeLabel.text and not panel.ui.allFramesBox.checked


def test_this_frame_alone_is_segmented_unless_all_are_asked_for(cine, panel):
    panel.widget.parameters.inputVolume = cine[0]
    panel.run("liver")
    assert np.array_equal(panel.mask("liver"), shifted(body("liver"), 1))
    assert len(panel.asked()) == 1 and cine[1].GetSequenceNode(panel.widget.parameters.segmentation) is None


def test_all_frames_become_a_sequence_in_the_same_browser(all_frames, cine):
    panel, (_volume, browser) = all_frames, cine
    panel.run("liver; spleen; right kidney")
    node = panel.widget.parameters.segmentation
    sequence = browser.GetSequenceNode(node)
    assert sequence.GetNumberOfDataNodes() == COUNT and browser.GetNumberOfSynchronizedSequenceNodes(True) == 2
    assert [sequence.GetNthIndexValue(n) for n in range(COUNT)] == [str(40.5 * n) for n in range(COUNT)]
    assert (sequence.GetIndexName(), sequence.GetIndexUnit()) == ("trigger time", "ms")
    assert_frames(panel, browser, "liver", range(COUNT))
    assert_frames(panel, browser, "spleen", (0, 1))
    assert panel.logic.absent == ["right kidney"]
    assert panel.status.startswith("2 structures in 4 frames, ")
    assert panel.status.endswith("Not found in any frame: right kidney.")
    assert "2 of 4 frames" in panel.ui.measurementsLabel.text and "4 of 4 frames" in panel.ui.measurementsLabel.text
    show(panel, browser, 0)
    panel.picture("frames", height=980)


def test_all_frames_go_through_one_engine_one_after_the_other(all_frames):
    all_frames.start("liver", seconds_per_slice=0.005)
    first = all_frames.pid()
    seen = []
    all_frames.spin(lambda: seen.append(all_frames.status) or not all_frames.logic.run.state.under_way)
    assert all_frames.pid() == first
    asked = all_frames.asked()
    assert [message["names"] for message in asked] == [["liver"]] * COUNT
    assert len({message["volume"]["voxels"] for message in asked}) == COUNT
    assert any(text.startswith("Frame 3 of 4. liver: slice") for text in seen)


def test_run_over_frames_looks_as_it_should(all_frames):
    all_frames.start("liver; spleen", seconds_per_slice=0.02)
    all_frames.spin(lambda: all_frames.logic.run.state.frame == 2 and all_frames.logic.run.state.code == "segmenting")
    assert all_frames.picture("frames-running", height=980).exists()
    all_frames.click("cancelButton")
    all_frames.finish()
    assert all_frames.picture("frames-cancelled", height=980).exists()


def test_progress_never_falls_and_counts_all_frames(all_frames):
    all_frames.start("liver", seconds_per_slice=0.003)
    values = []
    all_frames.spin(
        lambda: values.append(all_frames.logic.run.state.fraction) or not all_frames.logic.run.state.under_way
    )
    assert values == sorted(values) and values[-1] == 1.0
    assert any(0.2 < value < 0.3 for value in values)


def test_cancel_keeps_the_frames_that_are_finished(all_frames, cine):
    panel, (_volume, browser) = all_frames, cine
    panel.start("liver", seconds_per_slice=0.02)
    panel.spin(lambda: panel.logic.run.state.frame == 2)
    panel.click("cancelButton")
    panel.finish()
    assert panel.status == "Cancelled after 2 of 4 frames. Segments that were ready have been kept."
    assert "2 of 2 frames" in panel.ui.measurementsLabel.text
    assert_frames(panel, browser, "liver", (0, 1))
    panel.plan()
    panel.run("liver")
    assert_frames(panel, browser, "liver", range(COUNT))
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 1


def test_engine_that_dies_leaves_the_frames_that_are_finished(all_frames, cine):
    import os
    import signal

    panel, (_volume, browser) = all_frames, cine
    panel.start("liver", seconds_per_slice=0.02)
    panel.spin(lambda: panel.logic.run.state.frame == 1 and panel.logic.run.state.code == "segmenting")
    os.kill(panel.pid(), signal.SIGKILL)
    panel.finish()
    assert panel.phase == "failed"
    assert_frames(panel, browser, "liver", (0,))


def test_undo_takes_all_frames_back_with_the_sequence_that_was_made(all_frames, cine):
    panel, (_volume, browser) = all_frames, cine
    panel.run("liver")
    panel.click("undoButton")
    assert slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLSegmentationNode") is None
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSequenceNode") == 1
    assert browser.GetNumberOfSynchronizedSequenceNodes(True) == 1
    assert panel.widget.parameters.segmentation is None and not panel.ui.undoButton.enabled


def test_undo_of_a_second_run_leaves_the_first(all_frames, cine):
    panel, (_volume, browser) = all_frames, cine
    panel.run("liver")
    panel.run("spleen; liver")
    panel.click("undoButton")
    assert_frames(panel, browser, "liver", range(COUNT))
    assert_frames(panel, browser, "spleen", ())


def test_rerun_replaces_its_own_segments_in_every_frame(all_frames, cine):
    panel, (_volume, browser) = all_frames, cine
    panel.run("liver")
    panel.run("liver")
    for frame in range(COUNT):
        show(panel, browser, frame)
        assert panel.segments == ["liver"]


def test_correction_in_one_frame_stays_there_and_ends_the_undo(all_frames, cine):
    panel, (volume, browser) = all_frames, cine
    panel.run("liver")
    node = panel.widget.parameters.segmentation
    show(panel, browser, 2)
    drawn = np.zeros(body("liver").shape, np.uint8)
    drawn[4:9, 10:30, 20:40] = 1
    segment_id = node.GetSegmentation().GetSegmentIdBySegmentName("liver")
    slicer.util.updateSegmentBinaryLabelmapFromArray(drawn, node, segment_id, volume)
    assert not panel.logic.run.can_undo
    show(panel, browser, 0)
    assert np.array_equal(panel.mask("liver"), shifted(body("liver"), 0))
    show(panel, browser, 2)
    assert np.array_equal(panel.mask("liver"), drawn > 0)
    panel.run("liver")
    show(panel, browser, 2)
    assert panel.segments == ["liver", "liver 2"] and np.array_equal(panel.mask("liver"), drawn > 0)


def test_user_may_go_through_the_frames_during_the_run(all_frames, cine):
    panel, (_volume, browser) = all_frames, cine
    panel.start("liver", seconds_per_slice=0.01)
    shown = iter(range(10_000))
    panel.spin(lambda: show(panel, browser, next(shown) % COUNT) or not panel.logic.run.state.under_way)
    assert panel.phase == "done", panel.status
    assert_frames(panel, browser, "liver", range(COUNT))


def test_going_on_to_another_frame_during_a_run_over_one_is_told(cine, panel):
    panel.widget.parameters.inputVolume = cine[0]
    panel.start("liver", seconds_per_slice=0.01)
    show(panel, cine[1], 3)
    panel.finish()
    assert panel.status.startswith("Another frame was chosen") and panel.segments == []


def test_plain_segmentation_is_left_alone_by_a_run_over_all_frames(cine, panel):
    panel.widget.parameters.inputVolume = cine[0]
    panel.run("liver")
    plain = panel.widget.parameters.segmentation
    panel.ui.allFramesBox.click()
    panel.run("spleen")
    assert panel.widget.parameters.segmentation is not plain
    assert plain.GetSegmentation().GetNumberOfSegments() == 1


def test_sequence_that_goes_ends_its_run(all_frames, cine):
    all_frames.start("liver", seconds_per_slice=0.02)
    all_frames.spin(lambda: all_frames.logic.run.state.frame == 1)
    slicer.mrmlScene.RemoveNode(cine[1])
    all_frames.finish()
    assert all_frames.phase == "cancelled"


def test_scene_closed_in_a_run_over_frames_stays_empty(all_frames):
    all_frames.start("liver", seconds_per_slice=0.02)
    all_frames.spin(lambda: all_frames.logic.run.state.frame == 1)
    slicer.mrmlScene.Clear()
    all_frames.finish()
    assert slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLSegmentationNode") is None


@contextmanager
def full_disk() -> Iterator[None]:
    """The system refuses files of more than a few kilobytes to this process, as a full disk would."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_disk_that_is_full_between_two_frames_keeps_those_before(all_frames, cine):
    panel, (_volume, browser) = all_frames, cine
    panel.start("liver", seconds_per_slice=0.01)
    panel.spin(lambda: panel.logic.run.state.frame == 1 and panel.logic.run.state.code == "segmenting")
    with full_disk():
        panel.finish()
    assert panel.phase == "failed" and panel.status.startswith("The image could not be handed to the engine")
    assert panel.status.endswith("make room on the disk and try again.") and not panel.ui.setupBanner.visible
    assert_frames(panel, browser, "liver", (0, 1))
    assert not list(panel.logic.run.folder.glob("*.part")), "nothing half-written fills the disk"
    panel.plan()
    panel.run("liver")
    assert_frames(panel, browser, "liver", range(COUNT))


def test_frame_that_goes_during_the_run_is_told_and_those_before_are_kept(all_frames, cine):
    panel, (_volume, browser) = all_frames, cine
    panel.start("liver", seconds_per_slice=0.02)
    panel.spin(lambda: panel.logic.run.state.frame == 2)
    images = browser.GetMasterSequenceNode()
    images.RemoveDataNodeAtValue(images.GetNthIndexValue(COUNT - 1))
    panel.finish()
    assert panel.phase == "failed" and panel.status.startswith("The sequence was changed while it was segmented")
    for frame in (0, 1):
        show(panel, browser, frame)
        assert np.array_equal(panel.mask("liver"), shifted(body("liver"), frame))
    show(panel, browser, 2)
    assert panel.segments == []


def test_frame_whose_image_changes_under_it_gets_no_wrong_mask(all_frames, cine):
    panel, (_volume, browser) = all_frames, cine
    panel.start("liver", seconds_per_slice=0.02)
    panel.spin(lambda: panel.logic.run.state.frame == 1 and panel.logic.run.state.code == "segmenting")
    image = browser.GetMasterSequenceNode().GetNthDataNode(1)
    slicer.util.updateVolumeFromArray(image, np.roll(slicer.util.arrayFromVolume(image), 9, axis=1))
    panel.finish()
    assert panel.phase == "failed" and "was changed while it was segmented" in panel.status
    assert_frames(panel, browser, "liver", (0,))


def test_browser_that_shows_another_sequence_during_the_run_is_told(all_frames, cine):
    panel, (volume, browser) = all_frames, cine
    panel.start("liver", seconds_per_slice=0.02)
    panel.spin(lambda: panel.logic.run.state.frame == 1)
    other = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceNode", "another")
    for value in ("0", "7"):
        other.SetDataNodeAtValue(volume, value)
    browser.SetAndObserveMasterSequenceNodeID(other.GetID())
    panel.finish()
    assert panel.phase == "failed" and panel.status.startswith("The sequence was changed while it was segmented")


@pytest.mark.parametrize("what", ["segmentation", "sequence"])
def test_results_that_are_deleted_during_the_run_are_made_anew_for_what_still_comes(all_frames, cine, what):
    panel, (_volume, browser) = all_frames, cine
    panel.start("liver", seconds_per_slice=0.02)
    panel.spin(lambda: panel.logic.run.state.frame == 2)
    node = panel.widget.parameters.segmentation
    slicer.mrmlScene.RemoveNode(node if what == "segmentation" else browser.GetSequenceNode(node))
    panel.finish()
    assert panel.phase == "done", panel.status
    assert_frames(panel, browser, "liver", (2, 3))


def test_moved_sequence_moves_its_segments(all_frames, cine):
    import vtk

    panel, (volume, browser) = all_frames, cine
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    turn = vtk.vtkTransform()
    turn.RotateX(25)
    turn.Translate(30, -12, 7)
    transform.SetMatrixTransformToParent(turn.GetMatrix())
    volume.SetAndObserveTransformNodeID(transform.GetID())
    panel.run("liver")
    assert panel.widget.parameters.segmentation.GetParentTransformNode() is transform
    assert_frames(panel, browser, "liver", range(COUNT))


def test_each_frame_knows_its_own_image(all_frames, cine):
    panel, (_volume, browser) = all_frames, cine
    panel.run("liver")
    sequence = browser.GetSequenceNode(panel.widget.parameters.segmentation)
    made = [provenance_of(sequence.GetNthDataNode(n).GetSegmentation().GetNthSegment(0)) for n in range(COUNT)]
    assert len({record["volume_fingerprint"] for record in made}) == COUNT


def test_sequence_survives_the_scene_file(all_frames, cine, tmp_path):
    panel, (_volume, _browser) = all_frames, cine
    panel.run("liver")
    path = tmp_path / "scene.mrb"
    assert slicer.mrmlScene.WriteToMRB(str(path))
    slicer.mrmlScene.Clear()
    assert slicer.mrmlScene.ReadFromMRB(str(path))
    browser = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLSequenceBrowserNode")
    assert panel.widget.parameters.segmentation is not None and panel.widget.parameters.allFrames
    assert_frames(panel, browser, "liver", range(COUNT))


def test_script_segments_all_frames(module, panel, cine):
    logic = module.MedZeroSegLogic()
    node = logic.segment(cine[0], "liver", allFrames=True)
    assert cine[1].GetSequenceNode(node).GetNumberOfDataNodes() == COUNT
    logic.close()
