"""Undo and redo of what the module writes into a segmentation, one step for each run or action of the user."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class SceneUndo:
    """Undo of what the module writes into one segmentation: one step for each run or action.

    The steps are those of vtkSlicerSegmentEditorLogic, so they restore voxels, names, colors, tags and order of all
    segments. When anybody else changes voxels or the set of segments, the history ends: undo never takes away what
    the user drew since.

    >>> undo.begin_step()
    >>> with undo.change():
    ...     add_result(...)
    """

    def __init__(self, segmentation_node: Any, volume_node: Any) -> None:
        import slicer

        scene = segmentation_node.GetScene()
        self._segmentation = segmentation_node.GetSegmentation()
        self._editor_node = _editor_node(scene)
        self._editor_node.SetAndObserveSegmentationNode(segmentation_node)
        self._editor_node.SetAndObserveSourceVolumeNode(volume_node)
        self._logic = slicer.vtkSlicerSegmentEditorLogic()
        self._logic.SetMRMLScene(scene)
        self._logic.SetSegmentEditorNode(self._editor_node)
        self._step_is_saved = False
        self._own_change = False
        events = slicer.vtkSegmentation
        self._observers = [
            self._segmentation.AddObserver(event, self._on_change)
            for event in (events.SourceRepresentationModified, events.SegmentAdded, events.SegmentRemoved)
        ]

    def begin_step(self) -> None:
        """From here on changes belong to a new step; one without changes leaves no trace."""
        self._step_is_saved = False

    @contextmanager
    def change(self) -> Iterator[None]:
        """Surrounds writes of the module; the first one of a step saves the state before it."""
        self.save_step()
        with self._own():
            yield

    def save_step(self) -> bool:
        """Save the state before a step now, not with its first change; False when that was done before."""
        if self._step_is_saved:
            return False
        self._logic.SaveStateForUndo()
        self._step_is_saved = True
        return True

    @property
    def can_undo(self) -> bool:
        """Whether there is a step to undo."""
        return bool(self._logic.CanUndo())

    @property
    def can_redo(self) -> bool:
        """Whether there is an undone step to do again."""
        return bool(self._logic.CanRedo())

    def undo(self) -> None:
        """Take back the last step, if there is one."""
        with self._own():
            if self.can_undo:
                self._logic.Undo()
        self._step_is_saved = False

    def redo(self) -> None:
        """Do the step again that was undone last, if there is one."""
        with self._own():
            if self.can_redo:
                self._logic.Redo()
        self._step_is_saved = False

    def close(self) -> None:
        """Let go of segmentation and history; call before the scene is closed or another segmentation is chosen."""
        for observer in self._observers:
            self._segmentation.RemoveObserver(observer)
        self._observers = []
        self._logic.ClearUndoState()
        self._logic.SetSegmentEditorNode(None)
        self._logic.SetMRMLScene(None)
        if self._editor_node.GetScene() is not None:
            self._editor_node.GetScene().RemoveNode(self._editor_node)

    @contextmanager
    def _own(self) -> Iterator[None]:
        self._own_change = True
        try:
            yield
        finally:
            self._own_change = False

    def _on_change(self, _caller: Any, _event: str) -> None:
        if not self._own_change:
            self._logic.ClearUndoState()
            self._step_is_saved = False


def _editor_node(scene: Any) -> Any:
    import slicer

    node = slicer.vtkMRMLSegmentEditorNode()
    node.SetHideFromEditors(True)
    node.SetSaveWithScene(False)
    node = scene.AddNode(node)
    node.SetOverwriteMode(node.OverwriteNone)
    return node
