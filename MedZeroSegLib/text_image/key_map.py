"""BiomedCLIP's weights in Hugging Face's layout → open_clip's layout, by names and shapes alone.

That layout is how MedCLIP-SAMv2's fine-tuned weights and the re-uploads of BiomedCLIP are stored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

FOREIGN = "vision_model.embeddings.class_embedding"  # a key that only this layout has
QKV = re.compile(r"vision_model\.encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(weight|bias)")
IGNORED = re.compile(r".*\.position_ids")  # a buffer of counting numbers
RENAMED = tuple(
    (re.compile(old), new)
    for old, new in (
        (r"vision_model\.embeddings\.class_embedding", r"visual.trunk.cls_token"),
        (r"vision_model\.embeddings\.position_embedding\.weight", r"visual.trunk.pos_embed"),
        (r"vision_model\.embeddings\.patch_embedding\.", r"visual.trunk.patch_embed.proj."),
        (r"vision_model\.encoder\.layers\.(\d+)\.self_attn\.out_proj\.", r"visual.trunk.blocks.\1.attn.proj."),
        (r"vision_model\.encoder\.layers\.(\d+)\.layer_norm([12])\.", r"visual.trunk.blocks.\1.norm\2."),
        (r"vision_model\.encoder\.layers\.(\d+)\.mlp\.fc([12])\.", r"visual.trunk.blocks.\1.mlp.fc\2."),
        (r"vision_model\.post_layernorm\.", r"visual.trunk.norm."),
        (r"visual_projection\.", r"visual.head.proj."),
        (r"text_model\.embeddings\.token_embedding\.", r"text.transformer.embeddings.word_embeddings."),
        (r"text_model\.embeddings\.position_embedding\.", r"text.transformer.embeddings.position_embeddings."),
        (r"text_model\.embeddings\.token_type_embedding\.", r"text.transformer.embeddings.token_type_embeddings."),
        (r"text_model\.embeddings\.layer_norm\.", r"text.transformer.embeddings.LayerNorm."),
        *(
            (
                rf"text_model\.encoder\.layers\.(\d+)\.self_attn\.{short}_proj\.",
                rf"text.transformer.encoder.layer.\1.attention.self.{long}.",
            )
            for short, long in (("q", "query"), ("k", "key"), ("v", "value"))
        ),
        (
            r"text_model\.encoder\.layers\.(\d+)\.self_attn\.out_proj\.",
            r"text.transformer.encoder.layer.\1.attention.output.dense.",
        ),
        (
            r"text_model\.encoder\.layers\.(\d+)\.layer_norm1\.",
            r"text.transformer.encoder.layer.\1.attention.output.LayerNorm.",
        ),
        (r"text_model\.encoder\.layers\.(\d+)\.mlp\.fc1\.", r"text.transformer.encoder.layer.\1.intermediate.dense."),
        (r"text_model\.encoder\.layers\.(\d+)\.mlp\.fc2\.", r"text.transformer.encoder.layer.\1.output.dense."),
        (r"text_model\.encoder\.layers\.(\d+)\.layer_norm2\.", r"text.transformer.encoder.layer.\1.output.LayerNorm."),
        (r"text_projection\.fc1\.", r"text.proj.0."),
        (r"text_projection\.fc2\.", r"text.proj.2."),
        (r"logit_scale", r"logit_scale"),
    )
)
LEADING_ONES = {"visual.trunk.cls_token": 3, "visual.trunk.pos_embed": 3}  # dimensions in open_clip's layout


def is_hugging_face_layout(state: Mapping[str, Tensor]) -> bool:
    """Whether tensors have Hugging Face's names."""
    return FOREIGN in state


def to_open_clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under open_clip's names; queries, keys and values of the image tower are joined.

    Raises
    ------
    ValueError
        For a name that the layout doesn't have, or a query without its key and value.
    """
    renamed: dict[str, Tensor] = {}
    separate: dict[tuple[str, str], dict[str, Tensor]] = {}
    for name, value in state.items():
        if part := QKV.fullmatch(name):
            separate.setdefault((part[1], part[3]), {})[part[2]] = value
        elif not IGNORED.fullmatch(name):
            new = _new_name(name)
            lacking = LEADING_ONES.get(new, value.ndim) - value.ndim
            renamed[new] = value.reshape((*[1] * lacking, *value.shape))
    for (layer, kind), parts in separate.items():
        if set(parts) != set("qkv"):
            raise ValueError(f"layer {layer} has {', '.join(sorted(parts))} without the others")
        joined = torch.cat([parts[part] for part in "qkv"])
        renamed[f"visual.trunk.blocks.{layer}.attn.qkv.{kind}"] = joined
    return renamed


def _new_name(name: str) -> str:
    for old, new in RENAMED:
        if old.match(name):
            return old.sub(new, name, count=1)
    raise ValueError(f"{name!r} isn't a name of this layout")
