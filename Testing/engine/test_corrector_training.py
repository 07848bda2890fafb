"""The corrector's training: its steps lower the loss, and a run that was killed goes on to the same weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from killed_training import kill_after_checkpoint, one_thread
from safetensors import safe_open
from safetensors.torch import load_file

from MedZeroSegLib.errors import InputError
from MedZeroSegLib.mask_decoder.corrector import CorrectorNetwork
from MedZeroSegLib.training.corrector import CorrectorTrainer, CorrectorTraining
from MedZeroSegLib.training.pictures import LabelMap, Picture, PictureStore
from MedZeroSegLib.training.run import run_training

ROOT = Path(__file__).parents[2]
COUNT = 4
SETTINGS = CorrectorTraining(steps=6, batch=1, warm_up=2)
EVERY = 2


def pictures() -> tuple[PictureStore, np.ndarray]:
    """Discs on a dark ground, in embeddings that tell the two apart; the first two are slices of one image."""
    rng = np.random.default_rng(0)
    rows, columns = np.indices((256, 256))
    shown, labels, coarse = (np.zeros((COUNT, *shape), kind) for shape, kind in (
        ((256, 256), np.uint8), ((256, 256), np.uint8), ((256, 64, 64), np.float32)
    ))  # fmt: skip
    for n in range(COUNT):
        disc = (rows - 100 - 10 * n) ** 2 + (columns - 130 + 8 * n) ** 2 < (18 + n) ** 2
        labels[n], shown[n] = disc, 60 + 120 * disc + rng.integers(0, 20, disc.shape)
        coarse[n] = rng.normal(0, 0.1, (256, 64, 64))
        coarse[n, 0] += disc[2::4, 2::4]
    listed = [
        Picture(n, f"case {max(1, n)}", f"p{n}", "phantoms", "CT", True, 0, (LabelMap(n, "all", {1: "liver"}),))
        for n in range(COUNT)
    ]
    schemes = {"all": ("liver",)}
    return PictureStore(tuple(listed), schemes, coarse, np.zeros((COUNT, 1, 1, 1), np.float32), labels), shown


def trained(folder: Path, settings: CorrectorTraining = SETTINGS) -> Path:
    trainer = CorrectorTrainer(*pictures(), settings)
    run_training(trainer, folder, EVERY)
    file = folder / "corrector.safetensors"
    trainer.export(file)
    return file


def losses(folder: Path) -> list[str]:
    return [line.rpartition(",")[0] for line in (folder / "log.csv").read_text().splitlines()]


def test_weights_fit_the_network_and_say_what_they_were_made_of(tmp_path):
    file = trained(tmp_path)
    CorrectorNetwork().load_state_dict({name: value.float() for name, value in load_file(file).items()})
    with safe_open(file, "pt") as opened:
        assert '"sources": ["phantoms"]' in opened.metadata()["medzeroseg"]
    assert len(losses(tmp_path)) == 1 + SETTINGS.steps // EVERY


def test_training_lowers_the_loss(tmp_path):
    trained(tmp_path, CorrectorTraining(steps=24, batch=1, warm_up=2))
    found = [float(line.split(",")[1]) for line in losses(tmp_path)[1:]]
    assert np.mean(found[-3:]) < 0.8 * np.mean(found[:2])


@one_thread()
def test_a_run_that_was_killed_ends_with_the_same_log_and_weights(tmp_path):
    through, stopped = tmp_path / "through", tmp_path / "stopped"
    code = f"""
from pathlib import Path
from test_corrector_training import trained
trained(Path({str(stopped)!r}))
"""
    kill_after_checkpoint(code, stopped)
    assert not (stopped / "corrector.safetensors").exists()
    one, two = (load_file(trained(folder)) for folder in (through, stopped))
    assert losses(through) == losses(stopped)
    assert all(torch.equal(value, two[name]) for name, value in one.items())


def test_checkpoint_of_another_run_is_refused(tmp_path):
    trained(tmp_path)
    with pytest.raises(InputError, match=r"begun with seed 0 and not 1; give another output folder"):
        trained(tmp_path, CorrectorTraining(steps=6, batch=1, warm_up=2, seed=1))
