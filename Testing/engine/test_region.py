"""Where it is looked and how sure one must be: regions of interest on any grid, and the sensitivity."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import phantoms
import pytest
from analytic import analytic_engine, dice
from hypothesis import given, settings
from hypothesis import strategies as st
from test_pipeline import (
    BRIGHTNESS,
    LEFT_KIDNEY,
    LIVER_PLACE,
    RIGHT_KIDNEY,
    SHAPE,
    abdomen,
    load,
    run,
    stored,
)  # fmt: skip

from MedZeroSegLib import pipeline
from MedZeroSegLib.errors import InputError
from MedZeroSegLib.protocol import ProtocolError, read_segment
from MedZeroSegLib.region import Region
from MedZeroSegLib.segment_tags import provenance_record
from MedZeroSegLib.sensitivity import threshold_at
from MedZeroSegLib.volume import Volume

__all__ = ["load"]
LEFT_HALF = np.zeros(SHAPE, bool)  # of the phantom [i, j, k], with the whole left kidney
LEFT_HALF[22:42, 12:32] = True


def box_of(mask: np.ndarray) -> tuple[int, ...]:
    """Extent of a mask [k, j, i]."""
    k, j, i = np.nonzero(mask)
    return i.min(), i.max(), j.min(), j.max(), k.min(), k.max()


def within(canonical: np.ndarray, storage: phantoms.Storage) -> Region:
    """The region of a box of the phantom, in a storage."""
    return Region(tuple(int(index) for index in box_of(storage.store(canonical).T)))


# Regions


@pytest.mark.parametrize("storage", list(phantoms.storages())[::5], ids=str)
def test_in_a_region_there_is_exactly_what_is_there_anyway(load, storage):
    load(analytic_engine(BRIGHTNESS))
    volume = stored(abdomen(), storage)
    region = within(LEFT_HALF, storage)
    whole, part = run(volume, "kidney; liver"), run(replace(volume, region=region), "kidney; liver")
    inside = region.mask(volume.shape)
    assert inside.sum() == LEFT_HALF.sum()
    assert np.array_equal(part["kidney"].mask, whole["kidney"].mask & inside) and part["kidney"].found
    assert dice(part["kidney"].mask, storage.store(LEFT_KIDNEY).T) >= 0.9
    assert not part["liver"].found, "it lies outside"


@pytest.mark.parametrize("storage", list(phantoms.storages())[2::13], ids=str)
def test_side_is_the_patients_and_not_the_regions(load, storage):
    load(analytic_engine(BRIGHTNESS))
    region = within(LEFT_HALF, storage)
    found = run(replace(stored(abdomen(), storage), region=region), "left kidney; right kidney")
    assert dice(found["left kidney"].mask, storage.store(LEFT_KIDNEY).T) >= 0.9
    assert not found["right kidney"].found


def test_mask_ends_with_the_region(load):
    load(analytic_engine(BRIGHTNESS))
    cut = Region((10, 33, 7, 20, 3, 4))  # through the liver
    segment = run(replace(stored(abdomen()), region=cut), "liver")["liver"]
    inside = cut.mask(segment.mask.shape)
    assert not (segment.mask & ~inside).any()
    assert dice(segment.mask, LIVER_PLACE.T & inside) >= 0.9


def test_slices_outside_are_not_encoded_and_other_regions_not_mixed_up(load):
    engine = load(analytic_engine(BRIGHTNESS))
    volume = stored(abdomen())
    run(replace(volume, region=Region((0, SHAPE[0] - 1, 0, SHAPE[1] - 1, 3, 4))), "liver")
    assert engine.decoder.pictures_embedded == 2
    assert not run(replace(volume, region=Region((36, 43, 0, 35, 0, 7))), "liver")["liver"].found
    assert run(volume, "liver")["liver"].found


def test_region_without_the_patient_finds_nothing(load):
    load(analytic_engine(BRIGHTNESS))
    found = run(replace(stored(abdomen()), region=Region((0, 1, 0, 1, 0, 7))), "liver; kidney")
    assert not any(segment.found for segment in found.values())


def test_turned_region_holds_the_voxels_whose_centres_it_holds(load):
    load(analytic_engine(BRIGHTNESS))
    turned = turned_region(np.array([13.0, 9.0, 4.5]), np.array([6.0, 4.0, 1.6]), 35.0)
    volume = replace(stored(abdomen()), region=turned)
    inside = turned.mask(volume.shape)
    corners = box_of(inside)
    assert all(turned.box[n] <= corners[n] if n % 2 == 0 else corners[n] <= turned.box[n] for n in range(6))
    assert 0 < inside.sum() < np.prod(turned.shape)
    segment = run(volume, "liver")["liver"]
    assert segment.found and not (segment.mask & ~inside).any()
    assert dice(segment.mask, LIVER_PLACE.T & inside) >= 0.9


def turned_region(centre: np.ndarray, half: np.ndarray, degrees: float) -> Region:
    """A box around a centre (i, j, k), turned about k."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    axes = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) * half
    corners = np.array([centre + axes @ signs for signs in product((-1, 1), repeat=3)])
    first = np.clip(np.ceil(corners.min(0)), 0, np.array(SHAPE) - 1).astype(int)
    last = np.clip(np.floor(corners.max(0)), 0, np.array(SHAPE) - 1).astype(int)
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = axes, centre
    i0, j0, k0 = (int(n) for n in first)
    i1, j1, k1 = (int(n) for n in last)
    return Region((i0, i1, j0, j1, k0, k1), tuple(tuple(float(x) for x in row) for row in np.linalg.inv(matrix)))


@settings(max_examples=60, deadline=None)
@given(
    centre=st.tuples(st.floats(4, 38), st.floats(4, 30), st.floats(1, 6)),
    half=st.tuples(st.floats(1, 12), st.floats(1, 9), st.floats(0.6, 4)),
    degrees=st.floats(-180, 180),
)
def test_every_voxel_is_asked_for_its_own_place(centre, half, degrees):
    region = turned_region(np.array(centre), np.array(half), degrees)
    inverse = np.array(region.ijk_to_unit)
    mask = region.mask((SHAPE[2], SHAPE[1], SHAPE[0]))
    i, j, k = np.indices(SHAPE)
    unit = np.einsum("ab,b...->a...", inverse, np.stack([i, j, k, np.ones_like(i)]).astype(float))[:3]
    depth = np.abs(unit).max(0).T - 1
    assert mask[depth < -1e-5].all() and not mask[depth > 1e-5].any()


def test_region_is_kept_with_the_segment(load):
    load(analytic_engine(BRIGHTNESS))
    region = within(LEFT_HALF, next(phantoms.storages()))
    result = pipeline.segment(replace(stored(abdomen()), region=region), "kidney")
    record = provenance_record(result.segments[0], result)
    assert record["region"] == {"box": list(region.box), "ijk_to_unit": None}
    assert record["volume_fingerprint"] == stored(abdomen()).fingerprint


@pytest.mark.parametrize("box", [(-1, 5, 0, 3, 0, 3), (0, SHAPE[0], 0, 3, 0, 3), (5, 4, 0, 3, 0, 3)])
def test_region_that_leaves_the_image_is_refused(box):
    with pytest.raises(ValueError, match="leaves the grid"):
        replace(stored(abdomen()), region=Region(box))


def test_message_brings_region_and_sensitivity():
    request = read_segment(message(sensitivity=0.75, region={"box": [1, 2, 3, 4, 5, 6], "ijk_to_unit": None}))
    assert request.region == Region((1, 2, 3, 4, 5, 6)) and request.sensitivity == 0.75
    plain = read_segment(message())
    assert plain.region is None and plain.sensitivity == 0.5


@pytest.mark.parametrize(
    "fields",
    [
        {"sensitivity": "high"},
        {"region": {"box": [1, 2, 3]}},
        {"region": {"box": [1, 2, 3, 4, 5, 6.5]}},
        {"region": {"box": [1, 2, 3, 4, 5, 6], "ijk_to_unit": [[1, 2], [3, 4]]}},
    ],
)
def test_message_with_another_region_or_sensitivity_is_refused(fields):
    with pytest.raises(ProtocolError):
        read_segment(message(**fields))


def message(**fields: Any) -> dict[str, Any]:
    volume = {"voxels": "v.npy", "ijk_to_lps": np.eye(4).tolist(), "dimension": 3, "calibrated": True}
    common = {"preset": "lite", "device": "cpu", "folder": "masks", "names": ["liver"]}
    return {"id": 1, "cmd": "segment", "volume": volume, **common, **fields}


# Sensitivity


def test_more_sensitivity_finds_what_less_does_not(load):
    weak = {"pancreas": 0.6 + 0.0708}  # a logit of 1.1, a share of .75
    load(analytic_engine(weak, {"pancreas": ()}, found_min=0.88, slice_min=0.7))
    volume = stored(abdomen(liver=False))
    found = [pipeline.segment(volume, "pancreas", sensitivity=s).segments[0].found for s in (0.0, 0.5, 0.8, 1.0)]
    assert found == [False, False, True, True]


def test_found_slices_grow_with_the_sensitivity(load):
    load(analytic_engine({"kidney": 0.6 + 0.0708}, {"kidney": ()}, found_min=0.01, slice_min=0.8))
    volume = stored(abdomen())
    counts = [pipeline.segment(volume, "kidney", sensitivity=s).segments[0].slices for s in (0.2, 0.5, 0.8)]
    assert counts == sorted(counts) and counts[0] < counts[-1]


def test_neutral_sensitivity_is_the_presets_own(load):
    engine = load(analytic_engine(BRIGHTNESS))
    assert engine.at(0.5) is engine
    result = pipeline.segment(stored(abdomen()), "liver", sensitivity=0.9)
    record = provenance_record(result.segments[0], result)
    assert record["settings"]["sensitivity"] == 0.9
    assert record["settings"]["found_min"] == pytest.approx(threshold_at(engine.preset.found_min, 0.9))


@pytest.mark.parametrize("sensitivity", [-0.1, 1.01, float("nan")])
def test_sensitivity_outside_its_range_is_a_sentence(load, sensitivity):
    load(analytic_engine(BRIGHTNESS))
    with pytest.raises(InputError, match="between 0 and 1"):
        pipeline.segment(stored(abdomen()), "liver", sensitivity=sensitivity)


@given(st.floats(1e-6, 1 - 1e-6), st.floats(0, 1), st.floats(0, 1))
def test_threshold_falls_as_the_sensitivity_grows(threshold, one, other):
    low, high = sorted((one, other))
    assert 0 < threshold_at(threshold, high) <= threshold_at(threshold, low) + 1e-12 < 1 + 1e-9
    mirrored = 1 - threshold_at(1 - threshold, 1 - low)
    assert threshold_at(threshold, low) == pytest.approx(mirrored, abs=1e-9)
    assert threshold_at(threshold, 0.5) == threshold


def test_documented_thresholds_are_those():
    assert [round(threshold_at(0.88, s), 2) for s in (0, 0.75, 1)] == [0.98, 0.73, 0.5]


def test_right_kidney_lies_outside_the_left_half():
    assert not (RIGHT_KIDNEY & LEFT_HALF).any() and (LEFT_KIDNEY & ~LEFT_HALF).sum() == 0
    assert isinstance(stored(abdomen()), Volume)
