"""Dual-Path Feature Extraction Module on the decoder's image embedding: local and global path, dynamic gate, fusion.

Zhang, Huang, Li, "MedZeroSeg", PLOS ONE 21(3):e0344978, 2026, equations 6-9; sizes and the gate's form are our choice.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHANNELS = 112  # of the gated features at 64 × 64
FINE_CHANNELS = 40  # of the features at 128 × 128
WIDE_CHANNELS = 192  # of the features at 32 × 32
DEEP_CHANNELS = 64  # of the second path at 128 × 128
TOKENS = 16  # cells a side of the global path's grid
GROUPS = 8  # of every group normalisation


class LocalPath(nn.Module):
    """F_local = GN(PW(SiLU(conv₁ + conv₃))) at dilations 1 and 3 (equation 7); [n, c, h, w] → the same shape.

    The convolutions are dense on half of the channels where the paper's are depthwise on all: depthwise
    convolutions train five to ten times slower on CPUs at the same arithmetic.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.reduce = nn.Conv2d(channels, half, 1)
        self.near = nn.Conv2d(half, half, 3, padding=1)
        self.far = nn.Conv2d(half, half, 3, padding=3, dilation=3)
        self.project = nn.Conv2d(half, channels, 1)
        self.norm = nn.GroupNorm(GROUPS, channels)

    def forward(self, features: Tensor) -> Tensor:
        reduced = F.silu(self.reduce(features))
        return self.norm(self.project(F.silu(self.near(reduced) + self._seen_far(reduced))))

    def _seen_far(self, reduced: Tensor) -> Tensor:
        """In float32: in bfloat16 on CPUs the gradient of a dilated convolution's weights may be NaN (PyTorch 2.14)."""
        if reduced.dtype == torch.float32:
            return self.far(reduced)
        with torch.autocast(reduced.device.type, enabled=False):
            return self.far(reduced.float())


class GlobalPath(nn.Module):
    """F_global = GN(attention over a grid of 16 × 16 tokens) (equation 8), brought back to [n, c, h, w]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros(1, TOKENS * TOKENS, channels))
        self.before_attention = nn.LayerNorm(channels)
        self.attention = nn.MultiheadAttention(channels, 4, batch_first=True)
        self.before_mix = nn.LayerNorm(channels)
        self.mix = nn.Sequential(nn.Linear(channels, 2 * channels), nn.GELU(), nn.Linear(2 * channels, channels))
        self.norm = nn.GroupNorm(GROUPS, channels)
        nn.init.normal_(self.place, std=0.02)

    def forward(self, features: Tensor) -> Tensor:
        n, channels, height, width = features.shape
        grid = F.adaptive_avg_pool2d(features, TOKENS)
        tokens = grid.flatten(2).transpose(1, 2) + self.place
        query = self.before_attention(tokens)
        tokens = tokens + self.attention(query, query, query, need_weights=False)[0]
        tokens = tokens + self.mix(self.before_mix(tokens))
        grid = tokens.transpose(1, 2).reshape(n, channels, TOKENS, TOKENS)
        return self.norm(F.interpolate(grid, (height, width), mode="bilinear", align_corners=False))


class Dpfem(nn.Module):
    """F0 + Conv[g ⊙ F_local ; (1 − g) ⊙ F_global] with the gate g = σ(Conv[F_local ; F_global]) (equation 9)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.local_path = LocalPath(channels)
        self.global_path = GlobalPath(channels)
        self.gate = nn.Conv2d(2 * channels, channels, 1)
        self.fuse = nn.Conv2d(2 * channels, channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        near, wide = self.local_path(features), self.global_path(features)
        gate = torch.sigmoid(self.gate(torch.cat((near, wide), 1)))
        return features + self.fuse(torch.cat((gate * near, (1 - gate) * wide), 1))


class WideView(nn.Module):
    """What shows in cells twice as large, through three dual-path blocks; nothing at the start of training.

    [n, c, h, w] → [n, channels, h, w], to be added to the features.
    """

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        self.shrink = nn.Sequential(
            nn.Conv2d(inputs, WIDE_CHANNELS, 2, stride=2), nn.GroupNorm(GROUPS, WIDE_CHANNELS), nn.SiLU()
        )
        self.blocks = nn.Sequential(Dpfem(WIDE_CHANNELS), Dpfem(WIDE_CHANNELS), Dpfem(WIDE_CHANNELS))
        self.project = silent(nn.Conv2d(WIDE_CHANNELS, channels, 1))

    def forward(self, features: Tensor) -> Tensor:
        seen = self.project(self.blocks(self.shrink(features)))
        return F.interpolate(seen, features.shape[-2:], mode="bilinear", align_corners=False)


class DeepDetail(nn.Module):
    """A second path at 128 × 128, with more channels; nothing at the start of training."""

    def __init__(self, detail_channels: int, width: int) -> None:
        super().__init__()
        self.lift = nn.Conv2d(CHANNELS, DEEP_CHANNELS, 1)
        self.detail = nn.Conv2d(detail_channels, DEEP_CHANNELS, 1)
        self.norm = nn.GroupNorm(GROUPS, DEEP_CHANNELS)
        self.mix = nn.Conv2d(DEEP_CHANNELS, DEEP_CHANNELS, 3, padding=1)
        self.project = silent(nn.Conv2d(DEEP_CHANNELS, width, 1))

    def forward(self, features: Tensor, detail: Tensor) -> Tensor:
        lifted = F.interpolate(self.lift(features), detail.shape[-2:], mode="bilinear", align_corners=False)
        return self.project(F.silu(self.mix(F.silu(self.norm(lifted + self.detail(detail))))))


def silent(layer: nn.Conv2d) -> nn.Conv2d:
    """The layer without weights, so that training begins from what is there without it."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class RegionTextHead(nn.Module):
    """Image embedding and text vectors → per-pixel logits: scale · cosine + bias.

    Parameters
    ----------
    coarse_channels, detail_channels
        Channels of the encoder's embedding at 64 × 64 and of its finer stage at 128 × 128.
    text_channels
        Length of the text tower's vectors.
    width
        Length of the shared space in which pixels and texts meet.
    """

    def __init__(
        self, coarse_channels: int = 256, detail_channels: int = 128, text_channels: int = 384, width: int = 64
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(coarse_channels, CHANNELS, 1), nn.GroupNorm(GROUPS, CHANNELS), nn.SiLU())
        self.blocks = nn.Sequential(Dpfem(CHANNELS), Dpfem(CHANNELS))
        self.wide = WideView(coarse_channels, CHANNELS)
        self.joined = Dpfem(CHANNELS)
        silent(self.joined.fuse)
        self.lift = nn.Conv2d(CHANNELS, FINE_CHANNELS, 1)
        self.detail = nn.Sequential(nn.Conv2d(detail_channels, FINE_CHANNELS, 1), nn.GroupNorm(GROUPS, FINE_CHANNELS))
        self.fine = nn.Sequential(
            nn.Conv2d(FINE_CHANNELS, FINE_CHANNELS, 3, padding=1),
            nn.GroupNorm(GROUPS, FINE_CHANNELS),
            nn.SiLU(),
            nn.Conv2d(FINE_CHANNELS, width, 1),
        )
        self.deep = DeepDetail(detail_channels, width)
        self.text_to_space = nn.Sequential(nn.Linear(text_channels, 256), nn.GELU(), nn.Linear(256, width))
        self.log_scale = nn.Parameter(torch.tensor(2.5))
        self.bias = nn.Parameter(torch.tensor(-4.0))

    def encode_pixels(self, coarse: Tensor, detail: Tensor) -> Tensor:
        """[n, 256, 64, 64] and [n, 128, 128, 128] → unit vectors [n, width, 128, 128]."""
        features = self.joined(self.blocks(self.stem(coarse)) + self.wide(coarse))
        lifted = F.interpolate(self.lift(features), detail.shape[-2:], mode="bilinear", align_corners=False)
        seen = self.fine(F.silu(lifted + self.detail(detail))) + self.deep(features, detail)
        return F.normalize(seen, dim=1)

    def encode_text(self, vectors: Tensor) -> Tensor:
        """Vectors of the text tower [k, 384] → unit vectors [k, width]."""
        return F.normalize(self.text_to_space(vectors), dim=-1)

    def score(self, pixels: Tensor, texts: Tensor) -> Tensor:
        """Unit pixels [n, width, h, w] and unit texts [k, width] → logits [n, k, h, w]."""
        cosine = torch.einsum("nchw,kc->nkhw", pixels, texts)
        return self.log_scale.exp() * cosine + self.bias
