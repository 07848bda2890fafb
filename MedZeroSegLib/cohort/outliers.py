"""Segments whose size is out of line with the same structure in the other cases of the cohort."""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from MedZeroSegLib.cohort.case_record import CaseRecord
    from MedZeroSegLib.cohort.statistics import SegmentStatistics

OUTLIER_Z = 3.5  # Iglewicz & Hoaglin, How to Detect and Handle Outliers (1993)
MAD_TO_SD = 1.4826  # of a normal distribution
CASES_MIN = 8  # fewer sizes don't tell what is usual
SPREAD_MIN = 0.05  # of the log size; sizes more alike than this make no one an outlier by a trifle


def size_of(segment: SegmentStatistics) -> tuple[float, str] | None:
    """Size with its unit: ml, else mm², else voxels where the spacing isn't known; None where nothing was found."""
    if not segment.found:
        return None
    if segment.volume_ml is not None:
        return segment.volume_ml, "ml"
    if segment.area_mm2 is not None:
        return segment.area_mm2, "mm²"
    return float(segment.voxels), "voxels"


def sizes_by_structure(records: Iterable[CaseRecord]) -> dict[tuple[str, str], list[tuple[str, float]]]:
    """(structure, unit) → (case, size) of each case in which it was found."""
    sizes: dict[tuple[str, str], list[tuple[str, float]]] = {}
    for record in records:
        for segment in record.segments:
            measured = size_of(segment)
            if measured is not None:
                size, unit = measured
                sizes.setdefault((segment.name, unit), []).append((record.case, size))
    return sizes


def robust_z(sizes: list[float]) -> list[float]:
    """Distance of each log size from the median, in robust standard deviations; all 0 for fewer than ``CASES_MIN``.

    Sizes of organs spread by factors, so half the usual size is as far off as twice.
    """
    if len(sizes) < CASES_MIN:
        return [0.0] * len(sizes)
    logs = [math.log(size) for size in sizes]
    middle = median(logs)
    spread = max(MAD_TO_SD * median(abs(value - middle) for value in logs), SPREAD_MIN)
    return [(value - middle) / spread for value in logs]


def outliers_of(records: Iterable[CaseRecord]) -> dict[tuple[str, str], float]:
    """(case, structure) → robust z, of those beyond ``OUTLIER_Z``."""
    found = {}
    for (name, _unit), measured in sizes_by_structure(records).items():
        for (case, _size), z in zip(measured, robust_z([size for _, size in measured]), strict=True):
            if abs(z) > OUTLIER_Z:
                found[case, name] = z
    return found
