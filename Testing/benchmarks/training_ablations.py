"""What each part of the `lite` head's training earns: short runs that differ in one thing, without the decoder.

Run     .venv/bin/python Testing/benchmarks/training_ablations.py MANIFEST --output runs/ablations [--steps 200]
Prints  for each variant, on val patients: Dice of the head's own mask on its 128 × 128 cells, how often its strongest
        cell lies in the structure (the pointing game), the difference in Dice from the full head with a bootstrap
        interval over patients, parameters, and seconds a step. Every run begins with random weights and has the same
        seed, pictures and steps; the training pictures are those of `medzeroseg train lite` in OUTPUT/pictures, of the
        sources below, whose few structures such a short run can learn.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from MedZeroSegLib.canvas import fit_canvas
from MedZeroSegLib.evaluation.manifest import Case, annotation_scheme, read_manifest
from MedZeroSegLib.intensity import picture
from MedZeroSegLib.mask_decoder.lite_medsam import IMAGE_SIZE, LiteMedSamModel
from MedZeroSegLib.presets import load_lite_medsam
from MedZeroSegLib.saliency import FOUND_SHARE_MIN, Competition, compete
from MedZeroSegLib.slices import slice_frame
from MedZeroSegLib.text_image.dpfem import Dpfem, silent
from MedZeroSegLib.text_image.minilm import MiniLmTextTower
from MedZeroSegLib.training import lite
from MedZeroSegLib.training.lite import LiteTrainer, LiteTraining
from MedZeroSegLib.training.pictures import LabelMap, PictureStore, encode_pictures
from MedZeroSegLib.training.targets import _concept_masks
from MedZeroSegLib.weights import weights_store

SLICES_A_VOLUME = 6  # of a val volume, spread over its labelled slices
CELLS_MIN = 4.0  # smaller structures can't be measured on 128 × 128 cells
RESAMPLES = 2000
SOURCES = ("btcv_abdomen_ct", "covid_lung_xray", "msd_hippocampus_mr", "sunnybrook_cardiac_mr")


class LocalOnly(Dpfem):
    """The local path alone, with as many fused channels."""

    def forward(self, features: Tensor) -> Tensor:
        near = self.local_path(features)
        return features + self.fuse(torch.cat((near, torch.zeros_like(near)), 1))


class GlobalOnly(Dpfem):
    """The global path alone."""

    def forward(self, features: Tensor) -> Tensor:
        wide = self.global_path(features)
        return features + self.fuse(torch.cat((torch.zeros_like(wide), wide), 1))


class PlainSum(Dpfem):
    """Both paths without the gate."""

    def forward(self, features: Tensor) -> Tensor:
        near, wide = self.local_path(features), self.global_path(features)
        return features + self.fuse(torch.cat((near, wide), 1) / 2)


class NoDifficulty:
    """λ = 0: every negative weighs the same."""

    lambdas = (0.0, 0.0)

    def update(self, *_: object) -> None:
        """Nothing to follow."""

    def state_dict(self) -> dict[str, object]:
        return {}

    def load_state_dict(self, _: dict[str, object]) -> None:
        """Nothing to take."""


class InfoNceTrainer(LiteTrainer):
    """The contrast without hard negatives: InfoNCE over the same regions."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self.difficulty = NoDifficulty()  # type: ignore[assignment]

    def _contrast_loss(self, regions: list[tuple[int, str, Tensor, Tensor]]) -> Tensor:
        weighed = lite.context_weights
        lite.context_weights = lambda vectors, same: torch.ones(same.shape)
        try:
            return super()._contrast_loss(regions)
        finally:
            lite.context_weights = weighed


@dataclass(frozen=True)
class Variant:
    """One change against the full head."""

    name: str
    block: type[Dpfem] = Dpfem
    trainer: type[LiteTrainer] = LiteTrainer
    change: Callable[[LiteTraining], LiteTraining] = lambda settings: settings


VARIANTS = (
    Variant("full: two paths, gate, CEHNC"),
    Variant("local path only", LocalOnly),
    Variant("global path only", GlobalOnly),
    Variant("plain sum instead of the gate", PlainSum),
    Variant("InfoNCE instead of CEHNC", trainer=InfoNceTrainer),
    Variant("no contrast", change=lambda settings: replace(settings, contrast_weight=0.0)),
    Variant("ten times the contrast", change=lambda settings: replace(settings, contrast_weight=1.0)),
    Variant("full, other seed", change=lambda settings: replace(settings, seed=1)),
)


@dataclass(frozen=True)
class ValPicture:
    """One slice of a val patient: embeddings, and label maps [256, 256] with what they mean."""

    patient: str
    coarse: np.ndarray
    detail: np.ndarray
    maps: tuple[tuple[LabelMap, np.ndarray], ...]


def val_pictures(cases: list[Case], model: LiteMedSamModel) -> list[ValPicture]:
    """The slices as the pipeline shows them, without any variation."""
    by_image: dict[Path, list[Case]] = defaultdict(list)
    for case in cases:
        by_image[case.image].append(case)
    pictures = []
    for masks in by_image.values():
        volume, _ = masks[0].read()
        frame = slice_frame(volume)
        shown = frame.forward(picture(volume))
        canvas = fit_canvas(shown.shape[1:], frame.spacing[1:], IMAGE_SIZE)
        labels = [frame.forward(case.read_labels(volume)) for case in masks]
        filled = np.flatnonzero(np.any([part.any((1, 2)) for part in labels], axis=0))
        for index in filled[np.unique(np.linspace(0, len(filled) - 1, SLICES_A_VOLUME).round().astype(int))]:
            embedding = model.embed(canvas.place(shown[index : index + 1]))
            maps = tuple(
                (LabelMap(0, annotation_scheme(case), case.labels), canvas.place_labels(part[index : index + 1])[0])
                for case, part in zip(masks, labels, strict=True)
            )
            pictures.append(
                ValPicture(
                    f"{masks[0].source} {masks[0].patient_id}",
                    embedding.coarse[0].half().cpu().numpy(),
                    embedding.detail[0].half().cpu().numpy(),
                    maps,
                )
            )
    return pictures


@dataclass(frozen=True)
class Measured:
    """Dice and pointing game of each (patient, concept), the mean over its slices."""

    dice: dict[tuple[str, str], float]
    hits: dict[tuple[str, str], float]


@torch.inference_mode()
def measure(trainer: LiteTrainer, pictures: list[ValPicture]) -> Measured:
    """The averaged head on val pictures, each concept against its rivals as in the pipeline."""
    head = trainer.head
    head.load_state_dict(trainer.mean)
    head.eval()
    table = trainer.table
    row = {name: n for n, name in enumerate(table.all)}
    texts = head.encode_text(torch.stack([F.normalize(trainer.texts[name].mean(0), dim=0) for name in table.all]))
    dice, hits = defaultdict(list), defaultdict(list)
    for shown in pictures:
        pixels = head.encode_pixels(
            torch.from_numpy(shown.coarse)[None].float(), torch.from_numpy(shown.detail)[None].float()
        )
        logits = head.score(pixels, texts)
        for label_map, labels in shown.maps:
            known = {value: name for value, name in label_map.values.items() if name in table._concept}
            for concept, mask in _concept_masks(replace(label_map, values=known), labels, table).items():
                if mask.sum() < CELLS_MIN:
                    continue
                rivals = tuple(row[name] for name in table.competitors[concept])
                share = compete(logits, Competition(row[concept], rivals))[0][0]
                found, truth = share >= FOUND_SHARE_MIN, mask >= 0.5
                overlap = float((found & truth).sum())
                key = (shown.patient, concept)
                dice[key].append(2 * overlap / max(1.0, float(found.sum() + truth.sum())))
                hits[key].append(float(truth.flatten()[share.argmax()]))
    mean = {key: float(np.mean(values)) for key, values in dice.items()}
    return Measured(mean, {key: float(np.mean(values)) for key, values in hits.items()})


def by_concept(values: dict[tuple[str, str], float]) -> float:
    """The mean over concepts of the mean over patients."""
    concepts: dict[str, list[float]] = defaultdict(list)
    for (_, concept), value in values.items():
        concepts[concept].append(value)
    return float(np.mean([np.mean(part) for part in concepts.values()]))


def difference(first: Measured, second: Measured) -> tuple[float, float, float]:
    """Difference in mean Dice, with a 95 % interval from patients drawn anew, pairs kept together."""
    rng = np.random.default_rng(0)
    patients = sorted({patient for patient, _ in first.dice})
    gaps = {key: first.dice[key] - second.dice[key] for key in first.dice}
    of_patient = {name: [(key[1], gap) for key, gap in gaps.items() if key[0] == name] for name in patients}

    def mean_of(drawn: list[str]) -> float:
        concepts = defaultdict(list)
        for name in drawn:
            for concept, gap in of_patient[name]:
                concepts[concept].append(gap)
        return float(np.mean([np.mean(part) for part in concepts.values()]))

    means = [mean_of(list(rng.choice(patients, len(patients)))) for _ in range(RESAMPLES)]
    low, high = np.percentile(means, (2.5, 97.5))
    return mean_of(patients), float(low), float(high)


def run(
    variant: Variant, store: PictureStore, tower: MiniLmTextTower, folder: Path, steps: int
) -> tuple[LiteTrainer, float]:
    """One short training; resumable in its folder."""
    plain = lite.RegionTextHead

    def head_with_block() -> torch.nn.Module:
        head = plain()
        for name, module in list(head.named_modules()):
            if isinstance(module, Dpfem):
                head.set_submodule(name, variant.block(module.gate.out_channels))
        silent(head.joined.fuse)
        return head

    lite.RegionTextHead = head_with_block  # type: ignore[assignment, misc]
    try:
        settings = variant.change(LiteTraining(steps=steps, batch=6, feature_dropout=0.0, warm_up=20, average=0.98))
        trainer = variant.trainer(store, tower, folder, settings)
    finally:
        lite.RegionTextHead = plain  # type: ignore[misc]
    started, before = time.monotonic(), trainer.step
    trainer.run(checkpoint_every=50)
    return trainer, (time.monotonic() - started) / max(1, trainer.step - before)


def parameters(trainer: LiteTrainer) -> int:
    """Weights that took part: those of an unused path have no gradient."""
    return sum(p.numel() for p in trainer.head.parameters() if p.grad is not None)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--output", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    weights = weights_store(None)
    model = load_lite_medsam(weights)
    everything = encode_pictures(read_manifest(options.manifest, "train"), model, options.output / "pictures", seed=0)
    store = replace(everything, pictures=tuple(one for one in everything.pictures if one.source in SOURCES))
    cases = [case for case in read_manifest(options.manifest, "val") if case.source in SOURCES]
    pictures = val_pictures(cases, model)
    tower = MiniLmTextTower(weights.locate("minilm"))
    full: Measured | None = None
    with (options.output / "ablations.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["variant", "dice", "pointing", "difference", "low", "high", "parameters", "seconds a step"])
        for number, variant in enumerate(VARIANTS):
            trainer, seconds = run(variant, store, tower, options.output / f"variant-{number}", options.steps)
            found = measure(trainer, pictures)
            full = full or found
            values = (by_concept(found.dice), by_concept(found.hits), *difference(found, full))
            row = [variant.name, *(f"{value:.3f}" for value in values), parameters(trainer), f"{seconds:.2f}"]
            writer.writerow(row)
            file.flush()
            print(" | ".join(map(str, row)), flush=True)
    patients = {patient for patient, _ in full.dice} if full else set()
    print(f"{len(pictures)} slices of {len(patients)} val patients, {options.steps} steps of 6 pictures each")


if __name__ == "__main__":
    main()
