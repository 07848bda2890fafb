"""Training of the `lite` head: it learns what its pictures show, and an interrupted run ends with the same weights."""

from __future__ import annotations

import csv
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from safetensors.torch import load_file
from torch import Tensor

from MedZeroSegLib.errors import InputError
from MedZeroSegLib.evaluation.manifest import read_manifest
from MedZeroSegLib.text_image.lite import read_head
from MedZeroSegLib.training.brain_template import FILE, write_template_manifest
from MedZeroSegLib.training.lite import LiteTrainer, LiteTraining
from MedZeroSegLib.training.pictures import LabelMap, Picture, PictureStore, joined

STRUCTURES = {1: "liver", 2: "spleen"}


class WordVectors:
    """A text tower in which each text has a fixed vector of its own, near those of texts that share its words."""

    def encode(self, texts: list[str]) -> Tensor:
        vectors = []
        for text in texts:
            seeds = [zlib.crc32(word.encode()) for word in text.lower().split()]
            vectors.append(sum(torch.randn(384, generator=torch.Generator().manual_seed(seed)) for seed in seeds))
        return torch.nn.functional.normalize(torch.stack(vectors), dim=-1)


def store_of_two_organs() -> PictureStore:
    """Three pictures with a liver on the left and a spleen on the right, each with its own mark in the embedding."""
    rng = np.random.default_rng(0)
    labels = np.zeros((3, 256, 256), np.uint8)
    coarse = rng.normal(size=(3, 256, 64, 64)).astype(np.float16)
    detail = rng.normal(size=(3, 128, 128, 128)).astype(np.float16)
    for n in range(3):
        top = 40 + 24 * n
        labels[n, top : top + 96, 24:104] = 1
        labels[n, top + 32 : top + 80, 168:216] = 2
        for value in STRUCTURES:
            where = labels[n] == value
            coarse[n, 16 * value : 16 * value + 16, where[::4, ::4]] += 3
            detail[n, 16 * value : 16 * value + 16, where[::2, ::2]] += 3
    shown = tuple(
        Picture(n, f"case {n}", f"patient {n}", "abdomen", "CT", n < 2, 0, (LabelMap(n, "abdomen", STRUCTURES),))
        for n in range(3)
    )
    return PictureStore(shown, {"abdomen": ("liver", "spleen")}, coarse, detail, labels)


def trainer(folder: Path, **settings: object) -> LiteTrainer:
    chosen = LiteTraining(**{"batch": 2, "warm_up": 2, "average": 0.5, **settings})  # type: ignore[arg-type]
    return LiteTrainer(store_of_two_organs(), WordVectors(), folder, chosen)  # type: ignore[arg-type]


def test_the_head_learns_to_tell_the_named_organs_apart(tmp_path):
    run = trainer(tmp_path, steps=14, learning_rate=5e-3)
    run.run(checkpoint_every=7)
    run.export(tmp_path / "head.safetensors", {"started_from": None})
    head, card = read_head(tmp_path / "head.safetensors")
    assert card.concepts == ("liver", "spleen") and card.competitors["liver"] == ("spleen",)
    with torch.inference_mode():
        store = run.store
        pixels = head.eval().encode_pixels(
            torch.from_numpy(store.coarse[:1]).float(), torch.from_numpy(store.detail[:1]).float()
        )
        texts = head.encode_text(torch.stack([run.texts[name].mean(0) for name in ("liver", "spleen")]))
        logits = head.score(pixels, texts)[0].numpy()
    small = store.labels[0][::2, ::2]
    for row, value in enumerate(STRUCTURES):
        inside, outside = logits[row][small == value].mean(), logits[row][small != value].mean()
        assert inside > outside + 1
        assert inside > logits[1 - row][small == value].mean() + 0.5
    with (tmp_path / "log.csv").open() as handle:
        losses = [float(row["dense"]) for row in csv.DictReader(handle)]
    assert losses[-1] < 0.8 * losses[0]


def test_an_interrupted_run_ends_with_the_weights_of_an_uninterrupted_one(tmp_path):
    class Interrupted(LiteTrainer):
        def train_step(self) -> dict[str, float]:
            if self.step == 3:  # one step after the checkpoint
                raise KeyboardInterrupt
            return super().train_step()

    through = trainer(tmp_path / "through", steps=5)
    through.run(checkpoint_every=2)
    first = Interrupted(
        store_of_two_organs(),
        WordVectors(),  # type: ignore[arg-type]
        tmp_path / "stopped",
        through.settings,
    )
    with pytest.raises(KeyboardInterrupt):
        first.run(checkpoint_every=2)
    second = trainer(tmp_path / "stopped", steps=5)
    second.run(checkpoint_every=2)
    assert second.step == 5
    for name, value in through.mean.items():
        assert torch.equal(value, second.mean[name]), name


def test_a_head_for_any_use_is_trained_without_the_other_pictures(tmp_path):
    assert {p.case_id for p in trainer(tmp_path, steps=1).pictures} == {"case 0", "case 1"}
    assert len(trainer(tmp_path, steps=1, any_use_only=False).pictures) == 3


def test_a_slice_beyond_a_structure_is_drawn_more_often_than_one_that_shows_it(tmp_path):
    """Volumes hold few of them, and they alone tell where a structure ends."""
    store = store_of_two_organs()
    store.labels[1] = 0
    run = LiteTrainer(store, WordVectors(), tmp_path, LiteTraining(steps=1, any_use_only=False))  # type: ignore[arg-type]
    assert run.chances.tolist() == pytest.approx([0.25, 0.5, 0.25])
    store.labels[:] = 0
    alone = LiteTrainer(store, WordVectors(), tmp_path, LiteTraining(steps=1, any_use_only=False))  # type: ignore[arg-type]
    assert alone.chances.tolist() == pytest.approx([1 / 3] * 3)


def test_training_can_start_from_a_trained_head(tmp_path):
    first = trainer(tmp_path / "first", steps=1)
    first.run()
    first.export(tmp_path / "head.safetensors", {})
    start = {name: value.float() for name, value in load_file(tmp_path / "head.safetensors").items()}
    second = LiteTrainer(store_of_two_organs(), WordVectors(), tmp_path / "second", LiteTraining(steps=1), start)  # type: ignore[arg-type]
    assert all(torch.equal(value, second.head.state_dict()[name]) for name, value in start.items())


def test_the_written_head_holds_the_wanted_share_of_the_one_that_training_went_on_from(tmp_path):
    torch.manual_seed(1)
    start = {name: torch.randn_like(value) for name, value in trainer(tmp_path, steps=1).head.state_dict().items()}
    run = LiteTrainer(
        store_of_two_organs(),
        WordVectors(),  # type: ignore[arg-type]
        tmp_path,
        LiteTraining(steps=1, start_share=0.25),
        start,
    )
    run.mean = {name: value + 1 for name, value in start.items()}
    run.export(tmp_path / "head.safetensors", {})
    for name, value in load_file(tmp_path / "head.safetensors").items():
        assert torch.allclose(value.float(), start[name] + 0.75, atol=5e-3), name


def test_a_second_store_of_pictures_is_read_after_the_first():
    first = store_of_two_organs()
    second = replace(first, coarse=first.coarse[::-1], detail=first.detail[::-1], labels=first.labels[::-1])
    both = joined(first, replace(second, schemes={"head": ("brain",)}))
    assert both.schemes == {"abdomen": ("liver", "spleen"), "head": ("brain",)}
    assert len(both.coarse) == len(both.detail) == len(both.labels) == len(both.pictures) == 6
    for picture, original in zip(both.pictures, (*first.pictures, *second.pictures), strict=True):
        own = first if picture.row < 3 else second
        assert np.array_equal(both.coarse[picture.row], own.coarse[original.row])
        assert np.array_equal(both.detail[picture.row], own.detail[original.row])
        (moved,), (before,) = picture.label_maps, original.label_maps
        assert moved.values == before.values and np.array_equal(both.labels[moved.row], own.labels[before.row])


def test_the_brain_template_becomes_a_case_with_both_tissues(tmp_path, monkeypatch):
    carried = tmp_path / "nilearn" / "datasets" / "data"
    carried.mkdir(parents=True)
    (tmp_path / "nilearn" / "__init__.py").touch()
    maps = {part: np.zeros((5, 7, 6), np.uint8) for part in ("t1", "gm", "wm")}
    maps["t1"][:] = np.arange(6, dtype=np.uint8)
    maps["gm"][1, 2, 3], maps["wm"][1, 2, 3] = 200, 150  # more gray than white
    maps["gm"][2, 2, 3], maps["wm"][2, 2, 3] = 90, 160
    maps["gm"][3, 2, 3], maps["wm"][3, 2, 3] = 100, 90  # neither surely
    for part, voxels in maps.items():
        image = sitk.GetImageFromArray(voxels)
        image.SetOrigin((-3.0, -4.0, 5.0))
        sitk.WriteImage(image, str(carried / FILE.format(part)))
    monkeypatch.syspath_prepend(tmp_path)
    (case,) = read_manifest(write_template_manifest(tmp_path / "out"), "train")
    volume, labels = case.read()
    assert case.any_use and case.labels == {1: "gray matter", 2: "white matter"}
    assert np.array_equal(volume.voxels, maps["t1"]) and tuple(volume.ijk_to_lps[:3, 3]) == (-3.0, -4.0, 5.0)
    assert labels[1, 2, 3] == 1 and labels[2, 2, 3] == 2 and np.count_nonzero(labels) == 2


def test_a_missing_template_names_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "nilearn").mkdir()
    (tmp_path / "nilearn" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match="pip install --no-deps nilearn"):
        write_template_manifest(tmp_path / "out")
