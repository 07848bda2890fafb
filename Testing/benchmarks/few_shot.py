"""A user's own names learnt from 1, 3, 10 and 30 labelled slices, and what the shipped head says of them by itself.

Run     .venv/bin/python Testing/benchmarks/few_shot.py MANIFEST --output DIR [--draws 3] [--embeddings DIR]
Prints  a table: Dice on the validation patients for each number of slices, with n, interval and spread of the draws.

Protocol. Two structures of ACDC's cine MR are taught at once under names that the vocabulary doesn't hold: the wall of
the left ventricle and the cavity of the right one. The head of `lite` never saw a picture of ACDC; it has both concepts
from other sources, which taught it next to nothing of them: the wall from one CT with model-made masks, the right
ventricle from that CT and 3 congenital hearts. That is measured too: the same head asked for its own names, and the
naive reference (map per slice, min-max, Otsu, one box, decoder).

A draw puts the training patients in a random order and takes from each, in turn, a random slice that holds both
structures, until it has 30; the first 1, 3 and 10 of them are the smaller sets. Each set is learnt by `train lite
--examples` with its default settings, and the result is measured by `segment` on the volumes of the `val` patients.
Dice is of the volume, the mean over a patient's volumes, structures and draws. Brackets: 95 % bootstrap over patients.
It goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from MedZeroSegLib.evaluation.baseline import naive_segment
from MedZeroSegLib.evaluation.manifest import Case, read_manifest
from MedZeroSegLib.mask_decoder.decoder import Embedding
from MedZeroSegLib.mask_decoder.lite_medsam import LiteMedSamModel
from MedZeroSegLib.pipeline import segment
from MedZeroSegLib.presets import load_engine
from MedZeroSegLib.slices import slice_frame
from MedZeroSegLib.training.few_shot import FewShotTraining, train_examples
from MedZeroSegLib.volume import Volume

SOURCE = "acdc_cardiac_mr"
OWN = {"left ventricular myocardium": "short-axis myocardium", "right ventricle": "short-axis right ventricle"}
SHOTS = (1, 3, 10, 30)
SHIPPED, NAIVE = "lite's own names", "naive reference"
RESAMPLES = 2000
COLUMNS = ("way", "draw", "case", "patient", "structure", "found", "dice")

Row = dict[str, str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--embeddings", type=Path, help="where embeddings are kept; else in the output")
    arguments = parser.parse_args()
    remember_embeddings(arguments.embeddings or arguments.output / "embeddings")
    training = [case for case in read_manifest(arguments.manifest, "train") if case.source == SOURCE]
    validation = [case for case in read_manifest(arguments.manifest, "val") if case.source == SOURCE]
    scores = Scores(arguments.output / "scores.csv")
    for way, ask in (
        (SHIPPED, lambda volume: {seg.name: seg.mask for seg in segment(volume, list(OWN)).segments}),
        (NAIVE, lambda volume: naive_segment(load_engine("lite"), volume, list(OWN))),
    ):
        measure(validation, scores, way, 0, list(OWN), ask)
    for draw in range(arguments.draws):
        drawn = draw_slices(training, max(SHOTS), np.random.default_rng(draw))
        for shots in SHOTS:
            folder = arguments.output / f"draw-{draw}" / f"shots-{shots}"
            if scores.has(f"{shots} slices", draw, len(validation)):
                continue
            listed = write_examples(drawn[:shots], folder)
            train_examples(listed, folder, FewShotTraining(seed=draw), None, print)

            def own(volume: Volume, preset: str = str(folder)) -> dict[str, np.ndarray]:
                return {seg.name: seg.mask for seg in segment(volume, list(OWN.values()), preset).segments}

            measure(validation, scores, f"{shots} slices", draw, list(OWN.values()), own)
    print(table(scores.rows))


class Scores:
    """The CSV file of all figures so far."""

    def __init__(self, file: Path) -> None:
        self.file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        self.rows: list[Row] = []
        if file.is_file():
            with file.open(newline="", encoding="utf-8") as handle:
                self.rows = list(csv.DictReader(handle))

    def has(self, way: str, draw: int, cases: int) -> bool:
        """Whether all cases are measured."""
        measured = {row["case"] for row in self.rows if row["way"] == way and row["draw"] == str(draw)}
        return len(measured) == cases

    def add(self, rows: Sequence[Row]) -> None:
        self.rows += rows
        with self.file.open("w", newline="", encoding="utf-8") as handle:
            writer = csv.DictWriter(handle, COLUMNS)
            writer.writeheader()
            writer.writerows(self.rows)


def draw_slices(cases: Sequence[Case], count: int, rng: np.random.Generator) -> list[tuple[Case, int]]:
    """Slices (counted as the file stores them) that hold both structures, patient by patient."""
    by_patient: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        by_patient[case.patient_id].append(case)
    drawn: list[tuple[Case, int]] = []
    while len(drawn) < count:
        for patient in rng.permutation(sorted(by_patient)):
            case = by_patient[patient][rng.integers(len(by_patient[patient]))]
            values = [value for value, name in case.labels.items() if name in OWN]
            volume, labels = case.read()
            axis = slice_frame(volume).permutation[0]
            planes = np.moveaxis(labels, axis, 0)
            both = [k for k, plane in enumerate(planes) if all((plane == value).any() for value in values)]
            choice = (case, int(rng.choice(both)))
            if choice not in drawn:
                drawn.append(choice)
    return drawn[:count]


def write_examples(slices: Sequence[tuple[Case, int]], folder: Path) -> Path:
    """The CSV file that a user would write."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "examples.csv"
    with file.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(("image", "mask", "label", "value", "slice", "modality"))
        for case, index in slices:
            for value, name in case.labels.items():
                if name in OWN:
                    place = (case.image.absolute(), case.mask.absolute())
                    writer.writerow((*place, OWN[name], value, index, case.modality))
    return file


def measure(
    cases: Sequence[Case],
    scores: Scores,
    way: str,
    draw: int,
    asked: Sequence[str],
    ask: Callable[[Volume], dict[str, np.ndarray]],
) -> None:
    """Add the Dice of every case and structure; ``asked`` are the texts, in the order of ``OWN``."""
    if scores.has(way, draw, len(cases)):
        return
    rows: list[Row] = []
    for case in cases:
        volume, labels = case.read()
        masks = ask(volume)
        for name, text in zip(OWN, asked, strict=True):
            value = next(value for value, label in case.labels.items() if label == name)
            truth, mask = labels == value, masks[text]
            dice = 2 * np.count_nonzero(truth & mask) / (np.count_nonzero(truth) + np.count_nonzero(mask))
            told = (way, draw, case.case_id, case.patient_id, name, mask.any(), f"{dice:.5f}")
            rows.append({column: str(fact) for column, fact in zip(COLUMNS, told, strict=True)})
    scores.add(rows)


def table(rows: Sequence[Row]) -> str:
    """Markdown: a line for each way."""
    patients = sorted({row["patient"] for row in rows})
    drawn = np.random.default_rng(0).integers(len(patients), size=(RESAMPLES, len(patients)))
    lines = [
        f"{len(patients)} patients, {len({row['case'] for row in rows})} volumes",
        f"| labelled slices | draws | {' | '.join(OWN)} | mean [95 % interval] | draws from .. to | found |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for way in (NAIVE, SHIPPED, *(f"{shots} slices" for shots in SHOTS)):
        own = [row for row in rows if row["way"] == way]
        if not own:
            continue
        each = [np.mean([float(row["dice"]) for row in own if row["structure"] == name]) for name in OWN]
        means = np.array([np.mean([float(row["dice"]) for row in own if row["patient"] == one]) for one in patients])
        low, high = np.percentile(means[drawn].mean(1), (2.5, 97.5))
        draws = sorted({row["draw"] for row in own})
        by_draw = [np.mean([float(row["dice"]) for row in own if row["draw"] == draw]) for draw in draws]
        spread = f"{min(by_draw):.3f} .. {max(by_draw):.3f}" if len(draws) > 1 else ""
        found = np.mean([row["found"] == "True" for row in own])
        cells = [way, str(len(draws)), *(f"{value:.3f}" for value in each)]
        mean = np.mean([float(row["dice"]) for row in own])
        cells += [f"{mean:.3f} [{low:.3f}, {high:.3f}]", spread, f"{100 * found:.0f} %"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def remember_embeddings(folder: Path) -> None:
    """Keep what the encoder says of a picture on disk: many sets share slices, and all share the validation images."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = LiteMedSamModel.embed

    def embed(model: LiteMedSamModel, pictures: Tensor) -> Embedding:
        coarse, detail = [], []
        for one in pictures:
            key = hashlib.sha1(one.contiguous().numpy().tobytes()).hexdigest()
            files = folder / f"{key}.c.npy", folder / f"{key}.d.npy"
            if not files[1].is_file():
                fresh = plain(model, one[None])
                np.save(files[0], fresh.coarse[0].half().numpy())
                np.save(files[1], fresh.detail[0].half().numpy())
            coarse.append(torch.from_numpy(np.load(files[0])).float())
            detail.append(torch.from_numpy(np.load(files[1])).float())
        return Embedding(torch.stack(coarse), torch.stack(detail))

    LiteMedSamModel.embed = embed  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
