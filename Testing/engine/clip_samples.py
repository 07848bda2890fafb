"""CLIP image towers with random weights, small ones in both layouts that the accessor knows."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

GRID, PATCH, WIDTH, EMBEDDING = 6, 8, 64, 24
SIZE = GRID * PATCH


class TimmVisual(nn.Module):
    """A timm trunk under open_clip's head, with the attributes of open_clip's ``TimmModel``."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.trunk = VisionTransformer(
            img_size=SIZE, patch_size=PATCH, embed_dim=WIDTH, depth=layers, num_heads=4, num_classes=0
        )
        layer = nn.Linear(WIDTH, EMBEDDING, bias=False)
        self.head = nn.Sequential(OrderedDict(drop=nn.Dropout(0.0), proj=layer))

    def forward(self, pictures: Tensor) -> Tensor:
        return self.head(self.trunk(pictures))


def tiny_timm(layers: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return shaken(TimmVisual(layers))


def tiny_native(layers: int = 3) -> nn.Module:
    """open_clip's own vision transformer, with ln_pre, QuickGELU and a projection matrix."""
    torch.manual_seed(0)
    vision = CLIPVisionCfg(layers=layers, width=WIDTH, head_width=16, patch_size=PATCH, image_size=SIZE)
    text = CLIPTextCfg(context_length=16, vocab_size=100, width=32, heads=2, layers=1)
    return shaken(CLIP(EMBEDDING, vision, text, quick_gelu=True).visual)


def shaken(model: nn.Module) -> nn.Module:
    """The model with norms and biases that all matter, for evaluation only."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim < 2:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval().requires_grad_(False)


VISUALS: dict[str, Callable[..., nn.Module]] = {"native": tiny_native, "timm": tiny_timm}


def pictures(count: int, size: int = SIZE, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))
