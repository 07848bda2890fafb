"""Agreement of a mask with its reference on the image's own grid: Dice, IoU, surface Dice (NSD), HD95, presence.

Both empty is a true negative and has no Dice; one of them empty is Dice 0 (other scripts count 1 there)."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from MedZeroSegLib.errors import InstallationError
from MedZeroSegLib.volume import Volume

TOLERANCE = 2.0  # mm; pixels where the spacing isn't known


@dataclass(frozen=True)
class Agreement:
    """How one mask agrees with its reference; the measures are None where both are empty.

    Attributes
    ----------
    dice, iou, nsd
        0..1.
    hd95
        95th percentile of the distance between the surfaces in mm, or pixels where the spacing isn't known; the
        diagonal of the image where one of the masks is empty.
    slice_dice
        Mean Dice over the slices that hold the reference, 0..1; None where no slice does. Other papers' figure.
    """

    present: bool
    found: bool
    dice: float | None
    iou: float | None
    nsd: float | None
    hd95: float | None = None
    slice_dice: float | None = None


def agreement(
    reference: np.ndarray, predicted: np.ndarray, spacing: tuple[float, ...], slice_axis: int = 0
) -> Agreement:
    """Compare two masks.

    Parameters
    ----------
    reference, predicted
        bool [k, j, i] on one grid.
    spacing
        Along (k, j, i) in mm, or 1 where it isn't known; see ``metric_spacing``.
    slice_axis
        Array axis across which slices lie.
    """
    if reference.shape != predicted.shape:
        raise ValueError(f"the mask is {predicted.shape}, its reference {reference.shape}")
    present, found = bool(reference.any()), bool(predicted.any())
    if not present and not found:
        return Agreement(present, found, None, None, None)
    if not (present and found):
        diagonal = float(np.linalg.norm(np.multiply(reference.shape, spacing)))
        return Agreement(present, found, 0.0, 0.0, 0.0, diagonal, 0.0 if present else None)
    dice = dice_of(reference, predicted)
    distances = _surface_distances(reference, predicted, spacing)
    return Agreement(
        present, found, dice, dice / (2 - dice), _within(distances, TOLERANCE), _percentile(distances, 95),
        slice_dice(reference, predicted, slice_axis),
    )  # fmt: skip


def dice_of(one: np.ndarray, other: np.ndarray) -> float:
    """Dice of two masks of one shape; 0 where both are empty."""
    total = int(np.count_nonzero(one)) + int(np.count_nonzero(other))
    return 2 * int(np.count_nonzero(one & other)) / total if total else 0.0


def slice_dice(reference: np.ndarray, predicted: np.ndarray, axis: int) -> float:
    """Mean Dice over the slices across ``axis`` that hold the reference, which isn't empty."""
    within = tuple(other for other in range(reference.ndim) if other != axis)
    sizes = reference.sum(axis=within)
    common, both = (reference & predicted).sum(axis=within), sizes + predicted.sum(axis=within)
    return float(np.mean(2 * common[sizes > 0] / both[sizes > 0]))


def surface_dice(
    reference: np.ndarray, predicted: np.ndarray, spacing: tuple[float, ...], tolerance: float = TOLERANCE
) -> float:
    """Share of both surfaces that lies within ``tolerance`` of the other (Nikolov et al., arXiv:1809.04430).

    Masks bool [k, j, i], neither empty. An image of one slice has outlines, not surfaces: the front and back of a
    slice would agree whatever the outlines do, so it is measured in two dimensions.
    """
    return _within(_surface_distances(reference, predicted, spacing), tolerance)


def _surface_distances(reference: np.ndarray, predicted: np.ndarray, spacing: tuple[float, ...]) -> dict[str, Any]:
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
        distances: dict[str, Any] = surface_distance.compute_surface_distances(
            reference.reshape(shape), predicted.reshape(shape), tuple(spacing[axis] for axis in kept)
        )
    return distances


def _within(distances: dict[str, Any], tolerance: float) -> float:
    import surface_distance

    return float(surface_distance.compute_surface_dice_at_tolerance(distances, tolerance))


def _percentile(distances: dict[str, Any], percent: float) -> float:
    import surface_distance

    return float(surface_distance.compute_robust_hausdorff(distances, percent))


def metric_spacing(volume: Volume) -> tuple[float, float, float]:
    """Spacing along (k, j, i) in mm, or 1 each where the spacing isn't known, so that distances are in pixels."""
    si, sj, sk = volume.spacing if volume.calibrated else (1.0, 1.0, 1.0)
    return sk, sj, si


def _extended_axes(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The axes of a volume, or the two of an image that is one slice thick along the remaining one."""
    thin = [axis for axis, size in enumerate(shape) if size == 1]
    return tuple(axis for axis in range(len(shape)) if axis != thin[0]) if thin else tuple(range(len(shape)))
