"""What every mask decoder offers: embed slices once, decode many prompts; and which prompts each was made for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from MedZeroSegLib.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from MedZeroSegLib.canvas import Canvas

BOX, MASK, POINTS = "box", "mask", "points"  # kinds of prompts


@dataclass(frozen=True)
class Embedding:
    """What the encoder says of n slices.

    Attributes
    ----------
    coarse
        [n, 256, 64, 64], what prompts are decoded on.
    detail
        [n, c, s, s] over the square canvas, what a text-image model may look at.
    """

    coarse: Tensor
    detail: Tensor

    def __len__(self) -> int:
        return len(self.coarse)


class Prompted(Protocol):
    """What draws masks from prompts.

    Attributes
    ----------
    prompts
        The kinds of prompts that it was made for.
    """

    prompts: tuple[str, ...]
    device: torch.device

    def decode(self, coarse: Tensor, boxes: Tensor, masks: Tensor | None) -> tuple[Tensor, Tensor]:
        """Boxes x0 y0 x1 y1 [m, 4] in canvas pixels and mask logits [m, 1, s, s] on the canvas, each on the embedding
        of its slice [m, 256, 64, 64] → candidates' logits [m, c, s, s] and estimated IoU [m] or [m, c]."""
        ...


class MaskDecoder(Prompted, Protocol):
    """A member of the Segment Anything family."""

    def embed_slices(self, slices: np.ndarray, canvas: Canvas) -> Embedding:
        """Grey slices uint8 [n, h, w] → embedding, float32 on the decoder's device."""
        ...

    def on(self, canvas: Canvas) -> Prompted:
        """The decoder for slices that lie on this canvas."""
        ...


def draw_prompts(
    prompt_encoder: nn.Module,
    mask_decoder: nn.Module,
    coarse: Tensor,
    boxes: Tensor | None,
    masks: Tensor | None,
    points: tuple[Tensor, Tensor] | None,
    several: bool,
) -> tuple[Tensor, Tensor]:
    """Segment Anything's two networks on m prompts, each on its own picture's embedding [m, 256, 64, 64] → logits
    [m, c, s, s] and estimated IoU [m, c].

    The published decoder takes one picture and adds its embedding to each prompt's dense embedding; with many pictures
    the sum is made here.
    """
    sparse, dense = prompt_encoder(points=points, boxes=boxes, masks=masks)
    logits, quality = mask_decoder(
        image_embeddings=torch.zeros_like(coarse[:1]),
        image_pe=prompt_encoder.get_dense_pe(),  # type: ignore[operator]
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense + coarse,
        multimask_output=several,
    )
    return logits, quality


def require_prompts(decoder: str, made_for: Sequence[str], asked: Sequence[str]) -> None:
    """Raises InputError where a decoder is asked for prompts that it wasn't made for."""
    others = [kind for kind in asked if kind not in made_for]
    if others:
        raise InputError(
            f"{decoder} was made for {' and '.join(made_for)} prompts, not for {' or '.join(others)} prompts; "
            "leave these out, or use a preset with SAM as decoder, such as base."
        )
