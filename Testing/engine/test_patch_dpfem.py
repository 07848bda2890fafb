"""The dual-path module on patch tokens: the identity when new, two paths under one gate."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from MedZeroSegLib.text_image.patch_dpfem import CHANNELS, PatchDpfem, SingleHeadAttention

WIDTH, EMBEDDING, GRID = 20, 12, 6


def module(**settings) -> PatchDpfem:
    torch.manual_seed(0)
    return PatchDpfem(WIDTH, EMBEDDING, **settings)


def inputs(count: int = 2, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(count, WIDTH, GRID, GRID, generator=generator),
        torch.randn(count, 3, 16 * GRID, 16 * GRID, generator=generator),
        torch.randn(count, EMBEDDING, GRID, GRID, generator=generator),
    )


def features(seed: int = 2, side: int = 2 * GRID) -> Tensor:
    return torch.randn(1, CHANNELS, side, side, generator=torch.Generator().manual_seed(seed))


def test_it_has_the_parameters_of_the_specification():
    whole = PatchDpfem()
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in whole.named_children()}
    assert counts["enter"] == 147_648 and counts["stem"] == 130_176
    assert counts["near"] == counts["far"] == 1_920 and counts["point"] == 37_056
    assert counts["attention"] == 96 + 3_920 + 37_056
    assert counts["enter_norm"] + counts["local_norm"] + counts["global_norm"] == 1_152
    assert counts["gate"] == counts["fuse"] == 73_920 and counts["leave"] == 98_816
    assert sum(parameter.numel() for parameter in whole.parameters()) == 607_601


@torch.no_grad()
@pytest.mark.parametrize("literal", [False, True])
def test_a_new_module_changes_nothing_to_the_last_bit(literal):
    tokens, pictures, projected = inputs()
    plain = F.normalize(F.interpolate(projected, scale_factor=2.0, mode="bilinear", align_corners=False), dim=1)
    assert torch.equal(module(literal=literal)(tokens, pictures, projected), plain)


@torch.no_grad()
def test_biomedclips_shapes_go_through():
    found = PatchDpfem()(torch.randn(1, 768, 14, 14), torch.randn(1, 3, 224, 224), torch.randn(1, 512, 14, 14))
    assert found.shape == (1, 512, 28, 28)
    assert torch.allclose(found.norm(dim=1), torch.ones(()), atol=1e-5)


@torch.no_grad()
def test_the_gate_lies_between_0_and_1_and_differs_from_place_to_place():
    share = module().share_of(3 * features(2), 3 * features(3))
    assert share.min() > 0 and share.max() < 1
    assert share.std() > 1e-2


@torch.no_grad()
def test_the_papers_literal_form_halves_both_paths():
    literal = module(literal=True)
    assert literal.far is None and literal.gate is None
    assert torch.equal(literal.share_of(features(2), features(3)), torch.full((1, CHANNELS, 12, 12), 0.5))


@torch.no_grad()
def test_the_local_path_before_its_norm_follows_a_shift():
    path, picture = module().local_path, features(side=20)
    shifted = path(torch.roll(picture, (3, -2), (2, 3)))
    expected = torch.roll(path(picture), (3, -2), (2, 3))
    inner = slice(6, -6)  # away from the borders and from where the picture was wrapped
    assert torch.allclose(shifted[..., inner, inner], expected[..., inner, inner], atol=1e-5)
    assert not torch.allclose(shifted[..., :3, :], expected[..., :3, :], atol=1e-3)


@torch.no_grad()
def test_the_attention_does_not_know_where_a_position_is():
    torch.manual_seed(0)
    attention, picture = SingleHeadAttention(), features()
    order = torch.randperm(144)

    def reordered(maps: Tensor) -> Tensor:
        return maps.flatten(2)[..., order].unflatten(2, (12, 12))

    assert torch.allclose(attention(reordered(picture)), reordered(attention(picture)), atol=1e-5)


@torch.no_grad()
def test_the_attention_is_the_softmax_over_all_positions():
    torch.manual_seed(0)
    attention, picture = SingleHeadAttention(), features()
    q, k, v = attention.qkv(attention.norm(picture[:, :48]))[0].flatten(1).split((16, 16, 48))
    mixed = torch.stack([v @ (k.T @ q[:, n] / 4).softmax(0) for n in range(144)], 1).unflatten(1, (12, 12))
    expected = attention.out(torch.relu(torch.cat((mixed, picture[0, 48:]))[None]))
    assert torch.allclose(attention(picture), expected, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    ("bias", "unheard", "heard"),
    [(60.0, ("attention", "global_norm"), "point"), (-200.0, ("near", "far", "point", "local_norm"), "attention")],
)
def test_a_gate_that_is_fully_open_to_one_path_does_not_hear_the_other(bias, unheard, heard):
    new = module()
    new.amount.fill_(1.0)
    new.gate.weight.zero_()
    new.gate.bias.fill_(bias)
    before = new(*inputs())
    deaf = copy.deepcopy(new)
    for name in unheard:
        for parameter in getattr(deaf, name).parameters():
            parameter.add_(torch.rand_like(parameter) + 0.1)
    assert torch.equal(deaf(*inputs()), before)
    for parameter in getattr(deaf, heard).parameters():
        parameter.add_(torch.rand_like(parameter) + 0.1)
    assert not torch.allclose(deaf(*inputs()), before, atol=1e-3)


def test_gradients_reach_the_amount_when_new_and_everything_afterwards():
    new = module()
    target = F.normalize(torch.randn(2, EMBEDDING, 2 * GRID, 2 * GRID), dim=1)
    (new(*inputs()) * target).sum().backward()
    assert new.amount.grad is not None and new.amount.grad.abs() > 0
    with torch.no_grad():
        new.amount.fill_(0.5)
    new.zero_grad()
    (new(*inputs()) * target).sum().backward()
    for name, parameter in new.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@torch.no_grad()
def test_a_picture_is_the_same_alone_and_in_a_batch():
    new = module()
    new.amount.fill_(1.0)
    tokens, pictures, projected = inputs(3)
    together = new(tokens, pictures, projected)
    for n in range(3):
        alone = new(tokens[n : n + 1], pictures[n : n + 1], projected[n : n + 1])[0]
        assert torch.allclose(alone, together[n], atol=1e-5)
