"""Guided filter and dense CRF: the equations by brute force, and maps that end where the picture does."""

from __future__ import annotations

import numpy as np
import pytest

from MedZeroSegLib import edges
from MedZeroSegLib.edges import dense_crf, guided_filter


def disc(size: int, radius: float, centre: tuple[float, float] | None = None) -> np.ndarray:
    y, x = np.indices((size, size))
    cy, cx = centre or (size / 2, size / 2)
    return (y - cy) ** 2 + (x - cx) ** 2 < radius**2


def noisy_picture(size: int = 64) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.clip(np.where(disc(size, size / 4), 170, 60) + rng.normal(0, 3, (size, size)), 0, 255).astype(np.uint8)


def test_the_guided_filter_is_linear_in_the_guide_window_by_window():
    """At one pixel by the paper's equations 5, 6 and 8, over all windows that hold it."""
    rng = np.random.default_rng(1)
    guide, values = rng.random((50, 60)), 0.3 + 0.4 * rng.random((50, 60))
    r = edges.GUIDED_RADIUS
    lines = []
    for y in range(25 - r, 25 + r + 1):
        for x in range(30 - r, 30 + r + 1):
            window = (slice(y - r, y + r + 1), slice(x - r, x + r + 1))
            i, p = guide[window], values[window]
            a = ((i * p).mean() - i.mean() * p.mean()) / (i.var() + edges.GUIDED_EPSILON)
            lines.append((a, p.mean() - a * i.mean()))
    a, b = np.mean(lines, axis=0)
    assert guided_filter(guide, values)[25, 30] == pytest.approx(a * guide[25, 30] + b, abs=1e-9)


@pytest.mark.parametrize("refine", [lambda g, p: guided_filter(g / 255, p), dense_crf], ids=["guided", "crf"])
def test_a_blurred_map_gets_the_pictures_outline(refine):
    from scipy import ndimage

    grey, truth = noisy_picture(), disc(64, 16)
    blurred = ndimage.gaussian_filter(truth.astype(float), 6)
    drawn = refine(grey, blurred)
    assert drawn.shape == grey.shape and drawn.min() >= 0 and drawn.max() <= 1

    def wrong(values: np.ndarray) -> int:
        return int(((values > 0.5) != truth).sum())

    assert wrong(drawn) < wrong(blurred)
    edge = disc(64, 18) & ~disc(64, 14)
    assert np.abs(drawn - truth)[edge].mean() < 0.7 * np.abs(blurred - truth)[edge].mean()


def test_a_flat_picture_only_smooths_with_the_guided_filter():
    values = np.random.default_rng(0).random((40, 40))
    drawn = guided_filter(np.full((40, 40), 0.4), values)
    assert drawn.std() < 0.1 * values.std()
    assert drawn.mean() == pytest.approx(values.mean(), abs=0.02)


def brute_kernel(features: np.ndarray, values: np.ndarray) -> np.ndarray:
    """D^-½ K D^-½ applied to values [p], with K = exp(−distance² / 2) of features [f, p]."""
    squared = ((features[:, :, None] - features[:, None]) ** 2).sum(0)
    kernel = np.exp(-squared / 2)
    roots = 1 / np.sqrt(kernel.sum(1))
    return roots * (kernel @ (roots * values))


def test_both_kernels_are_what_all_pairs_of_pixels_give():
    rng = np.random.default_rng(0)
    grey = (rng.random((20, 24)) * 40 + 100).astype(np.uint8)
    values = rng.random(grey.shape)
    rows, columns = np.indices(grey.shape).reshape(2, -1).astype(float)
    near = brute_kernel(np.stack([rows, columns]) / edges.NEAR_SIGMA, values.ravel())
    assert edges.near_kernel(grey.shape)(values).ravel() == pytest.approx(near, abs=1e-3)
    channels = np.repeat(grey.ravel()[None].astype(float), 3, 0) / edges.GREY_SIGMA
    wide = brute_kernel(np.concatenate([np.stack([rows, columns]) / edges.WIDE_SIGMA, channels]), values.ravel())
    found = edges.appearance_kernel(grey)(values).ravel()
    assert np.abs(found - wide).max() < 0.05
    assert np.corrcoef(found, wide)[0, 1] > 0.98


def test_the_mean_field_step_is_the_published_one():
    rng = np.random.default_rng(0)
    grey, p = (rng.random((12, 14)) * 50).astype(np.uint8), rng.uniform(0.05, 0.95, (12, 14))

    def sigmoid(x: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-x))

    background = -np.log(1 - p + 1e-8) / (1.05 * sigmoid(1 - p))
    foreground = -np.log(p + 1e-8) / (1.05 * sigmoid(p))
    q = sigmoid(background - foreground)
    near, wide = edges.near_kernel(grey.shape), edges.appearance_kernel(grey)
    gain = 3 * (near(q) - near(1 - q)) + 5 * (wide(q) - wide(1 - q))
    assert dense_crf(grey, p) == pytest.approx(sigmoid(background - foreground + gain), abs=1e-9)


def test_extreme_shares_give_no_nan():
    grey = np.zeros((16, 16), np.uint8)
    for p in (np.zeros((16, 16)), np.ones((16, 16))):
        assert np.isfinite(dense_crf(grey, p)).all() and np.isfinite(guided_filter(grey / 255, p)).all()
