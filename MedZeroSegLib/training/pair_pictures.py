"""Pictures of image-caption pairs as the preset `base` sees slices, varied for training, read ahead by threads.

A picture's variation depends on seed, epoch and row alone, so a resumed run and any number of threads see the same.
No picture is mirrored: captions speak of left and right.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from MedZeroSegLib.canvas import fit_canvas
from MedZeroSegLib.errors import InputError
from MedZeroSegLib.intensity import picture
from MedZeroSegLib.slices import slice_frame
from MedZeroSegLib.text_image.clip_model import ClipModel
from MedZeroSegLib.training.pairs import Pair
from MedZeroSegLib.volume_io import read_volume

SCALE_MIN = 0.8  # side of the part that is cut out
TURN_MAX = 10.0  # degrees
BRIGHTNESS = 0.2  # largest relative change
BATCHES_AHEAD = 2

Item = TypeVar("Item")
Made = TypeVar("Made")


@dataclass(frozen=True)
class Batch:
    """The pairs of one step of all processes, as rows, and what this process encodes of them.

    Attributes
    ----------
    rows
        [b] of the whole step, in the order of the processes.
    pictures, ids
        [b / processes, 3, s, s] for the image tower and [b / processes, t] for the text tower.
    """

    rows: np.ndarray
    pictures: Tensor
    ids: Tensor


def read_slice(file: Path) -> tuple[np.ndarray, tuple[float, float]]:
    """The only slice of an image file, uint8 [h, w], and the spacing of its rows and columns in mm.

    Raises
    ------
    InputError
        When the file is no image, or one of several slices.
    """
    volume = read_volume(file)
    frame = slice_frame(volume)
    slices = frame.forward(picture(volume))
    if len(slices) != 1:
        raise InputError(f"'{file}' has {len(slices)} slices; a caption belongs to one, so export that as a picture.")
    return slices[0], frame.spacing[1:]


def read_square(file: Path, size: int) -> Tensor:
    """The slice on a square of ``size`` pixels, [1, 1, size, size] in 0..1, padded with its minimum."""
    shown, spacing = read_slice(file)
    return fit_canvas(shown.shape, spacing, size).place_on_minimum(shown[None])


def varied(square: Tensor, rng: np.random.Generator) -> Tensor:
    """A part of the picture, turned a little, brighter or darker; [1, 1, s, s] in 0..1."""
    scale = rng.uniform(SCALE_MIN, 1.0)
    angle = np.deg2rad(rng.uniform(-TURN_MAX, TURN_MAX))
    shift = rng.uniform(-1, 1, 2) * (1 - scale)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * scale
    matrix = torch.tensor(np.column_stack([turn, shift]), dtype=square.dtype)[None]
    grid = F.affine_grid(matrix, list(square.shape), align_corners=False)
    moved = F.grid_sample(square, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return (moved * (1 + rng.uniform(-BRIGHTNESS, BRIGHTNESS))).clamp(0, 1)


def plain_pictures(clip: ClipModel, pairs: Sequence[Pair], threads: int) -> Iterator[Tensor]:
    """Each pair's picture as the image tower wants it, [1, 3, s, s], unvaried, in order."""
    size = clip.tower.picture_size

    def made(pair: Pair) -> Tensor:
        return clip.normed(read_square(pair.image, size))

    with ThreadPoolExecutor(threads) as pool:
        yield from _ahead(pool, made, pairs, BATCHES_AHEAD * threads)


class Batches:
    """The batches of a run: each epoch shows every pair once, in an order of its own, without the last few.

    Parameters
    ----------
    size
        Pairs of one step, over all processes.
    process, processes
        Which part of each batch is prepared here.
    """

    def __init__(
        self,
        clip: ClipModel,
        pairs: Sequence[Pair],
        size: int,
        seed: int,
        threads: int,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        self.clip, self.pairs, self.size, self.seed, self.threads = clip, pairs, size, seed, threads
        self.process, self.processes = process, processes
        self.in_epoch = len(pairs) // size

    def rows(self, step: int) -> np.ndarray:
        """Rows of the pairs of one step."""
        epoch, place = divmod(step, self.in_epoch)
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.pairs))
        return order[place * self.size : (place + 1) * self.size]

    def after(self, step: int, steps: int) -> Iterator[Batch]:
        """The batches from ``step`` on to the last."""
        with ThreadPoolExecutor(self.threads) as pool, ThreadPoolExecutor(1) as collector:

            def made(at: int) -> Batch:
                return self._batch(at, pool)

            yield from _ahead(collector, made, range(step, steps), BATCHES_AHEAD)

    def _batch(self, step: int, pool: ThreadPoolExecutor) -> Batch:
        rows, size = self.rows(step), self.clip.tower.picture_size
        share = self.size // self.processes
        own = rows[self.process * share : (self.process + 1) * share]
        epoch = step // self.in_epoch

        def made(row: int) -> Tensor:
            rng = np.random.default_rng((self.seed, epoch, row))
            return varied(read_square(self.pairs[row].image, size), rng)

        squares = torch.cat(list(pool.map(made, own.tolist())))
        ids = self.clip.tokenizer.batch([self.pairs[row].caption for row in own])
        return Batch(rows, self.clip.normed(squares), ids)


def _ahead(pool: ThreadPoolExecutor, work: Callable[[Item], Made], items: Iterable[Item], count: int) -> Iterator[Made]:
    """Results of ``work`` on ``items`` in order, ``count`` of them under way."""
    waiting: deque[Future[Made]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
