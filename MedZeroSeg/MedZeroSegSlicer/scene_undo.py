"""Undo and redo of what the module writes into a segmentation, one step for each run or action of the user."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class SceneUndo:
    """Undo of what the module writes into one segmentation: one step for each run or action.

    Steps restore voxels, names, colors, tags and order of all segments. While the Segment Editor shows the
    segmentation, they are steps of its history, in one line with those of its own tools: either side takes back the
    last one, whoever made it. Else they are those of a vtkSlicerSegmentEditorLogic, and this history ends when anybody
    else changes voxels or the set of segments: undo never takes away what it doesn't know.

    >>> undo.begin_step()
    >>> with undo.change():
    ...     add_result(...)
    """

    def __init__(self, segmentation_node: Any, volume_node: Any) -> None:
        import slicer

        scene = segmentation_node.GetScene()
        self._node, self._segmentation = segmentation_node, segmentation_node.GetSegmentation()
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
        self.share()
        editor = self._editor()
        if editor is not None:
            editor.saveStateForUndo()
        else:
            self._logic.SaveStateForUndo()
        self._step_is_saved = True
        return True

    def share(self) -> None:
        """Let the Segment Editor have the steps made so far, if it shows the segmentation.

        Its history takes in only what the segmentation is at the time, so that all steps are undone and done again.
        """
        editor, steps = self._editor(), 0
        if editor is None:
            return
        with self._own():
            while self._logic.CanUndo():
                self._logic.Undo()
                steps += 1
            for _step in range(steps):
                editor.saveStateForUndo()
                self._logic.Redo()
        self._logic.ClearUndoState()

    @property
    def can_undo(self) -> bool:
        """Whether there is a step to undo."""
        editor = self._editor()
        return bool(self._logic.CanUndo()) or (editor is not None and _is_on(editor, "UndoButton"))

    @property
    def can_redo(self) -> bool:
        """Whether there is an undone step to do again."""
        editor = self._editor()
        return bool(self._logic.CanRedo()) or (editor is not None and _is_on(editor, "RedoButton"))

    def undo(self) -> None:
        """Take back the last step, if there is one."""
        self.share()
        editor = self._editor()
        with self._own():
            if self.can_undo:
                self._logic.Undo() if editor is None else editor.undo()
        self._step_is_saved = False

    def redo(self) -> None:
        """Do the step again that was undone last, if there is one."""
        editor = self._editor()
        with self._own():
            if self.can_redo:
                self._logic.Redo() if editor is None else editor.redo()
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

    def _editor(self) -> Any:
        """The Segment Editor's qMRMLSegmentEditorWidget while it shows the segmentation and keeps a history."""
        import slicer

        editor = getattr(getattr(slicer.modules, "SegmentEditorWidget", None), "editor", None)  # made when first used
        if editor is None or not self._observers or editor.segmentationNode() is not self._node:
            return None
        return editor if editor.undoEnabled else None

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


def _is_on(editor: Any, name: str) -> bool:
    """Whether a button of the Segment Editor can be pressed; only its buttons tell whether there are steps."""
    import qt

    button = editor.findChild(qt.QToolButton, name)
    return button is not None and bool(button.enabled)


def _editor_node(scene: Any) -> Any:
    import slicer

    node = slicer.vtkMRMLSegmentEditorNode()
    node.SetHideFromEditors(True)
    node.SetSaveWithScene(False)
    node = scene.AddNode(node)
    node.SetOverwriteMode(node.OverwriteNone)
    return node
