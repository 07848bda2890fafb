"""Maps from slices along other axes of the same volume, brought to the cells of the main one: only positions change."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from MedZeroSegLib.embeddings import EncodedVolume
from MedZeroSegLib.volume import Volume

SPACING_RATIO_MAX = 2.5  # largest over smallest spacing; with thicker slices other axes show little
VOXELS_MIN = 16  # along every axis; thinner stacks show nothing across


def other_axes(volume: Volume, through: int) -> tuple[int, ...]:
    """Index axes (0 i, 1 j, 2 k) besides ``through`` along which slices of the volume show it well too."""
    spacing = volume.spacing
    if min(volume.shape) < VOXELS_MIN or max(spacing) >= SPACING_RATIO_MAX * min(spacing):
        return ()
    return tuple(axis for axis in range(3) if axis != through)


def on_cells_of(main: EncodedVolume, other: EncodedVolume, maps: np.ndarray) -> np.ndarray:
    """Maps [m, s, s] over the other's key slices → [n, s, s] over the main one's, linearly interpolated.

    Both slice the same grid of voxels along its own axes, so each axis has its own positions.
    """
    index = {axis: _voxels_of(main, place) for place, axis in enumerate(main.frame.permutation)}
    places = []
    for place, axis in enumerate(other.frame.permutation):
        positions = _cells_at(other, place, index[axis])
        along = main.frame.permutation.index(axis)
        places.append(np.moveaxis(positions[:, None, None], 0, along))
    count = (len(main.keys.indices), main.body.shape[-1], main.body.shape[-1])
    grid = np.stack([np.broadcast_to(positions, count) for positions in places])
    return ndimage.map_coordinates(maps.astype(np.float32), grid, order=1, mode="nearest")


def _voxels_of(encoded: EncodedVolume, place: int) -> np.ndarray:
    """Voxel positions, along the volume's own axis, of the cells' centres along slice (0), row (1) or column (2)."""
    canvas, cells = encoded.canvas, encoded.body.shape[-1]
    if place == 0:
        positions = encoded.keys.indices.astype(float)
    else:
        size, covered = ((canvas.height, canvas.rows), (canvas.width, canvas.columns))[place - 1]
        positions = (np.arange(cells) + 0.5) / cells * canvas.size / covered * size - 0.5
    return _length(encoded, place) - 1 - positions if encoded.frame.flips[place] else positions


def _cells_at(encoded: EncodedVolume, place: int, voxels: np.ndarray) -> np.ndarray:
    """The inverse of ``_voxels_of``: fractional cells, or rows among the key slices, at voxel positions."""
    canvas, cells = encoded.canvas, encoded.body.shape[-1]
    positions = _length(encoded, place) - 1 - voxels if encoded.frame.flips[place] else voxels
    if place == 0:
        return np.interp(positions, encoded.keys.indices, np.arange(len(encoded.keys.indices)))
    size, covered = ((canvas.height, canvas.rows), (canvas.width, canvas.columns))[place - 1]
    return (positions + 0.5) / size * covered / canvas.size * cells - 0.5


def _length(encoded: EncodedVolume, place: int) -> int:
    return (encoded.keys.count, encoded.canvas.height, encoded.canvas.width)[place]
