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
from MedZeroSegLib.mask_decoder.decoder import MaskDecoder
from MedZeroSegLib.slices import SliceFrame, slice_frame
from MedZeroSegLib.text_image.model import TextImageModel
from MedZeroSegLib.volume import Volume

KEY_DISTANCE_MM = 5.0  # between encoded slices, at most; thinner slices in between are interpolated
FIELD_SHARE = 1 / 25  # of the field of view: key slices of a small crop lie closer together
IN_MEMORY_SLICES = 128  # more embeddings than these go to a temporary file
IN_MEMORY_BYTES = 1 << 30  # and larger ones


class Progress(Protocol):
    """Called often, with a stage's name, its share done (0..1) and what it is at; may raise to end the run."""

    def __call__(self, stage: str, share: float, /, **values: str | int) -> None: ...


@dataclass(frozen=True)
class EncodedVolume:
    """Embeddings of the key slices of one volume in one window.

    Attributes
    ----------
    coarse
        float16 [n, 256, 64, 64], the decoder's embedding.
    pixels
        float16 [n, c, s, s], what the text-image model scores texts against.
    summary
        float32 [n, e], its vectors of whole slices; e is 0 where it has none.
    pictures
        uint8 [n, size, size], the slices on the canvas.
    body
        bool [n, cells, cells], the patient on the cells of the logit maps.
    body_mask
        bool [N, h, w] on all canonical slices.
    within
        bool [N, h, w], the volume's region on all canonical slices; None is everywhere.
    others
        The same volume along other axes, without the decoder's embedding.
    """

    frame: SliceFrame
    canvas: Canvas
    keys: KeySlices
    coarse: np.ndarray
    pixels: np.ndarray
    summary: np.ndarray
    pictures: np.ndarray
    body: np.ndarray
    body_mask: np.ndarray
    within: np.ndarray | None = None
    others: tuple[EncodedVolume, ...] = ()

    @property
    def distance_mm(self) -> float:
        """Usual distance between two neighbouring key slices."""
        return self.frame.spacing[0] * self.keys.step

    @property
    def body_area(self) -> np.ndarray:
        """Pixels of the canvas that hold the patient in each key slice, float64 [n]."""
        return self.body.mean((1, 2)) * self.canvas.size**2

    @property
    def cell_mm(self) -> float:
        """Side of a cell of the logit maps, along the longer side of the slice."""
        longer = max(self.canvas.height * self.frame.spacing[1], self.canvas.width * self.frame.spacing[2])
        return longer / self.body.shape[-1]

    def coarse_of(self, rows: list[int]) -> Tensor:
        """Embeddings float32 [m, 256, 64, 64] of some key slices."""
        return torch.from_numpy(np.stack([self.coarse[row] for row in rows])).float()

    def slabs(self) -> list[slice]:
        """The key slices in pieces that fit in memory."""
        return list(_slabs(len(self.keys.indices)))


def encode_volume(
    volume: Volume,
    window: tuple[float, float] | None,
    decoder: MaskDecoder,
    text_image: TextImageModel,
    size: int,
    progress: Progress | None = None,
    slices_at_once: int = SLAB_SLICES,
    through: int | None = None,
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
    through
        The axis that is sliced, where it isn't the volume's own: see ``slice_frame``.
    """
    frame = slice_frame(volume, through)
    shown = frame.forward(picture(volume, window))
    body = frame.forward(body_mask(volume))
    within = None if volume.region is None else frame.forward(volume.region.mask(volume.shape))
    asked = body if within is None else body & within
    canvas = fit_canvas(shown.shape[1:], frame.spacing[1:], size)
    keys = key_slices(body, frame, within)
    count = len(keys.indices)
    coarse = pixels = np.zeros((0, 1, 1, 1), np.float16)
    summary, pictures = np.zeros((0, 0), np.float32), np.zeros((count, size, size), np.uint8)
    cells = np.zeros((count, text_image.cells, text_image.cells), bool)
    if progress and count:
        progress("encoding", 0.0, slice=0, slices=count)
    for slab in _slabs(count, slices_at_once):
        chosen = shown[keys.indices[slab]]
        embedding = decoder.embed_slices(chosen, canvas)
        features = text_image.encode_slices(chosen, canvas, embedding)
        if slab.start == 0:
            coarse = _half_array((count, *embedding.coarse.shape[1:]))
            pixels = _half_array((count, *features.pixels.shape[1:]))
            summary = np.zeros((count, *features.summary.shape[1:]), np.float32)
        coarse[slab] = embedding.coarse.half().cpu().numpy()
        pixels[slab] = features.pixels.half().cpu().numpy()
        summary[slab] = features.summary.float().cpu().numpy()
        pictures[slab] = (canvas.place(chosen)[:, 0] * 255).round().byte().numpy()
        cells[slab] = _cells_of(canvas, asked[keys.indices[slab]], text_image.cells)
        if progress:
            progress("encoding", slab.stop / count, slice=slab.stop, slices=count)
    return EncodedVolume(frame, canvas, keys, coarse, pixels, summary, pictures, cells, body, within)


def key_slices(body: np.ndarray, frame: SliceFrame, within: np.ndarray | None = None) -> KeySlices:
    """Which canonical slices are encoded: those with body, about ``KEY_DISTANCE_MM`` apart, first and last included;
    of these only slices that a region, bool [N, h, w], reaches into."""
    enough = body.mean(axis=(1, 2)) >= BODY_FRACTION_MIN
    with_body = np.flatnonzero(enough if within is None else enough & within.any(axis=(1, 2)))
    if not len(with_body):
        return KeySlices(with_body, len(body))
    chosen = np.unique(np.append(with_body[:: _step(body.shape, frame)], with_body[-1]))
    return KeySlices(chosen, len(body))


def expected_slices(volume: Volume) -> int:
    """About how many slices of a volume are key slices, before it is looked at: as if all held the patient."""
    frame = slice_frame(volume)
    shape = frame.forward(volume.voxels).shape
    count = shape[0] if volume.region is None else volume.region.shape[frame.permutation[0]]
    return -(-count // _step(shape, frame))


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
    if shape[0] <= IN_MEMORY_SLICES and np.prod(shape) * np.float16().nbytes <= IN_MEMORY_BYTES:
        return np.empty(shape, np.float16)
    with tempfile.TemporaryFile(prefix="medzeroseg-") as file:  # the mapping keeps it until the array goes
        return np.memmap(file, np.float16, "w+", shape=shape)
