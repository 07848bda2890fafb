"""Confidence on volumes that are known to the last voxel: where the uncertainty lies, which slices are doubted, that
both follow the patient and not the storage; and the shipped calibrations."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import phantoms
import pytest
from analytic import CANVAS, analytic_engine, ellipsoid
from scipy import ndimage

from MedZeroSegLib import encoding, pipeline
from MedZeroSegLib.calibration import Calibration, Logistic, calibration_file, calibration_of
from MedZeroSegLib.confidence import Confidence
from MedZeroSegLib.errors import InstallationError
from MedZeroSegLib.extent import mask_extent
from MedZeroSegLib.presence import presence_features
from MedZeroSegLib.presets import PRESETS, Engine, load_engine
from MedZeroSegLib.saliency import Saliency, evidence_of
from MedZeroSegLib.segment import Segment
from MedZeroSegLib.volume import Volume
from MedZeroSegLib.weights_catalogue import sha256_of
from MedZeroSegLib.writers import report

SHAPE, SPACING, ORIGIN = (44, 36, 10), (2.0, 2.2, 6.0), (-43.0, -38.5, -21.0)  # i, j, k
AIR, BODY, KIDNEY = -1000, -60, 80
ORGAN = ellipsoid(SHAPE, (31, 21, 3.5), (6, 7, 2.8))
# Expected Dice is that which the mask expects of itself; so is a slice's, less where its neighbours don't agree.
SELF = Calibration(
    presence=Logistic(0.0, {"evidence": 1.0}),
    found_min=0.5,
    dice=Logistic(0.0, {"self_dice": 1.0}),
    slice_dice=Logistic(-2.0, {"self_dice": 0.5, "beside": 3.0}),
)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    chosen = replace(analytic_engine({"kidney": 0.6, "spleen": 0.97}), calibration=SELF)
    monkeypatch.setattr(encoding, "IMAGE_SIZE", CANVAS)
    monkeypatch.setattr(pipeline, "load_engine", lambda *_: chosen)
    encoding.forget_volumes()
    yield chosen
    encoding.forget_volumes()


def abdomen(organ: np.ndarray = ORGAN) -> np.ndarray:
    voxels = np.full(SHAPE, AIR, np.int16)
    voxels[ellipsoid(SHAPE, (21.5, 17.5, 4.5), (21.8, 17.8, 7))] = BODY
    voxels[organ] = KIDNEY
    return voxels


def stored(storage: phantoms.Storage, voxels: np.ndarray) -> Volume:
    matrix = storage.matrix(voxels.shape, phantoms.lps_matrix(SPACING, ORIGIN, None))
    return Volume(storage.store(voxels).T, matrix, "CT")


def kidney_of(volume: Volume) -> tuple[Segment, Confidence]:
    (segment,) = pipeline.segment(volume, "kidney").segments
    assert segment.found and segment.confidence is not None
    return segment, segment.confidence


def on_grid(confidence: Confidence, shape: tuple[int, ...]) -> np.ndarray:
    i0, i1, j0, j1, k0, k1 = confidence.box
    full = np.zeros(shape, np.uint8)
    full[k0 : k1 + 1, j0 : j1 + 1, i0 : i1 + 1] = confidence.uncertainty
    return full


def test_the_box_holds_the_segment_with_a_margin_and_the_map_fits_the_box(engine: Engine) -> None:
    segment, confidence = kidney_of(stored(next(phantoms.storages()), abdomen()))
    i0, i1, j0, j1, k0, k1 = confidence.box
    assert confidence.uncertainty.shape == (k1 - k0 + 1, j1 - j0 + 1, i1 - i0 + 1)
    assert confidence.uncertainty.dtype == np.uint8
    inner = mask_extent(segment.mask)
    assert i0 < inner[0] and i1 > inner[1] and j0 < inner[2] and j1 > inner[3] and k0 <= inner[4] and k1 >= inner[5]


def test_the_uncertainty_lies_on_the_outline_and_not_inside(engine: Engine) -> None:
    segment, confidence = kidney_of(stored(next(phantoms.storages()), abdomen()))
    doubt, section = on_grid(confidence, segment.mask.shape), 3
    mask = segment.mask[section]
    core = ndimage.binary_erosion(mask, iterations=3)
    outline = mask & ~ndimage.binary_erosion(mask)
    far = ~ndimage.binary_dilation(mask, iterations=3)
    assert core.any() and doubt[section][core].max() < 25
    assert doubt[section][outline].mean() > 4 * doubt[section][core].mean() + 10
    assert doubt[section][far].mean() < doubt[section][outline].mean() / 3


@pytest.mark.parametrize("storage", list(phantoms.storages())[::7], ids=str)
def test_doubt_and_uncertainty_follow_the_patient(engine: Engine, storage: phantoms.Storage) -> None:
    voxels = abdomen()
    first, one = kidney_of(stored(next(phantoms.storages()), voxels))
    volume = stored(storage, voxels)
    second, other = kidney_of(volume)
    assert other.expected_dice == pytest.approx(one.expected_dice, abs=1e-3)
    along = np.broadcast_to(one.slice_doubt[:, None, None], first.mask.shape)
    turned = storage.store(along.T).T  # the first storage is the canonical one
    index = [0, 0, 0]
    index[other.slice_axis] = slice(None)  # type: ignore[call-overload]
    assert np.allclose(other.slice_doubt, turned[tuple(index)], atol=1e-3)
    assert np.allclose(
        on_grid(other, second.mask.shape).astype(int), storage.store(on_grid(one, first.mask.shape).T).T, atol=2
    )


def test_only_slices_of_the_segment_or_beside_it_are_doubted(engine: Engine) -> None:
    segment, confidence = kidney_of(stored(next(phantoms.storages()), abdomen()))
    held = np.flatnonzero(segment.mask.any((1, 2)))
    assert confidence.slice_axis == 0 and len(confidence.slice_doubt) == segment.mask.shape[0]
    assert (confidence.slice_doubt[held] > 0).all()
    assert not confidence.slice_doubt[held[-1] + 3 :].any()
    assert confidence.slice_doubt.max() <= 1 and confidence.slice_doubt.dtype == np.float32


def test_the_slice_whose_organ_jumps_aside_is_the_most_doubtful(engine: Engine) -> None:
    organ = ellipsoid(SHAPE, (31, 19, 4), (6, 7, 40))
    organ[:, :, 5] = np.roll(organ[:, :, 5], 8, axis=1)
    _, confidence = kidney_of(stored(next(phantoms.storages()), abdomen(organ)))
    assert int(np.argmax(confidence.slice_doubt[1:-1])) + 1 == 5
    assert confidence.doubtful_slices()[0] == 5


def test_a_faint_organ_is_expected_worse_than_a_clear_one(engine: Engine) -> None:
    clear = abdomen()
    _, sure = kidney_of(stored(next(phantoms.storages()), clear))
    faint = clear.copy()
    faint[ORGAN] -= 27
    encoding.forget_volumes()
    _, unsure = kidney_of(stored(next(phantoms.storages()), faint))
    assert unsure.expected_dice < sure.expected_dice


def test_what_is_absent_or_not_calibrated_has_no_confidence(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = stored(next(phantoms.storages()), abdomen())
    (absent,) = pipeline.segment(volume, "spleen").segments
    assert not absent.found and absent.confidence is None
    monkeypatch.setattr(pipeline, "load_engine", lambda *_: replace(engine, calibration=None))
    (plain,) = pipeline.segment(volume, "kidney").segments
    assert plain.found and plain.confidence is None and plain.provenance["expected_dice"] is None


def test_the_report_and_the_provenance_say_what_is_expected(engine: Engine) -> None:
    result = pipeline.segment(stored(next(phantoms.storages()), abdomen()), "kidney; spleen")
    found, absent = report(result)["structures"]
    expected = result.segments[0].confidence.expected_dice  # type: ignore[union-attr]
    assert found["expected_dice"] == pytest.approx(expected, abs=1e-3) and found["slice_axis"] == "k"
    assert all(0 <= one["slice"] < SHAPE[2] and one["doubt"] >= 0.3 for one in found["doubtful_slices"])
    assert absent["expected_dice"] is None and absent["doubtful_slices"] == []
    assert result.segments[0].provenance["expected_dice"] == pytest.approx(expected, abs=1e-3)


def test_presence_is_measured_where_the_evidence_is_strongest() -> None:
    share = np.full((3, 16, 16), 0.02, np.float16)
    share[1, 4:8, 4:9] = 0.9
    lost = np.zeros(share.shape, bool)
    lost[1, 8:10] = True
    features = presence_features(Saliency(share, lost, evidence_of(share)), np.ones(share.shape, bool), 0.7)
    assert features["area"] == pytest.approx(np.log2(21)) and features["pieces"] == 0
    assert features["spread"] == pytest.approx(1 / 3) and 0 < features["rivals"] < 0.5
    assert features["belief"] == pytest.approx(np.log(9), abs=0.02)


def test_a_logistic_adds_what_a_structure_has_of_its_own() -> None:
    model = Logistic(-1.0, {"a": 2.0}, {"liver": 0.5})
    assert model.logit("liver", {"a": 1.0, "unused": 9.0}) == pytest.approx(1.5)
    assert model.logit("spleen", {"a": 1.0}) == pytest.approx(1.0)
    assert np.allclose(model("spleen", {"a": np.array([0.5, 1e3])}), [0.5, 1.0])


@pytest.mark.parametrize("preset", [name for name, one in PRESETS.items() if one.zero_shot is None])
def test_every_trained_preset_ships_a_calibration(preset: str) -> None:
    calibration = calibration_of(preset)
    assert calibration is not None and 0.05 < calibration.found_min < 0.95
    assert calibration.dice.weights["self_dice"] > 0 and calibration.slice_dice.weights["segment"] > 0


def test_a_damaged_calibration_is_told(tmp_path: Path) -> None:
    (tmp_path / "lite-confidence.json").write_text(json.dumps({"presence": {"bias": 0}}), encoding="utf-8")
    with pytest.raises(InstallationError, match="reinstall"):
        calibration_of("lite", tmp_path)
    assert calibration_of("base", tmp_path) is None


@pytest.mark.parametrize("preset", ["lite", "lite-research"])
def test_a_result_names_the_calibration_and_the_threshold_that_decided(preset: str) -> None:
    engine = load_engine(preset, "cpu")
    file = calibration_file(preset)
    recorded = {record["name"]: record["sha256"] for record in engine.weights}
    assert recorded[f"{preset} confidence"] == sha256_of(file)
    assert engine.settings["found_min"] == json.loads(file.read_text(encoding="utf-8"))["found_min"]
