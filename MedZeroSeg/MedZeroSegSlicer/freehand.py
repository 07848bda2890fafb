"""Lines drawn in the slice views with the mouse button held down, as Slicer's own effects for drawing have it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

PRIORITY = 1.0  # of the observers; the views' own interactor styles have 0
LINE_WIDTH = 3.0  # pixels
Color = tuple[float, float, float]


def slice_views() -> list[Any]:
    """The views of Slicer's layouts, each a qMRMLSliceView; those that aren't shown get no mouse."""
    import slicer

    layout = slicer.app.layoutManager()
    return [layout.sliceWidget(name).sliceView() for name in layout.sliceViewNames()]


class Freehand:
    """Takes the left mouse button of slice views from press to release, without Ctrl, Shift or Alt, while it is on.

    Attributes
    ----------
    on_line : called with a line that was drawn, world RAS mm [n, 3].
    """

    def __init__(self) -> None:
        self.on_line: Callable[[np.ndarray], None] = lambda line: None
        self._pens: list[_Pen] = []

    @property
    def active(self) -> bool:
        """Whether lines can be drawn now."""
        return bool(self._pens)

    def start(self, views: Sequence[Any], color: Color) -> None:
        """Draw lines of a color in these views until ``stop``."""
        self.stop()
        self._pens = [_Pen(view, color, lambda line: self.on_line(line)) for view in views]

    def stop(self) -> None:
        """Leave the mouse to the views; a line that is being drawn is dropped."""
        for pen in self._pens:
            pen.close()
        self._pens = []


class _Pen:
    """Of one view."""

    def __init__(self, view: Any, color: Color, on_line: Callable[[np.ndarray], None]) -> None:
        self._view, self._color, self._on_line = view, color, on_line
        self._interactor = view.interactor()
        self._line: list[np.ndarray] = []  # RAS mm
        self._trail: _Trail | None = None
        handlers = {
            "LeftButtonPressEvent": self._press,
            "MouseMoveEvent": self._move,
            "LeftButtonReleaseEvent": self._release,
        }
        self._tags = {name: self._observe(name, handler) for name, handler in handlers.items()}

    def close(self) -> None:
        self._end()
        for tag in self._tags.values():
            self._interactor.RemoveObserver(tag)

    def _observe(self, name: str, handler: Callable[[], bool]) -> int:
        def on_event(_interactor: Any, _event: str) -> None:
            if handler():  # then nothing else gets it
                self._interactor.GetCommand(self._tags[name]).SetAbortFlag(1)

        return int(self._interactor.AddObserver(name, on_event, PRIORITY))

    def _press(self) -> bool:
        interactor = self._interactor
        if interactor.GetControlKey() or interactor.GetShiftKey() or interactor.GetAltKey():
            return False
        self._trail = _Trail(self._view, self._color)
        self._add_point()
        return True

    def _move(self) -> bool:
        if self._trail is None:
            return False
        self._add_point()
        return True

    def _release(self) -> bool:
        if self._trail is None:
            return False
        self._add_point()
        line = np.array(self._line)
        self._end()
        self._on_line(line)
        return True

    def _add_point(self) -> None:
        x, y = self._interactor.GetEventPosition()
        self._line.append(np.array(self._view.mrmlSliceNode().GetXYToRAS().MultiplyPoint((x, y, 0, 1))[:3]))
        assert self._trail is not None
        self._trail.add(x, y)

    def _end(self) -> None:
        self._line = []
        if self._trail is not None:
            self._trail.remove()
            self._trail = None


class _Trail:
    """What is seen of a line while it is drawn."""

    def __init__(self, view: Any, color: Color) -> None:
        import vtk

        self._view = view
        self._points, self._cells = vtk.vtkPoints(), vtk.vtkCellArray()
        self._shape = vtk.vtkPolyData()
        self._shape.SetPoints(self._points)
        self._shape.SetLines(self._cells)
        mapper = vtk.vtkPolyDataMapper2D()
        mapper.SetInputData(self._shape)
        self._actor = vtk.vtkActor2D()
        self._actor.SetMapper(mapper)
        self._actor.GetProperty().SetColor(*color)
        self._actor.GetProperty().SetLineWidth(LINE_WIDTH)
        self._renderer = view.renderWindow().GetRenderers().GetFirstRenderer()
        self._renderer.AddViewProp(self._actor)

    def add(self, x: int, y: int) -> None:
        last = self._points.InsertNextPoint(x, y, 0)
        if last > 0:
            self._cells.InsertNextCell(2, (last - 1, last))
        self._points.Modified()
        self._cells.Modified()
        self._view.scheduleRender()

    def remove(self) -> None:
        self._renderer.RemoveViewProp(self._actor)
        self._view.scheduleRender()
