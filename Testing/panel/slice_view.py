"""A slice view as Slicer has it, drawn off screen: its slice logic, displayable managers, interactor style and a real
VTK interactor, to which a test hands the mouse's events."""

from __future__ import annotations

from typing import Any

import numpy as np
from pictures import MANAGERS_2D, _managers, _window

MANAGERS = (*MANAGERS_2D, "vtkMRMLCrosshairDisplayableManager")
SIZE = (320, 280)  # pixels


class SliceView:
    """What the module asks of a qMRMLSliceView, and a mouse."""

    def __init__(self, application: Any, volume: Any, name: str = "Red") -> None:
        import slicer
        import vtk

        self._logic = slicer.vtkMRMLSliceLogic()
        self._logic.SetMRMLApplicationLogic(application)
        self._logic.SetMRMLScene(slicer.mrmlScene)
        self._node = self._logic.AddSliceNode(name)
        self._node.SetDimensions(*SIZE, 1)
        self._node.SetMappedInLayout(1)
        self._window, _renderer = _window(SIZE)
        self._interactor = self._window.GetInteractor()
        overlay = vtk.vtkRenderer()
        overlay.SetLayer(1)
        self._window.SetNumberOfLayers(2)
        self._window.AddRenderer(overlay)
        environment = type("Environment", (), {"application": application})
        factory = slicer.vtkMRMLSliceViewDisplayableManagerFactory.GetInstance()
        self._group = _managers(environment, factory, MANAGERS, overlay, self._node)
        style = slicer.vtkMRMLSliceViewInteractorStyle()
        style.SetDisplayableManagers(self._group)
        style.SetSliceLogic(self._logic)
        style.SetInteractor(self._interactor)
        self._style = style
        self._logic.GetSliceCompositeNode().SetBackgroundVolumeID(volume.GetID())
        self._logic.FitSliceToAll()
        self.renders = 0

    def interactor(self) -> Any:
        return self._interactor

    def mrmlSliceNode(self) -> Any:
        return self._node

    def renderWindow(self) -> Any:
        return self._window

    def scheduleRender(self) -> None:
        self.renders += 1

    # The mouse

    def show(self, volume: Any, through: int, index: int) -> None:
        """Turn the view along the slices of an index axis of a volume, and show one of them, fitted."""
        from MedZeroSegSlicer.placing import to_world

        middle = (np.array(volume.GetImageData().GetDimensions()) - 1) / 2
        middle[through] = index
        steps = np.roll(np.eye(3), -through - 1, axis=0)[:2]
        center, along, down = to_world(volume, np.stack((middle, *(middle + steps))))
        tangent, other = (along - center) / np.linalg.norm(along - center), down - center
        normal = np.cross(tangent, other)
        self._node.SetSliceToRASByNTP(*(normal / np.linalg.norm(normal)), *tangent, *center, 0)
        self._node.SetFieldOfView(*(1.1 * np.linalg.norm(2 * (center - to_world(volume, np.zeros((1, 3)))[0])),) * 2, 1)
        self._node.UpdateMatrices()

    def pixel(self, point: np.ndarray) -> tuple[int, int]:
        """Where a point, world RAS mm, is in the view."""
        import vtk

        matrix = vtk.vtkMatrix4x4()
        vtk.vtkMatrix4x4.Invert(self._node.GetXYToRAS(), matrix)
        x, y = matrix.MultiplyPoint((*point, 1))[:2]
        return round(x), round(y)

    def mouse(self, event: str, x: int, y: int, control: bool = False) -> None:
        """Hand an event of VTK over."""
        self._interactor.SetEventInformation(x, y, int(control), 0, "\0", 0, None)
        self._interactor.InvokeEvent(event)

    def drag(self, *pixels: tuple[int, int], control: bool = False) -> None:
        """Press the left button at the first, move through the others, and let go at the last."""
        self.mouse("LeftButtonPressEvent", *pixels[0], control)
        for x, y in pixels[1:]:
            self.mouse("MouseMoveEvent", x, y, control)
        self.mouse("LeftButtonReleaseEvent", *pixels[-1], control)

    def picture(self) -> np.ndarray:
        """The overlay as it is drawn now, uint8 [row, column, 3], bottom row first."""
        import vtk
        from vtk.util.numpy_support import vtk_to_numpy

        self._window.Render()
        grabbed = vtk.vtkUnsignedCharArray()
        self._window.GetPixelData(0, 0, SIZE[0] - 1, SIZE[1] - 1, 0, grabbed, 0)
        return vtk_to_numpy(grabbed).reshape(SIZE[1], SIZE[0], 3)

    def close(self) -> None:
        import slicer

        self._group.SetMRMLDisplayableNode(None)
        slicer.mrmlScene.RemoveNode(self._node)
        self._window.Finalize()
