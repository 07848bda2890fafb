"""Where a person points in the views, as positions in an image, and back: points and boxes placed with Slicer's
markups, lines drawn with the mouse, and the slice that a view shows.

Positions are (i, j, k) in voxels of the image, fractions included.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .freehand import Freehand, slice_views
from .region_of_interest import region_of
from .translation import _

ACROSS_MIN = 0.7  # cosine between a view's normal and the slices' axis from which on the view shows these slices
GREEN, RED, YELLOW = (0.2, 0.9, 0.2), (0.95, 0.2, 0.2), (1.0, 0.85, 0.2)
POINTS, ROI, LINES = "vtkMRMLMarkupsFiducialNode", "vtkMRMLMarkupsROINode", ""  # lines are drawn, not placed
# What is placed with a tool, and its color.
TOOLS = {
    "include": (POINTS, GREEN),
    "exclude": (POINTS, RED),
    "scribble-in": (LINES, GREEN),
    "scribble-out": (LINES, RED),
    "box": (ROI, YELLOW),
}


def to_ijk(volume: Any, points: np.ndarray) -> np.ndarray:
    """World RAS mm [n, 3] → (i, j, k) [n, 3], through the volume's parent transform, a warp included."""
    import slicer
    import slicer.util
    import vtk

    between, matrix = vtk.vtkGeneralTransform(), vtk.vtkMatrix4x4()
    slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(None, volume.GetParentTransformNode(), between)
    volume.GetRASToIJKMatrix(matrix)
    inside = np.array([between.TransformPoint(*map(float, point)) for point in points]).reshape(-1, 3)
    return (np.c_[inside, np.ones(len(inside))] @ slicer.util.arrayFromVTKMatrix(matrix).T)[:, :3]


def to_world(volume: Any, positions: np.ndarray) -> np.ndarray:
    """(i, j, k) [n, 3] → world RAS mm [n, 3]."""
    import slicer
    import slicer.util
    import vtk

    between, matrix = vtk.vtkGeneralTransform(), vtk.vtkMatrix4x4()
    slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(volume.GetParentTransformNode(), None, between)
    volume.GetIJKToRASMatrix(matrix)
    inside = np.c_[positions, np.ones(len(positions))] @ slicer.util.arrayFromVTKMatrix(matrix).T
    return np.array([between.TransformPoint(*map(float, point)) for point in inside[:, :3]]).reshape(-1, 3)


# Slices


def shown_slice(volume: Any, through: int) -> int | None:
    """The slice of a volume along index axis ``through`` (0 i, 1 j, 2 k) that a slice view shows.

    Of the views that show such slices the one whose slices are the most alike is taken, those in the layout first; in a
    view that is oblique to the image the slice in its middle counts. None when no view shows one.
    """
    middle = (np.array(volume.GetImageData().GetDimensions()) - 1) / 2
    ends = to_world(volume, np.stack((middle, middle + np.eye(3)[through])))
    axis = (ends[1] - ends[0]) / np.linalg.norm(ends[1] - ends[0])
    views = []
    for view in _views(volume.GetScene()):
        matrix = view.GetSliceToRAS()
        normal, center = (np.array([matrix.GetElement(row, column) for row in range(3)]) for column in (2, 3))
        across = abs(float(normal @ axis))
        if across >= ACROSS_MIN:
            views.append((bool(view.IsMappedInLayout()), across, center))
    if not views:
        return None
    _mapped, _across, center = max(views, key=lambda view: view[:2])
    index = round(float(to_ijk(volume, center[None])[0, through]))
    return index if 0 <= index < volume.GetImageData().GetDimensions()[through] else None


def jump_to_slice(volume: Any, through: int, index: int, center: np.ndarray) -> None:
    """Let all slice views show slice ``index``, at a position (i, j, k) [3] of which the other two indices count."""
    position = np.array(center, float)
    position[through] = index
    jump_to(volume, position)


def jump_to(volume: Any, position: np.ndarray) -> None:
    """Let all slice views show a position (i, j, k) [3]."""
    import slicer

    slicer.vtkMRMLSliceNode.JumpAllSlices(volume.GetScene(), *to_world(volume, position[None])[0])


def _views(scene: Any) -> list[Any]:
    return [
        scene.GetNthNodeByClass(number, "vtkMRMLSliceNode")
        for number in range(scene.GetNumberOfNodesByClass("vtkMRMLSliceNode"))
    ]


# Markups


def stroke(line: np.ndarray) -> np.ndarray:
    """The voxels (i, j, k) [m, 3] that a line through positions [n, 3] passes, each once, in order."""
    parts = [line[:1]]
    for start, end in zip(line[:-1], line[1:], strict=True):
        steps = max(1, int(np.ceil(np.abs(end - start).max() * 2)))
        between = start + (end - start) * np.arange(1, steps)[:, None] / steps
        parts += [between, end[None]]  # the end itself: a sum that rounds to it may lie in the next voxel
    voxels = np.rint(np.concatenate(parts)).astype(int)
    return voxels[np.sort(np.unique(voxels, axis=0, return_index=True)[1])]


class Placing:
    """What a person places and draws: "include" and "exclude" points, "scribble-in" and "-out" lines, and a "box".

    What was placed is taken out of the scene as soon as it is read: the segment shows what came of it.

    Attributes
    ----------
    on_placed : called when something was placed; to be read with ``take``, but not before the event is over.
    on_mode : called when placing has begun or ended.
    """

    def __init__(self, scene: Any, application_logic: Any) -> None:
        self.on_placed: Callable[[], None] = lambda: None
        self.on_mode: Callable[[], None] = lambda: None
        self._scene, self._application = scene, application_logic
        self._nodes: dict[str, Any] = {}
        self._observers: list[tuple[Any, int]] = []
        self._mode_observer: tuple[Any, int] | None = None
        self._freehand = Freehand()
        self._freehand.on_line = self._on_line
        self._drawing = ""  # the tool of the lines, while they can be drawn
        self._lines: list[tuple[str, np.ndarray]] = []  # drawn since, world RAS mm [n, 3]

    @property
    def tool(self) -> str:
        """What is placed or drawn now; "" for nothing."""
        if self._drawing:
            return self._drawing
        mode, selection = self._application.GetInteractionNode(), self._application.GetSelectionNode()
        if mode is None or mode.GetCurrentInteractionMode() != mode.Place:
            return ""
        active = selection.GetActivePlaceNodeID()
        return next((tool for tool, node in self._nodes.items() if active and node.GetID() == active), "")

    def start(self, tool: str) -> None:
        """Place points or draw lines, one after the other, or place one box, until ``stop``."""
        self.stop()
        mode, selection = self._application.GetInteractionNode(), self._application.GetSelectionNode()
        if self._mode_observer is None:
            tag = mode.AddObserver(mode.InteractionModeChangedEvent, self._on_mode)
            self._mode_observer = (mode, tag)
        if TOOLS[tool][0] == LINES:
            mode.SetCurrentInteractionMode(mode.ViewTransform)
            self._drawing = tool
            self._freehand.start(slice_views(), TOOLS[tool][1])
            self.on_mode()
            return
        node = self._node(tool)
        selection.SetReferenceActivePlaceNodeClassName(TOOLS[tool][0])
        selection.SetActivePlaceNodeID(node.GetID())
        mode.SetPlaceModePersistence(1 if TOOLS[tool][0] == POINTS else 0)
        mode.SetCurrentInteractionMode(mode.Place)
        self.on_mode()

    def stop(self) -> None:
        """Back to looking at the views."""
        if self._drawing:
            self._drawing = ""
            self._freehand.stop()
            self.on_mode()
        elif self.tool:
            mode = self._application.GetInteractionNode()
            mode.SetCurrentInteractionMode(mode.ViewTransform)

    def take(self, volume: Any) -> list[dict[str, Any]]:
        """What was placed since, as actions of `edit_protocol`; raises InputError for a box beside the image."""
        lines, self._lines = self._lines, []
        actions: list[dict[str, Any]] = [
            {"kind": "stroke", "include": tool == "scribble-in", "points": stroke(to_ijk(volume, line)).tolist()}
            for tool, line in lines
        ]
        for tool in [tool for tool, node in self._nodes.items() if node.GetScene() is not None]:
            node = self._nodes[tool]
            kind = TOOLS[tool][0]
            if kind == ROI:
                if node.GetControlPointPlacementComplete():
                    try:
                        actions.append({"kind": "box", "box": list(region_of(node, volume).box)})
                    finally:
                        self._remove(tool)
                continue
            defined = [
                number
                for number in range(node.GetNumberOfControlPoints())
                if node.GetNthControlPointPositionStatus(number) == node.PositionDefined
            ]
            if defined:
                world = np.array([node.GetNthControlPointPositionWorld(number) for number in defined])
                actions.append({"kind": tool, "points": to_ijk(volume, world).tolist()})
                for number in reversed(defined):
                    node.RemoveNthControlPoint(number)
        return actions

    def _on_mode(self, *_event: Any) -> None:
        mode = self._application.GetInteractionNode()
        if self._drawing and mode.GetCurrentInteractionMode() != mode.ViewTransform:
            self.stop()  # the user wants the mouse for something else
        self.on_mode()

    def _on_line(self, line: np.ndarray) -> None:
        self._lines.append((self._drawing, line))
        self.on_placed()

    def close(self) -> None:
        """Take all markups out of the scene."""
        self.stop()
        for tool in list(self._nodes):
            self._remove(tool)
        if self._mode_observer is not None:
            node, tag = self._mode_observer
            node.RemoveObserver(tag)
            self._mode_observer = None

    def _node(self, tool: str) -> Any:
        if tool in self._nodes and self._nodes[tool].GetScene() is not None:
            return self._nodes[tool]
        import slicer

        kind, color = TOOLS[tool]
        node = getattr(slicer, kind)()
        node.SetName(_("Correction"))
        node.SetHideFromEditors(True)
        node.SetSaveWithScene(False)
        node = self._scene.AddNode(node)
        node.CreateDefaultDisplayNodes()
        if (display := node.GetDisplayNode()) is not None:
            display.SetSelectedColor(*color)
            display.SetPointLabelsVisibility(False)
        self._nodes[tool] = node
        for event in (node.PointPositionDefinedEvent, node.PointAddedEvent):
            self._observers.append((node, node.AddObserver(event, lambda *_event: self.on_placed())))
        return node

    def _remove(self, tool: str) -> None:
        node = self._nodes.pop(tool)
        for observed, tag in [pair for pair in self._observers if pair[0] is node]:
            observed.RemoveObserver(tag)
        self._observers = [pair for pair in self._observers if pair[0] is not node]
        if node.GetScene() is not None:
            node.GetScene().RemoveNode(node)
