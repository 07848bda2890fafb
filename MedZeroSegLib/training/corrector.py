"""Training of the corrector on stored embeddings, with simulated wrong masks, clicks and strokes."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor

from MedZeroSegLib.evaluation.manifest import read_manifest
from MedZeroSegLib.mask_decoder.corrector import (
    WEIGHTS_FILE,
    WINDOW_SIDES,
    Correction,
    CorrectorNetwork,
    Window,
    anchor_means,
    planes_of,
    where_of,
    window_around,
    window_at,
)
from MedZeroSegLib.presets import load_lite_medsam
from MedZeroSegLib.training.pictures import Picture, PictureStore, encode_pictures, render_pictures
from MedZeroSegLib.training.run import run_training
from MedZeroSegLib.training.schedule import follow, rate_share, set_rate
from MedZeroSegLib.training.simulated_hints import Hints, click, mark, spoil, stroke
from MedZeroSegLib.weights import weights_store
from MedZeroSegLib.writers import replacing

PIXELS_MIN = 24  # of a structure that is worth learning from
NO_HINT, SECOND_LOOK, STROKES, ANCHORS = 0.2, 0.4, 0.2, 0.5  # shares of the samples
HINTS_MAX = 5
SIDE_SHARES = (0.5, 0.25, 0.25)  # of the steps that look at windows of each side
SHIFT_MAX = 12  # pixels of a window's middle
RATE_FLOOR = 0.02  # of the learning rate, at the end


@dataclass(frozen=True)
class CorrectorTraining:
    """Settings of one run; stored with the weights."""

    steps: int = 800
    batch: int = 4
    learning_rate: float = 2e-3
    warm_up: int = 50
    weight_decay: float = 0.01
    average: float = 0.99  # memory of the weights' running mean, which is what ships
    drawn_weight: float = 4.0  # of the pixels near a hint in the cross-entropy
    seed: int = 0


@dataclass(frozen=True)
class Sample:
    """A correction, its embedding [256, 64, 64], what is right, bool [256, 256], and the part that is looked at."""

    correction: Correction
    coarse: np.ndarray
    truth: np.ndarray
    window: Window


def train(
    manifest: Path, output: Path, steps: int, seed: int, weights_folder: Path | None, checkpoint_every: int = 50
) -> Path:
    """Encode the train split into ``output``/pictures, as the lite head's training does and shared with it, train in
    ``output``/corrector, and write ``output``/corrector.safetensors. Sources for non-commercial use aren't learnt from.

    Both stages go on where an earlier run in the same folder stopped; raises InputError or InstallationError.
    """
    cases = [case for case in read_manifest(manifest, "train") if case.any_use]  # the pictures of `train lite`
    folder = output / "pictures"
    store = encode_pictures(cases, load_lite_medsam(weights_store(weights_folder)), folder, seed=0)
    trainer = CorrectorTrainer(store, render_pictures(cases, folder, seed=0), CorrectorTraining(steps, seed=seed))
    run_training(trainer, output / "corrector", checkpoint_every)
    file = output / WEIGHTS_FILE
    trainer.export(file)
    return file


class CorrectorTrainer:
    """Owns the state of one run; driven by `run_training`.

    Parameters
    ----------
    store
        Encoded pictures with their label maps.
    shown
        uint8 [n, 256, 256]: the pictures themselves.
    """

    measured = ("loss",)

    def __init__(self, store: PictureStore, shown: np.ndarray, settings: CorrectorTraining) -> None:
        torch.manual_seed(settings.seed)
        self.store, self.shown, self.settings = store, shown, settings
        self.pictures = [p for p in store.pictures if p.any_use and p.label_maps]
        self.network = CorrectorNetwork().to(memory_format=torch.channels_last)
        self.mean = {name: value.detach().clone() for name, value in self.network.state_dict().items()}
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), settings.learning_rate, betas=(0.9, 0.98), weight_decay=settings.weight_decay
        )
        self.rng = np.random.default_rng(settings.seed)
        self.siblings: dict[str, list[Picture]] = defaultdict(list)
        sources: dict[str, int] = defaultdict(int)
        for picture in self.pictures:
            self.siblings[picture.case_id].append(picture)
            sources[picture.source] += 1
        weights = np.array([sources[p.source] ** -0.5 for p in self.pictures])
        self.chances = weights / weights.sum()
        self.step, self.steps = 0, settings.steps
        self.made_with = {**asdict(settings), "pictures": len(self.pictures)}

    def export(self, file: Path) -> None:
        """The averaged weights in float16, written atomically."""
        sources = sorted({picture.source for picture in self.pictures})
        card = {**asdict(self.settings), "pictures": len(self.pictures), "sources": sources}
        weights = {name: value.half().contiguous() for name, value in self.mean.items()}
        with replacing(file) as handle:
            handle.write(save(weights, {"medzeroseg": json.dumps(card)}))

    def train_step(self) -> dict[str, float]:
        settings = self.settings
        share = rate_share(self.step, settings.steps, settings.warm_up, RATE_FLOOR)
        set_rate(self.optimizer, settings.learning_rate * share)
        side = int(self.rng.choice(WINDOW_SIDES, p=SIDE_SHARES))
        samples = [self._sample(side) for _ in range(settings.batch)]
        logits = self.network(*_inputs(samples))
        loss = _loss(logits, samples, settings.drawn_weight)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        follow(self.mean, self.network.state_dict(), settings.average, self.step)
        return {"loss": loss.item()}

    def state_dict(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "mean": self.mean,
            "optimizer": self.optimizer.state_dict(),
            "rng": json.dumps(self.rng.bit_generator.state),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.mean = state["mean"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.rng.bit_generator.state = json.loads(state["rng"])

    def _sample(self, side: int) -> Sample:
        """A sample that fits into a window of this side."""
        while True:
            sample = self._any_sample(side)
            if sample.window.side == side:
                return sample

    def _any_sample(self, side: int) -> Sample:
        rng = self.rng
        picture = self.pictures[rng.choice(len(self.pictures), p=self.chances)]
        marked = self._structure(picture)
        while marked is None or window_around(marked[1]).side > side:
            picture = self.pictures[rng.choice(len(self.pictures), p=self.chances)]
            marked = self._structure(picture)
        name, truth, others = marked
        anchors = self._anchors(picture, name) if rng.random() < ANCHORS else None
        coarse = self._coarse(picture)
        mask, hints = spoil(truth, others, rng), Hints(np.zeros_like(truth), np.zeros_like(truth))

        def sample() -> Sample:
            shown = self.shown[picture.row]
            correction = Correction(shown, mask, hints.include, hints.exclude, anchors)
            return Sample(correction, coarse, truth, self._window(truth, mask, side))

        if rng.random() < NO_HINT and mask.any():
            return sample()
        for _ in range(int(rng.integers(1, HINTS_MAX + 1))):
            if rng.random() < STROKES:
                hints = stroke(mask, truth, hints, rng)
            elif (found := click(mask, truth, rng)) is not None:
                hints = mark(hints, *found)
            if rng.random() < SECOND_LOOK:  # else what was clicked counts as corrected for the next click
                now = sample()
                with torch.inference_mode():
                    mask = mask.copy()
                    now.window.of(mask)[:] = self.network(*_inputs([now]))[0].numpy() > 0
            mask = (mask | hints.include) & ~hints.exclude
        return sample()

    def _window(self, truth: np.ndarray, mask: np.ndarray, side: int) -> Window:
        least = window_around(truth | mask)
        if least.side > side:
            return least
        row, column = (least.row + least.side // 2, least.column + least.side // 2)
        shift = self.rng.integers(-SHIFT_MAX, SHIFT_MAX + 1, 2)
        return window_at(row + int(shift[0]), column + int(shift[1]), side)

    def _structure(self, picture: Picture) -> tuple[str, np.ndarray, np.ndarray] | None:
        """A structure of the picture: its name, its pixels and those of the others; None where nothing is marked."""
        rng = self.rng
        label_map = picture.label_maps[rng.integers(len(picture.label_maps))]
        labels = self.store.labels[label_map.row]
        sizes = np.bincount(labels.ravel(), minlength=256)
        values = [value for value in label_map.values if sizes[value] >= PIXELS_MIN]
        if not values:
            return None
        value = values[rng.integers(len(values))]
        if rng.random() < 0.12:
            return "everything marked", labels > 0, labels > 255
        return label_map.values[value], labels == value, (labels > 0) & (labels != value)

    def _anchors(self, picture: Picture, name: str) -> np.ndarray | None:
        """Means of the structure in another picture of the same image, a slice or a copy."""
        siblings = [other for other in self.siblings[picture.case_id] if other.row != picture.row]
        if not siblings:
            return None
        other = siblings[self.rng.integers(len(siblings))]
        for label_map in other.label_maps:
            labels = self.store.labels[label_map.row]
            wanted = [value for value, label in label_map.values.items() if label == name]
            mask = np.isin(labels, wanted) if wanted else np.zeros_like(labels, bool)
            if mask.sum() >= PIXELS_MIN:
                return anchor_means(self._coarse(other), mask)
        return None

    def _coarse(self, picture: Picture) -> np.ndarray:
        return np.asarray(self.store.coarse[picture.row], np.float32)


def _inputs(samples: Sequence[Sample]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    coarse = torch.from_numpy(np.stack([s.window.of(s.coarse) for s in samples]))
    planes = torch.from_numpy(np.stack([s.window.of(planes_of(s.correction)) for s in samples]))
    where = torch.from_numpy(np.stack([s.window.of(where_of(s.correction)) for s in samples]))
    none = np.zeros((2, coarse.shape[1]), np.float32)
    anchors = [none if s.correction.anchors is None else s.correction.anchors for s in samples]
    last = torch.channels_last
    return (
        coarse.contiguous(memory_format=last),
        planes.contiguous(memory_format=last),
        where,
        torch.from_numpy(np.stack(anchors)),
    )


def _loss(logits: Tensor, samples: Sequence[Sample], drawn_weight: float) -> Tensor:
    """Cross-entropy, heavier near hints and near the structure, and Dice."""
    truth = torch.from_numpy(np.stack([s.window.of(s.truth) for s in samples])).float()
    drawn = torch.from_numpy(
        np.stack([s.window.of(s.correction.include | s.correction.exclude) for s in samples])
    ).float()
    weight = 0.4 + 1.6 * _around(truth, 15) + drawn_weight * _around(drawn, 3)
    entropy = (F.binary_cross_entropy_with_logits(logits, truth, reduction="none") * weight).mean()
    shares = torch.sigmoid(logits)
    dice = 1 - (2 * (shares * truth).sum((1, 2)) + 1) / (shares.sum((1, 2)) + truth.sum((1, 2)) + 1)
    return entropy + dice.mean()


def _around(marked: Tensor, cells: int) -> Tensor:
    """What is marked, grown by half of ``cells`` cells of four pixels; [n, s, s]."""
    grown = F.max_pool2d(F.max_pool2d(marked[:, None], 4), cells, 1, cells // 2)
    return F.interpolate(grown, scale_factor=4.0)[:, 0]
