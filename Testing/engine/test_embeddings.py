"""Key slices cover the body and nothing else, and each embedding stands for its own slice."""

from __future__ import annotations

import numpy as np
import phantoms
import pytest
import torch
import torch.nn.functional as F
from analytic import ellipsoid
from hypothesis import given, settings
from hypothesis import strategies as st

from MedZeroSegLib import embeddings
from MedZeroSegLib.canvas import Canvas
from MedZeroSegLib.device import SLAB_SLICES
from MedZeroSegLib.embeddings import EncodedVolume, encode_volume, key_slices
from MedZeroSegLib.mask_decoder.decoder import Embedding
from MedZeroSegLib.slices import SliceFrame
from MedZeroSegLib.text_image.model import SliceFeatures
from MedZeroSegLib.volume import Volume

SIZE, CELLS = 32, 16


class AveragingModel:
    """Embeds a picture as its own averages, and counts how many it is given at once."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    prompts = ()
    device = torch.device("cpu")
    cells = CELLS

    def embed_slices(self, slices: np.ndarray, canvas: Canvas) -> Embedding:
        pictures = canvas.place(slices)
        assert pictures.shape[1:] == (1, SIZE, SIZE)
        self.batches.append(len(pictures))
        return Embedding(F.adaptive_avg_pool2d(pictures, 4), F.adaptive_avg_pool2d(pictures, CELLS))

    def encode_slices(self, slices: np.ndarray, canvas: Canvas, embedding: Embedding) -> SliceFeatures:
        return SliceFeatures(embedding.detail, embedding.coarse.flatten(1))


def frame(spacing: tuple[float, float, float] = (5.0, 1.0, 1.0)) -> SliceFrame:
    return SliceFrame((0, 1, 2), (False, False, False), "axial", spacing)


def phantom(count: int = 12, spacing_k: float = 5.0) -> Volume:
    """A CT whose slices get brighter from 20 to 140 HU inside an ellipsoid of body, with air slices at both ends."""
    voxels = np.full((count, 24, 30), -1000, np.int16)
    body = ellipsoid(voxels.shape, (count / 2 - 0.5, 11.5, 14.5), (count / 2 - 2, 9, 12))
    voxels[body] = np.broadcast_to(np.linspace(20, 140, count)[:, None, None], voxels.shape)[body]
    return Volume(voxels, phantoms.lps_matrix((2.0, 2.0, spacing_k)), "CT")


def encoded_phantom(volume: Volume, window: tuple[float, float] | None = None) -> tuple[EncodedVolume, AveragingModel]:
    model = AveragingModel()
    return encode_volume(volume, window, model, model, SIZE), model


def test_only_slices_with_body_are_encoded():
    volume = phantom()
    encoded, model = encoded_phantom(volume)
    filled = np.flatnonzero((volume.voxels > -300).any(axis=(1, 2)))
    assert encoded.keys.indices.tolist() == filled.tolist()
    assert sum(model.batches) == len(filled) < len(volume.voxels)
    assert encoded.keys.count == len(volume.voxels)
    assert encoded.body_mask.shape == volume.shape


def test_each_embedding_is_that_of_its_slice():
    encoded, _ = encoded_phantom(phantom())
    middle = CELLS // 2
    brightness = encoded.pixels[:, 0, int(middle * 0.8), middle].astype(float)
    level = np.linspace(20, 140, 12)[encoded.keys.indices]
    assert brightness == pytest.approx((level + 160) / 400, abs=0.01)  # soft-tissue window: -160 to 240 HU


def test_an_air_slice_more_changes_no_embedding():
    volume = phantom()
    taller = Volume(
        np.concatenate((volume.voxels, np.full((1, 24, 30), -1000, np.int16))), volume.ijk_to_lps, volume.modality
    )
    plain, with_air = encoded_phantom(volume)[0], encoded_phantom(taller)[0]
    assert np.array_equal(plain.pixels, with_air.pixels)
    assert np.array_equal(plain.coarse, with_air.coarse)
    assert np.array_equal(plain.keys.indices, with_air.keys.indices)


def test_the_window_reaches_the_picture():
    wide, narrow = (encoded_phantom(phantom(), window)[0] for window in ((40.0, 400.0), (40.0, 4000.0)))
    assert np.abs(wide.pixels.astype(float) - narrow.pixels).max() > 0.1


def test_body_cells_lie_on_the_body():
    volume = phantom()
    encoded, _ = encoded_phantom(volume)
    placed = encoded.canvas.place_labels(encoded.body_mask[encoded.keys.indices].astype(np.uint16)) > 0
    cells = placed.reshape(-1, CELLS, SIZE // CELLS, CELLS, SIZE // CELLS)
    assert (encoded.body | ~cells.all(axis=(2, 4))).all()  # cells full of body are body
    wider = F.max_pool2d(torch.from_numpy(cells.any(axis=(2, 4))).float(), 3, 1, 1).numpy() > 0
    assert (wider | ~encoded.body).all()


def test_work_goes_slab_by_slab_and_says_how_far_it_is():
    seen: list[float] = []
    model = AveragingModel()
    encoded = encode_volume(
        phantom(2 * SLAB_SLICES + 8), None, model, model, SIZE, lambda stage, share, **values: seen.append(share)
    )
    count = len(encoded.keys.indices)
    assert count > 2 * SLAB_SLICES
    assert model.batches == [SLAB_SLICES, SLAB_SLICES, count - 2 * SLAB_SLICES]
    assert seen == pytest.approx([0.0, SLAB_SLICES / count, 2 * SLAB_SLICES / count, 1.0])
    assert [len(slab) for slab in encoded.slabs()] == model.batches


def test_long_volumes_go_to_disk_and_come_back_the_same(monkeypatch):
    in_memory = encoded_phantom(phantom())[0]
    monkeypatch.setattr(embeddings, "IN_MEMORY_SLICES", 3)
    on_disk = encoded_phantom(phantom())[0]
    assert isinstance(on_disk.pixels, np.memmap) and isinstance(on_disk.coarse, np.memmap)
    assert not isinstance(in_memory.pixels, np.memmap)
    assert np.array_equal(on_disk.pixels, in_memory.pixels)
    assert torch.equal(on_disk.coarse_of([4, 1]), in_memory.coarse_of([4, 1]))


def test_rows_of_the_decoders_embedding_come_in_the_order_asked_for():
    encoded, _ = encoded_phantom(phantom())
    rows = encoded.coarse_of([3, 0, 3])
    assert rows.dtype == torch.float32
    assert torch.equal(rows[0], rows[2]) and not torch.equal(rows[0], rows[1])
    assert np.array_equal(rows[1].numpy(), encoded.coarse[0].astype(np.float32))


@pytest.mark.parametrize("modality", ["CT", "MR", "X-ray"])
def test_a_constant_volume_has_nothing_to_encode(modality):
    volume = Volume(np.full((4, 10, 12), 40, np.int16), np.eye(4), modality)
    encoded, model = encoded_phantom(volume)
    assert model.batches == []
    assert len(encoded.keys.indices) == len(encoded.pixels) == len(encoded.body) == 0
    assert encoded.keys.count == 4
    assert encoded.slabs() == []


@settings(deadline=None, max_examples=60)
@given(
    filled=st.lists(st.booleans(), min_size=1, max_size=60),
    thickness=st.sampled_from([0.5, 1.0, 2.0, 3.0, 5.0, 10.0]),
    pixel=st.sampled_from([0.05, 0.5, 2.0]),
)
def test_key_slices_hold_body_begin_and_end_with_it_and_lie_close_enough(filled, thickness, pixel):
    body = np.zeros((len(filled), 40, 50), bool)
    body[filled] = True
    keys = key_slices(body, frame((thickness, pixel, pixel)))
    with_body = np.flatnonzero(filled)
    assert keys.count == len(filled)
    assert set(keys.indices) <= set(with_body)
    assert np.all(np.diff(keys.indices) > 0)
    if not len(with_body):
        return
    assert keys.indices[0] == with_body[0] and keys.indices[-1] == with_body[-1]
    if len(with_body) == with_body[-1] - with_body[0] + 1 and len(keys.indices) > 1:  # no gap in the body
        distance = min(embeddings.KEY_DISTANCE_MM, 50 * pixel * embeddings.FIELD_SHARE)
        assert np.diff(keys.indices).max() * thickness <= max(thickness, 1.5 * distance)


def test_slices_with_hardly_any_body_are_left_out():
    body = np.zeros((3, 20, 20), bool)
    body[0, 0, :7] = True  # 1.75 %
    body[1, 0, :9] = True
    assert key_slices(body, frame()).indices.tolist() == [1]
