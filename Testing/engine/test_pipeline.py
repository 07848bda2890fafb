"""The whole line on volumes that are known to the last voxel, with models that work by arithmetic."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import permutations

import numpy as np
import phantoms
import pytest
import torch
from analytic import CANVAS, analytic_engine, dice, ellipsoid

from MedZeroSegLib import encoding, pipeline
from MedZeroSegLib.errors import InputError, MemoryShortage
from MedZeroSegLib.presets import Engine
from MedZeroSegLib.segment import Segment
from MedZeroSegLib.volume import Volume

# Canonical phantom [i, j, k] in LPS, in HU; the soft-tissue window shows HU h as (h + 160) / 400.
SHAPE, SPACING = (44, 36, 8), (2.0, 2.2, 6.0)
ORIGIN = (-43.0, -38.5, -21.0)
AIR, BODY, KIDNEY, LIVER = -1000, -60, 80, 160
BRIGHTNESS = {"kidney": 0.6, "liver": 0.8, "spleen": 0.97}
LEFT_KIDNEY = ellipsoid(SHAPE, (33, 22, 3), (5.5, 6, 2.4))
RIGHT_KIDNEY = ellipsoid(SHAPE, (10, 22, 3.5), (5, 6.5, 2.4))
LIVER_PLACE = ellipsoid(SHAPE, (13, 9, 4.5), (8, 5.5, 2.2))

Load = Callable[[Engine], Engine]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Makes the line run on an engine of one's own, with nothing kept from other tests."""
    monkeypatch.setattr(encoding, "IMAGE_SIZE", CANVAS)
    encoding._encoded.clear()

    def use(engine: Engine) -> Engine:
        monkeypatch.setattr(pipeline, "load_engine", lambda *_: engine)
        return engine

    yield use
    encoding._encoded.clear()


def abdomen(liver: bool = True) -> np.ndarray:
    voxels = np.full(SHAPE, AIR, np.int16)
    voxels[ellipsoid(SHAPE, (21.5, 17.5, 3.5), (21.8, 17.8, 5))] = BODY
    voxels[LEFT_KIDNEY | RIGHT_KIDNEY] = KIDNEY
    if liver:
        voxels[LIVER_PLACE] = LIVER
    return voxels


def stored(
    canonical: np.ndarray,
    storage: phantoms.Storage | None = None,
    rotation: np.ndarray | None = None,
    spacing: tuple[float, float, float] = SPACING,
) -> Volume:
    storage = storage or next(phantoms.storages())
    matrix = storage.matrix(canonical.shape, phantoms.lps_matrix(spacing, ORIGIN, rotation))
    return Volume(storage.store(canonical).T, matrix, "CT")


def run(volume: Volume, names: str) -> dict[str, Segment]:
    return {segment.typed: segment for segment in pipeline.segment(volume, names).segments}


def in_world(segment: Segment, volume: Volume) -> np.ndarray:
    return phantoms.world_points(segment.mask.T, volume.ijk_to_lps)


ASKED = "left kidney; right kidney; kidneys; liver; spleen"


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    """World positions of the masks of the phantom in its plain storage, which are right to begin with."""
    encoding._encoded.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding, "IMAGE_SIZE", CANVAS)
        patch.setattr(pipeline, "load_engine", lambda *_: analytic_engine(BRIGHTNESS))
        volume = stored(abdomen())
        found = run(volume, ASKED)
    truths = {
        "left kidney": LEFT_KIDNEY,
        "right kidney": RIGHT_KIDNEY,
        "kidneys": LEFT_KIDNEY | RIGHT_KIDNEY,
        "liver": LIVER_PLACE,
    }
    for name, truth in truths.items():
        assert found[name].found
        assert dice(found[name].mask.T, truth) >= 0.9, name
    assert not found["spleen"].found
    assert not (found["left kidney"].mask & found["right kidney"].mask).any()
    assert dice(found["left kidney"].mask | found["right kidney"].mask, found["kidneys"].mask) >= 0.99
    return {name: in_world(segment, volume) for name, segment in found.items()}


@pytest.mark.parametrize("storage", list(phantoms.storages()), ids=str)
def test_masks_cover_the_same_places_in_all_48_storages(load, expected, storage):
    load(analytic_engine(BRIGHTNESS))
    volume = stored(abdomen(), storage)
    for name, segment in run(volume, ASKED).items():
        assert segment.mask.shape == volume.shape
        assert np.array_equal(in_world(segment, volume), expected[name]), name


@pytest.mark.parametrize("storage", list(phantoms.storages())[1::11], ids=str)
def test_oblique_volumes_are_cut_and_sided_alike(load, storage):
    load(analytic_engine(BRIGHTNESS))
    rotation = phantoms.rotation_about((0.3, 0.2, 1.0), 20)
    plain, volume = stored(abdomen(), None, rotation), stored(abdomen(), storage, rotation)
    first, second = run(plain, ASKED), run(volume, ASKED)
    for name in first:
        assert np.array_equal(in_world(first[name], plain), in_world(second[name], volume)), name
    assert dice(first["left kidney"].mask.T, LEFT_KIDNEY) >= 0.9
    assert dice(first["right kidney"].mask.T, RIGHT_KIDNEY) >= 0.9


@pytest.mark.parametrize("thick", [0, 1])
def test_volumes_cut_along_another_axis_are_segmented_there(load, thick):
    """The axis of thick slices is left-right (sagittal stack) or front-back (coronal stack)."""
    load(analytic_engine(BRIGHTNESS))
    canonical = np.moveaxis(abdomen(), 2, thick)
    truth = np.moveaxis(LIVER_PLACE, 2, thick)
    spacing = tuple(6.0 if axis == thick else 2.0 for axis in range(3))
    volume = stored(canonical, None, None, spacing)  # type: ignore[arg-type]
    assert dice(run(volume, "liver")["liver"].mask.T, truth) >= 0.9


@pytest.mark.parametrize("axis", [0, 1, 2], ids=["(1, 64, 48)", "(64, 1, 48)", "(64, 48, 1)"])
def test_a_single_slice_comes_back_on_its_own_grid(load, axis):
    load(analytic_engine(BRIGHTNESS))
    section = np.full((64, 48), AIR, np.int16)
    section[ellipsoid((64, 48), (31, 23), (29, 22))] = BODY
    truth = np.expand_dims(ellipsoid((64, 48), (25, 20), (13, 9)), axis)
    canonical = np.where(truth, LIVER, np.expand_dims(section, axis)).astype(np.int16)
    volume = stored(canonical, None, None, (0.8, 0.8, 5.0))
    (segment,) = pipeline.segment(volume, "liver").segments
    assert segment.found and segment.slices == 1
    assert segment.mask.shape == volume.shape
    assert dice(segment.mask.T, truth) >= 0.9


def chest_picture(matrix: np.ndarray | None = None) -> tuple[Volume, np.ndarray, np.ndarray]:
    """A radiograph 0..200 with the patient's right lung at image left, larger than the left one."""
    right, left = ellipsoid((60, 80), (28, 20), (20, 12)), ellipsoid((60, 80), (30, 58), (17, 10))
    shown = np.full((60, 80), 100, np.uint8)
    shown[:4], shown[-4:] = 0, 200  # so that the picture's scale is 0..200
    shown[right | left] = 50
    volume = Volume(shown[None], np.eye(4) if matrix is None else matrix, "X-ray", dimension=2, calibrated=False)
    return volume, left, right


@pytest.mark.parametrize("matrix", [np.eye(4), np.diag([-0.14, 0.14, 1.0, 1.0])], ids=["plain", "turned"])
def test_in_a_radiograph_the_right_lung_is_at_image_left(load, matrix):
    load(analytic_engine({"lung": 0.25}))
    volume, left, right = chest_picture(matrix)
    found = run(volume, "left lung; right lung; lungs")
    assert dice(found["left lung"].mask[0], left) >= 0.9
    assert dice(found["right lung"].mask[0], right) >= 0.9
    assert np.array_equal(found["left lung"].mask | found["right lung"].mask, found["lungs"].mask)
    assert not any("side" in sentence for sentence in found["left lung"].warnings)


def test_a_side_that_only_the_middle_of_the_image_tells_is_said_to_be_so(load):
    load(analytic_engine({"lung": 0.25}))
    volume, left, right = chest_picture()
    joined = volume.voxels.copy()
    joined[0, 25:32, 15:60] = 50  # the lungs run into each other
    found = run(Volume(joined, volume.ijk_to_lps, "X-ray", dimension=2), "left lung; right lung; lungs")
    for name in ("left lung", "right lung"):
        assert any("middle of the image" in sentence for sentence in found[name].warnings)
    assert not (found["left lung"].mask & found["right lung"].mask).any()
    assert np.array_equal(found["left lung"].mask | found["right lung"].mask, found["lungs"].mask)


def test_a_single_sagittal_slice_shows_the_whole_and_says_that_it_has_no_sides(load):
    load(analytic_engine(BRIGHTNESS))
    section = np.full((1, 48, 40), AIR, np.int16)
    section[0][ellipsoid((48, 40), (24, 20), (22, 18))] = BODY
    section[0][ellipsoid((48, 40), (24, 20), (11, 8))] = KIDNEY
    found = run(stored(section, None, None, (5.0, 1.0, 1.0)), "left kidney; right kidney; kidney")
    for name in ("left kidney", "right kidney"):
        assert np.array_equal(found[name].mask, found["kidney"].mask)
        assert any("left from right" in sentence for sentence in found[name].warnings)


@pytest.mark.parametrize("modality", ["CT", "MR", "X-ray"])
@pytest.mark.parametrize("dimension", [2, 3])
def test_in_a_constant_volume_nothing_is_found(load, modality, dimension):
    engine = load(analytic_engine(BRIGHTNESS))
    shape = (1, 24, 20) if dimension == 2 else (10, 24, 24)
    volume = Volume(np.full(shape, 40, np.int16), np.eye(4), modality, dimension=dimension)
    result = pipeline.segment(volume, "liver; left kidney; banana")
    assert [segment.typed for segment in result.segments] == ["liver", "left kidney", "banana"]
    for segment in result.segments:
        assert not segment.found and segment.score == 0 and segment.slices == 0
        assert segment.mask.shape == shape and not segment.mask.any()
    assert engine.decoder.pictures_embedded == 0


def test_what_is_not_there_is_not_found_and_not_decoded(load):
    engine = load(analytic_engine(BRIGHTNESS))
    found = run(stored(abdomen()), "spleen")
    assert not found["spleen"].found and found["spleen"].score < 0.5
    assert engine.decoder.boxes_decoded == 0


def test_an_air_slice_more_changes_nothing_elsewhere(load):
    load(analytic_engine(BRIGHTNESS))
    canonical = abdomen()
    taller = np.concatenate((canonical, np.full((*SHAPE[:2], 2), AIR, np.int16)), axis=2)
    plain, with_air = run(stored(canonical), ASKED), run(stored(taller), ASKED)
    for name in plain:
        assert np.array_equal(with_air[name].mask[: SHAPE[2]], plain[name].mask)
        assert not with_air[name].mask[SHAPE[2] :].any()
        assert with_air[name].score == plain[name].score


def test_each_name_of_a_list_gets_what_it_gets_alone(load):
    brightness = {**BRIGHTNESS, "banana": 0.6, "pancreas": 0.8}
    load(analytic_engine(brightness, analytic_engine(BRIGHTNESS).text_image.card.competitors))
    names = ["right kidney", "liver", "spleen", "kidney", "banana", "pancreas"]
    volume = stored(abdomen())
    together = run(volume, "; ".join(names))
    for name in names:
        alone = run(volume, name)[name]
        assert alone.found == together[name].found
        assert alone.score == together[name].score
        assert np.array_equal(alone.mask, together[name].mask)
        assert set(alone.warnings) <= set(together[name].warnings)


def test_the_order_of_names_changes_nothing(load):
    load(analytic_engine(BRIGHTNESS))
    volume = stored(abdomen())
    first = run(volume, "liver; left kidney; spleen")
    for order in permutations(first):
        result = pipeline.segment(volume, list(order))
        assert [segment.typed for segment in result.segments] == list(order)
        for segment in result.segments:
            assert np.array_equal(segment.mask, first[segment.typed].mask)
            assert segment.warnings == first[segment.typed].warnings


def test_two_names_with_one_mask_are_named_to_the_user(load):
    brightness = {"liver": 0.8, "spleen": 0.8, "kidney": 0.6}
    load(analytic_engine(brightness, {"liver": ("kidney",), "spleen": ("kidney",), "kidney": ()}))
    found = run(stored(abdomen()), "liver; kidney; spleen")
    for name in ("liver", "spleen"):
        (sentence,) = [w for w in found[name].warnings if "same mask" in w]
        assert "liver" in sentence and "spleen" in sentence
    assert not any("same mask" in sentence for sentence in found["kidney"].warnings)


def test_wordings_of_one_structure_and_a_side_of_it_are_no_twins(load):
    load(analytic_engine(BRIGHTNESS))
    found = run(stored(abdomen()), "kidney; renal parenchyma; left kidney")
    assert np.array_equal(found["kidney"].mask, found["renal parenchyma"].mask)
    assert not any("same mask" in w for segment in found.values() for w in segment.warnings)


def test_a_part_that_fills_its_whole_is_no_twin(load):
    load(analytic_engine({"kidney": 0.6, "renal cortex": 0.6, "kidney tumor": 0.6}, {"kidney": ()}))
    voxels = abdomen()
    voxels[RIGHT_KIDNEY] = BODY
    found = run(stored(voxels), "left kidney; kidney; renal cortex; kidney tumor")
    assert np.array_equal(found["left kidney"].mask, found["kidney"].mask) and found["kidney"].found
    told = {w for segment in found.values() for w in segment.warnings if "same mask" in w}
    assert all("kidney tumor" in sentence for sentence in told) and len(told) == 3  # it fills what it may lie in


def test_absent_structures_are_no_twins(load):
    load(analytic_engine({**BRIGHTNESS, "pancreas": 0.97}))
    found = run(stored(abdomen()), "spleen; pancreas")
    assert not any("same mask" in w for segment in found.values() for w in segment.warnings)


def test_a_second_question_on_a_volume_embeds_nothing(load):
    engine = load(analytic_engine(BRIGHTNESS))
    volume = stored(abdomen())
    run(volume, "liver")
    embedded = engine.decoder.pictures_embedded
    assert embedded > 0
    again = run(stored(abdomen()), "left kidney; liver")  # the same image, read again
    assert engine.decoder.pictures_embedded == embedded
    assert dice(again["left kidney"].mask.T, LEFT_KIDNEY) >= 0.9


def test_only_the_last_volumes_are_kept(load):
    engine = load(analytic_engine(BRIGHTNESS))
    volumes = [stored(abdomen() + np.int16(n)) for n in range(encoding.KEPT_VOLUMES + 1)]
    for volume in volumes:
        run(volume, "liver")
    assert len(encoding._encoded) == encoding.KEPT_VOLUMES
    embedded = engine.decoder.pictures_embedded
    run(volumes[-1], "kidney")
    assert engine.decoder.pictures_embedded == embedded
    run(volumes[0], "kidney")
    assert engine.decoder.pictures_embedded > embedded


def test_a_picture_and_a_slice_with_the_same_voxels_are_not_confused(load):
    engine = load(analytic_engine({"lung": 0.25}))
    picture, left, _ = chest_picture(np.diag([-1.0, 1.0, 1.0, 1.0]))
    slab = Volume(picture.voxels, picture.ijk_to_lps, "X-ray", dimension=3)
    assert picture.fingerprint == slab.fingerprint
    as_picture = run(picture, "left lung")["left lung"].mask[0]
    as_slab = run(slab, "left lung")["left lung"].mask[0]  # here columns run to the patient's right
    assert dice(as_picture, left) >= 0.9
    assert not (as_slab & as_picture).any() and as_slab.any()
    assert engine.decoder.pictures_embedded == 2  # each in its own orientation


def test_lungs_in_ct_are_looked_at_in_their_own_window(load):
    engine = load(analytic_engine({**BRIGHTNESS, "lung": 0.4}))
    canonical = abdomen()
    lung = ellipsoid(SHAPE, (32, 10, 3.5), (7, 6, 2.6))
    canonical[lung & (canonical == BODY)] = -750  # (−750 + 1350) / 1500 = .4 there, and black in the other window
    volume = stored(canonical)
    found = run(volume, "lung; liver")
    assert dice(found["lung"].mask.T, canonical == -750) >= 0.85
    assert dice(found["liver"].mask.T, LIVER_PLACE) >= 0.9
    embedded = engine.decoder.pictures_embedded
    again = run(volume, "liver; lung")
    assert engine.decoder.pictures_embedded == embedded
    assert np.array_equal(again["lung"].mask, found["lung"].mask)


def test_text_that_the_model_was_not_trained_on_says_so(load):
    brightness = {**BRIGHTNESS, "banana": 0.6, "pancreas": 0.8}
    load(analytic_engine(brightness, analytic_engine({"spleen": 0.97}).text_image.card.competitors))
    found = run(stored(abdomen()), "banana; pancreas; spleen")
    for name in ("banana", "pancreas"):
        assert found[name].found
        assert any("not trained" in sentence and name in sentence for sentence in found[name].warnings)
        assert found[name].provenance["trained"] is False
    assert not any("not trained" in sentence for sentence in found["spleen"].warnings)
    assert (found["banana"].provenance["status"], found["banana"].code) == ("unknown", None)
    assert found["pancreas"].code is not None


@pytest.mark.parametrize(("trained", "is_found"), [(True, True), (False, False)])
def test_untrained_text_needs_more_evidence(load, trained, is_found):
    weak = {"pancreas": 0.6 + 0.0708}  # a logit of 1.1, a share of .75
    load(analytic_engine(weak, {"pancreas": ()} if trained else {}, found_min=0.6, found_min_untrained=0.9))
    (segment,) = pipeline.segment(stored(abdomen(liver=False)), "pancreas").segments
    assert segment.found is is_found
    assert segment.score == pytest.approx(0.75, abs=0.03)


def test_untrained_text_competes_with_all_that_the_model_knows(load):
    load(analytic_engine({**BRIGHTNESS, "a bright organ": 0.8}, {"liver": ("kidney",), "kidney": ("liver",)}))
    (segment,) = pipeline.segment(stored(abdomen()), "a bright organ").segments
    assert not segment.found  # the liver takes half of it
    load(analytic_engine({**BRIGHTNESS, "a bright organ": 0.8}, {"kidney": ()}))
    assert pipeline.segment(stored(abdomen()), "a bright organ").segments[0].found


def test_a_whole_does_not_compete_with_its_untrained_part(load):
    load(analytic_engine({"liver": 0.8, "caudate lobe of the liver": 0.8}, {"liver": ()}))
    (segment,) = pipeline.segment(stored(abdomen()), "caudate lobe of the liver").segments
    assert segment.found and segment.code is not None


def test_a_rival_that_the_vocabulary_lacks_is_asked_by_its_own_name(load):
    engine = load(analytic_engine({"liver": 0.8, "frobnicle": 0.6}, {"liver": ("frobnicle",), "frobnicle": ("liver",)}))
    found = run(stored(abdomen()), "liver")
    assert ("frobnicle",) in engine.text_image.asked
    assert dice(found["liver"].mask.T, LIVER_PLACE) >= 0.9


def test_a_ring_keeps_its_hole_and_is_not_boxed(load):
    brightness = {"left ventricle": 0.6, "left ventricular myocardium": 0.8}
    engine = load(analytic_engine(brightness))
    cavity, wall = (ellipsoid(SHAPE, (21, 17, 3.5), radii) for radii in ((7, 7, 9), (13, 13, 9)))
    canonical = np.full(SHAPE, AIR, np.int16)
    canonical[ellipsoid(SHAPE, (21.5, 17.5, 3.5), (21, 17, 9))] = BODY
    canonical[wall] = LIVER
    canonical[cavity] = KIDNEY
    volume = stored(canonical)
    ring = run(volume, "myocardium")["myocardium"].mask.T
    assert engine.decoder.boxes_decoded == 0
    assert dice(ring, wall & ~cavity) >= 0.85
    assert not ring[21, 17].any()
    ventricle = run(volume, "left ventricle")["left ventricle"].mask.T
    assert engine.decoder.boxes_decoded > 0
    assert dice(ventricle, cavity) >= 0.9


def test_thin_slices_between_two_that_were_looked_at_are_filled(load, monkeypatch):
    engine = load(analytic_engine(BRIGHTNESS))
    monkeypatch.setattr("MedZeroSegLib.embeddings.FIELD_SHARE", 1.0)
    distances: list[float] = []
    smooth = pipeline.smooth_across

    def record(share: np.ndarray, distance_mm: float, sigma_mm: float) -> np.ndarray:
        distances.append(distance_mm)
        return smooth(share, distance_mm, sigma_mm)

    monkeypatch.setattr(pipeline, "smooth_across", record)
    shape = (40, 36, 32)
    truth = ellipsoid(shape, (20, 18, 15), (9, 8, 9))
    canonical = np.full(shape, AIR, np.int16)
    canonical[ellipsoid(shape, (19.5, 17.5, 15.5), (19, 17, 40))] = BODY
    canonical[truth] = LIVER
    found = run(stored(canonical, None, None, (1.0, 1.0, 1.0)), "liver")
    assert engine.decoder.pictures_embedded == 8  # 0, 5, ... 30, and the last
    assert distances == [5.0]  # the usual distance, not that from the last but one to the last
    assert dice(found["liver"].mask.T, truth) >= 0.85


def test_one_segment_a_name_in_the_order_asked_for(load):
    load(analytic_engine(BRIGHTNESS))
    result = pipeline.segment(stored(abdomen()), "lt kidney; Liver; spleen; banana")
    assert [segment.typed for segment in result.segments] == ["lt kidney", "Liver", "spleen", "banana"]
    assert [segment.name for segment in result.segments] == ["left kidney", "liver", "spleen", "banana"]
    kidney = result.segments[0]
    assert kidney.modifier is not None and kidney.modifier.meaning == "Left"
    assert kidney.slices == np.count_nonzero(kidney.mask.any(axis=(1, 2)))


def test_the_result_says_how_it_was_made(load):
    engine = load(analytic_engine(BRIGHTNESS))
    volume = Volume(stored(abdomen()).voxels, np.eye(4), "CT", warnings=("A sentence of the reader.",))
    result = pipeline.segment(volume, "liver; spleen")
    assert result.warnings == ("A sentence of the reader.", "The engine is analytic.")
    assert result.settings == engine.settings
    assert set(result.seconds) >= {"loading", "encoding", "text and saliency", "masks", "segments"}
    json.dumps([segment.provenance for segment in result.segments])
    liver = result.segments[0].provenance
    assert liver["understood_as"] == "liver" and "hepatic parenchyma" in liver["wordings"]
    assert 0 < liver["parts_drawn_by_decoder"] <= liver["parts_prompted"]
    assert result.segments[1].provenance["parts_prompted"] == 0


def test_a_structure_in_an_unusual_modality_is_remarked_on(load):
    load(analytic_engine({"lung": 0.25, "spleen": 0.9}))
    volume, *_ = chest_picture()
    found = run(volume, "lung; spleen")
    assert any("X-ray" in sentence for sentence in found["spleen"].warnings)
    assert not any("X-ray" in sentence for sentence in found["lung"].warnings)


def test_progress_is_told_and_ends_at_1(load):
    load(analytic_engine(BRIGHTNESS))
    told: list[tuple[str, float]] = []

    def tell(stage: str, share: float, /, **values: str | int) -> None:
        told.append((stage, share))

    pipeline.segment(stored(abdomen()), "liver; kidney", progress=tell)
    assert told[0] == ("loading", 0.0) and told[-1] == ("segmenting", 1.0)
    for stage in ("encoding", "segmenting"):
        shares = [share for name, share in told if name == stage]
        assert shares == sorted(shares) and shares[-1] == 1.0


def test_each_segment_is_handed_over_as_soon_as_it_is_ready(load):
    load(analytic_engine(BRIGHTNESS))
    happened: list[tuple[str, object]] = []

    def tell(stage: str, share: float, /, **values: str | int) -> None:
        if stage == "segmenting":
            happened.append((stage, values["name"]))

    names = ["liver", "left kidney", "spleen", "right kidney"]
    result = pipeline.segment(
        stored(abdomen()),
        names,
        progress=tell,
        on_segment=lambda index, segment: happened.append((names[index], segment)),
    )
    order = [what for what, _ in happened if what in names]
    assert order == ["liver", "left kidney", "right kidney", "spleen"]  # both kidneys at once
    assert happened.index(("segmenting", "spleen")) > [what for what, _ in happened].index("right kidney")
    for name, segment in ((what, segment) for what, segment in happened if what in names):
        assert segment is result.segments[names.index(name)]


def test_the_later_of_two_twins_is_handed_over_with_its_warning(load):
    load(analytic_engine({"liver": 0.8, "spleen": 0.8, "kidney": 0.6}, {"liver": (), "spleen": (), "kidney": ()}))
    handed: dict[int, Segment] = {}
    result = pipeline.segment(stored(abdomen()), "liver; kidney; spleen", on_segment=handed.__setitem__)
    assert not any("same mask" in sentence for sentence in handed[0].warnings)
    (sentence,) = [sentence for sentence in handed[2].warnings if "same mask" in sentence]
    assert sentence in result.segments[0].warnings and sentence in result.segments[2].warnings


@pytest.mark.parametrize("stage", ["loading", "planned", "encoding", "scoring", "segmenting"])
def test_progress_can_end_the_run_at_every_stage_and_the_next_is_whole(load, stage):
    engine = load(analytic_engine(BRIGHTNESS))

    def stop(at: str, share: float, /, **values: str | int) -> None:
        if at == stage:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        pipeline.segment(stored(abdomen()), "liver; spleen", progress=stop)
    assert engine.decoder.pictures_embedded == (0 if stage in ("loading", "planned", "encoding") else SHAPE[2])
    assert dice(run(stored(abdomen()), "liver")["liver"].mask.T, LIVER_PLACE) >= 0.9


def test_progress_is_told_around_every_encoded_slice_and_decoded_batch(load):
    engine = load(analytic_engine(BRIGHTNESS))
    told: list[tuple[str, int, int]] = []

    def tell(stage: str, share: float, /, **values: str | int) -> None:
        if "slice" in values:
            told.append((stage, int(values["slice"]), engine.decoder.pictures_embedded + engine.decoder.boxes_decoded))

    pipeline.segment(stored(abdomen()), "liver", progress=tell)
    assert [place for stage, place, _ in told if stage == "encoding"] == list(range(SHAPE[2] + 1))
    works = [work for *_, work in told]
    assert max(after - before for before, after in zip(works, works[1:], strict=False)) <= 8
    assert works[-1] == engine.decoder.pictures_embedded + engine.decoder.boxes_decoded


def test_the_plan_says_that_a_kept_volume_is_not_encoded_again(load):
    load(analytic_engine(BRIGHTNESS))
    plans: list[dict[str, str | int]] = []

    def tell(stage: str, share: float, /, **values: str | int) -> None:
        if stage == "planned":
            plans.append(values)

    for names in ("liver; lung", "left kidney; right kidney; lung"):
        pipeline.segment(stored(abdomen()), names, progress=tell)
    assert plans == [{"encodings": 2, "slices": SHAPE[2], "names": 2}, {"encodings": 0, "slices": SHAPE[2], "names": 2}]


def test_a_card_that_runs_out_of_memory_gets_fewer_slices_at_once(load, monkeypatch):
    expected_mask = None
    for room in (100, 3):
        engine = load(analytic_engine(BRIGHTNESS))
        encoding._encoded.clear()
        monkeypatch.setattr(encoding, "slices_at_once", lambda device: 16)
        embed, asked = engine.decoder.embed_slices, []

        def embed_few(slices, canvas, embed=embed, asked=asked, room=room):
            asked.append(len(slices))
            if len(slices) > room:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return embed(slices, canvas)

        monkeypatch.setattr(engine.decoder, "embed_slices", embed_few)
        mask = run(stored(abdomen()), "liver")["liver"].mask
        expected_mask = mask if expected_mask is None else expected_mask
        assert np.array_equal(mask, expected_mask)
        assert asked == ([8] if room == 100 else [8, 8, 4, 2, 2, 2, 2])


@pytest.mark.parametrize("stage", ["embed_slices", "decode"])
def test_a_card_that_is_too_small_for_one_slice_leaves_the_work_to_the_cpu(monkeypatch, stage):
    engines = {name: replace(analytic_engine(BRIGHTNESS), device=name) for name in ("cuda", "cpu")}
    monkeypatch.setattr(encoding, "IMAGE_SIZE", CANVAS)
    monkeypatch.setattr(pipeline, "load_engine", lambda _preset, device, _folder: engines[device])
    encoding.forget_volumes()
    expected_masks = [item.mask for item in pipeline.segment(stored(abdomen()), "lung; liver", device="cpu").segments]

    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(engines["cuda"].decoder, stage, fail)
    given = []
    result = pipeline.segment(
        stored(abdomen()), "lung; liver", device="cuda", on_segment=lambda index, _: given.append(index)
    )
    encoding.forget_volumes()
    assert all(np.array_equal(item.mask, mask) for item, mask in zip(result.segments, expected_masks, strict=True))
    assert result.device == "cpu" and pipeline.CARD_TOO_SMALL in result.warnings
    assert sorted(given) == [0, 1]


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), "graphics card .* choose the CPU"),
        (MemoryError(), "crop the image"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"), "crop the"),
    ],
)
def test_memory_that_runs_out_all_the_same_is_a_sentence(load, monkeypatch, failure, words):
    engine = load(analytic_engine(BRIGHTNESS))
    monkeypatch.setattr(engine.decoder, "decode", lambda *_: (_ for _ in ()).throw(failure))
    with pytest.raises(MemoryShortage, match=words):
        run(stored(abdomen()), "liver")


def test_nothing_typed_is_refused_before_anything_is_loaded(load, monkeypatch):
    monkeypatch.setattr(pipeline, "load_engine", lambda *_: pytest.fail("loaded"))
    with pytest.raises(InputError):
        pipeline.segment(stored(abdomen()), " ; ")


def test_an_unknown_preset_is_refused_with_the_choices():
    with pytest.raises(InputError, match="lite"):
        pipeline.segment(stored(abdomen()), "liver", preset="heavy")
