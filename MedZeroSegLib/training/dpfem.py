"""Training of the dual path on the patch features of `base`, without masks: captions, many views, regions, a fair gate.

Zhang, Huang, Li, "MedZeroSeg", PLOS ONE 21(3):e0344978, 2026, has the module; what it learns from is our choice.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor

from MedZeroSegLib import __version__
from MedZeroSegLib.base_preset import ZeroShot, clip_record, dual_path_key, load_clip, load_decoder
from MedZeroSegLib.device import choose_device
from MedZeroSegLib.errors import InputError
from MedZeroSegLib.mask_decoder.sam import SamModel
from MedZeroSegLib.text_image.clip_model import ClipModel
from MedZeroSegLib.text_image.dense_attention import projected
from MedZeroSegLib.text_image.open_clip_dense import COSINE_SCALE
from MedZeroSegLib.text_image.patch_dpfem import PatchDpfem
from MedZeroSegLib.trained_weights import DUAL_PATH
from MedZeroSegLib.training.cehnc import DifficultyController, cehnc_of_cosines, context_weights, contrast_named
from MedZeroSegLib.training.clip_weights import CATALOGUED
from MedZeroSegLib.training.pairs import Pair, Pairs, same_context, twins_of
from MedZeroSegLib.training.patch_features import PatchStore, encode_patches
from MedZeroSegLib.training.run import run_training
from MedZeroSegLib.training.schedule import rate_share, set_rate
from MedZeroSegLib.weights import weights_store
from MedZeroSegLib.writers import replacing

PATCH = 16  # pixels; the module's stem is made for it
APART = 0.2  # least cosine distance of two regions' means
GATE_RANGE = (0.3, 0.7)  # in which a channel's mean gate is left alone
REGION_NUMBERS = 256


@dataclass(frozen=True)
class DpfemTraining:
    """Settings of one run; stored with the weights."""

    steps: int = 20_000
    batch: int = 64
    literal: bool = False
    learning_rate: float = 3e-4
    weight_decay: float = 1e-4
    contrast_weight: float = 1.0
    taught_weight: float = 1.0
    region_weight: float = 0.5
    balance_weight: float = 0.1
    seed: int = 0


def train_dpfem(
    pairs: Pairs,
    output: Path,
    model: str,
    settings: DpfemTraining,
    every: int = 100,
    device: str = "auto",
    weights_folder: Path | None = None,
    tell: Callable[[str], None] = print,
) -> Path:
    """Encode the split `train` into ``output``/features, train, and write the module where `base` finds it.

    Both stages go on where an earlier run in the same folder stopped; raises InputError or InstallationError.
    """
    if model not in CATALOGUED:
        raise InputError(f"The dual path refines the features of {', '.join(CATALOGUED)}, not of '{model}'.")
    place, passed_over = choose_device(device)
    store = weights_store(weights_folder)
    record = clip_record(model, store)
    decoder = load_decoder(ZeroShot.decoder, store, place)
    for sentence in (*passed_over, *pairs.remarks):
        tell(sentence)
    made_for = dual_path_key(ZeroShot(clip=model, literal=settings.literal), record)
    return train_on(pairs, output, load_clip(model, store, place), decoder, made_for, settings, every)


def train_on(
    pairs: Pairs,
    output: Path,
    clip: ClipModel,
    decoder: SamModel,
    made_for: dict[str, Any],
    settings: DpfemTraining,
    every: int = 100,
) -> Path:
    """`train_dpfem` with models that are loaded already; ``made_for`` names what the module belongs to."""
    shown = pairs.of("train")
    if len(shown) < max(2, settings.batch):
        raise InputError(
            f"There are {len(shown)} pairs to train on and a batch has {settings.batch}; give a lower --batch "
            "of 2 or more."
        )
    if clip.tower.picture_size != PATCH * clip.tower.grid:
        raise InputError(f"The dual path is made for patches of {PATCH} pixels, which this model doesn't have.")
    features = encode_patches(shown, clip, decoder, output / "features", str(made_for["clip"]))
    trainer = DpfemTrainer(clip, features, shown, {"pairs": pairs.digest, **made_for}, settings)
    run_training(trainer, output, every)
    card = {
        "licence": "that of the towers and of the image-caption pairs",
        "made_for": made_for,
        "training": asdict(settings),
        "pairs": {"digest": pairs.digest, "train": len(shown)},
        "masks": "none",
        "version": __version__,
    }
    file = output / f"{DUAL_PATH}.safetensors"
    tensors = {name: value.detach().cpu().contiguous() for name, value in trainer.module.state_dict().items()}
    with replacing(file) as handle:
        handle.write(save(tensors, metadata={"medzeroseg": json.dumps(card)}))
    return file


class DpfemTrainer:
    """Owns the state of one run."""

    measured = ("loss", "contrast", "taught", "regions", "balance", "gate", "amount", "lambda1", "lambda2")

    def __init__(
        self,
        clip: ClipModel,
        store: PatchStore,
        pairs: Sequence[Pair],
        made_with: dict[str, Any],
        settings: DpfemTraining,
    ) -> None:
        torch.manual_seed(settings.seed)
        self.clip, self.store, self.pairs, self.settings = clip, store, pairs, settings
        self.module = PatchDpfem(clip.width, clip.embedding, settings.literal).to(clip.device)
        self.texts = clip.encode([pair.caption for pair in pairs]).clone()
        self.contrast = contrast_named("cehnc")
        self.difficulty = DifficultyController(self.contrast.hardness)
        self.optimizer = torch.optim.AdamW(
            self.module.parameters(), settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.made_with = {**made_with, **asdict(settings)}
        self.step, self.steps = 0, settings.steps

    def train_step(self) -> dict[str, float]:
        set_rate(self.optimizer, self.settings.learning_rate * rate_share(self.step, self.steps, 0))
        rows = self._rows()
        losses, told = self._losses(rows)
        loss = torch.stack([weight * value for weight, value in losses]).sum()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        first, second = self.difficulty.lambdas
        return {"loss": loss.item(), **told, "lambda1": first, "lambda2": second}

    def state_dict(self) -> dict[str, Any]:
        return {
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "difficulty": self.difficulty.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.difficulty.load_state_dict(state["difficulty"])

    def _rows(self) -> np.ndarray:
        """Rows of this step: each epoch shows every pair once, in an order of its own, without the last few."""
        epoch, place = divmod(self.step, len(self.pairs) // self.settings.batch)
        order = np.random.default_rng((self.settings.seed, epoch)).permutation(len(self.pairs))
        return order[place * self.settings.batch : (place + 1) * self.settings.batch]

    def _losses(self, rows: np.ndarray) -> tuple[list[tuple[float, Tensor]], dict[str, float]]:
        settings, device = self.settings, self.clip.device
        tokens, taught = (
            torch.from_numpy(np.stack([part[row] for row in rows])).to(device).float()
            for part in (self.store.tokens, self.store.taught)
        )
        squares = torch.from_numpy(np.stack([self.store.pictures[row] for row in rows]))[:, None].float() / 255
        regions = torch.from_numpy(np.stack([self.store.regions[row] for row in rows])).to(device)
        with torch.no_grad():
            plain = projected(self.clip.tower, tokens)
        features, gate = self.module.refine(tokens, self.clip.normed(squares).to(device), plain)
        parts = {
            "contrast": self._contrast(features, rows),
            "taught": (1 - (features * taught).sum(1)).mean(),
            "regions": region_loss(features, regions),
            "balance": balance_loss(gate),
        }
        weights = (settings.contrast_weight, settings.taught_weight, settings.region_weight, settings.balance_weight)
        told = {name: value.item() for name, value in parts.items()}
        told |= {"gate": gate.detach().mean().item(), "amount": self.module.amount.item()}
        return list(zip(weights, parts.values(), strict=True)), told

    def _contrast(self, features: Tensor, rows: np.ndarray) -> Tensor:
        pairs = [self.pairs[row] for row in rows]
        texts = self.texts[torch.from_numpy(rows)]
        cosine = pooled_cosines(features, texts)
        twins = torch.from_numpy(twins_of(pairs)).to(cosine.device)
        context = context_weights(texts, torch.from_numpy(same_context(pairs)).to(cosine.device))
        progress = self.step / self.steps
        self.difficulty.update(cosine.detach(), self.contrast.settings.power, progress, twins)
        first, second = self.difficulty.lambdas
        return cehnc_of_cosines(cosine, (first, second), self.contrast.settings, context, twins)


def pooled_cosines(features: Tensor, texts: Tensor) -> Tensor:
    """Cosines [n, m] of pictures and texts, each text looking at the places that are like it.

    Parameters
    ----------
    features
        Unit vectors [n, e, h, w].
    texts
        Unit vectors [m, e].
    """
    places = features.flatten(2)
    likeness = torch.einsum("nep,me->nmp", places, texts)
    share = torch.softmax(COSINE_SCALE * likeness, -1)
    seen = torch.einsum("nmp,nep->nme", share, places)
    return (share * likeness).sum(-1) / seen.norm(dim=-1).clamp_min(1e-6)


def region_loss(features: Tensor, regions: Tensor) -> Tensor:
    """How far features [n, e, h, w] spread inside regions uint8 [n, h, w], plus how near the regions' means lie."""
    count, length = features.shape[:2]
    numbers = regions.long() + REGION_NUMBERS * torch.arange(count, device=regions.device)[:, None, None]
    places = features.permute(0, 2, 3, 1).reshape(-1, length)
    sums = places.new_zeros(count * REGION_NUMBERS, length).index_add(0, numbers.flatten(), places)
    sizes = torch.bincount(numbers.flatten(), minlength=count * REGION_NUMBERS).view(count, REGION_NUMBERS).clone()
    sizes[:, 0] = 0  # cells without a region
    means = sums.view(count, REGION_NUMBERS, length) / sizes.clamp_min(1)[..., None]
    filled = sizes > 0
    if not filled.any():
        return features.sum() * 0
    spread = ((1 - means.square().sum(-1)) * sizes).sum() / sizes.sum()
    unit = F.normalize(means, dim=-1)
    both = filled[:, :, None] & filled[:, None, :] & ~torch.eye(REGION_NUMBERS, dtype=torch.bool, device=unit.device)
    near = F.relu(unit @ unit.transpose(1, 2) - (1 - APART))[both]
    return spread + (near.mean() if len(near) else near.sum())


def balance_loss(gate: Tensor) -> Tensor:
    """How far the channels' mean gates [n, c, h, w] lie beyond a fair share of both paths."""
    mean = gate.mean((0, 2, 3))
    return (F.relu(GATE_RANGE[0] - mean) + F.relu(mean - GATE_RANGE[1])).mean()
