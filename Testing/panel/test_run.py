"""The life of a run: results one by one, cancel at every stage, faults of every kind. Nothing that was ready is lost,
and no half segment is made."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import pytest

slicer = pytest.importorskip("slicer", reason="slicer-core has no wheel for this Python")
pytest.importorskip("PySide6", reason="PySide6 shows the panel")

from phantoms_of_panel import BODIES, body, phantom  # noqa: E402

SLOW = 0.15  # seconds a slice: long enough to be caught at work


def start(panel, text: str, **plan) -> None:
    """Begin a run."""
    panel.plan(**plan)
    panel.type(text)
    panel.click("runButton")


def assert_whole(panel, *names: str) -> None:
    """These segments are in the scene, and each is the whole body."""
    assert panel.segments == list(names)
    for name in names:
        assert np.array_equal(panel.mask(name), body(name)), name


def only_pid(panel) -> int:
    """The engine's process."""
    path = panel._plan.with_suffix(".pid")
    panel.spin(path.exists)
    return int(path.read_text())


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


# A run that ends well


def test_names_become_segments_with_exactly_the_engines_masks(volume, panel):
    panel.run("liver; Spleen; aorta; right kidney")
    assert_whole(panel, "liver", "spleen", "aorta")
    assert panel.status.startswith("3 segments, ") and panel.status.endswith("Not found in this image: right kidney.")
    assert panel.logic.absent == ["right kidney"]
    assert panel.ui.runButton.visible and panel.ui.runButton.enabled and not panel.ui.progressBar.visible


def test_results_appear_one_by_one(volume, panel):
    start(panel, "liver; spleen", seconds_per_slice=0.05)
    panel.spin(lambda: panel.segments == ["liver"])
    assert panel.phase == "running"
    assert_whole(panel, "liver")
    assert "liver" in panel.ui.measurementsLabel.text and "spleen" not in panel.ui.measurementsLabel.text
    panel.finish()
    assert_whole(panel, "liver", "spleen")


def test_progress_is_shown_with_the_time_left(volume, panel):
    start(panel, "liver; spleen; aorta", seconds_per_slice=0.05)
    panel.spin(lambda: panel.logic.run.state.seconds_left is not None and panel.ui.progressBar.value > 300)
    assert " left" in panel.status
    panel.picture("running")
    panel.finish()


def test_new_segmentation_becomes_the_chosen_result(volume, panel):
    assert panel.widget.parameters.segmentation is None
    panel.run("liver")
    node = panel.widget.parameters.segmentation
    assert panel.ui.segmentationSelector.currentNode() is node
    assert panel.ui.segmentsTable.segmentationNode() is node


def test_nothing_found_makes_no_segmentation(volume, panel):
    panel.run("right kidney")
    assert panel.widget.parameters.segmentation is None
    assert slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLSegmentationNode") is None
    assert panel.status.startswith("No segment, ")


def test_second_of_two_images_is_used_when_it_is_chosen(volume, panel):
    other = phantom("Other")
    slicer.util.arrayFromVolume(other)[:] = np.roll(slicer.util.arrayFromVolume(volume), 2, axis=1)
    slicer.util.arrayFromVolumeModified(other)
    panel.widget.parameters.inputVolume = other
    panel.run("liver")
    assert np.array_equal(panel.mask("liver"), np.roll(body("liver"), 2, axis=1))


def test_segments_of_the_user_stay_as_they_are(volume, panel):
    panel.run("liver")
    node = panel.widget.parameters.segmentation
    mine = node.GetSegmentation().AddEmptySegment("", "my region")
    drawn = np.zeros(body("liver").shape, np.uint8)
    drawn[5:9, 20:30, 10:25] = 1
    slicer.util.updateSegmentBinaryLabelmapFromArray(drawn, node, mine, volume)
    panel.run("spleen; liver")
    assert np.array_equal(panel.mask("my region"), drawn > 0)
    assert panel.segments == ["liver", "my region", "spleen"]


def test_segments_may_stay_out_of_those_that_are_there(volume, panel):
    panel.run("liver")
    node = panel.widget.parameters.segmentation
    mine = node.GetSegmentation().AddEmptySegment("", "my region")
    drawn = np.zeros(body("liver").shape, np.uint8)
    drawn[:, :, 48:] = 1
    slicer.util.updateSegmentBinaryLabelmapFromArray(drawn, node, mine, volume)
    panel.ui.stayOutBox.click()
    panel.run("spleen")
    assert np.array_equal(panel.mask("spleen"), body("spleen") & (drawn == 0))


def test_engine_stays_for_the_next_run(volume, panel):
    panel.run("liver")
    first = only_pid(panel)
    panel.run("spleen")
    assert only_pid(panel) == first


# Cancel


@pytest.mark.parametrize("stage", ["writing", "starting", "loading", "encoding", "segmenting"])
def test_cancel_at_every_stage(volume, panel, stage):
    start(panel, "liver; spleen", seconds_per_slice=SLOW, seconds_loading=SLOW * 4)
    if stage == "starting":
        panel.spin(lambda: panel.logic.run._writer is None)
    elif stage != "writing":
        panel.spin(lambda: panel.logic.run.state.code == stage)
    panel.click("cancelButton")
    assert panel.phase in ("cancelling", "cancelled")
    asked = time.monotonic()
    panel.finish()
    assert panel.phase == "cancelled" and time.monotonic() - asked < 5
    assert panel.status == "Cancelled. Segments that were ready have been kept."
    assert panel.segments == []
    panel.plan()
    panel.run("spleen")
    assert_whole(panel, "spleen")


def test_cancelled_run_keeps_what_was_ready(volume, panel):
    start(panel, "liver; spleen", seconds_per_slice=0.05)
    panel.spin(lambda: panel.segments == ["liver"])
    panel.click("cancelButton")
    panel.picture("cancelling")
    panel.finish()
    assert_whole(panel, "liver")
    panel.picture("cancelled")


def test_engine_that_does_not_listen_is_ended(volume, panel, monkeypatch):
    monkeypatch.setattr("MedZeroSegSlicer.engine_process.GRACE_S", 0.5)
    start(panel, "liver", fault="deaf")
    pid = only_pid(panel)
    panel.spin(lambda: panel.logic.run.state.code == "encoding")
    panel.click("cancelButton")
    panel.finish()
    assert panel.phase == "cancelled"
    panel.spin(lambda: not is_alive(pid))


# Faults


def test_killed_engine_fails_the_run_and_keeps_what_was_ready(volume, panel):
    start(panel, "liver; spleen", seconds_per_slice=0.05)
    panel.spin(lambda: panel.segments == ["liver"])
    os.kill(only_pid(panel), signal.SIGKILL)
    panel.finish()
    assert panel.phase == "failed" and panel.logic.run.state.failure == "worker-died"
    assert panel.status.endswith((".", ")")) and panel.ui.runButton.enabled
    assert_whole(panel, "liver")
    panel.picture("failed")
    panel.run("spleen")
    assert_whole(panel, "liver", "spleen")


def test_native_crash_fails_the_run_only(volume, panel):
    start(panel, "liver", fault="abort")
    panel.finish()
    assert panel.logic.run.state.failure == "worker-died"
    assert slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLSegmentationNode") is None


def test_lack_of_memory_is_one_sentence_with_a_way_out(volume, panel):
    start(panel, "liver", fault="memory")
    panel.finish()
    assert panel.phase == "failed" and panel.logic.run.state.failure == "memory"
    assert "memory" in panel.status and "Traceback" not in panel.status and panel.ui.runButton.enabled


def test_fault_after_a_result_keeps_that_result(volume, panel):
    start(panel, "liver; spleen", fault="memory", at="spleen")
    panel.finish()
    assert panel.phase == "failed"
    assert_whole(panel, "liver")


def test_error_inside_the_engine_is_no_traceback(volume, panel):
    start(panel, "liver", fault="error")
    panel.finish()
    assert panel.phase == "failed" and panel.status and "Traceback" not in panel.status
    assert any("Traceback" in line for line in panel.logic.run.log), "the log tells the developer"


def test_mask_that_does_not_fit_makes_no_half_segment(volume, panel):
    start(panel, "liver; spleen", fault="mask", at="spleen")
    panel.finish()
    assert panel.phase == "failed" and "spleen" in panel.status
    assert_whole(panel, "liver")


def test_library_that_prints_does_no_harm(volume, panel):
    start(panel, "liver", fault="print")
    panel.finish()
    assert_whole(panel, "liver")


# The scene changes under the run


def test_scene_closed_in_a_run_stays_empty(volume, panel):
    start(panel, "liver; spleen", seconds_per_slice=0.05)
    panel.spin(lambda: panel.segments == ["liver"])
    slicer.mrmlScene.Clear()
    assert panel.status == "Load an image first (drag a DICOM folder or a file here)."
    panel.spin(lambda: not panel.logic.poll() and not panel.logic._timer.active)
    assert slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLSegmentationNode") is None
    assert panel.widget.parameters.prompts == ""
    phantom("Next")
    panel.run("liver")
    assert_whole(panel, "liver")


def test_deleted_image_ends_its_run_and_nothing_is_written(volume, panel):
    other = phantom("Other")
    start(panel, "liver", seconds_per_slice=0.05)
    panel.spin(lambda: panel.logic.run.state.code == "encoding")
    slicer.mrmlScene.RemoveNode(volume)
    panel.spin(lambda: not panel.logic._timer.active)
    assert slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLSegmentationNode") is None
    panel.widget.parameters.inputVolume = other
    panel.run("liver")
    assert_whole(panel, "liver")


def test_image_that_changes_under_the_run_gets_no_wrong_mask(volume, panel):
    start(panel, "liver", seconds_per_slice=0.05)
    panel.spin(lambda: panel.logic.run.state.code == "encoding")
    slicer.util.updateVolumeFromArray(volume, np.zeros((3, 4, 5), np.int16))
    panel.finish()
    assert panel.status == "The image was changed while it was segmented; press Segment to try again."
    assert panel.segments == []


def test_deleted_segmentation_is_made_anew_for_what_still_comes(volume, panel):
    start(panel, "liver; spleen", seconds_per_slice=0.05)
    panel.spin(lambda: panel.segments == ["liver"])
    slicer.mrmlScene.RemoveNode(panel.widget.parameters.segmentation)
    panel.finish()
    assert_whole(panel, "spleen")


def test_image_moved_under_the_run_keeps_its_segments_on_it(volume, panel):
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "registration")
    start(panel, "liver; spleen", seconds_per_slice=0.05)
    panel.spin(lambda: panel.segments == ["liver"])
    volume.SetAndObserveTransformNodeID(transform.GetID())
    panel.widget.parameters.segmentation.SetAndObserveTransformNodeID(transform.GetID())
    panel.finish()
    assert_whole(panel, "liver", "spleen")


# The logic alone


def test_script_gets_the_segmentation_without_any_panel(module, plan, monkeypatch, panel, volume):
    logic = module.MedZeroSegLogic()
    node = logic.segment(volume, ["liver", "right kidney"])
    assert node.GetSegmentation().GetNumberOfSegments() == 1 and logic.absent == ["right kidney"]
    logic.close()


def test_script_is_refused_names_that_nobody_knows(module, panel, volume):
    logic = module.MedZeroSegLogic()
    with pytest.raises(ValueError, match="hello world"):
        logic.segment(volume, "liver; hello world")
    with pytest.raises(ValueError, match="No name"):
        logic.segment(volume, [])
    logic.segment(volume, "liver; hello world", tryUnknown=True)
    assert logic.absent == ["hello world"]
    logic.close()


def test_script_gets_a_failed_run_as_an_error(module, panel, volume):
    panel.plan(fault="memory")
    logic = module.MedZeroSegLogic()
    with pytest.raises(RuntimeError, match="memory"):
        logic.segment(volume, "liver")
    logic.close()


def test_script_need_not_wait(module, panel, volume):
    logic = module.MedZeroSegLogic()
    told = []
    logic.onChanged = lambda: told.append(logic.run.state.phase.value)
    assert logic.segment(volume, "liver", wait=False) is None
    panel.spin(lambda: "done" in told)
    assert logic.run.segmentation is not None
    logic.close()


def test_no_process_and_no_file_is_left_behind(module, panel, volume):
    panel.run("liver")
    pid, folder = only_pid(panel), panel.logic.run._files.name
    panel.logic.close()
    panel.spin(lambda: not is_alive(pid))
    assert not os.path.exists(folder)


def test_every_body_of_the_phantom_is_told_apart():
    shapes = [body(name).sum() for name in BODIES]
    assert len(set(shapes)) == len(BODIES) and min(shapes) > 0


def test_self_test_of_the_module_passes(module, panel, monkeypatch):
    tests = module.MedZeroSegTest()
    said = []
    monkeypatch.setattr(tests, "delayDisplay", said.append)
    monkeypatch.setattr(module, "examine", lambda folder, preset: module.Setup(packages=("absent",)))
    tests.runTest()
    assert said == [
        "Skipped: the models are not set up on this computer.",
        "Names became segments on the grid of the image.",
    ]
