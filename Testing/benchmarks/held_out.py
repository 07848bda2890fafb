"""Names that training never saw: heads trained without them, asked for them by text alone (the open-vocabulary figure).

Run     .venv/bin/python Testing/benchmarks/held_out.py MANIFEST --output DIR [--steps 800] [--limit 12]
Prints  for each structure, on validation patients: Dice and share found of a head that never saw it, of one trained
        alike on everything, and of the first one when the threshold of evidence is put aside; with n and intervals.
        Then Dice of one of them, taught from 1, 3, 10 and 29 labelled slices to the head that never saw it.

Protocol. Every head begins with random weights and has the same steps, batch, seed and pictures (those of `medzeroseg
train lite`, in DIR/pictures), but that the pictures of every scheme that marks a structure of its group, a part or a
whole of it, are left out. So nothing taught the name, and nothing taught that it is background either. The rivals of an
unknown name are all trained names that exclude it, as in a run of a user. Whole structures are asked, both sides
together; Dice is of the image, 0 where it isn't found. Brackets: 95 % bootstrap over patients.

Labelled slices are drawn once, patient by patient, each set holding the smaller ones, and learnt as by `train lite
--examples` with its default settings.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from few_shot import remember_embeddings

from MedZeroSegLib.evaluation.manifest import Case, read_manifest
from MedZeroSegLib.evaluation.metrics import dice_of
from MedZeroSegLib.pipeline import Clock, segment_with, tell_nobody
from MedZeroSegLib.presets import Engine, load_engine, load_lite_medsam
from MedZeroSegLib.queries import resolve
from MedZeroSegLib.text_image.lite import LiteTextImage, read_head
from MedZeroSegLib.text_image.minilm import MiniLmTextTower
from MedZeroSegLib.text_image.own_names import extend
from MedZeroSegLib.trained_preset import read_trained_preset
from MedZeroSegLib.training.examples import read_examples
from MedZeroSegLib.training.few_shot import FewShotTraining, train_own_names
from MedZeroSegLib.training.lite import HEAD_FILE, LiteTrainer, LiteTraining
from MedZeroSegLib.training.pictures import PictureStore, encode_pictures
from MedZeroSegLib.training.targets import concept_of
from MedZeroSegLib.vocabulary import parts_among
from MedZeroSegLib.weights import weights_store
from MedZeroSegLib.weights_catalogue import sha256_of

GROUPS = {
    "without spine, brain parts and breast": ("vertebrae", "intervertebral discs", "hippocampus", "breast tumor"),
    "without hearts and lungs": ("left ventricle", "lung"),
}
EVERYTHING = "with everything"
TAUGHT, SHOTS = "intervertebral discs", (1, 3, 10, 29)  # a structure of the first group
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
    print(f"\n| labelled slices | {TAUGHT}: Dice | found |\n| --- | --- | --- |")
    shown = [case for case in cases if values_of(case, TAUGHT)]
    sources = {case.source for case in shown}
    learners = [c for c in read_manifest(arguments.manifest, "train") if c.source in sources and values_of(c, TAUGHT)]
    for shots in SHOTS:
        engine = taught(drawn(learners, shots), arguments.output / f"taught-{shots}", head_of(arguments.output))
        answers = [answer(engine, case, TAUGHT) for case in shown]
        print(f"| {shots} | {told(answers)} | {found(answers)} |", flush=True)


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
    concept = concept_of(name)
    return concept == structure or bool(parts_among(structure, [concept]) or parts_among(concept, [structure]))


def engine_with(head_file: Path) -> Engine:
    """`lite` with another head, which nothing was calibrated for."""
    shipped = load_engine("lite", "cpu")
    assert isinstance(shipped.text_image, LiteTextImage)
    head, card = read_head(head_file)
    return replace(shipped, text_image=LiteTextImage(head, shipped.text_image.texts, card), calibration=None)


def asking_always(engine: Engine) -> Engine:
    """The same without a threshold of evidence."""
    return replace(engine, preset=replace(engine.preset, found_min_untrained=0.0, slice_min=0.0))


def head_of(output: Path) -> Path:
    """The head that never saw the structure which is taught."""
    return output / next(iter(GROUPS)).replace(" ", "-") / HEAD_FILE


def drawn(cases: Sequence[Case], count: int) -> list[Case]:
    """Pictures of as many patients as there are, then second ones; a larger draw holds the smaller ones."""
    order = np.random.default_rng(0).permutation(len(cases))
    turn: dict[str, int] = defaultdict(int)
    turns = {}
    for place in order:
        turns[place] = turn[cases[place].patient_id]
        turn[cases[place].patient_id] += 1
    return [cases[place] for place in sorted(order, key=lambda place: turns[place])][:count]


def taught(cases: Sequence[Case], folder: Path, head_file: Path) -> Engine:
    """The engine of a head with the structure learnt from labelled pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    head, card = read_head(head_file)
    rows = ["image,mask,label,modality"]
    for case in cases:
        marks = np.isin(case.read()[1][0], values_of(case, TAUGHT)).astype(np.uint8)
        mask = folder / f"{case.case_id}.png"
        sitk.WriteImage(sitk.GetImageFromArray(marks), str(mask))
        rows.append(f"{case.image.absolute()},{mask.absolute()},{TAUGHT},{case.modality}")
    listed = folder / "examples.csv"
    listed.write_text("\n".join(rows) + "\n", encoding="utf-8")
    examples, digest = read_examples(listed, card.concepts), sha256_of(head_file)
    model = load_lite_medsam(weights_store(None))
    train_own_names(examples, folder, FewShotTraining(), model, head, digest, lambda _: None)
    engine = engine_with(head_file)
    assert isinstance(engine.text_image, LiteTextImage)
    return replace(engine, text_image=extend(engine.text_image, digest, read_trained_preset(str(folder))))


def limited(cases: Sequence[Case], limit: int) -> list[Case]:
    """The first images of each source."""
    taken: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        if case.any_use and len(taken[case.source]) < limit:
            taken[case.source].append(case)
    return [case for own in taken.values() for case in own]


def values_of(case: Case, structure: str) -> list[int]:
    """Values of a mask that are the structure or its parts."""
    concepts = {value: concept_of(name) for value, name in case.labels.items()}
    meant = {structure, *parts_among(structure, concepts.values())}
    return [value for value, concept in concepts.items() if concept in meant]


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
