"""Names of a user's own beside the shipped ones: a small adapter on the frozen embedding gives each a map of its own.

The shipped head stays as it is and answers its names, and all other text, bit for bit as without the adapter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from MedZeroSegLib.canvas import Canvas
from MedZeroSegLib.errors import InputError
from MedZeroSegLib.mask_decoder.decoder import Embedding
from MedZeroSegLib.mask_decoder.lite_medsam import DETAIL_CHANNELS, DETAIL_SIZE, EMBEDDING_CHANNELS
from MedZeroSegLib.text_image.lite import LiteTextImage
from MedZeroSegLib.text_image.model import Scene, SliceFeatures
from MedZeroSegLib.trained_preset import TrainedPreset

WIDTH = 24  # channels of the adapter
GROUPS = 4
HEAD_CHANNELS = 64  # of the shipped head's pixel vectors
PRIOR_LOGIT = -3.0  # before anything is learnt, a cell is background


class OwnNamesAdapter(nn.Module):
    """Coarse and fine embedding and the shipped head's pixel vectors → logits of k names over the background."""

    def __init__(self, names: int) -> None:
        super().__init__()
        self.coarse = nn.Conv2d(EMBEDDING_CHANNELS, WIDTH, 1)
        self.detail = nn.Conv2d(DETAIL_CHANNELS, WIDTH, 1)
        self.pixels = nn.Conv2d(HEAD_CHANNELS, WIDTH, 1)
        self.norm = nn.GroupNorm(GROUPS, WIDTH)
        self.near = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.far = nn.Conv2d(WIDTH, WIDTH, 3, padding=4, dilation=4)
        self.mixed = nn.GroupNorm(GROUPS, WIDTH)
        self.names = nn.Conv2d(WIDTH, names, 1)
        nn.init.constant_(self.names.bias, PRIOR_LOGIT)  # type: ignore[arg-type]

    def forward(self, coarse: Tensor, detail: Tensor, pixels: Tensor) -> Tensor:
        """[n, 256, 64, 64], [n, 128, 128, 128], [n, 64, 128, 128] → [n, k, 128, 128]."""
        lifted = F.interpolate(self.coarse(coarse), (DETAIL_SIZE, DETAIL_SIZE), mode="bilinear", align_corners=False)
        features = F.silu(self.norm(lifted + self.detail(detail) + self.pixels(pixels)))
        features = features + F.silu(self.mixed(self.near(features) + self.far(features)))
        return self.names(features)


class ExtendedTextImage:
    """The shipped model with further names.

    Parameters
    ----------
    own
        The new names, in the order of the adapter's maps.
    rivals
        For each, those of the new names that exclude it.
    """

    cells = DETAIL_SIZE
    calibrated = True

    def __init__(
        self, shipped: LiteTextImage, adapter: OwnNamesAdapter, own: Sequence[str], rivals: dict[str, tuple[str, ...]]
    ) -> None:
        self.shipped, self.own = shipped, tuple(own)
        self.adapter = adapter.eval().requires_grad_(False).to(shipped.device)
        self.card = replace(shipped.card, competitors={**shipped.card.competitors, **rivals}, own=self.own)

    @torch.inference_mode()
    def encode_slices(self, slices: np.ndarray, canvas: Canvas, embedding: Embedding) -> SliceFeatures:
        """The shipped head's pixel vectors, and behind them a logit for each new name: [n, 64 + k, 128, 128]."""
        shipped = self.shipped.encode_slices(slices, canvas, embedding)
        device = self.shipped.device
        logits = self.adapter(embedding.coarse.to(device), embedding.detail.to(device), shipped.pixels)
        return replace(shipped, pixels=torch.cat((shipped.pixels, logits), 1))

    @torch.inference_mode()
    def encode_text(self, wordings: Sequence[str], scene: Scene) -> Tensor:
        """A shipped vector and zeros, or zeros and a one where a new name's logit stands; [64 + k]."""
        ones = torch.zeros(len(self.own), device=self.shipped.device)
        if wordings[0] in self.own:
            ones[self.own.index(wordings[0])] = 1
            return torch.cat((ones.new_zeros(HEAD_CHANNELS), ones))
        return torch.cat((self.shipped.encode_text(wordings, scene), ones))

    def text_remarks(self, wordings: Sequence[str], scene: Scene) -> tuple[str, ...]:
        """What the shipped model says of shipped words."""
        return () if wordings[0] in self.own else self.shipped.text_remarks(wordings, scene)

    def structure_like(self, text: str) -> str | None:
        """What it is like to the shipped model, unless it is a new name."""
        return None if text in self.own else self.shipped.structure_like(text)

    @torch.inference_mode()
    def score(self, pixels: Tensor, texts: Tensor) -> Tensor:
        """Logits [n, k, 128, 128]: of shipped vectors by the shipped head, of new names as they are."""
        vectors, picks = texts[:, :HEAD_CHANNELS].contiguous(), texts[:, HEAD_CHANNELS:]
        new = picks.any(1)
        logits = pixels.new_empty((len(pixels), len(texts), *pixels.shape[2:]), dtype=torch.float32).to(texts.device)
        if not new.all():
            logits[:, ~new] = self.shipped.score(pixels[:, :HEAD_CHANNELS].contiguous(), vectors[~new])
        if new.any():
            chosen = pixels[:, HEAD_CHANNELS:].to(texts.device).float()
            logits[:, new] = torch.einsum("nchw,kc->nkhw", chosen, picks[new])
        return logits


def extend(shipped: LiteTextImage, head_sha256: str, trained: TrainedPreset) -> ExtendedTextImage:
    """The shipped model with the names of a folder.

    Raises
    ------
    InputError
        When the folder was made for another shipped head, or its weights aren't those of an adapter.
    """
    card = trained.card
    if card.get("head_sha256") != head_sha256:
        raise InputError(
            f"'{trained.folder}' adds names to another head than the one that this version ships; train it again with "
            "`medzeroseg train lite --examples`."
        )
    try:
        own = tuple(str(row["name"]) for row in card["structures"])
        rivals = {name: tuple(card["competitors"][name]) for name in own}
        adapter = OwnNamesAdapter(len(own))
        adapter.load_state_dict(load_file(trained.weights))
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as problem:
        raise InputError(
            f"'{trained.folder}' holds weights of another architecture than its card describes, or damaged ones; "
            "train it again."
        ) from problem
    return ExtendedTextImage(shipped, adapter, own, rivals)
