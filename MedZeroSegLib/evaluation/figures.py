"""Statistics of scores: means over structures with bootstrap intervals over patients, and the paired comparison.

A structure's figure is the mean over its cases; a figure of several structures is the mean over their figures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from MedZeroSegLib.evaluation.scores import Score

RESAMPLES = 2000
SEED = 0
INTERVAL = (2.5, 97.5)  # percentiles: 95 %

Selection = Sequence[Score]
Measure = Callable[[Score], "float | None"]


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval; NaN where there is nothing to take a mean of."""

    mean: float
    low: float
    high: float
    cases: int
    patients: int


class Bootstrap:
    """Resamples the patients of each source, the same resamples for every figure.

    Parameters
    ----------
    scores
        All rows that any figure will be taken from.
    """

    def __init__(self, scores: Iterable[Score], resamples: int = RESAMPLES, seed: int = SEED) -> None:
        by_source: dict[str, set[str]] = {}
        for score in scores:
            by_source.setdefault(score.source, set()).add(score.patient)
        rng = np.random.default_rng(seed)
        self._rows: dict[tuple[str, str], int] = {}
        drawn = []
        for source in sorted(by_source):
            patients = sorted(by_source[source])
            self._rows.update({(source, patient): len(self._rows) + n for n, patient in enumerate(patients)})
            drawn.append(rng.multinomial(len(patients), np.full(len(patients), 1 / len(patients)), resamples))
        self._drawn = np.concatenate(drawn, axis=1) if drawn else np.zeros((resamples, 0), int)

    def estimate(self, selections: Iterable[Selection], measure: Measure) -> Estimate:
        """Mean over selections (structures) of the mean of ``measure`` over their rows; rows without it don't count."""
        means, resampled, cases, patients = [], [], set(), set()
        for selection in selections:
            values = [(score, value) for score in selection if (value := measure(score)) is not None]
            if not values:
                continue
            sums, counts = np.zeros(len(self._rows)), np.zeros(len(self._rows))
            for score, value in values:
                row = self._rows[score.source, score.patient]
                sums[row] += value
                counts[row] += 1
                cases.add((score.source, score.case))
                patients.add(row)
            means.append(sums.sum() / counts.sum())
            with np.errstate(invalid="ignore"):
                resampled.append((self._drawn @ sums) / (self._drawn @ counts))
        if not means:
            return Estimate(np.nan, np.nan, np.nan, 0, 0)
        low, high = _interval(np.stack(resampled))
        return Estimate(float(np.mean(means)), low, high, len(cases), len(patients))


def dice(score: Score) -> float | None:
    """Dice where the structure is present."""
    return score.dice if score.present else None


def dice_with_false_finds(score: Score) -> float | None:
    """Dice where the structure is present or was found; a false find counts 0."""
    return score.dice


def iou(score: Score) -> float | None:
    """IoU where the structure is present."""
    return score.iou if score.present else None


def nsd(score: Score) -> float | None:
    """Surface Dice where the structure is present."""
    return score.nsd if score.present else None


def hd95(score: Score) -> float | None:
    """95th percentile of the surfaces' distance where the structure is present."""
    return score.hd95 if score.present else None


def slice_dice(score: Score) -> float | None:
    """Mean Dice over the slices that hold the structure."""
    return score.slice_dice if score.present else None


def auc(score: Score) -> float | None:
    """Area under the ROC of the saliency where the structure is present."""
    return score.auc if score.present else None


def found(score: Score) -> float | None:
    """1 or 0 where the structure is present."""
    return float(score.found) if score.present else None


def falsely_found(score: Score) -> float | None:
    """1 or 0 where the structure is absent."""
    return None if score.present else float(score.found)


def cells(scores: Iterable[Score]) -> dict[tuple[str, str], list[Score]]:
    """Rows of each source and structure, in order of appearance."""
    grouped: dict[tuple[str, str], list[Score]] = {}
    for score in scores:
        grouped.setdefault((score.source, score.structure), []).append(score)
    return grouped


@dataclass(frozen=True)
class Comparison:
    """Two methods on the same cases, where the structure is present.

    ``difference`` is ours minus the other's, in Dice; ``p`` is the two-sided paired Wilcoxon test and ``p_t`` the
    two-tailed paired t-test over ``patients`` (each patient's mean over structures), NaN for fewer than two.
    """

    ours: Estimate
    other: Estimate
    difference: Estimate
    p: float
    patients: int
    p_t: float = float("nan")


def compare(scores: Sequence[Score], others: Sequence[Score]) -> Comparison:
    """Compare Dice over all structures of both tables' common rows."""
    other_dice = {(row.source, row.case, row.structure): row.dice for row in others if row.present}
    paired = [row for row in scores if row.present and (row.source, row.case, row.structure) in other_dice]

    def other_of(row: Score) -> float:
        return other_dice[row.source, row.case, row.structure] or 0.0

    def difference_of(row: Score) -> float:
        return (row.dice or 0.0) - other_of(row)

    bootstrap = Bootstrap(paired)
    structures = list(cells(paired).values())
    differences = _patient_means(paired, difference_of)
    return Comparison(
        bootstrap.estimate(structures, dice),
        bootstrap.estimate(structures, other_of),
        bootstrap.estimate(structures, difference_of),
        _wilcoxon(differences),
        len(differences),
        _t_test(differences),
    )


def holm(values: Sequence[float]) -> list[float]:
    """p values adjusted for their number (Holm 1979); NaN stays and doesn't count."""
    order = sorted((n for n, p in enumerate(values) if not np.isnan(p)), key=lambda n: values[n])
    adjusted, highest = list(values), 0.0
    for place, n in enumerate(order):
        highest = max(highest, min(1.0, values[n] * (len(order) - place)))
        adjusted[n] = highest
    return adjusted


def _patient_means(scores: Iterable[Score], measure: Callable[[Score], float]) -> np.ndarray:
    """For each patient, the mean over structures of the mean over cases."""
    by_patient: dict[tuple[str, str], dict[str, list[float]]] = {}
    for score in scores:
        of_patient = by_patient.setdefault((score.source, score.patient), {})
        of_patient.setdefault(score.structure, []).append(measure(score))
    return np.array([np.mean([np.mean(values) for values in found.values()]) for found in by_patient.values()])


def _wilcoxon(differences: np.ndarray) -> float:
    if len(differences) < 2:
        return float("nan")
    return float(stats.wilcoxon(differences).pvalue) if differences.any() else 1.0


def _t_test(differences: np.ndarray) -> float:
    if len(differences) < 2:
        return float("nan")
    if np.ptp(differences) == 0:  # no spread to measure the mean by
        return 1.0 if differences[0] == 0 else 0.0
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def _interval(resampled: np.ndarray) -> tuple[float, float]:
    """Interval of the mean over structures [k, resamples]; a structure that a resample misses is left out of it."""
    there = np.isfinite(resampled)
    counts = there.sum(0)
    means = np.where(there, resampled, 0).sum(0)[counts > 0] / counts[counts > 0]
    low, high = np.percentile(means, INTERVAL)
    return float(low), float(high)
