"""A structure in words, as captions of medical pictures would have it, and what is never meant by it.

Fixed before anything is measured; no sentence depends on what an image shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

from MedZeroSegLib.text_image.model import Scene


class Wording(str, Enum):
    """How much is said around a name."""

    NAME = "name"  # the bare name
    MODALITY = "modality"  # the name in an image of the modality
    ENSEMBLE = "ensemble"  # every template with every synonym


TEMPLATES = (
    "{m} image of the {r} showing the {s}",
    "{s}",
    "a {m} image with the {s} visible",
    "{p}{m} slice through the {s}",
    "{m}: {s}",
)
MODALITY_WORDS = {"MR": "MRI", "PET": "PET", "other": "medical"}  # the others are called as they are
REGION_WORDS = {"whole": "body", "limb": "extremity"}
NO_REGION = "body"
# What fills an image beside the structure asked for; left out where kinds of structures are meant by it themselves.
NEGATIVES: dict[str, tuple[str, ...]] = {
    "background": (),
    "air outside the body": (),
    "bone": ("bone", "spine", "dental"),
    "subcutaneous fat": ("tissue",),
    "muscle": ("muscle", "heart"),
    "bowel gas": (),
}


def sentences(wordings: Sequence[str], scene: Scene, wording: Wording = Wording.ENSEMBLE) -> tuple[str, ...]:
    """The strings that stand for one concept, each once, the order of the wordings kept."""
    modality = MODALITY_WORDS.get(scene.modality, scene.modality)
    if wording is Wording.NAME:
        return (wordings[0],)
    if wording is Wording.MODALITY:
        return (f"{modality} image of the {wordings[0]}",)
    region = REGION_WORDS.get(scene.region, scene.region) or NO_REGION
    plane = "" if scene.plane == "picture" else f"{scene.plane} "
    made = [template.format(m=modality, r=region, s=words, p=plane) for words in wordings for template in TEMPLATES]
    return tuple(dict.fromkeys(made))


def negative_sentences(kind: str, scene: Scene) -> tuple[str, ...]:
    """What a structure of this kind competes with wherever it is looked for, the bare modality last."""
    modality = MODALITY_WORDS.get(scene.modality, scene.modality)
    return (*(name for name, kinds in NEGATIVES.items() if kind not in kinds), f"a {modality} image")
