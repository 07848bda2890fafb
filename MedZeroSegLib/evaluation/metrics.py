"""Agreement of a mask with its reference on the image's own grid: Dice, IoU, surface Dice (NSD), presence.

Both empty is a true negative and has no Dice; one of them empty is Dice 0 (other scripts count 1 there)."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

from MedZeroSegLib.errors import InstallationError
from MedZeroSegLib.volume import Volume

TOLERANCE = 2.0  # mm; pixels where the spacing isn't known


@dataclass(frozen=True)
class Agreement:
    """How one mask agrees with its reference; the measures are 0..1, None where both are empty."""

    present: bool
    found: bool
    dice: float | None
    iou: float | None
    nsd: float | None


def agreement(reference: np.ndarray, predicted: np.ndarray, spacing: tuple[float, ...]) -> Agreement:
    """Compare two masks.

    Parameters
    ----------
    reference, predicted
        bool [k, j, i] on one grid.
    spacing
        Along (k, j, i) in mm, or 1 where it isn't known; see ``metric_spacing``.
    """
    if reference.shape != predicted.shape:
        raise ValueError(f"the mask is {predicted.shape}, its reference {reference.shape}")
    size, predicted_size = int(np.count_nonzero(reference)), int(np.count_nonzero(predicted))
    present, found = size > 0, predicted_size > 0
    if not present and not found:
        return Agreement(present, found, None, None, None)
    if not (present and found):
        return Agreement(present, found, 0.0, 0.0, 0.0)
    common = int(np.count_nonzero(reference & predicted))
    iou = common / (size + predicted_size - common)
    return Agreement(present, found, dice_of(reference, predicted), iou, surface_dice(reference, predicted, spacing))


def dice_of(one: np.ndarray, other: np.ndarray) -> float:
    """Dice of two masks of one shape; 0 where both are empty."""
    total = int(np.count_nonzero(one)) + int(np.count_nonzero(other))
    return 2 * int(np.count_nonzero(one & other)) / total if total else 0.0


def surface_dice(
    reference: np.ndarray, predicted: np.ndarray, spacing: tuple[float, ...], tolerance: float = TOLERANCE
) -> float:
    """Share of both surfaces that lies within ``tolerance`` of the other (Nikolov et al., arXiv:1809.04430).

    Masks bool [k, j, i], neither empty. An image of one slice has outlines, not surfaces: the front and back of a
    slice would agree whatever the outlines do, so it is measured in two dimensions.
    """
    try:
        import surface_distance
    except ImportError as problem:
        raise InstallationError(
            "The surface distance needs the package surface-distance; install it with `pip install surface-distance`."
        ) from problem
    kept = _extended_axes(reference.shape)
    shape = tuple(reference.shape[axis] for axis in kept)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the package uses SciPy's old namespaces
        distances = surface_distance.compute_surface_distances(
            reference.reshape(shape), predicted.reshape(shape), tuple(spacing[axis] for axis in kept)
        )
        return float(surface_distance.compute_surface_dice_at_tolerance(distances, tolerance))


def metric_spacing(volume: Volume) -> tuple[float, float, float]:
    """Spacing along (k, j, i) in mm, or 1 each where the spacing isn't known, so that distances are in pixels."""
    si, sj, sk = volume.spacing if volume.calibrated else (1.0, 1.0, 1.0)
    return sk, sj, si


def _extended_axes(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The axes of a volume, or the two of an image that is one slice thick along the remaining one."""
    thin = [axis for axis, size in enumerate(shape) if size == 1]
    return tuple(axis for axis in range(len(shape)) if axis != thin[0]) if thin else tuple(range(len(shape)))
