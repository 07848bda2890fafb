"""Slower maps of one text in one picture, as the published pipelines make them: gScoreCAM and M2IB, on cached tokens.

gScoreCAM (Chen et al., ACCV 2022) weighs activations by how well the picture masked by each still fits the text. M2IB
(Wang et al., NeurIPS 2023) narrows an information bottleneck until only what fits the text passes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from MedZeroSegLib.text_image.dense_attention import ImageTower

BATCH = 50  # masked pictures in one pass
FLAT = 1e-8  # least range of an activation that is stretched to 0..1


@dataclass(frozen=True)
class Bottleneck:
    """M2IB's settings; the defaults are those of MedCLIP-SAMv2's released code (breast: beta 1, layer 9; brain: 2, 9).

    Attributes
    ----------
    beta
        Weight of the information that passes against the fit to the text.
    layer
        Index from 0 of the block whose output is narrowed.
    steps, samples
        Steps of Adam at rate ``rate``, and noise samples in each.
    seed
        Of the noise, which is the same for every picture and text.
    """

    beta: float = 0.1
    layer: int = 7
    steps: int = 10
    samples: int = 10
    rate: float = 1.0
    start: float = 5.0
    seed: int = 0


@torch.enable_grad()
def activations_and_gradients(tower: ImageTower, entering: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    """What enters the last attention, and how the picture's similarity to the text depends on it.

    At the norm *before the last attention*: after it, patch tokens reach the class token no more, and every gradient
    there is zero.

    Parameters
    ----------
    entering
        Tokens [n, 1 + grid², c] before the last block.
    text
        Unit vector [e].

    Returns
    -------
    Both [n, c, grid, grid].
    """
    block = tower.blocks[-1]
    normed = block.norm(entering.detach()).detach().requires_grad_(True)
    picture = tower.finish(block.finish(entering.detach() + block.attend(normed))[:, 0])
    similarity = F.normalize(picture, dim=-1) @ text
    (gradient,) = torch.autograd.grad(similarity.sum(), normed)
    return _patches(normed.detach(), tower.grid), _patches(gradient, tower.grid)


def gscorecam(
    tower: ImageTower, picture: Tensor, entering: Tensor, text: Tensor, scale: float, channels: int = 300
) -> Tensor:
    """relu(Σ w A) over the channels whose mean gradient is largest, w = softmax of the masked pictures' similarities.

    The softmax is over the chosen channels only.

    Parameters
    ----------
    picture
        [3, s, s] as the tower sees it.
    entering
        Its tokens [1 + grid², c] before the last block.
    text
        Unit vector [e].
    scale
        The model's own inverse temperature, which turns cosines into its similarities.

    Returns
    -------
    [grid, grid], at least 0.
    """
    activation, gradient = activations_and_gradients(tower, entering[None], text)
    strongest = gradient[0].mean((1, 2)).topk(min(channels, gradient.shape[1])).indices
    chosen = activation[0, strongest]
    scores = []
    with torch.no_grad():
        for start in range(0, len(chosen), BATCH):
            masks = F.interpolate(
                chosen[None, start : start + BATCH], picture.shape[-2:], mode="bilinear", align_corners=False
            )[0]
            low, high = masks.amin((1, 2), keepdim=True), masks.amax((1, 2), keepdim=True)
            masked = picture[None] * ((masks - low) / (high - low).clamp_min(FLAT))[:, None]
            embedded = tower.finish(tower.tokens_after(masked, len(tower.blocks))[:, 0])
            scores.append(scale * F.normalize(embedded, dim=-1) @ text)
        weights = torch.cat(scores).softmax(0)
        return F.relu((weights[:, None, None] * chosen).sum(0))


@torch.enable_grad()
def m2ib(tower: ImageTower, tokens: Tensor, texts: Tensor, settings: Bottleneck = Bottleneck()) -> Tensor:
    """Information in nats that each patch must pass on for the picture to fit the text.

    Minimises β · mean KL(N(λR, (1 − λ)²) ‖ N(0, 1)) − cos(image(λR + (1 − λ)ε), text) over α, λ = σ(α). Only the
    blocks after the bottleneck are run.

    Parameters
    ----------
    tokens
        R [n, 1 + grid², c], the output of block ``settings.layer``.
    texts
        Unit vectors [n, e], one for each picture.

    Returns
    -------
    [n, grid, grid]: the KL summed over channels, without the class token's.
    """
    tokens = tokens.detach()
    later = tower.blocks[settings.layer + 1 :]
    generator = torch.Generator().manual_seed(settings.seed)
    alpha = torch.full_like(tokens, settings.start).requires_grad_(True)
    optimiser = torch.optim.Adam([alpha], lr=settings.rate)  # acts on each number alone, so pictures don't mix
    for _ in range(settings.steps):
        noise = torch.randn((settings.samples, 1, *tokens.shape[1:]), generator=generator).to(tokens)
        passed = torch.sigmoid(alpha)
        mixed = (passed * tokens + torch.sigmoid(-alpha) * noise).flatten(0, 1)
        for block in later:
            mixed = block.run(mixed)
        embedded = F.normalize(tower.finish(mixed[:, 0]), dim=-1).unflatten(0, (settings.samples, -1))
        fit = (embedded * texts).sum(-1).mean(0)
        loss = settings.beta * information(tokens, alpha).mean((1, 2)) - fit
        optimiser.zero_grad()
        loss.sum().backward()
        optimiser.step()
    with torch.no_grad():
        return information(tokens, alpha)[:, 1:].sum(-1).unflatten(1, (tower.grid, tower.grid))


def information(tokens: Tensor, alpha: Tensor) -> Tensor:
    """KL(N(λR, (1 − λ)²) ‖ N(0, 1)) of every number, in nats; λ = σ(α)."""
    mean, log_variance = torch.sigmoid(alpha) * tokens, 2 * F.logsigmoid(-alpha)
    return 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance)


def _patches(tokens: Tensor, grid: int) -> Tensor:
    return tokens[:, 1:].transpose(1, 2).unflatten(2, (grid, grid))
