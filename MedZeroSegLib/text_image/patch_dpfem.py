"""Dual-Path Feature Extraction Module on CLIP's patch tokens: finer features under a dynamic gate, for all texts.

Zhang, Huang, Li, "MedZeroSeg", PLOS ONE 21(3):e0344978, 2026, equations 6-9. Where it stands in the line, its sizes,
two dilations and the gate's form are our choice; ``literal`` is the paper's own form: a gate of one half, one dilation.
The global path's attention is SHViT's (Yun and Ro, CVPR 2024).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHANNELS = 192
ATTENDED = 48  # of the channels, which the global path's attention sees; the others pass
KEYS = 16  # length of its queries and keys
GROUPS = 8  # of every group normalisation


class SingleHeadAttention(nn.Module):
    """Attention over all positions on the first ``ATTENDED`` channels; [n, CHANNELS, h, w] → the same shape."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, ATTENDED)
        self.qkv = nn.Conv2d(ATTENDED, 2 * KEYS + ATTENDED, 1)
        self.out = nn.Conv2d(CHANNELS, CHANNELS, 1)

    def forward(self, features: Tensor) -> Tensor:
        attended, passed = features.split((ATTENDED, CHANNELS - ATTENDED), 1)
        query, key, value = self.qkv(self.norm(attended)).flatten(2).split((KEYS, KEYS, ATTENDED), 1)
        weights = (query.transpose(1, 2) @ key * KEYS**-0.5).softmax(-1)
        mixed = (value @ weights.transpose(1, 2)).unflatten(2, attended.shape[-2:])
        return self.out(F.relu(torch.cat((mixed, passed), 1)))


class PatchDpfem(nn.Module):
    """Patch features and the picture they come from → unit features on a grid twice as fine; the identity when new.

    Parameters
    ----------
    width, embedding
        Channels of the tower's tokens and of the space that texts share.
    literal
        The paper's literal form: gate ½ everywhere, one dilation.
    """

    def __init__(self, width: int = 768, embedding: int = 512, literal: bool = False) -> None:
        super().__init__()
        c = CHANNELS
        self.stem = nn.Sequential(
            nn.Conv2d(3, 32, 3, 2, 1), nn.SiLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.SiLU(), nn.Conv2d(64, c, 3, 2, 1)
        )
        self.enter = nn.Conv2d(width, c, 1)
        self.enter_norm = nn.GroupNorm(GROUPS, c)
        self.near = nn.Conv2d(c, c, 3, padding=1, groups=c)
        self.far = None if literal else nn.Conv2d(c, c, 3, padding=2, dilation=2, groups=c)
        self.point = nn.Conv2d(c, c, 1)
        self.local_norm = nn.GroupNorm(GROUPS, c)
        self.attention = SingleHeadAttention()
        self.global_norm = nn.GroupNorm(GROUPS, c)
        self.gate = None if literal else nn.Conv2d(2 * c, c, 1)
        self.fuse = nn.Conv2d(2 * c, c, 1)
        self.leave = nn.Conv2d(c, embedding, 1)
        self.amount = nn.Parameter(torch.zeros(()))

    def forward(self, tokens: Tensor, pictures: Tensor, projected: Tensor) -> Tensor:
        """Refined unit features.

        Parameters
        ----------
        tokens
            R [n, width, g, g], before the tower's norm and projection.
        pictures
            [n, 3, 16g, 16g], as the tower saw them.
        projected
            P0 [n, embedding, g, g], the same tokens after norm and projection, not normalised.

        Returns
        -------
        [n, embedding, 2g, 2g], unit vectors.
        """
        return self.refine(tokens, pictures, projected)[0]

    def refine(self, tokens: Tensor, pictures: Tensor, projected: Tensor) -> tuple[Tensor, Tensor]:
        """As `forward`, and the gate [n, CHANNELS, 2g, 2g]."""
        entered = self.enter_norm(self.enter(_twice(tokens)) + self.stem(pictures))  # equation 6
        near = self.local_norm(self.local_path(entered))  # equation 7
        wide = self.global_norm(self.attention(entered))  # equation 8
        share = self.share_of(near, wide)
        fused = self.fuse(torch.cat((share * near, (1 - share) * wide), 1))  # equation 9
        return F.normalize(_twice(projected) + self.amount * self.leave(fused), dim=1), share

    def local_path(self, entered: Tensor) -> Tensor:
        """SiLU(pointwise(depthwise at dilation 1 + depthwise at dilation 2)), before its norm."""
        seen = self.near(entered)
        if self.far is not None:
            seen = seen + self.far(entered)
        return F.silu(self.point(seen))

    def share_of(self, near: Tensor, wide: Tensor) -> Tensor:
        """The gate, 0..1 for every position and channel: how much of the local path is let through."""
        if self.gate is None:
            return torch.full_like(near, 0.5)
        return torch.sigmoid(self.gate(torch.cat((near, wide), 1)))


def _twice(features: Tensor) -> Tensor:
    return F.interpolate(features, scale_factor=2.0, mode="bilinear", align_corners=False)
