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
from functools import cache, lru_cache
from typing import Literal

from .errors import InputError
from .languages import foreign_spellings, is_side_word, meaning_of, without_side
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
LONGEST_QUOTE = 40  # characters of a name that a warning repeats
LONGEST_TYPO = 60  # characters; no wording in the vocabulary is longer
SHORTEST_TYPO = 4  # characters; shorter text is near to everything
TYPO_LIKENESS = 0.8  # difflib ratio, 0..1; "livr" and "liver" have 0.89
TYPO_MARGIN = 0.06  # of that ratio; what is further behind the best is not offered
SUGGESTIONS_MOST = 3

SEPARATORS = ",;\n\r，；、"
PART = re.compile(  # a name in quotes up to the next separator, or else (last group) what stands between separators
    rf"""\s*(?:"([^"]*)"|“([^”]*)”|„([^“”]*)[“”]|«([^»]*)»)\s*(?=[{SEPARATORS}]|\Z)|([^{SEPARATORS}]+)"""
)

SIDE_WORDS: Mapping[str, Side] = {
    **dict.fromkeys(("left", "lt", "l", "leftsided", "sinister", "sinistra", "sinistrum"), "left"),
    **dict.fromkeys(("right", "rt", "r", "rightsided", "dexter", "dextra", "dextrum"), "right"),
}
BOTH_WORDS = frozenset({"both", "bilateral"})
IDLE_WORDS = frozenset({"of", "the", "a", "an", "and", "in", "side", "sided"})
BRITISH = (
    ("oesoph", "esoph"), ("tumour", "tumor"), ("oedem", "edem"), ("haem", "hem"), ("grey", "gray"), ("coeli", "celi"),
    ("caec", "cec"), ("foet", "fet"), ("centre", "center"), ("fibre", "fiber"), ("calibre", "caliber"),
    ("ischaem", "ischem"), ("orthopaed", "orthoped"), ("disk", "disc"),
)  # fmt: skip
PLURALS: Mapping[str, str] = {
    "areas": "area", "atria": "atrium", "bronchi": "bronchus", "bullae": "bulla", "calculi": "calculus",
    "claviculae": "clavicula", "costae": "costa", "feet": "foot", "femora": "femur", "fibulae": "fibula",
    "foci": "focus", "ganglia": "ganglion", "hernias": "hernia", "humeri": "humerus", "lens": "lens",
    "lenses": "lens", "maxillae": "maxilla", "menisci": "meniscus", "metastases": "metastasis",
    "nuclei": "nucleus", "patellae": "patella", "pelves": "pelvis", "scapulae": "scapula", "septa": "septum",
    "stenoses": "stenosis", "teeth": "tooth", "testes": "testis", "thrombi": "thrombus", "tibiae": "tibia",
    "ulnae": "ulna", "uteri": "uterus", "venae": "vena", "vertebrae": "vertebra", "vertebras": "vertebra",
}  # fmt: skip
SINGULAR_ENDINGS = ("ss", "us", "is", "as", "eps", "os")  # of words that aren't plurals: pancreas, thymus, biceps
# What a sentence says of the picture rather than of the structure in it, and the small words between.
PICTURE_WORDS = re.compile(
    r"""abdominal|anatomical|angiography|axial|border|cardiac|chest|clear|clearly|contrast|coronal|cta?|echo|enhanced
    |example|find|frame|highlight|image|imaging|kind|label|locate|magnetic|mark|mask|medical|mra?|mri|organ|outline
    |pelvic|photo|picture|radiograph|region|resonance|sagittal|scan|section|see|seen|segment|segmentation|segmented
    |shape|show|shown|showing|slice|structure|t1|t2|texture|thoracic|tomography|ultrasound|view|visible|volume|weighted
    |xray""",
    re.VERBOSE,
)
SMALL_WORDS = frozenset(
    {"be", "can", "it", "its", "me", "on", "own", "please", "that", "this", "to", "where", "which", "with"}
)
LEVEL_WORDS = frozenset({"vertebra", "vertebral", "disc", "spine", "body"})

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
    language: in which the name was typed, such as "German", where it isn't English.
    warnings: sentences for the user.
    """

    typed: str
    name: str
    structure: Structure | None
    side: Side | None
    status: Literal["known", "unknown"]
    suggestions: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    language: str | None = None

    @property
    def concept(self) -> str:
        """What the name is about without its side; unknown text stands for itself."""
        return self.structure.name if self.structure else self.name

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


@dataclass(frozen=True)
class _Entry:
    structure: Structure
    side: Side | None = None
    contextual: bool = False


def resolve(names: str | Sequence[str], own: Sequence[Structure] = ()) -> list[Query]:
    """Resolve typed names, in order.

    Parameters
    ----------
    names: one text holding a list (see `split_names`), or a sequence in which each item is one name.
    own: structures that a user added; names that aren't known otherwise may mean them.

    Returns
    -------
    One query per name; names equal after trimming and case-folding are one query with a warning that says so.

    Raises
    ------
    InputError
        When nothing was typed, or text that isn't valid Unicode.
    """
    typed = split_names(names) if isinstance(names, str) else [name.strip() for name in names]
    typed = [name for name in typed if name]
    if not typed:
        raise InputError("No structure was named; type at least one name, for example: liver; left kidney.")
    for name in typed:
        if any(unicodedata.category(character) == "Cs" for character in name):
            raise InputError(f"The name {name!a} isn't valid Unicode text; type it again or save the list as UTF-8.")
    spellings: dict[str, list[str]] = {}
    for name in typed:
        spellings.setdefault(_fold(name), []).append(name)
    queries = [_with_doubles(_among(own, _resolve_one(same[0])), same) for same in spellings.values()]
    return _with_shared_meanings(queries)


def split_names(text: str) -> list[str]:
    """Split a typed list at commas, semicolons and line ends, also full-width ones.

    Empty parts are left out. A name in double quotes may hold separators. A part that is only a side belongs to the
    part before it, so that "kidney, left, spleen" is "kidney, left" and "spleen"; at the start of the list, to the
    part after it.
    """
    names: list[str] = []
    waiting = ""
    for part, quoted in _parts(text):
        sideless = not quoted and _is_side(part)
        if sideless and names and not _sides(_words(names[-1])):
            names[-1] = f"{names[-1]}, {part}"
        elif sideless and not names and not waiting:
            waiting = part
        else:
            names.append(f"{waiting}, {part}" if waiting else part)
            waiting = ""
    return [*names, waiting] if waiting else names


def _parts(text: str) -> list[tuple[str, bool]]:
    """The parts of a list, trimmed, each with whether it stood in quotes; empty ones are left out."""
    parts = (
        (match.group(match.lastindex or 0).strip(), match.lastindex != PART.groups) for match in PART.finditer(text)
    )
    return [(part, quoted) for part, quoted in parts if part]


def _among(own: Sequence[Structure], query: Query) -> Query:
    """An unknown query as the user's own structure of that name, where there is one."""
    if query.status == "known":
        return query
    meant = next((one for one in own if _words(one.name) == _words(query.typed)), None)
    return query if meant is None else _known(query.typed, _Entry(meant))


def _resolve_one(typed: str) -> Query:
    if len(typed) > LONGEST_NAME:
        return _unknown(typed, (), f"{_quoted(typed)} has {len(typed)} characters; only its first part may count.")
    words = _words(typed)
    rest, sides = _sideless(words), _sides(words)
    readings = _ambiguous().get(_key(words)) or (_ambiguous().get(_key(rest)) if _found(words) is None else None)
    if readings:
        names = tuple(_named(vocabulary()[name], sides) for name in readings)
        return _unknown(typed, names, f"{_quoted(typed)} can mean {' or '.join(names)}; type the one that is meant.")
    if entry := _found(words):
        return _known(typed, entry)
    if entry := _found(rest):
        if entry.side and sides - {entry.side}:
            return _unknown(typed, (), f"{_quoted(typed)} names both sides; type the one that is meant.")
        return _known(typed, entry, sides)
    if meaning := meaning_of(typed):
        known = _known(typed, _Entry(meaning.structure), meaning.sides if len(meaning.sides) == 1 else frozenset())
        return replace(known, language=meaning.language)
    if not rest:
        missing = "names a side and no structure" if words else "has no letters"
        return _unknown(typed, (), f"{_quoted(typed)} {missing}; type the structure, for example: left kidney.")
    if told := _told_in_a_sentence(typed, words):
        return told
    parts = split_names(typed)
    listed = [_resolve_one(part) for part in parts] if len(parts) > 1 else []
    if listed and all(query.structure for query in listed):
        names = tuple(query.name for query in listed)
        return _unknown(typed, names, f"{_quoted(typed)} is taken as one name; give each structure as one of its own.")
    return _unknown(typed, _likely_meant(words, typed))


def _told_in_a_sentence(typed: str, words: Key) -> Query | None:
    """The one known name of a text whose other words only speak of the picture ("CT scan of the liver"), else None."""
    words = tuple(" ".join(words).replace("x ray", "xray").split())
    said = [word for word in words if not PICTURE_WORDS.fullmatch(word)]
    named = [word for word in said if word not in SMALL_WORDS]
    if not named or len(said) == len(words):
        return None
    meant = _resolve_one(" ".join(named))
    if meant.structure is None:
        return None
    warning = f"{_quoted(typed)} was understood as {meant.name}; type the name alone if something else is meant."
    return replace(meant, typed=typed, warnings=(warning, *meant.warnings))


def _known(typed: str, entry: _Entry, sides: frozenset[Side] = frozenset()) -> Query:
    structure = entry.structure
    name = _named(structure, frozenset({entry.side}) if entry.side else sides)
    side: Side | None = None
    warnings: list[str] = []
    if entry.contextual:
        warnings.append(f"{_quoted(typed)} was understood as {name}; type the full name if something else is meant.")
    if structure.side == "paired":
        side = entry.side or next(iter(sides), None)
    elif sides:
        warnings.append(
            f"{structure.name} isn't divided into left and right here; the whole is used for {_quoted(typed)}."
        )
    return Query(typed, name, structure, side, "known", (), tuple(warnings))


def _unknown(typed: str, suggestions: tuple[str, ...], *warnings: str) -> Query:
    return Query(typed, _single_blanks(typed), None, None, "unknown", suggestions, warnings)


def _named(structure: Structure, sides: frozenset[Side]) -> str:
    return " ".join([*sides, structure.name]) if structure.side == "paired" else structure.name


def _likely_meant(words: Key, typed: str) -> tuple[str, ...]:
    """Names of the structures of which one wording is nearly these words, the likeliest first."""
    words = tuple(next(iter(difflib.get_close_matches(word, SIDE_CODES, 1, TYPO_LIKENESS)), word) for word in words)
    candidates = _typo_candidates()
    likeness: dict[str, float] = {}
    readings = [(" ".join(words), _sides(words)), (" ".join(_sideless(words)), _sides(words))]
    if foreign := without_side(typed):
        readings.append((foreign[0], frozenset({foreign[1]})))
    for text, sides in readings:
        if SHORTEST_TYPO <= len(text) <= LONGEST_TYPO:
            for wording in difflib.get_close_matches(text, candidates, 4 * SUGGESTIONS_MOST, TYPO_LIKENESS):
                name = _named(candidates[wording], sides)
                ratio = difflib.SequenceMatcher(None, wording, text).ratio()
                likeness[name] = max(ratio, likeness.get(name, 0.0))
    best = sorted(likeness, key=lambda name: -likeness[name])[:SUGGESTIONS_MOST]
    return tuple(name for name in best if likeness[name] >= likeness[best[0]] - TYPO_MARGIN)


def _with_doubles(query: Query, spellings: list[str]) -> Query:
    if len(spellings) == 1:
        return query
    listed = ", ".join(_quoted(spelling) for spelling in spellings)
    warning = f"{listed} differ at most in case and blanks; they run once."
    return replace(query, warnings=(*query.warnings, warning))


def _with_shared_meanings(queries: list[Query]) -> list[Query]:
    first: dict[str, Query] = {}
    told: list[Query] = []
    for query in queries:
        other = first.setdefault(query.name, query) if query.structure else query
        if other is not query:
            warning = (
                f"{_quoted(query.typed)} means the same as {_quoted(other.typed)}: {query.name}; the masks are equal."
            )
            query = replace(query, warnings=(*query.warnings, warning))
        told.append(query)
    return told


def _found(words: Key) -> _Entry | None:
    """The entry whose words these are in any order, or that they make when written together ("gall bladder")."""
    return _index().get(_key(words)) or _index().get(("".join(words),))


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
    for structure in vocabulary().values():
        for wording in wordings(structure):
            index.setdefault(("".join(_words(wording)),), _Entry(structure))
    return index


@cache
def _ambiguous() -> Mapping[Key, tuple[str, ...]]:
    return {_key(_words(text)): names for text, names in abbreviations().ambiguous.items()}


@cache
def _typo_candidates() -> Mapping[str, Structure]:
    candidates: dict[str, Structure] = {}
    for structure in vocabulary().values():
        for wording in wordings(structure):
            candidates.setdefault(" ".join(_words(wording)), structure)
    for spelling, structure in foreign_spellings().items():
        candidates.setdefault(spelling, structure)
    return {text: structure for text, structure in candidates.items() if len(text) >= SHORTEST_TYPO}


@lru_cache(4096)
def _words(text: str) -> Key:
    """Folded words in order: American spelling, singular, sides as "left" and "right", idle words left out."""
    folded = re.sub(r"['’]s\b", "", _fold(text))
    letters = "".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in folded)
    for british, american in BRITISH:
        letters = letters.replace(british, american)
    words = tuple(SIDE_WORDS.get(word, word) for word in _joined_levels([_singular(word) for word in letters.split()]))
    return tuple(word for word in words if word not in IDLE_WORDS) or words


def _joined_levels(words: list[str]) -> list[str]:
    """Write "l 4" as "l4" and "l spine" as "lspine", where a level of the spine is meant and not a side."""
    alone = len(words) > 1 and all(word.isdecimal() for word in words[1:])
    if not alone and not LEVEL_WORDS & set(words):
        return words
    return re.sub(r"\b([ctls]) (\d+|spine)\b", r"\1\2", " ".join(words)).split()


def _key(words: Key) -> Key:
    return tuple(sorted(set(words)))


def _sides(words: Key) -> frozenset[Side]:
    """The side that folded words name; empty when they name none or both."""
    sides = frozenset(SIDE_WORDS[word] for word in words if word in SIDE_WORDS)
    return sides if len(sides) == 1 else frozenset()


def _sideless(words: Key) -> Key:
    return tuple(word for word in words if word not in SIDE_WORDS and word not in BOTH_WORDS)


def _is_side(text: str) -> bool:
    words = _words(text)
    return bool(words) and not _sideless(words) or is_side_word(text)


def _singular(word: str) -> str:
    if word in PLURALS:
        return PLURALS[word]
    if len(word) <= 3 or not word.endswith("s"):
        return word
    if word.endswith("ies"):
        return word[:-3] + "y"
    if word.endswith(("sses", "uses", "ches", "shes", "xes")):
        return word[:-2]
    return word if word.endswith(SINGULAR_ENDINGS) else word[:-1]


def _fold(text: str) -> str:
    """Compatibility-composed, case-folded, with single blanks."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(folded.split())


def _single_blanks(text: str) -> str:
    """Composed, control characters and runs of blanks as one blank."""
    shown = "".join(" " if unicodedata.category(character) == "Cc" else character for character in text)
    return " ".join(unicodedata.normalize("NFC", shown).split())


def _quoted(text: str) -> str:
    shown = _single_blanks(text)
    return f"“{shown}”" if len(shown) <= LONGEST_QUOTE else f"“{shown[:LONGEST_QUOTE]}…”"


def _color_of_text(text: str) -> tuple[int, int, int]:
    hue = int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:4], "big") / 2**32
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.55, 0.9)
    return round(255 * red), round(255 * green), round(255 * blue)
