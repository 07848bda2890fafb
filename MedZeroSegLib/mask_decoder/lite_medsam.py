"""LiteMedSAM on a device: encode a slice once, decode many prompts.

Preprocessing follows the LiteMedSAM release (Apache-2.0): longest side of the slice to 256, grey levels to [0, 1],
padding at the bottom and right.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from MedZeroSegLib.canvas import Canvas
from MedZeroSegLib.mask_decoder.cpu_graph import Graph, fastest_form
from MedZeroSegLib.mask_decoder.decoder import BOX, MASK, Embedding

if TYPE_CHECKING:
    from MedZeroSegLib.mask_decoder.lite_medsam_network import LiteMedSam

IMAGE_SIZE = 256  # pixels; the side of the encoder's square picture
EMBEDDING_SIZE = 64  # cells a side of the image embedding
EMBEDDING_CHANNELS = 256
DETAIL_SIZE = 128  # cells a side of the first stage's output
DETAIL_CHANNELS = 128


class LiteMedSamModel:
    """Encode once, decode many: the image embedding that text and decoder share, and masks from prompts.

    Parameters
    ----------
    build
        Gives the network with its weights; called when it is first needed.
    device
        A torch device; on "cpu" encoder and decoder run as OpenVINO graphs where that package is installed.
    graphs
        Folder in which the graphs of exactly this network are kept between runs; None builds them each time.
    """

    prompts: tuple[str, ...] = (BOX, MASK)

    def __init__(self, build: Callable[[], LiteMedSam], device: str = "cpu", graphs: Path | None = None) -> None:
        self.device = torch.device(device)
        self._build, self._graphs = build, graphs

    @cached_property
    def network(self) -> LiteMedSam:
        """The network on its device."""
        return self._build().eval().requires_grad_(False).to(self.device)

    @cached_property
    def _encoder(self) -> Graph:
        example = torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE)
        return self._fastest("encoder", lambda: self.network.image_encoder, (example,))

    @cached_property
    def _decoder(self) -> Graph:
        coarse = torch.zeros(1, EMBEDDING_CHANNELS, EMBEDDING_SIZE, EMBEDDING_SIZE)
        return self._fastest(
            "decoder", self._plain_decoder, (coarse, torch.zeros(1, 4), torch.zeros(1, 1, IMAGE_SIZE, IMAGE_SIZE))
        )

    def _plain_decoder(self) -> nn.Module:
        from MedZeroSegLib.mask_decoder.lite_medsam_network import PromptDecoder

        return PromptDecoder(self.network).eval()

    def _fastest(self, name: str, network: Callable[[], nn.Module], examples: tuple[Tensor, ...]) -> Graph:
        return fastest_form(network, examples, self.device, self._graphs and self._graphs / name)

    def on(self, canvas: Canvas) -> LiteMedSamModel:
        """Itself: boxes and masks are given and returned on the canvas that it embeds."""
        return self

    def embed_slices(self, slices: np.ndarray, canvas: Canvas) -> Embedding:
        """Grey slices uint8 [n, h, w] → embedding."""
        return self.embed(canvas.at(IMAGE_SIZE).place(slices))

    @torch.inference_mode()
    def embed(self, pictures: Tensor) -> Embedding:
        """Grey pictures float32 [n, 1, 256, 256] in [0, 1] → embedding, float32 on the model's device."""
        colour = pictures.to(self.device).expand(-1, 3, -1, -1)
        return Embedding(*self._encoder(colour.contiguous(memory_format=torch.channels_last)))

    @torch.inference_mode()
    def decode(self, coarse: Tensor, boxes: Tensor, masks: Tensor | None) -> tuple[Tensor, Tensor]:
        """Masks of m prompts.

        Parameters
        ----------
        coarse
            [m, 256, 64, 64], the embedding of each prompt's picture.
        boxes
            [m, 4], x0 y0 x1 y1 in canvas pixels (0..256).
        masks
            [m, 1, 256, 256] logits on the canvas, or None.

        All three may be on any device.

        Returns
        -------
        logits [m, 1, 256, 256] on the canvas and the network's own estimate of the IoU [m].
        """
        coarse, boxes = coarse.to(self.device), boxes.to(self.device)
        if masks is None:
            logits, quality = self._plain_decoder()(coarse, boxes, None)
        else:
            logits, quality = self._decoder(coarse, boxes, masks.to(self.device))
        return logits, quality[:, 0]
