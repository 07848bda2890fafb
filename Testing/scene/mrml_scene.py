"""A MRML scene made of Slicer's own libraries (the slicer-core wheel), with the module logics that read, write, edit
and draw segmentations. No window, no Qt, no application."""

from __future__ import annotations

import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Module name and logic class, in an order in which each finds the siblings it looks for.
LOGICS = {
    "Colors": "vtkSlicerColorLogic",
    "SubjectHierarchy": "vtkSlicerSubjectHierarchyModuleLogic",
    "Terminologies": "vtkSlicerTerminologiesModuleLogic",
    "Volumes": "vtkSlicerVolumesLogic",
    "Segmentations": "vtkSlicerSegmentationsModuleLogic",
    "Sequences": "vtkSlicerSequencesLogic",
    "Markups": "vtkSlicerMarkupsLogic",
    "Transforms": "vtkSlicerTransformLogic",
}


@dataclass(frozen=True)
class Environment:
    """The scene, the application logic, and the modules under the names that `slicer.util` looks up."""

    scene: Any
    application: Any
    modules: types.SimpleNamespace
    kept: tuple[Any, ...]  # what VTK does not hold on to itself

    def close(self) -> None:
        """Take the scene off the `slicer` package again."""
        import slicer

        self.scene.Clear()
        del slicer.mrmlScene, slicer.modules


def new_scene(cache_folder: str | Path) -> Environment:
    """A scene as slicer.mrmlScene, and slicer.modules.NAME.logic(), as in the application."""
    import slicer
    import slicer.util
    import vtk

    scene, application = slicer.vtkMRMLScene(), slicer.vtkSlicerApplicationLogic()
    cache, data_io = slicer.vtkCacheManager(), slicer.vtkDataIOManager()  # without them no .mrb is read
    cache.SetRemoteCacheDirectory(str(cache_folder))
    cache.SetMRMLScene(scene)
    scene.SetCacheManager(cache)
    data_io.SetCacheManager(cache)
    scene.SetDataIOManager(data_io)
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
    return Environment(scene, application, modules, (cache, data_io))
