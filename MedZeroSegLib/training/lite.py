"""Training of the `lite` head: region-text contrast (CEHNC) and dense masks on stored embeddings.

The encoder and the text tower stay as they are; only the head learns.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from torch import Tensor

from MedZeroSegLib.device import cpu_computes_bfloat16
from MedZeroSegLib.evaluation.manifest import read_manifest
from MedZeroSegLib.presets import load_lite_medsam
from MedZeroSegLib.text_image.dpfem import RegionTextHead
from MedZeroSegLib.text_image.minilm import TEMPLATES, MiniLmTextTower
from MedZeroSegLib.training.cehnc import CehncSettings, DifficultyController, cehnc, context_weights
from MedZeroSegLib.training.pictures import Picture, PictureStore, encode_pictures, joined
from MedZeroSegLib.training.run import run_training
from MedZeroSegLib.training.schedule import follow, rate_share, set_rate
from MedZeroSegLib.training.targets import ConceptTable, Targets, targets_of
from MedZeroSegLib.vocabulary import vocabulary, wordings
from MedZeroSegLib.weights import weights_store
from MedZeroSegLib.weights_catalogue import sha256_of
from MedZeroSegLib.writers import replacing

HEAD_FILE = "head.safetensors"
START_RATE = 0.5  # of the learning rate, where training goes on from a head: at the full rate it forgets at first
RATE_FLOOR = 0.02  # of the learning rate, at the last step
SOURCE_STRUCTURES_BASE, SOURCE_STRUCTURES_MAX = 3, 15  # so that a source of one structure, or of sixty, gets its due
EMPTY_WEIGHT = 2.0  # of slices without any label in their source: few are stored, and they tell where a structure ends
REGION_CELLS_MIN = 4.0  # cells of the 128 × 128 grid; smaller regions have no usable mean


@dataclass(frozen=True)
class LiteTraining:
    """Settings of one run; stored with the weights."""

    steps: int = 1300
    batch: int = 8
    learning_rate: float = 2e-3
    warm_up: int = 60
    weight_decay: float = 0.01
    feature_dropout: float = 0.25  # of whole channels of the embedding, for few patients are soon learnt by heart
    average: float = 0.995  # memory of the weights' running mean, which is what ships
    dice_weight: float = 1.0
    single_weight: float = 0.5
    contrast_weight: float = 0.1
    balance: float = 0.6  # exponent with which rare structures are drawn more often
    any_use_only: bool = True
    start_share: float = 0.0  # of the head that training went on from, in the weights that ship (see `export`)
    seed: int = 0


def train(
    manifests: Sequence[Path],
    output: Path,
    steps: int,
    all_licences: bool,
    start: Path | None,
    start_share: float,
    seed: int,
    weights_folder: Path | None,
) -> Path:
    """Encode the train splits into ``output``/pictures, those of a second manifest into pictures-2 and so on, train,
    and write ``output``/head.safetensors.

    Both stages go on where an earlier run in the same folder stopped; raises InputError or InstallationError.
    """
    split = [
        [case for case in read_manifest(manifest, "train") if case.any_use or all_licences] for manifest in manifests
    ]
    weights = weights_store(weights_folder)
    model = load_lite_medsam(weights)
    folders = ["pictures", *(f"pictures-{number}" for number in range(2, len(split) + 1))]
    stores = [encode_pictures(cases, model, output / name, seed=0) for cases, name in zip(split, folders, strict=True)]
    store = reduce(joined, stores)
    tower = MiniLmTextTower(weights.locate("minilm"))
    rate = LiteTraining.learning_rate * (START_RATE if start else 1.0)
    any_use_only = not all_licences
    settings = LiteTraining(steps, learning_rate=rate, any_use_only=any_use_only, start_share=start_share, seed=seed)
    started_from = {name: value.float() for name, value in load_file(start).items()} if start else None
    trainer = LiteTrainer(store, tower, output, settings, started_from)
    trainer.run()
    file = output / HEAD_FILE
    trainer.export(file, {"started_from": sha256_of(start) if start else None})
    return file


class LiteTrainer:
    """Owns the state of one run; ``run`` goes on from the checkpoint in ``folder`` if there is one."""

    measured = ("dense", "contrast", "lambda1", "lambda2")

    def __init__(
        self,
        store: PictureStore,
        tower: MiniLmTextTower,
        folder: Path,
        settings: LiteTraining,
        start: dict[str, Tensor] | None = None,
    ) -> None:
        torch.manual_seed(settings.seed)
        self.store, self.folder, self.settings = store, folder, settings
        self.pictures = [p for p in store.pictures if p.any_use or not settings.any_use_only]
        self.table = ConceptTable(store, self.pictures)
        self.texts = _text_vectors(tower, self.table.all)
        self.head = RegionTextHead()
        self.start = start
        if start is not None:
            self.head.load_state_dict(start)
        self.head = self.head.to(memory_format=torch.channels_last)
        self.mean = {name: value.detach().clone() for name, value in self.head.state_dict().items()}
        self.optimizer = torch.optim.AdamW(
            self.head.parameters(), settings.learning_rate, betas=(0.9, 0.98), weight_decay=settings.weight_decay
        )
        self.reduced = cpu_computes_bfloat16()
        self.difficulty = DifficultyController()
        self.contrast = CehncSettings()
        self.rng = np.random.default_rng(settings.seed)
        self.chances = _chances(self.pictures, self.table, store, settings.balance)
        self.step, self.steps = 0, settings.steps
        self.made_with = asdict(settings)

    def run(self, checkpoint_every: int = 100) -> None:
        """Train to the last step, with a checkpoint and a line of the log every ``checkpoint_every`` steps."""
        run_training(self, self.folder, checkpoint_every)

    def export(self, file: Path, facts: dict[str, Any]) -> None:
        """The averaged weights in float16 with what the engine must know of them, written atomically.

        ``start_share`` of them is the head that training went on from: what was learnt before is forgotten less
        (Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022).
        """
        card = {
            "concepts": self.table.all,
            "competitors": self.table.competitors,
            "training": asdict(self.settings),
            "sources": dict(Counter(p.source for p in self.pictures)),
            "patients": len({(p.source, p.patient_id) for p in self.pictures}),
            **facts,
        }
        before = self.start or self.mean
        mixed = {name: value.lerp(before[name], self.settings.start_share) for name, value in self.mean.items()}
        tensors = {name: value.half().contiguous() for name, value in mixed.items()}
        with replacing(file) as handle:
            handle.write(save(tensors, metadata={"medzeroseg": json.dumps(card)}))

    def train_step(self) -> dict[str, float]:
        share = rate_share(self.step, self.settings.steps, self.settings.warm_up, RATE_FLOOR)
        set_rate(self.optimizer, self.settings.learning_rate * share)
        chosen = [self.pictures[n] for n in self.rng.choice(len(self.chances), self.settings.batch, p=self.chances)]
        rows = [picture.row for picture in chosen]
        coarse = self._thinned(np.stack([self.store.coarse[r] for r in rows]))
        detail = self._thinned(np.stack([self.store.detail[r] for r in rows]))
        with torch.autocast("cpu", torch.bfloat16, enabled=self.reduced):
            pixels = self.head.encode_pixels(
                coarse.contiguous(memory_format=torch.channels_last),
                detail.contiguous(memory_format=torch.channels_last),
            )
        losses, regions = [], []
        by_picture = pixels.float().unbind()  # indexing would fill a whole batch of zeros for each picture's gradient
        for n, picture in enumerate(chosen):
            label_map = picture.label_maps[self.rng.integers(len(picture.label_maps))]
            targets = targets_of(picture, label_map, self.store.labels[label_map.row], self.table, self.rng)
            dense, found = self._dense_loss(by_picture[n], targets)
            losses.append(dense)
            regions += [(n, *region) for region in found]
        dense_loss = torch.stack(losses).mean()
        contrast_loss = self._contrast_loss(regions)
        loss = dense_loss + self.settings.contrast_weight * contrast_loss
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.head.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        follow(self.mean, self.head.state_dict(), self.settings.average, self.step)
        first, second = self.difficulty.lambdas
        return {"dense": dense_loss.item(), "contrast": contrast_loss.item(), "lambda1": first, "lambda2": second}

    def state_dict(self) -> dict[str, Any]:
        return {
            "head": self.head.state_dict(),
            "mean": self.mean,
            "optimizer": self.optimizer.state_dict(),
            "difficulty": self.difficulty.state_dict(),
            "rng": json.dumps(self.rng.bit_generator.state),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.head.load_state_dict(state["head"])
        self.mean = state["mean"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.difficulty.load_state_dict(state["difficulty"])
        self.rng.bit_generator.state = json.loads(state["rng"])

    def _thinned(self, features: np.ndarray) -> Tensor:
        """float16 [n, c, h, w] → float32 without some channels, the others raised; drawn by the run's own generator."""
        kept = self.rng.random((*features.shape[:2], 1, 1)) >= self.settings.feature_dropout
        return torch.from_numpy(features).float() * torch.from_numpy(kept / (1 - self.settings.feature_dropout)).float()

    def _text_of(self, concept: str) -> Tensor:
        """The whole ensemble in a third of the draws, else one wording in one template."""
        vectors = self.texts[concept]
        if self.rng.random() < 0.35:
            return F.normalize(vectors.mean(0), dim=-1)
        return vectors[self.rng.integers(len(vectors))]

    def _dense_loss(self, pixels: Tensor, targets: Targets) -> tuple[Tensor, list[tuple[str, Tensor, Tensor]]]:
        """Loss of one picture, and its regions as (concept, mean pixel vector, text vector of the tower)."""
        names = targets.competing + targets.single + targets.unmarked
        tower_vectors = torch.stack([self._text_of(name) for name in names])
        logits = self.head.score(pixels[None], self.head.encode_text(tower_vectors))[0]
        count, end = len(targets.competing), len(targets.competing) + len(targets.single)
        masks = targets.competing_masks
        background = (1 - masks.sum(0, keepdim=True)).clamp_min(0)
        # What the picture doesn't mark may lie in its background, never where something else is marked.
        elsewhere = torch.cat((torch.zeros_like(background), logits[end:])).logsumexp(0, keepdim=True)
        log_shares = torch.log_softmax(torch.cat((elsewhere, logits[:count])), 0)
        cross_entropy = -(torch.cat((background, masks)) * log_shares).sum(0).mean()
        loss = cross_entropy + self.settings.dice_weight * _dice_loss(log_shares[1:].exp(), masks)
        if targets.single:
            single = logits[count:end]
            entropy = F.binary_cross_entropy_with_logits(single, targets.single_masks)
            loss = loss + self.settings.single_weight * (
                entropy * len(targets.single) ** 0.5 + _dice_loss(single.sigmoid(), targets.single_masks)
            )
        regions = []
        for index, mask in enumerate(torch.cat((masks, targets.single_masks))):
            if mask.sum() >= REGION_CELLS_MIN:
                mean = (pixels * mask).sum((1, 2)) / mask.sum()
                regions.append((names[index], F.normalize(mean, dim=0), tower_vectors[index]))
        return loss, regions

    def _contrast_loss(self, regions: list[tuple[int, str, Tensor, Tensor]]) -> Tensor:
        """CEHNC over all regions of the batch; regions of one concept aren't each other's negatives."""
        if len(regions) < 2:
            return torch.zeros(())
        picture_of = torch.tensor([picture for picture, *_ in regions])
        concepts = [concept for _, concept, _, _ in regions]
        images = torch.stack([image for *_, image, _ in regions])
        tower_vectors = torch.stack([text for *_, text in regions])
        texts = self.head.encode_text(tower_vectors)
        same_concept = torch.tensor([[a == b for b in concepts] for a in concepts])
        context = context_weights(tower_vectors, picture_of[:, None] == picture_of[None, :])
        context = context.masked_fill(same_concept, 0)
        if not (context.masked_fill(torch.eye(len(context), dtype=torch.bool), 0) > 0).any(1).all():
            return torch.zeros(())
        self.difficulty.update((images @ texts.T).detach(), self.contrast.power, self.step / self.settings.steps)
        first, second = self.difficulty.lambdas
        return cehnc(images, texts, (first, second), self.contrast, context)


def _dice_loss(shares: Tensor, masks: Tensor) -> Tensor:
    """1 − soft Dice, the mean over the masks that aren't empty; [k, h, w]."""
    present = masks.sum((1, 2)) > 0
    if not present.any():
        return shares.new_zeros(())
    shares, masks = shares[present], masks[present]
    overlap = (shares * masks).sum((1, 2))
    return (1 - (2 * overlap + 1) / (shares.sum((1, 2)) + masks.sum((1, 2)) + 1)).mean()


def _text_vectors(tower: MiniLmTextTower, concepts: tuple[str, ...]) -> dict[str, Tensor]:
    """For each concept, the tower's vectors [n, 384] of all wordings in all templates."""
    known = vocabulary()
    vectors = {}
    for concept in concepts:
        words = wordings(known[concept]) if concept in known else (concept,)
        vectors[concept] = tower.encode([template.format(s=word) for word in words for template in TEMPLATES]).clone()
    return vectors


def _chances(pictures: list[Picture], table: ConceptTable, store: PictureStore, balance: float) -> np.ndarray:
    """Chance of each picture to be drawn: sources by their patients and structures, within one by rarity."""
    present = [_occurring(picture, table, store) for picture in pictures]
    counts = Counter(concept for concepts in present for concept in concepts)
    weights = np.array([max((counts[c] ** -balance for c in concepts), default=np.nan) for concepts in present])
    sources = np.array([picture.source for picture in pictures])
    for source in np.unique(sources):
        own = sources == source
        empty = own & np.isnan(weights)
        weights[empty] = EMPTY_WEIGHT * np.nanmean(weights[own]) if (own & ~empty).any() else 1.0
        patients = len({p.patient_id for p in pictures if p.source == source})
        structures = len(set().union(*(concepts for concepts, mine in zip(present, own, strict=True) if mine)))
        share = (patients * (min(structures, SOURCE_STRUCTURES_MAX) + SOURCE_STRUCTURES_BASE)) ** 0.5
        weights[own] *= share / weights[own].sum()
    return weights / weights.sum()


def _occurring(picture: Picture, table: ConceptTable, store: PictureStore) -> set[str]:
    occurring = set()
    for label_map in picture.label_maps:
        values = set(np.unique(store.labels[label_map.row][::2, ::2]).tolist())
        occurring |= {table.concept(name) for value, name in label_map.values.items() if value in values}
    return occurring
