"""Stand-ins for the widgets of ctk and MRML that the panel uses: as much of them as the panel and its tests touch.
How they behave was read from Slicer's sources; what differs in the application is to be noted here when it is found."""

from __future__ import annotations

from typing import Any

from PySide6 import QtCore, QtGui, QtWidgets
from pythonqt import adapt, connect, with_habits

STATUS_WORDS = ("Not started", "In progress", "Completed", "Flagged")


@with_habits
class qMRMLWidget(adapt(QtWidgets.QWidget)):
    """Hands the scene to its children."""

    mrmlSceneChanged = QtCore.Signal(object)

    def setMRMLScene(self, scene: Any) -> None:
        for child in QtCore.QObject.findChildren(self, QtWidgets.QWidget):
            if child is not self and hasattr(child, "setMRMLScene"):
                child.setMRMLScene(scene)
        self.mrmlSceneChanged.emit(scene)


@with_habits
class ctkCollapsibleButton(adapt(QtWidgets.QGroupBox)):
    """A section that folds."""

    contentsCollapsed = QtCore.Signal(bool)

    def _text(self) -> str:
        return self.__dict__.get("shown_text", "")

    def _set_text(self, text: str) -> None:
        self.__dict__["shown_text"] = text
        self._fold()

    def _collapsed(self) -> bool:
        return self.__dict__.get("folded", False)

    def _set_collapsed(self, folded: bool) -> None:
        changed = folded != self._collapsed()
        self.__dict__["folded"] = folded
        self._fold()
        if changed:
            self.contentsCollapsed.emit(folded)

    text = QtCore.Property(str, _text, _set_text)
    collapsed = QtCore.Property(bool, _collapsed, _set_collapsed)

    def _fold(self) -> None:
        self.setTitle(("▸ " if self._collapsed() else "▾ ") + self._text())
        self.setMaximumHeight(self.fontMetrics().height() + 2 if self._collapsed() else 16777215)


@with_habits
class ctkPathLineEdit(adapt(QtWidgets.QWidget)):
    """A path, and a button to browse for one."""

    currentPathChanged = QtCore.Signal(str)

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        self.edit = QtWidgets.QLineEdit(self)
        browse = QtWidgets.QToolButton(self)
        browse.setText("...")
        layout.addWidget(self.edit)
        layout.addWidget(browse)
        self.edit.textChanged.connect(self.currentPathChanged)

    def _path(self) -> str:
        return self.edit.text()

    def _set_path(self, path: str) -> None:
        self.edit.setText(path)

    currentPath = QtCore.Property(str, _path, _set_path)
    filters = QtCore.Property(int, lambda self: 1, lambda self, value: None)
    Dirs = 1


@with_habits
class ctkSliderWidget(adapt(QtWidgets.QWidget)):
    """A number on a slider and in a field."""

    valueChanged = QtCore.Signal(float)
    STEPS = 100

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        layout = QtWidgets.QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        self.slider = QtWidgets.QSlider(QtCore.Qt.Horizontal, self)
        self.field = QtWidgets.QDoubleSpinBox(self)
        layout.addWidget(self.slider, 1)
        layout.addWidget(self.field)
        self.slider.setMaximum(self.STEPS)
        self.slider.valueChanged.connect(lambda step: self.field.setValue(step / self.STEPS * self.field.maximum()))
        self.field.valueChanged.connect(self._changed)

    def _changed(self, value: float) -> None:
        self.slider.setValue(round(value / self.field.maximum() * self.STEPS))
        self.valueChanged.emit(value)

    value = QtCore.Property(float, lambda self: self.field.value(), lambda self, value: self.field.setValue(value))
    minimum = QtCore.Property(float, lambda self: self.field.minimum(), lambda self, to: self.field.setMinimum(to))
    maximum = QtCore.Property(float, lambda self: self.field.maximum(), lambda self, to: self.field.setMaximum(to))
    singleStep = QtCore.Property(
        float, lambda self: self.field.singleStep(), lambda self, to: self.field.setSingleStep(to)
    )

    def setValue(self, value: float) -> None:
        self.field.setValue(value)


@with_habits
class qMRMLNodeComboBox(adapt(QtWidgets.QComboBox)):
    """Chooses a node of the scene; subclasses of the node types are offered too, as in Slicer by default."""

    currentNodeChanged = QtCore.Signal(object)

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._scene: Any = None
        self._tags: list[int] = []
        self.currentIndexChanged.connect(lambda _index: self.currentNodeChanged.emit(self.currentNode()))

    def setMRMLScene(self, scene: Any) -> None:
        for tag in self._tags:
            self._scene.RemoveObserver(tag)
        self._scene, self._tags = scene, []
        if scene is not None:
            for event in (scene.NodeAddedEvent, scene.NodeRemovedEvent, scene.EndCloseEvent):
                self._tags.append(scene.AddObserver(event, lambda *_event: self._rebuild()))
        self._rebuild()

    def _rebuild(self) -> None:
        if self._scene.IsClosing():
            return
        before, was = self.currentNode(), QtWidgets.QComboBox.currentData(self)
        self.blockSignals(True)
        QtWidgets.QComboBox.clear(self)
        if QtCore.QObject.property(self, "noneEnabled"):
            self.addItem(QtCore.QObject.property(self, "noneDisplay") or "None", "")
        for kind in QtCore.QObject.property(self, "nodeTypes") or []:
            for number in range(self._scene.GetNumberOfNodesByClass(kind)):
                node = self._scene.GetNthNodeByClass(number, kind)
                if not node.GetHideFromEditors():
                    self.addItem(node.GetName(), node.GetID())
        index = self.findData(before.GetID()) if before else -1
        self.setCurrentIndex(index if index >= 0 else 0)
        self.blockSignals(False)
        if QtWidgets.QComboBox.currentData(self) != was:
            self.currentNodeChanged.emit(self.currentNode())

    def currentNode(self) -> Any:
        node_id = QtWidgets.QComboBox.currentData(self)
        return self._scene.GetNodeByID(node_id) if self._scene is not None and node_id else None

    def setCurrentNode(self, node: Any) -> None:
        index = self.findData(node.GetID() if node is not None else "")
        self.setCurrentIndex(index if index >= 0 else 0)


@with_habits
class qMRMLSegmentsTableView(adapt(QtWidgets.QTableWidget)):
    """Segments with color, name and status; follows the segmentation, and jumps to what is selected."""

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._node: Any = None
        self._tags: list[int] = []
        self.setColumnCount(3)
        self.setHorizontalHeaderLabels(["", "Name", "Status"])
        self.horizontalHeader().setStretchLastSection(True)
        self.setColumnWidth(0, 24)
        self.setColumnWidth(1, 200)
        self.verticalHeader().hide()
        self.setSelectionBehavior(QtWidgets.QAbstractItemView.SelectRows)
        self.itemSelectionChanged.connect(self._jump)

    def setMRMLScene(self, scene: Any) -> None:
        if scene is None:
            self.setSegmentationNode(None)

    def setSegmentationNode(self, node: Any) -> None:
        import slicer

        for tag in self._tags:
            self._node.RemoveObserver(tag)
        self._node, self._tags = node, []
        if node is not None:
            events = slicer.vtkSegmentation
            self._tags = [
                node.AddObserver(event, lambda *_event: self._rebuild())
                for event in (events.SegmentAdded, events.SegmentRemoved, events.SegmentModified)
            ]
        self._rebuild()

    def segmentationNode(self) -> Any:
        return self._node

    def _rebuild(self) -> None:
        import slicer

        segmentation = self._node.GetSegmentation() if self._node else None
        self.setRowCount(segmentation.GetNumberOfSegments() if segmentation else 0)
        for row in range(QtWidgets.QTableWidget.rowCount(self)):
            segment = segmentation.GetNthSegment(row)
            swatch = QtWidgets.QTableWidgetItem()
            swatch.setBackground(QtGui.QColor.fromRgbF(*segment.GetColor()))
            status = slicer.vtkSlicerSegmentationsModuleLogic.GetSegmentStatus(segment)
            word = STATUS_WORDS[status] if 0 <= status < len(STATUS_WORDS) else ""
            texts = (segment.GetName(), word)
            for column, item in enumerate((swatch, *map(QtWidgets.QTableWidgetItem, texts))):
                self.setItem(row, column, item)

    def selectedSegmentIDs(self) -> list[str]:
        rows = sorted({index.row() for index in self.selectedIndexes()})
        return [self._node.GetSegmentation().GetNthSegmentID(row) for row in rows] if self._node else []

    def setSelectedSegmentIDs(self, ids: list[str]) -> None:
        self.clearSelection()
        segmentation = self._node.GetSegmentation()
        for segment_id in ids:
            self.selectRow(segmentation.GetSegmentIndex(segment_id))

    def _jump(self) -> None:
        import slicer

        chosen = self.selectedSegmentIDs()
        if chosen and QtCore.QObject.property(self, "jumpToSelectedSegmentEnabled"):
            center = self._node.GetSegmentCenterRAS(chosen[0])
            slicer.vtkMRMLSliceNode.JumpAllSlices(slicer.mrmlScene, *center)


def _connect_selection(self: Any, signature: str, slot: Any) -> bool:
    """Slicer's table has a signal of the name that Qt's own table has for a slot."""
    if signature.startswith("selectionChanged("):
        self.itemSelectionChanged.connect(lambda: slot(None, None))
        return True
    return connect(self, signature, slot)


qMRMLSegmentsTableView.connect = _connect_selection


@with_habits
class qMRMLSegmentationShow3DButton(adapt(QtWidgets.QPushButton)):
    """Makes and removes the surfaces of a segmentation."""

    def __init__(self, parent: Any = None) -> None:
        super().__init__("Show 3D", parent)
        self._node: Any = None
        self.setCheckable(True)
        self.toggled.connect(self._toggle)

    def setSegmentationNode(self, node: Any) -> None:
        self._node = node

    def segmentationNode(self) -> Any:
        return self._node

    def _toggle(self, shown: bool) -> None:
        if self._node is not None and shown:
            self._node.CreateClosedSurfaceRepresentation()
        elif self._node is not None:
            self._node.RemoveClosedSurfaceRepresentation()


class qMRMLSegmentEditorWidget(QtWidgets.QWidget):
    """The Segment Editor's widget, in as far as others talk to it, with Slicer's own history of one segmentation.

    As there, another segmentation empties the history, and whether there are steps only the buttons tell.
    """

    undoEnabled = True

    def __init__(self) -> None:
        import slicer

        super().__init__()
        self._editor_node = slicer.mrmlScene.AddNode(slicer.vtkMRMLSegmentEditorNode())
        self._logic = slicer.vtkSlicerSegmentEditorLogic()
        self._logic.SetMRMLScene(slicer.mrmlScene)
        self._logic.SetSegmentEditorNode(self._editor_node)
        self._logic.SetMaximumNumberOfUndoStates(10)
        self._buttons = {}
        for name in ("UndoButton", "RedoButton"):
            self._buttons[name] = adapt(QtWidgets.QToolButton)(self)
            self._buttons[name].setObjectName(name)
        self._logic.AddObserver(self._logic.SegmentationHistoryChangedEvent, lambda *_event: self._update())
        self._update()

    def _update(self) -> None:
        self._buttons["UndoButton"].setEnabled(self._logic.CanUndo())
        self._buttons["RedoButton"].setEnabled(self._logic.CanRedo())

    def findChild(self, _kind: type, name: str) -> Any:
        return self._buttons[name]

    def segmentationNode(self) -> Any:
        return self._editor_node.GetSegmentationNode()

    def setSegmentationNode(self, node: Any) -> None:
        self._editor_node.SetAndObserveSegmentationNode(node)

    def setSourceVolumeNode(self, node: Any) -> None:
        self._editor_node.SetAndObserveSourceVolumeNode(node)

    def sourceVolumeNode(self) -> Any:
        return self._editor_node.GetSourceVolumeNode()

    def setCurrentSegmentID(self, segment_id: str) -> None:
        self._editor_node.SetSelectedSegmentID(segment_id)

    def currentSegmentID(self) -> str:
        return self._editor_node.GetSelectedSegmentID() or ""

    def saveStateForUndo(self) -> None:
        self._logic.SaveStateForUndo()

    def undo(self) -> None:
        self._logic.Undo()

    def redo(self) -> None:
        self._logic.Redo()


STAND_INS: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        qMRMLWidget, ctkCollapsibleButton, ctkPathLineEdit, ctkSliderWidget, qMRMLNodeComboBox, qMRMLSegmentsTableView,
        qMRMLSegmentationShow3DButton,
    )
}  # fmt: skip
