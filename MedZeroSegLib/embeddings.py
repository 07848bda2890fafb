"""Volume → embeddings of its key slices, once for all names, made for some of the slices or for all."""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from MedZeroSegLib.assembly import KeySlices
from MedZeroSegLib.canvas import Canvas, fit_canvas
from MedZeroSegLib.device import SLAB_SLICES
from MedZeroSegLib.intensity import BODY_FRACTION_MIN, body_mask, grey, grey_range
from MedZeroSegLib.mask_decoder.decoder import MaskDecoder
from MedZeroSegLib.progress import Progress
from MedZeroSegLib.slices import SliceFrame, slice_frame
from MedZeroSegLib.text_image.model import TextImageModel
from MedZeroSegLib.volume import Volume

KEY_DISTANCE_MM = 5.0  # between encoded slices, at most; thinner slices in between are interpolated
FIELD_SHARE = 1 / 25  # of the field of view: key slices of a small crop lie closer together
IN_MEMORY_SLICES = 128  # more embeddings than these go to a temporary file
IN_MEMORY_BYTES = 1 << 30  # and larger ones


@dataclass(frozen=True, eq=False)
class EncodedSlices:
    """Embeddings of m slices.

    Attributes
    ----------
    coarse
        float16 [m, 256, 64, 64], the decoder's embedding.
    pixels
        float16 [m, c, s, s], what the text-image model scores texts against.
    summary
        float32 [m, e], its vectors of whole slices; e is 0 where it has none.
    """

    coarse: np.ndarray
    pixels: np.ndarray
    summary: np.ndarray

    def at(self, rows: slice) -> EncodedSlices:
        """Some of the slices."""
        return EncodedSlices(self.coarse[rows], self.pixels[rows], self.summary[rows])


SliceEncoder = Callable[[np.ndarray, Canvas], EncodedSlices]  # of grey slices uint8 [m, h, w]


def slice_encoder(decoder: MaskDecoder, text_image: TextImageModel) -> SliceEncoder:
    """The encoders of both models, one after the other."""

    def encode(slices: np.ndarray, canvas: Canvas) -> EncodedSlices:
        embedding = decoder.embed_slices(slices, canvas)
        features = text_image.encode_slices(slices, canvas, embedding)
        return EncodedSlices(
            embedding.coarse.half().cpu().numpy(),
            features.pixels.half().cpu().numpy(),
            features.summary.float().cpu().numpy(),
        )

    return encode


@dataclass(eq=False)
class EncodedVolume:
    """Embeddings of the key slices of one volume in one window, as far as they have been asked for.

    Attributes
    ----------
    shown
        uint8 [n, h, w], the key slices.
    body
        bool [n, cells, cells], the patient on the cells of the logit maps.
    body_mask
        bool [N, h, w] on all canonical slices.
    within
        bool [N, h, w], the volume's region on all canonical slices; None is everywhere.
    filled
        bool [n], the slices that are encoded.
    coarse, pixels, summary
        As in `EncodedSlices`, a row for each key slice; those of slices that aren't encoded hold nothing.
    others
        The same volume along other axes, without the decoder's embedding.
    """

    frame: SliceFrame
    canvas: Canvas
    keys: KeySlices
    shown: np.ndarray
    body: np.ndarray
    body_mask: np.ndarray
    within: np.ndarray | None
    filled: np.ndarray
    coarse: np.ndarray
    pixels: np.ndarray
    summary: np.ndarray
    others: tuple[EncodedVolume, ...] = ()

    @cached_property
    def pictures(self) -> np.ndarray:
        """uint8 [n, size, size], the key slices on the canvas."""
        placed = [(self.canvas.place(self.shown[slab])[:, 0] * 255).round().byte().numpy() for slab in self._all()]
        return np.concatenate(placed) if placed else np.zeros((0, self.canvas.size, self.canvas.size), np.uint8)

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
        chosen = torch.from_numpy(np.stack([self.coarse[row] for row in rows])).float()
        self._leave_on_disk()
        return chosen

    def slabs(self, rows: np.ndarray | None = None) -> list[np.ndarray]:
        """Rows of encoded slices, by default of all, in pieces that fit in memory."""
        rows = np.flatnonzero(self.filled) if rows is None else rows
        return [rows[slab] for slab in _slabs(len(rows))]

    def fill(
        self,
        rows: Sequence[int] | np.ndarray,
        encode: SliceEncoder,
        slices_at_once: int = SLAB_SLICES,
        done: Callable[[], None] | None = None,
    ) -> None:
        """Encode those of the rows that aren't yet; ``done`` is called after each call of the encoder."""
        lacking = np.array([row for row in rows if not self.filled[row]], int)
        for slab in _slabs(len(lacking), slices_at_once):
            self.put(lacking[slab], encode(self.shown[lacking[slab]], self.canvas))
            if done:
                done()

    def put(self, rows: np.ndarray, made: EncodedSlices) -> None:
        """Take in embeddings of some key slices."""
        if not self.filled.any():
            count = len(self.filled)
            self.coarse = _half_array((count, *made.coarse.shape[1:]))
            self.pixels = _half_array((count, *made.pixels.shape[1:]))
            self.summary = np.zeros((count, *made.summary.shape[1:]), np.float32)
        self.coarse[rows], self.pixels[rows], self.summary[rows] = made.coarse, made.pixels, made.summary
        self.filled[rows] = True
        self._leave_on_disk()

    def _leave_on_disk(self) -> None:
        """Unmap what was read or written of embeddings in a temporary file, which would count as memory of the process;
        the system keeps it as long as it has room."""
        for array in (self.coarse, self.pixels):
            if isinstance(array, np.memmap) and hasattr(mmap, "MADV_DONTNEED"):
                cast(Any, array)._mmap.madvise(mmap.MADV_DONTNEED)

    def _all(self) -> Iterator[slice]:
        return _slabs(len(self.filled))


def open_volume(
    volume: Volume, window: tuple[float, float] | None, cells: int, size: int, through: int | None = None
) -> EncodedVolume:
    """A volume's key slices, none of which is encoded yet.

    Parameters
    ----------
    window
        CT level and width in HU, or None for the soft-tissue window.
    cells
        Side of the logit maps.
    size
        Side of the model's canvas in pixels.
    through
        The axis that is sliced, where it isn't the volume's own: see ``slice_frame``.
    """
    frame = slice_frame(volume, through)
    body = frame.forward(body_mask(volume))
    within = None if volume.region is None else frame.forward(volume.region.mask(volume.shape))
    keys = key_slices(body, frame, within)
    canvas = fit_canvas(body.shape[1:], frame.spacing[1:], size)
    indices, span = keys.indices, grey_range(volume, window)
    voxels, outside = frame.forward(volume.voxels), None if volume.outside is None else frame.forward(volume.outside)
    shown, on_cells = np.zeros((len(indices), *body.shape[1:]), np.uint8), np.zeros((len(indices), cells, cells), bool)
    for slab in _slabs(len(indices)):
        here = indices[slab]
        shown[slab] = grey(voxels[here], None if outside is None else outside[here], span)
        asked = body[here] if within is None else body[here] & within[here]
        on_cells[slab] = _cells_of(canvas, asked, cells)
    nothing = np.zeros((0, 1, 1, 1), np.float16)
    filled, summary = np.zeros(len(indices), bool), np.zeros((0, 0), np.float32)
    return EncodedVolume(frame, canvas, keys, shown, on_cells, body, within, filled, nothing, nothing, summary)


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
    """Embed all key slices of a volume; see `open_volume`.

    Parameters
    ----------
    progress
        Told "encoding" before the first slice and after each call of the model, with ``slice`` of ``slices`` done.
    slices_at_once
        Slices in one call of the model.
    """
    encoded = open_volume(volume, window, text_image.cells, size, through)
    count = len(encoded.filled)

    def tell() -> None:
        if progress and count:
            done = int(encoded.filled.sum())
            progress("encoding", done / count, slice=done, slices=count)

    tell()
    encoded.fill(range(count), slice_encoder(decoder, text_image), slices_at_once, tell)
    return encoded


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
        return np.zeros(shape, np.float16)
    with tempfile.TemporaryFile(prefix="medzeroseg-") as file:  # the mapping keeps it until the array goes
        return np.memmap(file, np.float16, "w+", shape=shape)
