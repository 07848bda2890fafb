"""The contrast's identities: what it is at the ends of its settings, where its gradients point, what it must not do."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from MedZeroSegLib.text_image.dpfem import RegionTextHead
from MedZeroSegLib.training.cehnc import (
    LAMBDA_RANGE,
    CehncSettings,
    DifficultyController,
    _direction,
    _distance,
    _normalised,
    cehnc,
    context_weights,
)

LAMBDAS = (0.3, 0.7)
paper = partial(CehncSettings, mode="paper")


def unit(count: int, width: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, width, generator=generator, dtype=torch.float64), dim=-1).to(dtype)


def pairs(count: int = 8, width: int = 16, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    images = unit(count, width, 0)
    return images.to(dtype), F.normalize(images + 0.8 * unit(count, width, 1), dim=-1).to(dtype)


def info_nce(logits: Tensor) -> Tensor:
    return F.cross_entropy(logits, torch.arange(len(logits)))


def off_diagonal(matrix: Tensor) -> Tensor:
    return matrix[~torch.eye(len(matrix), dtype=torch.bool)].reshape(len(matrix), -1)


def gradient_of_direction(cosine: Tensor, hardness: float, settings: CehncSettings, context: Tensor | None = None):
    cosine = cosine.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(_direction(cosine, hardness, settings, context) * len(cosine), cosine)
    return gradient


@pytest.mark.parametrize("mode", ["paper", "normalised"])
@pytest.mark.parametrize("power", [1, 2])
def test_without_hardness_it_is_info_nce_in_both_directions(mode, power):
    images, texts = pairs()
    settings = CehncSettings(gamma=7.0, power=power, mode=mode)
    logits = 7.0 * images @ texts.T
    expected = info_nce(logits) + info_nce(logits.T)
    assert cehnc(images, texts, (0.0, 0.0), settings).item() == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize("mode", ["paper", "normalised"])
def test_without_hardness_and_positive_it_is_the_decoupled_contrast(mode):
    images, texts = pairs()
    logits = 5.0 * images @ texts.T
    expected = sum(
        (torch.logsumexp(off_diagonal(matrix), 1) - matrix.diagonal()).mean() for matrix in (logits, logits.T)
    )
    loss = cehnc(images, texts, (0.0, 0.0), CehncSettings(gamma=5.0, coupled=False, mode=mode))
    assert loss.item() == pytest.approx(expected.item(), abs=1e-9)


@pytest.mark.parametrize("coupled", [True, False])
def test_squared_distance_is_another_temperature_and_margin_for_the_negatives(coupled):
    images, texts = pairs()
    gamma = 2.0
    expected = torch.zeros((), dtype=torch.float64)
    for cosine, hardness in ((images @ texts.T, LAMBDAS[0]), (texts @ images.T, LAMBDAS[1])):
        negatives = (gamma + 2 * hardness) * cosine - 2 * hardness
        diagonal = torch.eye(len(cosine), dtype=torch.bool)
        kept = gamma * cosine if coupled else torch.full_like(cosine, -torch.inf)
        logits = torch.where(diagonal, kept, negatives)
        expected += (torch.logsumexp(logits, 1) - gamma * cosine.diagonal()).mean()
    loss = cehnc(images, texts, LAMBDAS, paper(gamma=gamma, coupled=coupled))
    assert abs(loss - expected).item() < 1e-10


def test_power_1_is_the_plain_distance():
    images, texts = pairs()
    distance = torch.cdist(images, texts)
    gamma, cosine = 2.0, images @ texts.T
    expected = torch.zeros((), dtype=torch.float64)
    for matrix, distances, hardness in ((cosine, distance, LAMBDAS[0]), (cosine.T, distance.T, LAMBDAS[1])):
        negatives = (gamma * matrix - hardness * distances).exp() * (1 - torch.eye(len(matrix)))
        positive = (gamma * matrix.diagonal()).exp()
        expected += -(positive / (positive + negatives.sum(1))).log().mean()
    assert cehnc(images, texts, LAMBDAS, paper(gamma=gamma, power=1)).item() == pytest.approx(expected.item(), abs=1e-9)


@pytest.mark.parametrize("hardness", [0.0, 0.3, 2.0])
@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("coupled", [True, False])
def test_gradients_are_those_of_the_loss(hardness, power, coupled):
    images, texts = (unit(5, 7, seed).requires_grad_() for seed in (2, 3))
    assert off_diagonal((images - texts[:, None]).norm(dim=-1)).min() > 1e-3
    settings = paper(gamma=2.0, power=power, coupled=coupled)

    def loss(one: Tensor, other: Tensor) -> Tensor:
        return cehnc(F.normalize(one, dim=-1), F.normalize(other, dim=-1), (hardness, 0.5 * hardness), settings)

    assert torch.autograd.gradcheck(loss, (images, texts))


@pytest.mark.parametrize("power", [1, 2])
def test_vectors_that_are_equal_have_finite_gradients(power):
    images = unit(4, 6, 0).requires_grad_()
    texts = images.detach().clone()
    texts[1] = texts[0]
    cehnc(images, texts, (2.0, 2.0), paper(gamma=2.0, power=power)).backward()
    assert torch.isfinite(images.grad).all()


@pytest.mark.parametrize("hardness", [0.0, 0.3, 2.0])
def test_negatives_are_pushed_away_and_positives_drawn_near(hardness):
    images, texts = pairs()
    gamma = 2.0
    gradient = gradient_of_direction(images @ texts.T, hardness, paper(gamma=gamma))
    negatives, positives = off_diagonal(gradient), gradient.diagonal()
    assert (negatives >= 0).all() and (positives <= 0).all()
    assert torch.allclose(negatives.sum(1) / (gamma + 2 * hardness), -positives / gamma, atol=1e-12)


def test_normalised_gradients_treat_the_weights_as_constants():
    images, texts = pairs()
    gamma, hardness, cosine = 3.0, 0.8, images @ texts.T
    gradient = gradient_of_direction(cosine, hardness, CehncSettings(gamma=gamma))
    diagonal = torch.eye(len(cosine), dtype=torch.bool)
    weight = torch.exp(-hardness * (2 - 2 * cosine)).masked_fill(diagonal, 0)
    weight = (weight / weight.sum(1, keepdim=True) * (len(cosine) - 1)).masked_fill(diagonal, 1)
    share = weight * (gamma * cosine).exp()
    share = share / share.sum(1, keepdim=True)
    assert torch.allclose(gradient, gamma * (share - diagonal.double()), atol=1e-10)


@pytest.mark.parametrize("mode", ["paper", "normalised"])
def test_the_ratio_of_hard_to_easy_negatives_grows_with_hardness(mode):
    images, texts = pairs()
    cosine = images @ texts.T
    row = off_diagonal(cosine)[0]
    hard, easy = int(row.argmax()), int(row.argmin())
    gamma, ratios = 2.0, []
    for hardness in (0.0, 0.3, 1.0, 3.0):
        negatives = off_diagonal(gradient_of_direction(cosine, hardness, CehncSettings(gamma=gamma, mode=mode)))[0]
        ratios.append((negatives[hard] / negatives[easy]).item())
        expected = torch.exp((gamma + 2 * hardness) * (row[hard] - row[easy]))
        assert ratios[-1] == pytest.approx(expected.item(), rel=1e-6)
    assert ratios == sorted(ratios) and ratios[0] > 1


def test_the_printed_loss_falls_with_hardness_so_no_optimiser_may_hold_it():
    images, texts = pairs(dtype=torch.float32)
    losses = [cehnc(images, texts, (h, h), paper(gamma=2.0)).item() for h in (0.0, 0.1, 0.5, 1.0, 2.0, 5.0)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.05 * losses[0]
    controller = DifficultyController()
    assert not isinstance(controller, torch.nn.Module)
    assert all(isinstance(value, float) for value in controller.lambdas)
    assert not any("lambda" in name or "hardness" in name for name, _ in RegionTextHead().named_parameters())


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("with_context", [True, False])
def test_the_weights_of_the_negatives_sum_to_their_number(power, with_context):
    images, texts = pairs()
    diagonal = torch.eye(8, dtype=torch.bool)
    context = 0.1 + torch.rand(8, 8, generator=torch.Generator().manual_seed(0)).double() if with_context else None
    weight = _normalised(-1.3 * _distance(images @ texts.T, power, diagonal), context, diagonal).exp()
    assert torch.allclose(weight.sum(1), torch.full((8,), 7.0, dtype=torch.float64))
    assert not weight.diagonal().any()


@pytest.mark.parametrize("mode", ["paper", "normalised"])
def test_the_order_of_pairs_changes_nothing_and_swapped_towers_swap_the_hardness(mode):
    images, texts = pairs()
    settings = CehncSettings(gamma=2.0, mode=mode)
    context = 0.1 + torch.rand(8, 8, generator=torch.Generator().manual_seed(1)).double()
    loss = cehnc(images, texts, LAMBDAS, settings, context).item()
    order = torch.randperm(8, generator=torch.Generator().manual_seed(2))
    shuffled = cehnc(images[order], texts[order], LAMBDAS, settings, context[order][:, order]).item()
    assert shuffled == pytest.approx(loss, abs=1e-10)
    swapped = cehnc(texts, images, LAMBDAS[::-1], settings, context.T).item()
    assert swapped == pytest.approx(loss, abs=1e-10)
    assert cehnc(texts, images, LAMBDAS, settings, context.T).item() != pytest.approx(loss, abs=1e-6)


@pytest.mark.parametrize("coupled", [True, False])
def test_it_is_the_hard_negative_contrast_with_beta_2_lambda_over_gamma(coupled):
    """HN-NCE coupled, DHN-NCE decoupled; temperature .6 and β .15 of MedCLIP-SAM."""
    gamma, hardness = 1 / 0.6, 0.125
    beta = 2 * hardness / gamma
    assert beta == pytest.approx(0.15)
    images, texts = (vectors.requires_grad_() for vectors in pairs())
    loss = cehnc(images, texts, (hardness, hardness), CehncSettings(gamma=gamma, coupled=coupled))
    expected = torch.zeros((), dtype=torch.float64)
    for cosine in (images @ texts.T, texts @ images.T):
        negatives = off_diagonal(gamma * cosine)
        weight = 7 * torch.softmax(beta * negatives, 1).detach()
        total = (weight * negatives.exp()).sum(1) + (coupled * (gamma * cosine.diagonal()).exp())
        expected = expected + (total.log() - gamma * cosine.diagonal()).mean()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-9)
    for mine, theirs in zip(
        torch.autograd.grad(loss, (images, texts)), torch.autograd.grad(expected, (images, texts)), strict=True
    ):
        assert torch.allclose(mine, theirs, atol=1e-9)


def test_the_hardest_negative_is_pushed_away_where_the_released_code_pulls_it_near():
    images, texts = unit(8, 16, 4), unit(8, 16, 5)
    cosine = images @ texts.T
    hardest = off_diagonal(cosine).argmax(1)
    gradient = off_diagonal(gradient_of_direction(cosine, 0.125, CehncSettings(gamma=1 / 0.6, coupled=False)))
    assert (gradient.gather(1, hardest[:, None]) > 0.1).all()


def test_two_captions_that_say_the_same_do_not_push_each_other():
    tower = unit(6, 12, 6)
    tower[1] = tower[0]
    context = context_weights(tower, torch.zeros(6, 6, dtype=torch.bool))
    assert context[0, 1] == context[1, 0] < 0.01
    others = context[2:, :2]
    assert (others > 0.99).all()
    images, texts = unit(6, 12, 7), unit(6, 12, 8)
    texts[1] = texts[0]
    settings = CehncSettings(gamma=2.0)
    guarded = gradient_of_direction(images @ texts.T, 0.3, settings, context)
    plain = gradient_of_direction(images @ texts.T, 0.3, settings)
    assert 0 <= guarded[0, 1] < 0.03 * plain[0, 1]
    assert guarded[0, 2] > plain[0, 2]


def test_negatives_of_the_same_context_weigh_half_as_much_again():
    tower = unit(4, 12, 6)
    same = torch.zeros(4, 4, dtype=torch.bool)
    same[0, 1] = same[1, 0] = True
    context = context_weights(tower, same)
    assert context[0, 1] == pytest.approx(1.5, abs=1e-3)
    assert context[0, 2] == pytest.approx(1.0, abs=1e-3)
    assert torch.allclose(context, context.T)
    assert ((context > 0) & (context <= 1.5)).all()


def test_the_length_of_the_towers_vectors_does_not_matter_to_the_context():
    tower, none = unit(4, 12, 6), torch.zeros(4, 4, dtype=torch.bool)
    assert torch.allclose(context_weights(tower, none), context_weights(3 * tower, none))


@pytest.mark.parametrize("mode", ["paper", "normalised"])
def test_a_single_pair_has_no_loss_or_nothing_to_contrast(mode):
    images, texts = pairs(1)
    assert cehnc(images, texts, LAMBDAS, CehncSettings(mode=mode)).item() == pytest.approx(0.0, abs=1e-9)
    with pytest.raises(ValueError, match="two pairs"):
        cehnc(images, texts, LAMBDAS, CehncSettings(mode=mode, coupled=False))


@pytest.mark.parametrize("mode", ["paper", "normalised"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_and_a_cold_temperature_stay_finite(mode, dtype):
    images, texts = (vectors.requires_grad_() for vectors in pairs(dtype=dtype))
    loss = cehnc(images, texts, (8.0, 8.0), CehncSettings(gamma=100.0, mode=mode))
    assert loss.dtype == torch.float32 and torch.isfinite(loss)
    loss.backward()
    assert torch.isfinite(images.grad).all() and torch.isfinite(texts.grad).all()


def test_the_contrast_is_computed_in_float32_inside_autocast():
    images, texts = pairs(dtype=torch.float32)
    outside = cehnc(images, texts, LAMBDAS, CehncSettings(gamma=100.0))
    with torch.autocast("cpu", torch.bfloat16):
        inside = cehnc(images, texts, LAMBDAS, CehncSettings(gamma=100.0))
    assert inside.dtype == torch.float32
    assert inside.item() == outside.item()


def cosine_matrix(spread: float) -> Tensor:
    """Cosines whose negatives differ by ``spread``."""
    return torch.linspace(-spread, spread, 64).reshape(8, 8)


def test_difficulty_rises_while_all_negatives_count_alike_and_falls_when_few_do():
    easy, few = DifficultyController(), DifficultyController(hardness=4.0)
    for _ in range(100):
        easy.update(cosine_matrix(0.1), 2, progress=1.0)
    for _ in range(400):
        few.update(cosine_matrix(0.9), 2, progress=0.0)
    assert easy.lambdas[0] > 0.125 and easy.lambdas[1] > 0.125
    assert few.lambdas[0] < 4.0 and few.lambdas[1] < 4.0


def test_difficulty_stays_in_its_range():
    high, low = DifficultyController(7.9), DifficultyController(0.011)
    low.shares = [0.0, 0.0]
    for _ in range(200):
        high.update(torch.zeros(4, 4), 2, progress=1.0)
        low.update(cosine_matrix(1.0), 2, progress=0.0)
    assert high.lambdas == [LAMBDA_RANGE[1]] * 2
    assert all(LAMBDA_RANGE[0] <= value < 0.0111 for value in low.lambdas)


def test_each_direction_has_its_own_difficulty():
    one, other = DifficultyController(), DifficultyController()
    for _ in range(20):
        one.update(cosine_matrix(0.9), 2, 0.5)
        other.update(cosine_matrix(0.9).T, 2, 0.5)
    assert one.lambdas == pytest.approx(other.lambdas[::-1])
    assert one.lambdas[0] != one.lambdas[1]


def test_difficulty_goes_on_from_its_stored_state_and_a_single_pair_tells_nothing():
    whole, first = DifficultyController(), DifficultyController()
    for _ in range(5):
        whole.update(cosine_matrix(0.5), 2, 0.5)
        first.update(cosine_matrix(0.5), 2, 0.5)
    second = DifficultyController()
    second.load_state_dict(first.state_dict())
    second.update(torch.ones(1, 1), 2, 0.5)
    for _ in range(5):
        whole.update(cosine_matrix(0.5), 2, 0.5)
        second.update(cosine_matrix(0.5), 2, 0.5)
    assert second.state_dict() == whole.state_dict()
    assert first.state_dict() != whole.state_dict()
