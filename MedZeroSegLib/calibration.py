"""Coefficients that turn what the line measured of a structure into probabilities: is it there, how good is its mask.

They are fitted on training patients by `medzeroseg train confidence` and shipped as one JSON file for each preset.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit

from MedZeroSegLib.errors import InstallationError

FOLDER = Path(__file__).parent / "heads"
Features = Mapping[str, "float | np.ndarray"]


@dataclass(frozen=True)
class Logistic:
    """σ(bias + Σ weight · feature + offsets); fitted to shares, it is Papke and Wooldridge's fractional logit (1996).

    Attributes
    ----------
    weights
        By feature; features that it doesn't name don't count.
    structures
        Added for a structure.
    """

    bias: float
    weights: Mapping[str, float]
    structures: Mapping[str, float] = field(default_factory=dict)

    def logit(self, name: str, features: Features) -> Any:
        """The linear part for a structure: a number, or an array where the features are arrays."""
        own = self.bias + self.structures.get(name, 0.0)
        return own + sum(weight * features[one] for one, weight in self.weights.items())

    def __call__(self, name: str, features: Features) -> Any:
        return expit(self.logit(name, features))


@dataclass(frozen=True)
class Calibration:
    """What was fitted for one preset.

    Attributes
    ----------
    presence
        Probability that a structure is in the image, from `presence.presence_features`.
    found_min
        Least of it for "found". The offsets of structures make it a threshold for each.
    dice
        Expected Dice of a segment, from `confidence.measure`.
    slice_dice
        Expected Dice of one slice of a segment, from the slice and, as "segment", the logit of the whole.
    """

    presence: Logistic
    found_min: float
    dice: Logistic
    slice_dice: Logistic

    def is_found(self, name: str, features: Features) -> bool:
        """Whether a structure of the vocabulary is there."""
        return bool(self.presence(name, features) >= self.found_min)


def calibration_file(preset: str, folder: Path = FOLDER) -> Path:
    """Where the coefficients of a preset ship."""
    return folder / f"{preset}-confidence.json"


@lru_cache(maxsize=8)
def calibration_of(preset: str, folder: Path = FOLDER) -> Calibration | None:
    """The shipped coefficients of a preset, None where it has none; raises InstallationError for a damaged file."""
    file = calibration_file(preset, folder)
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        models = {name: Logistic(**content[name]) for name in ("presence", "dice", "slice_dice")}
        return Calibration(found_min=float(content["found_min"]), **models)
    except (OSError, KeyError, TypeError, ValueError) as problem:
        raise InstallationError(f"{file} isn't a calibration of this version; reinstall medzeroseg.") from problem
