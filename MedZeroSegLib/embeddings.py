"""Volume → embeddings of its key slices, once for all names; the last volume's are kept for the next question."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from MedZeroSegLib.assembly import KeySlices
from MedZeroSegLib.canvas import Canvas, fit_canvas
from MedZeroSegLib.device import SLAB_SLICES
from MedZeroSegLib.intensity import BODY_FRACTION_MIN, body_mask, picture
from MedZeroSegLib.slices import SliceFrame, slice_frame
from MedZeroSegLib.volume import Volume

KEY_DISTANCE_MM = 5.0  # between encoded slices, at most; thinner slices in between are interpolated
FIELD_SHARE = 1 / 25  # of the field of view: key slices of a small crop lie closer together
IN_MEMORY_SLICES = 128  # more embeddings than these go to a temporary file


class Progress(Protocol):
    """Called often, with a stage's name, its share done (0..1) and what it is at; may raise to end the run."""

    def __call__(self, stage: str, share: float, /, **values: str | int) -> None: ...


class ImageModel(Protocol):
    """What turns pictures into the embedding that the text and the mask decoder share."""

    def embed(self, pictures: Tensor) -> tuple[Tensor, Tensor]: ...


class PixelModel(Protocol):
    """What turns that embedding into pixel vectors."""

    def encode_slices(self, coarse: Tensor, detail: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class EncodedVolume:
    """Embeddings of the key slices of one volume in one window.

    Attributes
    ----------
    coarse
        float16 [n, 256, 64, 64], the decoder's embedding.
    pixels
        float16 [n, c, 128, 128], unit vectors to score texts against.
    body
        bool [n, 128, 128], the patient on the canvas's cells.
    body_mask
        bool [N, h, w] on all canonical slices.
    """

    frame: SliceFrame
    canvas: Canvas
    keys: KeySlices
    coarse: np.ndarray
    pixels: np.ndarray
    body: np.ndarray
    body_mask: np.ndarray

    def coarse_of(self, rows: list[int]) -> Tensor:
        """Embeddings float32 [m, 256, 64, 64] of some key slices."""
        return torch.from_numpy(np.stack([self.coarse[row] for row in rows])).float()

    def slabs(self) -> list[slice]:
        """The key slices in pieces that fit in memory."""
        return list(_slabs(len(self.keys.indices)))


def encode_volume(
    volume: Volume,
    window: tuple[float, float] | None,
    image_model: ImageModel,
    pixel_model: PixelModel,
    size: int,
    progress: Progress | None = None,
    slices_at_once: int = SLAB_SLICES,
) -> EncodedVolume:
    """Embed the key slices of a volume.

    Parameters
    ----------
    window
        CT level and width in HU, or None for the soft-tissue window.
    size
        Side of the model's canvas in pixels.
    progress
        Told "encoding" before the first slice and after each call of the model, with ``slice`` of ``slices`` done.
    slices_at_once
        Slices in one call of the model.
    """
    frame = slice_frame(volume)
    shown = frame.forward(picture(volume, window))
    body = frame.forward(body_mask(volume))
    canvas = fit_canvas(shown.shape[1:], frame.spacing[1:], size)
    keys = key_slices(body, frame)
    count = len(keys.indices)
    coarse = pixels = cells = np.zeros((0, 1, 1, 1), np.float16)
    if progress and count:
        progress("encoding", 0.0, slice=0, slices=count)
    for slab in _slabs(count, slices_at_once):
        chosen = keys.indices[slab]
        slab_coarse, slab_detail = image_model.embed(canvas.place(shown[chosen]))
        slab_pixels = pixel_model.encode_slices(slab_coarse, slab_detail)
        if slab.start == 0:
            coarse = _half_array((count, *slab_coarse.shape[1:]))
            pixels = _half_array((count, *slab_pixels.shape[1:]))
            cells = np.zeros((count, *slab_pixels.shape[2:]), bool)
        coarse[slab] = slab_coarse.half().cpu().numpy()
        pixels[slab] = slab_pixels.half().cpu().numpy()
        cells[slab] = _cells_of(canvas, body[chosen], slab_pixels.shape[-1])
        if progress:
            progress("encoding", slab.stop / count, slice=slab.stop, slices=count)
    return EncodedVolume(frame, canvas, keys, coarse, pixels, cells, body)


def key_slices(body: np.ndarray, frame: SliceFrame) -> KeySlices:
    """Which canonical slices are encoded: those with body, about ``KEY_DISTANCE_MM`` apart, first and last included."""
    with_body = np.flatnonzero(body.mean(axis=(1, 2)) >= BODY_FRACTION_MIN)
    if not len(with_body):
        return KeySlices(with_body, len(body))
    chosen = np.unique(np.append(with_body[:: _step(body.shape, frame)], with_body[-1]))
    return KeySlices(chosen, len(body))


def expected_slices(volume: Volume) -> int:
    """About how many slices of a volume are key slices, before it is looked at: as if all held the patient."""
    frame = slice_frame(volume)
    shape = frame.forward(volume.voxels).shape
    return -(-shape[0] // _step(shape, frame))


def _step(shape: tuple[int, ...], frame: SliceFrame) -> int:
    """Canonical slices from one key slice to the next; ``shape`` is [n, h, w]."""
    field = max(shape[1] * frame.spacing[1], shape[2] * frame.spacing[2])
    return max(1, round(min(KEY_DISTANCE_MM, field * FIELD_SHARE) / frame.spacing[0]))


def _cells_of(canvas: Canvas, body: np.ndarray, cells: int) -> np.ndarray:
    """The body on the canvas's cells, bool [n, cells, cells]; a cell counts from half a pixel of body on."""
    placed = canvas.place(body.astype(np.uint8) * 255)
    return torch.nn.functional.adaptive_max_pool2d(placed, cells)[:, 0].numpy() > 0.5


def _slabs(count: int, size: int = SLAB_SLICES) -> Iterator[slice]:
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def _half_array(shape: tuple[int, ...]) -> np.ndarray:
    """float16 array in memory, or on disk for long volumes; the file goes with the array."""
    if shape[0] <= IN_MEMORY_SLICES:
        return np.empty(shape, np.float16)
    with tempfile.TemporaryFile(prefix="medzeroseg-") as file:  # the mapping keeps it until the array goes
        return np.memmap(file, np.float16, "w+", shape=shape)
