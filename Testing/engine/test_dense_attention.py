"""Patch features lie where their patch lies, in both layouts, and `vanilla` is what the library itself computes."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from clip_samples import EMBEDDING, GRID, PATCH, SIZE, VISUALS, WIDTH, pictures
from torch import Tensor, nn

from MedZeroSegLib.text_image.dense_attention import (
    NEIGHBOUR_SIGMA,
    PROXY_GAIN,
    PROXY_SHIFT,
    Attention,
    ImageTower,
    image_tower,
    last_block,
    neighbour_bias,
    projected,
    proxy_weights,
)

PROXY_GRID = 10
TRAINING_FREE = [Attention.CLEARCLIP, Attention.NACLIP, Attention.PROXY]


@pytest.fixture(params=list(VISUALS))
def visual(request) -> nn.Module:
    return VISUALS[request.param]()


def proxy_of(count: int, grid: int = PROXY_GRID) -> Tensor:
    return torch.randn(count, 9, grid, grid, generator=torch.Generator().manual_seed(5))


def features_of(tower: ImageTower, shown: Tensor, attention: Attention) -> Tensor:
    tokens = tower.tokens_after(shown, len(tower.blocks) - 1)
    proxy = proxy_of(len(shown)) if attention is Attention.PROXY else None
    return projected(tower, last_block(tower, tokens, attention, proxy))


@torch.no_grad()
def test_the_towers_own_embedding_is_the_librarys(visual):
    tower, shown = image_tower(visual), pictures(3)
    assert (tower.grid, tower.picture_size) == (GRID, SIZE)
    tokens = tower.tokens_after(shown, len(tower.blocks))
    assert torch.allclose(tower.finish(tokens)[:, 0], visual(shown), atol=1e-5)


@torch.no_grad()
def test_vanilla_patches_are_the_librarys_own_tokens(visual):
    shown = pictures(2)
    ours = features_of(image_tower(visual), shown, Attention.VANILLA)
    found: dict[str, Tensor] = {}
    norm = visual.trunk.norm if hasattr(visual, "trunk") else visual.ln_post
    handle = norm.register_forward_hook(lambda _, __, out: found.update(normed=out))
    visual(shown)
    handle.remove()
    project = visual.head if hasattr(visual, "trunk") else lambda tokens: tokens @ visual.proj
    expected = project(found["normed"][:, 1:]).transpose(1, 2).unflatten(2, (GRID, GRID))
    assert ours.shape == (2, EMBEDDING, GRID, GRID)
    assert torch.allclose(ours, expected, atol=1e-5)


@torch.no_grad()
def test_queries_keys_and_values_make_the_librarys_attention(visual):
    block = image_tower(visual).blocks[-1]
    normed = block.norm(torch.randn(2, 1 + GRID**2, WIDTH))
    query, key, value = block.weigh(normed)
    mixed = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1) @ value
    assert torch.allclose(block.out(mixed.transpose(1, 2).flatten(2)), block.attend(normed), atol=1e-5)


@torch.no_grad()
def test_a_block_is_attention_then_mlp(visual):
    block = image_tower(visual).blocks[0]
    tokens = torch.randn(2, 1 + GRID**2, WIDTH)
    assert torch.allclose(block.finish(tokens + block.attend(block.norm(tokens))), block.run(tokens), atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("attention", [Attention.CLEARCLIP, Attention.NACLIP])
def test_the_equations_of_clearclip_and_naclip(visual, attention):
    """Head by head and patch by patch, as the papers write them."""
    tower = image_tower(visual)
    tokens = tower.tokens_after(pictures(1), len(tower.blocks) - 1)
    block = tower.blocks[-1]
    query, key, value = (x[0] for x in block.weigh(block.norm(tokens)))
    here = query if attention is Attention.CLEARCLIP else key
    rows = []
    for patch in (0, 7, GRID * GRID - 1):
        heads = []
        for head in range(here.shape[0]):
            logits = torch.tensor([float(here[head, 1 + patch] @ other) for other in here[head]])
            logits /= math.sqrt(here.shape[-1])
            if attention is Attention.NACLIP:
                row, column = divmod(patch, GRID)
                for other in range(GRID * GRID):
                    r, c = divmod(other, GRID)
                    logits[1 + other] += math.exp(-((r - row) ** 2 + (c - column) ** 2) / (2 * NEIGHBOUR_SIGMA**2))
            heads.append(logits.softmax(0) @ value[head])
        rows.append(torch.cat(heads))
    expected = block.out(torch.stack(rows)[None])[0]
    found = last_block(tower, tokens, attention)[0].flatten(1).T[[0, 7, GRID * GRID - 1]]
    assert torch.allclose(found, expected, atol=1e-5)


@torch.no_grad()
def test_the_equation_of_the_proxy(visual):
    tower = image_tower(visual)
    tokens = tower.tokens_after(pictures(1), len(tower.blocks) - 1)
    proxy = proxy_of(1)
    unit = F.normalize(proxy[0].flatten(1), dim=0)
    likeness = unit.T @ unit
    logits = (likeness - PROXY_SHIFT * likeness.mean()) * PROXY_GAIN
    weights = logits.masked_fill(logits < 0, -math.inf).softmax(-1)
    assert torch.allclose(proxy_weights(proxy)[0], weights, atol=1e-5)
    block = tower.blocks[-1]
    value = block.weigh(block.norm(tokens))[2].transpose(1, 2).flatten(2)[:, 1:]
    values = value.transpose(1, 2).unflatten(2, (GRID, GRID))
    wide = F.interpolate(values, (PROXY_GRID, PROXY_GRID), mode="bilinear", align_corners=False)[0].flatten(1)
    expected = block.out((weights @ wide.T)[None])[0].T.unflatten(1, (PROXY_GRID, PROXY_GRID))
    assert torch.allclose(last_block(tower, tokens, Attention.PROXY, proxy)[0], expected, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("attention", list(Attention))
def test_a_patch_answers_most_to_its_own_pixels(visual, attention):
    tower, shown = image_tower(visual), pictures(1)
    plain = features_of(tower, shown, attention)
    grid = plain.shape[-1]
    for row, column in ((0, 0), (1, 4), (5, 2)):
        changed = shown.clone()
        changed[..., row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH] += 2
        moved = (features_of(tower, changed, attention) - plain).norm(dim=1)[0]
        at = divmod(int(moved.argmax()), grid)
        assert (at[0] * GRID // grid, at[1] * GRID // grid) == (row, column)


@torch.no_grad()
@pytest.mark.parametrize("attention", list(Attention))
def test_a_picture_is_the_same_alone_and_in_a_batch(visual, attention):
    tower, shown = image_tower(visual), pictures(4)
    tokens = tower.tokens_after(shown, len(tower.blocks) - 1)
    proxy = proxy_of(4)
    together = last_block(tower, tokens, attention, proxy)
    for n in range(4):
        own = tower.tokens_after(shown[n : n + 1], len(tower.blocks) - 1)
        assert torch.allclose(last_block(tower, own, attention, proxy[n : n + 1])[0], together[n], atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("attention", TRAINING_FREE)
def test_without_residual_the_features_do_not_hear_the_mlp(visual, attention):
    tower, shown = image_tower(visual), pictures(1)
    before = features_of(tower, shown, attention)
    last = visual.trunk.blocks[-1].mlp if hasattr(visual, "trunk") else visual.transformer.resblocks[-1].mlp
    for parameter in last.parameters():
        parameter.add_(1.0)
    assert torch.equal(features_of(tower, shown, attention), before)
    assert not torch.allclose(tower.finish(tower.tokens_after(shown, 3)), 0 * before.flatten(2).mT[:, :1])


def test_nearness_falls_with_distance_and_leaves_the_class_token_alone():
    bias = neighbour_bias(GRID)
    assert bias.shape == (1 + GRID**2, 1 + GRID**2)
    assert not bias[0].any() and not bias[:, 0].any()
    assert torch.equal(bias, bias.T) and torch.equal(bias[1:, 1:].diagonal(), torch.ones(GRID**2))
    first = bias[1, 1:].reshape(GRID, GRID)
    assert first[0, 1] == pytest.approx(math.exp(-1 / 50)) == first[1, 0].item()
    assert first[3, 4] == pytest.approx(math.exp(-25 / 50))


def test_nothing_looks_at_padding_and_padding_changes_nothing():
    features = proxy_of(1)
    inside = torch.zeros(PROXY_GRID, PROXY_GRID, dtype=torch.bool)
    inside[:6] = True
    weights = proxy_weights(features, inside)[0]
    assert not weights[:60, 60:].any()
    other = features.clone()
    other[:, :, 6:] = 7.0
    assert torch.allclose(proxy_weights(other, inside)[0][:60, :60], weights[:60, :60], atol=1e-6)
    assert torch.allclose(proxy_weights(features[:, :, :6, :6], None).sum(-1), torch.ones(1, 36))


def test_cells_that_are_all_alike_look_at_themselves_and_give_no_nan():
    weights = proxy_weights(torch.ones(1, 4, 3, 3))[0]
    assert torch.equal(weights, torch.eye(9))


def test_the_proxy_needs_features():
    tower = image_tower(VISUALS["native"]())
    with pytest.raises(ValueError, match="another encoder"):
        last_block(tower, torch.zeros(1, 1 + GRID**2, WIDTH), Attention.PROXY)


def test_other_towers_are_refused():
    with pytest.raises(ValueError, match="Linear"):
        image_tower(nn.Linear(2, 2))


@torch.no_grad()
def test_biomedclips_own_tower_through_open_clip():
    """The true ViT-B/16 of timm under open_clip's adapter, with four of its twelve blocks."""
    from open_clip.timm_model import TimmModel

    torch.manual_seed(0)
    visual = TimmModel("vit_base_patch16_224", 512, pool="", proj="linear").eval()
    visual.trunk.blocks = visual.trunk.blocks[:4]
    tower, shown = image_tower(visual), pictures(2, 224)
    assert (tower.grid, tower.picture_size) == (14, 224)
    tokens = tower.tokens_after(shown, 3)
    whole = tower.finish(tower.blocks[-1].run(tokens))
    assert torch.allclose(whole[:, 0], visual(shown), atol=1e-5)
    found = projected(tower, last_block(tower, tokens, Attention.NACLIP))
    assert found.shape == (2, 512, 14, 14) and torch.isfinite(found).all()
    changed = shown[:1].clone()
    changed[..., 3 * 16 : 4 * 16, 9 * 16 : 10 * 16] += 2
    moved = projected(tower, last_block(tower, tower.tokens_after(changed, 3), Attention.NACLIP)) - found[:1]
    assert divmod(int(moved.norm(dim=1)[0].argmax()), 14) == (3, 9)
