"""Text-image model and mask decoder that work by arithmetic: texts are known by name and mean a brightness, boxes give
ellipses. The stages and the line run on them without weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from MedZeroSegLib.canvas import Canvas
from MedZeroSegLib.mask_decoder.decoder import Embedding
from MedZeroSegLib.presets import Engine, Preset
from MedZeroSegLib.text_image.model import HeadCard, Scene, SliceFeatures

CANVAS = 128  # pixels a side, half of the real decoder's
CELLS = 64  # a side of the maps
BAND = 0.08  # half the width of the brightness band that a text means, of the range 0..1
STEEPNESS = 120.0  # logits per brightness


def ellipse_logits(boxes: Tensor, size: int, scale: float = 1.0) -> Tensor:
    """Logits [m, 1, size, size] of the ellipse in each box [m, 4], its axes times ``scale``."""
    x0, y0, x1, y1 = (edge[:, None, None] for edge in boxes.float().T)
    centre = torch.arange(size) + 0.5
    x = (centre[None, None, :] - (x0 + x1) / 2) / ((x1 - x0) / 2 * scale)
    y = (centre[None, :, None] - (y0 + y1) / 2) / ((y1 - y0) / 2 * scale)
    return (12 * (1 - (x**2 + y**2).sqrt()))[:, None].clamp(-8, 8) * 3


def without_margin(boxes: Tensor) -> Tensor:
    """The tight boxes inside boxes whose margin is a tenth of the tight side."""
    x0, y0, x1, y1 = boxes.float().T
    dx, dy = (x1 - x0) / 12, (y1 - y0) / 12
    return torch.stack((x0 + dx, y0 + dy, x1 - dx, y1 - dy), 1)


class EllipseDecoder:
    """Embeds nothing but the picture itself, and answers every box with the ellipse in it; counts what it is asked."""

    prompts = ("box", "mask")

    def __init__(self) -> None:
        self.pictures_embedded = 0
        self.boxes_decoded = 0

    device = torch.device("cpu")

    def on(self, canvas: Canvas) -> EllipseDecoder:
        return self

    def embed_slices(self, slices: np.ndarray, canvas: Canvas) -> Embedding:
        pictures = canvas.place(slices)
        self.pictures_embedded += len(pictures)
        return Embedding(F.adaptive_avg_pool2d(pictures, 8), F.adaptive_avg_pool2d(pictures, CELLS))

    def decode(self, coarse: Tensor, boxes: Tensor, masks: Tensor | None) -> tuple[Tensor, Tensor]:
        assert len(coarse) == len(boxes)
        assert masks is None or masks.shape == (len(boxes), 1, CANVAS, CANVAS)
        self.boxes_decoded += len(boxes)
        return ellipse_logits(without_margin(boxes), CANVAS), torch.ones(len(boxes))


class BrightnessModel:
    """Every known name means one brightness 0..1; a cell's logit falls with its distance from it."""

    def __init__(self, brightness: dict[str, float], competitors: dict[str, tuple[str, ...]]) -> None:
        self.brightness = brightness
        self.card = HeadCard(tuple(sorted(competitors)), competitors, {"phantoms": 1})
        self.asked: list[tuple[str, ...]] = []

    cells = CELLS
    calibrated = True

    def encode_text(self, wordings: Sequence[str], scene: Scene) -> Tensor:
        self.asked.append(tuple(wordings))
        return torch.tensor([self.brightness.get(wordings[0], -9.0)])

    def encode_slices(self, slices: np.ndarray, canvas: Canvas, embedding: Embedding) -> SliceFeatures:
        return SliceFeatures(embedding.detail, torch.zeros(len(slices), 0))

    def structure_like(self, text: str) -> str | None:
        return None

    def text_remarks(self, wordings: Sequence[str], scene: Scene) -> tuple[str, ...]:
        return ()

    def score(self, pixels: Tensor, texts: Tensor) -> Tensor:
        return STEEPNESS * (BAND - (pixels.float() - texts[None, :, :1, None]).abs())


def analytic_engine(
    brightness: dict[str, float], competitors: dict[str, tuple[str, ...]] | None = None, **settings: float
) -> Engine:
    """An engine for the names of ``brightness``, which is trained on the keys of ``competitors``: by default on all
    names, each against all others."""
    if competitors is None:
        competitors = {name: tuple(other for other in brightness if other != name) for name in brightness}
    return Engine(
        Preset("analytic", "none", "none", **settings),
        BrightnessModel(brightness, competitors),  # type: ignore[arg-type]
        EllipseDecoder(),  # type: ignore[arg-type]
        "cpu",
        ({"name": "analytic", "file": "none", "sha256": "0" * 64, "licence": "none"},),
        ("The engine is analytic.",),
    )


def ellipsoid(shape: Sequence[int], centre: Sequence[float], radii: Sequence[float]) -> np.ndarray:
    """Bool array of ``shape``, True inside the ellipsoid, in index units."""
    axes = np.indices(shape).reshape(len(shape), -1).T
    inside = (((axes - np.array(centre)) / np.array(radii)) ** 2).sum(1) <= 1
    return inside.reshape(shape)


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * np.count_nonzero(one & other) / (np.count_nonzero(one) + np.count_nonzero(other))
