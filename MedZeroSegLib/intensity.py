"""Intensities → 8-bit pictures with one scale per volume, and the part of the volume that is body.

Nothing here scales slice by slice: that makes empty slices look full. Work goes slab by slab to spare memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from MedZeroSegLib.volume import Volume

SOFT_TISSUE_WINDOW = (40.0, 400.0)  # level, width in HU; the setting of MedSAM's training
PERCENTILES = (0.5, 99.5)
WINDOWED_SHARE_MIN = 0.7  # of pixels at the minimum: fat and air are cut off, so a window was already applied
TISSUE_PERCENTILES = (2.0, 99.0)  # of the pixels that aren't air
BODY_FRACTION_MIN = 0.02  # of a slice; below it there is nothing to segment
AIR_TISSUE_HU = -300.0  # between air or lung and fat, for CT in Hounsfield units
ROBUST_PERCENTILES = (2.0, 98.0)  # with AIR_FRACTION of their distance the brain extraction tool BET finds the head
AIR_FRACTION = 0.1  # (Smith, Human Brain Mapping 17:143, 2002); Otsu loses dark muscle: a quarter of the heart in ACDC
RAW_CT_PERCENTILE = 95.0  # a CT without negative values that exceeds RAW_CT_MIN here, where HU hold soft tissue,
RAW_CT_MIN = 600.0  # was stored without its offset of 1024
SAMPLES_MAX = 2_000_000  # voxels looked at for percentiles
SLAB_VOXELS = 4_000_000
BODY_SIZE_MAX = 128  # voxels along an axis of the reduced volume on which the body is found
COMPONENT_SIZE_MIN = 0.1  # of the largest component; smaller ones are table, clothes, noise
CROP_FACES_MIN = 4  # of six; with tissue on most of so many faces the volume is a crop inside the body


def picture(volume: Volume, window: tuple[float, float] | None = None) -> np.ndarray:
    """The volume in 8 bits, uint8 [k, j, i], on its `grey_range`; 0 outside (padding)."""
    shown, span = np.zeros(volume.shape, np.uint8), grey_range(volume, window)
    for slab in _slabs(volume.shape):
        shown[slab] = grey(volume.voxels[slab], None if volume.outside is None else volume.outside[slab], span)
    return shown


def grey_range(volume: Volume, window: tuple[float, float] | None = None) -> tuple[float, float]:
    """What becomes black and what white, one scale for all slices; both are the same in a constant volume.

    ``window`` is (level, width) in HU, used for CT in Hounsfield units; default ``SOFT_TISSUE_WINDOW``. Other volumes,
    and CT whose values aren't HU (8-bit pictures, raw detector values), are scaled by percentiles.
    """
    if volume.modality == "CT" and in_hounsfield_units(volume):
        level, width = window or SOFT_TISSUE_WINDOW
        constant = volume.voxels.min() == volume.voxels.max()
        return level - width / 2, level - width / 2 if constant else level + width / 2
    return tissue_range(volume) if volume.modality == "CT" else percentile_range(volume)


def grey(voxels: np.ndarray, outside: np.ndarray | None, span: tuple[float, float]) -> np.ndarray:
    """Voxels of any shape in 8 bits on the range ``span``; 0 where ``outside`` and everywhere on an empty range."""
    low, high = span
    if high <= low:
        return np.zeros(voxels.shape, np.uint8)
    # Differences of float32's largest numbers overflow it, and so do quotients by its smallest.
    number = np.float32 if max(abs(low), abs(high)) < 1e30 and high - low > 1e-30 else np.float64
    scaled = np.clip(voxels.astype(number), low, high)
    scaled -= number(low)
    scaled *= number(255.0 / (high - low))
    shown = np.rint(scaled, out=scaled).astype(np.uint8)
    if outside is not None:
        shown[outside] = 0
    return shown


def in_hounsfield_units(volume: Volume) -> bool:
    """Whether a CT's values can be HU: not an 8-bit picture (0..255), and not raw values without the offset of 1024."""
    if volume.voxels.min() < 0:
        return True
    if volume.voxels.max() <= 255:
        return False
    return bool(np.percentile(_samples(volume), RAW_CT_PERCENTILE) < RAW_CT_MIN)


def percentile_range(volume: Volume) -> tuple[float, float]:
    """The 0.5 and 99.5 percentiles, of a subsample, that a picture spans.

    X-ray: of all values. Other modalities: of those above 0, or above the smallest where there are negative ones
    (normalised images), so that the air around the body doesn't set the scale.
    """
    samples = _samples(volume)
    smallest, largest = float(samples.min()), float(samples.max())
    if volume.modality != "X-ray":
        above = samples[samples > min(smallest, 0.0)] if smallest < 0 else samples[samples > 0]
        samples = above if above.size else samples
    low, high = (float(value) for value in np.percentile(samples, PERCENTILES))
    if high <= low:  # few grey levels, such as one bright block on black
        low, high = smallest, largest
    return low, high


def tissue_range(volume: Volume) -> tuple[float, float]:
    """The grey levels that soft tissue spans in a CT whose values aren't HU, about what a soft-tissue window shows.

    Such pictures are stretched over whatever range their exporter chose, mostly from air to bone. Otsu's threshold
    parts air from tissue; the window runs from the darkest fat to the brightest enhanced organ.
    """
    samples = _samples(volume)
    if np.mean(samples == samples.min()) > WINDOWED_SHARE_MIN:
        return percentile_range(volume)
    otsu = sitk.OtsuThresholdImageFilter()
    otsu.Execute(sitk.GetImageFromArray(samples[None]))
    tissue = samples[samples > otsu.GetThreshold()]
    if tissue.size == 0:
        return percentile_range(volume)
    low, high = (float(value) for value in np.percentile(tissue, TISSUE_PERCENTILES))
    return (low - 0.1 * (high - low), high) if high > low else percentile_range(volume)


def body_mask(volume: Volume) -> np.ndarray:
    """Where the patient is, without the air around; bool [k, j, i].

    Threshold (HU of tissue, or BET's robust one) on a reduced volume, closing, large components, holes filled per
    slice. Pictures, X-rays and ultrasound are all body, and so are crops with tissue on most of their faces; constant
    volumes have none.
    """
    if volume.voxels.min() == volume.voxels.max():
        return np.zeros(volume.shape, bool)
    if volume.dimension == 2 or volume.modality in ("X-ray", "ultrasound"):
        return np.ones(volume.shape, bool)
    steps = tuple(-(-size // BODY_SIZE_MAX) for size in volume.shape)
    reduced = _block_means(volume, steps)
    tissue = reduced > _tissue_threshold(volume, reduced)
    if _is_crop(tissue):
        return np.ones(volume.shape, bool)
    return _enlarge(_solid(tissue), steps, volume.shape)


def _tissue_threshold(volume: Volume, reduced: np.ndarray) -> float:
    if volume.modality == "CT" and in_hounsfield_units(volume):
        return AIR_TISSUE_HU
    low, high = np.percentile(reduced, ROBUST_PERCENTILES)
    return float(low + AIR_FRACTION * (high - low))


def _is_crop(tissue: np.ndarray) -> bool:
    faces = [np.take(tissue, index, axis) for axis in range(3) for index in (0, -1)]
    return sum(face.mean() > 0.5 for face in faces) >= CROP_FACES_MIN


def _solid(tissue: np.ndarray) -> np.ndarray:
    """Closing, the large components (two legs are two), holes filled slice by slice along each axis's planes."""
    padded = np.pad(tissue, 2)
    closed = ndimage.binary_closing(padded, iterations=2)[2:-2, 2:-2, 2:-2] | tissue
    labels, count = ndimage.label(closed)
    if count == 0:
        return closed
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    solid = (sizes >= COMPONENT_SIZE_MIN * sizes.max())[labels]
    for axis in range(3):
        for section in np.moveaxis(solid, axis, 0):
            section |= ndimage.binary_fill_holes(section)
    return solid


def _block_means(volume: Volume, steps: tuple[int, ...]) -> np.ndarray:
    """Means over blocks of ``steps`` voxels, float32; the last block of an axis may be smaller."""
    reduced = []
    for start in range(0, volume.shape[0], steps[0]):
        slab = volume.voxels[start : start + steps[0]].mean(axis=0, dtype=np.float64)
        for axis, step in enumerate(steps[1:]):
            starts = np.arange(0, slab.shape[axis], step)
            counts = np.diff(np.append(starts, slab.shape[axis]))
            slab = np.add.reduceat(slab, starts, axis=axis) / np.expand_dims(counts, 1 - axis)
        reduced.append(slab.astype(np.float32))
    return np.stack(reduced)


def _enlarge(mask: np.ndarray, steps: tuple[int, ...], shape: tuple[int, int, int]) -> np.ndarray:
    rows = np.arange(shape[1]) // steps[1]
    columns = np.arange(shape[2]) // steps[2]
    enlarged = np.empty(shape, bool)
    for k in range(shape[0]):
        enlarged[k] = mask[k // steps[0]][rows[:, None], columns]
    return enlarged


def _samples(volume: Volume) -> np.ndarray:
    """At most about ``SAMPLES_MAX`` values, evenly spread, float32, without those outside."""
    step = max(1, int(np.ceil((volume.voxels.size / SAMPLES_MAX) ** (1 / 3))))
    # Thin axes are kept whole, so that a stack of few slices is still seen on each of them.
    pick = tuple(slice(None, None, step if size > 4 * step else 1) for size in volume.shape)
    values = volume.voxels[pick].astype(np.float32)
    if volume.outside is None:
        return values.ravel()
    inside = values[~volume.outside[pick]]
    return inside if inside.size else values.ravel()


def _slabs(shape: tuple[int, int, int]) -> Iterator[slice]:
    thickness = max(1, SLAB_VOXELS // (shape[1] * shape[2]))
    for start in range(0, shape[0], thickness):
        yield slice(start, start + thickness)
