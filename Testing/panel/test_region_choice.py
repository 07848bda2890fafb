"""The region of interest and the sensitivity in the panel, up to what the engine is asked and the scene gets."""

from __future__ import annotations

import numpy as np
import pytest

slicer = pytest.importorskip("slicer", reason="slicer-core has no wheel for this Python")
pytest.importorskip("PySide6", reason="PySide6 shows the panel")

from MedZeroSegSlicer.region_of_interest import region_of  # noqa: E402
from MedZeroSegSlicer.segment_io import provenance_of  # noqa: E402
from phantoms_of_panel import body, oblique_grid  # noqa: E402

LIVER_CENTRE = (20, 26, 12)  # i, j, k


@pytest.fixture
def region(volume):
    """A region over a part of the liver, along the axes of the world and so turned against the grid."""
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "R")
    node.SetCenter((oblique_grid() @ [*LIVER_CENTRE, 1])[:3])
    node.SetSize(40.0, 34.0, 30.0)
    return node


def choose(panel, node) -> None:
    panel.widget.parameters.region = node


def test_mask_outside_the_region_is_empty_and_inside_it_is_whole(volume, region, panel):
    choose(panel, region)
    panel.run("liver")
    inside = region_of(region, volume).mask(body("liver").shape)
    expected = body("liver") & inside
    assert np.array_equal(panel.mask("liver"), expected) and 0 < expected.sum() < body("liver").sum()
    ml = expected.sum() * 3.1 * 2.7 * 5 / 1000
    assert f"{ml:.0f} ml" in panel.ui.measurementsLabel.text or f"{ml:.1f} ml" in panel.ui.measurementsLabel.text
    segment = panel.widget.parameters.segmentation.GetSegmentation().GetNthSegment(0)
    assert provenance_of(segment)["region"]["box"] == panel.asked()[-1]["region"]["box"]


def test_region_is_followed_while_the_user_moves_it(volume, region, panel):
    choose(panel, region)
    panel.type("liver")
    assert panel.ui.regionLabel.text.startswith("turned, within") and panel.ui.runButton.enabled
    before = panel.ui.regionLabel.text
    region.SetSize(60.0, 34.0, 30.0)
    assert panel.ui.regionLabel.text != before
    panel.ui.advancedSection.collapsed = False
    panel.picture("region", height=760)
    region.SetCenter([2000.0, 0.0, 0.0])
    assert (
        panel.status == panel.ui.runButton.toolTip == "The region R lies outside Abdomen CT: move it, or choose none."
    )
    assert not panel.ui.runButton.enabled
    panel.picture("region-outside", height=760)
    choose(panel, None)
    assert panel.ui.runButton.enabled and not panel.ui.regionLabel.visible


def test_deleted_region_is_no_longer_chosen(volume, region, panel):
    choose(panel, region)
    slicer.mrmlScene.RemoveNode(region)
    panel.run("liver")
    assert panel.widget.parameters.region is None and panel.asked()[-1]["region"] is None
    assert np.array_equal(panel.mask("liver"), body("liver"))


def test_same_name_in_another_region_is_a_segment_of_its_own(volume, region, panel):
    choose(panel, region)
    panel.run("liver")
    choose(panel, None)
    panel.run("liver")
    assert panel.segments == ["liver", "liver 2"]
    panel.run("liver")
    assert panel.segments == ["liver", "liver 2"]


def test_script_takes_a_region(module, volume, region, panel):
    logic = module.MedZeroSegLogic()
    logic.segment(volume, "liver", region=region, sensitivity=0.7)
    assert panel.asked()[-1]["region"] is not None and panel.asked()[-1]["sensitivity"] == 0.7
    region.SetCenter([2000.0, 0.0, 0.0])
    with pytest.raises(RuntimeError, match="lies outside"):
        logic.segment(volume, "liver", region=region)
    logic.close()


def test_sensitivity_goes_to_the_engine_and_stays_with_the_scene(volume, panel, tmp_path):
    assert panel.ui.sensitivitySlider.value == 0.5
    panel.ui.sensitivitySlider.setValue(0.8)
    panel.run("liver")
    assert panel.asked()[-1]["sensitivity"] == pytest.approx(0.8)
    slicer.mrmlScene.SetURL(str(tmp_path / "scene.mrml"))
    assert slicer.mrmlScene.Commit()
    slicer.mrmlScene.Clear()
    assert panel.ui.sensitivitySlider.value == 0.5
    assert slicer.mrmlScene.Import()
    assert panel.widget.parameters.sensitivity == pytest.approx(0.8)
    assert panel.ui.sensitivitySlider.value == pytest.approx(0.8)
