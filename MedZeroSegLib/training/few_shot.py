"""A user's own names learnt from a few labelled slices: the shipped head stays, an adapter beside it learns.

Each slice is shown as it is and in varied copies; all are encoded once.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import track
from safetensors.torch import save
from torch import Tensor

from MedZeroSegLib.canvas import fit_canvas
from MedZeroSegLib.errors import InputError
from MedZeroSegLib.intensity import picture
from MedZeroSegLib.mask_decoder.lite_medsam import (
    DETAIL_CHANNELS,
    DETAIL_SIZE,
    EMBEDDING_CHANNELS,
    EMBEDDING_SIZE,
    IMAGE_SIZE,
    LiteMedSamModel,
)
from MedZeroSegLib.presets import head_file, load_lite_medsam
from MedZeroSegLib.text_image.dpfem import RegionTextHead
from MedZeroSegLib.text_image.lite import read_head
from MedZeroSegLib.text_image.own_names import OwnNamesAdapter
from MedZeroSegLib.trained_preset import EXTENDED, write_trained_preset
from MedZeroSegLib.training.examples import Example, Examples, is_hollow, read_examples
from MedZeroSegLib.training.run import run_training
from MedZeroSegLib.training.schedule import follow, rate_share, set_rate
from MedZeroSegLib.training.stored_arrays import StoredArrays
from MedZeroSegLib.training.variation import IGNORED, vary
from MedZeroSegLib.weights import weights_store
from MedZeroSegLib.weights_catalogue import sha256_of

PICTURES_FOLDER = "pictures"
PICTURES_WANTED, COPIES_MIN, COPIES_MAX = 60, 1, 12  # of all slices together; of each slice
NOTE = "{names} learnt from {slices} labelled slices of a user alone: for research, look at every result closely."
HOLLOW_SHARE = 0.5  # of the slices, from which a name is a ring


@dataclass(frozen=True)
class FewShotTraining:
    """Settings of one run; stored with the weights."""

    steps: int = 120
    batch: int = 4
    learning_rate: float = 3e-3
    warm_up: int = 10
    weight_decay: float = 0.05
    average: float = 0.97  # memory of the weights' running mean, which is what is kept
    seed: int = 0


@dataclass(frozen=True)
class ExamplePictures:
    """Encoded pictures: float16 coarse [n, 256, 64, 64] and detail [n, 128, 128, 128]; labels uint8 [n, 256, 256], 1..
    in the order of all names; marked bool [n, k]: the names that a picture's mask marks; slices behind them."""

    coarse: np.ndarray
    detail: np.ndarray
    labels: np.ndarray
    marked: np.ndarray
    slices: int
    hollow: dict[str, bool]


def train_examples(
    file: Path,
    output: Path,
    settings: FewShotTraining,
    weights_folder: Path | None,
    tell: Callable[[str], None],
) -> Path:
    """Learn the names of a CSV file (see `examples.read_examples`) into ``output``, which ``--preset`` takes.

    Raises
    ------
    InputError, InstallationError
        As `train_own_names`.
    """
    head, card = read_head(head_file())
    examples = read_examples(file, card.concepts)
    model = load_lite_medsam(weights_store(weights_folder))
    return train_own_names(examples, output, settings, model, head, sha256_of(head_file()), tell)


def train_own_names(
    examples: Examples,
    output: Path,
    settings: FewShotTraining,
    model: LiteMedSamModel,
    head: RegionTextHead,
    head_sha256: str,
    tell: Callable[[str], None],
) -> Path:
    """Encode the examples, train the adapter and write a preset into ``output``; goes on where it was stopped.

    Raises
    ------
    InputError, InstallationError
        When an example is at fault, or the folder holds another run.
    """
    if settings.steps < 1:
        raise InputError("A training needs at least one step; give a larger number.")
    pictures = encode_examples(examples, model, output / PICTURES_FOLDER, settings.seed)
    tell(f"Learning {', '.join(examples.names)} from {pictures.slices} slices in {len(pictures.labels)} pictures.")
    trainer = OwnNamesTrainer(pictures, examples.names, head, settings, head_sha256)
    run_training(trainer, output, every=25)
    trainer.export(output, examples)
    shutil.rmtree(output / PICTURES_FOLDER, ignore_errors=True)  # as large as many volumes, and nobody needs it again
    return output


def encode_examples(examples: Examples, model: LiteMedSamModel, folder: Path, seed: int) -> ExamplePictures:
    """Show and encode all labelled slices; goes on where an interrupted run stopped."""
    plan = [(example, *_labelled_planes(example, examples.names)) for example in examples.examples]
    count = sum(len(planes) for _, planes, _ in plan)
    copies = int(np.clip(round(PICTURES_WANTED / count), COPIES_MIN, COPIES_MAX))
    total = count * (1 + copies)
    stored = StoredArrays(folder, _digest([(planes, marks) for _, planes, marks in plan], examples.names, seed))
    coarse = stored.array("coarse", np.float16, (total, EMBEDDING_CHANNELS, EMBEDDING_SIZE, EMBEDDING_SIZE))
    detail = stored.array("detail", np.float16, (total, DETAIL_CHANNELS, DETAIL_SIZE, DETAIL_SIZE))
    labels = np.zeros((total, IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    marked = np.zeros((total, len(examples.names)), bool)
    done, row = stored.done, 0
    flat = [(example, *both) for example, planes, many in plan for both in zip(planes, many, strict=True)]
    for number, (example, plane, marks) in enumerate(track(flat, "encoding", disable=done == total)):
        rng = np.random.default_rng((seed, number))
        for copy in range(1 + copies):
            shown, where = plane[None], marks[None]
            if copy:
                shown, where = vary(shown, where, (IMAGE_SIZE, IMAGE_SIZE), rng)
            labels[row] = where[0].numpy()
            marked[row] = [name in example.values.values() for name in examples.names]
            if row >= done:
                embedding = model.embed(shown[None])
                coarse[row] = embedding.coarse[0].half().cpu().numpy()
                detail[row] = embedding.detail[0].half().cpu().numpy()
                stored.mark(row + 1)
            row += 1
    return ExamplePictures(coarse, detail, labels, marked, count, _hollow(labels[:: 1 + copies], examples.names))


class OwnNamesTrainer:
    """Owns the state of one run. Each step's pictures follow from the seed and the step's number alone."""

    measured = ("cross_entropy", "dice_loss")

    def __init__(
        self,
        pictures: ExamplePictures,
        names: Sequence[str],
        head: RegionTextHead,
        settings: FewShotTraining,
        head_sha256: str,
    ) -> None:
        torch.manual_seed(settings.seed)
        self.pictures, self.names, self.settings, self.head_sha256 = pictures, tuple(names), settings, head_sha256
        self.head = head.eval().requires_grad_(False)
        self.adapter = OwnNamesAdapter(len(names))
        self.mean = {name: value.detach().clone() for name, value in self.adapter.state_dict().items()}
        self.optimizer = torch.optim.AdamW(
            self.adapter.parameters(), settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.step, self.steps = 0, settings.steps
        examples = hashlib.sha256(pictures.labels.tobytes()).hexdigest()
        self.made_with = {**asdict(settings), "names": list(names), "head": head_sha256, "examples": examples}
        self._vectors: dict[int, Tensor] = {}

    def train_step(self) -> dict[str, float]:
        share = rate_share(self.step, self.steps, self.settings.warm_up, 0.02)
        set_rate(self.optimizer, self.settings.learning_rate * share)
        rng = np.random.default_rng((self.settings.seed, self.step))
        rows = rng.integers(len(self.pictures.labels), size=self.settings.batch).tolist()
        coarse, detail = (torch.from_numpy(np.stack([part[row] for row in rows])).float() for part in self._arrays)
        pixels = torch.stack([self._pixels_of(row) for row in rows]).float()
        logits = self.adapter(coarse, detail, pixels)
        labels = torch.from_numpy(self.pictures.labels[rows])
        marked = torch.from_numpy(self.pictures.marked[rows])
        cross_entropy, dice = own_losses(logits, labels, marked)
        self.optimizer.zero_grad(set_to_none=True)
        (cross_entropy + dice).backward()
        torch.nn.utils.clip_grad_norm_(self.adapter.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        follow(self.mean, self.adapter.state_dict(), self.settings.average, self.step)
        return {"cross_entropy": cross_entropy.item(), "dice_loss": dice.item()}

    @property
    def _arrays(self) -> tuple[np.ndarray, np.ndarray]:
        return self.pictures.coarse, self.pictures.detail

    @torch.no_grad()
    def _pixels_of(self, row: int) -> Tensor:
        """The shipped head's pixel vectors, float16, made once."""
        if row not in self._vectors:
            coarse, detail = (torch.from_numpy(part[row][None]).float() for part in self._arrays)
            self._vectors[row] = self.head.encode_pixels(coarse, detail)[0].half()
        return self._vectors[row]

    def state_dict(self) -> dict[str, Any]:
        return {"adapter": self.adapter.state_dict(), "mean": self.mean, "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.adapter.load_state_dict(state["adapter"])
        self.mean = state["mean"]
        self.optimizer.load_state_dict(state["optimizer"])

    def export(self, folder: Path, examples: Examples) -> None:
        """The averaged weights with their card, as a preset."""
        hollow, marked = self.pictures.hollow, self.pictures.marked
        rows = [{**examples.rows[name], "encloses": "its hole" if hollow[name] else None} for name in self.names]
        together = {
            name: [other for other in self.names if other != name and _together(marked, self.names, name, other)]
            for name in self.names
        }
        card = {
            "note": NOTE.format(names=", ".join(self.names), slices=self.pictures.slices),
            "licence": "not stated; that of the labelled images, the shipped head being Apache-2.0",
            "head_sha256": self.head_sha256,
            "structures": rows,
            "competitors": together,
            "slices": self.pictures.slices,
            "training": asdict(self.settings),
        }
        write_trained_preset(folder, EXTENDED, save({k: v.contiguous() for k, v in self.mean.items()}), card)


def own_losses(logits: Tensor, labels: Tensor, marked: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy and Dice loss of the names that each picture marks, against the background and one another.

    Parameters
    ----------
    logits
        [n, k, 128, 128] over the background, whose logit is 0.
    labels
        uint8 [n, 256, 256], 1..k, or ``IGNORED``.
    marked
        bool [n, k]; the other names aren't looked at, for they may lie anywhere.
    """
    side = labels.shape[-1] // logits.shape[-1]
    values = torch.arange(1, logits.shape[1] + 1)[None, :, None, None]
    masks = F.avg_pool2d((labels[:, None] == values).float(), side)
    counted = F.avg_pool2d((labels[:, None] != IGNORED).float(), side)
    shown = logits.masked_fill(~marked[:, :, None, None], -30.0)
    log_shares = torch.log_softmax(torch.cat((torch.zeros_like(shown[:, :1]), shown), 1), 1)
    background = (counted - masks.sum(1, keepdim=True)).clamp_min(0)
    losses = -(torch.cat((background, masks), 1) * log_shares).sum(1)
    cross_entropy = losses.sum() / counted.sum().clamp_min(1)
    shares = log_shares[:, 1:].exp() * counted * marked[:, :, None, None]
    overlap, total = (shares * masks).sum((0, 2, 3)), (shares + masks).sum((0, 2, 3))
    present = masks.sum((0, 2, 3)) > 0
    if not present.any():
        return cross_entropy, logits.new_zeros(())
    return cross_entropy, (1 - (2 * overlap + 1) / (total + 1))[present].mean()


def _labelled_planes(example: Example, names: Sequence[str]) -> tuple[list[Tensor], list[Tensor]]:
    """The labelled slices on the canvas: pictures float32 [256, 256] in 0..1, labels uint8 by place in ``names``."""
    volume, labels, frame = example.read()
    numbers = np.array([0, *(names.index(name) + 1 for name in example.values.values())], np.uint8)
    chosen = example.labelled(labels, frame)
    grey = frame.forward(picture(volume))[chosen]
    canvas = fit_canvas(grey.shape[1:], frame.spacing[1:], IMAGE_SIZE)
    marks = canvas.place_labels(numbers[frame.forward(labels)[chosen]])
    return list(canvas.place(grey)[:, 0]), list(torch.from_numpy(marks))


def _hollow(labels: np.ndarray, names: Sequence[str]) -> dict[str, bool]:
    """For each name whether it is a ring in most slices that show it; ``labels`` uint8 [n, 256, 256]."""
    hollow = {}
    for number, name in enumerate(names, 1):
        shown = [is_hollow(plane == number) for plane in labels if (plane == number).any()]
        hollow[name] = bool(shown) and float(np.mean(shown)) >= HOLLOW_SHARE
    return hollow


def _together(marked: np.ndarray, names: tuple[str, ...], one: str, other: str) -> bool:
    return bool((marked[:, names.index(one)] & marked[:, names.index(other)]).any())


def _digest(planes: Sequence[tuple[list[Tensor], list[Tensor]]], names: Sequence[str], seed: int) -> str:
    """Names what a store holds: the same slices, labels, names and seed give the same pictures."""
    digest = hashlib.sha256(json.dumps([list(names), seed, PICTURES_WANTED, COPIES_MIN, COPIES_MAX]).encode())
    for shown, marks in planes:
        for part in (*shown, *marks):
            digest.update(part.contiguous().numpy().tobytes())
    return digest.hexdigest()
