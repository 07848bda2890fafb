"""What captions of medical pictures say: when two say the same, and which modality and region they speak of."""

from __future__ import annotations

import re
import unicodedata

# The first that occurs in a caption counts. Regions are those of the vocabulary.
MODALITIES = {
    "CT": r"ct|cta|computed tomogra\w*|hrct|cect",
    "MR": r"mri?|mra|magnetic resonance|flair|t[12](?:-?weighted|w)?",
    "X-ray": r"x-?rays?|radiogra\w*|roentgen\w*|cxr|mammogra\w*|orthopantomogra\w*",
    "ultrasound": r"ultraso\w*|sonogra\w*|echocardiogra\w*|doppler",
    "PET": r"pet|positron emission\w*",
    "angiography": r"angiogra\w*|arteriogra\w*",
}
REGIONS = {
    "head": r"brain|cerebr\w*|cerebell\w*|crani\w*|skull|head|orbit\w*|sinus\w*|intracranial|dental|mandib\w*",
    "neck": r"neck|thyroid|trachea\w*|laryn\w*|carotid",
    "chest": r"chest|lungs?|pulmonary|thora\w*|pleura\w*|mediastin\w*|bronch\w*",
    "heart": r"heart|cardiac|myocard\w*|coronary|atri\w*|mitral|pericard\w*",
    "abdomen": r"abdom\w*|liver|hepat\w*|kidneys?|renal|spleen|splenic|pancrea\w*|bowel|gastric|stomach|gallbladder"
    r"|biliary|colon\w*|duoden\w*|jejun\w*|ile(?:um|al)",
    "pelvis": r"pelvi\w*|uter\w*|ovar\w*|prostat\w*|bladder|rect(?:um|al)|hips?",
    "spine": r"spin(?:e|al)|vertebra\w*|lumbar|sacr\w*|intervertebral",
    "limb": r"knees?|femur|femoral|tibia\w*|fibula\w*|ankles?|foot|hands?|wrist|humer\w*|shoulders?|elbows?|radius",
    "breast": r"breasts?|mammogra\w*|mammary",
}


def same_words(caption: str) -> str:
    """The caption without what makes no difference: case, spaces, final stops; equal for captions that say the same."""
    return " ".join(unicodedata.normalize("NFKC", caption).casefold().split()).rstrip(" .")


def context_of(caption: str) -> tuple[str, str]:
    """Modality and region that a caption speaks of first; "" where it names none."""
    return _first(MODALITIES, caption), _first(REGIONS, caption)


def _first(table: dict[str, str], caption: str) -> str:
    found = {name: re.search(rf"\b(?:{pattern})\b", caption, re.IGNORECASE) for name, pattern in table.items()}
    places = {name: match.start() for name, match in found.items() if match}
    return min(places, key=places.__getitem__) if places else ""
