"""The text tower's vectors of all names in the vocabulary, shipped: the tower is loaded for unknown text only."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from MedZeroSegLib.text_image.minilm import TEMPLATES, MiniLmTextTower
from MedZeroSegLib.writers import replacing

SHIPPED = Path(__file__).parents[1] / "heads" / "vocabulary-minilm.safetensors"


class TextVectors:
    """Ensemble vectors [384] of wordings: from the shipped table where it holds them, else from the tower.

    Parameters
    ----------
    open_tower
        Loads the tower; called at the first text that the table lacks.
    file
        The shipped table, or None.
    """

    def __init__(self, open_tower: Callable[[], MiniLmTextTower], file: Path | None = SHIPPED) -> None:
        self._open_tower = open_tower
        self._table = read_table(file) if file is not None and file.is_file() else {}

    @cached_property
    def tower(self) -> MiniLmTextTower:
        return self._open_tower()

    def encode_ensemble(self, wordings: Sequence[str]) -> Tensor:
        """Unit vector [384], float32."""
        key = key_of(wordings)
        if key not in self._table:
            self._table[key] = self.tower.encode_ensemble(wordings)
        return self._table[key]


def key_of(wordings: Sequence[str]) -> str:
    """Hash of the strings that the tower would read; other wordings or templates never find a stale vector."""
    return hashlib.sha256(json.dumps([TEMPLATES, list(wordings)], ensure_ascii=False).encode()).hexdigest()[:24]


def read_table(file: Path) -> dict[str, Tensor]:
    """Vectors by key."""
    with safe_open(file, framework="pt") as stored:
        keys = json.loads(stored.metadata()["keys"])
        vectors = stored.get_tensor("vectors").float()
    return {key: torch.nn.functional.normalize(vector, dim=-1) for key, vector in zip(keys, vectors, strict=True)}


def write_table(tower: MiniLmTextTower, all_wordings: Sequence[Sequence[str]], file: Path = SHIPPED) -> None:
    """Encode every structure's wordings and write the table, atomically."""
    vectors = torch.stack([tower.encode_ensemble(wordings) for wordings in all_wordings]).half()
    keys = json.dumps([key_of(wordings) for wordings in all_wordings])
    with replacing(file) as handle:
        handle.write(save({"vectors": vectors.contiguous()}, metadata={"keys": keys}))
