"""Volume → canonical radiological slices, and masks back, exactly: only axes are reordered, nothing is interpolated.

The frame follows the direction matrix, so the same anatomy gives the same picture however its file is stored."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import numpy as np

from MedZeroSegLib.volume import Volume

ANISOTROPY_MIN = 1.5  # largest over smallest spacing from which slices follow the acquisition
SPACING_TOLERANCE = 1e-3  # relative; spacings closer than this count as equal

LEFT, POSTERIOR, SUPERIOR = 0, 1, 2  # axes of LPS
PLANES = {SUPERIOR: "axial", POSTERIOR: "coronal", LEFT: "sagittal"}
# For each plane: the patient axis along (slice, row, column) and the sign in which it grows.
# Axial: patient's right at image left, anterior up. Coronal, sagittal: superior up; sagittal: anterior at image left.
LAYOUTS = {
    "axial": ((SUPERIOR, 1), (POSTERIOR, 1), (LEFT, 1)),
    "coronal": ((POSTERIOR, 1), (SUPERIOR, -1), (LEFT, 1)),
    "sagittal": ((LEFT, 1), (SUPERIOR, -1), (POSTERIOR, 1)),
}


@dataclass(frozen=True)
class SliceFrame:
    """How an array [k, j, i] is turned into slices [n, h, w] and back.

    ``permutation`` names the axis of [k, j, i] that becomes n, h and w; ``flips`` says which of n, h, w run backwards;
    ``spacing`` is (slice, row, column) distance in mm.
    """

    permutation: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    plane: str  # "axial" | "coronal" | "sagittal" | "picture"
    spacing: tuple[float, float, float]

    def forward(self, array: np.ndarray) -> np.ndarray:
        """View of ``array`` [k, j, i] as slices [n, h, w]."""
        return self._flip(np.transpose(array, self.permutation))

    def inverse(self, array: np.ndarray) -> np.ndarray:
        """View of slices ``array`` [n, h, w] on the volume's grid [k, j, i]; undoes ``forward`` exactly."""
        return np.transpose(self._flip(array), np.argsort(self.permutation))

    def _flip(self, array: np.ndarray) -> np.ndarray:
        return array[tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)]


def slice_frame(volume: Volume) -> SliceFrame:
    """Choose the slicing plane and the radiological orientation of a volume.

    A singleton axis is the slicing axis; else the axis of largest spacing when spacings differ by ``ANISOTROPY_MIN``
    or more; else the axis nearest to superior-inferior. A picture is taken as it is.
    """
    spacing = volume.spacing
    if volume.dimension == 2:
        return SliceFrame((0, 1, 2), (False, False, False), "picture", (spacing[2], spacing[1], spacing[0]))
    directions = volume.ijk_to_lps[:3, :3] / np.array(spacing)  # columns: unit vectors of i, j, k
    patient_axes = match_patient_axes(directions)
    plane = PLANES[patient_axes[_slicing_axis(volume, patient_axes)]]
    index_axes = [patient_axes.index(axis) for axis, _ in LAYOUTS[plane]]
    signs = [sign * directions[axis, index] for (axis, sign), index in zip(LAYOUTS[plane], index_axes, strict=True)]
    return SliceFrame(
        permutation=(2 - index_axes[0], 2 - index_axes[1], 2 - index_axes[2]),
        flips=(bool(signs[0] < 0), bool(signs[1] < 0), bool(signs[2] < 0)),
        plane=plane,
        spacing=(spacing[index_axes[0]], spacing[index_axes[1]], spacing[index_axes[2]]),
    )


def match_patient_axes(directions: np.ndarray) -> tuple[int, int, int]:
    """The patient axis (0 left, 1 posterior, 2 superior) that i, j and k each follow best, each used once.

    ``directions`` [3, 3] has the unit vectors of i, j, k as columns. For grids turned by just 45° several answers fit
    equally well; the choice then depends on the vectors alone, not on the order or sign in which a file stores them.
    """

    def fit(axes: tuple[int, ...]) -> tuple[float, ...]:
        by_axis = directions[:, [axes.index(axis) for axis in range(3)]]  # columns: vectors taken for L, P, S
        products = [by_axis[a] * by_axis[b] for a, b in ((0, 1), (0, 2), (1, 2))]  # free of the vectors' sign
        return tuple(np.round([np.abs(np.diag(by_axis)).sum(), *np.ravel(products)], 6))

    i, j, k = max(permutations(range(3)), key=fit)
    return i, j, k


def _slicing_axis(volume: Volume, patient_axes: tuple[int, int, int]) -> int:
    """The index axis (0 i, 1 j, 2 k) that runs through the slices."""
    spacing = np.array(volume.spacing)
    candidates = [axis for axis in range(3) if volume.shape[2 - axis] == 1]
    if not candidates and spacing.max() >= ANISOTROPY_MIN * spacing.min() * (1 - SPACING_TOLERANCE):
        candidates = [axis for axis in range(3) if spacing[axis] >= spacing.max() * (1 - SPACING_TOLERANCE)]
    return max(candidates or range(3), key=lambda axis: patient_axes[axis])  # S before P before L
