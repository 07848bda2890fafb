"""The module in a panel of its own, over a real scene, with a stand-in for the models behind a real engine process."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "MedZeroSeg"), str(ROOT / "Testing" / "scene")]

PICTURES = "MEDZEROSEG_PICTURES"  # environment variable: folder that keeps the pictures of the panel
PANEL_WIDTH = 420  # pixels; Slicer's module panel is seldom narrower
PATIENCE = 30.0  # seconds that anything may take before a test gives up


class Panel:
    """The module's widget, with what a user does to it and what a test asks of it."""

    def __init__(self, module: Any, qapp: Any, plan: Path, pictures: Path) -> None:
        import application

        self.module, self.qapp, self._plan, self._pictures = module, qapp, plan, pictures
        self.patience = PATIENCE
        self.parent = application.panel_parent()
        self.widget = module.MedZeroSegWidget(self.parent)
        self.widget.setup()
        self.widget.enter()
        self.parent.show()
        self.ui, self.logic = self.widget.ui, self.widget.logic

    def plan(self, **values: Any) -> None:
        """What the stand-in engine is to do at its next request; see fake_engine.py."""
        self._plan.write_text(json.dumps(values), encoding="utf-8")

    def asked(self) -> list[dict[str, Any]]:
        """The messages that the stand-in engine has got."""
        path = self._plan.with_suffix(".asked")
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def type(self, text: str) -> None:
        """Put names into the field."""
        self.ui.promptsEdit.setPlainText(text)

    def click(self, name: str) -> None:
        """Click a button, as far as it can be clicked."""
        assert getattr(self.ui, name).enabled, getattr(self.ui, name).toolTip
        getattr(self.ui, name).click()

    def spin(self, until: Callable[[], bool]) -> None:
        """Let the window live until something is so."""
        end = time.monotonic() + self.patience
        while not until():
            self.qapp.processEvents()
            time.sleep(0.005)
            assert time.monotonic() < end, f"waited in vain; the status line says: {self.status}"

    def finish(self) -> None:
        """Let the run come to its end."""
        self.spin(lambda: not self.logic.run.state.under_way)

    def start(self, text: str, **plan: Any) -> None:
        """Type names and press Segment; the stand-in engine has a plan."""
        self.plan(**plan)
        self.type(text)
        self.click("runButton")

    def run(self, text: str) -> None:
        """Type names, press Segment, and wait for the end."""
        self.type(text)
        self.click("runButton")
        self.finish()

    def pid(self) -> int:
        """The engine's process."""
        path = self._plan.with_suffix(".pid")
        self.spin(lambda: path.exists() and bool(path.read_text()))
        return int(path.read_text())

    @property
    def status(self) -> str:
        """The status line; "" while it is hidden."""
        return self.ui.statusLabel.text

    @property
    def phase(self) -> str:
        return self.logic.run.state.phase.value

    @property
    def segments(self) -> list[str]:
        """Names of the segments in the chosen result."""
        node = self.widget.parameters.segmentation
        segmentation = node.GetSegmentation() if node else None
        return (
            [segmentation.GetNthSegment(n).GetName() for n in range(segmentation.GetNumberOfSegments())] if node else []
        )

    def mask(self, name: str) -> np.ndarray:
        """A segment's voxels, bool [k, j, i] on the chosen volume's grid."""
        import slicer

        node, volume = self.widget.parameters.segmentation, self.widget.parameters.inputVolume
        segment_id = node.GetSegmentation().GetSegmentIdBySegmentName(name)
        return slicer.util.arrayFromSegmentBinaryLabelmap(node, segment_id, volume) > 0

    @staticmethod
    def is_alive(pid: int) -> bool:
        """Whether a process is there."""
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        return True

    def assert_whole(self, *names: str) -> None:
        """These segments are in the scene, no others, and each is the whole body."""
        from phantoms_of_panel import body

        assert self.segments == list(names)
        for name in names:
            assert np.array_equal(self.mask(name), body(name)), name

    def picture(self, name: str, height: int = 760) -> Path:
        """A picture of the panel as it is now."""
        self.parent.show()
        self.qapp.processEvents()
        needed = self.parent.layout().totalHeightForWidth(PANEL_WIDTH)  # Slicer's panel scrolls
        self.parent.resize(PANEL_WIDTH, max(height, needed))
        for _ in range(4):
            self.qapp.processEvents()
        assert self.parent.width == PANEL_WIDTH, "something in the panel needs more room"
        path = self._pictures / f"{name}.png"
        assert self.parent.grab().save(str(path))
        return path

    def close(self) -> None:
        self.widget.cleanup()
        self.parent.hide()
        self.parent.deleteLater()
        self.qapp.processEvents()


@pytest.fixture(scope="session")
def application(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The stand-in for Slicer, and the module, imported once."""
    slicer = pytest.importorskip("slicer", reason="slicer-core has no wheel for this Python")
    pytest.importorskip("PySide6", reason="PySide6 shows the panel")
    import application as shim
    from mrml_scene import new_scene
    from PySide6 import QtCore

    before = {name: getattr(slicer, name) for name in ("mrmlScene", "modules") if hasattr(slicer, name)}
    environment = new_scene(tmp_path_factory.mktemp("cache"))
    settings = str(tmp_path_factory.mktemp("settings"))
    QtCore.QSettings.setPath(QtCore.QSettings.NativeFormat, QtCore.QSettings.UserScope, settings)
    qapp = shim.install(environment, ROOT / "MedZeroSeg" / "MedZeroSeg.py")
    import MedZeroSeg

    yield MedZeroSeg, qapp
    slicer.mrmlScene, slicer.modules = environment.scene, environment.modules  # others may have set theirs
    environment.close()
    for name, value in before.items():
        setattr(slicer, name, value)


@pytest.fixture
def module(application: Any) -> Iterator[Any]:
    """The module over an empty scene and without preferences."""
    import slicer
    from PySide6 import QtCore

    slicer.mrmlScene.Clear()
    QtCore.QSettings().clear()
    yield application[0]
    slicer.mrmlScene.Clear()


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that tells the stand-in engine what to do."""
    path = tmp_path / "plan.json"
    monkeypatch.setenv("FAKE_ENGINE_PLAN", str(path))
    return path


@pytest.fixture
def panel(module: Any, application: Any, plan: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Panel]:
    """The panel with all set up and the stand-in engine."""
    from MedZeroSegSlicer.install import Setup

    fake = [sys.executable, str(Path(__file__).with_name("fake_engine.py"))]
    monkeypatch.setattr("MedZeroSegSlicer.logic.worker_command", lambda: fake)
    monkeypatch.setattr("MedZeroSegSlicer.logic.examine", lambda folder, preset: Setup())
    pictures = Path(os.environ.get(PICTURES) or plan.parent)
    pictures.mkdir(parents=True, exist_ok=True)
    panel = Panel(module, application[1], plan, pictures)
    yield panel
    panel.close()


@pytest.fixture
def volume(module: Any) -> Any:
    """A phantom in the scene: three bodies in a CT on an oblique, anisotropic grid."""
    from phantoms_of_panel import phantom

    return phantom("Abdomen CT")
