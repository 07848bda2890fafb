"""Scribbles: a line drawn with the mouse held down in a real slice view becomes the voxels that it passes."""

from __future__ import annotations

import numpy as np
import pytest

slicer = pytest.importorskip("slicer", reason="slicer-core has no wheel for this Python")
pytest.importorskip("PySide6", reason="PySide6 shows the panel")

import vtk  # noqa: E402
from MedZeroSegSlicer.placing import GREEN, to_world  # noqa: E402
from phantoms_of_panel import body  # noqa: E402
from pictures import offscreen_window  # noqa: E402
from slice_view import SliceView  # noqa: E402
from test_correction import Corrector  # noqa: E402

pytestmark = pytest.mark.skipif(offscreen_window() is None, reason="nothing draws without a screen here")

LINE = [(36.0, 20.0, 12.0), (40.0, 26.0, 12.0), (44.0, 40.0, 12.0)]  # i, j, k: beside the liver


@pytest.fixture
def drawn(volume, panel):
    """Liver and spleen in the scene, the liver selected; a view along the image's own slices."""
    panel.run("liver; spleen")
    view = SliceView(slicer.app.applicationLogic(), volume)
    slicer.app.views["Red"] = view
    corrector = Corrector(panel, volume)
    corrector.select("liver")
    view.show(volume, 2, 12)
    yield panel, corrector, view, volume
    panel.widget.correctionPanel.close()
    slicer.app.views.clear()
    view.close()


def pixels(view, volume, positions=LINE) -> list[tuple[int, int]]:
    return [view.pixel(point) for point in to_world(volume, np.array(positions))]


def stroke_of(corrector) -> tuple[dict, np.ndarray]:
    """The only action that the engine has got, and its voxels [k, j, i]."""
    (action,) = [action for message in corrector.edits() for action in message["actions"]]
    passed = np.zeros(body("liver").shape, bool)
    i, j, k = np.array(action["points"]).T
    passed[k, j, i] = True
    return action, passed


@pytest.mark.parametrize("side", ["in", "out"])
def test_line_becomes_the_voxels_that_it_passes(drawn, side):
    panel, corrector, view, volume = drawn
    panel.click(f"scribble{side.title()}Button")
    view.drag(*pixels(view, volume))
    corrector.wait()
    action, passed = stroke_of(corrector)
    assert (action["kind"], action["include"]) == ("stroke", side == "in")
    for i, j, k in LINE:
        i, j, k = int(i), int(j), int(k)
        assert passed[k, j - 1 : j + 2, i - 1 : i + 2].any(), (i, j, k)
    assert set(np.flatnonzero(passed.any(axis=(1, 2)))) == {12} and 20 <= passed.sum() < 45, "one voxel thin"
    liver = body("liver")
    assert np.array_equal(panel.mask("liver"), liver | passed if side == "in" else liver & ~passed)
    assert corrector.kept()[-1]["kind"] == "stroke"


@pytest.mark.parametrize("through", [0, 1])
def test_line_in_another_plane_of_an_oblique_image_lies_in_that_plane(drawn, through):
    panel, corrector, view, volume = drawn
    index = (30, 28)[through]
    view.show(volume, through, index)
    line = np.array([(30.0, 28.0, 8.0), (34.0, 34.0, 12.0), (40.0, 44.0, 15.0)])
    line[:, through] = index
    panel.click("scribbleInButton")
    view.drag(*pixels(view, volume, line))
    corrector.wait()
    _action, passed = stroke_of(corrector)
    i, j, k = np.nonzero(passed)[::-1]
    assert set((i, j)[through]) == {index} and set(k) >= set(range(9, 15))


def test_line_in_a_moved_image_is_where_it_was_drawn(drawn):
    panel, corrector, view, volume = drawn
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    turn = vtk.vtkTransform()
    turn.RotateWXYZ(25, 3, 1, 2)
    turn.Translate(12, -9, 30)
    transform.SetMatrixTransformToParent(turn.GetMatrix())
    for node in (volume, corrector.node):
        node.SetAndObserveTransformNodeID(transform.GetID())
    view.show(volume, 2, 7)
    panel.click("scribbleInButton")
    view.drag(*pixels(view, volume, [(i, j, 7) for i, j, _k in LINE]))
    corrector.wait()
    _action, passed = stroke_of(corrector)
    assert set(np.flatnonzero(passed.any(axis=(1, 2)))) == {7} and passed[7, 19:22, 35:38].any()


def test_each_line_is_one_step_of_undo_and_the_tool_stays(drawn):
    panel, corrector, view, volume = drawn
    panel.click("scribbleInButton")
    for k in (12, 13):
        view.show(volume, 2, k)
        view.drag(*pixels(view, volume, [(i, j, k) for i, j, _k in LINE]))
        corrector.wait()
    assert panel.ui.scribbleInButton.checked and len(corrector.edits()) == 2
    corrector.press("takeBackButton")
    assert np.array_equal(panel.mask("liver")[13], body("liver")[13])
    assert not np.array_equal(panel.mask("liver")[12], body("liver")[12])


def test_line_is_seen_while_it_is_drawn_and_gone_afterwards(drawn):
    panel, _corrector, view, volume = drawn
    panel.click("scribbleInButton")

    def green() -> int:
        red, other, blue = np.moveaxis(view.picture().astype(int), -1, 0)
        return int(((other > 200) & (red < 90) & (blue < 90)).sum())

    assert GREEN == (0.2, 0.9, 0.2) and green() == 0
    first, *rest = pixels(view, volume)
    view.mouse("LeftButtonPressEvent", *first)
    for x, y in rest:
        view.mouse("MouseMoveEvent", x, y)
    assert green() > 100 and view.renders >= 3
    view.mouse("LeftButtonReleaseEvent", *rest[-1])
    assert green() == 0


def test_views_keep_the_mouse_while_no_line_is_drawn(drawn):
    """A scribble takes the drag, so that it sets no window and level, and gives it back."""
    panel, corrector, view, volume = drawn
    got: list[str] = []
    for event in ("LeftButtonPressEvent", "MouseMoveEvent", "LeftButtonReleaseEvent"):
        view.interactor().AddObserver(event, lambda _caller, name: got.append(name))  # of the priority that styles have
    mode = slicer.app.applicationLogic().GetInteractionNode()
    positions = pixels(view, volume)
    panel.click("scribbleInButton")
    view.drag(*positions)
    corrector.wait()
    count = len(corrector.edits())
    assert got == [] and count == 1
    view.mouse("MouseMoveEvent", *positions[0])
    assert got == ["MouseMoveEvent"], "between two lines the views see the mouse move"
    mode.SetCurrentInteractionMode(mode.AdjustWindowLevel)
    assert not panel.ui.scribbleInButton.checked, "another use of the mouse ends the tool"
    view.drag(*positions)
    assert "LeftButtonPressEvent" in got and len(corrector.edits()) == count


def test_drag_with_control_is_left_to_the_views(drawn):
    panel, corrector, view, volume = drawn
    panel.click("scribbleInButton")
    view.drag(*pixels(view, volume), control=True)
    corrector.wait()
    assert corrector.edits() == [] and panel.ui.scribbleInButton.checked


def test_tool_that_is_put_away_in_the_middle_of_a_line_draws_nothing(drawn):
    panel, corrector, view, volume = drawn
    panel.click("scribbleInButton")
    first, second, third = pixels(view, volume)
    view.mouse("LeftButtonPressEvent", *first)
    view.mouse("MouseMoveEvent", *second)
    panel.widget.onEscape()
    view.mouse("LeftButtonReleaseEvent", *third)
    panel.qapp.processEvents()
    assert not panel.ui.scribbleInButton.checked and corrector.edits() == []


def test_line_beside_the_image_is_told(drawn):
    panel, corrector, view, volume = drawn
    panel.click("scribbleInButton")
    view.drag(*pixels(view, volume, [(-20.0, -20, 12), (-30.0, -20, 12)]))
    corrector.wait()
    assert "outside the image" in corrector.says
    panel.assert_whole("liver", "spleen")


def test_leaving_the_module_gives_the_mouse_back(drawn):
    panel, corrector, view, volume = drawn
    panel.click("scribbleInButton")
    panel.widget.exit()
    view.drag(*pixels(view, volume))
    panel.qapp.processEvents()
    assert corrector.edits() == [] and panel.widget.correctionPanel.tool == ""
