"""Sentences for the user in the language that Slicer is set to; as they stand where there is no application."""

from __future__ import annotations

try:
    from slicer.i18n import tr as _
except ImportError:

    def _(text: str) -> str:
        return text


__all__ = ["_"]
