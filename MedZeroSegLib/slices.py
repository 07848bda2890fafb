"""Volume → canonical radiological slices, and masks back, exactly: only axes are reordered, nothing is interpolated.

The frame follows the direction matrix, so the same anatomy gives the same picture however its file is stored."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np

from MedZeroSegLib.volume import Volume

ANISOTROPY_MIN = 1.5  # largest over smallest spacing from which slices follow the acquisition
SPACING_TOLERANCE = 1e-3  # relative; spacings closer than this count as equal
DIRECTION_DIGITS = 6  # of direction cosines; what differs less is a tie, which files of other axis order share

LEFT, POSTERIOR, SUPERIOR = 0, 1, 2  # axes of LPS
PLANES = {SUPERIOR: "axial", POSTERIOR: "coronal", LEFT: "sagittal"}
# How well a direction in LPS serves as "to the right" and as "down" in a picture. Together they give the radiological
# views: axial with the patient's right at image left and anterior up, coronal with superior up, sagittal with superior
# up and anterior at image left; and for oblique stacks what scanners show, such as short-axis views of the heart with
# the right ventricle at image left.
RIGHTWARD = np.array([1.0, 0.5, 0.0])
DOWNWARD = np.array([0.0, 0.5, -1.0])


@dataclass(frozen=True)
class SliceFrame:
    """How an array [k, j, i] is turned into slices [n, h, w] and back.

    ``permutation`` names the axis of [k, j, i] that becomes n, h and w; ``flips`` says which of n, h, w run backwards;
    ``spacing`` is (slice, row, column) distance in mm. Axial slices run from inferior to superior, coronal ones from
    anterior to posterior, sagittal ones from right to left.
    """

    permutation: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    plane: str  # "axial" | "coronal" | "sagittal", the nearest for oblique stacks, or "picture"
    spacing: tuple[float, float, float]

    def forward(self, array: np.ndarray) -> np.ndarray:
        """View of ``array`` [k, j, i] as slices [n, h, w]."""
        return self._flip(np.transpose(array, self.permutation))

    def inverse(self, array: np.ndarray) -> np.ndarray:
        """View of slices ``array`` [n, h, w] on the volume's grid [k, j, i]; undoes ``forward`` exactly."""
        return np.transpose(self._flip(array), np.argsort(self.permutation))

    def _flip(self, array: np.ndarray) -> np.ndarray:
        return array[tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)]


def slice_frame(volume: Volume, through: int | None = None) -> SliceFrame:
    """Choose the slicing plane and the radiological orientation of a volume.

    ``through`` is the index axis (0 i, 1 j, 2 k) that runs through the slices, where it is given.

    A singleton axis is the slicing axis; else the axis of largest spacing when spacings differ by ``ANISOTROPY_MIN``
    or more; else the axis nearest to superior-inferior. A picture is taken as it is.
    """
    spacing = volume.spacing  # along i, j, k
    if volume.dimension == 2:
        return SliceFrame((0, 1, 2), (False, False, False), "picture", (spacing[2], spacing[1], spacing[0]))
    directions = np.round(volume.ijk_to_lps[:3, :3] / np.array(spacing), DIRECTION_DIGITS).T  # unit vectors of i, j, k
    if through is None:
        through = max(_slicing_axes(volume), key=lambda axis: _nearness_to_superior(directions[axis]))
    normal = directions[through]
    patient_axis = max(PLANES, key=lambda axis: (abs(normal[axis]), axis))
    (down, up), (right, left) = _orient(directions, through)
    axes = (through, down, right)
    return SliceFrame(
        permutation=(2 - axes[0], 2 - axes[1], 2 - axes[2]),
        flips=(bool(normal[patient_axis] < 0), up, left),
        plane=PLANES[patient_axis],
        spacing=(spacing[axes[0]], spacing[axes[1]], spacing[axes[2]]),
    )


def _slicing_axes(volume: Volume) -> list[int]:
    """The index axes (0 i, 1 j, 2 k) among which the one nearest to superior-inferior runs through the slices."""
    singletons = [axis for axis in range(3) if volume.shape[2 - axis] == 1]
    if singletons:
        return singletons
    spacing = np.array(volume.spacing)
    if spacing.max() >= ANISOTROPY_MIN * spacing.min() * (1 - SPACING_TOLERANCE):
        return [axis for axis in range(3) if spacing[axis] >= spacing.max() * (1 - SPACING_TOLERANCE)]
    return [0, 1, 2]


def _nearness_to_superior(direction: np.ndarray) -> tuple[float, ...]:
    """Sorts directions, whichever way they point, by their part along S, then P, then L; ties by the direction."""
    first = np.flatnonzero(direction[::-1])[0]
    ahead = direction[::-1] * np.sign(direction[::-1][first])
    return (*np.abs(ahead), *ahead)


def _orient(directions: np.ndarray, through: int) -> tuple[tuple[int, bool], tuple[int, bool]]:
    """Index axis that runs down the picture and whether it is flipped, and the same for the one that runs right."""
    one, other = (axis for axis in range(3) if axis != through)
    choices = [
        ((down, up), (right, left))
        for (down, right), up, left in product(((one, other), (other, one)), (False, True), (False, True))
    ]

    def fit(choice: tuple[tuple[int, bool], tuple[int, bool]]) -> tuple[float, ...]:
        (down, up), (right, left) = choice
        downward = -directions[down] if up else directions[down]
        rightward = -directions[right] if left else directions[right]
        score = float(np.round(rightward @ RIGHTWARD + downward @ DOWNWARD, DIRECTION_DIGITS - 1))
        return (score, *rightward, *downward)  # directions break ties

    return max(choices, key=fit)
