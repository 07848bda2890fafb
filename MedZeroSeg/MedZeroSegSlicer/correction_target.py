"""The segment that is corrected, and how a change in a box goes into its voxels."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from MedZeroSegLib.extent import EMPTY_EXTENT, Extent, crop, mask_extent

from .segment_voxels import read_on_grid, segment_box, voxels_stamp

Voxels = tuple[np.ndarray, Extent, bool]  # as `segment_voxels.read_on_grid` gives them


@dataclass(frozen=True)
class Target:
    """The segment that is corrected, and the image that it is a segment of."""

    segmentation: Any
    segment_id: str
    volume: Any

    @property
    def segment(self) -> Any:
        """The vtkSegment; None when it, its node or the image has gone."""
        if self.segmentation.GetScene() is None or self.volume.GetScene() is None:
            return None
        return self.segmentation.GetSegmentation().GetSegment(self.segment_id)

    def voxels(self) -> Voxels:
        """As `segment_voxels.read_on_grid`."""
        return read_on_grid(self.segmentation, self.volume, self.segment_id)

    def center(self) -> np.ndarray:
        """The middle (i, j, k) [3] of its box; of the image's where it is empty."""
        box = segment_box(self.segmentation, self.volume, self.segment_id)
        if box == EMPTY_EXTENT:
            return (np.array(self.volume.GetImageData().GetDimensions()) - 1) / 2
        return (np.array(box[::2]) + np.array(box[1::2])) / 2

    def stamp(self) -> Hashable:
        """As `segment_voxels.voxels_stamp`."""
        return voxels_stamp(self.segmentation, self.volume, self.segment_id)


def pasted(mask: np.ndarray, extent: Extent, new: np.ndarray, box: Extent) -> tuple[np.ndarray, Extent]:
    """A mask, bool [k, j, i] in its extent, with other voxels in a box; in the smallest extent that holds it."""
    if extent == EMPTY_EXTENT:
        both = box
    else:
        first = np.minimum(extent[::2], box[::2])
        last = np.maximum(extent[1::2], box[1::2])
        i0, j0, k0, i1, j1, k1 = map(int, (*first, *last))
        both = i0, i1, j0, j1, k0, k1
    whole = np.zeros([both[n + 1] - both[n] + 1 for n in (4, 2, 0)], bool)
    if extent != EMPTY_EXTENT:
        crop(whole, _within(extent, both))[:] = mask
    crop(whole, _within(box, both))[:] = new
    tight = mask_extent(whole)
    if tight == EMPTY_EXTENT:
        return np.zeros((0, 0, 0), bool), EMPTY_EXTENT
    return crop(whole, tight), _within(tight, tuple(-both[n // 2 * 2] for n in range(6)))


def _within(extent: Extent, other: Sequence[int]) -> Extent:
    """An extent counted from the first voxel of another."""
    i0, i1, j0, j1, k0, k1 = (index - other[n // 2 * 2] for n, index in enumerate(extent))
    return i0, i1, j0, j1, k0, k1
