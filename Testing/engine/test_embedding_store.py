"""Embeddings on disk spare the encoder and change no result, whatever happens to their files."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import phantoms
import pytest
from analytic import CANVAS, analytic_engine, ellipsoid

from MedZeroSegLib import encoding, pipeline
from MedZeroSegLib.embedding_store import ROOM_VARIABLE, EmbeddingStore, embedding_store
from MedZeroSegLib.errors import InputError
from MedZeroSegLib.presets import Engine
from MedZeroSegLib.region import Region
from MedZeroSegLib.volume import Volume

BRIGHTNESS = {"kidney": 0.6, "liver": 0.8}
SLICES = 9
PLENTY = 1 << 40


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    made = analytic_engine(BRIGHTNESS)
    monkeypatch.setattr(encoding, "IMAGE_SIZE", CANVAS)
    monkeypatch.setattr(pipeline, "load_engine", lambda *_: made)
    encoding.forget_volumes()
    yield made
    encoding.forget_volumes()


def volume(path: Path | None = None) -> Volume:
    """A body with a liver, no slice of which is like another."""
    voxels = np.full((SLICES, 36, 44), -1000, np.int16)
    voxels[ellipsoid(voxels.shape, (4, 17.5, 21.5), (30, 17.8, 21.8))] = -60
    voxels[ellipsoid(voxels.shape, (5, 9, 13), (3, 5.5, 8))] = 160
    voxels += 3 * np.arange(SLICES, dtype=np.int16)[:, None, None]
    return Volume(voxels, phantoms.lps_matrix((2.0, 2.2, 6.0)), "CT", path=path)


def run(engine: Engine, store: EmbeddingStore | None, image: Volume | None = None) -> tuple[list[np.ndarray], int]:
    """Masks of a run in which nothing is in memory, and how many slices it encoded."""
    encoding.forget_volumes()
    before = engine.decoder.pictures_embedded
    result = pipeline.segment(image or volume(), "liver; kidney", store=store)
    return [segment.mask for segment in result.segments], engine.decoder.pictures_embedded - before


def files(store: EmbeddingStore) -> list[Path]:
    return sorted(store.folder.iterdir())


def test_the_second_run_encodes_nothing_and_draws_the_same(engine, tmp_path):
    plain, _ = run(engine, None)
    store = EmbeddingStore(tmp_path / "a" / "b", PLENTY)
    first, encoded = run(engine, store)
    second, again = run(engine, store)
    assert (encoded, again) == (SLICES, 0)
    assert plain[0].any()
    for masks in (first, second):
        assert all(np.array_equal(one, other) for one, other in zip(plain, masks, strict=True))


@pytest.mark.parametrize("how", ["emptied", "cut off", "changed", "another file"])
def test_a_damaged_file_is_made_anew(engine, tmp_path, how):
    store = EmbeddingStore(tmp_path, PLENTY)
    plain, _ = run(engine, store)
    content = files(store)[3].read_bytes()
    middle = len(content) // 2
    changed = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    spoilt = {"emptied": b"", "cut off": content[:middle], "changed": changed, "another file": b"{}" * 500}[how]
    files(store)[3].write_bytes(spoilt)
    masks, encoded = run(engine, store)
    assert encoded == 1
    assert all(np.array_equal(one, other) for one, other in zip(plain, masks, strict=True))
    assert files(store)[3].read_bytes() == content


def test_what_was_used_least_recently_goes_first(engine, tmp_path):
    store = EmbeddingStore(tmp_path, PLENTY)
    run(engine, store)
    kept = files(store)
    for age, file in enumerate(kept):
        os.utime(file, (1e9 - age, 1e9 - age))
    size = kept[0].stat().st_size
    narrow = EmbeddingStore(tmp_path, 5 * size)
    other = replace(volume(), voxels=volume().voxels * np.int16(2))
    assert run(engine, narrow, other)[1] == SLICES
    assert len(files(narrow)) == 5 and sum(file.stat().st_size for file in files(narrow)) <= narrow.room
    assert not set(kept) & set(files(narrow))


def test_a_slice_that_is_read_counts_as_used(engine, tmp_path):
    store = EmbeddingStore(tmp_path, PLENTY)
    run(engine, store)
    for file in files(store):
        os.utime(file, (1e9, 1e9))
    run(engine, store)
    assert all(file.stat().st_mtime > 1e9 for file in files(store))


def test_slices_of_another_window_model_precision_or_content_are_kept_apart(engine, tmp_path, monkeypatch):
    store = EmbeddingStore(tmp_path, PLENTY)
    run(engine, store)
    assert run(engine, store, replace(volume(), voxels=volume().voxels * np.int16(2)))[1] == SLICES
    other = replace(engine, weights=({"name": "analytic", "sha256": "1" * 64},))
    monkeypatch.setattr(pipeline, "load_engine", lambda *_: other)
    assert run(other, store)[1] == SLICES
    other = replace(engine, precision="bfloat16")
    monkeypatch.setattr(pipeline, "load_engine", lambda *_: other)
    assert run(other, store)[1] == SLICES


def test_a_region_needs_no_other_embeddings_than_the_whole(engine, tmp_path):
    store = EmbeddingStore(tmp_path, PLENTY)
    run(engine, store)
    part = replace(volume(), region=Region((0, 43, 0, 35, 2, 6)))
    assert run(engine, store, part)[1] == 0


def test_an_interrupted_run_leaves_what_it_has_encoded(engine, tmp_path):
    store = EmbeddingStore(tmp_path, PLENTY)

    def stop(stage: str, share: float, /, **values: str | int) -> None:
        if stage == "encoding" and share > 0.4:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        pipeline.segment(volume(), "liver", progress=stop, store=store)
    kept = len(files(store))
    assert 0 < kept < SLICES
    assert run(engine, store)[1] == SLICES - kept


@pytest.mark.skipif(sys.platform == "win32", reason="rights are others there")
def test_only_the_owner_may_read_and_no_name_tells_of_the_patient(engine, tmp_path):
    store = EmbeddingStore(tmp_path / "embeddings", PLENTY)
    run(engine, store, volume(tmp_path / "Müller^Jörg.nii.gz"))
    assert stat.S_IMODE(store.folder.stat().st_mode) == 0o700
    for file in files(store):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert set(file.stem) <= set("0123456789abcdef")
        assert b"ller" not in file.read_bytes()


def test_a_folder_that_cannot_be_written_costs_no_result(engine, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    masks, encoded = run(engine, EmbeddingStore(tmp_path / "file" / "embeddings", PLENTY))
    assert encoded == SLICES and masks[0].any()


def test_the_room_is_stated_by_a_variable(monkeypatch):
    monkeypatch.delenv(ROOM_VARIABLE, raising=False)
    usual = embedding_store()
    assert usual is not None and usual.folder.name == "embeddings"
    monkeypatch.setenv(ROOM_VARIABLE, "0.5")
    small = embedding_store()
    assert small is not None and small.room == 500_000_000
    monkeypatch.setenv(ROOM_VARIABLE, "0")
    assert embedding_store() is None
    for nonsense in ("much", "nan", "inf"):
        monkeypatch.setenv(ROOM_VARIABLE, nonsense)
        with pytest.raises(InputError, match=ROOM_VARIABLE):
            embedding_store()
