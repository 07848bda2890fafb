"""LiteMedSAM's networks: timm's TinyViT as image encoder, Segment Anything's prompt encoder and mask decoder.

Their packages take seconds to import, so this module is loaded only where no stored graph stands in for them. The
published state dict loads strictly after renaming.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer
from segment_anything.modeling.common import LayerNorm2d
from timm.models.tiny_vit import TinyVit
from torch import Tensor, nn

from MedZeroSegLib.mask_decoder.decoder import draw_prompts
from MedZeroSegLib.mask_decoder.lite_medsam import EMBEDDING_CHANNELS, EMBEDDING_SIZE, IMAGE_SIZE


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
