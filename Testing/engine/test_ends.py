"""Doubtful slices at a structure's ends are emptied, on the side where the patient has them; those between stay."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import phantoms
import pytest
from analytic import CANVAS, analytic_engine, ellipsoid
from hypothesis import given
from hypothesis import strategies as st

from MedZeroSegLib import encoding, pipeline
from MedZeroSegLib.assembly import KeySlices
from MedZeroSegLib.calibration import Calibration, Logistic
from MedZeroSegLib.ends import trim_ends
from MedZeroSegLib.presets import Engine
from MedZeroSegLib.volume import Volume

SHAPE, SPACING, ORIGIN = (44, 36, 10), (2.0, 2.2, 6.0), (-43.0, -38.5, -21.0)  # i, j, k
AIR, BODY, KIDNEY = -1000, -60, 80
BY_SIZE = Calibration(  # a slice is trusted by what it holds
    presence=Logistic(0.0, {"evidence": 1.0}),
    found_min=0.5,
    dice=Logistic(0.0, {"self_dice": 1.0}),
    slice_dice=Logistic(-6.0, {"area": 1.0}),
)


def held(expected: list[float], keys: list[int], count: int) -> list[int]:
    """The slices that still hold something, of a mask that fills all from the first key slice to the last."""
    mask = np.zeros((count, 2, 2), bool)
    mask[keys[0] : keys[-1] + 1] = True
    trim_ends(mask, np.arange(len(keys)), np.array(expected), KeySlices(np.array(keys), count))
    assert (mask.all((1, 2)) == mask.any((1, 2))).all()
    return np.flatnonzero(mask.any((1, 2))).tolist()


def test_doubtful_slices_at_the_ends_go_and_those_between_stay():
    assert held([0.2, 0.3, 0.9, 0.1, 0.8, 0.9, 0.9, 0.4], list(range(1, 9)), 12) == [3, 4, 5, 6, 7]
    assert held([0.7, 0.9, 0.8, 0.8, 0.7], [0, 1, 2, 3, 4], 5) == [0, 1, 2, 3, 4]
    assert held([0.4], [2], 5) == [2]


def test_few_slices_stay_as_they_are():
    assert held([0.1, 0.9, 0.9, 0.1], [1, 2, 3, 4], 6) == [1, 2, 3, 4]
    assert held([0.1, 0.9, 0.9, 0.9, 0.1], [0, 1, 2, 3, 4], 6) == [1, 2, 3]


def test_slices_between_two_key_slices_go_half_way():
    assert held([0.1, 0.9, 0.9, 0.9, 0.1], [0, 4, 8, 12, 16], 17) == list(range(2, 15))


@given(st.lists(st.floats(0.001, 1), min_size=1, max_size=12), st.integers(1, 4))
def test_what_is_best_stays_whatever_is_expected(expected, step):
    keys = list(range(0, step * len(expected), step))
    best = keys[int(np.argmax(expected))]
    assert best in held(expected, keys, step * len(expected) + 2)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    chosen = replace(analytic_engine({"kidney": 0.6}), calibration=BY_SIZE)
    monkeypatch.setattr(encoding, "IMAGE_SIZE", CANVAS)
    monkeypatch.setattr(pipeline, "load_engine", lambda *_: chosen)
    encoding.forget_volumes()
    yield chosen
    encoding.forget_volumes()


@pytest.mark.parametrize("storage", list(phantoms.storages())[::7], ids=str)
def test_a_thin_tail_is_cut_off_wherever_the_volume_stores_it(engine: Engine, storage: phantoms.Storage):
    organ = ellipsoid(SHAPE, (31, 19, 4), (6, 7, 40))
    organ[:, :, [0, 1, 2, 9]] = False
    tail = ellipsoid(SHAPE, (31, 19, 4), (2, 2, 40))
    voxels = np.full(SHAPE, AIR, np.int16)
    voxels[ellipsoid(SHAPE, (21.5, 17.5, 4.5), (21.8, 17.8, 40))] = BODY
    voxels[organ] = KIDNEY
    voxels[:, :, 1:3][tail[:, :, 1:3]] = KIDNEY
    matrix = storage.matrix(SHAPE, phantoms.lps_matrix(SPACING, ORIGIN, None))
    (segment,) = pipeline.segment(Volume(storage.store(voxels).T, matrix, "CT"), "kidney").segments
    shown = storage.store(organ).T
    assert segment.found and segment.confidence is not None and segment.slices == 6
    alone = storage.store(np.broadcast_to(organ.any((0, 1)), SHAPE)).T
    assert not segment.mask[~alone].any()
    assert segment.mask[shown].mean() > 0.8
