"""PySide6 with the habits of PythonQt, which Slicer's widgets are written for: every Qt property is an attribute
(`edit.text`, `button.enabled = False`), and `object.connect("clicked(bool)", slot)` connects a signal.

A getter that PythonQt hides behind a property (`edit.text()`) therefore fails here as it does in Slicer."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

from PySide6 import QtCore, QtGui, QtUiTools, QtWidgets

NAMESPACES = (QtWidgets, QtGui, QtCore)
VIRTUAL = ("sizeHint", "minimumSizeHint")  # Qt itself calls these by their names
CREATED: list[QtCore.QObject] = []  # widgets that QUiLoader made: Python must keep their wrappers


def split_signature(signature: str) -> tuple[str, int]:
    """ "clicked(bool)" is ("clicked", 1)."""
    name, _bracket, arguments = signature.partition("(")
    arguments = arguments.rstrip(")").strip()
    return name, len(arguments.split(",")) if arguments else 0


def connect(self: Any, signature: str, slot: Callable[..., Any]) -> bool:
    """Connect a slot to a signal given by its C++ signature; the slot gets as many arguments as that has."""
    name, count = split_signature(signature)

    def call(*values: Any) -> None:
        slot(*(values or (False,) * count)[:count])  # PySide6 leaves out the False of clicked(bool)

    self.__dict__.setdefault("connections", []).append((signature, slot, call))
    getattr(self, name).connect(call)
    return True


def disconnect(self: Any, signature: str, slot: Callable[..., Any] | None = None) -> bool:
    """Undo ``connect``, of one slot or of all."""
    name, _count = split_signature(signature)
    for entry in [entry for entry in self.__dict__.get("connections", []) if entry[0] == signature]:
        if slot in (None, entry[1]):
            getattr(self, name).disconnect(entry[2])
            self.connections.remove(entry)
    return True


def find_children(self: Any, kind: type = QtCore.QObject, name: str | None = None) -> list[Any]:
    """QObject.findChildren for a class with these habits, too."""
    kind = getattr(kind, "pyside", kind)
    return QtCore.QObject.findChildren(self, kind, name) if name else QtCore.QObject.findChildren(self, kind)


def qt_property(name: str) -> property:
    """An attribute that reads and writes a Qt property."""
    return property(
        lambda self: QtCore.QObject.property(self, name),
        lambda self, value: QtCore.QObject.setProperty(self, name, value),
    )


HABITS: dict[str, Any] = {
    "connect": connect,
    "disconnect": disconnect,
    "findChildren": find_children,
    "className": lambda self: self.metaObject().className(),
    "name": property(QtCore.QObject.objectName, QtCore.QObject.setObjectName),
}


@functools.cache
def adapt(kind: type) -> type:
    """The subclass of a PySide6 class that has these habits; the same for the same class."""
    # PySide6 finds QObject's own connect before a mixin's, so that the habits go into the class itself.
    body = dict(HABITS, pyside=kind)
    meta = kind.staticMetaObject
    for number in range(meta.propertyCount()):
        name = meta.property(number).name()
        if name not in VIRTUAL:
            body.setdefault(name, qt_property(name))
    return type(kind.__name__, (kind,), body)


def with_habits(kind: type) -> type:
    """Decorator of a stand-in derived from an adapted class: PySide6 hides inherited habits again."""
    for name in ("connect", "disconnect", "findChildren"):
        setattr(kind, name, HABITS[name])
    return kind


def ui_loader(stand_ins: dict[str, type]) -> type:
    """The class that loads .ui files with adapted widgets, and with stand-ins for those of ctk and MRML."""

    class QUiLoader(QtUiTools.QUiLoader):
        def createWidget(self, class_name: str, parent: Any = None, name: str = "") -> Any:
            kind = stand_ins.get(class_name) or adapt(getattr(QtWidgets, class_name))
            widget = kind(parent)
            widget.setObjectName(name)
            CREATED.append(widget)
            return widget

    return QUiLoader


class QtModule(types.ModuleType):
    """`import qt`."""

    def __init__(self, stand_ins: dict[str, type]) -> None:
        super().__init__("qt")
        self.QUiLoader = ui_loader(stand_ins)

    def __getattr__(self, name: str) -> Any:
        for namespace in NAMESPACES:
            found = getattr(namespace, name, None)
            if found is None:
                continue
            if isinstance(found, type) and issubclass(found, QtCore.QObject) and not name.endswith("Application"):
                return adapt(found)
            return found
        raise AttributeError(name)
