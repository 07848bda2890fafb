"""Patch features of a CLIP image tower that lie where they belong: training-free changes of its last attention.

Only the last block is changed; the blocks before it run as the library runs them. Sources: ClearCLIP (Lan et al., ECCV
2024), NACLIP (Hajimiri et al., WACV 2025), ProxyCLIP (Lan et al., ECCV 2024), each with its released constants.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

NEIGHBOUR_SIGMA = 5.0  # patches; standard deviation of NACLIP's Gaussian
PROXY_SHIFT, PROXY_GAIN = 1.2, 3.0  # ProxyCLIP's beta and gamma


class Attention(str, Enum):
    """How the last block lets patches look at each other."""

    VANILLA = "vanilla"  # as trained: the oracle of the tests, poor maps
    CLEARCLIP = "clearclip"  # query-query, without residual and MLP
    NACLIP = "naclip"  # key-key and nearness, without residual and MLP
    PROXY = "proxy"  # the likeness of another encoder's features, without residual and MLP


@dataclass(frozen=True)
class Block:
    """One pre-norm transformer block, whatever library built it.

    Attributes
    ----------
    run
        Tokens [n, t, c] → tokens, as the library does it.
    norm
        The norm before the attention.
    attend
        Normed tokens → the attention's output [n, t, c], as the library does it.
    weigh
        Normed tokens → queries, keys and values, each [n, heads, t, c / heads].
    out
        Values [n, t, c], already mixed → the attention's output.
    finish
        Tokens plus the attention's output → tokens after the MLP.
    """

    run: Callable[[Tensor], Tensor]
    norm: Callable[[Tensor], Tensor]
    attend: Callable[[Tensor], Tensor]
    weigh: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
    out: Callable[[Tensor], Tensor]
    finish: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ImageTower:
    """A vision transformer with a class token: what lies between its pictures and its embedding.

    Attributes
    ----------
    embed
        Pictures [n, 3, s, s] → tokens [n, 1 + grid², c] before the first block.
    norm, project
        The final norm, and the projection into the space that texts share.
    grid
        Patches a side.
    picture_size
        Side of the pictures in pixels.
    """

    embed: Callable[[Tensor], Tensor]
    blocks: tuple[Block, ...]
    norm: Callable[[Tensor], Tensor]
    project: Callable[[Tensor], Tensor]
    grid: int
    picture_size: int

    def tokens_after(self, pictures: Tensor, count: int) -> Tensor:
        """Tokens [n, 1 + grid², c] after the first ``count`` blocks."""
        tokens = self.embed(pictures)
        for block in self.blocks[:count]:
            tokens = block.run(tokens)
        return tokens

    def finish(self, tokens: Tensor) -> Tensor:
        """Final norm and projection; [..., c] → [..., e], not normalised."""
        return self.project(self.norm(tokens))


def image_tower(visual: Any) -> ImageTower:
    """The tower of an open_clip model's ``visual``: a timm trunk with its head, or open_clip's own transformer.

    Raises
    ------
    ValueError
        For a tower that is no vision transformer with one class token.
    """
    if hasattr(visual, "trunk") and hasattr(visual.trunk, "blocks") and visual.trunk.num_prefix_tokens == 1:
        return _timm_tower(visual)
    if hasattr(visual, "transformer") and hasattr(visual, "class_embedding"):
        return _native_tower(visual)
    raise ValueError(f"{type(visual).__name__} isn't a vision transformer with a class token")


def neighbour_bias(grid: int) -> Tensor:
    """NACLIP's G [1 + grid², 1 + grid²]: exp(−distance² / 2σ²) between patches, 0 for the class token."""
    place = torch.arange(grid, dtype=torch.float32)
    apart = (place[:, None] - place[None]) ** 2
    squared = (apart[:, None, :, None] + apart[None, :, None, :]).reshape(grid * grid, grid * grid)
    return F.pad(torch.exp(-squared / (2 * NEIGHBOUR_SIGMA**2)), (1, 0, 1, 0))


def proxy_weights(features: Tensor, inside: Tensor | None = None) -> Tensor:
    """ProxyCLIP's attention: softmax of (FFᵀ − 1.2 · mean FFᵀ) · 3 where that is positive.

    Parameters
    ----------
    features
        [n, c, g, g] of another encoder, here the mask decoder's image embedding.
    inside
        bool [g, g], cells that show the slice: padding is neither looked at nor part of the mean.

    Returns
    -------
    [n, g², g²]; rows sum to 1. A cell always looks at itself, also where nothing else is like it.
    """
    unit = F.normalize(features.flatten(2), dim=1)
    count = unit.shape[-1]
    shown = torch.ones(count, dtype=torch.bool, device=unit.device)
    if inside is not None:
        shown = inside.reshape(-1).to(unit.device)
    likeness = unit.transpose(1, 2) @ unit
    mean = (unit * shown).sum(-1).square().sum(1) / shown.sum() ** 2  # the mean of all products, without their table
    logits = (likeness - PROXY_SHIFT * mean[:, None, None]) * PROXY_GAIN
    hidden = (logits < 0) | ~shown
    hidden[:, torch.arange(count), torch.arange(count)] = False
    return logits.masked_fill_(hidden, -torch.inf).softmax(-1)


def last_block(
    tower: ImageTower,
    tokens: Tensor,
    attention: Attention,
    proxy: Tensor | None = None,
    inside: Tensor | None = None,
) -> Tensor:
    """Patch features before norm and projection, R [n, c, g, g], from the tokens that enter the last block.

    Parameters
    ----------
    tokens
        [n, 1 + grid², c].
    proxy, inside
        For ``Attention.PROXY`` only: see ``proxy_weights``; g is then the proxy's grid instead of the tower's.
    """
    block = tower.blocks[-1]
    if attention is Attention.VANILLA:
        return _as_map(block.run(tokens)[:, 1:], tower.grid)
    query, key, value = block.weigh(block.norm(tokens))
    if attention is Attention.PROXY:
        if proxy is None:
            raise ValueError("proxy attention needs another encoder's features")
        values = _as_map(_heads_joined(value)[:, 1:], tower.grid)
        wide = F.interpolate(values, proxy.shape[-2:], mode="bilinear", align_corners=False).flatten(2)
        mixed = torch.stack(  # picture by picture: the table of all pairs of cells is large
            [proxy_weights(proxy[n : n + 1], inside)[0] @ wide[n].T for n in range(len(wide))]
        )
        return _as_map(block.out(mixed), proxy.shape[-1])
    alike = query if attention is Attention.CLEARCLIP else key
    logits = (alike @ alike.transpose(-1, -2)) * alike.shape[-1] ** -0.5
    if attention is Attention.NACLIP:
        logits = logits + _bias_on(tower.grid, logits.device)
    mixed = _heads_joined(logits.softmax(-1) @ value)
    return _as_map(block.out(mixed)[:, 1:], tower.grid)


def projected(tower: ImageTower, features: Tensor) -> Tensor:
    """Patch features R [n, c, g, g] through final norm and projection: [n, e, g, g], not normalised."""
    return tower.finish(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@lru_cache(maxsize=4)
def _bias_on(grid: int, device: torch.device) -> Tensor:
    return neighbour_bias(grid).to(device)


def _as_map(tokens: Tensor, grid: int) -> Tensor:
    """[n, grid², c] → [n, c, grid, grid]."""
    return tokens.transpose(1, 2).unflatten(2, (grid, grid))


def _heads_joined(values: Tensor) -> Tensor:
    """[n, heads, t, d] → [n, t, heads · d]."""
    return values.transpose(1, 2).flatten(2)


def _heads_split(values: Tensor, heads: int) -> Tensor:
    """[n, t, heads · d] → [n, heads, t, d]."""
    return values.unflatten(2, (heads, -1)).transpose(1, 2)


def _timm_tower(visual: Any) -> ImageTower:
    trunk = visual.trunk

    def embed(pictures: Tensor) -> Tensor:
        return trunk.norm_pre(trunk.patch_drop(trunk._pos_embed(trunk.patch_embed(pictures))))

    def block(module: Any) -> Block:
        attention = module.attn

        def weigh(normed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            query, key, value = (_heads_split(x, attention.num_heads) for x in attention.qkv(normed).chunk(3, dim=-1))
            return attention.q_norm(query), attention.k_norm(key), value

        def finish(tokens: Tensor) -> Tensor:
            return tokens + module.drop_path2(module.ls2(module.mlp(module.norm2(tokens))))

        return Block(
            module,
            module.norm1,
            lambda normed: module.drop_path1(module.ls1(attention(normed))),
            weigh,
            lambda mixed: module.ls1(attention.proj(mixed)),
            finish,
        )

    def project(tokens: Tensor) -> Tensor:
        return visual.head(trunk.fc_norm(tokens))

    (grid, _), (size, _) = trunk.patch_embed.grid_size, trunk.patch_embed.img_size
    return ImageTower(embed, tuple(block(module) for module in trunk.blocks), trunk.norm, project, grid, size)


def _native_tower(visual: Any) -> ImageTower:
    def block(module: Any) -> Block:
        attention = module.attn

        def weigh(normed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            together = F.linear(normed, attention.in_proj_weight, attention.in_proj_bias)
            query, key, value = (_heads_split(x, attention.num_heads) for x in together.chunk(3, dim=-1))
            return query, key, value

        def finish(tokens: Tensor) -> Tensor:
            return tokens + module.ls_2(module.mlp(module.ln_2(tokens)))

        return Block(
            module,
            module.ln_1,
            lambda normed: module.ls_1(module.attention(normed)),
            weigh,
            lambda mixed: module.ls_1(attention.out_proj(mixed)),
            finish,
        )

    return ImageTower(
        visual._embeds,
        tuple(block(module) for module in visual.transformer.resblocks),
        visual.ln_post,
        lambda tokens: tokens @ visual.proj,
        visual.grid_size[0],
        visual.image_size[0],
    )
