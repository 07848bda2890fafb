"""What the user chooses from menus. The values are the engine's words, the labels those of the menus."""

from __future__ import annotations

from enum import Enum

from .translation import _


class Modality(Enum):
    """What kind of image the user says it is; the values are the engine's."""

    AUTO = ""
    CT = "CT"
    MR = "MR"
    XRAY = "X-ray"
    ULTRASOUND = "ultrasound"
    PET = "PET"
    NUCLEAR = "nuclear medicine"
    OTHER = "other"

    def label(self) -> str:
        """Text in the menu."""
        words = {"": _("Automatic"), "ultrasound": _("Ultrasound"), "other": _("Other")}
        return words.get(self.value) or (_("Nuclear medicine") if self is Modality.NUCLEAR else self.value)


class Device(Enum):
    """What computes; the values are the engine's."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"
    MPS = "mps"

    def label(self) -> str:
        """Text in the menu."""
        return {
            "auto": _("Automatic"), "cpu": _("CPU"), "cuda": _("NVIDIA graphics card"), "mps": _("Apple graphics"),
        }[self.value]  # fmt: skip


class Models(Enum):
    """Which models; the values are the engine's presets."""

    LITE = "lite"
    RESEARCH = "lite-research"
    BASE = "base"

    def label(self) -> str:
        """Text in the menu."""
        return {
            "lite": _("Lite (Apache-2.0)"),
            "lite-research": _("Lite, more data (non-commercial)"),
            "base": _("BiomedCLIP and SAM (1.2 GB more)"),
        }[self.value]
