"""What the dual path of `base` is trained on: patch tokens, what many views say of the same places, and regions.

The towers don't change, so every picture goes through them once and what they say is kept on disk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from torch import Tensor

from MedZeroSegLib.canvas import fit_canvas
from MedZeroSegLib.mask_decoder.sam import SamModel
from MedZeroSegLib.text_image.clip_model import ClipModel
from MedZeroSegLib.text_image.dense_attention import Attention, last_block
from MedZeroSegLib.text_image.open_clip_dense import ClipTexts, OpenClipDense
from MedZeroSegLib.training.pair_pictures import read_slice
from MedZeroSegLib.training.pairs import Pair
from MedZeroSegLib.training.regions import region_map
from MedZeroSegLib.training.stored_arrays import StoredArrays

ATTENTION = Attention.NACLIP  # of the tokens; the other map of `base` doesn't go through the dual path


@dataclass(frozen=True)
class PatchStore:
    """For each pair, on disk; g patches a side, c channels, e of the space that texts share.

    Attributes
    ----------
    pictures
        uint8 [n, 16g, 16g], as the tower saw them.
    tokens
        float16 [n, c, g, g], before the tower's norm and projection.
    taught
        float16 [n, e, 2g, 2g], unit vectors: the mean over ten views and their mirror images.
    regions
        uint8 [n, 2g, 2g], 0 where there is none.
    """

    pictures: np.ndarray
    tokens: np.ndarray
    taught: np.ndarray
    regions: np.ndarray


def encode_patches(pairs: Sequence[Pair], clip: ClipModel, decoder: SamModel, folder: Path, towers: str) -> PatchStore:
    """Encode the pairs' pictures into ``folder``; goes on where an interrupted run stopped.

    ``towers`` names the weights. Raises InputError for a file that is no picture.
    """
    names = "\n".join([towers, *(pair.image.name for pair in pairs)])
    stored = StoredArrays(folder, hashlib.sha256(names.encode()).hexdigest())
    grid, size, count = clip.tower.grid, clip.tower.picture_size, len(pairs)
    store = PatchStore(
        stored.array("pictures", np.uint8, (count, size, size)),
        stored.array("tokens", np.float16, (count, clip.width, grid, grid)),
        stored.array("taught", np.float16, (count, clip.embedding, 2 * grid, 2 * grid)),
        stored.array("regions", np.uint8, (count, 2 * grid, 2 * grid)),
    )
    model = OpenClipDense(clip, ClipTexts(clip, ""), (ATTENTION,))
    done = stored.done
    for row in track(range(done, count), "encoding", console=Console(stderr=True), disable=done == count):
        shown, spacing = read_slice(pairs[row].image)
        canvas = fit_canvas(shown.shape, spacing, size)
        square = (canvas.place_on_minimum(shown[None]) * 255).round()
        whole = clip.normed(square / 255)
        wide = clip.normed(canvas.at(2 * size).place_on_minimum(shown[None]))
        store.pictures[row] = square[0, 0].byte().numpy()
        store.tokens[row] = _tokens(clip, whole)[0].half().cpu().numpy()
        store.taught[row] = _taught(model, whole, wide)[0].half().cpu().numpy()
        store.regions[row] = region_map(decoder, shown, canvas, 2 * grid)
        stored.mark(row + 1)
    return store


@torch.inference_mode()
def _tokens(clip: ClipModel, pictures: Tensor) -> Tensor:
    entering = clip.tower.tokens_after(pictures.to(clip.device), len(clip.tower.blocks) - 1)
    return last_block(clip.tower, entering, ATTENTION)


def _taught(model: OpenClipDense, whole: Tensor, wide: Tensor) -> Tensor:
    """Unit vectors [n, e, 2g, 2g] of square pictures at the tower's size and at twice it."""
    size = whole.shape[-1]
    tiles = model.tiles(fit_canvas((size, size), (1.0, 1.0), size))
    plain = model.multi_view_map(whole, wide, tiles, ATTENTION)
    mirrored = model.multi_view_map(whole.flip(-1), wide.flip(-1), tiles, ATTENTION).flip(-1)
    return F.normalize(plain + mirrored, dim=1)
