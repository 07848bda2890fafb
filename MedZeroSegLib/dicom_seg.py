"""Segmentation → DICOM SEG by highdicom: codes, algorithm, and references to the source images by position."""

from __future__ import annotations

from pathlib import Path

from MedZeroSegLib.segment import Segmentation


def write_dicom_seg(segmentation: Segmentation, source: Path, file: Path) -> Path:
    """Write the segments as one DICOM SEG object (BINARY; segments may overlap).

    Segments that weren't found stand in the object without frames. Where none was found, each has one empty frame,
    since an object without frames isn't allowed.

    Parameters
    ----------
    source : DICOM file or folder that the volume was read from.

    Returns
    -------
    Path
        ``file``.

    Raises
    ------
    InputError
        When the source isn't DICOM, or isn't what the volume was read from.
    InstallationError
        When highdicom is missing, or the file can't be written.
    """
    raise NotImplementedError
