"""What every text-image model offers: encode slices once, encode a text, score texts against slices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from MedZeroSegLib.canvas import Canvas
    from MedZeroSegLib.mask_decoder.decoder import Embedding


@dataclass(frozen=True)
class HeadCard:
    """What the model was trained on: ``concepts`` by vocabulary name, for each the ``competitors`` that exclude it and
    were marked in the same images, and the ``sources`` (name → pictures). All empty for a model that saw no masks.
    ``closed``: other names than the concepts mean nothing to it. ``own``: what a user added to the shipped names."""

    concepts: tuple[str, ...]
    competitors: dict[str, tuple[str, ...]]
    sources: dict[str, int]
    closed: bool = False
    own: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scene:
    """What is known of the image when a text is put into words: its modality, the plane of its slices ("axial",
    "coronal", "sagittal" or "picture"), and the body region of the structure ("" where unknown)."""

    modality: str
    plane: str
    region: str = ""


@dataclass(frozen=True)
class SliceFeatures:
    """What is kept of n slices.

    Attributes
    ----------
    pixels
        [n, c, s, s], what texts are scored against.
    summary
        [n, e] unit vectors of whole slices; e is 0 where the model has none.
    """

    pixels: Tensor
    summary: Tensor


class TextImageModel(Protocol):
    """A model in whose space slices and texts meet.

    Attributes
    ----------
    cells
        Side of the logit maps.
    calibrated
        Whether logits have one scale for all volumes, with the background at 0. Cosines haven't: see ``ZeroShotModel``.
    """

    card: HeadCard
    cells: int
    calibrated: bool

    def encode_slices(self, slices: np.ndarray, canvas: Canvas, embedding: Embedding) -> SliceFeatures:
        """Grey slices uint8 [n, h, w], where they lie on their square, and the decoder's embedding of them."""
        ...

    def encode_text(self, wordings: Sequence[str], scene: Scene) -> Tensor:
        """Unit vector [e] of one concept from all its wordings."""
        ...

    def score(self, pixels: Tensor, texts: Tensor) -> Tensor:
        """Logits [n, k, cells, cells] of pixels against unit text vectors [k, e]."""
        ...

    def text_remarks(self, wordings: Sequence[str], scene: Scene) -> tuple[str, ...]:
        """Sentences for the user on what of these words isn't read."""
        ...

    def structure_like(self, text: str) -> str | None:
        """The structure of the vocabulary whose name the model reads better than this description of it."""
        ...


class ZeroShotModel(TextImageModel, Protocol):
    """A model that never saw masks: only the volume itself tells which of its numbers are high.

    Attributes
    ----------
    contrastive
        Whether its maps are cosines, which mean something against those of other texts only.
    scale
        From cosines to logits.
    """

    contrastive: bool
    scale: float

    def maps(self, pixels: Tensor, texts: Tensor) -> Tensor:
        """Maps [m, n, k, cells, cells] of texts [k, e], as many for each text as the model makes."""
        ...

    def negatives(self, kind: str, scene: Scene) -> Tensor:
        """Unit vectors [b, e] of what is never meant by a structure of this kind."""
        ...
