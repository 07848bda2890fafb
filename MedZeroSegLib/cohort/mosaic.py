"""One picture a case to judge its masks by: slices over the whole extent and the most doubtful ones, with outlines."""

from __future__ import annotations

from pathlib import Path

from MedZeroSegLib.segment import Segmentation


def write_mosaic(segmentation: Segmentation, file: Path) -> Path:
    """PNG of slices in radiological orientation with the segments' outlines, side letters and a legend.

    Raises
    ------
    InputError, InstallationError
        When the picture can't be written, or matplotlib is missing.
    """
    raise NotImplementedError


def write_thumbnail(segmentation: Segmentation, file: Path) -> Path:
    """Small JPEG of the one slice that shows most; for the cohort's report. Errors as ``write_mosaic``."""
    raise NotImplementedError
