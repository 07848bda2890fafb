"""Free text → the trained structure that it describes, by the text tower's similarity.

A description would otherwise compete for its pixels with the very name that means the same, and lose.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from MedZeroSegLib.text_image.text_vectors import TextVectors
from MedZeroSegLib.vocabulary import may_overlap, vocabulary, wordings

# Chosen on wordings alone, each synonym of a trained name against the other names, and on no image: of the half that is
# taken 98 % mean that name.
SIMILARITY_MIN = 0.70  # cosine of the text with the structure's wordings
MARGIN_MIN = 0.06  # above the next structure that excludes it


class Resemblance:
    """The vocabulary as the text tower sees it; ``trained`` are the names that descriptions may mean."""

    def __init__(self, texts: TextVectors, trained: Sequence[str]) -> None:
        self.texts, self.trained = texts, frozenset(trained)

    def structure_like(self, text: str) -> str | None:
        """Name of the trained structure that a text clearly describes, None where none or several do.

        Where it resembles several parts of a trained structure alike, that whole is meant.
        """
        similar = dict(zip(vocabulary(), (self._vectors @ self.texts.encode_ensemble((text,))).tolist(), strict=True))
        trained = sorted(self.trained & similar.keys(), key=lambda name: -similar[name])
        if not trained or similar[trained[0]] < SIMILARITY_MIN:
            return None
        first = trained[0]
        if max(similar.values()) - similar[first] >= MARGIN_MIN:  # another structure, which the model doesn't know
            return None
        near = [name for name in trained[1:] if similar[first] - similar[name] < MARGIN_MIN]
        others = [name for name in near if not may_overlap(first, name)]
        if not others:
            return first
        parents = [set(vocabulary()[name].parents) for name in (first, *others)]
        return next((name for name in near if all(name in own for own in parents)), None)

    @cached_property
    def _vectors(self) -> Tensor:
        """[structures, 384]"""
        return torch.stack([self.texts.encode_ensemble(wordings(structure)) for structure in vocabulary().values()])
