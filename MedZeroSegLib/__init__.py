"""MedZeroSeg's engine: structures asked for by name, segmented in CT, MR and X-ray images.

`read_volume` and `segment` are loaded at first use, so that importing the package stays quick and pulls no torch."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

# A mask takes memory only where something was written, with huge pages eight times as much. NumPy looks at this once,
# when it is imported.
os.environ.setdefault("NUMPY_MADVISE_HUGEPAGE", "0")

if TYPE_CHECKING:
    from .pipeline import segment
    from .volume_io import read_volume

__version__ = "0.1.0"
__all__ = ["__version__", "read_volume", "segment"]

_HOMES = {"read_volume": ".volume_io", "segment": ".pipeline"}


class _Package(ModuleType):
    """Python sets a submodule as an attribute of its package when it is imported; `segment` is the function's name."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)
