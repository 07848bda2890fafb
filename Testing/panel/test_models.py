"""The whole way with the real models of `lite`: a real image in the scene, names typed into the panel, and segments
that equal what the command line's function makes of the same file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

slicer = pytest.importorskip("slicer", reason="slicer-core has no wheel for this Python")
pytest.importorskip("slicer.util")
pytest.importorskip("PySide6", reason="PySide6 shows the panel")

from MedZeroSegSlicer.install import examine  # noqa: E402
from MedZeroSegSlicer.segment_io import provenance_of  # noqa: E402
from MedZeroSegSlicer.segmentation_run import worker_command  # noqa: E402

from MedZeroSegLib import read_volume, segment  # noqa: E402

DATA = Path(__file__).parents[3] / "shared" / "data"
HEART = DATA / "acdc_cardiac_mr_CC-BY-NC-SA" / "images" / "acdc_068_ED.nii.gz"  # of val: never trained on
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

pytestmark = pytest.mark.skipif(not examine().ready, reason="the models are not set up on this computer")


@pytest.fixture
def real_panel(panel, module, monkeypatch, application):
    """The panel with the engine itself."""
    monkeypatch.setattr("MedZeroSegSlicer.logic.worker_command", worker_command)
    panel.close()
    real = type(panel)(module, application[1], panel._plan, panel._pictures)
    real.patience = 300.0
    yield real
    real.close()


def load_by_slicer(path: Path):
    """A file read by Slicer's own reader."""
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", path.name.partition(".")[0])
    storage = slicer.vtkMRMLVolumeArchetypeStorageNode()
    storage.SetFileName(str(path))
    assert storage.ReadData(node)
    return node


def radiograph():
    """The chest radiograph that the package pydicom-data ships, as a volume of the engine and as a node."""
    from pydicom.data import get_testdata_file

    volume = read_volume(get_testdata_file("RG1_UNCR.dcm"))
    return volume, slicer.util.addVolumeFromArray(volume.voxels, LPS_TO_RAS @ volume.ijk_to_lps, "Radiograph")


def assert_equal(panel, result) -> None:
    """The scene holds exactly the masks, codes and scores of the engine's result, and nothing for what it lacks."""
    assert panel.segments == [item.name for item in result.segments if item.found]
    assert panel.logic.absent == [item.name for item in result.segments if not item.found]
    node = panel.widget.parameters.segmentation
    for item in result.segments:
        if item.found:
            assert np.array_equal(panel.mask(item.name), item.mask), item.name
            made = provenance_of(
                node.GetSegmentation().GetSegment(node.GetSegmentation().GetSegmentIdBySegmentName(item.name))
            )
            assert made["score"] == pytest.approx(item.score, abs=1e-6)
            assert made["weights"] == [dict(record) for record in result.weights]


@pytest.mark.skipif(not HEART.is_file(), reason="shared/data with the real images isn't beside the checkout")
def test_real_volume_gets_the_masks_of_the_command_line(real_panel):
    load_by_slicer(HEART)
    names = ["left ventricle", "hippocampus", "RV"]
    real_panel.run("; ".join(names))
    assert real_panel.phase == "done", real_panel.status
    assert_equal(real_panel, segment(read_volume(HEART), names))
    assert "left ventricle" in real_panel.segments and "hippocampus" in real_panel.logic.absent


def test_radiograph_gets_the_masks_of_the_command_line(real_panel):
    volume, _node = radiograph()
    names = ["right lung", "left lung", "liver"]
    real_panel.run("; ".join(names))
    assert real_panel.phase == "done", real_panel.status
    real_panel.picture("radiograph", height=730)
    assert_equal(real_panel, segment(volume, names))
    assert real_panel.segments[:2] == ["right lung", "left lung"]
