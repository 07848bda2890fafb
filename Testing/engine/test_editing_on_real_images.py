"""Correcting by hand on real images of patients that neither the text's nor the corrector's training saw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from MedZeroSegLib.editing import EditingSession
from MedZeroSegLib.evaluation.manifest import Case, read_manifest
from MedZeroSegLib.presets import load_engine
from MedZeroSegLib.training.simulated_hints import click

DATA = Path(__file__).parents[3] / "shared" / "data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="shared/data with the real images isn't beside the checkout")


def dice(first: np.ndarray, second: np.ndarray) -> float:
    return 2 * float((first & second).sum()) / float(first.sum() + second.sum())


def case_of(source: str, name: str, number: int) -> tuple[Case, int]:
    cases = [c for c in read_manifest(DATA / "manifest.csv", "val") if c.source == source and name in c.labels.values()]
    case = cases[number]
    return case, next(value for value, label in case.labels.items() if label == name)


def clicked(editing: EditingSession, truth: np.ndarray, clicks: int) -> list[float]:
    """Dice in a picture after each click of a user who sees the truth."""
    scores = []
    for _ in range(clicks):
        place = click(editing.drawing.mask[0], editing.frame.forward(truth)[0], None)
        if place is not None:
            row, column, inside = place
            (editing.include if inside else editing.exclude)([[column, row, 0]])
        scores.append(dice(editing.mask, truth))
    return scores


@pytest.mark.parametrize(
    ("source", "name", "floor"),
    [("sunnybrook_cardiac_mr", "left ventricle", 0.8), ("btcv_abdomen_ct", "left kidney", 0.8)],
)
def test_a_structure_without_name_is_drawn_from_nothing_with_three_clicks(source, name, floor):
    case, value = case_of(source, name, 2)
    volume, labels = case.read()
    scores = clicked(EditingSession(volume, load_engine("lite")), labels == value, 3)
    assert max(scores) >= floor, scores


def test_a_box_draws_the_left_ventricle():
    case, value = case_of("sunnybrook_cardiac_mr", "left ventricle", 2)
    volume, labels = case.read()
    truth = labels == value
    _, j, i = np.nonzero(truth)
    editing = EditingSession(volume, load_engine("lite"))
    editing.box((i.min() - 4, i.max() + 4, j.min() - 4, j.max() + 4, 0, 0))
    assert dice(editing.mask, truth) >= 0.8
