"""Local and global path, the gate between them, and the space in which pixels and texts meet."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from MedZeroSegLib.text_image.dpfem import CHANNELS, TOKENS, Dpfem, GlobalPath, LocalPath, RegionTextHead

SIDE = 32  # cells of the coarse embedding, half of the real one
WIDTH = 6
LARGEST_HEAD = 8_000_000  # bytes in float16; two of them ship


@pytest.fixture
def head() -> RegionTextHead:
    torch.manual_seed(0)
    return RegionTextHead(coarse_channels=5, detail_channels=3, text_channels=7, width=WIDTH).eval()


def embedding(pictures: int = 2, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(pictures, 5, SIDE, SIDE, generator=generator),
        torch.randn(pictures, 3, 2 * SIDE, 2 * SIDE, generator=generator),
    )


def features(seed: int = 2) -> Tensor:
    return torch.randn(2, CHANNELS, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def outputs_of(module: Dpfem, picture: Tensor) -> dict[str, Tensor]:
    """What the local path, the global path and the fusion's input are for a picture."""
    seen: dict[str, Tensor] = {}
    handles = [
        module.local_path.register_forward_hook(lambda _, __, out: seen.update(near=out)),
        module.global_path.register_forward_hook(lambda _, __, out: seen.update(wide=out)),
        module.fuse.register_forward_pre_hook(lambda _, inputs: seen.update(fused=inputs[0])),
    ]
    seen["out"] = module(picture)
    for handle in handles:
        handle.remove()
    return seen


def shaken(module: nn.Module) -> nn.Module:
    """The module with every weight changed."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.rand_like(parameter) + 0.1)
    return module


@torch.no_grad()
def test_the_gate_lies_between_0_and_1_and_divides_the_two_paths():
    torch.manual_seed(0)
    module = Dpfem(CHANNELS)
    seen = outputs_of(module, features())
    near, wide, (gated_near, gated_wide) = seen["near"], seen["wide"], seen["fused"].chunk(2, 1)
    clear = (near.abs() > 0.05) & (wide.abs() > 0.05)
    gate, rest = (gated_near / near)[clear], (gated_wide / wide)[clear]
    assert gate.min() > 0 and gate.max() < 1
    assert gate.std() > 1e-3  # it differs from place to place
    assert torch.allclose(gate + rest, torch.ones(()), atol=1e-4)
    assert torch.allclose(seen["out"], features() + module.fuse(seen["fused"]), atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize(
    ("bias", "unheard", "heard"), [(60.0, "global_path", "local_path"), (-200.0, "local_path", "global_path")]
)
def test_a_gate_that_is_fully_open_to_one_path_does_not_hear_the_other(bias, unheard, heard):
    torch.manual_seed(0)
    module = Dpfem(CHANNELS)
    module.gate.weight.zero_()
    module.gate.bias.fill_(bias)
    before = module(features())
    deaf = copy.deepcopy(module)
    shaken(getattr(deaf, unheard))
    assert torch.equal(deaf(features()), before)
    shaken(getattr(deaf, heard))
    assert not torch.allclose(deaf(features()), before, atol=1e-2)


def test_gradients_reach_both_paths_the_gate_and_the_texts(head):
    coarse, detail = embedding()
    texts = head.encode_text(torch.randn(4, 7))
    for layer in (head.wide.project, head.joined.fuse, head.deep.project):
        nn.init.normal_(layer.weight, std=0.1)
    head.score(head.encode_pixels(coarse, detail), texts).square().mean().backward()
    for name, parameter in head.named_parameters():
        if name.endswith("attention.in_proj_bias"):  # that of the keys cancels in the softmax
            continue
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@torch.no_grad()
def test_the_local_path_before_its_norm_follows_a_shift():
    torch.manual_seed(0)
    path = LocalPath(CHANNELS)
    path.norm = nn.Identity()
    picture = features()
    shifted = path(torch.roll(picture, (3, -2), (2, 3)))
    expected = torch.roll(path(picture), (3, -2), (2, 3))
    inner = slice(8, -8)  # away from the borders and from where the picture was wrapped
    assert torch.allclose(shifted[..., inner, inner], expected[..., inner, inner], atol=1e-5)
    assert not torch.allclose(shifted[..., :3, :], expected[..., :3, :], atol=1e-3)


@torch.no_grad()
def test_the_local_path_sees_its_surroundings_and_the_global_path_sees_all():
    torch.manual_seed(0)
    local_path, global_path = LocalPath(CHANNELS), GlobalPath(CHANNELS)
    local_path.norm, global_path.norm = nn.Identity(), nn.Identity()
    picture = features()
    changed = picture.clone()
    changed[:, :, 10, 10] += 5
    near = (local_path(changed) - local_path(picture)).abs().amax((0, 1))
    wide = (global_path(changed) - global_path(picture)).abs().amax((0, 1))
    rows, columns = torch.nonzero(near > 1e-5, as_tuple=True)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (7, 13, 7, 13)  # dilation 3
    assert wide.min() > 0


@torch.no_grad()
def test_the_global_path_knows_where_its_tokens_are():
    torch.manual_seed(0)
    path = GlobalPath(CHANNELS)
    path.norm = nn.Identity()
    mirrored = path(features().flip(3)).flip(3)
    assert not torch.allclose(mirrored, path(features()), atol=1e-4)
    path.place.zero_()
    assert torch.allclose(path(features().flip(3)).flip(3), path(features()), atol=1e-4)
    assert path.place.shape[1] == TOKENS * TOKENS


@torch.no_grad()
def test_the_wide_view_the_block_after_it_and_the_deep_detail_begin_without_a_say(head):
    before = head.encode_pixels(*embedding())
    for part in (head.wide.blocks, head.joined.local_path, head.deep.mix):
        shaken(part)
    assert torch.equal(head.encode_pixels(*embedding()), before)
    for layer in (head.wide.project, head.joined.fuse, head.deep.project):
        changed = copy.deepcopy(head)
        shaken(dict(changed.named_modules())[next(n for n, m in head.named_modules() if m is layer)])
        assert not torch.allclose(changed.encode_pixels(*embedding()), before, atol=1e-3)


@torch.no_grad()
def test_the_wide_view_reaches_far(head):
    nn.init.normal_(head.wide.project.weight)
    coarse, _ = embedding(1)
    changed = coarse.clone()
    changed[:, :, 4:6, 4:6] += 3
    assert (head.wide(changed) - head.wide(coarse)).abs().amax((0, 1)).min() > 0
    assert head.wide(coarse).shape == (1, head.stem[0].out_channels, SIDE, SIDE)


@torch.no_grad()
def test_pixels_and_texts_are_unit_vectors(head):
    pixels = head.encode_pixels(*embedding())
    assert pixels.shape == (2, WIDTH, 2 * SIDE, 2 * SIDE)
    assert torch.allclose(pixels.norm(dim=1), torch.ones(()), atol=1e-5)
    texts = head.encode_text(torch.randn(3, 7) * 5)
    assert texts.shape == (3, WIDTH)
    assert torch.allclose(texts.norm(dim=1), torch.ones(()), atol=1e-5)


@torch.no_grad()
def test_logits_are_the_scaled_cosine(head):
    pixels, texts = head.encode_pixels(*embedding()), head.encode_text(torch.randn(3, 7))
    logits = head.score(pixels, texts)
    assert logits.shape == (2, 3, 2 * SIDE, 2 * SIDE)
    cosine = pixels[1, :, 5, 9] @ texts[2]
    assert logits[1, 2, 5, 9].item() == pytest.approx((head.log_scale.exp() * cosine + head.bias).item(), abs=1e-4)
    assert (logits.abs() <= head.log_scale.exp() + head.bias.abs() + 1e-4).all()


@torch.no_grad()
def test_a_text_scores_the_same_however_many_are_asked(head):
    pixels, vectors = head.encode_pixels(*embedding()), torch.randn(9, 7)
    texts = head.encode_text(vectors)
    together = head.score(pixels, texts)
    for n in (0, 4, 8):
        assert torch.allclose(head.encode_text(vectors[n : n + 1]), texts[n : n + 1], atol=1e-6)
        assert torch.allclose(head.score(pixels, texts[n : n + 1])[:, 0], together[:, n], atol=1e-5)
    order = torch.randperm(9)
    assert torch.allclose(head.score(pixels, texts[order]), together[:, order], atol=1e-5)


@torch.no_grad()
def test_a_picture_is_the_same_alone_and_in_a_batch(head):
    coarse, detail = embedding(3)
    together = head.encode_pixels(coarse, detail)
    for n in range(3):
        assert torch.allclose(head.encode_pixels(coarse[n : n + 1], detail[n : n + 1])[0], together[n], atol=1e-5)


@torch.no_grad()
def test_the_fine_features_reach_single_cells_of_the_output(head):
    coarse, detail = embedding(1)
    changed = detail.clone()
    changed[:, :, 20, 30] += 3
    difference = (head.encode_pixels(coarse, changed) - head.encode_pixels(coarse, detail)).abs().amax((0, 1))
    assert difference[20, 30] > 5 * difference[40:, 40:].max()


def test_the_head_is_small_enough_to_ship():
    parameters = sum(parameter.numel() for parameter in RegionTextHead().parameters())
    assert 2 * parameters <= LARGEST_HEAD
