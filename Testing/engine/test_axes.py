"""What slices along other axes say of a place is brought to that place, however the volume is stored."""

from __future__ import annotations

import numpy as np
import phantoms
import pytest
import torch
import torch.nn.functional as F
from analytic import ellipsoid

from MedZeroSegLib.axes import VOXELS_MIN, on_cells_of, other_axes
from MedZeroSegLib.embeddings import EncodedVolume, encode_volume
from MedZeroSegLib.mask_decoder.decoder import Embedding
from MedZeroSegLib.slices import slice_frame
from MedZeroSegLib.text_image.model import SliceFeatures
from MedZeroSegLib.volume import Volume

SIZE, CELLS = 64, 32
SHAPE, SPACING = (40, 34, 30), (2.0, 2.2, 2.6)  # i, j, k
BLOB = ellipsoid(SHAPE, (27, 11, 18), (6, 5, 4)) | ellipsoid(SHAPE, (12, 24, 9), (3, 4, 3))


class Grey:
    """A model whose map is the picture."""

    prompts, device, cells = (), torch.device("cpu"), CELLS

    def embed_slices(self, slices, canvas):
        shown = canvas.place(slices)
        return Embedding(F.adaptive_avg_pool2d(shown, 4), F.adaptive_avg_pool2d(shown, CELLS))

    def encode_slices(self, slices, canvas, embedding):
        return SliceFeatures(embedding.detail, torch.zeros(len(slices), 0))


def volume_of(storage: phantoms.Storage, rotation: np.ndarray | None = None) -> Volume:
    voxels = np.full(SHAPE, -100, np.int16)
    voxels[BLOB] = 200
    matrix = storage.matrix(SHAPE, phantoms.lps_matrix(SPACING, (-40.0, -35.0, -30.0), rotation))
    return Volume(storage.store(voxels).T, matrix, "CT")


def encoded(volume: Volume, through: int | None = None) -> EncodedVolume:
    return encode_volume(volume, None, Grey(), Grey(), SIZE, through=through)


@pytest.mark.parametrize("storage", list(phantoms.storages())[::7], ids=str)
def test_maps_along_other_axes_lie_on_the_main_ones(storage):
    volume = volume_of(storage, phantoms.rotation_about((0.2, 0.1, 1.0), 15))
    main = encoded(volume)
    inside = main.canvas.covered(CELLS)
    own = main.pixels[:, 0, : inside[0] - 1, : inside[1] - 1].astype(float)
    axes = other_axes(volume, 2 - main.frame.permutation[0])
    assert len(axes) == 2
    for axis in axes:
        other = encoded(volume, axis)
        assert other.frame.permutation[0] == 2 - axis != main.frame.permutation[0]
        found = on_cells_of(main, other, other.pixels[:, 0])[:, : inside[0] - 1, : inside[1] - 1]
        assert np.corrcoef(found.ravel(), own.ravel())[0, 1] > 0.9
        first, second = (np.argwhere(np.asarray(values) > 0.6).mean(0) for values in (own, found))
        assert np.abs(first - second).max() < 0.75  # cells and key slices


def test_the_axis_asked_for_runs_through_the_slices_with_the_usual_orientation():
    volume = volume_of(next(phantoms.storages()))
    planes = [slice_frame(volume, axis).plane for axis in range(3)]
    assert planes == ["sagittal", "coronal", "axial"]
    assert slice_frame(volume, 2) == slice_frame(volume)
    shown = slice_frame(volume, 1)
    array = np.arange(volume.voxels.size).reshape(volume.shape)
    assert np.array_equal(shown.inverse(shown.forward(array)), array)


def test_thick_slices_thin_stacks_and_pictures_have_one_axis():
    plain = volume_of(next(phantoms.storages()))
    thick = Volume(plain.voxels, phantoms.lps_matrix((1.0, 1.0, 2.6)), "CT")
    assert other_axes(thick, 2) == ()
    thin = Volume(plain.voxels[:, : VOXELS_MIN - 1], phantoms.lps_matrix((1.0, 1.0, 1.0)), "CT")
    assert other_axes(thin, 2) == ()
    picture = Volume(plain.voxels[:1], np.eye(4), "X-ray", dimension=2)
    assert other_axes(picture, 2) == ()
