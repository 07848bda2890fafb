"""What corrected cases do for the rest of a cohort: patients of one source, of whom the first are corrected by experts'
masks, and the others are drawn by the text alone and then with what those teach.

Run     .venv/bin/python Testing/benchmarks/corrections.py MANIFEST [--source acdc_cardiac_mr] [--cases 9]
        [--corrected 5] [--preset lite] [--folder FOLDER for what is made]
Prints  the command's own lines, and the mean Dice of each structure over the cases that nobody corrected, before and
        after. The cases are of the train split: nothing is chosen on the others.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from statistics import mean

import numpy as np

from MedZeroSegLib.cohort.masks_file import read_masks
from MedZeroSegLib.cohort.review import mark
from MedZeroSegLib.evaluation.manifest import Case, read_manifest
from MedZeroSegLib.queries import resolve
from MedZeroSegLib.segment import Segment, Segmentation
from MedZeroSegLib.writers import write_segmentation


def chosen(manifest: Path, source: str, count: int) -> list[Case]:
    """One case of each of the source's first patients."""
    patients: dict[str, Case] = {}
    for case in read_manifest(manifest, "train"):
        if case.source == source:
            patients.setdefault(case.patient_id, case)
    return list(patients.values())[:count]


def experts_masks(case: Case) -> dict[str, np.ndarray]:
    """The experts' masks by name, bool [k, j, i]."""
    _, labels = case.read()
    return {name: labels == value for value, name in case.labels.items()}


def run(table: Path, output: Path, preset: str, *more: str) -> None:
    """The command, in a process of its own."""
    command = [sys.executable, "-c", "from MedZeroSegLib.cli import main; main()", "cohort", str(table)]
    subprocess.run([*command, "--output", str(output), "--preset", preset, "--device", "cpu", *more], check=True)


def correct(case: Case, output: Path) -> None:
    """What a person would save, and the mark."""
    volume, _ = case.read()
    segments = []
    for name, mask in experts_masks(case).items():
        query = resolve([name])[0]
        segments.append(
            Segment(
                typed=name, name=query.name, found=bool(mask.any()), score=1.0, mask=mask, code=query.code,
                category=query.category, modifier=query.modifier, color=query.color,
                slices=int(mask.any(axis=(1, 2)).sum()),
            )
        )  # fmt: skip
    made = Segmentation(
        volume=replace(volume, path=None), segments=tuple(segments), preset="", weights=(), device="", seconds={},
        settings={}, version="",
    )  # fmt: skip
    write_segmentation(made, _labels(case, output))
    mark(output / "review.csv", case.case_id, "corrected")


def dice(cases: list[Case], output: Path) -> dict[str, float]:
    """Mean over the cases, by structure."""
    values = defaultdict(list)
    for case in cases:
        found = {one.name: one.mask for one in read_masks(_labels(case, output)).segments}
        for name, mask in experts_masks(case).items():
            drawn = found[resolve([name])[0].name]
            values[name].append(2 * float((drawn & mask).sum()) / max(1.0, float(drawn.sum() + mask.sum())))
    return {name: mean(each) for name, each in values.items()}


def _labels(case: Case, output: Path) -> Path:
    return output / "cases" / case.case_id / f"{case.case_id}.seg.nrrd"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--source", default="acdc_cardiac_mr")
    parser.add_argument("--cases", type=int, default=9)
    parser.add_argument("--corrected", type=int, default=5)
    parser.add_argument("--preset", default="lite")
    parser.add_argument("--folder", type=Path, help="for what is made; else a temporary one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        cases = chosen(arguments.manifest, arguments.source, arguments.cases)
        names = "; ".join(dict.fromkeys(name for case in cases for name in case.labels.values()))
        rows = [f'{case.case_id},"{case.image.absolute()}",{case.modality},"{names}"' for case in cases]
        table, output = folder / "cases.csv", folder / "results"
        table.write_text("\n".join(["case,path,modality,structures", *rows]) + "\n", encoding="utf-8")
        run(table, output, arguments.preset)
        taught, rest = cases[: arguments.corrected], cases[arguments.corrected :]
        before = dice(rest, output)
        for case in taught:
            correct(case, output)
        run(table, output, arguments.preset, "--use-corrections")
        for name, after in dice(rest, output).items():
            print(f"{name}: Dice {before[name]:.3f} by the text alone, {after:.3f} with {len(taught)} corrected cases")


if __name__ == "__main__":
    main()
