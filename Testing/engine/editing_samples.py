"""Phantoms to be corrected, and an engine whose embeddings are made by arithmetic: what the corrector sees of a place
are its grey level and its surroundings'. The corrector and its weights are the real ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy.spatial.transform import Rotation
from torch import Tensor

from MedZeroSegLib.canvas import Canvas
from MedZeroSegLib.mask_decoder.decoder import Embedding
from MedZeroSegLib.presets import Engine, Preset
from MedZeroSegLib.text_image.model import HeadCard, Scene, SliceFeatures
from MedZeroSegLib.volume import Volume

SHAPE = (9, 40, 56)  # k, j, i
OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = Rotation.from_euler("xyz", (20, -15, 25), degrees=True).as_matrix() * (0.9, 1.0, 6.0)
OBLIQUE[:3, 3] = -20, 31, 7


class GreyDecoder:
    """Waves of the grey level as embedding; answers a box with what is bright in it."""

    prompts = ("box", "mask")
    device = torch.device("cpu")

    def __init__(self) -> None:
        self.embedded: list[bytes] = []

    def on(self, canvas: Canvas) -> GreyDecoder:
        return self

    def embed_slices(self, slices: np.ndarray, canvas: Canvas) -> Embedding:
        self.embedded += [np.ascontiguousarray(one).tobytes() for one in slices]
        grey = F.avg_pool2d(canvas.place(slices), 4)
        steps = torch.arange(1, 129)[None, :, None, None] / 16
        return Embedding(torch.cat(((grey * steps).sin(), (grey * steps).cos()), 1), grey)

    def decode(self, coarse: Tensor, boxes: Tensor, masks: Tensor | None) -> tuple[Tensor, Tensor]:
        bright = F.interpolate(coarse[:, 7:8] - 0.2, (256, 256), mode="bilinear")
        inside = torch.zeros(len(boxes), 1, 256, 256)
        for n, (x0, y0, x1, y1) in enumerate(boxes.int().tolist()):
            inside[n, :, y0:y1, x0:x1] = 1
        return torch.where(inside > 0, 20 * bright, -8.0), torch.ones(len(boxes))


class NoText:
    """Knows no name."""

    cells, calibrated, card = 64, True, HeadCard((), {}, {})

    def encode_slices(self, slices: np.ndarray, canvas: Canvas, embedding: Embedding) -> SliceFeatures:
        return SliceFeatures(embedding.detail, torch.zeros(len(slices), 0))

    def encode_text(self, wordings: Sequence[str], scene: Scene) -> Tensor:
        return torch.ones(1)

    def score(self, pixels: Tensor, texts: Tensor) -> Tensor:
        return torch.zeros(len(pixels), len(texts), 64, 64)

    def structure_like(self, text: str) -> str | None:
        return None

    def text_remarks(self, wordings: Sequence[str], scene: Scene) -> tuple[str, ...]:
        return ()


def engine() -> Engine:
    """An engine of that kind; its decoder tells what it was asked to embed."""
    return Engine(Preset("grey", "", ""), NoText(), GreyDecoder(), "cpu", (), ())


def organ(shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """An egg that no flip or swap of axes maps onto itself, bool [k, j, i]."""
    k, j, i = np.indices(shape) / np.array(shape)[:, None, None, None]
    return ((k - 0.55) / 0.36) ** 2 + ((j - 0.4) / 0.22) ** 2 + ((i - 0.6 + 0.1 * k) / (0.2 + 0.1 * j)) ** 2 < 1


def scan(mask: np.ndarray, matrix: np.ndarray = OBLIQUE, seed: int = 0) -> Volume:
    """A scan in which the organ is bright."""
    noise = np.random.default_rng(seed).normal(0, 8, mask.shape)
    return Volume((np.where(mask, 180, 70) + noise).astype(np.int16), matrix, "MR")
