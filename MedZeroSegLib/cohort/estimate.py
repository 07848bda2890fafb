"""How much memory and time a cohort will take, from the headers of its images and the speeds that are known here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk

from MedZeroSegLib.cohort.case import Case
from MedZeroSegLib.cohort.workers import Crew
from MedZeroSegLib.dicom_io import is_dicom
from MedZeroSegLib.dicom_pixels import open_dataset, quiet_pydicom
from MedZeroSegLib.errors import InputError
from MedZeroSegLib.forecast import DEFAULT_RATES, rates_file, remembered_rates
from MedZeroSegLib.memory import needed_bytes
from MedZeroSegLib.queries import resolve
from MedZeroSegLib.reading import silent_libraries
from MedZeroSegLib.volume import Volume

VOXEL_BYTES = 4  # of the image itself, float32 at worst
CASES_IN_MEMORY = 2  # of one worker: the one that is computed and the next one


@dataclass(frozen=True)
class Estimate:
    """Of the cases that are to be computed.

    Attributes
    ----------
    bytes_a_worker
        Needed at most, with models.
    seconds
        From beginning to end.
    measured
        Whether the speed was measured on this machine.
    unreadable
        Cases whose header tells no size; they are left out.
    """

    bytes_a_worker: int
    seconds: float
    measured: bool
    unreadable: int


def estimate(
    cases: Sequence[Case], preset: str, device: str, crew: Crew, seconds_a_case: float | None = None
) -> Estimate:
    """Estimate from the headers; ``seconds_a_case`` is what a worker took for those that are done, if any.

    Speeds that were measured otherwise are those of one process that has the machine for itself. Further processes on
    the same processor are taken to gain nothing; on cards and other machines each counts.
    """
    from MedZeroSegLib.embeddings import expected_slices

    remembered = remembered_rates(rates_file(), f"{preset} on {device}")
    rates = {**DEFAULT_RATES, **remembered}
    needed, seconds, unreadable = needed_bytes((1, 1, 1), 1, preset), 0.0, 0
    for case in cases:
        header = _header(case)
        if header is None:
            unreadable += 1
            continue
        names, size = len(resolve(case.structures)), header.voxels.size
        kept = size * VOXEL_BYTES * CASES_IN_MEMORY
        needed = max(needed, needed_bytes(header.shape, names, preset) + kept)
        slices = expected_slices(header)
        units = {"planned": size / 1e6, "encoding": slices, "segmenting": slices * names}
        seconds += sum(rates[stage] * count for stage, count in units.items())
    side_by_side = max(1, crew.workers if crew.scheduler else crew.gpus)
    if seconds_a_case is not None:
        side_by_side = max(1, crew.workers)
        seconds = seconds_a_case * (len(cases) - unreadable)
    return Estimate(needed, seconds / side_by_side, bool(remembered) or seconds_a_case is not None, unreadable)


def _header(case: Case) -> Volume | None:
    """A volume of the image's grid without its voxels; None where the header can't be read."""
    try:
        if case.problem:
            return None
        return _dicom_header(case) if case.files or is_dicom(case.image) else _file_header(case)
    except (InputError, OSError, RuntimeError, ValueError, TypeError, AttributeError):
        return None


def _file_header(case: Case) -> Volume:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(case.image))
    with silent_libraries():
        reader.ReadImageInformation()
    rank = min(3, reader.GetDimension())
    matrix = np.eye(4)
    directions = np.reshape(reader.GetDirection(), (reader.GetDimension(), -1))[:rank, :rank]
    matrix[:rank, :rank] = directions * np.array(reader.GetSpacing())[:rank]
    i, j, k = (*reader.GetSize()[:rank], 1)[:3]
    return _empty((k, j, i), matrix, rank)


def _dicom_header(case: Case) -> Volume:
    files = [file for file in case.sources if file.is_file()] or sorted(f for f in case.image.rglob("*") if f.is_file())
    with quiet_pydicom():
        header = open_dataset(files[0], header_only=True)
        slices = len(files) * int(header.get("NumberOfFrames") or 1)
        row, column = (float(value) for value in header.get("PixelSpacing") or (1, 1))
        step = float(header.get("SpacingBetweenSlices") or header.get("SliceThickness") or 1)
        matrix = np.diag([column, row, step, 1.0])
        orientation = header.get("ImageOrientationPatient")
        if orientation is not None and len(orientation) == 6:
            along = np.array(orientation, float).reshape(2, 3)
            matrix[:3, :3] = np.stack([*along, np.cross(*along)], 1) * (column, row, step)
        return _empty((slices, int(header.Rows), int(header.Columns)), matrix, 3 if slices > 1 else 2)


def _empty(shape: tuple[int, int, int], matrix: np.ndarray, dimension: int) -> Volume:
    return Volume(np.broadcast_to(np.uint8(0), shape), matrix, "other", dimension=dimension)
