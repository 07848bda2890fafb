"""How far a segment can be trusted: an expected Dice, the doubt of each slice, and an uncertainty map of its box.

Everything is measured on what the line has made anyway, on the saliency's cells, so it costs next to nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from MedZeroSegLib.calibration import Calibration
from MedZeroSegLib.embeddings import EncodedVolume
from MedZeroSegLib.extent import Extent, mask_extent
from MedZeroSegLib.presence import clipped_logit
from MedZeroSegLib.propagation import Refined
from MedZeroSegLib.saliency import Saliency

NEAR = 6  # cells around the mask whose probability counts as its own
MARGIN_SHARE, MARGIN_MIN = 0.1, 3  # of the mask's box, and voxels, that the uncertainty map reaches beyond it
DOUBTFUL_MIN, DOUBTFUL_MOST = 0.3, 10  # doubt from which a slice is worth a look, and how many are named
FLAT = np.ones((1, 3, 3), bool)


@dataclass(frozen=True, eq=False)
class Confidence:
    """How far one segment can be trusted.

    Attributes
    ----------
    expected_dice
        Calibrated Dice against what an expert would draw, 0..1.
    slice_axis
        Axis of [k, j, i] across which slices lie.
    slice_doubt
        float32, one for each index of that axis: 0 sure .. 1 doubtful; 0 where the segment neither is nor is near.
    box
        i0, i1, j0, j1, k0, k1, inclusive: the segment and a margin.
    uncertainty
        uint8 [k, j, i] of the box: 255 where inside and outside are equally likely, 0 where there is no doubt.
    """

    expected_dice: float
    slice_axis: int
    slice_doubt: np.ndarray
    box: Extent
    uncertainty: np.ndarray

    def doubtful_slices(self) -> list[int]:
        """The slices that are most worth a look: local maxima of the doubt, the most doubtful first."""
        padded = np.pad(self.slice_doubt, 1)
        peaks = (padded[1:-1] >= DOUBTFUL_MIN) & (padded[1:-1] >= padded[:-2]) & (padded[1:-1] > padded[2:])
        order = sorted(np.flatnonzero(peaks).tolist(), key=lambda index: -self.slice_doubt[index])
        return order[:DOUBTFUL_MOST]


@dataclass(frozen=True)
class Measured:
    """What was measured of one segment.

    Attributes
    ----------
    segment
        Features of the whole, by name.
    slices
        Features of each key slice that holds the segment, by name; float [m].
    rows
        These key slices, as rows of the encoded volume; int [m].
    """

    segment: dict[str, float]
    slices: dict[str, np.ndarray]
    rows: np.ndarray


def measure(
    mask: np.ndarray, encoded: EncodedVolume, saliency: Saliency, refined: Refined, facts: dict[str, float]
) -> Measured | None:
    """Measure a segment; None where no key slice holds it.

    Parameters
    ----------
    mask
        bool [N, h, w] on all canonical slices.
    facts
        Further features of the segment, such as whether it is unusual in this modality.
    """
    cells = saliency.share.shape[-1]
    on_cells = encoded.canvas.at(cells).place_labels(mask[encoded.keys.indices].view(np.uint8)) > 0
    rows = np.flatnonzero(on_cells.any((1, 2)))
    if not len(rows):
        return None
    window = _window(on_cells[rows])
    inside = on_cells[rows][window]
    share = saliency.share[rows][window].astype(np.float32)
    fused = _on_cells(refined.probability[rows], cells)[window]
    lost = saliency.lost[rows][window]
    near = ndimage.binary_dilation(inside, FLAT, iterations=NEAR)
    rim = ndimage.binary_dilation(inside, FLAT) & ~inside
    area = inside.sum((1, 2)).astype(np.float64)
    logits = clipped_logit(share)
    agreement = np.full(len(rows), np.nan) if refined.agreement is None else refined.agreement[rows]
    drawn = np.isfinite(agreement)
    certain = np.where(inside, fused, 0).sum((1, 2))
    total = area + np.where(near, fused, 0).sum((1, 2))
    sums = {
        "belief": np.where(inside, logits, 0).sum((1, 2)),
        "agreement": np.where(drawn, agreement, 0) * area,
        "drawn": drawn * area,
    }
    beside = _overlap_with_neighbours(on_cells, rows, area)
    several = float(len(encoded.keys.indices) > 1)
    pieces = np.array([ndimage.label(section)[1] for section in inside], np.float64)
    slices = {
        "evidence": clipped_logit(saliency.evidence[rows]),
        "self_dice": clipped_logit(2 * certain / total),
        "area": np.log2(1 + area),
        "rim": rim.sum((1, 2)) / area,
        "pieces": np.log2(pieces),
        "rivals": np.where(rim, lost, False).sum((1, 2)) / np.maximum(1, rim.sum((1, 2))),
        **{name: value / area for name, value in sums.items()},
        "beside": beside * several,
        "several": np.full(len(rows), several),
    }
    whole = area.sum()
    segment = {
        "evidence": float(clipped_logit(saliency.score)),
        "self_dice": float(clipped_logit(2 * certain.sum() / total.sum())),
        "area": float(np.log2(1 + area.max())),
        "rim": float(rim.sum() / whole),
        "pieces": float(np.log2(pieces.mean())),
        "rivals": float((slices["rivals"] * area).sum() / whole),
        **{name: float(value.sum() / whole) for name, value in sums.items()},
        "beside": float((beside * area).sum() / whole) * several,
        "several": several,
        **facts,
    }
    return Measured(segment, slices, rows)


def expected_slice_dice(name: str, measured: Measured, calibration: Calibration) -> np.ndarray:
    """Expected Dice of each key slice that holds a structure ``name``, float [m]."""
    logit = calibration.dice.logit(name, measured.segment)
    return calibration.slice_dice(name, {**measured.slices, "segment": np.full(len(measured.rows), logit)})


def confidence_of(
    name: str,
    measured: Measured,
    mask: np.ndarray,
    encoded: EncodedVolume,
    saliency: Saliency,
    refined: Refined,
    calibration: Calibration,
) -> Confidence:
    """Confidence in a segment of a structure ``name``; ``mask`` is bool [N, h, w] on all canonical slices."""
    doubt = np.zeros(len(saliency.evidence), np.float32)
    for row in measured.rows:  # a neighbour that shows the structure and yet holds none of it is doubtful
        beside = slice(max(0, row - 1), row + 2)
        doubt[beside] = saliency.evidence[beside]
    doubt[measured.rows] = 1 - expected_slice_dice(name, measured, calibration)
    box, uncertainty = _uncertainty(mask, encoded, refined.probability)
    frame = encoded.frame
    along = _between_keys(doubt, encoded)
    return Confidence(
        expected_dice=float(calibration.dice(name, measured.segment)),
        slice_axis=frame.permutation[0],
        slice_doubt=along[::-1].copy() if frame.flips[0] else along,
        box=box,
        uncertainty=uncertainty,
    )


def _window(inside: np.ndarray) -> tuple[slice, ...]:
    """All slices, and the rows and columns that hold the segment or lie near; [m, s, s]."""
    place = [slice(None)]
    for others in ((0, 2), (0, 1)):
        hits = np.flatnonzero(inside.any(others))
        place.append(slice(max(0, int(hits[0]) - NEAR - 1), int(hits[-1]) + NEAR + 2))
    return tuple(place)


def _on_cells(probability: np.ndarray, cells: int) -> np.ndarray:
    """float16 [m, size, size] → float32 [m, cells, cells]: every so many pixels' mean."""
    times = probability.shape[-1] // cells
    corners = [probability[:, y::times, x::times].astype(np.float32) for y in range(times) for x in range(times)]
    return sum(corners[1:], corners[0]) / len(corners)


def _overlap_with_neighbours(on_cells: np.ndarray, rows: np.ndarray, area: np.ndarray) -> np.ndarray:
    """Mean Dice of each slice's mask with those of the key slices beside it, float [m]; outermost slices have half."""
    sizes = np.zeros(len(on_cells))
    sizes[rows] = area
    overlap = np.zeros(len(rows))
    for step in (-1, 1):
        for n, row in enumerate(rows):
            other = row + step
            if 0 <= other < len(on_cells) and sizes[other]:
                common = np.count_nonzero(on_cells[row] & on_cells[other])
                overlap[n] += common / (sizes[row] + sizes[other])
    return overlap


def _between_keys(doubt: np.ndarray, encoded: EncodedVolume) -> np.ndarray:
    """Key slices' doubts → all canonical slices, float32 [N]; linear in between, none beyond the ends."""
    keys = encoded.keys
    return np.interp(np.arange(keys.count), keys.indices, doubt, left=0.0, right=0.0).astype(np.float32)


def _uncertainty(mask: np.ndarray, encoded: EncodedVolume, probability: np.ndarray) -> tuple[Extent, np.ndarray]:
    """The box on the volume's grid and 255 · (1 − |2p − 1|) in it, p being interpolated between pixels and slices."""
    i0, i1, j0, j1, k0, k1 = mask_extent(mask)  # of canonical slices: columns, rows, slices
    sides = []
    for low, high, size in ((k0, k1, mask.shape[0]), (j0, j1, mask.shape[1]), (i0, i1, mask.shape[2])):
        margin = 0 if size == 1 else max(MARGIN_MIN, round(MARGIN_SHARE * (high - low + 1)))
        sides.append((max(0, low - margin), min(size, high + margin + 1)))
    keys, canvas = encoded.keys, encoded.canvas
    rows = _between(np.arange(*sides[1]), canvas.height, canvas.rows, probability.shape[1] / canvas.size)
    columns = _between(np.arange(*sides[2]), canvas.width, canvas.columns, probability.shape[2] / canvas.size)
    doubt = np.zeros([stop - start for start, stop in sides], np.uint8)
    shown: dict[int, np.ndarray] = {}
    for place, index in enumerate(range(*sides[0])):
        ends = keys.neighbours(index)
        if ends is None:
            continue
        before, after, weight = ends
        for row in (before, after):
            if row not in shown:
                shown[row] = _sample(probability[row], rows, columns)
        p = shown[before] if before == after else (1 - weight) * shown[before] + weight * shown[after]
        doubt[place] = np.rint(255 * (1 - np.abs(2 * p - 1)))
        for row in [row for row in shown if row < before]:
            del shown[row]
    inverse = encoded.frame.inverse(doubt)
    return _box_on_grid(sides, mask.shape, encoded), np.ascontiguousarray(inverse)


def _between(pixels: np.ndarray, count: int, covered: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """For each pixel of a slice the map's cell before it, and the weight of the next one."""
    position = np.maximum((pixels + 0.5) / count * covered * scale - 0.5, 0)
    first = position.astype(int)
    return first, (position - first).astype(np.float32)


def _sample(
    plane: np.ndarray, rows: tuple[np.ndarray, np.ndarray], columns: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    """Bilinear at rows × columns, float32."""
    last = plane.shape[0] - 1
    (top, down), (left, right) = rows, columns
    part = plane[top[0] : min(last, top[-1] + 1) + 1, left[0] : min(last, left[-1] + 1) + 1].astype(np.float32)
    y, x = top - top[0], left - left[0]
    below, beside = np.minimum(y + 1, part.shape[0] - 1), np.minimum(x + 1, part.shape[1] - 1)
    lines = part[y] * (1 - down[:, None]) + part[below] * down[:, None]
    return lines[:, x] * (1 - right) + lines[:, beside] * right


def _box_on_grid(sides: list[tuple[int, int]], shape: tuple[int, ...], encoded: EncodedVolume) -> Extent:
    """Half-open ranges of canonical slices, rows and columns → inclusive i, j, k of the volume."""
    frame = encoded.frame
    on_axis: dict[int, tuple[int, int]] = {}
    for (start, stop), size, axis, flipped in zip(sides, shape, frame.permutation, frame.flips, strict=True):
        on_axis[axis] = (size - stop, size - start - 1) if flipped else (start, stop - 1)
    (k0, k1), (j0, j1), (i0, i1) = on_axis[0], on_axis[1], on_axis[2]
    return i0, i1, j0, j1, k0, k1
