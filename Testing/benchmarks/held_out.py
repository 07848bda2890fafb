"""Names that training never saw: heads trained without them, asked for them by text alone (the open-vocabulary figure).

Run     .venv/bin/python Testing/benchmarks/held_out.py MANIFEST --output DIR [--steps 800] [--limit 12]
Prints  for each structure, on validation patients: Dice and share found of a head that never saw it, of one trained
        alike on everything, and of the first one when the threshold of evidence is put aside; with n and intervals.

Protocol. Every head begins with random weights and has the same steps, batch, seed and pictures (those of `medzeroseg
train lite`, in DIR/pictures), but that the pictures of every scheme that marks a structure of its group, a part or a
whole of it, are left out. So nothing taught the name, and nothing taught that it is background either. The rivals of an
unknown name are all trained names that exclude it, as in a run of a user. Whole structures are asked, both sides
together; Dice is of the image, 0 where it isn't found. Brackets: 95 % bootstrap over patients.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from few_shot import remember_embeddings

from MedZeroSegLib.evaluation.manifest import Case, read_manifest
from MedZeroSegLib.evaluation.metrics import dice_of
from MedZeroSegLib.pipeline import Clock, segment_with, tell_nobody
from MedZeroSegLib.presets import Engine, load_engine, load_lite_medsam
from MedZeroSegLib.queries import resolve
from MedZeroSegLib.text_image.lite import LiteTextImage, read_head
from MedZeroSegLib.text_image.minilm import MiniLmTextTower
from MedZeroSegLib.training.lite import HEAD_FILE, LiteTrainer, LiteTraining
from MedZeroSegLib.training.pictures import PictureStore, encode_pictures
from MedZeroSegLib.training.targets import concept_of
from MedZeroSegLib.vocabulary import vocabulary
from MedZeroSegLib.weights import weights_store

GROUPS = {
    "without spine, brain parts and breast": ("vertebrae", "intervertebral discs", "hippocampus", "breast tumor"),
    "without hearts and lungs": ("left ventricle", "lung"),
}
EVERYTHING = "with everything"
RESAMPLES = 2000


@dataclass(frozen=True)
class Answer:
    """One structure on one validation image."""

    structure: str
    patient: str
    found: bool
    dice: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--limit", type=int, default=12, help="validation images of each source")
    arguments = parser.parse_args()
    weights = weights_store(None)
    pictures = arguments.output / "pictures"
    store = encode_pictures(read_manifest(arguments.manifest, "train"), load_lite_medsam(weights), pictures, seed=0)
    tower = MiniLmTextTower(weights.locate("minilm"))
    engines = {
        name: engine_with(trained(store, tower, arguments.output / name.replace(" ", "-"), held, arguments.steps))
        for name, held in {EVERYTHING: (), **GROUPS}.items()
    }
    remember_embeddings(arguments.output / "embeddings")
    cases = limited(read_manifest(arguments.manifest, "val"), arguments.limit)
    print("| structure | patients, images | unseen: Dice | found | Dice whatever the evidence | seen: Dice | found |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, held in GROUPS.items():
        for structure in held:
            shown = [case for case in cases if values_of(case, structure)]
            unseen, without, seen = (
                [answer(engine, case, structure) for case in shown]
                for engine in (engines[name], asking_always(engines[name]), engines[EVERYTHING])
            )
            cells = [structure, f"{len({a.patient for a in unseen})}, {len(unseen)}"]
            cells += [told(unseen), found(unseen), told(without), told(seen), found(seen)]
            print(f"| {' | '.join(cells)} |", flush=True)


def trained(store: PictureStore, tower: MiniLmTextTower, folder: Path, held: Sequence[str], steps: int) -> Path:
    """A head that never saw the held names; trained before, it is taken from the folder."""
    file = folder / HEAD_FILE
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        telling = {scheme for scheme, names in store.schemes.items() if any(means(n, h) for n in names for h in held)}
        kept = [p for p in store.pictures if not any(label_map.scheme in telling for label_map in p.label_maps)]
        trainer = LiteTrainer(replace(store, pictures=tuple(kept)), tower, folder, LiteTraining(steps=steps))
        print(f"{folder.name}: {len(trainer.pictures)} pictures, {len(trainer.table.all)} names", flush=True)
        trainer.run()
        trainer.export(file, {})
    return file


def means(name: str, structure: str) -> bool:
    """Whether a name of the manifest means a structure, a part or a whole of it."""
    concept, known = concept_of(name), vocabulary()
    related = {concept, *known[concept].parents} if concept in known else {concept}
    return structure in related or concept in known[structure].parents


def engine_with(head_file: Path) -> Engine:
    """`lite` with another head, which nothing was calibrated for."""
    shipped = load_engine("lite", "cpu")
    assert isinstance(shipped.text_image, LiteTextImage)
    head, card = read_head(head_file)
    return replace(shipped, text_image=LiteTextImage(head, shipped.text_image.texts, card), calibration=None)


def asking_always(engine: Engine) -> Engine:
    """The same without a threshold of evidence."""
    return replace(engine, preset=replace(engine.preset, found_min_untrained=0.0, slice_min=0.0))


def limited(cases: Sequence[Case], limit: int) -> list[Case]:
    """The first images of each source."""
    taken: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        if case.any_use and len(taken[case.source]) < limit:
            taken[case.source].append(case)
    return [case for own in taken.values() for case in own]


def values_of(case: Case, structure: str) -> list[int]:
    """Values of a mask that are the structure or its parts."""
    known = vocabulary()
    concepts = {value: concept_of(name) for value, name in case.labels.items()}
    return [v for v, c in concepts.items() if c == structure or (c in known and structure in known[c].parents)]


def answer(engine: Engine, case: Case, structure: str) -> Answer:
    volume, labels = case.read()
    one = segment_with(engine, volume, resolve([structure]), Clock(), tell_nobody).segments[0]
    return Answer(structure, case.patient_id, one.found, dice_of(one.mask, np.isin(labels, values_of(case, structure))))


def told(answers: Sequence[Answer]) -> str:
    """Mean Dice with its interval over patients."""
    patients = sorted({a.patient for a in answers})
    means_of = np.array([np.mean([a.dice for a in answers if a.patient == one]) for one in patients])
    drawn = np.random.default_rng(0).integers(len(patients), size=(RESAMPLES, len(patients)))
    low, high = np.percentile(means_of[drawn].mean(1), (2.5, 97.5))
    return f"{np.mean([a.dice for a in answers]):.3f} [{low:.3f}, {high:.3f}]"


def found(answers: Sequence[Answer]) -> str:
    return f"{100 * np.mean([a.found for a in answers]):.0f} %"


if __name__ == "__main__":
    main()
