"""Correcting by hand in the panel with the engine's real process and the real models."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

slicer = pytest.importorskip("slicer", reason="slicer-core has no wheel for this Python")
pytest.importorskip("PySide6", reason="PySide6 shows the panel")

from MedZeroSegSlicer.segment_io import create_segmentation, provenance_of  # noqa: E402
from MedZeroSegSlicer.segment_voxels import read_segment, write_segment  # noqa: E402
from phantoms_of_panel import BODIES, grey_levels, oblique_grid  # noqa: E402
from test_correction import Corrector  # noqa: E402

ROOT = Path(__file__).parents[2]
SLICES = slice(9, 14)
HALF = 20  # index i up to which the segment is there at first


def dice(first: np.ndarray, second: np.ndarray) -> float:
    return 2 * float((first & second).sum()) / float(first.sum() + second.sum())


def test_click_completes_a_slice_and_the_spread_its_neighbours(panel):
    panel.patience = 180.0
    panel.logic.run.engine._command = [sys.executable, str(ROOT / "MedZeroSegLib" / "worker.py")]
    grey = grey_levels()[SLICES]
    truth = grey == BODIES["liver"][0]
    volume = slicer.util.addVolumeFromArray(grey, oblique_grid(), "Abdomen CT")
    node = create_segmentation(volume)
    mine = node.GetSegmentation().AddEmptySegment("", "mine")
    half = truth & (np.arange(truth.shape[2]) <= HALF)
    k, j, i = truth.shape
    write_segment(node, volume, mine, half, (0, i - 1, 0, j - 1, 0, k - 1))
    panel.widget.parameters.inputVolume = volume
    panel.widget.parameters.segmentation = node
    corrector = Corrector(panel, volume)
    corrector.select("mine")

    def now() -> np.ndarray:
        voxels, extent = read_segment(node, volume, mine)
        whole = np.zeros(truth.shape, bool)
        whole[extent[4] : extent[5] + 1, extent[2] : extent[3] + 1, extent[0] : extent[1] + 1] = voxels
        return whole

    corrector.click_at("include", (26, 26, 2))
    clicked = now()
    assert clicked[2, 26, 26] and dice(clicked[2], truth[2]) > dice(half[2], truth[2]) + 0.1
    assert np.array_equal(np.delete(clicked, 2, 0), np.delete(half, 2, 0))
    corrector.press("spreadButton")
    spread = now()
    assert dice(spread, truth) > dice(clicked, truth)
    corrector.press("takeBackButton")
    assert np.array_equal(now(), clicked)
    kept = provenance_of(node.GetSegmentation().GetSegment(mine))["corrections"]
    assert [action["kind"] for action in kept] == ["include"]
