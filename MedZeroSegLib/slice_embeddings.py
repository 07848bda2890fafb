"""Embeddings of any slice of a volume along one axis, made when they are first asked for, and never twice.

What the line has encoded is used as it is; a slice that it left out, or one along another axis, is encoded on demand.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from MedZeroSegLib.canvas import fit_canvas
from MedZeroSegLib.embeddings import EncodedVolume, key_slices
from MedZeroSegLib.intensity import body_mask, picture
from MedZeroSegLib.mask_decoder.lite_medsam import IMAGE_SIZE
from MedZeroSegLib.presets import Engine
from MedZeroSegLib.slices import slice_frame
from MedZeroSegLib.volume import Volume

KEPT_SLICES = 256  # made here; each takes about 4 MB


@dataclass(frozen=True)
class SliceEmbedding:
    """One slice: float32 coarse [256, 64, 64], float16 pixels [c, s, s], uint8 picture [256, 256] on the canvas."""

    coarse: np.ndarray
    pixels: np.ndarray
    picture: np.ndarray


class SliceEmbeddings:
    """The slices of a volume along one axis.

    Parameters
    ----------
    window
        CT level and width in HU, or None.
    through
        Index axis (0 i, 1 j, 2 k) that runs through the slices; None for the volume's own.
    kept
        What the line has encoded in this window, along the same axis.
    """

    def __init__(
        self,
        volume: Volume,
        window: tuple[float, float] | None,
        engine: Engine,
        through: int | None = None,
        kept: EncodedVolume | None = None,
    ) -> None:
        self.volume, self.engine = volume, engine
        self.frame = slice_frame(volume, through)
        self._kept = kept if kept is not None and kept.frame == self.frame else None
        self._shown = self.frame.forward(picture(volume, window))
        self.canvas = fit_canvas(self._shown.shape[1:], self.frame.spacing[1:], IMAGE_SIZE)
        self._rows = {int(index): row for row, index in enumerate(self._kept.keys.indices)} if self._kept else {}
        self._made: OrderedDict[int, SliceEmbedding] = OrderedDict()
        self.encoded = 0  # slices that had to be encoded here

    @property
    def shape(self) -> tuple[int, int, int]:
        """Slices, rows and columns."""
        n, h, w = self._shown.shape
        return n, h, w

    @cached_property
    def body(self) -> np.ndarray:
        """Where the patient is, bool [n, h, w]."""
        return self._kept.body_mask if self._kept else self.frame.forward(body_mask(self.volume))

    @cached_property
    def keys(self) -> np.ndarray:
        """The slices that are worth an embedding of their own, increasing; what lies between is interpolated."""
        return self._kept.keys.indices if self._kept else key_slices(self.body, self.frame).indices

    def at(self, index: int) -> SliceEmbedding:
        """The embedding of a slice."""
        row = self._rows.get(index)
        if row is not None and self._kept is not None and self._kept.filled[row]:
            coarse = self._kept.coarse[row].astype(np.float32)
            return SliceEmbedding(coarse, self._kept.pixels[row], self._kept.pictures[row])
        if index not in self._made:
            self._made[index] = self._encode(index)
            while len(self._made) > KEPT_SLICES:
                self._made.popitem(last=False)
        self._made.move_to_end(index)
        made = self._made[index]
        return replace(made, coarse=made.coarse.astype(np.float32))

    def _encode(self, index: int) -> SliceEmbedding:
        chosen = np.ascontiguousarray(self._shown[index : index + 1])
        embedding = self.engine.decoder.embed_slices(chosen, self.canvas)
        features = self.engine.text_image.encode_slices(chosen, self.canvas, embedding)
        shown = (self.canvas.place(chosen)[0, 0] * 255).round().byte().numpy()
        self.encoded += 1
        return SliceEmbedding(embedding.coarse[0].half().cpu().numpy(), features.pixels[0].half().cpu().numpy(), shown)
