"""What kind of image it is: from DICOM's modality, or guessed from the grey levels when nobody says.
The command line and the Slicer module guess by this one rule, so that both see the same image."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

# DICOM's Modality (0008,0060) → a member of `volume.MODALITIES`; what is missing here is "other".
MODALITIES_OF_DICOM: Mapping[str, str] = MappingProxyType(
    {
        "CT": "CT",
        "MR": "MR",
        **dict.fromkeys(("CR", "DX", "MG", "RG", "XA", "RF", "PX", "IO"), "X-ray"),
        **dict.fromkeys(("US", "IVUS"), "ultrasound"),
        "PT": "PET",
        **dict.fromkeys(("NM", "ST"), "nuclear medicine"),
    }
)
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif", ".webp")  # carry no spacing to trust
CT_AIR_MAX = -500.0  # HU; a volume that reaches below, and above CT_TISSUE_MIN, looks like a CT with air
CT_FAT_MAX = -80.0  # HU; whole numbers from below this to above CT_TISSUE_MIN look like a CT without air
CT_TISSUE_MIN = 100.0  # HU


def modality_of_dicom(name: str | None) -> str | None:
    """Member of ``volume.MODALITIES`` for DICOM's Modality; None when DICOM does not say."""
    return None if name is None else MODALITIES_OF_DICOM.get(name, "other")


def guess_modality(smallest: float, largest: float, whole_numbers: bool, dimension: int) -> str:
    """CT for grey levels that look like HU (air or fat below, tissue above), else X-ray for pictures, MR for volumes.

    Parameters
    ----------
    smallest, largest : grey levels of what is image; padding and values that aren't finite are left out.
    whole_numbers : see ``holds_whole_numbers``.
    dimension : 2 or 3.
    """
    if largest > CT_TISSUE_MIN and (smallest < CT_AIR_MAX or (smallest < CT_FAT_MAX and whole_numbers)):
        return "CT"
    return "X-ray" if dimension == 2 else "MR"


def holds_whole_numbers(voxels: np.ndarray) -> bool:
    """Whether the middle slice of ``voxels`` [k, j, i] holds whole numbers only."""
    return voxels.dtype.kind in "iu" or not bool(np.any(voxels[len(voxels) // 2] % 1))
