"""The smallest box that holds a mask, as VTK and Slicer write it, and a fingerprint of the mask in its place.
Masks travel as this box and its voxels, never in full."""

from __future__ import annotations

import hashlib

import numpy as np

Extent = tuple[int, int, int, int, int, int]  # first and last index along i, j, k, inclusive
PORTION = 1 << 17  # voxels looked at together, a multiple of 8: few enough to stay in the processor's cache
EMPTY_EXTENT: Extent = (0, -1, 0, -1, 0, -1)


def mask_extent(mask: np.ndarray) -> Extent:
    """First and last index along i, j, k that hold a voxel of ``mask`` [k, j, i]; ``EMPTY_EXTENT`` when none does."""
    if mask.size and all(mask.take(end, axis).any() for axis in range(3) for end in (0, -1)):
        return 0, mask.shape[2] - 1, 0, mask.shape[1] - 1, 0, mask.shape[0] - 1  # most masks are in their smallest box
    k = np.flatnonzero(mask.any(axis=(1, 2)))
    if k.size == 0:
        return EMPTY_EXTENT
    inside = mask[k[0] : k[-1] + 1]
    j, i = np.flatnonzero(inside.any(axis=(0, 2))), np.flatnonzero(inside.any(axis=(0, 1)))
    return int(i[0]), int(i[-1]), int(j[0]), int(j[-1]), int(k[0]), int(k[-1])


def crop(mask: np.ndarray, extent: Extent) -> np.ndarray:
    """View of the voxels of ``mask`` [k, j, i] in an extent."""
    return mask[extent[4] : extent[5] + 1, extent[2] : extent[3] + 1, extent[0] : extent[1] + 1]


def mask_sha256(labels: np.ndarray, extent: Extent, label: int | None = None) -> str:
    """SHA-256 in hex of a mask: of its extent on the volume's grid, and of its voxels in there.

    The extent has to be the smallest; then masks with equal voxels have equal fingerprints.

    Parameters
    ----------
    labels
        [k, j, i] of the extent.
    label
        The mask is where ``labels`` holds it; None: where ``labels`` isn't zero.
    """
    digest = hashlib.sha256(",".join(map(str, extent)).encode())
    flat = labels.reshape(-1)
    for first in range(0, flat.size, PORTION):
        portion = flat[first : first + PORTION]
        if label is not None:
            portion = portion == label
        elif portion.dtype != bool:
            portion = portion != 0
        digest.update(np.packbits(portion).tobytes())
    return digest.hexdigest()
