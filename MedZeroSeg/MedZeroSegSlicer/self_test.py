"""The module's self-test: with Reload and Test, and in CTest. It needs no network and no weights; with the models in
place it also runs them once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import slicer
import slicer.util
from slicer.ScriptedLoadableModule import ScriptedLoadableModuleTest

from .segmentation_run import python_executable
from .stand_in_engine import LEVELS

SHAPE = (12, 40, 48)  # k, j, i
BODIES = {"liver": (slice(2, 9), slice(8, 20), slice(5, 22)), "spleen": (slice(3, 7), slice(24, 31), slice(30, 44))}


def oblique_grid() -> np.ndarray:
    """IJK → RAS mm [4, 4], 2.5 x 2 x 4 mm, turned by 30 degrees about S."""
    c, s = np.cos(np.radians(30)), np.sin(np.radians(30))
    matrix = np.eye(4)
    matrix[:3, :3] = np.array([[-c, s, 0], [-s, -c, 0], [0, 0, 1]]) * (2.5, 2.0, 4.0)
    matrix[:3, 3] = (60.0, 45.5, -20.25)
    return matrix


def phantom(name: str) -> Any:
    """A volume node with two bodies, no download."""
    voxels = np.full(SHAPE, -900, np.int16)
    for body, place in BODIES.items():
        voxels[place] = LEVELS[body]
    return slicer.util.addVolumeFromArray(voxels, oblique_grid(), name)


class MedZeroSegTest(ScriptedLoadableModuleTest):
    """What Slicer calls by the module's name."""

    def setUp(self) -> None:
        """Begin with an empty scene."""
        slicer.mrmlScene.Clear()

    def runTest(self, **_options: Any) -> None:
        """All tests, one after the other."""
        for name in dir(self):
            if name.startswith("test_"):
                self.setUp()
                getattr(self, name)()

    def test_names_become_segments(self) -> None:
        """The way from names to segments, with grey levels in place of models."""
        from MedZeroSeg import MedZeroSegLogic

        volume = phantom("Self-test")
        logic = MedZeroSegLogic(worker=[python_executable(), str(Path(__file__).with_name("stand_in_engine.py"))])
        try:
            node = logic.segment(volume, ["Liver", "spleen", "right kidney"])
        finally:
            logic.close()
        segmentation = node.GetSegmentation()
        names = [segmentation.GetNthSegment(number).GetName() for number in range(segmentation.GetNumberOfSegments())]
        self.assertEqual(names, ["liver", "spleen"])
        self.assertEqual(logic.absent, ["right kidney"])
        for name, place in BODIES.items():
            expected = np.zeros(SHAPE, bool)
            expected[place] = True
            segment_id = segmentation.GetSegmentIdBySegmentName(name)
            found = slicer.util.arrayFromSegmentBinaryLabelmap(node, segment_id, volume) > 0
            self.assertTrue(np.array_equal(found, expected), name)
        self.delayDisplay("Names became segments on the grid of the image.")

    def test_models_answer(self) -> None:
        """The models themselves, where they are installed."""
        from MedZeroSeg import MedZeroSegLogic

        logic = MedZeroSegLogic()
        logic.examine()
        try:
            if not logic.setup.ready:
                self.delayDisplay("Skipped: the models are not set up on this computer.")
                return
            logic.segment(phantom("Self-test"), "liver")
        finally:
            logic.close()
        self.assertEqual(len(logic.run.state.outcomes), 1)
        self.delayDisplay("The models answered.")
