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
from MedZeroSegLib.vocabulary import vocabulary

FOLDER = Path(__file__).parent / "heads"
OTHERS = "other"  # the threshold's kind of what has none of its own
BONES, FINDINGS = ("bone", "spine", "dental"), ("finding", "device")
LARGE_ORGANS = frozenset(
    {"liver", "spleen", "kidney", "lung", "stomach", "pancreas", "urinary bladder", "brain", "heart", "body"}
)

Features = Mapping[str, "float | np.ndarray"]


@dataclass(frozen=True)
class Logistic:
    """σ(bias + Σ weight · feature); fitted to shares in 0..1 it is the fractional logit of Papke and Wooldridge (1996).

    Attributes
    ----------
    weights
        By feature; features that it doesn't name don't count.
    """

    bias: float
    weights: Mapping[str, float]

    def logit(self, features: Features) -> Any:
        """The linear part: a number, or an array where the features are arrays."""
        return self.bias + sum(weight * features[name] for name, weight in self.weights.items())

    def __call__(self, features: Features) -> Any:
        return expit(self.logit(features))


@dataclass(frozen=True)
class Calibration:
    """What was fitted for one preset.

    Attributes
    ----------
    presence
        Probability that a structure is in the image, from `presence.presence_features`.
    found_min
        Least of it for "found", by kind (see ``kind_of``).
    dice
        Expected Dice of a segment, from `confidence.measure`; ``offsets`` are added to its logit by structure.
    slice_dice
        Expected Dice of one slice of a segment.
    """

    presence: Logistic
    found_min: Mapping[str, float]
    dice: Logistic
    slice_dice: Logistic
    offsets: Mapping[str, float] = field(default_factory=dict)

    def is_found(self, name: str, features: Features) -> bool:
        """Whether a structure of the vocabulary is there."""
        kind = kind_of(name)
        return bool(self.presence(features) >= self.found_min.get(kind, self.found_min[OTHERS]))

    def dice_logit(self, name: str, features: Features) -> float:
        """Logit of the expected Dice of a segment of a structure."""
        return float(self.dice.logit(features)) + self.offsets.get(name, 0.0)


def kind_of(name: str) -> str:
    """The kind of a structure for its threshold: large or small organ, bone, heart, brain, finding, or other."""
    structure = vocabulary().get(name)
    if structure is None:
        return OTHERS
    if structure.kind in FINDINGS:
        return "finding"
    if structure.kind in BONES:
        return "bone"
    if structure.region == "heart" or structure.kind == "heart":
        return "heart"
    if structure.region == "head":
        return "brain"
    if structure.name in LARGE_ORGANS:
        return "large organ"
    return "small organ" if structure.kind in ("organ", "vessel", "muscle", "tissue") else OTHERS


@lru_cache(maxsize=8)
def calibration_of(preset: str, folder: Path = FOLDER) -> Calibration | None:
    """The shipped coefficients of a preset, None where it has none; raises InstallationError for a damaged file."""
    file = folder / f"{preset}-confidence.json"
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        logistics = {
            name: Logistic(float(content[name]["bias"]), dict(content[name]["weights"]))
            for name in ("presence", "dice", "slice_dice")
        }
        return Calibration(found_min=content["found_min"], offsets=content["offsets"], **logistics)
    except (OSError, KeyError, TypeError, ValueError) as problem:
        raise InstallationError(f"{file} isn't a calibration of this version; reinstall medzeroseg.") from problem
