"""What the engine's process answers, asked in this process, with models that work by arithmetic."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from analytic import CANVAS, analytic_engine, ellipsoid
from weight_samples import BODY, entry, port_without_server, serving, store_of

from MedZeroSegLib import delivery, encoding, pipeline, read_volume, worker
from MedZeroSegLib.errors import InputError, InstallationError
from MedZeroSegLib.extent import crop, mask_extent, mask_sha256
from MedZeroSegLib.protocol import decode_event
from MedZeroSegLib.request_loop import Cancelled, Channel, Report

SHAPE, SPACING = (44, 36, 8), (2.0, 2.2, 6.0)  # i, j, k
FETCH = {"id": 7, "cmd": "fetch", "preset": "tiny", "device": "cpu"}
LIVER, KIDNEY = ellipsoid(SHAPE, (13, 9, 4.5), (8, 5.5, 2.2)), ellipsoid(SHAPE, (33, 22, 3), (5.5, 6, 2.4))


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing kept from other tests or from this user."""
    monkeypatch.setattr("MedZeroSegLib.forecast.rates_file", lambda: tmp_path / "state" / "seconds.json")
    monkeypatch.setattr(encoding, "IMAGE_SIZE", CANVAS)
    encoding.forget_volumes()
    worker._volume.cache_clear()
    yield
    encoding.forget_volumes()
    worker._volume.cache_clear()


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> Any:
    engine = analytic_engine({"liver": 0.8, "kidney": 0.6, "spleen": 0.97, "banana": 0.6}, {"liver": (), "kidney": ()})
    monkeypatch.setattr(pipeline, "load_engine", lambda *_: engine)
    return engine


@pytest.fixture
def message(tmp_path: Path) -> dict[str, Any]:
    """A request about a phantom with liver and left kidney on an oblique grid."""
    voxels = np.full(SHAPE, -1000, np.int16)
    voxels[ellipsoid(SHAPE, (21.5, 17.5, 3.5), (21.8, 17.8, 5))] = -60
    voxels[KIDNEY], voxels[LIVER] = 80, 160
    np.save(tmp_path / "volume.npy", voxels.T)
    (tmp_path / "masks").mkdir()
    matrix = np.eye(4)
    matrix[:3, :3] = np.array([[0.96, 0.28, 0], [-0.28, 0.96, 0], [0, 0, 1]]) * SPACING
    matrix[:3, 3] = -43, -38.5, -21
    volume = {
        "voxels": str(tmp_path / "volume.npy"), "ijk_to_lps": matrix.tolist(), "modality": "CT",
        "modality_source": "dicom", "dimension": 3, "calibrated": True,
    }  # fmt: skip
    return {
        "id": 7, "cmd": "segment", "volume": volume, "names": ["left kidney"], "preset": "lite", "device": "cpu",
        "folder": str(tmp_path / "masks"),
    }  # fmt: skip


class Answers:
    """What a handler sends."""

    def __init__(self) -> None:
        self.stream = io.BytesIO()
        self.channel = Channel(self.stream)

    def to(self, handler: Callable[..., Any], message: dict[str, Any]) -> dict[str, Any]:
        return json.loads(json.dumps(handler(message, Report(message["id"], self.channel))))

    @property
    def events(self) -> list[dict[str, Any]]:
        return [event for line in self.stream.getvalue().splitlines() if (event := decode_event(line))]

    @property
    def segments(self) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == "segment"]


def test_a_segment_event_tells_all_that_the_scene_needs(models, message):
    answers = Answers()
    message["names"] = ["left kidney", "spleen"]
    end = answers.to(worker.segment_volume, message)
    kidney, spleen = answers.segments
    volume = worker._volume(*volume_arguments(message))
    expected = pipeline.segment(volume, "left kidney; spleen").segments
    mask = np.zeros(SHAPE, bool).T
    crop(mask, tuple(kidney["box"]))[:] = np.load(kidney["mask"])
    assert np.array_equal(mask, expected[0].mask) and mask_extent(mask) == tuple(kidney["box"])
    assert np.load(kidney["mask"]).dtype == bool and Path(kidney["mask"]).parent == Path(message["folder"])
    assert kidney["code"]["scheme"] == "SCT" and kidney["modifier"]["meaning"] == "Left" and kidney["category"]
    assert kidney["volume_ml"] == pytest.approx(mask.sum() * np.prod(SPACING) / 1000)
    assert kidney["slices"] == expected[0].slices and kidney["color"] == list(expected[0].color)
    record = kidney["provenance"]
    assert record["mask_sha256"] == mask_sha256(crop(mask, tuple(kidney["box"])), tuple(kidney["box"]))
    assert (record["volume_fingerprint"], record["device"]) == (volume.fingerprint, "cpu")
    assert kidney["trained"] and not spleen["trained"]
    assert (spleen["found"], spleen["box"], spleen["mask"]) == (False, None, None)
    assert [file.name for file in Path(message["folder"]).iterdir()] == ["7-0.npy"]
    assert end["version"] and end["device"] == "cpu" and end["weights"] == list(models.weights)
    assert end["warnings"] == ["The engine is analytic."] and "masks" in end["seconds"]


def volume_arguments(message: dict[str, Any]) -> tuple[Any, tuple[int, int]]:
    entry = worker.read_segment(message).volume
    return entry, worker._signature(entry.voxels)


def test_the_index_is_the_place_among_the_names_as_they_were_sent(models, message):
    answers = Answers()
    message["names"] = [" ", "spleen", "Liver ", "liver", "left kidney"]
    answers.to(worker.segment_volume, message)
    assert {event["index"]: event["name"] for event in answers.segments} == {
        1: "spleen", 2: "liver", 4: "left kidney",
    }  # fmt: skip


def test_a_second_request_about_a_volume_reads_and_encodes_nothing(models, message, monkeypatch):
    Answers().to(worker.segment_volume, message)
    embedded = models.decoder.pictures_embedded
    assert embedded == SHAPE[2]
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("read again"))
    answers = Answers()
    answers.to(worker.segment_volume, {**message, "id": 8, "names": ["liver"]})
    assert models.decoder.pictures_embedded == embedded
    assert "encoding" not in [event.get("code") for event in answers.events]
    assert answers.segments[0]["found"]


def test_other_voxels_in_the_same_file_are_another_volume(models, message):
    Answers().to(worker.segment_volume, {**message, "names": ["liver"]})
    path = Path(message["volume"]["voxels"])
    voxels = np.load(path)
    voxels[voxels == 160] = -60
    path.unlink()
    np.save(path, np.concatenate((voxels, voxels[:1])))
    answers = Answers()
    answers.to(worker.segment_volume, {**message, "id": 8, "names": ["liver"]})
    assert not answers.segments[0]["found"]


def test_the_second_of_two_names_with_one_mask_brings_the_warning(models, message, monkeypatch):
    twins = analytic_engine({"liver": 0.8, "spleen": 0.8}, {"liver": (), "spleen": ()})
    monkeypatch.setattr(pipeline, "load_engine", lambda *_: twins)
    answers = Answers()
    answers.to(worker.segment_volume, {**message, "names": ["liver", "spleen"]})
    assert [any("same mask" in w for w in event["warnings"]) for event in answers.segments] == [False, True]


def test_what_the_stages_took_is_remembered(models, message, tmp_path):
    Answers().to(worker.segment_volume, message)
    (rates,) = json.loads((tmp_path / "state" / "seconds.json").read_text()).values()
    assert set(rates) == {"planned", "encoding", "segmenting"}
    answers = Answers()
    encoding.forget_volumes()
    answers.to(worker.segment_volume, {**message, "id": 8})
    (planned,) = [event for event in answers.events if event.get("code") == "preparing"]
    assert planned["seconds_left"] is not None


@pytest.mark.parametrize("code", ["loading", "preparing", "encoding", "scoring", "segmenting"])
def test_after_cancel_nothing_is_sent_and_no_mask_is_left(models, message, code):
    answers = Answers()
    send = answers.channel._write

    def cancel_at(line: bytes) -> None:
        send(line)
        if json.loads(line).get("code") == code:
            answers.channel._cancelled.add(7)

    answers.channel._write = cancel_at  # type: ignore[method-assign]
    with pytest.raises(Cancelled):
        answers.to(worker.segment_volume, message)
    assert answers.events[-1]["code"] == code
    assert list(Path(message["folder"]).iterdir()) == []


def test_a_mask_that_was_written_while_cancel_came_is_removed(models, message, monkeypatch):
    answers, write = Answers(), delivery.write_mask

    def write_and_cancel(*arguments: Any) -> Any:
        path = write(*arguments)
        assert path is not None and path.is_file()
        answers.channel.cancel(7)
        return path

    monkeypatch.setattr(delivery, "write_mask", write_and_cancel)
    with pytest.raises(Cancelled):
        answers.to(worker.segment_volume, message)
    assert answers.segments == [] and list(Path(message["folder"]).iterdir()) == []


def test_a_folder_that_the_parent_has_removed_is_not_made_again(models, message):
    Path(message["folder"]).rmdir()
    with pytest.raises(InstallationError, match="folder"):
        Answers().to(worker.segment_volume, message)
    assert not Path(message["folder"]).exists()


def test_voxels_that_are_not_there_are_a_sentence(models, message):
    Path(message["volume"]["voxels"]).unlink()
    with pytest.raises(InputError, match="press Segment again"):
        Answers().to(worker.segment_volume, message)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64, ">i2"])
def test_a_volume_is_taken_as_the_file_of_it_would_be(message, tmp_path, dtype):
    voxels = np.load(message["volume"]["voxels"]) + 1000
    voxels = (voxels // 8).astype(dtype) if dtype is np.uint8 else (voxels - 1000).astype(dtype)
    if voxels.dtype.kind == "f":
        voxels[2, 3:5, 4], voxels[0, 0, 0] = np.nan, np.inf
    elif voxels.dtype == np.int16:
        voxels[:, :2] = -32768
    np.save(message["volume"]["voxels"], voxels)
    message["volume"]["modality"] = None
    image = sitk.GetImageFromArray(voxels.astype(voxels.dtype.newbyteorder("=")))
    matrix = np.array(message["volume"]["ijk_to_lps"])
    image.SetSpacing(SPACING)
    image.SetDirection((matrix[:3, :3] / SPACING).ravel())
    image.SetOrigin(matrix[:3, 3])
    sitk.WriteImage(image, str(tmp_path / "same.nrrd"))
    handed, read = worker._volume(*volume_arguments(message)), read_volume(tmp_path / "same.nrrd")
    assert np.array_equal(handed.voxels, read.voxels) and np.allclose(handed.ijk_to_lps, read.ijk_to_lps)
    assert (handed.modality, handed.modality_source) == (read.modality, read.modality_source)
    assert (handed.outside is None) == (read.outside is None)
    assert handed.outside is None or np.array_equal(handed.outside, read.outside)


def test_a_sheared_grid_is_refused(message):
    message["volume"]["ijk_to_lps"][0][2] = 1.0
    with pytest.raises(InputError, match="sheared"):
        worker._volume(*volume_arguments(message))


def test_packages_that_do_not_load_are_a_matter_of_installation(message, monkeypatch):
    import builtins

    import_any = builtins.__import__

    def without_torch(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "MedZeroSegLib" and arguments[2] == ("pipeline",):
            raise OSError("libtorch_cpu.so: cannot open shared object file\nmore")
        return import_any(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without_torch)
    with pytest.raises(InstallationError, match=r"\(libtorch_cpu.so: cannot open shared object file\); set up"):
        Answers().to(worker.segment_volume, message)


# Model files from the network


def test_missing_model_files_are_fetched_and_told_of(tmp_path, monkeypatch):
    with serving({"tiny.bin": BODY}) as server:
        store = store_of(tmp_path, {"tiny": entry({"tiny.bin": BODY}, {"tiny.bin": [f"{server.address}/tiny.bin"]})})
        monkeypatch.setattr("MedZeroSegLib.weights.weights_store", lambda *_: store)
        answers = Answers()
        answers.to(worker.fetch_weights, FETCH)
    assert store.locate("tiny").read_bytes() == BODY
    assert [event["code"] for event in answers.events if event["event"] == "progress"][0] == "downloading"
    assert answers.events[-1]["line"] == "The model files are here (0 MB)."


def test_cancelled_fetch_keeps_what_came_and_goes_on_there(tmp_path, monkeypatch):
    with serving({"tiny.bin": BODY}) as server:
        store = store_of(tmp_path, {"tiny": entry({"tiny.bin": BODY}, {"tiny.bin": [f"{server.address}/tiny.bin"]})})
        monkeypatch.setattr("MedZeroSegLib.weights.weights_store", lambda *_: store)
        answers = Answers()
        fetch = type(store).fetch

        def cancel_half_way(self, *names, progress):
            def tell(done, total):
                if done > len(BODY) // 3:
                    answers.channel.cancel(7)
                progress(done, total)

            fetch(self, *names, progress=tell)

        monkeypatch.setattr(type(store), "fetch", cancel_half_way)
        with pytest.raises(Cancelled):
            answers.to(worker.fetch_weights, FETCH)
        (part,) = store.root.rglob("*.part")
        assert 0 < part.stat().st_size < len(BODY)
        monkeypatch.setattr(type(store), "fetch", fetch)
        Answers().to(worker.fetch_weights, FETCH)
    assert store.locate("tiny").read_bytes() == BODY and server.ranges[-1] is not None


def test_fetch_without_a_network_is_a_sentence_with_another_way(tmp_path, monkeypatch):
    address = f"http://127.0.0.1:{port_without_server()}/tiny.bin"
    store = store_of(tmp_path, {"tiny": entry({"tiny.bin": BODY}, {"tiny.bin": [address]})})
    monkeypatch.setattr("MedZeroSegLib.weights.weights_store", lambda *_: store)
    with pytest.raises(InstallationError, match="by other means"):
        Answers().to(worker.fetch_weights, FETCH)


def test_a_process_that_finds_its_embeddings_on_disk_answers_the_same(models, message, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDZEROSEG_EMBEDDINGS_GB", "1")
    monkeypatch.setattr("MedZeroSegLib.embedding_store.cache_folder", lambda: tmp_path / "cache")
    message["names"] = ["left kidney", "liver"]
    told, encoded = [], []
    for _ in range(2):
        encoding.forget_volumes()  # as a new process
        answers, before = Answers(), models.decoder.pictures_embedded
        answers.to(worker.segment_volume, message)
        told.append([(one["name"], one["found"], one["box"], one["score"]) for one in answers.segments])
        told[-1] += [np.load(one["mask"]).tobytes() for one in answers.segments]
        encoded.append(models.decoder.pictures_embedded - before)
    assert told[0] == told[1] and told[0][0][1]
    assert encoded == [SHAPE[2], 0]
