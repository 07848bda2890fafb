"""Volumes with the embeddings of their slices: those that are kept in memory, and the filling of what lacks from the
store on disk or by the encoders, as many slices at once as fit."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from MedZeroSegLib.axes import other_axes
from MedZeroSegLib.canvas import fit_canvas
from MedZeroSegLib.device import release_memory, slices_at_once
from MedZeroSegLib.embedding_store import EmbeddingStore
from MedZeroSegLib.embeddings import EncodedVolume, open_volume, slice_encoder
from MedZeroSegLib.mask_decoder.lite_medsam import IMAGE_SIZE
from MedZeroSegLib.memory import ran_out_of_memory
from MedZeroSegLib.presets import Engine
from MedZeroSegLib.progress import Progress, part_of, tell_nobody
from MedZeroSegLib.slices import slice_frame
from MedZeroSegLib.volume import Volume

KEPT_VOLUMES = 2  # encoded volumes kept for the next question

_encoded: OrderedDict[tuple[Any, ...], EncodedVolume] = OrderedDict()


def encode(
    volume: Volume, window: tuple[float, float] | None, engine: Engine, progress: Progress | None
) -> EncodedVolume:
    """All key slices of a volume encoded, from the cache of the last ones as far as they are there."""
    encoded = opened(volume, window, engine)
    Filling(encoded, engine, progress or tell_nobody)(np.arange(len(encoded.filled)))
    return encoded


def opened(volume: Volume, window: tuple[float, float] | None, engine: Engine) -> EncodedVolume:
    """The volume from the cache of the last ones, or anew with no slice encoded."""
    key = _key(volume, window, engine)
    if key not in _encoded:
        cells, axes = engine.text_image.cells, axes_encoded(volume, engine)
        own, *others = (open_volume(volume, window, cells, IMAGE_SIZE, axis) for axis in axes)
        _encoded[key] = replace(own, others=tuple(others))
        while len(_encoded) > KEPT_VOLUMES:
            _encoded.popitem(last=False)
    _encoded.move_to_end(key)
    return _encoded[key]


def kept_volume(volume: Volume, window: tuple[float, float] | None, engine: Engine) -> EncodedVolume | None:
    """The encoded volume, where it is kept from a question before."""
    return _encoded.get(_key(volume, window, engine))


def axes_encoded(volume: Volume, engine: Engine) -> tuple[int | None, ...]:
    """The axes along which a volume is encoded: its own (None), and others where the preset looks along several."""
    settings = engine.preset.zero_shot
    if settings is None or not settings.several_axes:
        return (None,)
    return (None, *other_axes(volume, 2 - slice_frame(volume).permutation[0]))


def any_kept() -> bool:
    """Whether a volume is kept, and so the models are loaded."""
    return bool(_encoded)


def forget_volumes() -> None:
    """Free the encoded volumes that are kept for the next question."""
    _encoded.clear()


def encoder_seconds(engine: Engine) -> float:
    """Seconds that one slice takes in the encoders, after a first one in which what is built once is built."""
    slices = np.random.default_rng(0).integers(0, 256, (1, IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    canvas = fit_canvas(slices.shape[1:], (1.0, 1.0), IMAGE_SIZE)
    started = 0.0
    for _ in range(2):
        started = time.perf_counter()
        engine.text_image.encode_slices(slices, canvas, engine.decoder.embed_slices(slices, canvas)).pixels.cpu()
    return time.perf_counter() - started


def _key(volume: Volume, window: tuple[float, float] | None, engine: Engine) -> tuple[Any, ...]:
    return (
        volume.fingerprint, volume.region, volume.modality, volume.dimension, window, engine.preset.name, engine.device,
    )  # fmt: skip


class Filling:
    """Encodes slices of one volume in the course of one request.

    Parameters
    ----------
    tell
        Told "encoding" before the first slice and after each call of the model.
    store
        Where slices are looked up first.
    """

    def __init__(
        self, encoded: EncodedVolume, engine: Engine, tell: Progress, store: EmbeddingStore | None = None
    ) -> None:
        self.encoded, self.engine, self.store = encoded, engine, store
        axes = 1 + len(encoded.others)
        self.tell = part_of(tell, 0, axes)
        self.others = [Filling(o, engine, part_of(tell, n, axes), store) for n, o in enumerate(encoded.others, 1)]
        self.done = self.planned = 0

    def __call__(self, rows: np.ndarray, at_most: np.ndarray | None = None) -> None:
        """Encode rows that aren't yet; ``at_most`` are those that may be asked for later, these included. Along other
        axes all slices are encoded."""
        if self.store is not None and not self.engine.preset.is_student:
            self.store.give(self.encoded, rows, self._made_by)
        lacking = rows[~self.encoded.filled[rows]]
        if len(lacking):
            self.planned = self.done + int((~self.encoded.filled[rows if at_most is None else at_most]).sum())
            self._fill_fitting(lacking)
        elif self.done < self.planned:  # fewer were needed
            self.tell("encoding", 1.0, slice=self.done, slices=self.done)
        for other in self.others:
            other(np.arange(len(other.encoded.filled)))
            other.encoded.coarse = other.encoded.coarse[:0]  # nothing is decoded there

    def _fill_fitting(self, rows: np.ndarray) -> None:
        """With as many slices at once as fit into the device's memory: half as many after each failure."""
        encoded, device, before = self.encoded, self.engine.device, self.done
        whole = self.engine.preset.is_student  # which looks across slices and has little to hold
        at_once = len(rows) if whole else slices_at_once(device)
        encode_slices = slice_encoder(self.engine.decoder, self.engine.text_image)
        if self.store is not None and not whole:
            encode_slices = self.store.keeping(encode_slices, self._made_by)

        def tell_done() -> None:
            self.done = before + int(encoded.filled[rows].sum())
            self.tell("encoding", self.done / max(1, self.planned), slice=self.done, slices=self.planned)

        tell_done()
        while True:
            try:
                return encoded.fill(rows, encode_slices, at_once, tell_done)
            except (MemoryError, RuntimeError) as problem:
                others = [key for key, kept in _encoded.items() if encoded not in (kept, *kept.others)]
                if not ran_out_of_memory(problem) or whole or (at_once == 1 and not others):
                    raise
            for key in others:
                del _encoded[key]
            release_memory(device)
            at_once = max(1, at_once // 2)

    @property
    def _made_by(self) -> str:
        """All that the embedding of a slice depends on, but the slice and the models' code."""
        engine = self.engine
        return repr((engine.weights, engine.preset.zero_shot, engine.device, engine.precision, torch.__version__))
