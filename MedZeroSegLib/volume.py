"""A medical image as a value: voxels, their place in the patient, and what kind of image it is.

Index order is [k, j, i] for arrays and (i, j, k) for points; world coordinates are LPS in mm (DICOM and ITK)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from MedZeroSegLib.region import Region

MODALITIES = ("CT", "MR", "X-ray", "ultrasound", "PET", "nuclear medicine", "other")
MODALITY_SOURCES = ("dicom", "guess", "given")
SHEAR_MAX_DEGREES = 0.05  # what rounding in a header can do; SimpleITK itself stops reading NIfTI at about this


@dataclass(frozen=True, eq=False)
class Volume:
    """One image on its own grid; refuses nonsense when it is built.

    Parameters
    ----------
    voxels : array [k, j, i] of finite real numbers; shared, not copied, and read-only from here on.
    ijk_to_lps : array [4, 4], float64; maps (i, j, k, 1) to LPS mm. Left-handed grids are kept as they are.
    modality : one of ``MODALITIES``.
    modality_source : "dicom", "guess" or "given".
    dimension : 2 for a picture or a single radiograph (voxels are [1, j, i]), else 3.
    calibrated : False when the spacing isn't known in mm, so that no ml or mm² may be reported.
    outside : bool array [k, j, i] or None; True where voxels are padding or weren't finite.
    warnings : sentences for the user.
    path : the file or folder that was read.
    region : where structures are looked for; None is everywhere.

    Raises
    ------
    ValueError
        When shapes, types or the matrix contradict the above.
    """

    voxels: np.ndarray
    ijk_to_lps: np.ndarray
    modality: str
    modality_source: str = "given"
    dimension: int = 3
    calibrated: bool = True
    outside: np.ndarray | None = None
    warnings: tuple[str, ...] = ()
    path: Path | None = None
    region: Region | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "voxels", _read_only(self.voxels))
        object.__setattr__(self, "ijk_to_lps", _read_only(np.array(self.ijk_to_lps, dtype=np.float64)))
        object.__setattr__(self, "warnings", tuple(self.warnings))
        _check_voxels(self.voxels)
        _check_matrix(self.ijk_to_lps)
        if self.outside is not None:
            object.__setattr__(self, "outside", _read_only(self.outside))
            if self.outside.dtype != bool or self.outside.shape != self.voxels.shape:
                raise ValueError("outside must be a bool array of the voxels' shape")
        if self.modality not in MODALITIES:
            raise ValueError(f"modality must be one of {', '.join(MODALITIES)}, not {self.modality!r}")
        if self.modality_source not in MODALITY_SOURCES:
            raise ValueError(f"modality_source must be one of {', '.join(MODALITY_SOURCES)}")
        if self.region is not None and not self.region.lies_in(self.voxels.shape):
            raise ValueError(f"the region {self.region.box} leaves the grid of {self.voxels.shape[::-1]} voxels")
        if self.dimension not in (2, 3) or (self.dimension == 2 and self.voxels.shape[0] != 1):
            raise ValueError("dimension must be 3, or 2 with voxels of shape [1, j, i]")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels along (k, j, i)."""
        k, j, i = self.voxels.shape
        return k, j, i

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance between voxel centres along (i, j, k) in mm."""
        si, sj, sk = (float(np.linalg.norm(column)) for column in self.ijk_to_lps[:3, :3].T)
        return si, sj, sk

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 in hex over type, shape, voxels, matrix and what is outside; names a cache entry or an input."""
        digest = hashlib.sha256(f"{self.voxels.dtype.str}{self.voxels.shape}".encode())
        for section in self.voxels:  # slab by slab: the voxels needn't be contiguous, and aren't copied whole
            digest.update(np.ascontiguousarray(section).data)
        digest.update(np.ascontiguousarray(self.ijk_to_lps).data)
        if self.outside is not None:
            digest.update(np.packbits(self.outside).data)
        return digest.hexdigest()

    def ijk_to_world_lps(self, points: np.ndarray) -> np.ndarray:
        """Map index points [n, 3] as (i, j, k), which may be fractions, to LPS mm [n, 3]."""
        return np.asarray(points, dtype=np.float64) @ self.ijk_to_lps[:3, :3].T + self.ijk_to_lps[:3, 3]

    def lps_to_ijk(self, points: np.ndarray) -> np.ndarray:
        """Map LPS points in mm [n, 3] to index points [n, 3] as (i, j, k), unrounded."""
        offsets = np.asarray(points, dtype=np.float64) - self.ijk_to_lps[:3, 3]
        return np.linalg.solve(self.ijk_to_lps[:3, :3], offsets.T).T


def shear_degrees(ijk_to_lps: np.ndarray) -> float:
    """Largest deviation of the angles between the axes of a grid from the right angle; no axis may have no length."""
    unit = ijk_to_lps[:3, :3] / np.linalg.norm(ijk_to_lps[:3, :3], axis=0)
    cosines = np.abs(unit.T @ unit - np.eye(3)).max()
    return float(np.degrees(np.arcsin(min(1.0, cosines))))


def _read_only(array: np.ndarray) -> np.ndarray:
    view = np.asarray(array).view()
    view.flags.writeable = False
    return view


def _check_voxels(voxels: np.ndarray) -> None:
    if voxels.ndim != 3 or voxels.size == 0:
        raise ValueError(f"voxels must be a filled 3D array, not shape {voxels.shape}")
    if voxels.dtype.kind not in "iuf":
        raise ValueError(f"voxels must be real numbers, not {voxels.dtype}")
    if voxels.dtype.kind == "f" and not all(np.isfinite(section).all() for section in voxels):
        raise ValueError("voxels must be finite; clean NaN and infinity first")


def _check_matrix(matrix: np.ndarray) -> None:
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or not np.array_equal(matrix[3], (0, 0, 0, 1)):
        raise ValueError("ijk_to_lps must be a finite 4x4 matrix with last row 0 0 0 1")
    columns = matrix[:3, :3]
    lengths = np.linalg.norm(columns, axis=0)
    if not lengths.all() or abs(np.linalg.det(columns / np.where(lengths == 0, 1, lengths))) < 1e-3:
        raise ValueError("ijk_to_lps must be invertible: an axis has no length or lies in the plane of the others")
