"""No decoder: for models whose own maps are as fine as the canvas, so that nothing is left to draw."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from MedZeroSegLib.canvas import Canvas
from MedZeroSegLib.mask_decoder.decoder import Embedding


class NoDecoder:
    """Embeds nothing and takes no prompts."""

    prompts: tuple[str, ...] = ()

    def __init__(self, device: str = "cpu") -> None:
        self.device = torch.device(device)

    def on(self, canvas: Canvas) -> NoDecoder:
        """The same on every canvas."""
        return self

    def embed_slices(self, slices: np.ndarray, canvas: Canvas) -> Embedding:
        """Empty embeddings of n slices."""
        nothing = torch.zeros(len(slices), 1, 1, 1)
        return Embedding(nothing, nothing)

    def decode(self, coarse: Tensor, boxes: Tensor, masks: Tensor | None) -> tuple[Tensor, Tensor]:
        """Nobody may ask: the preset leaves no part to the decoder."""
        raise NotImplementedError
