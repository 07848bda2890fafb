"""The family of contrasts by name: what each member is, that twins are no negatives, and that processes add nothing."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from clip_rank import first_gradients
from clip_training_samples import native_folder, picture_pairs
from test_cehnc import off_diagonal, pairs

from MedZeroSegLib.errors import InputError
from MedZeroSegLib.training.cehnc import (
    LOSSES,
    CehncSettings,
    DifficultyController,
    cehnc_of_cosines,
    contrast_named,
)

HERE = Path(__file__).parent


def loss_of(name: str, cosine: torch.Tensor, twins: torch.Tensor | None = None) -> torch.Tensor:
    contrast = contrast_named(name)
    return cehnc_of_cosines(cosine, (contrast.hardness,) * 2, contrast.settings, None, twins)


def cosines(count: int = 8) -> torch.Tensor:
    images, texts = pairs(count)
    return (images @ texts.T).requires_grad_()


def test_infonce_is_cross_entropy_in_both_directions_at_the_usual_temperature():
    cosine = cosines()
    logits, right = cosine / 0.07, torch.arange(8)
    assert torch.allclose(loss_of("infonce", cosine), F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right))


def test_dcl_leaves_the_positive_out_of_the_denominator():
    cosine = cosines()
    expected = sum(
        (torch.logsumexp(off_diagonal(matrix / 0.07), 1) - matrix.diagonal() / 0.07).mean()
        for matrix in (cosine, cosine.T)
    )
    assert torch.allclose(loss_of("dcl", cosine), expected)


@pytest.mark.parametrize(("name", "coupled"), [("hn-nce", 1.0), ("dhn-nce", 0.0)])
def test_hard_negatives_weigh_as_published_with_beta_015_at_temperature_06(name, coupled):
    cosine, total = cosines(), torch.zeros((), dtype=torch.float64)
    for matrix in (cosine, cosine.T):
        negatives, positive = off_diagonal(matrix) / 0.6, matrix.diagonal() / 0.6
        weight = 7 * torch.softmax(0.15 * negatives, 1)
        denominator = (weight * negatives.exp()).sum(1) + coupled * positive.exp()
        total = total + (denominator.log() - positive).mean()
    assert torch.allclose(loss_of(name, cosine), total)


def test_beta_stays_where_it_is_at_another_temperature():
    contrast = contrast_named("dhn-nce", temperature=0.1)
    assert contrast.settings.gamma == pytest.approx(10)
    assert 2 * contrast.hardness / contrast.settings.gamma == pytest.approx(0.15)


def test_only_cehnc_moves_its_difficulty_and_knows_contexts():
    members = {name: contrast_named(name) for name in LOSSES}
    assert {name for name, member in members.items() if member.dynamic} == {"cehnc", "cehnc-paper"}
    assert {name for name, member in members.items() if member.context} == {"cehnc"}
    assert members["cehnc-paper"].settings.mode == "paper" and members["cehnc"].settings.mode == "normalised"
    with pytest.raises(InputError, match="hn-nce"):
        contrast_named("clip")


@pytest.mark.parametrize("name", LOSSES)
def test_twins_get_no_gradient_and_the_others_are_as_without_them(name):
    cosine = cosines(5)
    twins = torch.eye(5, dtype=torch.bool)
    twins[1, 3] = twins[3, 1] = True
    (gradient,) = torch.autograd.grad(loss_of(name, cosine, twins), cosine)
    assert gradient[1, 3] == gradient[3, 1] == 0
    assert gradient[1, 2] > 0 and gradient[1, 1] < 0
    with torch.no_grad():
        moved = cosine.clone()
        moved[1, 3] = moved[3, 1] = 0.99
        assert torch.equal(loss_of(name, moved, twins), loss_of(name, cosine, twins))


@pytest.mark.parametrize("name", LOSSES)
def test_an_anchor_whose_negatives_are_all_twins_adds_nothing_and_breaks_nothing(name):
    cosine = cosines(3)
    twins = torch.ones(3, 3, dtype=torch.bool)
    loss = loss_of(name, cosine, twins)
    (gradient,) = torch.autograd.grad(loss, cosine)
    assert loss.item() == pytest.approx(0.0, abs=1e-12) and not gradient.any()
    twins[0, 2] = twins[2, 0] = False  # now the middle one alone has no negative
    (gradient,) = torch.autograd.grad(loss_of(name, cosine, twins), cosine)
    assert torch.isfinite(gradient).all() and gradient[0, 2] > 0 and gradient[0, 1] == 0


def test_two_of_three_negatives_left_weigh_as_two():
    """The weights sum to the number of negatives, so InfoNCE without a twin is InfoNCE over the rest."""
    cosine = cosines(4).detach()
    twins = torch.eye(4, dtype=torch.bool)
    twins[0, 1] = twins[1, 0] = True
    rows = [[0, 2, 3], [1, 2, 3], [2, 0, 1, 3], [3, 0, 1, 2]]
    expected = sum(
        sum(F.cross_entropy(matrix[row[0], row][None] / 0.07, torch.tensor([0])) for row in rows) / 4
        for matrix in (cosine, cosine.T)
    )
    assert torch.allclose(loss_of("infonce", cosine, twins), expected)


def test_difficulty_does_not_look_at_twins():
    twins = torch.eye(4, dtype=torch.bool)
    twins[0, 1] = twins[1, 0] = True
    plain, moved = DifficultyController(1.0), DifficultyController(1.0)
    cosine = cosines(4).detach()
    plain.update(cosine, 2, 0.5, twins)
    cosine[0, 1] = cosine[1, 0] = 0.999
    moved.update(cosine, 2, 0.5, twins)
    assert plain.state_dict() == moved.state_dict()
    alone = DifficultyController(1.0)
    alone.update(cosine, 2, 0.5, torch.ones(4, 4, dtype=torch.bool))
    assert alone.lambdas == [1.0, 1.0]


def test_half_precision_vectors_meet_in_one_float32_matrix():
    contrast = CehncSettings(gamma=100.0)
    cosine = cosines().detach().float()
    with torch.autocast("cpu", torch.bfloat16):
        assert cehnc_of_cosines(cosine, (0.3, 0.3), contrast).dtype == torch.float32


def test_two_processes_have_the_gradients_and_the_loss_of_one_with_the_whole_batch(tmp_path):
    """Real processes over gloo, each with half of the batch; captions repeat, so twins lie in different processes."""
    model, file = native_folder(tmp_path / "model"), picture_pairs(tmp_path / "pairs", 12, 2)
    text = file.read_text(encoding="utf-8").splitlines()
    text[2] = text[2].split(",")[0] + "," + text[1].split(",", 1)[1]
    file.write_text("\n".join(text) + "\n", encoding="utf-8")
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    started = [
        subprocess.Popen(
            [sys.executable, HERE / "clip_rank.py", model, file, tmp_path / "two"],
            env={
                **os.environ,
                "PYTHONPATH": f"{HERE.parents[1]}",
                "RANK": str(rank),
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                "OMP_NUM_THREADS": "1",
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=180)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], errors
    for name in ("cehnc", "dhn-nce"):
        first_gradients(model, file, tmp_path / "one", name)
        one = torch.load(tmp_path / "one" / f"gradients-{name}-0.pt", weights_only=True)
        for rank in range(2):
            two = torch.load(tmp_path / "two" / f"gradients-{name}-{rank}.pt", weights_only=True)
            assert two["told"] == pytest.approx(one["told"], rel=1e-5)
            assert two["lambdas"]["lambdas"] == pytest.approx(one["lambdas"]["lambdas"], rel=1e-6)
            assert set(two["gradients"]) == set(one["gradients"])
            for weight, gradient in one["gradients"].items():
                assert (two["gradients"][weight] - gradient).abs().max() <= 1e-3 * gradient.abs().max() + 1e-6, weight
        assert any(gradient.abs().max() > 1e-3 for gradient in one["gradients"].values())
