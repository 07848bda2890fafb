"""The `lite` preset on real images with reference masks, of patients that its training never saw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from MedZeroSegLib import read_volume, segment
from MedZeroSegLib.evaluation.manifest import read_manifest

DATA = Path(__file__).parents[3] / "shared" / "data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="shared/data with the real images isn't beside the checkout")


def dice(first: np.ndarray, second: np.ndarray) -> float:
    return 2 * float((first & second).sum()) / float(first.sum() + second.sum())


@pytest.fixture(scope="module")
def unseen():
    return [case for case in read_manifest(DATA / "manifest.csv", "val")]


def median_dice(cases, source: str, name: str, count: int) -> float:
    chosen = [case for case in cases if case.source == source and name in case.labels.values()][:count]
    assert chosen, f"no case of {source} marks {name}"
    scores = []
    for case in chosen:
        volume, labels = case.read()
        value = next(value for value, label in case.labels.items() if label == name)
        scores.append(dice(segment(volume, [name]).segments[0].mask, labels == value))
    return float(np.median(scores))


# Floors lie well under the measured means, which the model card gives with n and intervals.
@pytest.mark.parametrize(
    ("source", "name", "floor"),
    [
        ("covid_lung_xray", "left lung", 0.85),
        ("covid_lung_xray", "right lung", 0.85),
        ("btcv_abdomen_ct", "liver", 0.80),
        ("btcv_abdomen_ct", "left kidney", 0.55),
        ("btcv_abdomen_ct", "aorta", 0.60),
        ("sunnybrook_cardiac_mr", "left ventricle", 0.75),
    ],
)
def test_mask_lies_on_the_organ(unseen, source, name, floor):
    assert median_dice(unseen, source, name, 3) >= floor


def test_whole_volume_ct_has_its_organs_on_their_sides():
    volume = read_volume(DATA / "totalsegmentator_ct_mr" / "images" / "totalseg_ct_a.nii.gz")
    liver, spleen, left, right, brain = segment(
        volume, ["liver", "spleen", "left kidney", "right kidney", "hippocampus"]
    ).segments
    assert liver.found and left.found and right.found and not brain.found
    x = {item.name: centre_lps(volume, item.mask)[0] for item in (liver, left, right)}
    assert x["left kidney"] > x["right kidney"]  # LPS x grows to the patient's left
    assert x["liver"] < x["left kidney"]
    assert not (left.mask & right.mask).any()
    assert liver.mask.shape == volume.shape


def test_three_slice_ct_with_true_geometry():
    volume = read_volume(DATA / "dcmqi_ct_three_slices" / "images" / "dcmqi_ct_01.nii.gz")
    result = segment(volume, ["liver"])
    assert result.segments[0].found
    assert result.volume_ml(result.segments[0]) > 0


def centre_lps(volume, mask: np.ndarray) -> np.ndarray:
    return volume.ijk_to_world_lps(np.argwhere(mask)[:, ::-1].mean(axis=0)[None])[0]
