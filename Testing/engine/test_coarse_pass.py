"""In long volumes some key slices are left out, and the masks are those of a look at all of them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import phantoms
import pytest
from analytic import CANVAS, analytic_engine, ellipsoid
from hypothesis import given
from hypothesis import strategies as st

from MedZeroSegLib import coarse_pass, encoding, pipeline
from MedZeroSegLib.coarse_pass import first_rows, own_rows
from MedZeroSegLib.presets import Engine
from MedZeroSegLib.segment import Segmentation
from MedZeroSegLib.volume import Volume

SHAPE, SPACING = (44, 36, 60), (2.0, 2.2, 5.0)  # i, j, k; mm
BRIGHTNESS = {"kidney": 0.6, "liver": 0.8, "spleen": 0.97}
LEFT_KIDNEY = ellipsoid(SHAPE, (33, 22, 21), (5.5, 6, 9))
RIGHT_KIDNEY = ellipsoid(SHAPE, (10, 22, 24), (5, 6.5, 9))
LIVER_PLACE = ellipsoid(SHAPE, (13, 9, 34), (8, 5.5, 7))


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """An engine that is all the line has, with nothing kept from other tests."""
    made = analytic_engine(BRIGHTNESS)
    monkeypatch.setattr(encoding, "IMAGE_SIZE", CANVAS)
    monkeypatch.setattr(pipeline, "load_engine", lambda *_: made)
    encoding.forget_volumes()
    yield made
    encoding.forget_volumes()


def trunk(storage: phantoms.Storage | None = None) -> Volume:
    """A trunk of 60 slices whose organs lie in some of them, each at a place of its own."""
    canonical = np.full(SHAPE, -1000, np.int16)
    canonical[ellipsoid(SHAPE, (21.5, 17.5, 29.5), (21.8, 17.8, 200))] = -60
    canonical[LEFT_KIDNEY | RIGHT_KIDNEY] = 80
    canonical[LIVER_PLACE] = 160
    storage = storage or next(phantoms.storages())
    matrix = storage.matrix(SHAPE, phantoms.lps_matrix(SPACING, (-43.0, -38.5, -150.0)))
    return Volume(storage.store(canonical).T, matrix, "CT")


def segment(names: str, volume: Volume | None = None) -> Segmentation:
    return pipeline.segment(volume or trunk(), names)


def same(one: Segmentation, other: Segmentation) -> bool:
    return all(
        a.found == b.found and a.score == pytest.approx(b.score) and np.array_equal(a.mask, b.mask)
        for a, b in zip(one.segments, other.segments, strict=True)
    )


@pytest.mark.parametrize("storage", list(phantoms.storages())[::13], ids=str)
def test_fewer_slices_are_encoded_and_the_masks_are_the_same(engine, monkeypatch, storage):
    names, volume = "left kidney; right kidney; liver; spleen", trunk(storage)
    coarse, encoded = segment(names, volume), engine.decoder.pictures_embedded
    encoding.forget_volumes()
    monkeypatch.setattr(coarse_pass, "KEYS_MIN", 1000)
    whole = segment(names, volume)
    assert encoded < engine.decoder.pictures_embedded - encoded == SHAPE[2]
    assert [item.found for item in whole.segments] == [True, True, True, False]
    assert same(coarse, whole)


def test_what_is_absent_costs_the_first_look_only(engine):
    assert not segment("spleen").segments[0].found
    assert engine.decoder.pictures_embedded == len(first_rows(SHAPE[2]))


def test_other_names_on_the_same_volume_encode_what_they_lack_only(engine):
    segment("liver")
    before = engine.decoder.pictures_embedded
    segment("kidney")
    more = engine.decoder.pictures_embedded - before
    assert 0 < more <= 18  # every second of the slices in which there is a kidney, and of their neighbours
    segment("liver; kidney; spleen")
    assert engine.decoder.pictures_embedded == before + more


def test_a_name_gives_the_same_mask_alone_and_among_others(engine):
    together = segment("liver; kidney")
    for n, name in enumerate(("liver", "kidney")):
        encoding.forget_volumes()
        alone = segment(name)
        assert np.array_equal(alone.segments[0].mask, together.segments[n].mask)


def test_progress_of_encoding_never_ends_before_its_last_slice(engine):
    told: list[tuple[float, int, int]] = []

    def tell(stage: str, share: float, /, **values: str | int) -> None:
        if stage == "encoding":
            told.append((share, int(values["slice"]), int(values["slices"])))

    pipeline.segment(trunk(), "liver", progress=tell)
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    assert told[-1] == (1.0, engine.decoder.pictures_embedded, engine.decoder.pictures_embedded)
    assert all(share < 1 for share, done, _ in told if done < engine.decoder.pictures_embedded)


def test_short_volumes_are_looked_at_whole():
    for count in (0, 1, coarse_pass.KEYS_MIN - 1):
        assert first_rows(count).tolist() == list(range(count))


@given(evidence=st.lists(st.sampled_from([0.0, 0.1, 0.3, 0.9]), min_size=coarse_pass.KEYS_MIN, max_size=90))
def test_a_slice_is_left_out_only_between_two_that_show_nothing(evidence):
    values, first = np.array(evidence, np.float32), first_rows(len(evidence))
    assert first[0] == 0 and first[-1] == len(evidence) - 1 and np.diff(first).max() <= coarse_pass.STEP
    own = own_rows(values, first)
    assert own[first].all()
    for row in range(len(values)):
        before, after = first[first <= row].max(), first[first >= row].min()
        shown = max(values[before], values[after]) >= coarse_pass.SHOWN_MIN
        assert own[row] == (row in first or shown)
