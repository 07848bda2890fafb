"""Faults of the engine and changes of the scene under a run: nothing that was ready is lost, no half segment is made,
and the panel goes on."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import pytest

slicer = pytest.importorskip("slicer", reason="slicer-core has no wheel for this Python")
pytest.importorskip("PySide6", reason="PySide6 shows the panel")

from MedZeroSegSlicer.segmentation_run import Settings  # noqa: E402
from phantoms_of_panel import phantom  # noqa: E402

# Faults


def test_killed_engine_fails_the_run_and_keeps_what_was_ready(volume, panel):
    panel.start("liver; spleen", seconds_per_slice=0.02)
    panel.spin(lambda: panel.segments == ["liver"])
    os.kill(panel.pid(), signal.SIGKILL)
    panel.finish()
    assert panel.phase == "failed" and panel.logic.run.state.failure == "worker-died"
    assert panel.status.endswith((".", ")")) and panel.ui.runButton.enabled
    panel.assert_whole("liver")
    panel.picture("failed")
    panel.run("spleen")
    panel.assert_whole("liver", "spleen")


def test_native_crash_fails_the_run_only(volume, panel):
    panel.start("liver", fault="abort")
    panel.finish()
    assert panel.logic.run.state.failure == "worker-died"
    assert slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLSegmentationNode") is None


def test_lack_of_memory_is_one_sentence_with_a_way_out(volume, panel):
    panel.start("liver", fault="memory")
    panel.finish()
    assert panel.phase == "failed" and panel.logic.run.state.failure == "memory"
    assert "memory" in panel.status and "Traceback" not in panel.status and panel.ui.runButton.enabled


def test_fault_after_a_result_keeps_that_result(volume, panel):
    panel.start("liver; spleen", fault="memory", at="spleen")
    panel.finish()
    assert panel.phase == "failed"
    panel.assert_whole("liver")


def test_error_inside_the_engine_is_no_traceback(volume, panel):
    panel.start("liver", fault="error")
    panel.finish()
    assert panel.phase == "failed" and panel.status and "Traceback" not in panel.status
    assert any("Traceback" in line for line in panel.logic.run.log), "the log tells the developer"


def test_mask_that_does_not_fit_makes_no_half_segment(volume, panel):
    panel.start("liver; spleen", fault="mask", at="spleen")
    panel.finish()
    assert panel.phase == "failed" and "spleen" in panel.status
    panel.assert_whole("liver")


def test_disk_that_is_full_for_a_result_is_told_with_the_way_out(volume, panel):
    panel.start("liver; spleen", fault="disk", at="spleen")
    panel.finish()
    assert panel.phase == "failed"
    assert panel.status == "The result can't be written to the disk; make room on it and press Segment again."
    assert not panel.ui.setupBanner.visible, "another installation wouldn't help"
    panel.assert_whole("liver")


STAGES = {
    "loading": {"seconds_loading": 5},
    "encoding": {"seconds_per_slice": 2},
    "segmenting": {"seconds_per_slice": 0.05},
}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("cancelled", [False, True], ids=["running", "cancelling"])
def test_engine_killed_at_any_stage_leaves_no_half_segment_and_the_next_run_works(volume, panel, stage, cancelled):
    panel.run("spleen")
    panel.start("liver", **STAGES[stage])
    panel.spin(lambda: panel.logic.run.state.code == stage)
    if cancelled:
        panel.click("cancelButton")
    os.kill(panel.pid(), signal.SIGKILL)
    panel.finish()
    assert panel.phase == "cancelled" if cancelled else panel.logic.run.state.failure == "worker-died"
    panel.assert_whole("spleen")
    panel.plan()
    panel.run("liver")
    panel.assert_whole("spleen", "liver")


def test_engine_killed_in_a_download_is_told(volume, panel):
    panel.run("liver")
    panel.plan(seconds_per_slice=2)
    panel.logic.fetch(Settings())
    panel.spin(lambda: panel.logic.run.state.code == "downloading" and panel.logic.run.state.seconds_left is not None)
    os.kill(panel.pid(), signal.SIGKILL)
    panel.finish()
    assert panel.phase == "failed" and panel.logic.run.state.failure == "worker-died", panel.status
    panel.plan()
    panel.run("spleen")
    panel.assert_whole("liver", "spleen")


def test_engine_killed_before_it_hears_of_a_check_is_asked_anew(volume, panel):
    panel.run("liver")
    os.kill(panel.pid(), signal.SIGSTOP)
    time.sleep(0.3)  # until all its threads have stopped
    panel.logic.check(Settings())
    panel.qapp.processEvents()
    os.kill(panel.pid(), signal.SIGKILL)
    panel.finish()
    assert panel.phase == "done" and panel.status.startswith("Ready"), panel.status


def test_engine_killed_while_nothing_is_under_way_is_not_noticed(volume, panel):
    panel.run("liver")
    os.kill(panel.pid(), signal.SIGKILL)
    panel.run("spleen")
    panel.assert_whole("liver", "spleen")


def test_library_that_prints_does_no_harm(volume, panel):
    panel.start("liver", fault="print")
    panel.finish()
    panel.assert_whole("liver")


# The scene changes under the run


def test_scene_closed_in_a_run_stays_empty(volume, panel):
    panel.start("liver; spleen", seconds_per_slice=0.02)
    panel.spin(lambda: panel.segments == ["liver"])
    slicer.mrmlScene.Clear()
    assert panel.status == "Load an image first (drag a DICOM folder or a file here)."
    panel.spin(lambda: not panel.logic.poll() and not panel.logic._timer.active)
    assert slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLSegmentationNode") is None
    assert panel.widget.parameters.prompts == ""
    phantom("Next")
    panel.run("liver")
    panel.assert_whole("liver")


def test_deleted_image_ends_its_run_and_nothing_is_written(volume, panel):
    other = phantom("Other")
    panel.start("liver", seconds_per_slice=0.02)
    panel.spin(lambda: panel.logic.run.state.code in ("encoding", "segmenting"))
    slicer.mrmlScene.RemoveNode(volume)
    panel.spin(lambda: not panel.logic._timer.active)
    assert slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLSegmentationNode") is None
    panel.widget.parameters.inputVolume = other
    panel.run("liver")
    panel.assert_whole("liver")


def test_image_deleted_between_the_making_of_the_segmentation_and_its_first_segment_leaves_none(volume, panel):
    panel.start("liver")
    panel.spin(lambda: panel.logic.run._is_new)
    assert slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLSegmentationNode") is not None
    slicer.mrmlScene.RemoveNode(volume)
    panel.finish()
    assert slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLSegmentationNode") is None and panel.phase == "cancelled"


def test_image_that_changes_under_the_run_gets_no_wrong_mask(volume, panel):
    panel.start("liver", seconds_per_slice=0.02)
    panel.spin(lambda: panel.logic.run.state.code in ("encoding", "segmenting"))
    slicer.util.updateVolumeFromArray(volume, np.zeros((3, 4, 5), np.int16))
    panel.finish()
    assert panel.status == "The image was changed while it was segmented; press Segment to try again."
    assert panel.segments == []


def test_deleted_segmentation_is_made_anew_for_what_still_comes(volume, panel):
    panel.start("liver; spleen", seconds_per_slice=0.02)
    panel.spin(lambda: panel.segments == ["liver"])
    slicer.mrmlScene.RemoveNode(panel.widget.parameters.segmentation)
    panel.finish()
    panel.assert_whole("spleen")


def test_image_moved_under_the_run_keeps_its_segments_on_it(volume, panel):
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "registration")
    panel.start("liver; spleen", seconds_per_slice=0.02)
    panel.spin(lambda: panel.segments == ["liver"])
    volume.SetAndObserveTransformNodeID(transform.GetID())
    panel.widget.parameters.segmentation.SetAndObserveTransformNodeID(transform.GetID())
    panel.finish()
    panel.assert_whole("liver", "spleen")
