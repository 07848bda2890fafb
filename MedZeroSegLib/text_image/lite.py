"""The `lite` text-image model: MiniLM text vectors against the DPFEM head's pixel vectors on LiteMedSAM's embedding."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from MedZeroSegLib.canvas import Canvas
from MedZeroSegLib.errors import InstallationError
from MedZeroSegLib.mask_decoder.decoder import Embedding
from MedZeroSegLib.mask_decoder.lite_medsam import DETAIL_SIZE
from MedZeroSegLib.text_image.dpfem import RegionTextHead
from MedZeroSegLib.text_image.model import HeadCard, Scene, SliceFeatures
from MedZeroSegLib.text_image.resemblance import Resemblance
from MedZeroSegLib.text_image.text_vectors import TextVectors


class LiteTextImage:
    """Encode slices once, score any number of texts against them.

    Parameters
    ----------
    head
        Trained weights, in float32 on ``device``.
    texts
        The text tower's vectors.
    """

    cells = DETAIL_SIZE
    calibrated = True

    def __init__(self, head: RegionTextHead, texts: TextVectors, card: HeadCard, device: str = "cpu") -> None:
        self.head = head.eval().requires_grad_(False).to(device)
        self.texts = texts
        self.card = card
        self.device = torch.device(device)
        self.resemblance = Resemblance(texts, card.concepts)
        self._encoded: dict[tuple[str, ...], Tensor] = {}

    @torch.inference_mode()
    def encode_text(self, wordings: Sequence[str], scene: Scene) -> Tensor:
        """Unit vector [64] of one concept from all its wordings, the same in every scene."""
        key = tuple(wordings)
        if key not in self._encoded:
            vector = self.texts.encode_ensemble(key).to(self.device)
            self._encoded[key] = self.head.encode_text(vector[None])[0]
        return self._encoded[key]

    @torch.inference_mode()
    def encode_slices(self, slices: np.ndarray, canvas: Canvas, embedding: Embedding) -> SliceFeatures:
        """The decoder's embedding [n, 256, 64, 64] and [n, 128, 128, 128] → unit pixel vectors [n, 64, 128, 128]."""
        pixels = self.head.encode_pixels(embedding.coarse.to(self.device), embedding.detail.to(self.device))
        return SliceFeatures(pixels, torch.zeros(len(pixels), 0))

    def text_remarks(self, wordings: Sequence[str], scene: Scene) -> tuple[str, ...]:
        """Nothing: its text tower is trained with its texts cut."""
        return ()

    @torch.inference_mode()
    def structure_like(self, text: str) -> str | None:
        """What the text describes; its own vector would lose against that structure's."""
        return self.resemblance.structure_like(text)

    @torch.inference_mode()
    def score(self, pixels: Tensor, texts: Tensor) -> Tensor:
        """Logits [n, k, 128, 128] of unit pixel vectors against unit text vectors [k, 64]."""
        return self.head.score(pixels.to(self.device).float(), texts)


def read_head(file: Path) -> tuple[RegionTextHead, HeadCard]:
    """A trained head and its card from a safetensors file; raises InstallationError."""
    damaged = InstallationError(f"{file} isn't a head of this version; reinstall medzeroseg.")
    try:
        with safe_open(file, framework="pt") as stored:
            card = json.loads((stored.metadata() or {})["medzeroseg"])
            state = {name: stored.get_tensor(name).float() for name in stored.keys()}  # noqa: SIM118 - safe_open isn't a mapping
        head = RegionTextHead()
        head.load_state_dict(state)
        competitors = {name: tuple(rivals) for name, rivals in card["competitors"].items()}
        return head, HeadCard(tuple(card["concepts"]), competitors, dict(card["sources"]))
    except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as problem:
        raise damaged from problem
