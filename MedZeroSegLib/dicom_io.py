"""DICOM files and folders → voxels and geometry, by the positions of the slices."""

from __future__ import annotations

from pathlib import Path

from MedZeroSegLib.errors import InputError
from MedZeroSegLib.reading import Reading


def is_dicom(path: Path) -> bool:
    """Whether a path is a folder or a DICOM file."""
    if path.is_dir():
        return True
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def read_dicom(path: Path, frame: int | None) -> Reading:
    """Read a DICOM file or a folder with one series."""
    raise InputError(f"'{path}': DICOM reading is not there yet.")
