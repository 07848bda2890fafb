"""Correcting by hand in the panel: what is pointed at in the views becomes actions, and answers are in the scene."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

slicer = pytest.importorskip("slicer", reason="slicer-core has no wheel for this Python")
pytest.importorskip("PySide6", reason="PySide6 shows the panel")

import vtk  # noqa: E402
from fake_editing import RADIUS  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from hypothesis.extra.numpy import arrays  # noqa: E402
from MedZeroSegSlicer.correction_target import pasted  # noqa: E402
from MedZeroSegSlicer.placing import shown_slice, stroke, to_ijk, to_world  # noqa: E402
from MedZeroSegSlicer.review_order import Doubtful, doubtful_slices, next_after  # noqa: E402
from MedZeroSegSlicer.segment_io import add_result, keep_provenance, provenance_of  # noqa: E402
from MedZeroSegSlicer.segment_voxels import read_segment, write_segment  # noqa: E402
from phantoms_of_panel import body  # noqa: E402

from MedZeroSegLib.extent import EMPTY_EXTENT, crop, mask_extent  # noqa: E402

NEAR = (34, 26, 12)  # i, j, k: beside the liver


def square(i: int, j: int, k: int) -> np.ndarray:
    """What a click of the stand-in engine paints, bool [k, j, i]."""
    mask = np.zeros(body("liver").shape, bool)
    mask[k, j - RADIUS : j + RADIUS + 1, i - RADIUS : i + RADIUS + 1] = True
    return mask


class Corrector:
    """What a person does in the section, and what comes of it."""

    def __init__(self, panel: Any, volume: Any) -> None:
        self.panel, self.volume, self.ui = panel, volume, panel.ui
        self.section, self.correction = panel.widget.correctionPanel, panel.logic.correction
        self.node = panel.widget.parameters.segmentation

    def select(self, name: str) -> None:
        ids = self.node.GetSegmentation()
        self.ui.segmentsTable.setSelectedSegmentIDs([ids.GetSegmentIdBySegmentName(name)])

    def place(self, tool: str, *positions: tuple[float, float, float]) -> None:
        """Click in the views at positions of the image."""
        if not getattr(self.ui, f"{tool}Button").checked:
            self.panel.click(f"{tool}Button")
        node = self.section._placing._nodes[tool]
        for point in to_world(self.volume, np.array(positions, float)):
            node.AddControlPointWorld(vtk.vtkVector3d(*point))

    def wait(self) -> None:
        """Until nothing is on its way."""
        for _ in range(3):
            self.panel.qapp.processEvents()
        self.panel.spin(lambda: not self.correction.busy)

    def click_at(self, tool: str, *positions: tuple[float, float, float]) -> None:
        self.place(tool, *positions)
        self.wait()

    def press(self, button: str) -> None:
        self.panel.click(button)
        self.wait()

    def edits(self) -> list[dict[str, Any]]:
        """The messages with actions that the engine has got."""
        return [message for message in self.panel.asked() if message["cmd"] == "edit"]

    def segment(self, name: str) -> Any:
        segmentation = self.node.GetSegmentation()
        return segmentation.GetSegment(segmentation.GetSegmentIdBySegmentName(name))

    def kept(self, name: str = "liver") -> list[dict[str, Any]]:
        """The corrections in a segment's provenance."""
        return provenance_of(self.segment(name)).get("corrections", [])

    @property
    def says(self) -> str:
        return self.ui.correctionLabel.text


@pytest.fixture
def corrector(volume, panel) -> Corrector:
    """Liver and spleen are in the scene, the liver is selected."""
    panel.run("liver; spleen")
    corrector = Corrector(panel, volume)
    corrector.select("liver")
    return corrector


@pytest.fixture
def view(volume) -> Iterator[Any]:
    """A slice view along the slices of the oblique phantom."""
    node = slicer.vtkMRMLSliceNode()
    node.SetLayoutName("Red")
    node = slicer.mrmlScene.AddNode(node)
    yield node
    slicer.mrmlScene.RemoveNode(node)  # closing a scene leaves views


def show(view: Any, volume: Any, k: float) -> None:
    view.JumpSliceByCentering(*to_world(volume, np.array([[30.0, 28, k]]))[0])


# Points


def test_nothing_can_be_corrected_before_a_segment_is_selected(volume, panel):
    assert not panel.ui.correctionSection.visible
    panel.run("liver")
    assert panel.ui.correctionSection.visible and not panel.ui.includeButton.enabled
    assert panel.ui.correctionLabel.text == "Select a segment in the table above to correct it."


def test_included_point_is_in_the_segment_afterwards(corrector, panel):
    corrector.click_at("include", NEAR)
    assert np.array_equal(panel.mask("liver"), body("liver") | square(*NEAR))
    assert np.array_equal(panel.mask("spleen"), body("spleen"))
    (action,) = corrector.kept()
    assert action["kind"] == "include" and np.allclose(action["points"], [NEAR], atol=0.01)


def test_excluded_point_is_out_of_the_segment_afterwards(corrector, panel):
    corrector.click_at("exclude", (20, 26, 12))
    assert np.array_equal(panel.mask("liver"), body("liver") & ~square(20, 26, 12))


def test_points_are_taken_out_of_the_scene_and_the_tool_stays(corrector):
    corrector.click_at("include", NEAR)
    assert corrector.section._placing._nodes["include"].GetNumberOfControlPoints() == 0
    assert corrector.ui.includeButton.checked
    corrector.panel.click("includeButton")
    assert not corrector.ui.includeButton.checked and corrector.section._placing.tool == ""


def test_points_in_a_turned_and_shifted_image_are_where_they_were_clicked(volume, panel):
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "registration")
    turn = vtk.vtkTransform()
    turn.RotateWXYZ(35, 1, 2, 3)
    turn.Translate(40, -17, 9)
    transform.SetMatrixTransformToParent(turn.GetMatrix())
    volume.SetAndObserveTransformNodeID(transform.GetID())
    panel.run("liver")
    corrector = Corrector(panel, volume)
    corrector.select("liver")
    corrector.click_at("include", NEAR)
    voxels, extent = read_segment(corrector.node, volume, corrector.correction.target.segment_id)
    whole = np.zeros(body("liver").shape, bool)
    crop(whole, extent)[:] = voxels
    assert np.array_equal(whole, body("liver") | square(*NEAR))


def test_point_outside_the_image_is_answered_with_the_engines_sentence(corrector, panel):
    corrector.click_at("include", (90, 26, 12))
    assert "outside the image" in corrector.says
    panel.assert_whole("liver", "spleen")
    corrector.click_at("include", NEAR)
    assert panel.mask("liver")[12, 26, 34]


def test_box_becomes_a_box_of_indices(corrector, panel, volume):
    panel.click("boxButton")
    roi = corrector.section._placing._nodes["box"]
    matrix = np.eye(4)
    corners = to_world(volume, np.array([[36.0, 20, 12], [37, 20, 12], [36, 21, 12], [36, 20, 13]]))
    axes = corners[1:] - corners[0]
    matrix[:3, :3] = (axes / np.linalg.norm(axes, axis=1)[:, None]).T
    matrix[:3, 3] = to_world(volume, np.array([[38.0, 22, 12]]))[0]
    roi.SetSize(*(np.linalg.norm(axes, axis=1) * (4, 4, 0.5)))
    roi.SetAndObserveObjectToNodeMatrix(slicer.util.vtkMatrixFromArray(matrix))
    roi.AddControlPointWorld(vtk.vtkVector3d(*matrix[:3, 3]))
    roi.AddControlPointWorld(vtk.vtkVector3d(*(matrix[:3, 3] + 1)))
    corrector.wait()
    actions = [action for message in corrector.edits() for action in message["actions"]]
    assert [action["kind"] for action in actions] == ["box"] and roi.GetScene() is None


@settings(max_examples=60, deadline=None)
@given(arrays(float, (2, 3), elements=st.floats(0, 30)))
def test_line_has_no_gaps_and_no_voxel_twice(line):
    voxels = stroke(line)
    assert np.abs(np.diff(voxels, axis=0)).max(initial=0) <= 1
    assert len(np.unique(voxels, axis=0)) == len(voxels)
    assert all((voxels == np.rint(point)).all(axis=1).any() for point in line)


# Slices


def test_slice_that_is_shown_is_confirmed_and_nothing_changes(corrector, panel, volume, view):
    show(view, volume, 9)
    corrector.press("sliceRightButton")
    assert corrector.kept() == [{"kind": "confirm", "slice": 9}]
    panel.assert_whole("liver", "spleen")


def test_slice_without_the_structure_is_emptied(corrector, panel, volume, view):
    show(view, volume, 7)
    corrector.press("notInSliceButton")
    assert not panel.mask("liver")[7].any() and panel.mask("liver")[8].any()


def test_without_a_view_of_the_image_a_sentence_says_so(corrector):
    corrector.press("sliceRightButton")
    assert corrector.says.startswith("No view shows a slice of this image") and corrector.edits() == []


def test_spread_updates_other_slices_and_tells_how_many(corrector, panel):
    corrector.click_at("include", NEAR)
    corrector.press("spreadButton")
    expected = body("liver") | square(*NEAR)
    expected[1:] |= expected[:-1].copy()
    assert np.array_equal(panel.mask("liver"), expected)
    assert corrector.says.endswith("updated.") and [action["kind"] for action in corrector.kept()][-1] == "spread"


# Undo, and what others do meanwhile


def test_each_action_is_one_step_of_undo_and_the_next_one_names_the_older_revision(corrector, panel):
    corrector.click_at("include", NEAR)
    corrector.click_at("include", (34, 26, 14))
    corrector.press("takeBackButton")
    assert np.array_equal(panel.mask("liver"), body("liver") | square(*NEAR)) and len(corrector.kept()) == 1
    corrector.click_at("exclude", (20, 26, 12))
    assert [message["revision"] for message in corrector.edits()] == [0, 1, 1]
    assert not any(action["kind"] == "redraw" for message in corrector.edits() for action in message["actions"])
    expected = (body("liver") | square(*NEAR)) & ~square(20, 26, 12)
    assert np.array_equal(panel.mask("liver"), expected)


def test_undo_of_the_result_is_followed_as_well(corrector, panel):
    corrector.click_at("include", NEAR)
    panel.click("undoButton")
    assert panel.ui.measurementsLabel.visible  # of the run, which is still there
    corrector.click_at("include", (34, 26, 14))
    assert [message["revision"] for message in corrector.edits()] == [0, 0]
    assert np.array_equal(panel.mask("liver"), body("liver") | square(34, 26, 14))


def test_undo_of_a_confirmation_names_the_revision_before_it(corrector, volume, view):
    show(view, volume, 9)
    corrector.press("sliceRightButton")
    corrector.press("takeBackButton")
    assert corrector.kept() == []
    corrector.click_at("include", NEAR)
    assert [message["revision"] for message in corrector.edits()] == [0, 0]


def test_what_other_tools_drew_is_handed_over_as_drawn(corrector, panel, volume):
    corrector.click_at("include", NEAR)
    drawn = panel.mask("liver") | square(50, 10, 3)
    write_segment(corrector.node, volume, corrector.correction.target.segment_id, drawn, mask_of_all(drawn))
    corrector.click_at("include", (34, 26, 14))
    assert [action["kind"] for action in corrector.edits()[-1]["actions"]] == ["redraw", "include"]
    assert np.array_equal(panel.mask("liver"), drawn | square(34, 26, 14))


def test_what_is_drawn_while_the_engine_works_is_not_lost(corrector, panel, volume):
    corrector.click_at("include", NEAR)
    panel.plan(seconds_editing=0.4)
    corrector.place("include", (34, 26, 14))
    panel.spin(lambda: corrector.correction._current is not None)
    drawn = panel.mask("liver") | square(36, 26, 14)
    write_segment(corrector.node, volume, corrector.correction.target.segment_id, drawn, mask_of_all(drawn))
    corrector.wait()
    assert np.array_equal(panel.mask("liver"), drawn | square(34, 26, 14))


def mask_of_all(mask: np.ndarray) -> tuple[int, ...]:
    k, j, i = mask.shape
    return 0, i - 1, 0, j - 1, 0, k - 1


# One at a time, and what goes wrong


def test_clicks_that_come_while_the_engine_works_go_together(corrector, panel):
    corrector.click_at("include", NEAR)
    panel.plan(seconds_editing=0.3)
    corrector.place("include", (34, 26, 13))
    panel.spin(lambda: corrector.correction._current is not None)
    for k in (14, 15, 16):
        corrector.place("include", (34, 26, k))
        panel.qapp.processEvents()
    corrector.wait()
    assert len(corrector.edits()) == 3
    expected = body("liver")
    for k in range(12, 17):
        expected = expected | square(34, 26, k)
    assert np.array_equal(panel.mask("liver"), expected)


def test_click_ends_a_spread(corrector, panel):
    corrector.click_at("include", NEAR)
    panel.plan(seconds_spreading=20)
    panel.click("spreadButton")
    panel.spin(lambda: corrector.correction._current is not None)
    corrector.click_at("include", (34, 26, 14))
    assert np.array_equal(panel.mask("liver"), body("liver") | square(*NEAR) | square(34, 26, 14))
    assert [action["kind"] for action in corrector.kept()] == ["include", "include"]


def test_undo_while_the_engine_works_takes_back_what_is_on_its_way(corrector, panel):
    corrector.click_at("include", NEAR)
    panel.plan(seconds_editing=20)
    corrector.place("include", (34, 26, 14))
    panel.spin(lambda: corrector.correction._current is not None)
    corrector.press("takeBackButton")
    assert np.array_equal(panel.mask("liver"), body("liver") | square(*NEAR))
    panel.plan()
    corrector.click_at("exclude", (20, 26, 12))
    assert not panel.mask("liver")[12, 26, 20]


def test_engine_that_was_started_anew_gets_the_segment_as_it_is(corrector, panel):
    corrector.click_at("include", NEAR)
    panel.logic.free()
    corrector.click_at("include", (34, 26, 14))
    assert np.array_equal(panel.mask("liver"), body("liver") | square(*NEAR) | square(34, 26, 14))
    assert [message["cmd"] for message in panel.asked()].count("edit-start") == 2


def test_engine_that_dies_says_so_and_the_next_click_works(corrector, panel):
    corrector.click_at("include", NEAR)
    panel.plan(fault="abort")
    corrector.click_at("include", (34, 26, 14))
    assert "stopped" in corrector.says
    assert np.array_equal(panel.mask("liver"), body("liver") | square(*NEAR))
    panel.plan()
    corrector.click_at("include", (34, 26, 14))
    assert panel.mask("liver")[14, 26, 34]


@pytest.mark.parametrize(
    ("fault", "said"), [("memory", "memory"), ("error", ""), ("disk", "make room on it and try the correction again.")]
)
def test_fault_in_a_correction_is_told_changes_nothing_and_the_next_click_works(corrector, panel, fault, said):
    corrector.click_at("include", NEAR)
    panel.plan(fault=fault)
    corrector.click_at("include", (34, 26, 14))
    assert said in corrector.says and corrector.says.endswith(".") and "Traceback" not in corrector.says
    assert np.array_equal(panel.mask("liver"), body("liver") | square(*NEAR)) and len(corrector.kept()) == 1
    panel.plan()
    panel.logic.free()
    corrector.click_at("include", (34, 26, 14))
    assert np.array_equal(panel.mask("liver"), body("liver") | square(*NEAR) | square(34, 26, 14))


@pytest.mark.parametrize("stage", ["opening", "spreading"])
def test_engine_killed_while_it_opens_or_spreads_changes_nothing(corrector, panel, stage):
    if stage == "spreading":
        corrector.click_at("include", NEAR)
    before = panel.mask("liver")
    panel.plan(**{f"seconds_{stage}": 20})
    panel.click("spreadButton" if stage == "spreading" else "includeButton")
    panel.spin(lambda: corrector.correction._current is not None)
    os.kill(panel.pid(), signal.SIGKILL)
    corrector.wait()
    assert "stopped" in corrector.says and np.array_equal(panel.mask("liver"), before)
    panel.plan()
    corrector.click_at("exclude", (20, 26, 12))
    assert np.array_equal(panel.mask("liver"), before & ~square(20, 26, 12))


def test_image_deleted_under_a_correction_ends_it(corrector, panel, volume):
    panel.plan(seconds_editing=20)
    corrector.place("include", NEAR)
    panel.spin(lambda: corrector.correction._current is not None)
    slicer.mrmlScene.RemoveNode(volume)
    corrector.wait()
    assert corrector.correction.target is None and not panel.ui.includeButton.enabled


def test_voxels_that_change_open_the_correction_anew(corrector, panel, volume):
    corrector.click_at("include", NEAR)
    slicer.util.arrayFromVolume(volume)[0, 0, 0] = 33
    slicer.util.arrayFromVolumeModified(volume)
    corrector.click_at("include", (34, 26, 14))
    assert [message["cmd"] for message in panel.asked()].count("edit-start") == 2
    assert np.array_equal(panel.mask("liver"), body("liver") | square(*NEAR) | square(34, 26, 14))


def test_run_that_begins_meanwhile_is_not_cancelled_by_another_choice(corrector, panel):
    panel.plan(seconds_editing=0.4)
    corrector.place("include", NEAR)
    panel.spin(lambda: corrector.correction._current is not None)
    panel.type("aorta")
    panel.click("runButton")
    panel.spin(lambda: panel.logic.run._id is not None)
    corrector.select("spleen")
    panel.finish()
    assert panel.phase == "done" and panel.segments == ["liver", "spleen", "aorta"]


def test_segment_that_is_removed_ends_its_correction(corrector, panel):
    panel.plan(seconds_editing=0.3)
    corrector.place("include", NEAR)
    panel.spin(lambda: corrector.correction._current is not None)
    corrector.node.GetSegmentation().RemoveSegment(corrector.correction.target.segment_id)
    corrector.wait()
    assert corrector.correction.target is None and panel.segments == ["spleen"]


def test_closing_the_scene_ends_a_correction(corrector, panel):
    panel.plan(seconds_editing=20)
    corrector.place("include", NEAR)
    panel.spin(lambda: corrector.correction._current is not None)
    slicer.mrmlScene.Clear()
    assert not corrector.correction.busy and corrector.correction.target is None


def test_other_segments_are_told_to_the_engine(corrector, panel):
    corrector.click_at("include", NEAR)
    (start,) = [message for message in panel.asked() if message["cmd"] == "edit-start"]
    assert start["name"] == "liver" and [other["name"] for other in start["others"]] == ["spleen"]
    i, j, k = np.nonzero(body("spleen"))[::-1]
    assert start["others"][0]["mask"]["box"] == [i.min(), i.max(), j.min(), j.max(), k.min(), k.max()]


def test_another_segment_is_another_correction_and_the_tool_is_include_again(corrector, panel):
    corrector.click_at("include", NEAR)
    corrector.panel.click("excludeButton")
    corrector.select("spleen")
    assert corrector.ui.includeButton.checked and not corrector.ui.excludeButton.checked
    corrector.click_at("include", (34, 26, 14))
    assert np.array_equal(panel.mask("spleen"), body("spleen") | square(34, 26, 14))
    assert np.array_equal(panel.mask("liver"), body("liver") | square(*NEAR))


def test_segment_on_another_grid_is_corrected_on_the_images(corrector, panel, volume):
    coarse = slicer.util.addVolumeFromArray(np.zeros((12, 28, 32), np.int16), doubled(volume), "coarse")
    drawn = np.zeros((12, 28, 32), np.uint8)
    drawn[3:6, 8:14, 10:14] = 1
    mine = corrector.node.GetSegmentation().AddEmptySegment("", "mine")
    write_segment(corrector.node, coarse, mine, drawn, (0, 31, 0, 27, 0, 11))
    corrector.select("mine")
    corrector.click_at("include", NEAR)
    voxels, extent = read_segment(corrector.node, volume, mine)
    assert voxels.sum() == 8 * drawn.sum() + 25 and extent[5] == 12


def doubled(volume: Any) -> np.ndarray:
    """The grid of voxels twice as large, with the same corner."""
    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    return slicer.util.arrayFromVTKMatrix(matrix) @ np.array(
        [[2, 0, 0, 0.5], [0, 2, 0, 0.5], [0, 0, 2, 0.5], [0, 0, 0, 1]]
    )


# Review


def doubted(corrector, name: str, dice: float | None = None, **doubts: float) -> None:
    """Let a result have doubts: of slices k7=0.5, and of the whole."""
    segment, doubt = corrector.segment(name), [0.0] * 24
    for slice_name, value in doubts.items():
        doubt[int(slice_name[1:])] = value
    record = {**provenance_of(segment), "slice_axis": 0, "slice_doubt": doubt, "expected_dice": dice}
    keep_provenance(segment, record)
    corrector.panel.widget.refresh()


def listed(corrector) -> list[str]:
    return [corrector.ui.doubtList.item(row).text() for row in range(corrector.ui.doubtList.count)]


def test_slices_of_all_segments_are_listed_the_most_doubtful_first(corrector, panel, volume, view):
    assert not corrector.ui.doubtList.visible and not corrector.ui.doubtButton.enabled
    doubted(corrector, "liver", k6=0.4, k15=0.9, k16=0.5)
    doubted(corrector, "spleen", dice=0.71, k9=0.62)
    lines = ["liver, slice 15 - 90 % doubt", "spleen, slice 9 - 62 % doubt", "liver, slice 6 - 40 % doubt"]
    assert corrector.ui.doubtList.visible and listed(corrector) == lines
    assert corrector.ui.doubtList.item(1).toolTip().endswith("a Dice of 0.71.")
    panel.picture("review", 1100)


def test_click_in_the_list_selects_the_segment_and_shows_the_slice(corrector, volume, view):
    doubted(corrector, "liver", k15=0.9)
    doubted(corrector, "spleen", k9=0.62)
    corrector.ui.doubtList.itemClicked.emit(corrector.ui.doubtList.item(1))
    assert shown_slice(volume, 2) == 9 and corrector.section.target().segment.GetName() == "spleen"
    assert corrector.says == "spleen, slice 9, 2 of 2 to look at."
    assert corrector.ui.doubtList.currentRow == 1


def test_next_goes_down_the_list_and_settled_slices_leave_it(corrector, panel, volume, view):
    doubted(corrector, "liver", k6=0.4, k15=0.9, k16=0.5)
    doubted(corrector, "spleen", k9=0.62)
    seen = []
    for _ in range(4):
        panel.click("doubtButton")
        seen.append((corrector.section.target().segment.GetName(), shown_slice(volume, 2)))
    assert seen == [("liver", 15), ("spleen", 9), ("liver", 6), ("liver", 15)]
    corrector.press("sliceRightButton")
    assert listed(corrector) == [
        "spleen, slice 9 - 62 % doubt", "liver, slice 16 - 50 % doubt", "liver, slice 6 - 40 % doubt",
    ], "what stands beside a settled slice is a peak of its own"  # fmt: skip
    panel.click("doubtButton")
    assert shown_slice(volume, 2) == 9, "the one that was below it"


def test_segment_without_doubtful_slices_is_listed_as_a_whole_until_it_is_accepted(corrector, panel):
    doubted(corrector, "liver", dice=0.6)
    doubted(corrector, "spleen", dice=0.97)
    assert listed(corrector) == ["liver, as a whole - 40 % doubt"]
    panel.click("doubtButton")
    assert corrector.section.target().segment.GetName() == "liver"
    panel.click("acceptButton")
    assert listed(corrector) == [] and corrector.ui.doubtButton.toolTip == "Nothing is doubtful any more."


def test_accepted_segment_is_followed_by_the_most_doubtful_one(corrector, panel, volume, view):
    panel.run("liver; spleen; aorta")
    doubted(corrector, "aorta", k4=0.3)
    doubted(corrector, "spleen", k9=0.2)
    corrector.select("liver")
    panel.click("acceptButton")
    assert corrector.section.target().segment.GetName() == "aorta"


def test_keys_go_through_the_list_and_accept(corrector, panel, volume, view):
    doubted(corrector, "liver", k15=0.9)
    panel.widget._shortcuts["N"].activated.emit()
    assert shown_slice(volume, 2) == 15
    panel.widget._shortcuts["Shift+A"].activated.emit()
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    assert logic.GetSegmentStatus(corrector.segment("liver")) == logic.Completed


def test_doubt_of_a_result_is_kept_with_its_segment(corrector, volume, tmp_path):
    np.save(tmp_path / "mask.npy", np.ones((2, 3, 4), np.uint8))
    doubt = [0.0] * 64
    doubt[5], doubt[33] = 0.31234, 0.8
    event = {
        "found": True, "name": "pancreas", "mask": tmp_path / "mask.npy", "box": [4, 7, 3, 5, 2, 3],
        "color": [200, 100, 50], "category": None, "code": None, "modifier": None, "provenance": {},
        "slice_axis": 2, "slice_doubt": doubt,
    }  # fmt: skip
    add_result(corrector.node, volume, event)
    record = provenance_of(corrector.segment("pancreas"))
    assert doubtful_slices(record) == (0, {33: 0.8, 5: 0.312}) and record["slice_doubt"][5] == 0.312


def test_accepted_segment_is_completed_and_the_next_one_selected(corrector, panel):
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    panel.click("acceptButton")
    assert logic.GetSegmentStatus(corrector.segment("liver")) == logic.Completed
    assert corrector.section.target().segment.GetName() == "spleen"


def test_order_goes_round():
    first, second = (Doubtful("a", "liver", 2, index, doubt) for index, doubt in ((4, 0.8), (2, 0.3)))
    rows = (first, second)
    assert [next_after(rows, last) for last in (None, first, second)] == [first, second, first]
    gone = [Doubtful("a", "liver", 2, 9, doubt) for doubt in (0.9, 0.5, 0.1)]
    assert [next_after(rows, last) for last in gone] == [first, second, first]
    assert next_after((), first) is None and doubtful_slices({}) == (2, {})


# Keys


def test_single_keys_belong_to_the_tools_only_while_one_is_used(corrector, panel):
    keys = panel.widget._shortcuts
    single = ("1", "2", "3", "4", "B", "Esc")
    assert not any(keys[key].enabled for key in single) and keys["N"].enabled
    panel.click("includeButton")
    assert all(keys[key].enabled for key in single)
    for key, tool in (("2", "exclude"), ("2", "exclude"), ("3", "scribble-in"), ("4", "scribble-out"), ("B", "box")):
        keys[key].activated.emit()
        assert corrector.section.tool == tool
    keys["1"].activated.emit()
    assert panel.ui.includeButton.checked and not panel.ui.boxButton.checked
    keys["Esc"].activated.emit()
    assert corrector.section.tool == "" and not any(keys[key].enabled for key in single)


def test_leaving_the_module_puts_the_tool_and_the_keys_away(corrector, panel):
    panel.click("excludeButton")
    panel.widget.exit()
    assert corrector.section.tool == "" and panel.widget._shortcuts == {}


def test_section_looks_as_it_should(corrector, panel):
    corrector.click_at("include", NEAR)
    assert panel.picture("correcting", 1000).exists()


# Geometry


def test_positions_come_back_through_any_grid(volume):
    positions = np.array([[0.0, 0, 0], [12.5, 3, 20], [63, 55, 23]])
    assert np.allclose(to_ijk(volume, to_world(volume, positions)), positions)


@settings(max_examples=60, deadline=None)
@given(arrays(bool, (4, 5, 6)), arrays(bool, (4, 5, 6)), st.data())
def test_pasting_a_box_changes_that_box_alone(mask, new, data):
    ends = [sorted(data.draw(st.tuples(*[st.integers(0, size - 1)] * 2))) for size in (6, 5, 4)]
    box = tuple(index for pair in ends for index in pair)
    extent = mask_extent(mask)
    inside = np.zeros((0, 0, 0), bool) if extent == EMPTY_EXTENT else crop(mask, extent)
    voxels, where = pasted(inside, extent, crop(new, box), box)
    expected = mask.copy()
    crop(expected, box)[:] = crop(new, box)
    assert where == mask_extent(expected)
    assert where == EMPTY_EXTENT or np.array_equal(voxels, crop(expected, where))


def test_provenance_stays_json(corrector):
    corrector.click_at("include", NEAR)
    assert json.loads(json.dumps(provenance_of(corrector.segment("liver"))))["name"] == "liver"
