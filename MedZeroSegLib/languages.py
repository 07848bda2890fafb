"""Names of structures in German, French, Spanish, Chinese and Latin, which lead to the vocabulary's concepts.
They only say what is meant: the text towers never read them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from .vocabulary import Side, Structure, vocabulary

LANGUAGES: Mapping[str, str] = {"de": "German", "fr": "French", "es": "Spanish", "zh": "Chinese", "la": "Latin"}

# What each language says for left and right, as `spelled` folds it.
SIDE_WORDS: Mapping[str, Mapping[Side, str]] = {
    "de": {
        "left": "links link linke linker linkes linken linkem linksseitig linksseitige linksseitiger linksseitiges li",
        "right": "rechts recht rechte rechter rechtes rechten rechtem rechtsseitig rechtsseitige rechtsseitiger "
        "rechtsseitiges re",
    },
    "fr": {"left": "gauche gauches", "right": "droit droite droits droites"},
    "es": {
        "left": "izquierdo izquierda izquierdos izquierdas izq izdo izda",
        "right": "derecho derecha derechos derechas dcho dcha",
    },
    "zh": {"left": "左", "right": "右"},
    "la": {"left": "sinister sinistra sinistrum", "right": "dexter dextra dextrum"},
}
SIDES: Mapping[str, Mapping[str, Side]] = {
    language: {word: side for side, words in sides.items() for word in words.split()}
    for language, sides in SIDE_WORDS.items()
}
IDLE_WORDS: Mapping[str, str] = {
    "de": "der die das des dem den ein eine einer von vom und im in seite beide beiden beider beidseits beidseitig",
    "fr": "le la les l un une de du des d et a au deux bilateral bilateraux bilaterale",
    "es": "el la los las un una de del y en lado ambos ambas bilateral bilaterales",
    "zh": "的 侧 双 两",
    "la": "et",
}
IDLE: Mapping[str, frozenset[str]] = {language: frozenset(words.split()) for language, words in IDLE_WORDS.items()}
# Traditional characters of the names in the vocabulary, which are simplified ones.
SIMPLIFIED = str.maketrans(
    "臟髒腎膽動氣腸頭顱腦幹馬鎖髖脈靜門間盤側雙兩縱質積頜葉顎體灰腫樞狀",
    "脏脏肾胆动气肠头颅脑干马锁髋脉静门间盘侧双两纵质积颌叶颚体灰肿枢状",
)
SHORTEST_SIDE = 3  # letters of a side that stands alone
LETTERS = str.maketrans({"œ": "oe", "æ": "ae", "ø": "o"})
HAN = re.compile(r"[\u3400-\u9fff]")

Key = tuple[str, ...]


@dataclass(frozen=True)
class Meaning:
    """What a text means in another language: a structure and the sides that it names beside it."""

    structure: Structure
    sides: frozenset[Side]
    language: str


def meaning_of(text: str) -> Meaning | None:
    """What a name in another language means; None where it is a name in none of them."""
    for language in LANGUAGES:
        words = _words(text, language)
        named = frozenset(side for side in ("left", "right") if side in words)
        index = _index()[language]
        structure = index.get(_key(words))  # whole first: the left ventricle is a structure of its own
        sides: frozenset[Side] = frozenset()
        if structure is None and named:
            structure = index.get(_key(tuple(word for word in words if word not in named)))
            sides = named
        if structure is not None:
            return Meaning(structure, sides, LANGUAGES[language])
    return None


def is_side_word(text: str) -> bool:
    """Whether a text is nothing but a side in another language; short forms alone are too like other things."""
    if len(text) < SHORTEST_SIDE and not HAN.search(text):
        return False
    return any(set(_words(text, language)) in ({"left"}, {"right"}) for language in LANGUAGES)


def without_side(text: str) -> tuple[str, Side] | None:
    """A text in another language without the side that it names, as `spelled` folds it, and that side."""
    for language in LANGUAGES:
        words = _words(text, language)
        sides = {"left", "right"} & set(words)
        if len(sides) == 1:
            side: Side = "left" if sides == {"left"} else "right"
            return " ".join(word for word in words if word != side), side
    return None


@cache
def foreign_spellings() -> Mapping[str, Structure]:
    """Every name in another language as `spelled` folds it, for offers."""
    return {
        spelled(name): structure
        for structure in vocabulary().values()
        for language, names in structure.names.items()
        if language != "zh"
        for name in names
    }


def spelled(text: str) -> str:
    """Case-folded, without accents."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).translate(LETTERS)
    return "".join(c for c in unicodedata.normalize("NFKD", folded) if not unicodedata.combining(c))


@cache
def _index() -> Mapping[str, Mapping[Key, Structure]]:
    index: dict[str, dict[Key, Structure]] = {language: {} for language in LANGUAGES}
    for structure in vocabulary().values():
        for language, names in structure.names.items():
            for name in names:
                for spelling in (name, _with_e(name)) if language == "de" else (name,):
                    index[language].setdefault(_key(_words(spelling, language)), structure)
    return index


def _with_e(text: str) -> str:
    """Umlauts written with an e, as on keyboards that lack them."""
    composed = unicodedata.normalize("NFC", text.casefold())
    return composed.replace("ä", "ae").replace("ö", "oe").replace("ü", "ue")


def _words(text: str, language: str) -> Key:
    """Folded words of a text read in one language, its sides as "left" and "right", idle words left out."""
    letters = "".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in spelled(text))
    if language == "zh":
        letters = HAN.sub(r" \g<0> ", letters.translate(SIMPLIFIED))
    words = [SIDES[language].get(word, word) for word in letters.split()]
    return tuple(word for word in words if word not in IDLE[language])


def _key(words: Key) -> Key:
    """In any order; Chinese characters are words here, so their order counts less than it should, which no two names
    of the vocabulary differ by."""
    return tuple(sorted(set(words)))
