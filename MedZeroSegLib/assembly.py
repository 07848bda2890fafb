"""Probability on the key slices → one mask on the volume's grid: components, holes, sides.

Sides are the patient's and come from geometry: no text model tells left from right.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage

from MedZeroSegLib.blank_mask import blank_mask
from MedZeroSegLib.canvas import Canvas
from MedZeroSegLib.slices import SliceFrame
from MedZeroSegLib.volume import Volume

VOXELS_MIN = 8  # smaller components are noise
PART_SHARE_MIN = 0.1  # of the largest component's size; smaller ones are noise where parts are counted
SIDE_CLEAR_MIN = 0.8  # of a component's voxels on one side of the middle, for it to belong there whole
HOLE_SHARE_MAX = 0.2  # of the structure's area in a slice; larger holes are cavities, as those of skull and skin
CONNECTED = np.ones((3, 3, 3), bool)


@dataclass(frozen=True)
class KeySlices:
    """Canonical slices that were looked at, increasing; the others are interpolated between their neighbours."""

    indices: np.ndarray
    count: int

    @property
    def step(self) -> float:
        """Usual distance between two neighbouring key slices, in slices; all of them for a single one."""
        return float(np.median(np.diff(self.indices))) if len(self.indices) > 1 else float(self.count)

    def neighbours(self, index: int) -> tuple[int, int, float] | None:
        """Rows of the key slices before and after ``index`` and the weight of the second; None beyond their ends."""
        after = int(np.searchsorted(self.indices, index))
        if after < len(self.indices) and self.indices[after] == index:
            return after, after, 0.0
        if after == 0 or after == len(self.indices):
            return None
        before = after - 1
        span = self.indices[after] - self.indices[before]
        return before, after, float(index - self.indices[before]) / float(span)


def restore_mask(
    probability: np.ndarray, present: np.ndarray, keys: KeySlices, canvas: Canvas, threshold: float
) -> np.ndarray:
    """bool [n, h, w] on all canonical slices from probabilities float16 [keys, size, size].

    Slices between two key slices get the outline between theirs; beyond the first and last key slice there is nothing,
    and a key slice in which the structure isn't present holds nothing.
    """
    mask = blank_mask((keys.count, canvas.height, canvas.width))
    for row in np.flatnonzero(present):
        field = probability[row].astype(np.float32) - threshold
        _restore(field, canvas, mask[keys.indices[row]])
    for before in np.flatnonzero(present[:-1] | present[1:]):
        first, last = int(keys.indices[before]), int(keys.indices[before + 1])
        if last - first > 1:
            ends = [(probability[row] >= threshold) & present[row] for row in (before, before + 1)]
            between = Between(ends[0], ends[1])
            for index in range(first + 1, last):
                _restore(between.field((index - first) / (last - first)), canvas, mask[index])
    return mask


def _restore(field: np.ndarray, canvas: Canvas, section: np.ndarray) -> None:
    """Set an empty section bool [h, w] where a field float32 [size, size] isn't negative; nothing else is written."""
    drawn = canvas.restore(torch.from_numpy(field)[None, None])[0, 0].numpy() >= 0
    place = _bounding_box(drawn)
    if place is not None:
        section[place] = drawn[place]


class Between:
    """Shape-based interpolation (Raya and Udupa 1990) between two masks bool [s, s]: signed distances blended.

    Against an empty slice the outline shrinks by the structure's own radius over the gap, so it ends half way.
    """

    def __init__(self, first: np.ndarray, second: np.ndarray) -> None:
        self._shape, self._place = first.shape, _around(first | second)
        if self._place is None:
            return
        ends = [mask[self._place] for mask in (first, second)]
        distances = [signed_distance(mask) if mask.any() else None for mask in ends]
        radius = max(float(distance.max()) for distance in distances if distance is not None)
        self._one, self._other = (np.full(ends[0].shape, -radius, np.float32) if d is None else d for d in distances)

    def field(self, weight: float) -> np.ndarray:
        """float32 [s, s], not negative inside; ``weight`` is that of the second mask."""
        field = np.full(self._shape, -1, np.float32)
        if self._place is not None:
            field[self._place] = (1 - weight) * self._one + weight * self._other
        return field


def shape_between(first: np.ndarray, second: np.ndarray, weight: float) -> np.ndarray:
    """`Between` two masks at one weight, float32 [s, s]."""
    return Between(first, second).field(weight)


def _around(mask: np.ndarray) -> tuple[slice, ...] | None:
    """The box around the set pixels and two more on each side: whatever is computed at the outline is as in full."""
    place = _bounding_box(mask)
    return place and tuple(slice(max(0, side.start - 2), side.stop + 2) for side in place)


def signed_distance(mask: np.ndarray) -> np.ndarray:
    """Pixels from the outline of a mask that isn't empty, positive inside; float32."""
    inside, outside = ndimage.distance_transform_edt(mask), ndimage.distance_transform_edt(~mask)
    return (np.where(mask, inside - 0.5, 0.5 - outside)).astype(np.float32)


def keep_parts(mask: np.ndarray, parts: int) -> None:
    """Empty a mask but for components of at least ``VOXELS_MIN`` voxels; where ``parts`` > 0, for at most that many,
    the largest.

    In a single slice one part may show as several pieces, so only the smallest are dropped there.
    """
    place = _bounding_box(mask)
    if place is None:
        return
    labels, sizes = _components(mask[place])
    order = np.argsort(-sizes, kind="stable")
    smallest = max(VOXELS_MIN, PART_SHARE_MIN * sizes[order[0]] if parts else 0)
    if parts and len(mask) > 1:
        order = order[:parts]
    keep = np.zeros(len(sizes), bool)
    keep[[label for label in order if sizes[label] >= smallest]] = True
    for section, numbers in zip(mask[place], labels, strict=True):
        section[numbers > 0] = keep[numbers[numbers > 0]]


def _components(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the connected components, [n, h, w] with 0 where the mask is false, and each one's voxels; that of 0
    is 0. Counted slice by slice, for NumPy turns what it counts into 64 bits."""
    try:
        labels, count = ndimage.label(mask, CONNECTED, output=np.uint16)
    except RuntimeError:  # more components than 16 bits can number
        labels, count = ndimage.label(mask, CONNECTED)
    sizes = np.zeros(count + 1, np.int64)
    for section in labels:
        sizes += np.bincount(section[section > 0], minlength=count + 1)
    return labels, sizes


def _bounding_box(mask: np.ndarray) -> tuple[slice, ...] | None:
    """The smallest box around the set voxels, or pixels, None where there are none."""
    if not mask.any():
        return None
    axes = range(mask.ndim)
    hits = [np.flatnonzero(mask.any(axis=tuple(other for other in axes if other != axis))) for axis in axes]
    return tuple(slice(int(hit[0]), int(hit[-1]) + 1) for hit in hits)


def fill_holes(mask: np.ndarray) -> None:
    """Close a mask's small holes, slice by slice; [n, h, w]."""
    for index in np.flatnonzero(mask.any(axis=(1, 2))):
        _fill_section(mask[index][_bounding_box(mask[index])])


def _fill_section(section: np.ndarray) -> None:
    labels, _ = ndimage.label(ndimage.binary_fill_holes(section) & ~section)
    sizes = np.bincount(labels.ravel())
    small = sizes <= HOLE_SHARE_MAX * np.count_nonzero(section)
    small[0] = False
    section |= small[labels]


def on_grid(mask: np.ndarray, frame: SliceFrame) -> np.ndarray:
    """A mask on canonical slices → the same on the volume's grid, C-contiguous bool [k, j, i]; only the part that holds
    something is copied."""
    turned = frame.inverse(mask)
    if turned.flags.c_contiguous:
        return turned
    whole, place = blank_mask(turned.shape), _bounding_box(turned)
    if place is not None:
        whole[place] = turned[place]
    return whole


def sides_visible(frame: SliceFrame, count: int) -> bool:
    """Whether ``count`` canonical slices have a left and a right: a single sagittal slice hasn't."""
    return count > 1 or frame.plane != "sagittal"


@dataclass(frozen=True)
class Midline:
    """Where the patient's middle is: LPS x in mm for volumes, the column for pictures; and what it was taken from."""

    position: float
    certain: bool


def leftness(volume: Volume, frame: SliceFrame) -> np.ndarray:
    """How far each voxel of [n, h, w] lies towards the patient's left, broadcastable to the slices' shape.

    LPS x in mm, which grows to the left; for a picture without geometry the column, since radiological pictures show
    the patient's right at the left of the image.
    """
    if volume.dimension == 2 and frame.plane == "picture":
        return np.arange(volume.shape[2], dtype=np.float64)[None, None, :]
    along_i, along_j, along_k = volume.ijk_to_lps[0, :3]
    # An axis along which x stays the same, to a thousandth of a mm, is kept at length 1, to spare memory.
    lengths = [
        n if abs(step) * n > 1e-3 else 1 for n, step in zip(volume.shape, (along_k, along_j, along_i), strict=True)
    ]
    k, j, i = (np.arange(n, dtype=np.float64) for n in lengths)
    x = along_k * k[:, None, None] + along_j * j[None, :, None] + along_i * i[None, None, :] + volume.ijk_to_lps[0, 3]
    return frame.forward(x)


def midline_of(body: np.ndarray, position: np.ndarray, whole: np.ndarray) -> Midline:
    """The patient's middle: between the two large parts of the structure, else the middle of the body.

    Two parts on the same side of a body that is seen to its outline are two pieces of one side.

    Parameters
    ----------
    body
        bool [n, h, w].
    position
        ``leftness``.
    whole
        The structure on both sides, bool [n, h, w].
    """
    place = _bounding_box(whole) or (slice(0), slice(0), slice(0))
    labels, sizes = _components(whole[place])
    centre = _mean(position, body if body.any() else ~body)
    if len(sizes) > 2:
        first, second = np.argsort(-sizes[1:], kind="stable")[:2] + 1
        if sizes[second] >= 0.3 * sizes[first]:
            here = _part_of(position, place)
            one, other = sorted(_mean(here, labels == part) for part in (first, second))
            apart = other - one > 0.08 * np.ptp(position)
            if apart and (body.all() or one < centre < other):
                return Midline((one + other) / 2, True)
    return Midline(centre, not body.all())


def take_side(mask: np.ndarray, position: np.ndarray, midline: Midline, side: str) -> np.ndarray:
    """The part of ``mask`` on the patient's ``side``: components whole where they clearly lie there, else cut."""
    taken, box = blank_mask(mask.shape), _bounding_box(mask)
    if box is None:
        return taken
    here = _part_of(position, box) > midline.position
    labels, count = ndimage.label(mask[box], CONNECTED)
    wanted = np.broadcast_to(here if side == "left" else ~here, labels.shape)
    for label, place in enumerate(ndimage.find_objects(labels), start=1):
        part = labels[place] == label
        size, inside = np.count_nonzero(part), np.count_nonzero(part & wanted[place])
        if inside >= SIDE_CLEAR_MIN * size:
            taken[box][place] |= part
        elif size - inside < SIDE_CLEAR_MIN * size:  # asked as for the other side, so that no voxel is on both
            taken[box][place] |= part & wanted[place]
    return taken


def _part_of(position: np.ndarray, place: tuple[slice, ...]) -> np.ndarray:
    """The positions, whose axes may have length 1, of a box."""
    return position[tuple(side if n > 1 else slice(None) for side, n in zip(place, position.shape, strict=True))]


def _mean(position: np.ndarray, where: np.ndarray) -> float:
    """Mean of ``position``, whose axes may have length 1, over the voxels of ``where``."""
    same = tuple(axis for axis in range(3) if position.shape[axis] == 1)
    counts = where.sum(axis=same, keepdims=True)
    return float((position * counts).sum() / counts.sum())
