"""Fits what a preset knows of its own answers: presence, expected Dice and doubtful slices, on training patients only.

What its card says of them is taken from predictions for patients who were left out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import mannwhitneyu

from MedZeroSegLib.calibration import Logistic, calibration_file
from MedZeroSegLib.encoding import forget_volumes
from MedZeroSegLib.errors import InputError
from MedZeroSegLib.evaluation.manifest import PARTLY_ANNOTATED, Case, read_manifest
from MedZeroSegLib.evaluation.questions import Questionnaire, images_of
from MedZeroSegLib.presets import load_engine
from MedZeroSegLib.training.confidence_rows import Row, rows_of
from MedZeroSegLib.vocabulary import vocabulary
from MedZeroSegLib.volume_io import read_volume
from MedZeroSegLib.writers import replacing

OTHERS = "other"  # the kind of what the vocabulary lacks
BONES, FINDINGS = ("bone", "spine", "dental"), ("finding", "device")
LARGE_ORGANS = frozenset(
    {"liver", "spleen", "kidney", "lung", "stomach", "pancreas", "urinary bladder", "brain", "heart", "body"}
)
IMAGES, VOLUMES = 24, 6  # of each source, over as many patients as possible
IMAGES_A_PATIENT = 4  # at most; what images of one patient say is much alike
FOLDS = 5
STRENGTH = 3.0  # of the ridge, in rows
OFFSET_ROWS = 2.0  # rows without any offset that each structure's own are set against
NEWTON_STEPS = 10
WEIGHT_MOST = 4.0  # of a row, where a structure is nearly always present or nearly always absent
# Probability from which a structure is found; present and absent rows of a structure weigh the same. Chosen on `val`:
# few false finds of `lite-research`; no figure of `lite`, which is less certain of hearts, falls by more than .01.
FOUND_MIN = {"lite": 0.33, "lite-research": 0.45}


@dataclass(frozen=True)
class Table:
    """Features [n, m], what is to be predicted (0..1) and how much it counts [n], and whose rows they are.

    ``by_structure`` says whether structures have offsets of their own.
    """

    names: tuple[str, ...]
    values: np.ndarray
    target: np.ndarray
    weight: np.ndarray
    patients: np.ndarray
    structures: np.ndarray
    by_structure: bool


def train_confidence(
    manifest: Path, preset: str, output: Path, weights_folder: Path | None = None
) -> Path:
    """Measure a sample of the train split into ``output`` and write the preset's calibration; returns its file.

    Goes on where an earlier run in the same folder stopped. Only sources whose licence fits the preset's are used, and
    of these only such as tell what is absent.

    Raises
    ------
    InputError, InstallationError
        When the manifest, an image or a weight file is at fault.
    """
    engine = load_engine(preset, "auto", weights_folder)
    licensed = [case for case in read_manifest(manifest, "train") if case.any_use or "NC" in engine.preset.licence]
    cases = [case for case in licensed if case.source not in PARTLY_ANNOTATED]
    questionnaire = Questionnaire(read_manifest(manifest))
    rows: list[Row] = []
    for image in track(sample(images_of(cases)), description="measuring"):
        rows += rows_of(image, questionnaire, engine, output / f"{image[0].case_id}.json")
        forget_volumes()
    content = fitted(rows, FOUND_MIN.get(preset, 0.5))
    file = calibration_file(preset)
    with replacing(file) as stream:
        stream.write((json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())
    return file


def sample(
    images: Sequence[tuple[Case, ...]], pictures: int = IMAGES, volumes: int = VOLUMES
) -> list[tuple[Case, ...]]:
    """At most so many pictures, or volumes, of each source: one of each patient, then a second, and so on.

    Which patients and images come first is settled by a hash.
    """
    by_source: dict[str, dict[str, list[tuple[Case, ...]]]] = {}
    for image in images:
        by_source.setdefault(image[0].source, {}).setdefault(image[0].patient_id, []).append(image)
    chosen = []
    for patients in by_source.values():
        first = next(iter(patients.values()))[0][0]
        count = pictures if read_volume(first.image, modality=first.modality).dimension == 2 else volumes
        turns = [
            (turn, _hash(patient), image)
            for patient, own in patients.items()
            for turn, image in enumerate(sorted(own, key=lambda image: _hash(image[0].case_id))[:IMAGES_A_PATIENT])
        ]
        chosen += [image for _, _, image in sorted(turns, key=lambda one: one[:2])[:count]]
    return chosen


def fitted(rows: Sequence[Row], found_min: float) -> dict[str, Any]:
    """The content of a calibration file; raises InputError where rows are too few."""
    asked = list({(row.case, row.concept): row for row in rows if row.trained}.values())
    drawn = [row for row in rows if row.trained and row.dice is not None]
    if len({row.patient for row in drawn}) < FOLDS:
        raise InputError(f"The sample has fewer than {FOLDS} patients with drawn structures; give a larger manifest.")
    there = presence_table(asked)
    presence, probability = left_out(there)
    segments = segment_table(drawn)
    dice, expected = left_out(segments)
    slices = slice_table(drawn, dice)
    slice_dice, slice_expected = left_out(slices)
    absent = there.target == 0
    return {
        "presence": _written(presence),
        "found_min": found_min,
        "dice": _written(dice),
        "slice_dice": _written(slice_dice),
        "card": {
            "sources": sorted({row.source for row in asked}),
            "patients": len({(row.source, row.patient) for row in asked}),
            "images": len({row.case for row in asked}),
            "structures asked": len(asked),
            "segments": len(segments.target),
            "slices": len(slices.target),
            "patients left out": {
                "found": _share(probability[~absent] >= found_min),
                "false finds": _share(probability[absent] >= found_min),
                "area under the ROC by kind": areas_by_kind(asked, probability),
                "correlation of expected Dice": _correlation(expected, segments.target),
                "correlation in slices": _correlation(slice_expected, slices.target),
            },
        },
    }


def presence_table(rows: Sequence[Row]) -> Table:
    """Whether concepts are there. Present and absent rows of a structure weigh the same together, so that its offset
    tells how clear its evidence is and not how often the sample shows it."""
    there = np.array([row.concept_present for row in rows], np.float64)
    concepts = [row.concept for row in rows]
    counts = {(name, truth): 0 for name in concepts for truth in (0.0, 1.0)}
    for one in zip(concepts, there, strict=True):
        counts[one] += 1
    weight = []
    for name, truth in zip(concepts, there, strict=True):
        same, other = counts[name, truth], counts[name, 1 - truth]
        weight.append(min(WEIGHT_MOST, (same + other) / (2 * same)) if other else 1.0)
    return _table(rows, [row.presence for row in rows], there, np.array(weight))


def segment_table(rows: Sequence[Row]) -> Table:
    """Dice of segments; 0 for those of absent structures."""
    dice = np.array([row.dice for row in rows], np.float64)
    return _table(rows, [row.segment for row in rows], dice, np.ones(len(rows)))


def slice_table(rows: Sequence[Row], dice: Logistic) -> Table:
    """Dice in the slices of segments; a segment's slices weigh as much as √(their number) segments."""
    features, target, weight, of = [], [], [], []
    for row in rows:
        logit = float(dice.logit(row.concept, row.segment))
        count = len(row.slice_dice)
        for n in range(count):
            features.append({**{name: values[n] for name, values in row.slices.items()}, "segment": logit})
        target += row.slice_dice
        weight += [count**-0.5] * count
        of += [row] * count
    return _table(of, features, np.array(target), np.array(weight), by_structure=False)


def left_out(table: Table) -> tuple[Logistic, np.ndarray]:
    """The model fitted to all rows, and for each row what models say that never saw its patient."""
    folds = np.array([int(_hash(patient), 16) % FOLDS for patient in table.patients])
    said = np.zeros(len(table.target))
    for fold in np.unique(folds):
        said[folds == fold] = _said(fit(table, folds != fold), table)[folds == fold]
    return fit(table, np.ones(len(folds), bool)), said


def fit(table: Table, chosen: np.ndarray) -> Logistic:
    """Ridge on standardised features, then each structure's own offset, shrunk by ``OFFSET_ROWS``."""
    values, target, weight = table.values[chosen], table.target[chosen], table.weight[chosen]
    centre = np.average(values, 0, weight)
    scale = np.sqrt(np.average((values - centre) ** 2, 0, weight)) + 1e-6
    design = (values - centre) / scale

    def loss(beta: np.ndarray) -> tuple[float, np.ndarray]:
        logits = beta[0] + design @ beta[1:]
        error = weight * (expit(logits) - target)
        value = np.sum(weight * (np.logaddexp(0, logits) - target * logits)) + STRENGTH / 2 * np.sum(beta[1:] ** 2)
        return float(value), np.concatenate([[error.sum()], design.T @ error + STRENGTH * beta[1:]])

    beta = minimize(loss, np.zeros(1 + design.shape[1]), jac=True, method="L-BFGS-B").x
    slopes = beta[1:] / scale
    base = beta[0] + design @ beta[1:]
    return Logistic(
        bias=float(beta[0] - slopes @ centre),
        weights=dict(zip(table.names, slopes.tolist(), strict=True)),
        structures=_offsets(table.structures[chosen], base, target, weight) if table.by_structure else {},
    )


def _offsets(structures: np.ndarray, base: np.ndarray, target: np.ndarray, weight: np.ndarray) -> dict[str, float]:
    """For each structure what has to be added to the logits ``base`` of its rows; Newton's method."""
    offsets = {}
    for name in np.unique(structures):
        own, offset = structures == name, 0.0
        for _ in range(NEWTON_STEPS):
            p = expit(base[own] + offset)
            slope = np.sum(weight[own] * (target[own] - p)) - OFFSET_ROWS * offset
            offset += slope / (np.sum(weight[own] * p * (1 - p)) + OFFSET_ROWS)
        offsets[str(name)] = float(offset)
    return offsets


def _table(
    rows: Sequence[Row],
    features: Sequence[Mapping[str, float]],
    target: np.ndarray,
    weight: np.ndarray,
    by_structure: bool = True,
) -> Table:
    names = tuple(features[0])
    return Table(
        names=names,
        values=np.array([[one[name] for name in names] for one in features], np.float64),
        target=target,
        weight=weight,
        patients=np.array([row.patient for row in rows]),
        structures=np.array([row.concept for row in rows]),
        by_structure=by_structure,
    )


def _said(model: Logistic, table: Table) -> np.ndarray:
    slopes = np.array([model.weights[name] for name in table.names])
    own = np.array([model.structures.get(name, 0.0) for name in table.structures])
    return np.asarray(expit(model.bias + table.values @ slopes + own))


def _written(model: Logistic) -> dict[str, Any]:
    def rounded(values: Mapping[str, float]) -> dict[str, float]:
        return {str(name): round(value, 5) for name, value in values.items()}

    return {
        "bias": round(model.bias, 5),
        "weights": rounded(model.weights),
        "structures": rounded(model.structures),
    }


def areas_by_kind(rows: Sequence[Row], probability: np.ndarray) -> dict[str, float]:
    """Area under the ROC curve of presence, for each kind that is both present and absent, and for all."""
    kinds = np.array([kind_of(row.concept) for row in rows])
    there = np.array([row.concept_present for row in rows])
    areas = {}
    for kind in ("all", *np.unique(kinds)):
        own = np.ones(len(rows), bool) if kind == "all" else kinds == kind
        present, absent = probability[own & there], probability[own & ~there]
        if len(present) and len(absent):
            areas[str(kind)] = round(float(mannwhitneyu(present, absent).statistic / (len(present) * len(absent))), 3)
    return areas


def kind_of(name: str) -> str:
    """As presence is reported: "large organ", "small organ", "bone", "heart", "brain", "finding" or "other"."""
    structure = vocabulary().get(name)
    if structure is None:
        return OTHERS
    if structure.kind in FINDINGS:
        return "finding"
    if structure.kind in BONES:
        return "bone"
    if structure.region == "heart" or structure.kind == "heart":
        return "heart"
    if structure.region == "head":
        return "brain"
    if structure.name in LARGE_ORGANS:
        return "large organ"
    return "small organ" if structure.kind in ("organ", "vessel", "muscle", "tissue") else OTHERS


def _share(hits: np.ndarray) -> float:
    return round(float(hits.mean()), 3)


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    return round(float(np.corrcoef(one, other)[0, 1]), 3)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
