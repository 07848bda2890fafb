"""What kind of figure a run gives: from zero-shot to supervised. It is always printed beside the figure.

A figure of one kind is never to be compared with one of another as if they were alike."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from MedZeroSegLib.evaluation.datasets import DataSet, Kin, data_set_of
from MedZeroSegLib.evaluation.scores import Score

TIERS: Mapping[str, str] = {
    "Z0": "zero-shot: no mask of any image taught the structures, and the prompts were fixed beforehand",
    "Z1": "settings or prompts were chosen on labelled images of the data set",
    "T": "transfer: masks of other data sets taught the structures, none of this one",
    "W": "weak: a student of pseudo-labels, without masks of the data set",
    "B": "true boxes were given",
    "S": "supervised: masks of the data set taught the structures",
    "?": "not stated",
}


PSEUDO = "masks of "  # begins the name of a source whose masks a preset drew


@dataclass(frozen=True)
class Tier:
    """A letter of ``TIERS``, and sentences on what these patients were to the weights."""

    letter: str
    remarks: tuple[str, ...] = ()


def tier_of(data: DataSet, trained_sources: Sequence[str] | None, patients: Iterable[str]) -> Tier:
    """What a preset's figures on a data set are.

    Parameters
    ----------
    trained_sources
        Names of the sources of the weights' training; empty where no masks were used, None where it isn't stated.
    patients
        Measured, as the cases call them.
    """
    if trained_sources is None:
        return Tier("?", ("The weights don't state what they were trained on.",))
    if not trained_sources:
        return Tier("Z0", ("The pretrained models' own images aren't listed and may include public ones.",))
    kin = [one for one in data.kin if one.source in trained_sources]
    teachers = [source.removeprefix(PSEUDO) for source in trained_sources if source.startswith(PSEUDO)]
    if not kin and teachers:
        return Tier("W", (f"A student of {', '.join(teachers)}, which other sources' masks had taught.",))
    if not kin:
        return Tier("T", _settings_remarks(data.kin, patients))
    if any(one.trained is None for one in kin):
        return Tier("T")  # the data set's notes say what isn't known
    numbers = _numbers(patients)
    seen = sorted(numbers & {number for one in kin for number in one.trained or ()})
    remarks = [
        f"The weights were fitted to these very patients: {_listed(seen)}; their figures are no measure of accuracy."
        if seen
        else "The weights were fitted to other patients of the data set."
    ]
    return Tier("S", (*remarks, *_settings_remarks(kin, patients)))


def untouched(scores: Iterable[Score], trained_sources: Sequence[str] | None) -> list[Score]:
    """Rows of patients that neither training nor the choice of settings saw."""
    return [score for score in scores if not _touched(score, trained_sources)]


def _touched(score: Score, trained_sources: Sequence[str] | None) -> bool:
    data = data_set_of(score.source)
    if data is None or not trained_sources:
        return False
    touching: set[int] = set()
    for one in data.kin:
        touching |= one.settings or frozenset()
        touching |= (one.trained or frozenset()) if one.source in trained_sources else frozenset()
    return bool(_numbers([score.patient]) & touching)


def _settings_remarks(kin: Iterable[Kin], patients: Iterable[str]) -> tuple[str, ...]:
    settings = sorted(_numbers(patients) & {number for one in kin for number in one.settings or ()})
    if not settings:
        return ()
    return (f"Presence and choice were set on images of these patients among others: {_listed(settings)}.",)


def _numbers(patients: Iterable[str]) -> set[int]:
    """The numbers at the end of patients' names."""
    return {int(match[0]) for patient in patients if (match := re.search(r"\d+$", patient))}


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
