"""A MRML scene made of Slicer's own libraries (the slicer-core wheel), with the module logics that read and write
segmentations. No window, no Qt, no application."""

from __future__ import annotations

import types
from collections.abc import Iterator

import pytest

# Module name and logic class, in an order in which each finds the siblings it looks for.
LOGICS = {
    "SubjectHierarchy": "vtkSlicerSubjectHierarchyModuleLogic",
    "Terminologies": "vtkSlicerTerminologiesModuleLogic",
    "Volumes": "vtkSlicerVolumesLogic",
    "Segmentations": "vtkSlicerSegmentationsModuleLogic",
}


@pytest.fixture(scope="session")
def application_scene() -> Iterator[types.SimpleNamespace]:
    """The scene under the names that `slicer.util` looks up: slicer.mrmlScene and slicer.modules.NAME.logic()."""
    import slicer
    import slicer.util
    import vtk

    scene, application = slicer.vtkMRMLScene(), slicer.vtkSlicerApplicationLogic()
    modules = types.SimpleNamespace()
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
