"""gScoreCAM and M2IB: the equations, where gradients are taken, and maps that tell patches and texts apart."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from clip_samples import EMBEDDING, GRID, PATCH, VISUALS, pictures
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from MedZeroSegLib.text_image import explainers
from MedZeroSegLib.text_image.dense_attention import ImageTower, image_tower
from MedZeroSegLib.text_image.explainers import (
    Bottleneck,
    activations_and_gradients,
    gscorecam,
    information,
    m2ib,
)

SCALE = 20.0


@pytest.fixture(params=list(VISUALS))
def tower(request) -> ImageTower:
    return image_tower(VISUALS[request.param]())


def text(seed: int = 3) -> Tensor:
    return F.normalize(torch.randn(EMBEDDING, generator=torch.Generator().manual_seed(seed)), dim=0)


def similarity(tower: ImageTower, shown: Tensor) -> Tensor:
    return F.normalize(tower.finish(tower.tokens_after(shown, len(tower.blocks))[:, 0]), dim=-1) @ text()


def test_gradients_are_those_of_the_similarity(tower):
    """Against finite differences of the whole last block, in float64."""
    entering = tower.tokens_after(pictures(1), len(tower.blocks) - 1)
    activation, gradient = activations_and_gradients(tower, entering, text())
    block = tower.blocks[-1]
    assert torch.allclose(activation, block.norm(entering)[:, 1:].mT.unflatten(2, (GRID, GRID)))

    def at(step: float) -> float:
        normed = block.norm(entering).clone()
        normed[0, 1 + 2 * GRID + 3, 5] += step
        out = tower.finish(block.finish(entering + block.attend(normed))[:, 0])
        return float(F.normalize(out, dim=-1)[0] @ text())

    assert gradient[0, 5, 2, 3].item() == pytest.approx((at(0.05) - at(-0.05)) / 0.1, rel=0.05, abs=1e-5)


def test_gradients_reach_all_patches_and_leave_the_towers_weights_alone(tower):
    entering = tower.tokens_after(pictures(2), len(tower.blocks) - 1)
    _, gradient = activations_and_gradients(tower, entering, text())
    assert (gradient.abs().amax(1) > 0).all()
    assert not any(p.requires_grad for p in vars(tower.blocks[-1])["run"].parameters())


@torch.no_grad()
def test_gscorecam_is_the_weighted_sum_of_activations(tower, monkeypatch):
    monkeypatch.setattr(explainers, "BATCH", 7)
    shown = pictures(1)
    entering = tower.tokens_after(shown, len(tower.blocks) - 1)
    activation, gradient = activations_and_gradients(tower, entering, text())
    order = gradient[0].mean((1, 2)).argsort(descending=True)[:20]
    scores = []
    for channel in order:
        mask = F.interpolate(activation[:, channel, None][:, :1], shown.shape[-2:], mode="bilinear")[0, 0]
        mask = (mask - mask.min()) / (mask.max() - mask.min())
        scores.append(SCALE * similarity(tower, shown * mask)[0])
    weights = torch.stack(scores).softmax(0)
    expected = torch.relu(sum(w * activation[0, c] for w, c in zip(weights, order, strict=True)))
    found = gscorecam(tower, shown[0], entering[0], text(), SCALE, channels=20)
    assert found.shape == (GRID, GRID)
    assert torch.allclose(found, expected, atol=1e-5)


def test_gscorecam_tells_texts_apart(tower):
    shown = pictures(1)[0]
    entering = tower.tokens_after(shown[None], len(tower.blocks) - 1)[0]
    one, other = (gscorecam(tower, shown, entering, text(seed), SCALE, 12) for seed in (3, 4))
    assert one.std() > 0 and not torch.allclose(one, other)


def test_information_is_the_divergence_of_two_normal_distributions():
    tokens, alpha = torch.randn(2, 5, 3), torch.randn(2, 5, 3)
    passed = torch.sigmoid(alpha)
    expected = kl_divergence(Normal(passed * tokens, 1 - passed), Normal(0.0, 1.0))
    assert torch.allclose(information(tokens, alpha), expected, atol=1e-5)
    assert information(tokens, torch.full_like(alpha, -30)).abs().max() < 1e-6  # nothing passes
    assert torch.isfinite(information(tokens, torch.full_like(alpha, 80))).all()


def test_one_step_of_m2ib_is_one_step_of_adam(tower):
    """Adam's first step is the rate times the sign of the gradient, which finite differences give."""
    settings = Bottleneck(beta=0.3, layer=0, steps=1, samples=3, rate=0.5)
    tokens = tower.tokens_after(pictures(1), 1)
    noise = torch.randn((3, 1, *tokens.shape[1:]), generator=torch.Generator().manual_seed(0))

    def loss(alpha: Tensor) -> Tensor:
        mixed = torch.sigmoid(alpha) * tokens + (1 - torch.sigmoid(alpha)) * noise
        mixed = mixed[:, 0]
        for block in tower.blocks[1:]:
            mixed = block.run(mixed)
        fit = (F.normalize(tower.finish(mixed[:, 0]), dim=-1) @ text()).mean()
        return 0.3 * information(tokens, alpha).mean() - fit

    alpha = torch.full_like(tokens, settings.start).requires_grad_(True)
    (gradient,) = torch.autograd.grad(loss(alpha), alpha)
    stepped = settings.start - 0.5 * gradient.sign()
    expected = information(tokens, stepped)[:, 1:].sum(-1).unflatten(1, (GRID, GRID))
    clear = (gradient.abs() > 1e-6)[:, 1:].all(-1).unflatten(1, (GRID, GRID))  # Adam's epsilon matters elsewhere
    found = m2ib(tower, tokens, text()[None], settings)
    assert clear.any()
    assert torch.allclose(found[clear], expected[clear], rtol=1e-2)


def test_the_bottleneck_keeps_what_the_text_is_about(tower):
    """A text that is the picture's own embedding, in which one patch differs from a flat rest."""
    shown = torch.zeros(1, 3, GRID * PATCH, GRID * PATCH)
    shown[..., 2 * PATCH : 3 * PATCH, 4 * PATCH : 5 * PATCH] = 4 * pictures(1, PATCH)
    own = F.normalize(tower.finish(tower.tokens_after(shown, len(tower.blocks))[:, 0]), dim=-1)
    found = m2ib(tower, tower.tokens_after(shown, 1), own, Bottleneck(beta=2.0, layer=0, steps=30))[0]
    flat = m2ib(tower, tower.tokens_after(0 * shown, 1), own, Bottleneck(beta=2.0, layer=0, steps=30))[0]
    assert torch.isfinite(found).all() and found.std() > 0
    assert not torch.allclose(found, flat, rtol=1e-3)


def test_noise_is_the_same_for_every_picture_whatever_the_batch(tower):
    settings = Bottleneck(layer=0, steps=3, samples=2)
    tokens, texts = tower.tokens_after(pictures(3), 1), torch.stack([text(n) for n in range(3)])
    together = m2ib(tower, tokens, texts, settings)
    for n in range(3):
        alone = m2ib(tower, tokens[n : n + 1], texts[n : n + 1], settings)[0]
        assert torch.allclose(alone, together[n], rtol=1e-3)
    assert torch.equal(m2ib(tower, tokens, texts, settings), together)
    assert not torch.allclose(m2ib(tower, tokens, texts, replace(settings, seed=1)), together)


def test_m2ib_tells_texts_apart(tower):
    tokens = tower.tokens_after(pictures(1), 2)
    one, other = (m2ib(tower, tokens, text(seed)[None], Bottleneck(beta=1e-3, layer=1)) for seed in (3, 4))
    assert not torch.allclose(one, other, rtol=1e-2)


def test_only_the_blocks_after_the_bottleneck_are_run(tower):
    settings = Bottleneck(layer=1, steps=1, samples=2)
    tokens = tower.tokens_after(pictures(1), 2)
    broken = replace(tower, blocks=(None, None, tower.blocks[2]))
    assert torch.isfinite(m2ib(broken, tokens, text()[None], settings)).all()
