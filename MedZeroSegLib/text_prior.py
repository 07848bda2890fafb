"""What the text says of a slice under correction: the share of the named structure, where the model knows the name."""

from __future__ import annotations

import numpy as np
import torch

from MedZeroSegLib.concepts import Concept, Texts, concept_of
from MedZeroSegLib.presets import Engine
from MedZeroSegLib.queries import Query, resolve
from MedZeroSegLib.saliency import Competition, compete
from MedZeroSegLib.volume import Volume


class TextPrior:
    """Shares of one named structure.

    Attributes
    ----------
    query
        What the name was understood as; None without a name.
    trained
        Whether the model was trained on it: only then do its shares mean something.
    window
        CT level and width in HU in which the structure is looked at, or None.
    """

    def __init__(self, name: str, engine: Engine, volume: Volume, plane: str) -> None:
        self.engine = engine
        self.query: Query | None = resolve([name])[0] if name.strip() else None
        self.concept: Concept | None = concept_of(self.query, engine, volume, plane) if self.query else None
        self.trained = bool(self.concept and self.concept.trained and engine.text_image.calibrated)
        self._competition: Competition | None = None
        self._matrix = torch.zeros(0, 0)

    @property
    def window(self) -> tuple[float, float] | None:
        return self.concept.window if self.concept else None

    def share(self, pixels: np.ndarray) -> np.ndarray | None:
        """The share of each cell, float32 [s, s], from a slice's features [c, s, s]; None where text doesn't help."""
        if not self.trained or self.concept is None:
            return None
        if self._competition is None:
            texts = Texts(self.engine, lambda: None)
            self._competition = texts.competition_of(self.concept)
            self._matrix = texts.matrix
        with torch.inference_mode():
            logits = self.engine.text_image.score(torch.from_numpy(pixels)[None].float(), self._matrix)
            share, _ = compete(logits, self._competition)
        return share[0].float().cpu().numpy()
