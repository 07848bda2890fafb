"""Cases of a training on disk: the arrays of each in a safetensors file of its own, of which single slices are read."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from MedZeroSegLib.writers import replacing


class StoredCase:
    """One stored case: slices of its arrays, all of the same length, and facts."""

    def __init__(self, file: Path) -> None:
        self.file = file

    @cached_property
    def _opened(self) -> Any:
        return safe_open(self.file, "np")

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What was told of the case when it was stored."""
        return json.loads(self._opened.metadata()["facts"])

    @property
    def plan(self) -> str:
        """What the case was stored for."""
        return str(self._opened.metadata()["plan"])

    def __len__(self) -> int:
        return int(self._opened.get_slice("pictures").get_shape()[0])

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Slices ``start`` to ``stop`` of one array."""
        return self._opened.get_slice(name)[start:stop]


class StoredCases:
    """A folder of stored cases; each is written atomically."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def case(self, name: str) -> StoredCase:
        """A case that is there."""
        return StoredCase(self.folder / f"{name}.safetensors")

    def has(self, name: str, plan: str) -> bool:
        """Whether a case is stored, and stored for this plan."""
        try:
            return self.case(name).plan == plan
        except (OSError, SafetensorError, KeyError, TypeError):
            return False

    def add(self, name: str, plan: str, arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> None:
        """Store a case."""
        contiguous = {key: np.ascontiguousarray(value) for key, value in arrays.items()}
        with replacing(self.folder / f"{name}.safetensors") as file:
            file.write(save(contiguous, metadata={"plan": plan, "facts": json.dumps(facts)}))
