"""The corrector: a mask, and what a person drew in and out of it → the mask meant, on LiteMedSAM's embedding.

LiteMedSAM takes boxes and masks only, so clicks and strokes have this small network. It was trained with simulated
corrections (`training.corrector`) and knows no names: what it is shown is the mask so far, the hints, and how alike
each place is to the means of the mask, of the hints and of slices that a person has confirmed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from scipy import ndimage
from torch import Tensor, nn

from MedZeroSegLib.errors import InstallationError
from MedZeroSegLib.mask_decoder.lite_medsam import EMBEDDING_CHANNELS, EMBEDDING_SIZE, IMAGE_SIZE

NEAR_PIXELS, FAR_PIXELS = 4.0, 24.0  # decay of the hints' two distance maps
RING_CELLS = 6  # around the mask on the embedding's grid: what is near it and isn't it
SURE = 8.0  # logits are cut here, either sign
WEIGHTS_FILE = "corrector.safetensors"
WINDOW_SIDES = (128, 192, IMAGE_SIZE)  # pixels of the part of the canvas that is looked at
WINDOW_MARGIN = 20  # pixels around mask and hints
PLANES = 6  # picture, mask, near and far maps of what was drawn in and out
LIKENESS = 6  # to the mask, its ring, hints in and out, anchors in and out
WIDTH, FINE = 56, 24  # channels at 64 × 64 and at 128 × 128
GROUPS = 8


@dataclass(frozen=True)
class Correction:
    """One slice and what is known of it, on the canvas.

    Attributes
    ----------
    picture
        uint8 [256, 256].
    mask
        bool [256, 256], the mask so far.
    include, exclude
        bool [256, 256], what a person drew inside and outside.
    anchors
        float32 [2, 256]: mean embedding of the structure and of what surrounds it, in slices that are right; or None.
    """

    picture: np.ndarray
    mask: np.ndarray
    include: np.ndarray
    exclude: np.ndarray
    anchors: np.ndarray | None = None


class Block(nn.Module):
    """Residual block of two 3 × 3 convolutions, the first dilated."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.wide = nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation)
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.near = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        return features + self.near(F.silu(self.norm(self.wide(F.silu(features)))))


class CorrectorNetwork(nn.Module):
    """Embedding [n, 256, s/4, s/4], planes [n, 6, s, s] and weights of the six means → logits [n, s, s].

    ``where`` [n, 4, s/4, s/4] weighs the cells of mask, ring and hints; ``anchors`` [n, 2, 256] are zero
    where there are none.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(EMBEDDING_CHANNELS, WIDTH, 1)
        self.stem = nn.Sequential(
            nn.Conv2d(PLANES, FINE, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(FINE, FINE, 3, padding=1),
        )
        self.down = nn.Conv2d(FINE, WIDTH, 3, stride=2, padding=1)
        self.likeness = nn.Conv2d(LIKENESS, WIDTH, 1)
        self.blocks = nn.Sequential(*(Block(WIDTH, dilation) for dilation in (1, 2, 4, 1)))
        self.up = nn.Conv2d(WIDTH, FINE, 1)
        self.fine = nn.Sequential(nn.SiLU(), nn.Conv2d(2 * FINE, FINE, 3, padding=1), nn.SiLU())
        self.last = nn.Sequential(nn.Conv2d(FINE + PLANES, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, 1, 3, padding=1))

    def forward(self, coarse: Tensor, planes: Tensor, where: Tensor, anchors: Tensor) -> Tensor:
        reduced = self.reduce(coarse)
        likeness = self._likeness(coarse, reduced, where, anchors)
        fine = self.stem(planes)
        deep = self.blocks(reduced + self.down(F.silu(fine)) + self.likeness(likeness))
        lifted = F.interpolate(self.up(deep), fine.shape[-2:], mode="bilinear", align_corners=False)
        fine = self.fine(torch.cat((lifted, fine), 1))
        fine = F.interpolate(fine, planes.shape[-2:], mode="bilinear", align_corners=False)
        return self.last(torch.cat((fine, planes), 1))[:, 0]

    def _likeness(self, coarse: Tensor, reduced: Tensor, where: Tensor, anchors: Tensor) -> Tensor:
        """Cosine of each cell with the means of mask, ring, hints and anchors; 0 for means of nothing."""
        sums = torch.einsum("nkhw,nchw->nkc", where, coarse)
        means = torch.cat((sums / where.sum((2, 3)).clamp_min(1e-3)[..., None], anchors), 1)
        known = (means.abs().sum(-1, keepdim=True) > 0).to(means)
        middle = coarse.mean((2, 3))[:, None]  # so that cosines tell places apart
        direction = F.normalize((means - middle) * known, dim=-1)
        return torch.einsum("nkc,nchw->nkhw", direction, F.normalize(coarse - middle[..., None].transpose(1, 2), dim=1))


@dataclass(frozen=True)
class Window:
    """The square part of the canvas that is looked at, whose corner and side lie between the embedding's cells."""

    row: int
    column: int
    side: int

    def of(self, maps: np.ndarray) -> np.ndarray:
        """The part of maps [..., s, s] on any grid of the canvas."""
        times = IMAGE_SIZE // maps.shape[-1]
        row, column, side = self.row // times, self.column // times, self.side // times
        return maps[..., row : row + side, column : column + side]


def window_around(marked: np.ndarray) -> Window:
    """The smallest window that holds what is marked, bool [256, 256], with a margin; the whole canvas if need be."""
    rows, columns = np.flatnonzero(marked.any(1)), np.flatnonzero(marked.any(0))
    if not len(rows):
        return Window(0, 0, IMAGE_SIZE)
    extent = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1 + 2 * WINDOW_MARGIN
    side = next((side for side in WINDOW_SIDES if side >= extent), IMAGE_SIZE)
    return window_at(int(rows[0] + rows[-1]) // 2, int(columns[0] + columns[-1]) // 2, side)


def window_at(row: int, column: int, side: int) -> Window:
    """The window of a side whose middle is nearest to a pixel."""
    cell = IMAGE_SIZE // EMBEDDING_SIZE
    corner = [min(max(0, middle - side // 2), IMAGE_SIZE - side) // cell * cell for middle in (row, column)]
    return Window(corner[0], corner[1], side)


def planes_of(correction: Correction) -> np.ndarray:
    """float32 [6, 256, 256]."""
    planes = np.zeros((PLANES, IMAGE_SIZE, IMAGE_SIZE), np.float32)
    planes[0] = correction.picture / np.float32(255)
    planes[1] = correction.mask * 2.0 - 1
    for first, drawn in ((2, correction.include), (4, correction.exclude)):
        if drawn.any():
            distance = ndimage.distance_transform_edt(~drawn)
            planes[first], planes[first + 1] = np.exp(-distance / NEAR_PIXELS), np.exp(-distance / FAR_PIXELS)
    return planes


def where_of(correction: Correction) -> np.ndarray:
    """float32 [4, 64, 64]: how much of each cell is mask, ring around it, drawn inside and drawn outside."""
    mask = shares_of_cells(correction.mask)
    include, exclude = (shares_of_cells(drawn) for drawn in (correction.include, correction.exclude))
    return np.stack((mask * (1 - exclude), ring_of(mask) * (1 - include), include, exclude))


def ring_of(mask: np.ndarray) -> np.ndarray:
    """What surrounds a mask, both as shares of cells [64, 64]."""
    inside = mask > 0.5
    if not inside.any():
        return np.zeros_like(mask)
    return (ndimage.distance_transform_edt(~inside) <= RING_CELLS) * (1 - mask)


def shares_of_cells(mask: np.ndarray) -> np.ndarray:
    """bool [256, 256] → share of each cell of the embedding, float32 [64, 64]."""
    times = IMAGE_SIZE // EMBEDDING_SIZE
    return mask.reshape(EMBEDDING_SIZE, times, EMBEDDING_SIZE, times).mean((1, 3), dtype=np.float32)


class Corrector:
    """The network with its weights; ``logits`` draws one slice."""

    def __init__(self, network: CorrectorNetwork, device: str = "cpu") -> None:
        self.device = torch.device(device)
        network = network.eval().requires_grad_(False).to(self.device)
        self.network = network.to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def logits(self, correction: Correction, coarse: np.ndarray) -> np.ndarray:
        """float32 [256, 256]; what lies outside the window that was looked at stays as it is in the mask.

        ``coarse`` is the slice's embedding [256, 64, 64].
        """
        window = window_around(correction.mask | correction.include | correction.exclude)
        anchors = correction.anchors
        if anchors is None:
            anchors = np.zeros((2, EMBEDDING_CHANNELS), np.float32)
        inputs = (window.of(coarse), window.of(planes_of(correction)), window.of(where_of(correction)), anchors)
        tensors = [torch.from_numpy(np.ascontiguousarray(x))[None].to(self.device) for x in inputs]
        with one_thread():
            drawn = self.network(*tensors)
        logits = np.where(correction.mask, np.float32(SURE), np.float32(-SURE))
        window.of(logits)[:] = drawn[0].float().cpu().numpy()
        return np.clip(logits, -SURE, SURE)


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch on one thread: work as small as this makes threads wait for each other longer than they work, on a busy
    machine many times longer."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@lru_cache(maxsize=2)
def load_corrector(device: str = "cpu") -> Corrector:
    """The shipped corrector; raises InstallationError."""
    file = Path(str(files("MedZeroSegLib").joinpath("heads", WEIGHTS_FILE)))
    network = CorrectorNetwork()
    try:
        network.load_state_dict({name: value.float() for name, value in load_file(file).items()})
    except (OSError, RuntimeError, SafetensorError) as problem:
        raise InstallationError(f"{file} isn't the corrector of this version; reinstall medzeroseg.") from problem
    return Corrector(network, device)


def anchor_means(coarse: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Mean embedding of a mask bool [256, 256] and of its ring, float32 [2, 256]; zeros where there is none."""
    inside = shares_of_cells(mask)
    weights = np.stack((inside, ring_of(inside))).reshape(2, -1)
    cells = np.flatnonzero(weights.any(axis=0))
    features = np.asarray(coarse, np.float32).reshape(EMBEDDING_CHANNELS, -1)[:, cells]
    sums = np.einsum("kn,cn->kc", weights[:, cells], features)
    return (sums / np.maximum(weights.sum(1, keepdims=True), 1e-3)).astype(np.float32)
