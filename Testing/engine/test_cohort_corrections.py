"""Accepted and corrected cases teach the rest of their cohort: with the real models, from the command to the masks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from cohort_samples import segment, segmentation
from test_cohort_run import cohort, states

from MedZeroSegLib.cohort.case import Case
from MedZeroSegLib.cohort.corrections import Learned, learned_before, sources_of
from MedZeroSegLib.cohort.learning import Lesson, Taught, keep_lesson, kept_lesson
from MedZeroSegLib.cohort.masks_file import read_masks
from MedZeroSegLib.cohort.review import mark
from MedZeroSegLib.cohort.settings import EngineMarks, RunSettings, case_marks
from MedZeroSegLib.cohort.verdicts import Taught as Told
from MedZeroSegLib.cohort.verdicts import Verdict, forget_taught, keep_taught, kept_taught
from MedZeroSegLib.prototypes import Moments, Prototype, Side
from MedZeroSegLib.volume_io import read_volume
from MedZeroSegLib.writers import write_segmentation

NAME = "right ventricle"  # which the text doesn't see in an ellipse
CORRECTED, REST = ("a", "b", "c"), ("d", "e")
OPTIONS = ("--structures", NAME, "--modality", "MR")


def ellipse(name: str) -> tuple[np.ndarray, np.ndarray]:
    """A grey body with noise and a bright ellipse in it, uint8 [256, 256], and where that is."""
    rng = np.random.default_rng(ord(name))
    row, column = np.mgrid[0:256, 0:256]
    x, y = rng.uniform(80, 170), rng.uniform(100, 150)
    mask = ((column - x) / 26) ** 2 + ((row - y) / 20) ** 2 < 1
    body = ((column - 128) / 105) ** 2 + ((row - 128) / 85) ** 2 < 1
    grey = np.where(mask, 170, np.where(body, 60, 5)) + rng.normal(0, 6, mask.shape)
    return np.clip(grey, 0, 255).astype(np.uint8), mask


def labels(output: Path, name: str) -> Path:
    return output / "cases" / name / f"{name}.seg.nrrd"


def correct(source: Path, output: Path, name: str) -> bytes:
    """What a person would save, and the mark."""
    volume = read_volume(source / f"{name}.png", "MR")
    write_segmentation(segmentation(volume, segment(NAME, ellipse(name)[1][None])), labels(output, name))
    mark(output / "review.csv", name, "corrected")
    return labels(output, name).read_bytes()


def dice(output: Path, name: str) -> float:
    (found,) = read_masks(labels(output, name)).segments
    truth = ellipse(name)[1][None]
    return 2 * float((found.mask & truth).sum()) / float(found.mask.sum() + truth.sum())


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """Source, results, what the corrected masks were, Dice of the rest before, and what the run with them told."""
    folder = tmp_path_factory.mktemp("taught")
    source, output = folder / "in", folder / "out"
    source.mkdir()
    for name in (*CORRECTED, *REST):
        sitk.WriteImage(sitk.GetImageFromArray(ellipse(name)[0]), str(source / f"{name}.png"))
    status, told, _ = cohort(source, output, None, *OPTIONS, workers=1)
    assert status == 0, told
    before = {name: dice(output, name) for name in REST}
    masks = {name: correct(source, output, name) for name in CORRECTED}
    return source, output, masks, before, cohort(source, output, None, *OPTIONS, "--use-corrections", workers=1)


def test_the_rest_is_drawn_as_the_corrected_cases_teach(taught):
    _, output, _, before, (status, told, _) = taught
    assert status == 0, told
    assert "learned from: 3" in told and "used for the rest" in told and "To compute: 2 cases" in told
    for name in REST:
        assert before[name] < 0.3 and dice(output, name) > 0.7, (before[name], dice(output, name))


def test_corrected_masks_stay_byte_for_byte(taught):
    _, output, masks, _, _ = taught
    assert {name: labels(output, name).read_bytes() for name in CORRECTED} == masks


def test_results_and_report_say_what_they_come_from(taught):
    _, output, _, _, _ = taught
    record = json.loads((output / "cases" / "d" / "case.json").read_text())["record"]
    said = record["provenance"]["settings"]["corrections"][NAME]
    assert said["cases"] == 3 and said["before"] < said["after"] and said["weight"] > 0
    assert record["segments"][0]["doubt"] > 0
    page = (output / "report.html").read_text()
    assert "What accepted and corrected cases teach" in page and f"{said['after']:.3f}" in page


def test_again_nothing_is_computed_and_without_it_only_what_it_changed_is(taught):
    source, output, masks, _, _ = taught
    drawn = {name: labels(output, name).read_bytes() for name in REST}
    learned = {file.name: file.stat().st_mtime_ns for file in (output / "corrections").glob("*.npz")}
    status, told, _ = cohort(source, output, None, *OPTIONS, "--use-corrections", workers=1)
    assert status == 0 and "To compute: 0 cases" in told, told
    assert {file.name: file.stat().st_mtime_ns for file in (output / "corrections").glob("*.npz")} == learned
    labels(output, "e").unlink()
    cohort(source, output, None, *OPTIONS, "--use-corrections", workers=1)
    assert {name: labels(output, name).read_bytes() for name in REST} == drawn
    status, told, _ = cohort(source, output, None, *OPTIONS, "--dry-run", workers=1)
    assert "To compute: 2 cases (2 settings changed)" in told, told
    assert {name: labels(output, name).read_bytes() for name in CORRECTED} == masks
    assert {state for state, _ in states(output).values()} == {"done"}


# The parts


def side(seed: int, count: int = 5) -> Side:
    rng = np.random.default_rng(seed)
    return Side(count, rng.normal(size=4), rng.normal(size=(4, 4)).astype(np.float32))


def test_a_lesson_returns_from_its_file_unless_it_depends_on_something_else(tmp_path):
    lesson = Lesson(
        "CT",
        {
            "Größe 肺": Taught(Moments(side(0), side(1)), (-600.0, 1500.0)),
            "spleen": Taught(Moments(None, side(2)), None),
        },
    )
    keep_lesson(lesson, tmp_path / "a.npz", "key")
    again = kept_lesson(tmp_path / "a.npz", "key")
    assert again is not None and again.modality == "CT" and list(again.structures) == list(lesson.structures)
    for name, taught in lesson.structures.items():
        found = again.structures[name]
        assert found.window == taught.window
        for kept, made in (
            (found.moments.inside, taught.moments.inside),
            (found.moments.outside, taught.moments.outside),
        ):
            assert (kept is None) == (made is None)
            if kept is not None and made is not None:
                assert kept.count == made.count
                assert np.array_equal(kept.mean, made.mean) and np.array_equal(kept.product, made.product)
    assert kept_lesson(tmp_path / "a.npz", "another") is None
    (tmp_path / "a.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:200])
    assert kept_lesson(tmp_path / "a.npz", "key") is None
    assert kept_lesson(tmp_path / "none.npz", "key") is None


def test_only_cases_that_ask_for_what_was_learned_are_computed_anew(tmp_path):
    prototype = Prototype(np.ones(4, np.float32), 0.5, 0.3)
    learned = Learned(Told(3, ()), "lite", {"MR": {"liver": prototype}})
    liver, spleen = (Case(name="a", image=tmp_path, structures=names) for names in ("hepar; spleen", "spleen"))
    settings, engine = RunSettings(), EngineMarks("a", "b")
    assert learned.mark_of(spleen) == ""
    assert case_marks(spleen, settings, engine, learned.mark_of(spleen)) == case_marks(spleen, settings, engine)
    marks = [
        learned.mark_of(liver),
        Learned(Told(3, ()), "lite", {"MR": {"liver": replace(prototype, weight=1.0)}}).mark_of(liver),
        Learned(Told(3, ()), "lite", {"CT": {"liver": prototype}}).mark_of(liver),
        "",
    ]
    assert len(set(marks)) == 4


def test_a_plan_alone_writes_nothing_and_says_when_it_does_not_know(tmp_path):
    assert learned_before([], tmp_path, RunSettings()) is not None
    assert sources_of([Case(name="a", image=tmp_path, structures="liver")], tmp_path, RunSettings(),
                      EngineMarks("a", "b"), {"a": "accepted"}) == []  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_what_was_learned_is_kept_told_and_forgotten(tmp_path):
    told = Told(
        4,
        (Verdict("liver", "CT", 4, 0.9, 0.91), Verdict("spleen", "CT", 4, 0.4, 0.7, 0.3), Verdict("aorta", "CT", 2)),
        (("z", "It can't be read."),),
    )
    keep_taught(told, tmp_path)
    assert kept_taught(tmp_path) == told
    lines = told.lines()
    assert "0.900" in lines[1] and "not used" in lines[1] and "used for the rest" in lines[2]
    assert "3 cases have to show it" in lines[3] and "z: It can't be read." in lines[4]
    forget_taught(tmp_path)
    assert kept_taught(tmp_path) is None
