"""Weak supervision: a student learns from the masks that a preset drew of a cohort, weighted by how sure they are.

No expert's mask is read. Where a structure's mask wasn't used, its voxels may be anywhere in the background.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor

from MedZeroSegLib.device import choose_device
from MedZeroSegLib.errors import InputError
from MedZeroSegLib.evaluation.tiers import PSEUDO
from MedZeroSegLib.text_image.student import student_card
from MedZeroSegLib.text_image.student_network import (
    PLANE_RATIO,
    Architecture,
    architecture_for,
    build_network,
    normalized,
)
from MedZeroSegLib.trained_preset import STUDENT, write_trained_preset
from MedZeroSegLib.training.nnunet_raw import write_nnunet_raw
from MedZeroSegLib.training.pseudo_labels import PseudoLabels, read_pseudo_labels, store_cases
from MedZeroSegLib.training.run import run_training
from MedZeroSegLib.training.schedule import follow, rate_share, set_rate
from MedZeroSegLib.training.stored_cases import StoredCase
from MedZeroSegLib.training.variation import IGNORED, vary

CASES_FOLDER, NNUNET_FOLDER = "cases", "nnUNet_raw"
WEIGHT_MIN = 0.05  # of a slice, however doubtful
NOTE = (
    "This is a student of {teacher}: it learnt from masks that {teacher} drew and no expert has checked. For research; "
    "look at every result closely."
)


@dataclass(frozen=True)
class WeakTraining:
    """Settings of one run; stored with the weights."""

    steps: int = 600
    batch: int = 4
    keep: float = 0.7
    dimension: int = 0  # 2, 3, or 0: by the spacing
    learning_rate: float = 1e-3
    warm_up: int = 40
    weight_decay: float = 3e-5
    average: float = 0.99  # memory of the weights' running mean, which is what is kept
    seed: int = 0


def train_weak(
    cohort: Path,
    output: Path,
    settings: WeakTraining,
    checkpoint_every: int,
    device: str,
    tell: Callable[[str], None],
) -> Path:
    """Choose masks, store what they show, train, and write a preset into ``output``; goes on where it was stopped.

    Returns
    -------
    Path
        ``output``, which ``--preset`` takes; ``output``/nnUNet_raw holds the masks for nnU-Net.

    Raises
    ------
    InputError, InstallationError
        When the cohort has nothing to learn from, or the folder holds another run.
    """
    check_settings(settings)
    labels = read_pseudo_labels(cohort, settings.keep, tell)
    cases = store_cases(labels, output / CASES_FOLDER, tell)
    trainer = WeakTrainer(cases, labels.structures, settings, labels.teacher, device)
    tell(f"Learning {', '.join(labels.structures)} from {len(cases)} cases in {trainer.architecture.dimension}D.")
    run_training(trainer, output, checkpoint_every)
    trainer.export(output, labels)
    write_nnunet_raw(labels, output / NNUNET_FOLDER, tell)
    return output


def check_settings(settings: WeakTraining) -> None:
    """Raises InputError for numbers that no training can have."""
    if settings.steps < 1 or settings.batch < 1:
        raise InputError("A training needs at least one step and a batch of one; give larger numbers.")
    if settings.dimension not in (0, 2, 3):
        raise InputError(f"A student looks at 2 or 3 dimensions, not at {settings.dimension}; give --dimension 2 or 3.")


class WeakTrainer:
    """Owns the state of one run. Each step's samples follow from the seed and the step's number alone."""

    measured = ("cross_entropy", "dice_loss")

    def __init__(
        self,
        cases: Sequence[StoredCase],
        structures: Sequence[str],
        settings: WeakTraining,
        teacher: Mapping[str, Any],
        device: str = "cpu",
    ) -> None:
        torch.manual_seed(settings.seed)
        self.cases, self.structures, self.settings = list(cases), tuple(structures), settings
        self.device = torch.device(choose_device(device)[0])
        self.architecture = chosen_architecture(self.cases, len(self.structures), settings.dimension)
        self.network = build_network(self.architecture).to(self.device)
        self.mean = {name: value.detach().clone() for name, value in self.network.state_dict().items()}
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.step, self.steps = 0, settings.steps
        self.made_with = {
            **asdict(settings),
            "structures": list(self.structures),
            "architecture": asdict(self.architecture),
            "cases": [case.plan for case in self.cases],
            "teacher": dict(teacher),
        }

    def train_step(self) -> dict[str, float]:
        share = rate_share(self.step, self.steps, self.settings.warm_up)
        set_rate(self.optimizer, self.settings.learning_rate * share)
        rng = np.random.default_rng((self.settings.seed, self.step))
        samples = [self._sample(rng) for _ in range(self.settings.batch)]
        pictures, labels, known, weights = (torch.stack(part).to(self.device) for part in zip(*samples, strict=True))
        logits = self.network(normalized(pictures))
        cross_entropy, dice = weak_losses(logits, labels.long(), known, weights)
        loss = cross_entropy + dice
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 10.0)
        self.optimizer.step()
        self.step += 1
        follow(self.mean, self.network.state_dict(), self.settings.average, self.step)
        return {"cross_entropy": cross_entropy.item(), "dice_loss": dice.item()}

    def state_dict(self) -> dict[str, Any]:
        return {"network": self.network.state_dict(), "mean": self.mean, "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.mean = {name: value.to(self.device) for name, value in state["mean"].items()}
        self.optimizer.load_state_dict(state["optimizer"])

    def export(self, folder: Path, labels: PseudoLabels) -> None:
        """The averaged weights with their card, as a preset."""
        weights = save({name: value.cpu().contiguous() for name, value in self.mean.items()})
        masks = Counter(name for case in labels.cases for name in case.trust)
        seen = {f"{PSEUDO}{labels.teacher['preset']}": sum(len(case) for case in self.cases)}
        card = {
            **student_card(self.architecture, self.structures, {**dict.fromkeys(labels.teacher["sources"], 0), **seen}),
            "note": NOTE.format(teacher=labels.teacher["preset"]),
            "licence": "not stated; that of the images and of the teacher's weights",
            "teacher": labels.teacher,
            "masks": {name: masks[name] for name in self.structures},
            "training": asdict(self.settings),
        }
        write_trained_preset(folder, STUDENT, weights, card)

    def _sample(self, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One varied piece of a case: picture [1, (d,) h, w], labels [(d,) h, w], known [classes], weight."""
        case = self.cases[rng.integers(len(self.cases))]
        flat = self.architecture.dimension == 2
        *through, rows, columns = self.architecture.patch
        depth = through[0] if through else 1
        start = int(rng.integers(max(1, len(case) - depth + 1)))
        stop = min(len(case), start + depth)
        shown = torch.from_numpy(case.rows("pictures", start, stop)).float() / 255
        labels = torch.from_numpy(case.rows("labels", start, stop))
        picture, marks = vary(shown, labels, (rows, columns), rng)
        if not flat:
            missing = depth - len(picture)
            picture = torch.cat((picture, picture[-1:].expand(missing, -1, -1)))
            marks = torch.cat((marks, torch.full_like(marks[-1:], IGNORED).expand(missing, -1, -1)))
        trust = case.facts["trust"]
        known = torch.tensor([name in trust for name in self.structures])
        sure = np.mean([trust[name] for name in self.structures if name in trust])
        doubt = float(case.rows("doubt", start, stop).mean())
        weight = torch.tensor(max(WEIGHT_MIN, float(sure) * (1 - doubt)), dtype=torch.float32)
        if flat:
            return picture, marks[0], known, weight
        return picture[None], marks, known, weight


def chosen_architecture(cases: Sequence[StoredCase], classes: int, dimension: int) -> Architecture:
    """2D where most images are pictures or their slices lie far apart, else 3D; or what was asked for."""
    flat = [case.facts["dimension"] == 2 or case.facts["spacing_ratio"] > PLANE_RATIO for case in cases]
    chosen = dimension or (2 if np.mean(flat) >= 0.5 else 3)
    ratio = float(np.median([case.facts["distance_mm"] / case.facts["pixel_mm"] for case in cases]))
    return architecture_for(classes, chosen, ratio)


def weak_losses(logits: Tensor, labels: Tensor, known: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy and Dice loss, weighted by how sure the labels are.

    Parameters
    ----------
    logits
        [n, 1 + classes, ...], the background first.
    labels
        int64 [n, ...]: 0 background, 1.. classes, ``IGNORED``.
    known
        bool [n, classes]: classes that are marked in the sample. The others may lie in its background, whose
        probability theirs is added to (Fang and Yan, IEEE TMI 39:3619, 2020).
    weights
        [n] in 0..1.
    """
    count, classes = logits.shape[0], logits.shape[1]
    flat, target = logits.flatten(2), labels.flatten(1)
    counted = (target != IGNORED).float()
    target = target.masked_fill(target == IGNORED, 0)
    hidden = torch.cat((known.new_zeros(count, 1), ~known), 1)[:, :, None]
    behind = flat.masked_fill(~hidden, -torch.inf)
    background = torch.logsumexp(torch.cat((flat[:, :1], behind), 1), 1, keepdim=True)
    merged = torch.cat((background, flat[:, 1:].masked_fill(hidden[:, 1:], -torch.inf)), 1)
    log_shares = torch.log_softmax(merged, 1)
    losses = -log_shares.gather(1, target[:, None])[:, 0] * counted
    sizes = counted.sum(1).clamp_min(1)
    cross_entropy = (losses.sum(1) / sizes * weights).sum() / weights.sum()
    shares = log_shares[:, 1:].exp() * counted[:, None]
    marks = (F.one_hot(target, classes).transpose(1, 2)[:, 1:] * counted[:, None]).float()
    weighted = known[:, :, None] * weights[:, None, None]
    overlap, total = (shares * marks * weighted).sum((0, 2)), ((shares + marks) * weighted).sum((0, 2))
    present = (marks * weighted).sum((0, 2)) > 0
    if not present.any():
        return cross_entropy, logits.new_zeros(())
    return cross_entropy, (1 - (2 * overlap + 1) / (total + 1))[present].mean()
