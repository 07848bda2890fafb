"""The life of a run: results one by one, cancel at every stage, and the logic without any panel."""

from __future__ import annotations

import os
import time

import numpy as np
import pytest

slicer = pytest.importorskip("slicer", reason="slicer-core has no wheel for this Python")
pytest.importorskip("PySide6", reason="PySide6 shows the panel")

from MedZeroSegSlicer.engine_process import NICENESS  # noqa: E402
from MedZeroSegSlicer.install import Setup  # noqa: E402
from phantoms_of_panel import BODIES, body, phantom  # noqa: E402

SLOW = 0.15  # seconds a slice: long enough to be caught at work


# A run that ends well


def test_names_become_segments_with_exactly_the_engines_masks(volume, panel):
    panel.run("liver; Spleen; aorta; right kidney")
    panel.assert_whole("liver", "spleen", "aorta")
    assert panel.status.startswith("3 segments, ") and panel.status.endswith("Not found in this image: right kidney.")
    assert panel.logic.absent == ["right kidney"]
    assert panel.ui.runButton.visible and panel.ui.runButton.enabled and not panel.ui.progressBar.visible


def test_results_appear_one_by_one(volume, panel):
    panel.start("liver; spleen", seconds_per_slice=0.02)
    panel.spin(lambda: panel.segments == ["liver"])
    assert panel.phase == "running"
    panel.assert_whole("liver")
    panel.spin(lambda: "liver" in panel.ui.measurementsLabel.text)
    assert panel.phase == "running" and "spleen" not in panel.ui.measurementsLabel.text
    panel.finish()
    panel.assert_whole("liver", "spleen")


def test_progress_is_shown_with_the_time_left(volume, panel):
    panel.start("liver; spleen; aorta", seconds_per_slice=0.02)
    panel.spin(lambda: panel.logic.run.state.seconds_left is not None and panel.ui.progressBar.value > 300)
    assert " left" in panel.status
    panel.picture("running")
    panel.finish()


def test_inputs_that_rest_say_why_and_then_what_they_are_for_again(volume, panel):
    purpose = panel.ui.deviceSelector.toolTip
    panel.start("liver", seconds_per_slice=0.02)
    panel.spin(lambda: panel.logic.run.state.code == "segmenting")
    assert not panel.ui.deviceSelector.enabled and panel.ui.deviceSelector.toolTip.endswith("cancel it first.")
    panel.finish()
    assert panel.ui.deviceSelector.enabled and panel.ui.deviceSelector.toolTip == purpose != ""


def test_engine_leaves_the_processor_to_the_window(volume, panel):
    panel.run("liver")
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert os.getpriority(os.PRIO_PROCESS, panel.pid()) == max(own, NICENESS) and own < 20


def test_log_of_the_engine_can_be_read_under_advanced(volume, panel):
    panel.start("liver", fault="error")
    panel.finish()
    assert panel.ui.logView.toPlainText() == "", "nothing is done for a section that is folded"
    panel.ui.advancedSection.collapsed = False
    assert "Traceback" in panel.ui.logView.toPlainText() and panel.ui.logView.readOnly
    panel.picture("log", height=1100)


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
    first = panel.pid()
    panel.run("spleen")
    assert panel.pid() == first


# Cancel


@pytest.mark.parametrize("stage", ["writing", "starting", "loading", "encoding", "segmenting"])
def test_cancel_at_every_stage(volume, panel, stage):
    panel.start("liver; spleen", seconds_per_slice=SLOW, seconds_loading=SLOW * 4)
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
    panel.assert_whole("spleen")


def test_cancelled_run_keeps_what_was_ready(volume, panel):
    panel.start("liver; spleen", seconds_per_slice=0.02)
    panel.spin(lambda: panel.segments == ["liver"])
    panel.click("cancelButton")
    panel.picture("cancelling")
    panel.finish()
    panel.assert_whole("liver")
    panel.picture("cancelled")


def test_engine_that_does_not_listen_is_ended(volume, panel, monkeypatch):
    monkeypatch.setattr("MedZeroSegSlicer.engine_process.GRACE_S", 0.5)
    panel.start("liver", fault="deaf")
    pid = panel.pid()
    panel.spin(lambda: panel.logic.run.state.code == "encoding")
    panel.click("cancelButton")
    panel.finish()
    assert panel.phase == "cancelled"
    panel.spin(lambda: not panel.is_alive(pid))


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
    pid, folder = panel.pid(), panel.logic.run._files.path
    panel.logic.close()
    panel.spin(lambda: not panel.is_alive(pid))
    assert not os.path.exists(folder)


def test_every_body_of_the_phantom_is_told_apart():
    shapes = [body(name).sum() for name in BODIES]
    assert len(set(shapes)) == len(BODIES) and min(shapes) > 0


def test_self_test_of_the_module_passes(module, panel, monkeypatch):
    tests = module.MedZeroSegTest()
    said = []
    monkeypatch.setattr(tests, "delayDisplay", said.append)
    monkeypatch.setattr("MedZeroSegSlicer.logic.examine", lambda folder, preset: Setup(packages=("absent",)))
    tests.runTest()
    assert said == [
        "Skipped: the models are not set up on this computer.",
        "Names became segments on the grid of the image.",
    ]
