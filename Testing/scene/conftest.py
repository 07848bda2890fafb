"""The scene that the tests of this folder share, and what of Slicer's resources the wheel does not hold."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mrml_scene import Environment, new_scene

sys.path.insert(0, str(Path(__file__).parents[2] / "MedZeroSeg"))  # as Slicer does with a module's folder


@pytest.fixture(scope="session")
def application_scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Environment]:
    """The scene under the names that `slicer.util` looks up."""
    environment = new_scene(tmp_path_factory.mktemp("cache"))
    yield environment
    environment.close()


@pytest.fixture
def scene(application_scene: Environment) -> Iterator[object]:
    """The scene, empty before and after the test."""
    application_scene.scene.Clear()
    yield application_scene.scene
    application_scene.scene.Clear()


@pytest.fixture
def volume(scene: object) -> Any:
    """A volume node in the scene."""
    from scans import scan

    return scan()


@pytest.fixture
def node(volume: Any) -> Any:
    """The segmentation for the volume's results."""
    from MedZeroSegSlicer.segment_io import create_segmentation

    return create_segmentation(volume)


@pytest.fixture
def terminologies_of_slicer(application_scene: Environment, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A piece of Slicer's General Anatomy list, which the wheel does not hold, under its own name."""
    structure = {"CodingSchemeDesignator": "SCT", "CodeValue": "123037004", "CodeMeaning": "Anatomical Structure"}
    muscle = {"CodingSchemeDesignator": "SCT", "CodeValue": "99999", "CodeMeaning": "Gracilis"}
    content = {
        "SegmentationCategoryTypeContextName": "Segmentation category and type - 3D Slicer General Anatomy list",
        "@schema": "https://raw.githubusercontent.com/qiicr/dcmqi/master/doc/segment-context-schema.json#",
        "SegmentationCodes": {"Category": [{**structure, "Type": [{**muscle, "3dSlicerLabel": "gracilis muscle"}]}]},
    }
    path = tmp_path_factory.mktemp("terminology") / "general.term.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    assert application_scene.modules.terminologies.logic().LoadTerminologyFromFile(str(path))
