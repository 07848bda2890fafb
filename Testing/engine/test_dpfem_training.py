"""Training of the dual path without masks: what it learns from is right, it learns, and the preset finds the result."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from clip_training_samples import native_folder, picture_pairs
from sam_samples import small_sam
from torch import Tensor

from MedZeroSegLib.base_preset import BASE, dual_path_key, take_trained_dual_path, text_image_of
from MedZeroSegLib.canvas import Canvas, fit_canvas
from MedZeroSegLib.errors import InputError, InstallationError
from MedZeroSegLib.mask_decoder.decoder import Embedding
from MedZeroSegLib.mask_decoder.sam import SamModel
from MedZeroSegLib.text_image.open_clip_dense import ClipTexts, OpenClipDense
from MedZeroSegLib.text_image.patch_dpfem import PatchDpfem
from MedZeroSegLib.trained_weights import clip_of_folder
from MedZeroSegLib.training import regions as regions_file
from MedZeroSegLib.training.dpfem import (
    DpfemTrainer,
    DpfemTraining,
    balance_loss,
    pooled_cosines,
    region_loss,
    train_on,
)
from MedZeroSegLib.training.pairs import read_pairs
from MedZeroSegLib.training.patch_features import _taught, encode_patches
from MedZeroSegLib.training.regions import region_map
from MedZeroSegLib.weights import WeightsStore

SETTINGS = DpfemTraining(steps=6, batch=3, learning_rate=3e-3)
RECORD = {"name": "tiny", "file": "tiny.safetensors", "sha256": "ab" * 32, "licence": "MIT"}


class LikeBrightness:
    """A decoder that works by arithmetic: its masks are the pixels about as bright as the point."""

    def embed_slices(self, slices: np.ndarray, canvas: Canvas) -> Embedding:
        shown = canvas.place(slices)
        return Embedding(shown, shown)

    def decode(self, coarse: Tensor, boxes: None, masks: None, points: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        column, row = points[0][:, 0].long().unbind(1)
        bright = coarse[torch.arange(len(coarse)), 0, row, column]
        logits = 100 * (0.2 - (coarse - bright[:, None, None, None]).abs())
        empty = torch.full_like(logits, -10.0)
        return torch.cat((logits, empty, empty), 1), torch.tensor([[0.95, 0.9, 0.1]]).expand(len(coarse), 3)


def features(count: int = 2, length: int = 6, side: int = 4, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, length, side, side, generator=generator, dtype=torch.float64), dim=1)


# Regions


def test_regions_are_what_lies_together_and_the_smaller_one_counts():
    row, column = np.mgrid[:40, :80]
    disc = (row - 12) ** 2 + (column - 60) ** 2 < 81
    shown = np.where(disc, 220, np.where(column < 40, 100, 20)).astype(np.uint8)
    canvas = fit_canvas(shown.shape, (1.0, 1.0), 64)
    found = region_map(LikeBrightness(), shown, canvas, 16)
    assert found.shape == (16, 16) and found.dtype == np.uint8
    left, inside, right = found[3, 3], found[2, 12], found[6, 10]
    assert len({left, inside, right}) == 3 and 0 not in (left, inside, right)
    assert (found[:8, :7] == left).all() and set(np.unique(found)) <= {0, 1, 2, 3}
    share = (found == inside).sum() / 16**2
    assert share == pytest.approx(disc.sum() / 80**2, abs=0.02)


def test_points_lie_on_the_slice_and_not_on_its_padding():
    points = regions_file._grid(fit_canvas((30, 90), (1.0, 1.0), 256))
    assert len(points) == regions_file.POINTS**2
    assert points[:, 1].max() < 256 / 3 and points[:, 0].max() > 230


def test_segment_anything_itself_answers_the_points(monkeypatch):
    monkeypatch.setattr(regions_file, "POINTS", 2)
    monkeypatch.setattr(regions_file, "QUALITY_MIN", -10.0)
    monkeypatch.setattr(regions_file, "STABLE_MIN", 0.0)
    shown = (np.arange(48 * 40).reshape(48, 40) % 251).astype(np.uint8)
    found = region_map(SamModel(small_sam()), shown, fit_canvas((48, 40), (1.0, 1.0), 64), 8)
    assert found.shape == (8, 8)


# Losses


def test_region_loss_is_the_spread_inside_and_the_nearness_of_means_by_hand():
    maps = features()
    numbers = torch.zeros(2, 4, 4, dtype=torch.uint8)
    numbers[0, :2], numbers[0, 2], numbers[1, 1:3, 1:3] = 1, 2, 7
    spread, cells, means = 0.0, 0, {}
    for n, number in ((0, 1), (0, 2), (1, 7)):
        inside = maps[n][:, numbers[n] == number]
        mean = inside.mean(1, keepdim=True)
        spread += ((inside - mean) ** 2).sum().item()
        cells += inside.shape[1]
        means[n, number] = F.normalize(mean[:, 0], dim=0)
    near = max(0.0, (means[0, 1] @ means[0, 2]).item() - 0.8)
    assert region_loss(maps, numbers).item() == pytest.approx(spread / cells + near, abs=1e-9)


def test_equal_regions_are_pushed_apart_and_a_picture_without_regions_says_nothing():
    same = torch.ones(1, 6, 4, 4, dtype=torch.float64) / 6**0.5
    halves = torch.ones(1, 4, 4, dtype=torch.uint8)
    halves[:, 2:] = 2
    assert region_loss(same, halves).item() == pytest.approx(0.2)
    assert region_loss(same, torch.ones(1, 4, 4, dtype=torch.uint8)).item() == pytest.approx(0.0)
    maps = features().requires_grad_()
    region_loss(maps, torch.zeros(2, 4, 4, dtype=torch.uint8)).backward()
    assert not maps.grad.any()


def test_a_text_is_compared_with_the_places_that_are_like_it():
    maps, texts = features(), F.normalize(torch.randn(3, 6, dtype=torch.float64), dim=-1)
    maps[1, :, 2, 1] = texts[2]
    cosine = pooled_cosines(maps, texts)
    assert cosine.shape == (2, 3) and cosine[1, 2] > 0.95 and cosine[1, 2] == cosine[1].max()
    places = maps[0].flatten(1)
    weight = torch.softmax(40 * texts[1] @ places, 0)
    assert torch.allclose(cosine[0, 1], F.cosine_similarity(places @ weight, texts[1], dim=0))
    order = torch.randperm(16)
    moved = maps.flatten(2)[..., order].unflatten(2, (4, 4))
    assert torch.allclose(pooled_cosines(moved, texts), cosine)


def test_a_gate_that_shuts_out_one_path_costs():
    fair = torch.full((2, 8, 4, 4), 0.5)
    assert balance_loss(fair).item() == 0
    shut = fair.clone()
    shut[:, :4] = 0.9
    assert balance_loss(shut).item() == pytest.approx(0.1)
    assert balance_loss(1 - shut).item() == pytest.approx(0.1)


# What it learns from


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("Merkmale 肺")


@pytest.fixture(scope="module")
def clip(folder):
    return clip_of_folder(native_folder(folder / "model"))


@pytest.fixture(scope="module")
def pairs(folder):
    return read_pairs(picture_pairs(folder / "pairs", 7, 1))


def test_what_views_say_of_a_mirrored_picture_is_mirrored(clip):
    model = OpenClipDense(clip, ClipTexts(clip, ""))
    whole, wide = torch.randn(1, 3, 64, 64), torch.randn(1, 3, 128, 128)
    found = _taught(model, whole, wide)
    assert found.shape == (1, 24, 8, 8)
    assert torch.allclose(found.norm(dim=1), torch.ones(()), atol=1e-5)
    assert torch.allclose(_taught(model, whole.flip(-1), wide.flip(-1)), found.flip(-1), atol=1e-5)
    assert not torch.allclose(found.flip(-1), found, atol=1e-2)


def test_encoding_goes_on_where_it_stopped(clip, pairs, tmp_path):
    shown = pairs.of("train")

    class Stops(LikeBrightness):
        left = 4

        def embed_slices(self, slices, canvas):
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
            return super().embed_slices(slices, canvas)

    whole = encode_patches(shown, clip, LikeBrightness(), tmp_path / "whole", "towers")
    with pytest.raises(KeyboardInterrupt):
        encode_patches(shown, clip, Stops(), tmp_path / "stopped", "towers")
    counting = Stops()
    again = encode_patches(shown, clip, counting, tmp_path / "stopped", "towers")
    assert counting.left == 2  # two of six were lacking
    for name in ("pictures", "tokens", "taught", "regions"):
        assert np.array_equal(getattr(whole, name), getattr(again, name)), name
    assert whole.regions.max() >= 2 and whole.tokens.std() > 0


# The run


def trained(clip, pairs, output: Path, **settings) -> Path:
    made_for = dual_path_key(BASE, RECORD)
    return train_on(pairs, output, clip, LikeBrightness(), made_for, replace(SETTINGS, **settings), every=2)


def test_it_comes_nearer_to_what_many_views_say(clip, pairs, tmp_path):
    shown = pairs.of("train")
    store = encode_patches(shown, clip, LikeBrightness(), tmp_path, "towers")
    settings = replace(SETTINGS, steps=40, batch=6, contrast_weight=0.0, region_weight=0.0, learning_rate=1e-3)
    run = DpfemTrainer(clip, store, shown, {}, settings)
    found = [run.train_step() for _ in range(40)]
    assert found[1]["amount"] != 0 and found[-1]["taught"] < 0.9 * found[0]["taught"]
    assert 0.3 < found[-1]["gate"] < 0.7
    assert not any(parameter.requires_grad for parameter in clip.model.parameters())


def test_an_interrupted_run_ends_with_the_same_module_and_log(clip, pairs, tmp_path, monkeypatch):
    through = trained(clip, pairs, tmp_path / "through")
    step = DpfemTrainer.train_step

    def interrupted(self):
        if self.step == 3:  # one step after the checkpoint
            raise KeyboardInterrupt
        return step(self)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(DpfemTrainer, "train_step", interrupted)
        trained(clip, pairs, tmp_path / "stopped")
    again = trained(clip, pairs, tmp_path / "stopped")
    assert through.read_bytes() == again.read_bytes()
    logs = [(tmp_path / name / "log.csv").read_text().splitlines() for name in ("through", "stopped")]
    assert [[row.rpartition(",")[0] for row in log] for log in logs][0] == [row.rpartition(",")[0] for row in logs[1]]
    assert len(logs[0]) == 4


def test_base_finds_the_module_and_its_maps_change(clip, pairs, tmp_path):
    file = trained(clip, pairs, tmp_path)
    store = WeightsStore(tmp_path / "store", folder=tmp_path)
    plain, refined = (text_image_of(BASE, clip, "") for _ in range(2))
    (record,), warnings = take_trained_dual_path(refined, BASE, RECORD, store)
    assert record["file"] == file.name == "dpfem.safetensors" and len(record["sha256"]) == 64 and warnings == ()
    slices = (np.arange(40 * 48).reshape(1, 40, 48) % 199).astype(np.uint8)
    canvas = fit_canvas((40, 48), (1.0, 1.0), 256)
    embedding = Embedding(torch.randn(1, 4, 64, 64), torch.randn(1, 4, 64, 64))
    one, other = (model.encode_slices(slices, canvas, embedding).pixels for model in (plain, refined))
    assert one.shape == other.shape
    assert not torch.allclose(one[:, :24], other[:, :24], atol=1e-4)
    assert torch.equal(one[:, 24:], other[:, 24:])  # the proxy's map passes it by


def test_a_module_for_other_towers_is_left_alone_and_that_is_said(clip, pairs, tmp_path):
    file = trained(clip, pairs, tmp_path)
    store = WeightsStore(tmp_path)  # the store itself, for good
    other = text_image_of(BASE, clip, "")
    records, warnings = take_trained_dual_path(other, BASE, {**RECORD, "sha256": "cd" * 32}, store)
    assert records == () and len(warnings) == 1 and str(file) in warnings[0]
    literal = replace(BASE, literal=True)
    assert take_trained_dual_path(text_image_of(literal, clip, ""), literal, RECORD, store)[0] == ()
    assert float(other.dual_path.amount) == 0
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InstallationError, match="damaged"):
        take_trained_dual_path(other, BASE, RECORD, store)


def test_refining_returns_the_gate_that_the_features_went_through():
    torch.manual_seed(0)
    module = PatchDpfem(20, 12)
    given = torch.randn(1, 20, 4, 4), torch.randn(1, 3, 64, 64), torch.randn(1, 12, 4, 4)
    found, gate = module.refine(*given)
    assert torch.equal(found, module(*given)) and gate.shape == (1, 192, 8, 8)
    assert (gate > 0).all() and (gate < 1).all()


def test_too_few_pairs_and_other_patches_are_refused(clip, pairs, tmp_path):
    with pytest.raises(InputError, match="6 pairs"):
        trained(clip, pairs, tmp_path, batch=9)
    coarse = clip_of_folder(native_folder(tmp_path / "model"))
    object.__setattr__(coarse.tower, "picture_size", 128)
    with pytest.raises(InputError, match="16 pixels"):
        trained(coarse, pairs, tmp_path)
