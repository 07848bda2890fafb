"""The square picture that a model sees, and the way from its cells back to the pixels of the slice.

The slice keeps its proportions in mm: its longer side fills the canvas, the rest is padded at the bottom
or at the right, as Segment Anything and LiteMedSAM do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

ANISOTROPY_IGNORED = 0.02  # relative difference of row and column spacing that is not worth a resampling


@dataclass(frozen=True)
class Canvas:
    """Where a slice of ``height`` × ``width`` pixels lies on a square of ``size`` pixels.

    Parameters
    ----------
    height, width
        The slice, in its own pixels.
    rows, columns
        The part of the square that the slice covers, from the top left corner.
    size
        Side of the square.
    """

    height: int
    width: int
    rows: int
    columns: int
    size: int

    def at(self, size: int) -> Canvas:
        """The same slice on a square of another size, to which coordinates and maps scale; rounded to whole pixels."""
        if size == self.size:
            return self
        rows, columns = (max(1, round(side * size / self.size)) for side in (self.rows, self.columns))
        return Canvas(self.height, self.width, rows, columns, size)

    def place(self, slices: np.ndarray, mode: str = "bilinear") -> Tensor:
        """Grey slices uint8 [n, h, w] → float32 [n, 1, size, size] in [0, 1], antialiased, padded with 0.

        ``mode`` is "bilinear" or "bicubic".
        """
        pixels = torch.from_numpy(np.ascontiguousarray(slices))[:, None].float() / 255.0
        scaled = F.interpolate(pixels, (self.rows, self.columns), mode=mode, antialias=True, align_corners=False)
        return F.pad(scaled.clamp_(0, 1), (0, self.size - self.columns, 0, self.size - self.rows))

    def place_on_minimum(self, slices: np.ndarray) -> Tensor:
        """As `place`, bicubic, but padded with each slice's own minimum."""
        shown = self.place(slices, "bicubic")
        inside = shown[:, :, : self.rows, : self.columns]
        padded = inside.amin((2, 3), keepdim=True).expand_as(shown).clone()
        padded[:, :, : self.rows, : self.columns] = inside
        return padded

    def place_labels(self, labels: np.ndarray) -> np.ndarray:
        """Label slices [n, h, w] → uint8 [n, size, size] by nearest neighbour, padded with 0.

        Raises ValueError for labels over 255, which would come back as others.
        """
        if labels.max(initial=0) > 255:
            raise ValueError(f"a label of {labels.max()} doesn't fit into 8 bits")
        row = np.minimum(((np.arange(self.rows) + 0.5) * self.height / self.rows).astype(int), self.height - 1)
        column = np.minimum(((np.arange(self.columns) + 0.5) * self.width / self.columns).astype(int), self.width - 1)
        placed = np.zeros((len(labels), self.size, self.size), np.uint8)
        placed[:, : self.rows, : self.columns] = labels[:, row[:, None], column[None, :]]
        return placed

    def covered(self, cells: int) -> tuple[int, int]:
        """Rows and columns of a ``cells`` × ``cells`` map that the slice covers, rounded up."""
        return -(-self.rows * cells // self.size), -(-self.columns * cells // self.size)

    def inside(self, cells: int) -> Tensor:
        """bool [cells, cells]: which cells of the square show some of the slice."""
        rows, columns = self.covered(cells)
        inside = torch.zeros(cells, cells, dtype=torch.bool)
        inside[:rows, :columns] = True
        return inside

    def restore(self, maps: Tensor) -> Tensor:
        """Maps [n, c, s, s] over the whole square → [n, c, height, width] on the slice's pixels, bilinear."""
        cells = maps.shape[-1]
        grid = self._sampling_grid(cells, maps.device, maps.dtype)
        return F.grid_sample(
            maps, grid.expand(len(maps), -1, -1, -1), mode="bilinear", padding_mode="border", align_corners=False
        )

    def _sampling_grid(self, cells: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Centres of the slice's pixels in grid_sample's coordinates (−1..1 over the square)."""
        row = (torch.arange(self.height, device=device, dtype=dtype) + 0.5) / self.height * self.rows / self.size
        column = (torch.arange(self.width, device=device, dtype=dtype) + 0.5) / self.width * self.columns / self.size
        y, x = torch.meshgrid(row * 2 - 1, column * 2 - 1, indexing="ij")
        return torch.stack((x, y), dim=-1)[None]


def fit_canvas(shape: tuple[int, int], spacing: tuple[float, float], size: int) -> Canvas:
    """Canvas of ``size`` pixels for slices of ``shape`` (rows, columns) with pixel ``spacing`` in mm (row, column)."""
    height, width = shape
    tall, wide = height * spacing[0], width * spacing[1]
    if abs(spacing[0] / spacing[1] - 1) < ANISOTROPY_IGNORED:
        tall, wide = float(height), float(width)
    scale = size / max(tall, wide)
    return Canvas(height, width, max(1, round(tall * scale)), max(1, round(wide * scale)), size)
