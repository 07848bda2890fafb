"""Simulated corrections: a wrong mask of a known structure, and what a person would click and draw on it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

CLICK_RADIUS = 2  # pixels of the disc that a click marks
SPOTS_MIN = 12  # pixels of an error that a person would bother to correct


@dataclass(frozen=True)
class Hints:
    """What is drawn inside and outside, bool [s, s]."""

    include: np.ndarray
    exclude: np.ndarray


def spoil(truth: np.ndarray, others: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A plausible wrong mask of the structure ``truth``; ``others`` are the other marked structures, both bool [s, s].

    Nothing at all, or the outline moved, bent, grown or shrunk, a piece cut off, or one of something else added.
    """
    if rng.random() < 0.12:
        return np.zeros_like(truth)
    size = max(2.0, float(np.sqrt(truth.sum())))
    mask = _bend(truth, rng, amplitude=size * rng.uniform(0, 0.18), length=size * rng.uniform(0.15, 0.5))
    if rng.random() < 0.6:
        mask = _resize(mask, size * rng.normal(0, 0.07))
    if rng.random() < 0.45:
        mask = mask & ~_half_or_blob(truth, size, rng)
    if rng.random() < 0.45:
        added = _half_or_blob(ndimage.binary_dilation(truth, iterations=max(1, int(size * 0.2))), size, rng)
        mask = mask | (added & ~truth & (others | (rng.random() < 0.6)))
    return mask


def click(mask: np.ndarray, truth: np.ndarray, rng: np.random.Generator | None) -> tuple[int, int, bool] | None:
    """Row, column and whether it lies inside, of a click in the middle of the largest error; None where there is none.

    With ``rng`` one of the larger errors is clicked, not quite in its middle.
    """
    best: tuple[float, np.ndarray, bool] | None = None
    for error, inside in ((truth & ~mask, True), (mask & ~truth, False)):
        labels, count = ndimage.label(error)
        if not count:
            continue
        sizes = np.bincount(labels.ravel()).astype(float)
        sizes[0] = 0
        if rng is not None:
            sizes *= rng.uniform(0.3, 1, len(sizes))
        label = int(sizes.argmax())
        if sizes[label] >= (SPOTS_MIN if rng is not None else 1) and (best is None or sizes[label] > best[0]):
            best = float(sizes[label]), labels == label, inside
    if best is None:
        return None
    depth = ndimage.distance_transform_edt(np.pad(best[1], 1))[1:-1, 1:-1]
    if rng is None:
        row, column = np.unravel_index(int(depth.argmax()), depth.shape)
    else:
        places = np.argwhere(depth >= depth.max() * rng.uniform(0.5, 1))
        row, column = places[rng.integers(len(places))]
    return int(row), int(column), best[2]


def mark(hints: Hints, row: int, column: int, inside: bool) -> Hints:
    """The hints with a click; the newest counts where two contradict each other."""
    spot = disc(hints.include.shape, row, column, CLICK_RADIUS)
    mine, other = (hints.include, hints.exclude) if inside else (hints.exclude, hints.include)
    mine, other = mine | spot, other & ~spot
    return Hints(mine, other) if inside else Hints(other, mine)


def stroke(mask: np.ndarray, truth: np.ndarray, hints: Hints, rng: np.random.Generator) -> Hints:
    """The hints with a line drawn through one of the larger errors."""
    found = click(mask, truth, rng)
    if found is None:
        return hints
    row, column, inside = found
    region = ndimage.binary_erosion(truth if inside else ~truth, iterations=1)
    angle, bend = rng.uniform(0, 2 * np.pi), rng.normal(0, 0.08)
    for _ in range(int(rng.integers(6, 40))):
        if not (0 <= row < len(mask) and 0 <= column < len(mask) and region[int(row), int(column)]):
            break
        hints = mark(hints, int(row), int(column), inside)
        row, column, angle = row + 1.5 * np.sin(angle), column + 1.5 * np.cos(angle), angle + bend
    return hints


def disc(shape: tuple[int, ...], row: int, column: int, radius: int) -> np.ndarray:
    """bool of ``shape``: the pixels within ``radius`` of one."""
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return np.asarray((rows - row) ** 2 + (columns - column) ** 2 <= radius**2)


def _bend(mask: np.ndarray, rng: np.random.Generator, amplitude: float, length: float) -> np.ndarray:
    if amplitude < 0.5:
        return mask.copy()
    field = ndimage.gaussian_filter(rng.normal(size=(2, *mask.shape)).astype(np.float32), (0, length, length))
    field *= amplitude / max(1e-6, float(field.std()))
    field += rng.normal(0, amplitude / 2, (2, 1, 1)).astype(np.float32)
    places = np.indices(mask.shape, dtype=np.float32) + np.clip(field, -2.5 * amplitude, 2.5 * amplitude)
    return ndimage.map_coordinates(mask.astype(np.float32), places, order=1) > 0.5


def _resize(mask: np.ndarray, pixels: float) -> np.ndarray:
    if not mask.any() or abs(pixels) < 0.5:
        return mask
    if pixels > 0:
        return ndimage.distance_transform_edt(~mask) <= pixels
    smaller = ndimage.distance_transform_edt(mask) > -pixels
    return smaller if smaller.any() else mask


def _half_or_blob(near: np.ndarray, size: float, rng: np.random.Generator) -> np.ndarray:
    """Half of the picture or a round piece of it, at a place of ``near``."""
    places = np.argwhere(near)
    row, column = places[rng.integers(len(places))]
    rows, columns = np.indices(near.shape)
    if rng.random() < 0.5:
        angle = rng.uniform(0, 2 * np.pi)
        beyond = (rows - row) * np.sin(angle) + (columns - column) * np.cos(angle) > 0
        return np.asarray(beyond & (np.hypot(rows - row, columns - column) < 1.2 * size))
    stretch, radius = rng.uniform(0.5, 2), size * rng.uniform(0.1, 0.45)
    return np.asarray(np.hypot((rows - row) * stretch, columns - column) < radius)
