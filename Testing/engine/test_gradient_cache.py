"""Gradients piece by piece are those of the whole batch at once, also through dropout and negatives of other pieces."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from test_cehnc import unit
from torch import Tensor, nn

from MedZeroSegLib.training.cehnc import CehncSettings, cehnc
from MedZeroSegLib.training.gradient_cache import cached_backward


def towers(dropout: float = 0.0) -> nn.ModuleList:
    torch.manual_seed(0)
    return nn.ModuleList(
        nn.Sequential(nn.Linear(6, 10), nn.GELU(), nn.Dropout(dropout), nn.Linear(10, 5)).double() for _ in range(2)
    )


def gradients(model: nn.ModuleList, chunk: int, seeds: bool = False) -> tuple[list[Tensor], Tensor, list[int]]:
    images, texts, passes = unit(9, 6, 1), unit(9, 6, 2), []
    model.zero_grad()

    def encode(piece: int) -> tuple[Tensor, Tensor]:
        passes.append(piece)
        rows = slice(piece * chunk, (piece + 1) * chunk)
        if seeds:
            torch.manual_seed(piece)
        return F.normalize(model[0](images[rows]), dim=-1), F.normalize(model[1](texts[rows]), dim=-1)

    def loss_of(one: Tensor, other: Tensor) -> Tensor:
        return cehnc(one, other, (0.5, 0.9), CehncSettings(gamma=5.0, mode="paper"))

    loss = cached_backward(encode, -(-9 // chunk), loss_of)
    return [parameter.grad.clone() for parameter in model.parameters()], loss, passes


@pytest.mark.parametrize("chunk", [1, 2, 4, 8])
def test_any_size_of_pieces_gives_the_plain_gradients(chunk):
    model = towers()
    images, texts = unit(9, 6, 1), unit(9, 6, 2)
    vectors = F.normalize(model[0](images), dim=-1), F.normalize(model[1](texts), dim=-1)
    plain = cehnc(*vectors, (0.5, 0.9), CehncSettings(gamma=5.0, mode="paper"))
    expected = torch.autograd.grad(plain, list(model.parameters()))
    found, loss, passes = gradients(model, chunk)
    assert loss.item() == pytest.approx(plain.item(), abs=1e-12) and not loss.requires_grad
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-12)
    assert passes == [*range(-(-9 // chunk))] * 2


def test_one_piece_is_encoded_once():
    assert gradients(towers(), 9)[2] == [0]


def test_dropout_is_the_same_in_both_passes():
    """The gradient of the loss as it was computed: by finite differences under the same masks."""
    model = towers(dropout=0.5).train()
    found, _, _ = gradients(model, 3, seeds=True)
    weight = model[0][0].weight
    with torch.no_grad():
        for row, column in ((0, 0), (3, 4), (9, 5)):
            before = weight[row, column].item()
            losses = []
            for change in (1e-5, -1e-5):
                weight[row, column] = before + change
                with torch.enable_grad():
                    losses.append(gradients(model, 3, seeds=True)[1].item())
            weight[row, column] = before
            assert found[0][row, column].item() == pytest.approx((losses[0] - losses[1]) / 2e-5, abs=1e-7)
