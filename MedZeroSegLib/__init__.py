"""MedZeroSeg's engine: structures asked for by name, segmented in CT, MR and X-ray images.

`read_volume` and `segment` are loaded at first use, so that importing the package stays quick and pulls no torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import segment as _segment_types

if TYPE_CHECKING:
    from .pipeline import segment
    from .volume_io import read_volume

__version__ = "0.1.0"
__all__ = ["__version__", "read_volume", "segment"]

# Python sets a submodule as an attribute of its package once, at its first import. That has happened above, so
# the name `segment` is free for the function from here on, whatever is imported later.
del _segment_types
globals().pop("segment", None)

_HOMES = {"read_volume": ".volume_io", "segment": ".pipeline"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)
