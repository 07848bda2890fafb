"""A small cohort with masks of a teacher that works by arithmetic, made by the code that makes real ones; and students
small enough to be trained in a test."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from phantoms import lps_matrix, rotation_about, write_image

from MedZeroSegLib import pipeline
from MedZeroSegLib.cohort.case import Case
from MedZeroSegLib.cohort.journal import Journal
from MedZeroSegLib.cohort.settings import CaseMarks, RunSettings
from MedZeroSegLib.cohort.work import case_folder, run_case, work_place
from MedZeroSegLib.confidence import Confidence
from MedZeroSegLib.extent import mask_extent
from MedZeroSegLib.queries import resolve
from MedZeroSegLib.segment import Segment, Segmentation
from MedZeroSegLib.text_image import student_network
from MedZeroSegLib.volume import Volume

SHAPE = (5, 48, 64)  # k, j, i
MATRIX = lps_matrix((1.5, 1.5, 10.0), rotation=rotation_about((0.2, 0.1, 1.0), 15.0))  # slices lie far apart
VENTRICLE, WALL, ELSEWHERE = 200, 120, 40
NAMES = "left ventricle; left ventricular myocardium"
WEIGHTS = ({"name": "arithmetic", "file": "", "sha256": "ab" * 32, "licence": "none"},)


def heart(number: int) -> tuple[np.ndarray, np.ndarray]:
    """Voxels int16 [k, j, i] and labels (1 ventricle, 2 wall): discs beside the middle, each volume's at another place.
    The first and the last slice show none."""
    rng = np.random.default_rng(number)
    j, i = np.mgrid[: SHAPE[1], : SHAPE[2]]
    centre = rng.uniform((18, 14), (28, 30))
    distance = np.hypot(j - centre[0], i - centre[1])
    labels = np.zeros(SHAPE, np.uint8)
    labels[1:-1, distance < 11] = 2
    labels[1:-1, distance < 6] = 1
    voxels = np.array([ELSEWHERE, VENTRICLE, WALL])[labels] + rng.normal(0, 6, SHAPE)
    return voxels.astype(np.int16), labels


def confidence_in(mask: np.ndarray, expected_dice: float) -> Confidence:
    """Sure inside, in doubt on the mask's outermost rows of its box; the third slice is the most doubtful."""
    box = mask_extent(mask)
    i0, i1, j0, j1, k0, k1 = box
    uncertainty = np.zeros((k1 - k0 + 1, j1 - j0 + 1, i1 - i0 + 1), np.uint8)
    uncertainty[:, 0] = 250
    doubt = np.array([0, 0.1, 0.8, 0.2, 0], np.float32)
    return Confidence(expected_dice, 0, doubt, box, uncertainty)


class Teacher:
    """Takes `pipeline.segment`'s place. Knows the ventricle well and, of every third volume, the wall badly."""

    def __init__(self, expected: float = 0.9) -> None:
        self.expected = expected

    def __call__(self, volume: Volume, names: str, *_: object) -> Segmentation:
        number = int(volume.path.name.split(".")[0].split("_")[1]) if volume.path else 0
        _, labels = heart(number)
        segments = []
        for query in resolve(names):
            wall = query.name == "left ventricular myocardium"
            mask = labels == (2 if wall else 1)
            if wall and number % 3:
                mask = np.zeros_like(mask)
            expected = 0.2 if wall else self.expected
            segments.append(
                Segment(
                    typed=query.typed, name=query.name, found=bool(mask.any()), score=0.9 if mask.any() else 0.1,
                    mask=mask, code=query.code, category=query.category, modifier=None, color=query.color, slices=3,
                    confidence=confidence_in(mask, expected) if mask.any() else None,
                )
            )  # fmt: skip
        return Segmentation(
            volume=volume, segments=tuple(segments), preset="arithmetic", weights=WEIGHTS, device="cpu", seconds={},
            settings={}, version="1",
        )  # fmt: skip


def make_cohort(folder: Path, count: int, monkeypatch: pytest.MonkeyPatch, expected: float = 0.9) -> Path:
    """``count`` volumes in ``folder``/images, and what `medzeroseg cohort --uncertainty` would make of them."""
    monkeypatch.setattr(pipeline, "segment", Teacher(expected))
    results = folder / "cohort"
    results.mkdir(parents=True)
    journal, marks = Journal(results, make=True), CaseMarks("settings", "weights")
    run = journal.start_run(1, 1, {})
    for number in range(count):
        name = f"heart_{number}"
        image = folder / "images" / f"{name}.nii.gz"
        image.parent.mkdir(exist_ok=True)
        write_image(image, heart(number)[0].T, MATRIX)
        case = Case(name=name, image=image, structures=NAMES, modality="MR")
        journal.await_turns([(case, "new")])
        journal.begin(name)
        answer = run_case(case, RunSettings(uncertainty=True), marks, results, 1)
        (results / "cases").mkdir(exist_ok=True)
        shutil.move(work_place(results, name, 1), case_folder(results, name))
        journal.finish(answer, run)
    journal.close()
    return results


def small_students(monkeypatch: pytest.MonkeyPatch | None = None, filters: Sequence[int] = (6, 12, 24)) -> None:
    """From here on students are small."""
    for name, value in (("FILTERS", tuple(filters)), ("PLANE_PATCH", (96, 96)), ("STACK_PATCH", (8, 64, 64))):
        if monkeypatch is None:
            setattr(student_network, name, value)
        else:
            monkeypatch.setattr(student_network, name, value)
