"""Fine-tuning of a CLIP model on image-caption pairs: CEHNC and its family, large batches on small cards, many cards.

The result is one safetensors file that the preset `base` finds in its weights folder (variant `base/fine-tuned`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from MedZeroSegLib import __version__
from MedZeroSegLib.device import choose_device
from MedZeroSegLib.errors import InputError, MemoryShortage
from MedZeroSegLib.text_image.clip_model import ClipModel
from MedZeroSegLib.trained_weights import FINE_TUNED_CLIP
from MedZeroSegLib.training.cehnc import DifficultyController, cehnc_of_cosines, context_weights, contrast_named
from MedZeroSegLib.training.clip_retrieval import Measured, cut_captions
from MedZeroSegLib.training.clip_weights import (
    add_adapters,
    architecture_of,
    card_text,
    choose_trainable,
    open_clip_model,
    optimiser_of,
    trainable,
    write_clip,
)
from MedZeroSegLib.training.gradient_cache import cached_backward
from MedZeroSegLib.training.pair_pictures import Batch, Batches
from MedZeroSegLib.training.pairs import Pair, Pairs, same_context, twins_of
from MedZeroSegLib.training.processes import ALONE, Processes, started_processes
from MedZeroSegLib.training.run import run_training
from MedZeroSegLib.training.schedule import follow, rate_share
from MedZeroSegLib.weights import weights_store
from MedZeroSegLib.writers import replacing

WARM_UP_SHARE = 0.1  # of the steps, at most
PRECISIONS = ("auto", "bf16", "fp32")


@dataclass(frozen=True)
class ClipTraining:
    """Settings that the result depends on; stored with the weights."""

    loss: str = "cehnc"
    steps: int = 1000
    batch: int = 256  # over all processes
    lora: int = 0  # rank of the adapters; 0 trains the weights themselves
    precision: str = "auto"  # bf16 on graphics cards of NVIDIA, else fp32
    temperature: float | None = None  # τ = 1/γ; the loss's own without it
    learning_rate: float = 1e-6  # of the towers
    warm_up: int = 500
    weight_decay: float = 0.05
    average: float = 0.999  # memory of the weights' running mean, which is what is kept
    seed: int = 0


@dataclass(frozen=True)
class Course:
    """How a run is computed, which changes its result by no more than rounding (and the pattern of dropout).

    Attributes
    ----------
    chunk
        Pairs that are encoded with gradients at a time.
    threads
        Threads that read pictures.
    every
        Steps between two checkpoints.
    """

    chunk: int = 32
    threads: int = 2
    every: int = 50


def train_clip(
    pairs: Pairs,
    output: Path,
    model: str,
    settings: ClipTraining,
    epochs: float | None = None,
    course: Course = Course(),
    device: str = "auto",
    weights_folder: Path | None = None,
    tell: Callable[[str], None] = print,
) -> Path:
    """Fine-tune a model on the pairs' split `train`, measure retrieval on `test` or `val`, and write it.

    Goes on where an earlier run in the same folder stopped. ``epochs`` wins over the settings' steps.

    Raises
    ------
    InputError, InstallationError
        With one sentence, before the training where that is possible.
    """
    chosen, passed_over = choose_device(device)
    contrast_named(settings.loss)
    with started_processes(chosen) as (processes, place):
        say = tell if processes.leading else _nothing
        store = weights_store(weights_folder)
        clip = open_clip_model(model, store, place)
        shown = pairs.of("train")
        settings = _settled(settings, len(shown), epochs, processes.count, place)
        for sentence in (*passed_over, *pairs.remarks, *cut_captions(clip, pairs.all)):
            say(sentence)
        trainer = ClipTrainer(clip, shown, pairs.digest, output, settings, course, processes)
        measured = Measured.of(clip, pairs, output, course.threads, processes)
        try:
            run_training(trainer, output, course.every, processes.leading)
        except torch.OutOfMemoryError as problem:
            raise MemoryShortage(
                f"The memory of {place} ran out; give a --chunk below {course.chunk}, or --lora 16. The run goes on "
                "where it stopped."
            ) from problem
        if processes.leading:
            trainer.take_mean()
            report = measured.report()
            licence = store.catalogue[model].licence if model in store.catalogue else "not stated"
            card = {
                "licence": f"{licence} ({Path(model).name}), and that of the image-caption pairs",
                "started_from": {"name": Path(model).name, "digest": trainer.made_with["start"]},
                "training": asdict(settings),
                "pairs": {"digest": pairs.digest, "train": len(shown), measured.split: len(measured.pairs)},
                "retrieval": report,
                "version": __version__,
            }
            write_clip(clip, clip.model.state_dict(), output / f"{FINE_TUNED_CLIP}.safetensors", card)
            with replacing(output / f"{FINE_TUNED_CLIP}.md") as handle:
                handle.write(card_text(card, output).encode())
            say(report)
        processes.wait()
    return output / f"{FINE_TUNED_CLIP}.safetensors"


class ClipTrainer:
    """Owns the state of one run.

    Parameters
    ----------
    pairs
        The pairs to train on.
    digest
        Names the pairs.
    folder
        Where the frozen text tower's vectors are kept.
    """

    measured = ("loss", "lambda1", "lambda2", "positive", "negative")

    def __init__(
        self,
        clip: ClipModel,
        pairs: Sequence[Pair],
        digest: str,
        folder: Path,
        settings: ClipTraining,
        course: Course = Course(),
        processes: Processes = ALONE,
    ) -> None:
        self.clip, self.pairs, self.settings, self.course, self.processes = clip, pairs, settings, course, processes
        self.contrast = contrast_named(settings.loss, settings.temperature)
        start = _digest_of(clip.model)
        self.made_with: dict[str, Any] = {
            **asdict(settings),
            "architecture": architecture_of(clip.model),
            "start": start,
            "pairs": digest,
        }
        self.meanings = self._meanings(folder, f"{start}-{digest}") if self.contrast.context else None
        choose_trainable(clip.model)
        torch.manual_seed(settings.seed)
        self.adapted = add_adapters(clip.model, settings.lora) if settings.lora else None
        self.weights: dict[str, nn.Parameter] = trainable(clip.model)
        self.mean = {name: value.detach().clone() for name, value in self.weights.items()}
        self.optimizer = optimiser_of(clip.model, settings.learning_rate, settings.weight_decay)
        self.difficulty = DifficultyController(self.contrast.hardness)
        self.batches = Batches(
            clip, pairs, settings.batch, settings.seed, course.threads, processes.rank, processes.count
        )
        self.step, self.steps = 0, settings.steps
        self._prepared: Iterator[Batch] | None = None

    def train_step(self) -> dict[str, float]:
        if self._prepared is None:
            self._prepared = self.batches.after(self.step, self.steps)
            self.clip.model.train()
        share = rate_share(self.step, self.steps, self.settings.warm_up)
        for group in self.optimizer.param_groups:
            group["lr"] = group["full_lr"] * share
        self.optimizer.zero_grad(set_to_none=True)
        found = self.accumulate(next(self._prepared))
        torch.nn.utils.clip_grad_norm_(self.weights.values(), 1.0)
        self.optimizer.step()
        self.step += 1
        follow(self.mean, self.weights, self.settings.average, self.step)
        return found

    def accumulate(self, batch: Batch) -> dict[str, float]:
        """Add the gradients of one batch to the weights, the same in every process; what the log tells of it."""
        pieces = -(-len(batch.pictures) // self.course.chunk)
        found: dict[str, float] = {}

        def encode(piece: int) -> tuple[Tensor, Tensor]:
            rows = slice(piece * self.course.chunk, (piece + 1) * self.course.chunk)
            # Dropout by step and piece alone: a second pass and a resumed run draw the same.
            place = (self.settings.seed, self.step, self.processes.rank * pieces + piece)
            torch.manual_seed(int(np.random.default_rng(place).integers(2**62)))
            with torch.autocast(self.clip.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16"):
                images = self.clip.model.encode_image(batch.pictures[rows].to(self.clip.device))
                texts = self.clip.model.encode_text(batch.ids[rows].to(self.clip.device))
            return F.normalize(images.float(), dim=-1), F.normalize(texts.float(), dim=-1)

        def loss_of(images: Tensor, texts: Tensor) -> Tensor:
            cosine = self.processes.joined(images) @ self.processes.joined(texts).T
            loss, told = self._loss(cosine, batch.rows)
            found.update(told)
            return loss

        cached_backward(encode, pieces, loss_of)
        self.processes.sum_gradients(self.weights.values())
        return found

    def take_mean(self) -> None:
        """The averaged weights become the model's, with the adapters in them; the training is over then."""
        with torch.no_grad():
            for name, value in self.weights.items():
                value.copy_(self.mean[name])
        if self.adapted is not None:
            self.adapted.merge_and_unload()
        self.clip.model.eval()

    def state_dict(self) -> dict[str, Any]:
        return {
            "weights": {name: value.detach() for name, value in self.weights.items()},
            "mean": self.mean,
            "optimizer": self.optimizer.state_dict(),
            "difficulty": self.difficulty.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if set(state["weights"]) != set(self.weights):
            raise KeyError("other weights")
        with torch.no_grad():
            for name, value in self.weights.items():
                value.copy_(state["weights"][name])
                self.mean[name].copy_(state["mean"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.difficulty.load_state_dict(state["difficulty"])

    def _loss(self, cosine: Tensor, rows: np.ndarray) -> tuple[Tensor, dict[str, float]]:
        pairs = [self.pairs[row] for row in rows]
        twins = torch.from_numpy(twins_of(pairs)).to(cosine.device)
        context = None
        if self.meanings is not None:
            vectors = self.meanings[[pair.caption_number for pair in pairs]].to(cosine.device).float()
            context = context_weights(vectors, torch.from_numpy(same_context(pairs)).to(cosine.device))
        if self.contrast.dynamic:
            self.difficulty.update(cosine.detach(), self.contrast.settings.power, self.step / self.steps, twins)
        first, second = self.difficulty.lambdas
        loss = cehnc_of_cosines(cosine, (first, second), self.contrast.settings, context, twins)
        away = cosine.detach()[~twins]
        told = {
            "loss": loss.item(),
            "lambda1": first,
            "lambda2": second,
            "positive": cosine.detach().diagonal().mean().item(),
            "negative": away.mean().item() if len(away) else 0.0,
        }
        return loss, told

    def _meanings(self, folder: Path, key: str) -> Tensor:
        """Vectors of all captions by their number, float16 [c, e], from the text tower before it is trained."""
        file = folder / f"captions-{hashlib.sha256(key.encode()).hexdigest()[:12]}.npy"
        if self.processes.leading and not file.is_file():
            texts = {pair.caption_number: pair.caption for pair in self.pairs}
            vectors = np.zeros((max(texts) + 1, self.clip.embedding), np.float16)
            vectors[list(texts)] = self.clip.encode(list(texts.values())).half().cpu().numpy()
            with replacing(file) as handle:
                np.save(handle, vectors, allow_pickle=False)
        self.processes.wait()
        return torch.from_numpy(np.load(file, allow_pickle=False))


def _settled(settings: ClipTraining, pairs: int, epochs: float | None, processes: int, device: str) -> ClipTraining:
    """The settings with what follows from the pairs and the machine; raises InputError for what can't be done."""
    if settings.batch < 2 or settings.batch % processes:
        raise InputError(
            f"A batch of {settings.batch} can't be shared by {processes} process{'es' if processes > 1 else ''}; give "
            "a multiple of their number with --batch, 2 or more."
        )
    if pairs < settings.batch:
        raise InputError(f"There are {pairs} pairs to train on and a batch has {settings.batch}; give a lower --batch.")
    if settings.precision not in PRECISIONS:
        raise InputError(f"The precision '{settings.precision}' is unknown; use one of {', '.join(PRECISIONS)}.")
    steps = settings.steps if epochs is None else max(1, round(epochs * (pairs // settings.batch)))
    precision = settings.precision
    if precision == "auto":
        precision = "bf16" if device.startswith("cuda") else "fp32"
    warm_up = min(settings.warm_up, int(WARM_UP_SHARE * steps))
    return replace(settings, steps=steps, warm_up=warm_up, precision=precision)


def _digest_of(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _nothing(_: str) -> None:
    """What the other processes say."""
