"""Typed text to resolved queries: which structure, on which side, with which doubts.
Unknown text passes on as typed; likely typos and ambiguous readings are offered and never used silently."""

from __future__ import annotations

import colorsys
import difflib
import hashlib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

from .errors import InputError
from .vocabulary import (
    ANATOMICAL_STRUCTURE,
    SIDE_CODES,
    Code,
    Side,
    Structure,
    abbreviations,
    vocabulary,
    wordings,
)

LONGEST_NAME = 200  # characters; the text towers read about this much and cut the rest
LONGEST_TYPO = 60  # characters; no name in the vocabulary is longer
SHORTEST_TYPO = 4  # characters; shorter text is near to everything
TYPO_LIKENESS = 0.8  # difflib ratio, 0..1; "livr" and "liver" have 0.89
SUGGESTIONS_MOST = 3

SEPARATORS = ",;\n\r，；、"
QUOTES: Mapping[str, str] = {'"': '"', "“": "”", "„": "“", "«": "»"}

SIDE_WORDS: Mapping[str, Side] = {
    **dict.fromkeys(("left", "lt", "l", "lft", "lefthand", "leftsided", "sinister", "sinistra", "sinistrum"), "left"),
    **dict.fromkeys(("right", "rt", "r", "rgt", "righthand", "rightsided", "dexter", "dextra", "dextrum"), "right"),
}
BOTH_WORDS = frozenset({"both", "bilateral"})
IDLE_WORDS = frozenset({"of", "the", "a", "an", "and", "in", "side", "sided", "hand"})
BRITISH = (
    ("oesoph", "esoph"), ("tumour", "tumor"), ("oedem", "edem"), ("haem", "hem"), ("grey", "gray"), ("coeli", "celi"),
    ("caec", "cec"), ("foet", "fet"), ("centre", "center"), ("fibre", "fiber"), ("calibre", "caliber"),
    ("ischaem", "ischem"), ("orthopaed", "orthoped"), ("opacif", "opacif"), ("disk", "disc"),
)  # fmt: skip
PLURALS: Mapping[str, str] = {
    "atria": "atrium", "bronchi": "bronchus", "calculi": "calculus", "diverticula": "diverticulum", "femora": "femur",
    "foci": "focus", "ganglia": "ganglion", "humeri": "humerus", "menisci": "meniscus", "metastases": "metastasis",
    "nuclei": "nucleus", "ossa": "os", "pelves": "pelvis", "septa": "septum", "sinuses": "sinus", "sternum": "sternum",
    "stenoses": "stenosis", "teeth": "tooth", "testes": "testis", "thrombi": "thrombus", "tibiae": "tibia",
    "fibulae": "fibula", "scapulae": "scapula", "ulnae": "ulna", "uteri": "uterus", "venae": "vena",
    "vertebrae": "vertebra", "vertebras": "vertebra", "ovaries": "ovary", "feet": "foot", "plexuses": "plexus",
    "thymuses": "thymus", "viscera": "viscus", "abscesses": "abscess", "masses": "mass", "pancreases": "pancreas",
    "crises": "crisis", "patellae": "patella", "maxillae": "maxilla", "claviculae": "clavicula", "costae": "costa",
    "bullae": "bulla", "hernias": "hernia", "areas": "area", "fibromata": "fibroma", "oedemata": "edema",
}  # fmt: skip
SINGULAR_ENDINGS = ("ss", "us", "is", "as", "eps", "os", "ies")

Key = tuple[str, ...]


@dataclass(frozen=True)
class Query:
    """What one typed name was understood as.

    Attributes
    ----------
    typed: the text as typed, without blanks around it.
    name: canonical name with its side ("left kidney"); for unknown text the text itself with single blanks.
    structure, side: the structure and, for a paired one, the side asked for; side None is the whole.
    status: "known", or "unknown" when the text goes to the text tower as typed.
    suggestions: names that may have been meant; offered, never used.
    warnings: sentences for the user.
    """

    typed: str
    name: str
    structure: Structure | None
    side: Side | None
    status: Literal["known", "unknown"]
    suggestions: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def code(self) -> Code | None:
        """Type code of the segment, None where none is certain."""
        return self.structure.code if self.structure else None

    @property
    def category(self) -> Code:
        """Category code of the segment."""
        return self.structure.category if self.structure else ANATOMICAL_STRUCTURE

    @property
    def modifier(self) -> Code | None:
        """Code of the side asked for."""
        return SIDE_CODES[self.side] if self.side else None

    @property
    def color(self) -> tuple[int, int, int]:
        """Red, green, blue, 0..255; for unknown text derived from the text, so that it is the same each time."""
        return self.structure.color if self.structure else _color_of_text(_fold(self.name))


def resolve(names: str | Sequence[str]) -> list[Query]:
    """Resolve typed names, in order.

    Parameters
    ----------
    names: one text holding a list (see `split_names`), or a sequence in which each item is one name.

    Returns
    -------
    One query per name; names equal after trimming and case-folding are one query with a warning that says so.

    Raises
    ------
    InputError
        When nothing was typed.
    """
    typed = split_names(names) if isinstance(names, str) else [name.strip() for name in names]
    typed = [name for name in typed if name]
    if not typed:
        raise InputError("No structure was named; type at least one name, for example: liver; left kidney.")
    spellings: dict[str, list[str]] = {}
    for name in typed:
        spellings.setdefault(_fold(name), []).append(name)
    queries = [_with_doubles(_resolve_one(same[0]), same) for same in spellings.values()]
    return _with_shared_meanings(queries)


def split_names(text: str) -> list[str]:
    """Split a typed list at commas, semicolons and line ends, also full-width ones.

    Empty parts are left out. A name in double quotes may hold separators. A part that is only a side belongs to the
    part before it, so that "kidney, left, spleen" is "kidney, left" and "spleen".
    """
    names: list[str] = []
    for part, quoted in _parts(text):
        if not quoted and _is_side(part) and names and not _sides(_words(names[-1])):
            names[-1] = f"{names[-1]}, {part}"
        else:
            names.append(part)
    return names


def _parts(text: str) -> list[tuple[str, bool]]:
    parts: list[tuple[str, bool]] = []
    start = position = 0
    quoted = False
    while position <= len(text):
        character = text[position] if position < len(text) else SEPARATORS[0]
        closing = text.find(QUOTES[character], position + 1) if character in QUOTES else -1
        if closing >= 0 and not text[start:position].strip():
            parts.append((text[position + 1 : closing].strip(), True))
            start = position = closing + 1
            quoted = True
        elif character in SEPARATORS:
            parts.append((text[start:position].strip(), False))
            start, quoted = position + 1, False
            position += 1
        else:
            position += 1
    del quoted
    return [(part, quoted) for part, quoted in parts if part]


def _resolve_one(typed: str) -> Query:
    words = _words(typed)
    if len(typed) > LONGEST_NAME:
        warning = f"The name beginning “{typed[:40]}” has {len(typed)} characters; only its first part may count."
        return _unknown(typed, (), (warning,))
    ambiguous = _ambiguous().get(_key(words))
    if ambiguous:
        readings = " or ".join(ambiguous)
        return _unknown(typed, ambiguous, (f"“{typed}” can mean {readings}; type the one that is meant.",))
    found = _index().get(_key(words))
    if found:
        return _known(typed, found)
    rest = tuple(word for word in words if word not in SIDE_WORDS and word not in BOTH_WORDS)
    if not rest:
        return _unknown(typed, (), (f"“{typed}” names a side and no structure; type both, for example: left kidney.",))
    found = _index().get(_key(rest))
    if found:
        return _known(typed, found, _sides(words))
    return _unknown(typed, _likely_meant(words, rest), ())


@dataclass(frozen=True)
class _Entry:
    structure: Structure
    side: Side | None = None
    contextual: bool = False


def _known(typed: str, entry: _Entry, sides: frozenset[Side] = frozenset()) -> Query:
    structure, side = entry.structure, entry.side
    warnings: list[str] = []
    if entry.contextual:
        warnings.append(f"“{typed}” was understood as {structure.name}; type the full name if something else is meant.")
    if len(sides) == 1 and side is None:
        (asked,) = sides
        if structure.side == "paired":
            side = asked
        else:
            warnings.append(f"{structure.name} has no {asked} one of its own here; the whole structure is used.")
    name = f"{side} {structure.name}" if side else structure.name
    return Query(typed, name, structure, side, "known", (), tuple(warnings))


def _unknown(typed: str, suggestions: tuple[str, ...], warnings: tuple[str, ...]) -> Query:
    return Query(typed, _single_blanks(typed), None, None, "unknown", suggestions, warnings)


def _likely_meant(words: Key, rest: Key) -> tuple[str, ...]:
    sides = _sides(words)
    text = " ".join(rest)
    if not SHORTEST_TYPO <= len(text) <= LONGEST_TYPO:
        return ()
    candidates = _typo_candidates()
    near = difflib.get_close_matches(text, candidates, n=4 * SUGGESTIONS_MOST, cutoff=TYPO_LIKENESS)
    names: dict[str, None] = {}
    for structure in (candidates[text] for text in near):
        side = next(iter(sides)) if len(sides) == 1 and structure.side == "paired" else None
        names[f"{side} {structure.name}" if side else structure.name] = None
    return tuple(names)[:SUGGESTIONS_MOST]


def _with_doubles(query: Query, spellings: list[str]) -> Query:
    if len(spellings) == 1:
        return query
    listed = ", ".join(f"“{spelling}”" for spelling in spellings)
    warning = f"{listed} are one name apart from case and blanks; it runs once."
    return replace(query, warnings=(*query.warnings, warning))


def _with_shared_meanings(queries: list[Query]) -> list[Query]:
    first: dict[str, Query] = {}
    told: list[Query] = []
    for query in queries:
        other = first.setdefault(query.name, query) if query.structure else query
        if other is not query:
            warning = f"“{query.typed}” and “{other.typed}” both mean {query.name} and give the same mask."
            query = replace(query, warnings=(*query.warnings, warning))
        told.append(query)
    return told


@cache
def _index() -> Mapping[Key, _Entry]:
    index: dict[Key, _Entry] = {}
    for structure in vocabulary().values():
        for wording in wordings(structure):
            index.setdefault(_key(_words(wording)), _Entry(structure))
    for short, (name, side) in abbreviations().sided.items():
        index.setdefault(_key(_words(short)), _Entry(vocabulary()[name], side))
    for short, name in abbreviations().contextual.items():
        index.setdefault(_key(_words(short)), _Entry(vocabulary()[name], contextual=True))
    return index


@cache
def _ambiguous() -> Mapping[Key, tuple[str, ...]]:
    return {_key(_words(text)): names for text, names in abbreviations().ambiguous.items()}


@cache
def _typo_candidates() -> Mapping[str, Structure]:
    candidates: dict[str, Structure] = {}
    for structure in vocabulary().values():
        for wording in wordings(structure):
            text = " ".join(_words(wording))
            if len(text) >= SHORTEST_TYPO:
                candidates.setdefault(text, structure)
    return candidates


def _words(text: str) -> Key:
    """Folded words in order: one spelling per letter, American, singular, sides as "left" and "right"."""
    letters = "".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in _fold(text))
    for british, american in BRITISH:
        letters = letters.replace(british, american)
    words = tuple(_singular(word) for word in letters.split())
    words = _joined_levels(words)
    words = tuple(SIDE_WORDS.get(word, word) for word in words)
    return tuple(word for word in words if word not in IDLE_WORDS) or words


def _joined_levels(words: Key) -> Key:
    """Join "L 4" to "l4" where a vertebra or disc is spoken of, so that its letter isn't taken for a side."""
    if not {"vertebra", "vertebral", "disc", "spine", "body"} & set(words):
        return words
    return tuple(re.sub(r"\b([ctls]) (\d+)\b", r"\1\2", " ".join(words)).split())


def _key(words: Key) -> Key:
    return tuple(sorted(set(words)))


def _sides(words: Key) -> frozenset[Side]:
    """Sides named in folded words; none when both are."""
    sides = frozenset(SIDE_WORDS[word] for word in words if word in SIDE_WORDS)
    return sides if len(sides) == 1 else frozenset()


def _is_side(text: str) -> bool:
    words = _words(text)
    return bool(words) and all(word in SIDE_WORDS for word in words)


def _singular(word: str) -> str:
    if word in PLURALS:
        return PLURALS[word]
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith("s") and len(word) > 3 and not word.endswith(SINGULAR_ENDINGS):
        return word[:-1]
    return word


def _fold(text: str) -> str:
    """Compatibility-composed, case-folded, with single blanks."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(folded.split())


def _single_blanks(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


def _color_of_text(text: str) -> tuple[int, int, int]:
    hue = int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:4], "big") / 2**32
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.55, 0.9)
    return round(255 * red), round(255 * green), round(255 * blue)
