"""One history for this module and the Segment Editor while both show the same segments: either undoes the last step.

The editor here is a stand-in around Slicer's own history; whether the real one behaves so only the application shows.
"""

from __future__ import annotations

import types

import numpy as np
import pytest

slicer = pytest.importorskip("slicer", reason="slicer-core has no wheel for this Python")
pytest.importorskip("PySide6", reason="PySide6 shows the panel")

from MedZeroSegSlicer.segment_voxels import write_segment  # noqa: E402
from phantoms_of_panel import body, phantom  # noqa: E402
from PySide6 import QtCore, QtTest  # noqa: E402
from stand_ins import qMRMLSegmentEditorWidget  # noqa: E402

STROKE = (2, 7, 3, 8, 1, 1)  # i, j, k, inclusive; far from all bodies


@pytest.fixture
def editor(panel, monkeypatch):
    """The Segment Editor, which has been opened before."""
    widget = qMRMLSegmentEditorWidget()
    monkeypatch.setattr(slicer.modules, "SegmentEditorWidget", types.SimpleNamespace(editor=widget), raising=False)
    monkeypatch.setattr(slicer.util, "selectModule", lambda _name: panel.widget.exit())
    return widget


def paint(panel, editor, name: str) -> None:
    """A stroke with the editor's brush."""
    node, volume = panel.widget.parameters.segmentation, panel.widget.parameters.inputVolume
    painted = panel.mask(name)
    i0, i1, j0, j1, k0, k1 = STROKE
    painted[k0 : k1 + 1, j0 : j1 + 1, i0 : i1 + 1] = True
    editor.saveStateForUndo()
    shape = painted.shape
    write_segment(
        node, volume, node.GetSegmentation().GetSegmentIdBySegmentName(name), painted,
        (0, shape[2] - 1, 0, shape[1] - 1, 0, shape[0] - 1),
    )  # fmt: skip


def test_run_can_be_undone_in_the_editor_that_was_opened_after_it(volume, panel, editor):
    panel.run("liver")
    panel.run("spleen")
    panel.click("editButton")
    editor.undo()
    assert panel.segments == ["liver"]
    editor.undo()
    assert panel.segments == []
    editor.redo()
    editor.redo()
    assert panel.segments == ["liver", "spleen"]
    panel.assert_whole("liver", "spleen")


def test_run_and_stroke_are_undone_in_their_order_wherever_undo_is_pressed(volume, panel, editor):
    panel.run("liver")
    panel.click("editButton")
    paint(panel, editor, "liver")
    panel.widget.enter()
    panel.run("spleen")
    assert panel.segments == ["liver", "spleen"]
    editor.undo()  # the run
    assert panel.segments == ["liver"] and panel.mask("liver")[1, 3, 2]
    panel.widget.refresh()
    panel.click("undoButton")  # the stroke
    assert np.array_equal(panel.mask("liver"), body("liver"))
    panel.click("undoButton")  # the first run
    assert panel.segments == [] and not panel.ui.undoButton.enabled


def test_results_that_come_after_a_stroke_are_a_step_of_their_own(volume, panel, editor):
    panel.run("liver")
    panel.click("editButton")
    panel.widget.enter()
    panel.start("spleen; aorta", seconds_per_slice=0.02)
    panel.spin(lambda: panel.segments == ["liver", "spleen"])
    paint(panel, editor, "liver")
    panel.finish()
    assert panel.segments == ["liver", "spleen", "aorta"]
    editor.undo()
    assert panel.segments == ["liver", "spleen"] and panel.mask("liver")[1, 3, 2]
    editor.undo()
    assert np.array_equal(panel.mask("liver"), body("liver"))


def test_history_of_another_segmentation_in_the_editor_is_left_alone(volume, panel, editor):
    other = phantom("Other")
    panel.run("liver")
    first = panel.widget.parameters.segmentation
    panel.click("editButton")
    paint(panel, editor, "liver")
    panel.widget.enter()
    panel.widget.parameters.inputVolume = other
    panel.run("spleen")
    panel.click("undoButton")
    assert panel.segments == [] and editor.segmentationNode() is first
    editor.undo()
    panel.widget.parameters.inputVolume = volume
    assert np.array_equal(panel.mask("liver"), body("liver"))


def test_editor_without_a_history_takes_none(volume, panel, editor):
    editor.undoEnabled = False
    panel.run("liver")
    panel.click("editButton")
    panel.widget.enter()
    panel.click("undoButton")
    assert panel.segments == []


def test_segment_that_was_selected_is_the_one_that_is_edited(volume, panel, editor):
    panel.run("liver; spleen")
    chosen = panel.widget.parameters.segmentation.GetSegmentation().GetSegmentIdBySegmentName("spleen")
    panel.ui.segmentsTable.setSelectedSegmentIDs([chosen])
    panel.click("editButton")
    assert editor.currentSegmentID() == chosen and panel.ui.segmentsTable.selectedSegmentIDs() == [chosen]


def test_control_z_takes_back_the_last_change_but_in_the_field_what_was_typed(volume, panel):
    panel.run("liver")
    panel.run("spleen")
    panel.parent.activateWindow()
    panel.ui.show3DButton.setFocus()
    panel.qapp.processEvents()
    QtTest.QTest.keyClick(panel.ui.show3DButton, QtCore.Qt.Key_Z, QtCore.Qt.ControlModifier)
    assert panel.segments == ["liver"]
    panel.ui.promptsEdit.setFocus()
    panel.widget.setPrompts("aorta")
    QtTest.QTest.keyClick(panel.ui.promptsEdit, QtCore.Qt.Key_Z, QtCore.Qt.ControlModifier)
    assert panel.segments == ["liver"] and panel.ui.promptsEdit.toPlainText() == "spleen"
