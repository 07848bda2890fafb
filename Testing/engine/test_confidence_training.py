"""Fitting of presence and confidence to rows whose truth is known: coefficients, offsets, patients left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit

from MedZeroSegLib.calibration import Logistic
from MedZeroSegLib.errors import InputError
from MedZeroSegLib.evaluation.manifest import Case
from MedZeroSegLib.training import confidence
from MedZeroSegLib.training.confidence import fitted, kind_of, left_out, presence_table, sample
from MedZeroSegLib.training.confidence_rows import Row
from MedZeroSegLib.vocabulary import vocabulary

FEATURES = ("evidence", "area", "noise")
SLOPES = np.array([1.5, -0.8, 0.0])


def row(rng: np.random.Generator, number: int, concept: str, own: float, present: float = 0.5) -> Row:
    """A row whose presence and Dice follow known models of its features, and an offset of the concept."""
    values = rng.normal(size=3)
    there = bool(rng.random() < expit(values @ SLOPES + own + np.log(present / (1 - present))))
    features = dict(zip(FEATURES, values.tolist(), strict=True))
    count = 4
    slices = rng.normal(size=count)
    dice = float(expit(values @ SLOPES + own)) if there else 0.0
    return Row(
        source="phantoms",
        patient=f"p{number % 40}",
        case=f"c{number}",
        name=concept,
        kind="marked",
        concept=concept,
        trained=True,
        any_use=True,
        present=there,
        concept_present=there,
        score=0.9,
        presence=features,
        segment=features,
        slices={"agreed": slices.tolist()},
        dice=dice,
        slice_dice=[float(dice * expit(one)) for one in slices],
    )


def rows(own: float = 0.0, count: int = 3000) -> list[Row]:
    rng = np.random.default_rng(0)
    return [row(rng, n, ("liver", "spleen")[n % 2], own * (n % 2)) for n in range(count)]


def test_known_coefficients_are_found_again_and_noise_gets_none() -> None:
    model, said = left_out(presence_table(rows()))
    found = np.array([model.weights[name] for name in FEATURES])
    assert np.allclose(found, SLOPES, atol=0.2) and abs(found[2]) < 0.1
    assert abs(said.mean() - 0.5) < 0.05


def test_a_structure_that_is_less_clear_gets_a_threshold_of_its_own() -> None:
    model, _ = left_out(presence_table(rows(own=-1.5)))
    assert model.structures["spleen"] < model.structures["liver"] - 0.5


def test_how_often_a_structure_is_shown_moves_its_threshold_little() -> None:
    rng = np.random.default_rng(1)
    rare = [row(rng, n, "spleen", 0.0, present=0.2) for n in range(1500)]
    common = [row(rng, n, "liver", 0.0, present=0.8) for n in range(1500)]
    model, _ = left_out(presence_table(rare + common))
    assert abs(model.structures["spleen"] - model.structures["liver"]) < 1.0  # the prevalences are 2.8 apart


def test_no_model_that_speaks_of_a_patient_has_seen_them(monkeypatch: pytest.MonkeyPatch) -> None:
    table = presence_table(rows(count=400))
    seen: list[set[str]] = []
    plain = confidence.fit

    def watched(given: confidence.Table, chosen: np.ndarray) -> Logistic:
        seen.append(set(given.patients[chosen]))
        return plain(given, chosen)

    monkeypatch.setattr(confidence, "fit", watched)
    left_out(table)
    everyone = set(table.patients)
    assert seen[-1] == everyone and len(seen) == confidence.FOLDS + 1
    hidden = [everyone - one for one in seen[:-1]]
    assert set().union(*hidden) == everyone and sum(map(len, hidden)) == len(everyone)


def test_the_content_ranks_patients_who_were_left_out() -> None:
    content = fitted(rows(), 0.5)
    told = content["card"]["patients left out"]
    assert content["found_min"] == 0.5 and told["found"] > 0.7 and told["false finds"] < 0.3
    assert told["area under the ROC by kind"]["large organ"] > 0.75
    assert told["correlation in slices"] > 0.5
    assert content["slice_dice"]["weights"]["agreed"] > 0 and content["slice_dice"]["structures"] == {}
    for name in ("presence", "dice", "slice_dice"):
        Logistic(**content[name])


def test_too_few_patients_are_refused() -> None:
    with pytest.raises(InputError, match="larger manifest"):
        fitted([one for one in rows(count=60) if one.patient in ("p0", "p1")], 0.5)


def test_a_sample_takes_patients_in_turn_and_is_the_same_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    class Picture:
        dimension = 2

    monkeypatch.setattr(confidence, "read_volume", lambda *_, **__: Picture())
    cases = [
        (Case(f"c{n}", f"p{n % 3 if n < 12 else 9}", "s", "CT", Path(f"{n}.png"), Path("m.png"), {}, "CC0", "train"),)
        for n in range(13)
    ]
    chosen = sample(cases, pictures=5)
    assert len(chosen) == 5 and len({image[0].patient_id for image in chosen}) == 4
    assert sample(list(reversed(cases)), pictures=5) == chosen


def test_every_structure_has_a_kind() -> None:
    kinds = {kind_of(name) for name in vocabulary()}
    assert {"large organ", "small organ", "bone", "heart", "brain", "finding"} <= kinds
    assert (kind_of("liver"), kind_of("gallbladder"), kind_of("vertebra L1"), kind_of("left ventricle")) == (
        "large organ", "small organ", "bone", "heart",
    )  # fmt: skip
    assert kind_of("a dark thing") == "other"
