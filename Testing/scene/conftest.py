"""A MRML scene made of Slicer's own libraries (the slicer-core wheel), with the module logics that read, write and
edit segmentations. No window, no Qt, no application."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "MedZeroSeg"))  # as Slicer does with a module's folder

# Module name and logic class, in an order in which each finds the siblings it looks for.
LOGICS = {
    "Colors": "vtkSlicerColorLogic",
    "SubjectHierarchy": "vtkSlicerSubjectHierarchyModuleLogic",
    "Terminologies": "vtkSlicerTerminologiesModuleLogic",
    "Volumes": "vtkSlicerVolumesLogic",
    "Segmentations": "vtkSlicerSegmentationsModuleLogic",
    "Sequences": "vtkSlicerSequencesLogic",
    "Transforms": "vtkSlicerTransformLogic",
}


@pytest.fixture(scope="session")
def application_scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[types.SimpleNamespace]:
    """The scene under the names that `slicer.util` looks up: slicer.mrmlScene and slicer.modules.NAME.logic()."""
    import slicer
    import slicer.util
    import vtk

    scene, application = slicer.vtkMRMLScene(), slicer.vtkSlicerApplicationLogic()
    modules = types.SimpleNamespace()
    cache, data_io = slicer.vtkCacheManager(), slicer.vtkDataIOManager()  # without them no .mrb is read
    cache.SetRemoteCacheDirectory(str(tmp_path_factory.mktemp("cache")))
    cache.SetMRMLScene(scene)
    scene.SetCacheManager(cache)
    data_io.SetCacheManager(cache)
    scene.SetDataIOManager(data_io)
    shown = vtk.vtkObject.GetGlobalWarningDisplay()
    vtk.vtkObject.GlobalWarningDisplayOff()  # the wheel does not hold the terminology lists that a logic looks for
    application.SetMRMLScene(scene)
    for name, class_name in LOGICS.items():
        logic = getattr(slicer, class_name)()
        logic.SetMRMLApplicationLogic(application)
        application.SetModuleLogic(name, logic)
        logic.SetMRMLScene(scene)  # registers the module's node classes
        setattr(modules, name.lower(), types.SimpleNamespace(logic=lambda logic=logic: logic))
    vtk.vtkObject.SetGlobalWarningDisplay(shown)
    slicer.mrmlScene, slicer.modules = scene, modules
    yield types.SimpleNamespace(scene=scene, application=application, modules=modules)
    del slicer.mrmlScene, slicer.modules


@pytest.fixture
def scene(application_scene: types.SimpleNamespace) -> Iterator[object]:
    """The scene, empty before and after the test."""
    application_scene.scene.Clear()
    yield application_scene.scene
    application_scene.scene.Clear()


@pytest.fixture
def terminologies_of_slicer(application_scene: types.SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> None:
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
