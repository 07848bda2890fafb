"""Small asymmetric images with known geometry, stored in any axis order, for tests of everything that reads a volume.

Canonical arrays here are [i, j, k] with i to the patient's left, j posterior, k superior (LPS)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations, product
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

CANONICAL_SHAPE = (48, 40, 32)
CANONICAL_SPACING = (0.8, 1.1, 2.7)  # mm
ARMS = (11, 7, 4)  # voxels along i, j, k
CORNER = (10, 8, 6)  # where the arms meet
BRIGHT_VOXEL = (40, 5, 25)


@dataclass(frozen=True)
class Storage:
    """One of the 48 ways to store a grid: ``order[a]`` is the canonical axis that stored axis a follows."""

    order: tuple[int, int, int]
    flips: tuple[bool, bool, bool]

    def store(self, canonical: np.ndarray) -> np.ndarray:
        """View of a canonical array in the stored axis order."""
        return np.transpose(canonical, self.order)[tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)]

    def matrix(self, canonical_shape: tuple[int, int, int], canonical_matrix: np.ndarray) -> np.ndarray:
        """The stored array's index → LPS matrix [4, 4]."""
        to_canonical = np.zeros((4, 4))
        to_canonical[3, 3] = 1
        for stored, (axis, flip) in enumerate(zip(self.order, self.flips, strict=True)):
            to_canonical[axis, stored] = -1 if flip else 1
            to_canonical[axis, 3] = canonical_shape[axis] - 1 if flip else 0
        return canonical_matrix @ to_canonical


def storages() -> Iterator[Storage]:
    """All 48 axis orders and flips."""
    for order, flips in product(permutations(range(3)), product((False, True), repeat=3)):
        yield Storage(order, flips)  # type: ignore[arg-type]


def l_phantom(shape: tuple[int, int, int] = CANONICAL_SHAPE, dtype: type = np.int16) -> np.ndarray:
    """Three arms of different length that meet in a corner, and one bright voxel; array [i, j, k], 0 to 300."""
    phantom = np.zeros(shape, dtype)
    x, y, z = CORNER
    phantom[x : x + ARMS[0], y, z] = 100
    phantom[x, y : y + ARMS[1], z] = 100
    phantom[x, y, z : z + ARMS[2]] = 100
    phantom[BRIGHT_VOXEL] = 300
    return phantom


def lps_matrix(
    spacing: tuple[float, float, float] = CANONICAL_SPACING,
    origin: tuple[float, float, float] = (-20.0, -35.0, 12.5),
    rotation: np.ndarray | None = None,
) -> np.ndarray:
    """Index → LPS matrix [4, 4] of a grid with axes along L, P, S, or turned by ``rotation`` [3, 3]."""
    matrix = np.eye(4)
    matrix[:3, :3] = (np.eye(3) if rotation is None else rotation) * np.array(spacing)
    matrix[:3, 3] = origin
    return matrix


def rotation_about(axis: tuple[float, float, float], degrees: float) -> np.ndarray:
    """Rotation matrix [3, 3] by the right-hand rule."""
    transform = sitk.VersorTransform(tuple(float(value) for value in axis), float(np.radians(degrees)))
    return np.reshape(transform.GetMatrix(), (3, 3))


def write_image(path: Path, stored: np.ndarray, matrix: np.ndarray) -> Path:
    """Write a stored array [i, j, k] with its index → LPS matrix through SimpleITK; the suffix chooses the format."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(stored.T))
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    image.SetSpacing(tuple(map(float, spacing)))
    image.SetDirection(tuple(map(float, (matrix[:3, :3] / spacing).ravel())))
    image.SetOrigin(tuple(map(float, matrix[:3, 3])))
    sitk.WriteImage(image, str(path))
    return path


def world_points(mask: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """LPS positions [n, 3] of the set voxels of a stored mask [i, j, k], sorted, rounded to 1e-3 mm."""
    points = np.argwhere(mask) @ matrix[:3, :3].T + matrix[:3, 3]
    points = np.round(points, 3) + 0.0
    return points[np.lexsort(points.T)]


def dicom_image(pixels: np.ndarray, modality: str = "CT", **attributes: Any) -> Dataset:
    """A DICOM image with stored values [j, i], [frame, j, i] or [j, i, 3], and attributes by their keywords."""
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.SOPClassUID = CTImageStorage if modality == "CT" else SecondaryCaptureImageStorage
    image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
    image.StudyInstanceUID = image.SeriesInstanceUID = "1.2.3"
    image.SpecificCharacterSet = "ISO_IR 100"
    image.PatientName = "Müller^Jörg"
    image.Modality = modality
    colour = pixels.ndim == 3 and pixels.shape[-1] == 3
    if pixels.ndim == 3 and not colour:
        image.NumberOfFrames = len(pixels)
    image.SamplesPerPixel = 3 if colour else 1
    image.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        image.PlanarConfiguration = 0
    image.Rows, image.Columns = pixels.shape[:2] if colour else pixels.shape[-2:]
    image.BitsAllocated = image.BitsStored = pixels.dtype.itemsize * 8
    image.HighBit = image.BitsStored - 1
    image.PixelRepresentation = int(pixels.dtype.kind == "i")
    image.add_new(0x7FE00010, "OW" if pixels.dtype.itemsize > 1 else "OB", pixels.tobytes())
    for keyword, value in attributes.items():
        setattr(image, keyword, value)
    return image


def dicom_series(
    folder: Path,
    slices: np.ndarray,
    positions: Sequence[Sequence[float]],
    orientation: Sequence[float] = (1, 0, 0, 0, 1, 0),
    spacing: tuple[float, float] = (1.0, 1.0),
    modality: str = "CT",
    **attributes: Any,
) -> Path:
    """Write one file for each slice [n, j, i] into a folder; positions in LPS mm, spacing of rows and columns."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (pixels, position) in enumerate(zip(slices, positions, strict=True)):
        image = dicom_image(
            pixels,
            modality,
            ImagePositionPatient=[f"{value:.10g}" for value in position],
            ImageOrientationPatient=[f"{value:.10g}" for value in orientation],
            PixelSpacing=[f"{value:.10g}" for value in spacing],
            InstanceNumber=number + 1,
            **attributes,
        )
        image.save_as(folder / f"{image.SeriesInstanceUID}-{number:03d}.dcm", enforce_file_format=True)
    return folder
