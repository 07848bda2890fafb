"""Where DICOM slices lie in the patient, and the grid they form together.

Only positions count, not SliceThickness, file names or instance numbers. Coordinates are LPS mm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from MedZeroSegLib.errors import InputError

SAME_POSITION = 1e-3  # mm; slices nearer than this, or than JITTER_MAX of the spacing, lie at one position
JITTER_MAX = 0.01  # of the slice spacing; less is rounding in headers
UNEVEN_MAX = 0.1  # of the slice spacing; more is no regular grid
DRIFT_MAX = 0.5  # pixels from the first to the last slice; less cannot be seen in a mask
ORIENTATION_TOLERANCE = 1e-2  # of direction cosines, about half a degree
DISTANCE_DIGITS = 9  # of mm; differences of decimal positions carry rounding behind these

MM_PER_CM = 10.0
ULTRASOUND_2D, ULTRASOUND_CM = 1, 3  # codes of RegionSpatialFormat and PhysicalUnitsXDirection
CALIBRATED_PROJECTIONS = ("GEOMETRY", "FIDUCIAL")


@dataclass(frozen=True)
class Plane:
    """One slice in space: position of the first pixel's centre, directions and distances of columns and rows."""

    position: np.ndarray  # [3]
    orientation: np.ndarray  # [6]: direction of increasing column index, then of increasing row index
    pixel_spacing: tuple[float, float]  # distance between rows, between columns

    @property
    def normal(self) -> np.ndarray:
        """Unit vector [3] from column and row direction by the right-hand rule."""
        normal = np.cross(self.orientation[:3], self.orientation[3:])
        return normal / np.linalg.norm(normal)

    def parallel(self, other: Plane) -> bool:
        """Whether both planes can belong to one stack."""
        return np.allclose(self.orientation, other.orientation, atol=ORIENTATION_TOLERANCE) and np.allclose(
            self.pixel_spacing, other.pixel_spacing, rtol=1e-3
        )


def planes_of(header: Dataset) -> list[Plane | None]:
    """The plane of each frame of a file; None where the file doesn't place it in space."""
    count = int(header.get("NumberOfFrames") or 1)
    per_frame = header.get("PerFrameFunctionalGroupsSequence") or []
    if len(per_frame) == count:
        shared = header.get("SharedFunctionalGroupsSequence") or [Dataset()]
        return [_plane([frame, shared[0], header]) for frame in per_frame]
    detectors = header.get("DetectorInformationSequence") or [Dataset()]  # nuclear medicine keeps its geometry there
    first = _plane([header, detectors[0]])
    step = _number(header.get("SpacingBetweenSlices")) or _number(header.get("SliceThickness"))
    if count == 1:
        return [first]
    if first is None or step is None or is_cine(header):
        return [None] * count
    return [
        Plane(first.position + k * step * first.normal, first.orientation, first.pixel_spacing) for k in range(count)
    ]


def is_cine(header: Dataset) -> bool:
    """Whether frames without positions of their own are time points or views rather than slices."""
    if any(header.get(keyword) for keyword in ("FrameTime", "FrameTimeVector", "CineRate")):
        return True
    modality = header.get("Modality")
    return modality in ("US", "IVUS", "XA", "RF") or (
        modality == "NM" and "RECON TOMO" not in map(str, header.get("ImageType") or ())
    )


def _plane(places: Sequence[Dataset]) -> Plane | None:
    """The plane from the first place that has each attribute, directly or in the functional group that holds it."""
    position = _numbers(_find(places, "ImagePositionPatient", "PlanePositionSequence"), 3)
    orientation = _numbers(_find(places, "ImageOrientationPatient", "PlaneOrientationSequence"), 6)
    spacing = _numbers(_find(places, "PixelSpacing", "PixelMeasuresSequence"), 2)
    if position is None or orientation is None:
        return None
    lengths = np.linalg.norm(orientation.reshape(2, 3), axis=1)
    if not np.allclose(lengths, 1, atol=0.05):
        return None
    if spacing is None or not (spacing > 0).all():
        return None
    unit = (orientation.reshape(2, 3) / lengths[:, np.newaxis]).ravel()
    return Plane(position, unit, (float(spacing[0]), float(spacing[1])))


def _find(places: Sequence[Dataset], keyword: str, group: str) -> Any:
    for place in places:
        if place.get(keyword):
            return place.get(keyword)
        if place.get(group) and place.get(group)[0].get(keyword):
            return place.get(group)[0].get(keyword)
    return None


def _numbers(value: Any, count: int) -> np.ndarray | None:
    try:
        numbers = np.array([float(number) for number in value])
    except (TypeError, ValueError):
        return None
    return numbers if numbers.shape == (count,) and np.isfinite(numbers).all() else None


def _number(value: Any) -> float | None:
    """A non-zero finite number, or None."""
    numbers = _numbers([value], 1)
    return None if numbers is None or numbers[0] == 0 else float(numbers[0])


def flat_spacing(header: Dataset) -> tuple[tuple[float, float], bool, str]:
    """Spacing of an image that isn't placed in space.

    Returns
    -------
    (row, column) distance in mm; whether that holds in the patient; the attribute it comes from, "" if there is none.
    """
    pixel, imager = _numbers(header.get("PixelSpacing"), 2), _numbers(header.get("ImagerPixelSpacing"), 2)
    projected = imager is not None or header.get("Modality") in ("CR", "DX", "MG", "RG", "XA", "RF", "PX", "IO")
    if pixel is not None and (pixel > 0).all():
        corrected = imager is not None and not np.allclose(pixel, imager)
        calibrated = header.get("PixelSpacingCalibrationType") in CALIBRATED_PROJECTIONS or corrected
        return (float(pixel[0]), float(pixel[1])), calibrated or not projected, "PixelSpacing"
    for keyword in ("ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        spacing = _numbers(header.get(keyword), 2)
        if spacing is not None and (spacing > 0).all():
            return (float(spacing[0]), float(spacing[1])), False, keyword
    for region in header.get("SequenceOfUltrasoundRegions") or []:
        dx, dy = (abs(_number(region.get(f"PhysicalDelta{axis}")) or 0.0) * MM_PER_CM for axis in "XY")
        kind = (region.get("RegionSpatialFormat"), region.get("PhysicalUnitsXDirection"))
        if kind == (ULTRASOUND_2D, ULTRASOUND_CM) and dx and dy:
            return (dy, dx), True, "SequenceOfUltrasoundRegions"
    aspect = _numbers(header.get("PixelAspectRatio"), 2)
    if aspect is not None and (aspect > 0).all():
        return (float(aspect[0] / aspect[1]), 1.0), False, ""
    return (1.0, 1.0), False, ""


@dataclass(frozen=True)
class Stack:
    """Slices sorted along their normal: for each position the numbers of the slices that lie there, and the grid."""

    members: tuple[tuple[int, ...], ...]
    ijk_to_lps: np.ndarray
    warnings: tuple[str, ...]


def stack_planes(planes: Sequence[Plane], thickness: float | None, name: str) -> Stack:
    """The regular grid that parallel planes form.

    Parameters
    ----------
    thickness : slice distance in mm to take when all planes lie at one position.
    name : what to call the input in an error.

    Raises
    ------
    InputError
        When slices are lost, unevenly spaced, or shifted against each other (gantry tilt).
    """
    first = planes[0]
    heights = np.array([plane.position @ first.normal for plane in planes])
    members = _positions(heights)
    starts = np.array([planes[group[0]].position for group in members])
    levels = np.array([heights[group[0]] for group in members])
    warnings: list[str] = []
    if len(members) == 1:
        step = abs(thickness or 1.0)
    else:
        _refuse_drift(starts, levels, first, name)
        step = round(float(levels[-1] - levels[0]) / (len(members) - 1), DISTANCE_DIGITS)
        warnings = _check_distances(starts, levels, name)
    matrix = np.eye(4)
    matrix[:3, 0] = first.orientation[:3] * first.pixel_spacing[1]
    matrix[:3, 1] = first.orientation[3:] * first.pixel_spacing[0]
    matrix[:3, 2] = first.normal * step
    matrix[:3, 3] = starts[0]
    return Stack(tuple(members), matrix, tuple(warnings))


def _positions(heights: np.ndarray) -> list[tuple[int, ...]]:
    """Numbers of the slices at each position along the normal, ascending; order within a position as given."""
    order = np.argsort(heights, kind="stable")
    steps = np.diff(heights[order])
    apart = steps[steps > SAME_POSITION]
    tolerance = max(SAME_POSITION, JITTER_MAX * float(np.median(apart))) if apart.size else SAME_POSITION
    groups: list[list[int]] = [[int(order[0])]]
    for number, step in zip(order[1:], steps, strict=True):
        if step > tolerance:
            groups.append([])
        groups[-1].append(int(number))
    return [tuple(sorted(group)) for group in groups]


def _refuse_drift(starts: np.ndarray, levels: np.ndarray, plane: Plane, name: str) -> None:
    offsets = starts - starts[0] - np.outer(levels - levels[0], plane.normal)
    drift = np.linalg.norm(offsets, axis=1)
    if drift.max() <= DRIFT_MAX * min(plane.pixel_spacing):
        return
    height = levels - levels[0]
    slope = height @ offsets / (height @ height)
    if np.linalg.norm(offsets - np.outer(height, slope), axis=1).max() <= DRIFT_MAX * min(plane.pixel_spacing):
        angle = np.degrees(np.arctan(np.linalg.norm(slope)))
        raise InputError(
            f"'{name}' was taken with the gantry tilted by {angle:.1f} degrees, so its slices form no box; "
            "resample it first (dcm2niix does, and so does Slicer's 'acquisition geometry regularization')."
        )
    raise InputError(
        f"The slices of '{name}' are shifted against each other by up to {drift.max():.1f} mm and form no grid; "
        "give a folder with one regular series."
    )


def _check_distances(starts: np.ndarray, levels: np.ndarray, name: str) -> list[str]:
    """A warning about slightly uneven distances; InputError about lost slices and uneven ones."""
    steps = np.diff(levels)
    step = float(np.median(steps))
    missing = np.rint(steps / step).astype(int) - 1
    gaps = np.flatnonzero(missing > 0)
    uneven = np.abs(steps - step * (missing + 1))
    if gaps.size and 2 * gaps.size <= steps.size and uneven.max() <= UNEVEN_MAX * step:
        before, after = starts[gaps[0]], starts[gaps[0] + 1]
        at = before + (after - before) / (missing[gaps[0]] + 1)
        place = ", ".join(f"{value:.1f}" for value in at)
        count = int(missing.sum())
        what = "1 slice is" if count == 1 else f"{count} slices are"
        raise InputError(
            f"{what} missing in '{name}', {'the first ' if count > 1 else ''}at position ({place}) mm; "
            "copy or export the whole series again."
        )
    if np.abs(steps - step).max() > UNEVEN_MAX * step:
        raise InputError(
            f"The slices of '{name}' lie unevenly, {steps.min():.2f} to {steps.max():.2f} mm apart; "
            "give a series with one slice distance, or resample it first."
        )
    if np.abs(steps - step).max() > JITTER_MAX * step:
        return [f"Slice distances vary from {steps.min():.3f} to {steps.max():.3f} mm; their mean is used."]
    return []
