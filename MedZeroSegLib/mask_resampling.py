"""A mask from another grid on the grid of a volume: nearest voxel, in world coordinates."""

from __future__ import annotations

import numpy as np

from MedZeroSegLib.volume import Volume

SAME_GRID = 1e-3  # of a voxel's size: matrices that differ less are the same grid


def on_grid_of(volume: Volume, mask: np.ndarray, ijk_to_lps: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """A mask bool [k, j, i] with its own IJK → LPS matrix on the volume's grid, bool [k, j, i].

    Returns
    -------
    The mask, itself where the grids are the same, and sentences for the user: that it was resampled, and what is lost.
    """
    size = min(volume.spacing)
    if mask.shape == volume.shape and np.allclose(ijk_to_lps, volume.ijk_to_lps, rtol=0, atol=SAME_GRID * size):
        return mask, ()
    to_mask = np.linalg.inv(ijk_to_lps) @ volume.ijk_to_lps
    placed = np.zeros(volume.shape, bool)
    j, i = np.indices(volume.shape[1:])
    for k in range(volume.shape[0]):
        places = to_mask[:3, :3] @ np.stack((i.ravel(), j.ravel(), np.full(i.size, k))) + to_mask[:3, 3:]
        places = np.floor(places + 0.5).astype(int)[::-1]
        inside = ((places >= 0) & (places < np.array(mask.shape)[:, None])).all(axis=0)
        found = np.zeros(i.size, bool)
        found[inside] = mask[tuple(places[:, inside])]
        placed[k] = found.reshape(i.shape)
    said = ["The segment lay on another grid than the image; it was resampled to the image's voxels."]
    if mask.any() and not placed.any():
        said.append("Nothing of it lies inside the image.")
    return placed, tuple(said)
