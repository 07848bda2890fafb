"""Maps are drawn to the edges of the picture: guided filter, or the dense CRF of the text-to-box pipelines.

Guided filter: He, Sun, Tang, ECCV 2010. Dense CRF: Krähenbühl and Koltun, NeurIPS 2011, with the published settings of
MedCLIP-SAM; its kernels are computed here, because the usual package needs a compiler.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import ndimage, sparse
from scipy.special import expit

GUIDED_RADIUS = 8  # pixels
GUIDED_EPSILON = 1e-3  # of the picture's variance, 0..1 squared
NEAR_SIGMA, NEAR_WEIGHT = 3.0, 3.0  # pixels; the smoothness kernel
WIDE_SIGMA, GREY_SIGMA, WIDE_WEIGHT = 60.0, 5.0, 5.0  # pixels, grey levels of each channel; the appearance kernel
TEMPERATURE, FLOOR = 1.05, 1e-8  # of the unary energies
GRID_STEP = 0.5  # of a standard deviation, between two points of the bilateral grid

Kernel = Callable[[np.ndarray], np.ndarray]


def guided_filter(guide: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Values [h, w] as a locally linear function of the guide [h, w], both in 0..1."""

    def mean(array: np.ndarray) -> np.ndarray:
        return ndimage.uniform_filter(array, 2 * GUIDED_RADIUS + 1, mode="nearest")

    guide, values = guide.astype(np.float64), values.astype(np.float64)
    mean_guide, mean_values = mean(guide), mean(values)
    variance = np.maximum(mean(guide * guide) - mean_guide**2, 0)
    slope = (mean(guide * values) - mean_guide * mean_values) / (variance + GUIDED_EPSILON)
    offset = mean_values - slope * mean_guide
    return np.clip(mean(slope) * guide + mean(offset), 0, 1)


def dense_crf(grey: np.ndarray, probability: np.ndarray, iterations: int = 1) -> np.ndarray:
    """Probability of the foreground [h, w] after mean-field steps with a smoothness and an appearance kernel.

    Parameters
    ----------
    grey
        uint8 [h, w]; its three channels are alike, as the published settings count them.
    probability
        0..1.
    """
    energies = np.stack([_unary(1 - probability), _unary(probability)])
    near, wide = near_kernel(probability.shape), appearance_kernel(grey)
    belief = _normalised(-energies)
    for _ in range(iterations):
        agreement = np.stack([NEAR_WEIGHT * near(one) + WIDE_WEIGHT * wide(one) for one in belief])
        belief = _normalised(agreement - energies)
    return belief[1]


def _unary(probability: np.ndarray) -> np.ndarray:
    probability = probability.astype(np.float64)
    return -np.log(probability + FLOOR) / (TEMPERATURE * expit(probability))


def _normalised(logits: np.ndarray) -> np.ndarray:
    exponents = np.exp(logits - logits.max(0))
    return exponents / exponents.sum(0)


def _balanced(kernel: Kernel, shape: tuple[int, ...]) -> Kernel:
    """A kernel K normalised from both sides: D^-½ K D^-½ with D the row sums of K, for values of ``shape``."""
    roots = 1 / np.sqrt(np.maximum(kernel(np.ones(shape)), FLOOR))
    return lambda values: roots * kernel(roots * values)


def near_kernel(shape: tuple[int, ...]) -> Kernel:
    """The smoothness kernel, for values of ``shape``."""
    return _balanced(lambda values: ndimage.gaussian_filter(values, NEAR_SIGMA, mode="constant"), shape)


def appearance_kernel(grey: np.ndarray) -> Kernel:
    """The appearance kernel of a picture on a bilateral grid, row, column and grey level (Chen, Paris, Durand 2007)."""
    rows, columns = np.indices(grey.shape)
    levels = grey.astype(np.float64) * np.sqrt(3) / GREY_SIGMA  # three equal channels
    places = np.stack([rows.ravel() / WIDE_SIGMA, columns.ravel() / WIDE_SIGMA, levels.ravel()]) / GRID_STEP
    grid = tuple(int(axis.max()) + 2 for axis in places)
    weights = _interpolation(places, grid)

    def kernel(values: np.ndarray) -> np.ndarray:
        splatted = (weights.T @ values.ravel()).reshape(grid)
        blurred = ndimage.gaussian_filter(splatted, 1 / GRID_STEP, mode="constant")
        return (weights @ blurred.ravel()).reshape(values.shape)

    return _balanced(kernel, grey.shape)


def _interpolation(places: np.ndarray, shape: tuple[int, ...]) -> sparse.csr_matrix:
    """Trilinear weights [pixels, grid points] of places [3, pixels] in grid units."""
    floor = places.astype(int)
    share = places - floor
    count = places.shape[1]
    points, weights = [], []
    for corner in np.ndindex(2, 2, 2):
        chosen = np.array(corner)[:, None]
        points.append(np.ravel_multi_index(tuple(floor + chosen), shape))
        weights.append(np.where(chosen, share, 1 - share).prod(0))
    pixels = np.tile(np.arange(count), 8)
    entries = (np.concatenate(weights), (pixels, np.concatenate(points)))
    return sparse.csr_matrix(entries, shape=(count, int(np.prod(shape))))
