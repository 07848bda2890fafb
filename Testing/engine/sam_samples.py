"""SAM networks with random weights: the true prompt encoder and mask decoder under an encoder of one small block."""

from __future__ import annotations

import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer


def small_sam(seed: int = 0) -> Sam:
    """SAM's shapes with an encoder of two narrow blocks: 1024² pictures, 64² embeddings of 256 channels."""
    torch.manual_seed(seed)
    encoder = ImageEncoderViT(
        depth=1, embed_dim=32, num_heads=2, out_chans=256, use_rel_pos=True, window_size=8, global_attn_indexes=()
    )
    prompts = PromptEncoder(
        embed_dim=256, image_embedding_size=(64, 64), input_image_size=(1024, 1024), mask_in_chans=16
    )
    transformer = TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8)
    return Sam(encoder, prompts, MaskDecoder(transformer_dim=256, transformer=transformer)).eval()
