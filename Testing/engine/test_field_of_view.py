"""Names that lie outside a scan are marked, and none that a scan shows: drawn bodies, and the real images at hand."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import phantoms
import pytest

from MedZeroSegLib import read_volume
from MedZeroSegLib.errors import MedZeroSegError
from MedZeroSegLib.field_of_view import FieldOfView, field_of_view
from MedZeroSegLib.queries import resolve
from MedZeroSegLib.vocabulary import vocabulary

DATA = Path(__file__).parents[3] / "shared" / "data"
CASES_A_SOURCE = 4
SPACING = (4.0, 4.0, 8.0)  # i, j, k
AIR, TISSUE, LUNG, GAS = -1000, 40, -830, -990


def drawn(heights: int, width: float, depth: float, field: float = 400.0) -> np.ndarray:
    """An ellipse of tissue of these mm in each of so many slices; [i, j, k] in LPS."""
    n = round(field / SPACING[0])
    i, j = np.ogrid[:n, :n]
    body = ((i - n / 2) * SPACING[0] / (width / 2)) ** 2 + ((j - n / 2) * SPACING[1] / (depth / 2)) ** 2 <= 1
    return np.repeat(np.where(body, TISSUE, AIR)[:, :, None], heights, axis=2).astype(np.int16)


def with_lungs(
    body: np.ndarray, slices: slice, grey: int = LUNG, radius: float = 55.0, apart: float = 75.0
) -> np.ndarray:
    """Two round pieces of lung, or gas, in some slices."""
    n = len(body)
    i, j = np.ogrid[:n, :n]
    for side in (-1, 1):
        place = ((i - n / 2) * SPACING[0] + side * apart) ** 2 + ((j - n / 2) * SPACING[1]) ** 2 <= radius**2
        body[:, :, slices][place] = grey
    return body


def outside(canonical: np.ndarray, *names: str, modality: str = "CT", **options) -> dict[str, bool]:
    matrix = phantoms.lps_matrix(SPACING, (-100.0, -50.0, 20.0))
    shown = field_of_view(canonical.T, matrix, modality, 3, options.pop("calibrated", True), **options)
    return {query.name: bool(shown.reason(query.structure)) for query in resolve(list(names))}


HEAD = drawn(20, 152, 190)
TRUNK = with_lungs(drawn(60, 340, 230), slice(35, 58))  # from the pelvis to the lungs' tops
CHEST = with_lungs(drawn(30, 340, 230), slice(2, 28))
NAMES = ("brain", "liver", "heart", "prostate", "left lung", "vertebrae", "femur")


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_head_holds_no_trunk(modality):
    told = outside(HEAD + (1000 if modality == "MR" else 0), *NAMES, modality=modality)
    assert told == {
        "brain": False, "liver": True, "heart": True, "prostate": True, "left lung": True, "vertebrae": False,
        "femur": False,
    }  # fmt: skip


def test_trunk_holds_no_brain_and_all_else():
    told = outside(TRUNK, *NAMES)
    assert told == {name: name == "brain" for name in told}


def test_chest_that_ends_at_the_lungs_holds_no_pelvis():
    told = outside(CHEST, *NAMES)
    assert told == {name: name in ("brain", "prostate") for name in told}


def test_abdomen_without_lungs_holds_no_heart():
    told = outside(drawn(30, 340, 230), *NAMES)
    assert told == {name: name in ("brain", "heart", "left lung") for name in told}


def test_gas_in_the_bowel_is_no_lung():
    low_gas = with_lungs(with_lungs(drawn(60, 340, 230), slice(35, 58)), slice(0, 12), GAS, 40.0)
    assert outside(low_gas, "prostate") == {"prostate": False}


@pytest.mark.parametrize("storage", list(phantoms.storages())[::7], ids=str)
def test_the_same_is_told_however_the_scan_is_stored(storage):
    for canonical, names in ((HEAD, ["brain", "liver"]), (CHEST, ["brain", "liver", "prostate"])):
        matrix = storage.matrix(canonical.shape, phantoms.lps_matrix(SPACING, (3.0, -50.0, 20.0)))
        shown = field_of_view(storage.store(canonical).T, matrix, "CT", 3, True)
        told = {query.name: bool(shown.reason(query.structure)) for query in resolve(names)}
        assert told == outside(canonical, *names)


def test_small_children_are_not_taken_for_heads():
    infant = with_lungs(drawn(40, 170, 130), slice(25, 38), radius=28.0, apart=38.0)
    assert not any(outside(infant, "liver", "heart", "prostate", "left kidney").values())


def test_what_is_cut_off_by_the_edge_or_a_round_field_tells_nothing():
    cut = drawn(20, 152, 190, field=180)
    round_field = drawn(20, 200, 200)  # a heart in a field of view of 20 cm
    for canonical in (cut, round_field):
        assert not any(outside(canonical, "liver", "prostate", modality="MR").values())


def test_small_crops_oblique_and_uncalibrated_images_tell_nothing():
    assert not any(outside(HEAD[38:62, 38:62], *NAMES, modality="MR").values())
    assert not any(outside(HEAD, *NAMES, calibrated=False).values())
    tilted = phantoms.lps_matrix(SPACING, (0.0, 0.0, 0.0), phantoms.rotation_about((1, 0, 0), 40.0))
    assert field_of_view(HEAD.T, tilted, "CT", 3, True) == FieldOfView()


def test_nothing_but_air_or_zeros_tells_nothing():
    for value in (0, AIR):
        assert not any(outside(np.full((50, 50, 10), value, np.int16), *NAMES).values())


@pytest.mark.parametrize(
    ("part", "dimension", "name", "is_outside"),
    [
        ("BRAIN", 3, "liver", True), ("head", 3, "brain", False), ("KNEE", 2, "lung", True),
        ("KNEE", 3, "femur", False), ("CHEST", 2, "brain", True), ("CHEST", 2, "liver", False),
        ("CHEST", 3, "prostate", False), ("ABDOMEN", 3, "prostate", False), ("", 2, "brain", False),
    ],
)  # fmt: skip
def test_body_part_of_dicom_counts_where_it_can_be_trusted(part, dimension, name, is_outside):
    shown = field_of_view(np.zeros((1, 64, 64), np.int16), np.eye(4), "X-ray", dimension, True, part)
    assert bool(shown.reason(vocabulary()[name])) is is_outside


@pytest.mark.skipif(not DATA.is_dir(), reason="shared/data with the real images isn't beside the checkout")
def test_no_structure_that_a_real_image_shows_is_marked():
    seen: dict[str, int] = {}
    marked, heads = [], 0
    with (DATA / "manifest.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        if row["dimension"] != "3D" or seen.get(row["source"], 0) >= CASES_A_SOURCE:
            continue
        seen[row["source"]] = seen.get(row["source"], 0) + 1
        try:
            volume = read_volume(DATA / row["image"])
        except MedZeroSegError:
            continue
        shown = field_of_view(volume.voxels, volume.ijk_to_lps, volume.modality, volume.dimension, volume.calibrated)
        names = [label.partition("=")[2] for label in row["labels"].split(";") if label]
        for query in resolve(names) if names else []:
            if query.structure and shown.reason(query.structure):
                marked.append((row["case_id"], query.name, shown.reason(query.structure)))
        heads += row["body_part"] == "brain" and bool(shown.reason(vocabulary()["liver"]))
    assert marked == [] and sum(seen.values()) > 15
    assert heads, "a brain is told from a trunk"
