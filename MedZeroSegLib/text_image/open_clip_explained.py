"""The paper's own maps in the line: gScoreCAM or M2IB of each text in each slice, on its whole view."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from MedZeroSegLib.canvas import Canvas
from MedZeroSegLib.mask_decoder.decoder import Embedding
from MedZeroSegLib.text_image.clip_model import ClipModel
from MedZeroSegLib.text_image.explainers import Bottleneck, gscorecam, m2ib
from MedZeroSegLib.text_image.model import SliceFeatures
from MedZeroSegLib.text_image.open_clip_dense import ClipTexts, OpenClipDense

Explainer = Literal["gscorecam", "m2ib"]
DEFAULTS = Bottleneck()


class OpenClipExplained(OpenClipDense):
    """As `OpenClipDense`, with one map of the tower's own grid for each text, made when it is asked for.

    What is kept of a slice is its picture. A map of one text says nothing of others, so none compete.

    Parameters
    ----------
    explainer
        "gscorecam" or "m2ib".
    bottleneck
        Settings of M2IB.
    """

    contrastive = False

    def __init__(
        self, clip: ClipModel, texts: ClipTexts, explainer: Explainer, bottleneck: Bottleneck = DEFAULTS
    ) -> None:
        super().__init__(clip, texts, attentions=(), views=1)
        self.explainer, self.bottleneck = explainer, bottleneck
        self.cells = clip.tower.grid

    @torch.inference_mode()
    def encode_slices(self, slices: np.ndarray, canvas: Canvas, embedding: Embedding) -> SliceFeatures:
        """Grey slices → pictures [n, 1, size, size] as the tower sees them, and the class token's embedding [n, e]."""
        whole = self.pictures(slices, canvas.at(self.clip.tower.picture_size))
        summary, _ = self._whole_maps(whole, embedding.detail, canvas)
        grey = whole[:, :1] * self.clip.std[:, :1] + self.clip.mean[:, :1]
        return SliceFeatures(grey, summary)

    def maps(self, pixels: Tensor, texts: Tensor) -> Tensor:
        """Maps [1, n, k, g, g]; the tokens of a slice are made once for all texts."""
        shown = ((pixels.float() - self.clip.mean) / self.clip.std).to(self.clip.device)
        tower, texts = self.clip.tower, texts.to(self.clip.device).clone()  # not of inference mode: gradients are taken
        depth = len(tower.blocks) - 1 if self.explainer == "gscorecam" else self.bottleneck.layer + 1
        with torch.no_grad():
            tokens = tower.tokens_after(shown, depth)
        if self.explainer == "m2ib":
            each = [m2ib(tower, tokens, text.expand(len(tokens), -1), self.bottleneck) for text in texts]
        else:
            each = [
                torch.stack([
                    gscorecam(tower, picture, entering, text, self.clip.scale)
                    for picture, entering in zip(shown, tokens, strict=True)
                ])
                for text in texts
            ]  # fmt: skip
        return torch.stack(each, 1)[None]
