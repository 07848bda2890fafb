"""Slice and 3D pictures of a segmentation, drawn off screen by Slicer's own slice logic and displayable managers: what
the application would show, without the application.

Needs OpenGL without a screen: OSMesa (Debian and Ubuntu: apt-get install libosmesa6), else EGL or an X server.
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

# In the order tried; the first that draws in a process of its own is used. "" is VTK's own choice.
WINDOWS = ("vtkOSOpenGLRenderWindow", "vtkEGLRenderWindow", "")
WINDOW_VARIABLE = "VTK_DEFAULT_OPENGL_WINDOW"
TRIAL = (
    "import vtk; w = vtk.vtkRenderWindow(); w.SetOffScreenRendering(True); w.SetSize(8, 8); r = vtk.vtkRenderer(); "
    "r.SetBackground(1, 0, 0); w.AddRenderer(r); w.Render(); p = vtk.vtkUnsignedCharArray(); "
    "w.GetPixelData(4, 4, 4, 4, 0, p, 0); raise SystemExit(p.GetValue(0) != 255)"
)
MANAGERS_2D = ("vtkMRMLSegmentationsDisplayableManager2D",)
# The camera's comes first: the view's reads the camera that it makes.
MANAGERS_3D = (
    "vtkMRMLCameraDisplayableManager",
    "vtkMRMLViewDisplayableManager",
    "vtkMRMLModelDisplayableManager",
    "vtkMRMLSegmentationsDisplayableManager3D",
)
SLICER_BLUE = ((0.7568, 0.7647, 0.9098), (0.4549, 0.4705, 0.7450))  # of Slicer's 3D views, top and bottom


@cache
def offscreen_window() -> str | None:
    """Class name of the VTK window that draws without a screen here; None where none does.

    A window without its library may end the process, so each is tried in another one.
    """
    for name in WINDOWS:
        environment = {**os.environ, WINDOW_VARIABLE: name} if name else dict(os.environ)
        try:
            trial = subprocess.run([sys.executable, "-c", TRIAL], env=environment, capture_output=True, timeout=60)
        except subprocess.TimeoutExpired:
            continue
        if trial.returncode == 0:
            return name
    return None


def draw_slice(
    environment: Any, volume: Any, ras: tuple[float, float, float], path: Path, orientation: str = "Axial",
    size: tuple[int, int] = (640, 640), zoom: float = 1.0,
) -> Path:  # fmt: skip
    """Picture of a slice view that shows a volume and all segmentations at a point.

    Parameters
    ----------
    ras : point in the slice, world mm.
    orientation : "Axial", "Coronal" or "Sagittal".
    zoom : 1 fits the volume into the view.
    """
    import slicer
    import vtk

    logic = slicer.vtkMRMLSliceLogic()
    logic.SetMRMLApplicationLogic(environment.application)
    logic.SetMRMLScene(environment.scene)
    node = logic.AddSliceNode(environment.scene.GenerateUniqueName("picture"))
    node.SetOrientation(orientation)
    node.SetDimensions(*size, 1)
    node.SetMappedInLayout(1)
    window, background = _window(size)
    # Two layers: the image below, what the managers draw above. In one, a translucent fill blends with black.
    window.SetNumberOfLayers(2)
    overlay = vtk.vtkRenderer()
    overlay.SetLayer(1)
    window.AddRenderer(overlay)
    group = _managers(
        environment, slicer.vtkMRMLSliceViewDisplayableManagerFactory.GetInstance(), MANAGERS_2D, overlay, node
    )
    logic.GetSliceCompositeNode().SetBackgroundVolumeID(volume.GetID())
    logic.FitSliceToAll()
    node.SetFieldOfView(*(extent / zoom for extent in node.GetFieldOfView()[:2]), node.GetFieldOfView()[2])
    node.JumpSliceByOffsetting(*ras)
    logic.UpdateImageData()
    background.AddViewProp(_image_actor(logic.GetImageDataConnection()))
    _save(window, path)
    _let_go(group, window)
    return path


def draw_3d(
    environment: Any, path: Path, size: tuple[int, int] = (640, 640), azimuth: float = 0, elevation: float = 0
) -> Path:
    """Picture of a 3D view that shows the closed surfaces of all segmentations, seen from the front.

    Parameters
    ----------
    azimuth, elevation : degrees by which the camera goes round.
    """
    import slicer

    node = slicer.vtkMRMLViewNode()
    node.SetLayoutName(environment.scene.GenerateUniqueName("picture"))
    node.SetMappedInLayout(1)
    node.SetBoxVisible(False)
    node.SetAxisLabelsVisible(False)
    node = environment.scene.AddNode(node)
    window, renderer = _window(size)
    group = _managers(
        environment, slicer.vtkMRMLThreeDViewDisplayableManagerFactory.GetInstance(), MANAGERS_3D, renderer, node
    )
    renderer.SetBackground2(*SLICER_BLUE[0])
    renderer.SetBackground(*SLICER_BLUE[1])
    renderer.GradientBackgroundOn()
    camera = renderer.GetActiveCamera()
    camera.SetFocalPoint(0, 0, 0)
    camera.SetPosition(0, 1, 0)  # anterior
    camera.SetViewUp(0, 0, 1)
    camera.Azimuth(azimuth)
    camera.Elevation(elevation)
    window.Render()
    renderer.ResetCamera()
    camera.Zoom(1.3)
    _save(window, path)
    _let_go(group, window)
    return path


def pixels(path: Path) -> np.ndarray:
    """A picture file as uint8 [row, column, (r, g, b)], top row first."""
    import vtk
    from vtk.util.numpy_support import vtk_to_numpy

    reader = vtk.vtkPNGReader()
    reader.SetFileName(str(path))
    reader.Update()
    image = reader.GetOutput()
    columns, rows, _ = image.GetDimensions()
    return vtk_to_numpy(image.GetPointData().GetScalars()).reshape(rows, columns, -1)[::-1, :, :3]


def _window(size: tuple[int, int]) -> tuple[Any, Any]:
    import vtk

    name = offscreen_window()
    window = getattr(vtk, name)() if name else vtk.vtkRenderWindow()
    window.SetOffScreenRendering(True)
    window.SetMultiSamples(0)
    window.SetSize(*size)
    renderer = vtk.vtkRenderer()
    window.AddRenderer(renderer)
    interactor = vtk.vtkRenderWindowInteractor()
    window.SetInteractor(interactor)
    return window, renderer


def _managers(environment: Any, factory: Any, names: tuple[str, ...], renderer: Any, node: Any) -> Any:
    factory.SetMRMLApplicationLogic(environment.application)
    for name in names:
        if not factory.IsDisplayableManagerRegistered(name):
            factory.RegisterDisplayableManager(name)
    group = factory.InstantiateDisplayableManagers(renderer)
    group.SetMRMLDisplayableNode(node)
    return group


def _image_actor(connection: Any) -> Any:
    """The grey-level image as the application's slice view puts it behind the displayable managers."""
    import vtk

    mapper = vtk.vtkImageMapper()
    mapper.SetColorWindow(255)
    mapper.SetColorLevel(127.5)
    mapper.SetInputConnection(connection)
    actor = vtk.vtkActor2D()
    actor.SetMapper(mapper)
    actor.GetProperty().SetDisplayLocationToBackground()
    return actor


def _save(window: Any, path: Path) -> None:
    import vtk

    window.Render()
    window.Render()
    grab = vtk.vtkWindowToImageFilter()
    grab.SetInput(window)
    grab.ReadFrontBufferOff()
    writer = vtk.vtkPNGWriter()
    writer.SetFileName(str(path))
    writer.SetInputConnection(grab.GetOutputPort())
    writer.Write()


def _let_go(group: Any, window: Any) -> None:
    group.SetMRMLDisplayableNode(None)
    window.Finalize()


def main(image: Path, segmentation: Path, output: Path) -> None:
    """Draw a file of the command line as Slicer shows it, in the slice through the middle of its segments."""
    import tempfile

    import slicer
    import slicer.util
    from mrml_scene import new_scene

    from MedZeroSegLib.volume_io import read_volume

    with tempfile.TemporaryDirectory() as cache_folder:
        environment = new_scene(cache_folder)
        volume = read_volume(image)
        lps_to_ras = np.diag([-1.0, -1.0, 1.0, 1.0])
        volume_node = slicer.util.addVolumeFromArray(volume.voxels.copy(), lps_to_ras @ volume.ijk_to_lps, "image")
        volume_node.CreateDefaultDisplayNodes()
        node = environment.scene.AddNewNodeByClass("vtkMRMLSegmentationNode")
        storage = environment.scene.AddNewNodeByClass("vtkMRMLSegmentationStorageNode")
        storage.SetFileName(str(segmentation))
        if storage.ReadData(node) != 1:
            raise SystemExit(f"'{segmentation}' is not a segmentation that Slicer reads; give a .seg.nrrd file.")
        node.CreateDefaultDisplayNodes()
        node.GetDisplayNode().SetOpacity2DFill(0.4)
        bounds = np.zeros(6)
        node.GetRASBounds(bounds)
        draw_slice(environment, volume_node, tuple(bounds.reshape(3, 2).mean(axis=1)), output)
        environment.close()


if __name__ == "__main__":
    if len(sys.argv) != 4:
        raise SystemExit("Usage: python Testing/scene/pictures.py IMAGE SEGMENTATION.seg.nrrd OUTPUT.png")
    main(*map(Path, sys.argv[1:]))
