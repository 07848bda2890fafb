"""LiteMedSAM: timm's TinyViT as image encoder, Segment Anything's prompt encoder and mask decoder.

Architecture and preprocessing follow the LiteMedSAM release (Apache-2.0): longest side of the slice to 256,
grey levels to [0, 1], padding at the bottom and right. The published state dict loads strictly after renaming.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer
from segment_anything.modeling.common import LayerNorm2d
from timm.models.tiny_vit import TinyVit
from torch import Tensor, nn

from MedZeroSegLib.canvas import Canvas
from MedZeroSegLib.mask_decoder.cpu_graph import Graph, fastest_form
from MedZeroSegLib.mask_decoder.decoder import BOX, MASK, Embedding, draw_prompts

IMAGE_SIZE = 256  # pixels; the side of the encoder's square picture
EMBEDDING_SIZE = 64  # cells a side of the image embedding
EMBEDDING_CHANNELS = 256
DETAIL_SIZE = 128  # cells a side of the first stage's output
DETAIL_CHANNELS = 128


class LiteMedSamEncoder(nn.Module):
    """Picture [n, 3, 256, 256] in [0, 1] → embedding [n, 256, 64, 64] and first-stage detail [n, 128, 128, 128].

    timm's TinyViT with two changes: the patch embedding is two 1×1 convolutions of stride 1, and the last
    stage's downsampling keeps its grid; Segment Anything's neck follows.
    """

    def __init__(self) -> None:
        super().__init__()
        trunk: Any = TinyVit(
            num_classes=0,
            embed_dims=(64, 128, 160, 320),
            depths=(2, 2, 6, 2),
            num_heads=(2, 4, 5, 10),
            window_sizes=(7, 7, 14, 7),
        )
        for name, width_in, width_out in (("conv1", 3, 32), ("conv2", 32, 64)):
            getattr(trunk.patch_embed, name).conv = nn.Conv2d(width_in, width_out, 1, bias=False)
        trunk.stages[3].downsample.conv2.conv.stride = (1, 1)
        trunk.head = nn.Identity()  # the classifier and its norm are not part of the release
        self.trunk: nn.Module = trunk
        self.neck = nn.Sequential(
            nn.Conv2d(320, EMBEDDING_CHANNELS, 1, bias=False),
            LayerNorm2d(EMBEDDING_CHANNELS),
            nn.Conv2d(EMBEDDING_CHANNELS, EMBEDDING_CHANNELS, 3, padding=1, bias=False),
            LayerNorm2d(EMBEDDING_CHANNELS),
        )

    def forward(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        trunk: Any = self.trunk
        detail = trunk.stages[1](trunk.stages[0](trunk.patch_embed(picture)))
        embedding = self.neck(trunk.stages[3](trunk.stages[2](detail)))
        return embedding, detail


class LiteMedSam(nn.Module):
    """The whole network; ``image_encoder``, ``prompt_encoder`` and ``mask_decoder`` as in the release."""

    def __init__(self) -> None:
        super().__init__()
        self.image_encoder = LiteMedSamEncoder()
        self.prompt_encoder = PromptEncoder(
            embed_dim=EMBEDDING_CHANNELS,
            image_embedding_size=(EMBEDDING_SIZE, EMBEDDING_SIZE),
            input_image_size=(IMAGE_SIZE, IMAGE_SIZE),
            mask_in_chans=16,
        )
        self.mask_decoder = MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(depth=2, embedding_dim=EMBEDDING_CHANNELS, mlp_dim=2048, num_heads=8),
            transformer_dim=EMBEDDING_CHANNELS,
            iou_head_depth=3,
            iou_head_hidden_dim=256,
        )


def rename_published_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keys of ``lite_medsam.pth`` → keys of :class:`LiteMedSam`.

    ``layers.N`` is timm's ``stages.N``, a stage's downsampling belongs to the next stage there,
    and convolutions with batch norm are called ``conv`` instead of ``c``.
    """
    renamed = {}
    for key, value in state.items():
        new = key.replace(".c.", ".conv.").replace("patch_embed.seq.0", "patch_embed.conv1")
        new = new.replace("patch_embed.seq.2", "patch_embed.conv2")
        new = re.sub(r"layers\.(\d)\.downsample", lambda m: f"stages.{int(m[1]) + 1}.downsample", new)
        new = new.replace("image_encoder.layers.", "image_encoder.stages.")
        if new.startswith("image_encoder.") and not new.startswith("image_encoder.neck."):
            new = new.replace("image_encoder.", "image_encoder.trunk.", 1)
        renamed[new] = value
    return renamed


class PromptDecoder(nn.Module):
    """Boxes x0 y0 x1 y1 [m, 4] and mask logits [m, 1, 256, 256] (or None) on the embeddings of their pictures
    [m, 256, 64, 64] → logits [m, 1, 256, 256] and estimated IoU [m, 1]."""

    def __init__(self, network: LiteMedSam) -> None:
        super().__init__()
        self.prompt_encoder, self.mask_decoder = network.prompt_encoder, network.mask_decoder

    def forward(self, coarse: Tensor, boxes: Tensor, masks: Tensor | None) -> tuple[Tensor, Tensor]:
        return draw_prompts(self.prompt_encoder, self.mask_decoder, coarse, boxes, masks, None, several=False)


class LiteMedSamModel:
    """Encode once, decode many: the image embedding that text and decoder share, and masks from prompts.

    Parameters
    ----------
    network
        With its weights loaded.
    device
        A torch device; on "cpu" encoder and decoder run as OpenVINO graphs where that package is installed.
    graph_cache
        Folder in which the converted graphs are kept between runs; None converts them in memory each time.
    """

    prompts: tuple[str, ...] = (BOX, MASK)

    def __init__(self, network: LiteMedSam, device: str = "cpu", graph_cache: Path | None = None) -> None:
        self.device = torch.device(device)
        self.network = network.eval().requires_grad_(False).to(self.device)
        self._encoder: Graph | None = None
        self._decoder: Graph | None = None
        self._graph_cache = graph_cache

    def on(self, canvas: Canvas) -> LiteMedSamModel:
        """Itself: boxes and masks are given and returned on the canvas that it embeds."""
        return self

    def embed_slices(self, slices: np.ndarray, canvas: Canvas) -> Embedding:
        """Grey slices uint8 [n, h, w] → embedding."""
        return self.embed(canvas.at(IMAGE_SIZE).place(slices))

    @torch.inference_mode()
    def embed(self, pictures: Tensor) -> Embedding:
        """Grey pictures float32 [n, 1, 256, 256] in [0, 1] → embedding, float32 on the model's device."""
        if self._encoder is None:
            example = (torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE),)
            self._encoder = fastest_form(self.network.image_encoder, example, self.device, self._graph_cache)
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
        decoder = PromptDecoder(self.network).eval()
        if masks is None:
            logits, quality = decoder(coarse, boxes, None)
            return logits, quality[:, 0]
        masks = masks.to(self.device)
        if self._decoder is None:
            self._decoder = fastest_form(decoder, (coarse[:1], boxes[:1], masks[:1]), self.device, self._graph_cache)
        logits, quality = self._decoder(coarse, boxes, masks)
        return logits, quality[:, 0]
