"""The application around the panel, in as far as the module asks for it: `qt`, `ctk`, `slicer.app`, the base classes of
scripted modules and `parameterNodeWrapper`, over a real MRML scene. Call `install` before importing the module.

What this proves: the .ui loads and holds every control that the code names; what is shown, enabled and said in each
state; the wiring; what the scene remembers; the life of a run. What only Slicer proves: PythonQt's conversions and
object lifetimes, the behaviour of the real ctk and MRML widgets, keyboard focus in the main window, style and fonts,
discovery and packaging.

With SLICER_BASE_PYTHON naming Base/Python of a Slicer source tree (or bin/Python of an installation), Slicer's own
base classes, `slicer.i18n`, `slicer.packaging` and `parameterNodeWrapper` are used in place of the ones here.
"""

from __future__ import annotations

import enum
import json
import os
import sys
import types
import typing
import unittest
from pathlib import Path
from typing import Any

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

import slicer
import slicer.util
from mrml_scene import Environment
from PySide6 import QtCore, QtWidgets
from pythonqt import QtModule, with_habits
from stand_ins import STAND_INS, ctkSliderWidget, qMRMLNodeComboBox, qMRMLWidget

BASE_PYTHON = os.environ.get("SLICER_BASE_PYTHON")
UNUSED_WIDGETS = (  # named by Slicer's own parameterNodeWrapper, not by the panel
    "qMRMLSubjectHierarchyTreeView", "qMRMLSubjectHierarchyComboBox", "qMRMLRangeWidget", "qMRMLSliderWidget",
    "qMRMLCheckableNodeComboBox", "qMRMLSpinBox",
)  # fmt: skip


class Application:
    """slicer.app"""

    applicationName, applicationVersion = "Slicer (stand-in)", "0"

    def __init__(self, environment: Environment, qapp: QtWidgets.QApplication) -> None:
        self._environment, self._qapp = environment, qapp
        self._slots: list[tuple[str, Any]] = []
        self.views: dict[str, Any] = {}  # slice views of the layout, by their names
        self.manager = types.SimpleNamespace(connect=lambda *_a: None, disconnect=lambda *_a: None)

    def connect(self, signal: str, slot: Any) -> None:
        self._slots.append((signal, slot))

    def emit(self, signal: str) -> None:
        """What the application itself would do."""
        for _signal, slot in [pair for pair in self._slots if pair[0] == signal]:
            slot()

    def applicationLogic(self) -> Any:
        return self._environment.application

    def layoutManager(self) -> Any:
        widget = lambda name: types.SimpleNamespace(sliceView=lambda: self.views[name])  # noqa: E731
        return types.SimpleNamespace(sliceViewNames=lambda: list(self.views), sliceWidget=widget)

    def processEvents(self) -> None:
        self._qapp.processEvents()

    def testingEnabled(self) -> bool:
        return True

    def moduleManager(self) -> Any:
        return self.manager

    def translate(self, _context: str, text: str) -> str:
        return text

    def startupEnvironment(self) -> Any:
        values = dict(os.environ)
        return types.SimpleNamespace(keys=lambda: list(values), value=lambda name: values[name])


class ScriptedLoadableModule:
    """Base of the module class."""

    def __init__(self, parent: Any) -> None:
        self.parent = parent


class ScriptedLoadableModuleWidget:
    """Base of the panel."""

    def __init__(self, parent: Any = None) -> None:
        self.moduleName = type(self).__name__.removesuffix("Widget")
        self.parent = parent
        self.layout = parent.layout()

    def setup(self) -> None:
        pass

    def resourcePath(self, name: str) -> str:
        return str(Path(sys.modules[type(self).__module__].__file__).parent / "Resources" / name)


class ScriptedLoadableModuleLogic:
    """Base of the logic."""

    def __init__(self, parent: Any = None) -> None:
        self.moduleName = type(self).__name__.removesuffix("Logic")

    def getParameterNode(self) -> Any:
        node = slicer.mrmlScene.GetSingletonNode(self.moduleName, "vtkMRMLScriptedModuleNode")
        if node is None:
            node = slicer.vtkMRMLScriptedModuleNode()
            node.SetSingletonTag(self.moduleName)
            node.SetAttribute("ModuleName", self.moduleName)
            node.SetName(self.moduleName)
            node = slicer.mrmlScene.AddNode(node)
        return node


class ScriptedLoadableModuleTest(unittest.TestCase):
    """Base of the self-test."""

    def delayDisplay(self, message: str, *_arguments: Any) -> None:
        print(message)


def parameterNodeWrapper(kind: type) -> type:
    """Texts, truth values, enumerations and nodes in a parameter node, and their connection to controls.

    As Slicer's own does, every change of the node writes all values into their controls again.
    """
    hints = typing.get_type_hints(kind)
    defaults = {key: getattr(kind, key, None) for key in hints}

    def read(self: Any, key: str) -> Any:
        if _is_node(hints[key]):
            return self.parameterNode.GetNodeReference(key)
        text = self.parameterNode.GetParameter(key)
        if not text:
            return defaults[key]
        value = json.loads(text)
        return hints[key][value] if issubclass(hints[key], enum.Enum) else value

    def write(self: Any, key: str, value: Any) -> None:
        if _is_node(hints[key]):
            self.parameterNode.SetNodeReferenceID(key, value.GetID() if value is not None else None)
        else:
            text = json.dumps(value.name if isinstance(value, enum.Enum) else value)
            self.parameterNode.SetParameter(key, text)

    def connect_gui(self: Any, ui: Any) -> int:
        pairs = []
        for widget in vars(ui).values():
            key = QtCore.QObject.property(widget, "SlicerParameterName")
            if key in hints:
                pairs.append((key, *_connector(widget, hints[key])))
        writing: list[bool] = []

        def to_gui(*_event: Any) -> None:
            if not writing:
                writing.append(True)
                for key, _get, put, _signal in pairs:
                    put(read(self, key))
                writing.clear()

        to_gui()
        self._slots = []
        for key, get, _put, signal in pairs:
            slot = lambda *_v, key=key, get=get: None if writing else write(self, key, get())  # noqa: E731
            signal.connect(slot)
            self._slots.append((signal, slot))
        return self.parameterNode.AddObserver("ModifiedEvent", to_gui)

    def disconnect_gui(self: Any, tag: int) -> None:
        for signal, slot in self._slots:
            signal.disconnect(slot)
        self.parameterNode.RemoveObserver(tag)

    for key in hints:
        setattr(kind, key, property(lambda s, k=key: read(s, k), lambda s, v, k=key: write(s, k, v)))
    kind.__init__ = lambda self, node: setattr(self, "parameterNode", node)
    kind.connectGui, kind.disconnectGui = connect_gui, disconnect_gui
    return kind


class WithinRange:
    """The range of a number; here the slider alone keeps it."""

    def __init__(self, minimum: float, maximum: float) -> None:
        self.minimum, self.maximum = minimum, maximum


def _is_node(kind: type) -> bool:
    return kind.__name__.startswith("vtkMRML")


def _connector(widget: Any, kind: type) -> tuple[Any, Any, Any]:
    """How a control is read and written, and its signal; the pairs that Slicer has, and no others."""
    if isinstance(widget, qMRMLNodeComboBox):
        return widget.currentNode, widget.setCurrentNode, widget.currentNodeChanged
    if isinstance(widget, ctkSliderWidget) and kind is float:
        return (lambda: widget.value), widget.setValue, widget.valueChanged
    if isinstance(widget, QtWidgets.QCheckBox):
        return (lambda: widget.checked), widget.setChecked, widget.toggled
    if isinstance(widget, QtWidgets.QTextEdit):
        return widget.toPlainText, widget.setPlainText, widget.textChanged  # Slicer sets the text at every change
    if isinstance(widget, QtWidgets.QComboBox) and issubclass(kind, enum.Enum):
        members = list(kind)
        widget.clear()
        for member in members:
            widget.addItem(member.label())
        return (
            (lambda: members[widget.currentIndex]),
            (lambda value: widget.setCurrentIndex(members.index(value))),
            widget.currentIndexChanged,
        )
    raise TypeError(f"Slicer connects no {type(widget).__name__} to {kind.__name__}")


def install(environment: Environment, module_file: Path) -> QtWidgets.QApplication:
    """Make `import qt`, `import ctk` and Slicer's names work for the module in a file."""
    qapp = QtWidgets.QApplication.instance() or QtWidgets.QApplication([])
    QtCore.QCoreApplication.setOrganizationName("MedZeroSeg tests")
    QtCore.QCoreApplication.setApplicationName("panel")
    sys.modules["qt"] = QtModule(STAND_INS)
    sys.modules["ctk"] = types.ModuleType("ctk")
    vars(sys.modules["ctk"]).update({name: kind for name, kind in STAND_INS.items() if name.startswith("ctk")})
    slicer.app = Application(environment, qapp)
    slicer.util.mainWindow = lambda: None
    for name, widget in STAND_INS.items():
        if name.startswith("qMRML"):
            setattr(slicer, name, widget)
    if BASE_PYTHON:
        _use_slicers_own(Path(BASE_PYTHON), environment, module_file)
    else:
        _use_stand_ins()
    return qapp


def _use_stand_ins() -> None:
    for name, members in {
        "slicer.ScriptedLoadableModule": (
            ScriptedLoadableModule, ScriptedLoadableModuleWidget, ScriptedLoadableModuleLogic,
            ScriptedLoadableModuleTest,
        ),
        "slicer.parameterNodeWrapper": (parameterNodeWrapper, WithinRange),
    }.items():  # fmt: skip
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update({member.__name__: member for member in members})
    sys.modules["slicer.i18n"] = types.ModuleType("slicer.i18n")
    sys.modules["slicer.i18n"].tr = lambda text: text
    sys.modules["slicer.i18n"].translate = lambda _context, text: text


def _use_slicers_own(folder: Path, environment: Environment, module_file: Path) -> None:
    slicer.__path__.append(str(folder / "slicer"))

    class Ctk(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            if not name.startswith("ctk"):
                raise AttributeError(name)
            setattr(self, name, STAND_INS.get(name) or with_habits(type(name, (qMRMLWidget,), {})))
            return getattr(self, name)

    sys.modules["ctk"] = Ctk("ctk")
    for name in UNUSED_WIDGETS:
        setattr(slicer, name, with_habits(type(name, (qMRMLWidget,), {})))
    widgets = types.ModuleType("qSlicerSubjectHierarchyModuleWidgetsPythonQt")
    widgets.qMRMLSubjectHierarchyTreeView = slicer.qMRMLSubjectHierarchyTreeView
    sys.modules[widgets.__name__] = widgets
    setattr(environment.modules, module_file.stem.lower(), types.SimpleNamespace(path=str(module_file)))


def panel_parent() -> Any:
    """The widget that Slicer gives a module's panel, shown as entered."""
    parent = qMRMLWidget()
    parent.setLayout(QtWidgets.QVBoxLayout())
    parent.isEntered = True
    return parent


def leave() -> None:
    """End the interpreter at once: Qt and VTK do not agree in which order to go."""
    os._exit(0)
