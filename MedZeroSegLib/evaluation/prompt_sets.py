"""Frozen prompts: for each structure the texts that are typed for it, in a file whose hash the report prints.

Which of a structure's texts an image gets depends on the image's name alone, never on what it shows."""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from MedZeroSegLib.errors import InputError, InstallationError
from MedZeroSegLib.queries import LONGEST_NAME

SHIPPED = Path(__file__).parent / "prompts"
SUFFIXES = (".json", ".toml", ".yaml", ".yml")


@dataclass(frozen=True)
class Prompts:
    """One set.

    Attributes
    ----------
    name
        For the report.
    sha256
        Of the file.
    texts
        For each structure what is typed; structures that it lacks are typed by their names.
    """

    name: str
    sha256: str
    texts: Mapping[str, tuple[str, ...]]

    def text(self, case: str, structure: str) -> str:
        """What is typed for a structure in a case."""
        texts = self.texts.get(structure, (structure,))
        digest = hashlib.sha256(f"{case}:{structure}".encode()).digest()
        return texts[int.from_bytes(digest[:8], "big") % len(texts)]


def read_prompts(file: Path | str, data: str) -> Prompts:
    """Prompts of a file, or those that ship for a data set under a name such as "P1".

    Raises
    ------
    InputError
        When there is no such file, it isn't readable, or its texts aren't one or more a structure, each of which
        stands for one structure only.
    """
    path = Path(file)
    if not path.suffix:
        path = SHIPPED / f"{data}-{file}.json"
        if not path.is_file():
            there = sorted(shipped.stem.removeprefix(f"{data}-") for shipped in SHIPPED.glob(f"{data}-*.json"))
            raise InputError(
                f"There is no set of prompts {str(file)!r}"
                + (f" for {data}; use one of {', '.join(there)}, or a file." if there else "; give a file.")
            )
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{path} isn't read as prompts; give a file ending in {', '.join(SUFFIXES)}.")
    try:
        content = path.read_bytes()
    except OSError as problem:
        raise InputError(f"{path} can't be read; give a file of prompts, or the name of a shipped set.") from problem
    parsed = _parsed(path, content)
    texts = parsed.get("structures", parsed) if isinstance(parsed, dict) else None
    name = str(parsed.get("name", path.stem)) if isinstance(parsed, dict) else path.stem
    return Prompts(name, hashlib.sha256(content).hexdigest(), _checked(path, texts))


def check_known(prompts: Prompts, structures: set[str]) -> None:
    """Refuse prompts for structures that nothing asks for; raises InputError."""
    foreign = sorted(set(prompts.texts) - structures)
    if foreign:
        raise InputError(
            f"The prompts {prompts.name!r} name {foreign[0]!r}, which isn't measured here; "
            f"the structures are {', '.join(sorted(structures))}."
        )


def _parsed(path: Path, content: bytes) -> Any:
    """Content of a file by its suffix."""
    suffix = path.suffix.lower()
    try:
        text = content.decode("utf-8")
        if suffix == ".json":
            return json.loads(text)
        return parse_toml(text) if suffix == ".toml" else _parse_yaml(text)
    except ValueError as problem:
        raise InputError(f"{path} isn't valid {suffix[1:].upper()}; correct it ({problem}).") from problem


def parse_toml(text: str) -> dict[str, Any]:
    """Content of TOML text; raises ValueError."""
    tomllib = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    content: dict[str, Any] = tomllib.loads(text)
    return content


def _parse_yaml(text: str) -> Any:
    try:
        import yaml
    except ImportError as problem:
        raise InstallationError("YAML needs the package PyYAML; install it with `pip install PyYAML`.") from problem
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as problem:
        raise ValueError(" ".join(str(problem).split())) from problem


def _checked(path: Path, texts: object) -> dict[str, tuple[str, ...]]:
    if not isinstance(texts, dict) or not texts:
        raise InputError(f"{path} holds no structures; write 'structures' with a list of texts for each.")
    checked: dict[str, tuple[str, ...]] = {}
    owner: dict[str, str] = {}
    for structure, wordings in texts.items():
        wordings = [wordings] if isinstance(wordings, str) else wordings
        if not isinstance(wordings, list) or not wordings or not all(isinstance(text, str) for text in wordings):
            raise InputError(f"{path} has no list of texts for {structure!r}; give at least one text.")
        for text in wordings:
            folded = " ".join(text.split()).casefold()
            if not folded or len(text) > LONGEST_NAME:
                raise InputError(
                    f"{path} has a text for {structure!r} that is empty or longer than {LONGEST_NAME} characters; "
                    "shorten it, or what is behind may not be read."
                )
            if owner.setdefault(folded, structure) != structure:
                raise InputError(f"{path} types {text!r} for {owner[folded]!r} and {structure!r}; make them differ.")
        checked[str(structure)] = tuple(wordings)
    return checked
