"""Pictures have one scale per volume, and the body is found without the air around it."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import phantoms
import pytest
import SimpleITK as sitk

from MedZeroSegLib.intensity import BODY_FRACTION_MIN, body_mask, in_hounsfield_units, percentile_range, picture
from MedZeroSegLib.volume import Volume
from MedZeroSegLib.volume_io import read_volume

SHARED = Path(__file__).parents[3] / "shared" / "data"


def volume_of(voxels: np.ndarray, modality: str, **fields) -> Volume:
    return Volume(voxels, phantoms.lps_matrix((1, 1, 1)), modality, **fields)


def trunk() -> tuple[np.ndarray, np.ndarray]:
    """A CT [k, j, i] in HU with noise: fat, muscle, two lungs, a spine, a table; and its body with the lungs."""
    k, j, i = np.mgrid[:12, :60, :80]
    body = ((i - 40) / 30.0) ** 2 + ((j - 28) / 20.0) ** 2 < 1
    body[10:] = False
    muscle = ((i - 40) / 27.0) ** 2 + ((j - 28) / 17.0) ** 2 < 1
    lungs = ((np.abs(i - 40) - 13) / 8.0) ** 2 + ((j - 26) / 11.0) ** 2 < 1
    spine = (i - 40) ** 2 + (j - 42) ** 2 < 16
    voxels = np.full(body.shape, -1000.0)
    voxels[(j > 55) & (j < 58)] = 100
    for mask, value in ((body, -100), (body & muscle, 50), (body & lungs, -850), (body & spine, 500)):
        voxels[mask] = value
    voxels += np.random.default_rng(0).normal(0, 10, voxels.shape)
    return voxels.astype(np.int16), body


def test_ct_is_shown_through_the_window():
    voxels = np.array([-1000, -160, -60, 40, 140, 240, 3000], np.int16).reshape(1, 1, 7)
    ct = volume_of(voxels, "CT")
    assert picture(ct).ravel().tolist() == [0, 0, 64, 128, 191, 255, 255]
    assert picture(ct, window=(-600, 1500)).ravel().tolist() == [60, 202, 219, 236, 253, 255, 255]


@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.float32])
def test_mr_spans_the_percentiles_of_what_is_above_zero(dtype):
    voxels = np.zeros((10, 20, 30), dtype)
    voxels[2:8, 5:15, 5:25] = np.linspace(100, 1100, 6 * 10 * 20).reshape(6, 10, 20)
    voxels[3, 6, 6] = 30000
    shown = picture(volume_of(voxels, "MR"))
    assert shown.dtype == np.uint8
    assert shown[0].max() == 0
    assert shown[7, 14, 24] == 255 and 120 < shown[4, 14, 24] < 136


def test_the_scale_is_one_for_all_slices():
    voxels = np.zeros((4, 8, 8), np.int16)
    voxels[1], voxels[2] = 100, 1000
    shown = picture(volume_of(voxels, "MR"))
    assert shown[0].max() == 0
    assert shown[1].max() < shown[2].min()


def test_x_ray_spans_the_percentiles_of_all_values():
    voxels = np.arange(10000, dtype=np.uint16).reshape(1, 100, 100)
    shown = picture(volume_of(voxels, "X-ray", dimension=2))
    assert np.count_nonzero(shown == 0) == pytest.approx(70, abs=10)  # 0.5 percent and half a grey level
    assert np.count_nonzero(shown == 255) == pytest.approx(70, abs=10)


@pytest.mark.parametrize("modality", ["CT", "MR", "X-ray", "ultrasound", "PET"])
def test_a_constant_volume_is_black_and_without_body(modality):
    volume = volume_of(np.full((5, 6, 7), 40, np.int16), modality)
    assert not picture(volume).any()
    assert not body_mask(volume).any()


def test_two_grey_levels_are_told_apart():
    voxels = np.zeros((5, 6, 7), np.uint8)
    voxels[2, 2:4, 2:4] = 1
    shown = picture(volume_of(voxels, "MR"))
    assert np.array_equal(shown, voxels * 255)


def test_what_lies_outside_is_black_and_does_not_set_the_scale():
    voxels = np.random.default_rng(0).normal(500, 100, (6, 20, 20)).astype(np.float32)
    outside = np.zeros(voxels.shape, bool)
    outside[:, :5] = True
    clean = picture(volume_of(voxels, "MR"))[:, 5:]
    padded = voxels.copy()
    padded[outside] = 32000
    shown = picture(volume_of(padded, "MR", outside=outside))
    assert not shown[outside].any()
    assert np.abs(shown[:, 5:].astype(int) - clean).max() <= 8


def test_a_few_nan_change_the_picture_only_where_they_are(tmp_path):
    voxels = np.random.default_rng(0).normal(500, 100, (12, 36, 40)).astype(np.float32)
    bad = voxels.copy()
    bad[3, 4, 5:9], bad[0, 0, 0], bad[1, 1, 1] = np.nan, np.inf, -np.inf
    pictures = []
    for name, array in (("good.nrrd", voxels), ("bad.nrrd", bad)):
        phantoms.write_image(tmp_path / name, array.T, np.eye(4))
        pictures.append(picture(read_volume(tmp_path / name, modality="MR")))
    good, cleaned = pictures
    finite = np.isfinite(bad)
    assert np.abs(good[finite].astype(int) - cleaned[finite]).max() <= 1
    assert not cleaned[~finite].any()


@pytest.mark.parametrize("values", [(-3e38, 0, 3e38), (1e38, 1.5e38, 2e38), (1e-38, 2e-38, 3e-38)])
def test_extreme_floats_neither_overflow_nor_warn(values):
    voxels = np.repeat(np.array(values, np.float32), 400).reshape(3, 20, 20)
    with np.errstate(all="raise", under="ignore"):
        shown = picture(volume_of(voxels, "X-ray"))
    assert [int(section.mean()) for section in shown] == pytest.approx([0, 127.5, 255], abs=1)
    assert body_mask(volume_of(voxels, "MR")).shape == voxels.shape


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.float32])
def test_every_type_of_number_gives_the_same_picture(dtype):
    voxels = np.random.default_rng(0).integers(0, 120, (4, 20, 20))
    shown = picture(volume_of(voxels.astype(dtype), "MR"))
    assert np.array_equal(shown, picture(volume_of(voxels.astype(np.float32), "MR")))


def test_normalised_values_around_zero_use_their_whole_range():
    voxels = np.full((10, 20, 20), -3, np.float32)
    voxels[:, 5:15, 5:15] = np.linspace(-2, 2, 1000).reshape(10, 10, 10)
    low, high = percentile_range(volume_of(voxels, "MR"))
    assert low == pytest.approx(-1.98, abs=0.01) and high == pytest.approx(1.98, abs=0.01)


def test_ct_that_is_not_in_hounsfield_units_is_not_cut_by_a_window():
    rng = np.random.default_rng(0)
    eight_bit = rng.integers(0, 256, (1, 64, 64)).astype(np.uint8)
    raw = (trunk()[0].astype(int) + 1024).clip(0).astype(np.uint16)
    assert not in_hounsfield_units(volume_of(eight_bit, "CT"))
    assert not in_hounsfield_units(volume_of(raw, "CT"))
    assert in_hounsfield_units(volume_of(trunk()[0], "CT"))
    assert in_hounsfield_units(volume_of(np.array([0, 50, 300], np.int16).reshape(1, 1, 3), "CT"))
    shown = picture(volume_of(raw, "CT"), window=(40, 400))
    levels = [np.median(shown[5][mask]) for mask in (raw[5] < 100, abs(raw[5] - 924.0) < 30, abs(raw[5] - 1074.0) < 30)]
    assert levels[0] < levels[1] < levels[2]


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_the_body_holds_the_lungs_but_not_the_air_around(modality):
    voxels, body = trunk()
    if modality == "MR":  # water and fat are bright, air is noise
        voxels = np.where(body, 300 + voxels // 5, abs(voxels % 20)).astype(np.int16)
        voxels[:, 55:58] = 0
    mask = body_mask(volume_of(voxels, modality))
    table = np.zeros(body.shape, bool)
    table[:, 53:60] = True
    assert np.mean(mask[body]) > 0.995
    assert np.mean(mask[~body & ~table]) < 0.02


def test_slices_beyond_the_body_are_empty():
    voxels, _ = trunk()
    voxels[:, 53:] = -1000
    fractions = body_mask(volume_of(voxels, "CT")).mean(axis=(1, 2))
    assert (fractions[:10] > 0.2).all() and (fractions[11:] < BODY_FRACTION_MIN).all()


def test_both_legs_are_body():
    k, j, i = np.mgrid[:20, :40, :80]
    legs = ((np.abs(i - 40) - 18) ** 2 + (j - 20) ** 2) < 100
    voxels = np.where(legs, 50, -1000).astype(np.int16)
    assert np.mean(body_mask(volume_of(voxels, "CT"))[legs]) > 0.99


def test_pictures_and_crops_are_all_body():
    rng = np.random.default_rng(0)
    crop = rng.normal(100, 20, (35, 51, 35)).astype(np.float32).clip(5)
    assert body_mask(volume_of(crop, "MR")).all()
    dark_edge = rng.integers(0, 255, (1, 40, 40)).astype(np.uint8)
    dark_edge[:, :, :15] = 0
    assert body_mask(volume_of(dark_edge, "CT", dimension=2)).all()
    for modality in ("X-ray", "ultrasound"):
        assert body_mask(volume_of(np.repeat(dark_edge, 5, axis=0), modality)).all()


def test_body_and_picture_of_a_large_volume_take_little_memory_beside_their_result():
    voxels = np.broadcast_to(np.arange(300, dtype=np.int16), (200, 300, 300))
    volume = volume_of(voxels, "CT")
    for function in (picture, body_mask):
        tracemalloc.start()
        result = function(volume)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < result.nbytes + 80_000_000


@pytest.mark.skipif(not SHARED.is_dir(), reason="the folder shared/data with real images isn't beside the checkout")
@pytest.mark.parametrize(
    "case",
    [
        "totalsegmentator_ct_mr/{}/totalseg_ct_a.nii.gz",
        "totalsegmentator_ct_mr/{}/totalseg_mr_b.nii.gz",
        "dcmqi_ct_three_slices/{}/dcmqi_ct_01.nii.gz",
        "acdc_cardiac_mr_CC-BY-NC-SA/{}/acdc_001_ED.nii.gz",
        "msd_hippocampus_mr/{}/hippocampus_001.nii.gz",
        "msd_hippocampus_mr/{}/hippocampus_004.nii.gz",
    ],
)
def test_the_body_holds_every_structure_of_real_images(case):
    volume = read_volume(SHARED / case.format("images"))
    labels = sitk.GetArrayFromImage(sitk.ReadImage(str(SHARED / case.format("masks"))))
    assert np.mean(body_mask(volume)[labels > 0]) > 0.998
