"""Presets that users train themselves: a folder with a card and weights, given by its path; its hashes go with results.

The card is JSON and the weights are safetensors, so nothing in such a folder can run when it is opened.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from MedZeroSegLib import __version__
from MedZeroSegLib.errors import InputError
from MedZeroSegLib.weights_catalogue import sha256_of
from MedZeroSegLib.writers import replacing

CARD, WEIGHTS = "preset.json", "weights.safetensors"
FORMAT = 1  # of the card
STUDENT, EXTENDED = "student", "extended"  # kinds: learnt from a preset's masks; a shipped head with names of its own
NAME_MAX = 24  # characters of the folder's name in the preset's, which goes into fields of DICOM


@dataclass(frozen=True)
class TrainedPreset:
    """A folder that holds a preset.

    Attributes
    ----------
    folder
        As the user gave it.
    kind
        ``STUDENT`` or ``EXTENDED``.
    card_sha256, weights_sha256
        Hashes of its two files.
    """

    folder: str
    kind: str
    card_sha256: str
    weights_sha256: str

    @property
    def name(self) -> str:
        """The folder's name and the beginning of a hash, so that two folders never share one."""
        return f"{Path(self.folder).resolve().name[:NAME_MAX]}@{self.weights_sha256[:4]}{self.card_sha256[:4]}"

    @property
    def weights(self) -> Path:
        """The file of the weights."""
        return Path(self.folder) / WEIGHTS

    @property
    def card(self) -> dict[str, Any]:
        """What the card says."""
        return _content(Path(self.folder) / CARD)

    @property
    def records(self) -> tuple[dict[str, str], ...]:
        """What a result tells of both files: name, file, SHA-256, licence."""
        licence = str(self.card.get("licence", "not stated"))
        return (
            {"name": f"{self.name} {self.kind}", "file": WEIGHTS, "sha256": self.weights_sha256, "licence": licence},
            {"name": f"{self.name} card", "file": CARD, "sha256": self.card_sha256, "licence": licence},
        )


def read_trained_preset(folder: Path | str) -> TrainedPreset:
    """Look at a folder that is given as a preset.

    Raises
    ------
    InputError
        When it isn't there, isn't a preset, or its weights aren't those that its card names.
    """
    folder = Path(folder).expanduser()
    card, weights = folder / CARD, folder / WEIGHTS
    if not folder.is_dir():
        raise InputError(f"The preset '{folder}' is no folder; give one that `medzeroseg train weak` or `lite` wrote.")
    if not card.is_file() or not weights.is_file():
        missing = CARD if not card.is_file() else WEIGHTS
        raise InputError(
            f"'{folder}' is no preset, for it lacks {missing}; give a folder that `medzeroseg train weak` or `lite` "
            "wrote to its end."
        )
    content = _content(card)
    kind = content.get("kind")
    if content.get("format") != FORMAT or kind not in (STUDENT, EXTENDED):
        raise InputError(f"'{card}' is no card of a preset of this version; train the preset again.")
    sha256 = _sha256(weights, weights.stat().st_mtime_ns, weights.stat().st_size)
    if content.get("weights_sha256") != sha256:
        raise InputError(f"'{weights}' isn't the file that its card names; bring both from one training.")
    return TrainedPreset(str(folder), kind, sha256_of(card), sha256)


def write_trained_preset(folder: Path, kind: str, weights: bytes, card: Mapping[str, Any]) -> Path:
    """Write weights and card, the card last, so that a folder with a card is whole; returns the folder."""
    with replacing(folder / WEIGHTS) as file:
        file.write(weights)
    marks = {"format": FORMAT, "kind": kind, "version": __version__}
    content = {**marks, **card, "weights_sha256": sha256_of(folder / WEIGHTS)}
    with replacing(folder / CARD) as file:
        file.write((json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode("utf-8"))
    return folder


def _content(card: Path) -> dict[str, Any]:
    try:
        content = json.loads(card.read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}
    except (OSError, ValueError) as problem:
        raise InputError(f"'{card}' can't be read; train the preset again.") from problem


@lru_cache(maxsize=16)
def _sha256(file: Path, _changed: int, _size: int) -> str:
    return sha256_of(file)
