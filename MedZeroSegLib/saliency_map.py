"""What a text alone found, as it is handed over with a segment: its share of every cell, and where these lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from MedZeroSegLib.canvas import Canvas
    from MedZeroSegLib.slices import SliceFrame


@dataclass(frozen=True, eq=False)
class SaliencyMap:
    """One query's saliency on the volume's slices.

    Attributes
    ----------
    share
        float16 [n, s, s] in 0..1, on the canvas of the key slices.
    indices
        int [n]: which of the frame's slices these are.
    """

    frame: SliceFrame
    canvas: Canvas
    indices: np.ndarray
    share: np.ndarray
