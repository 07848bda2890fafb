"""The structures that the engine knows by name, with codes, colours, windows and relations, as read from
`vocabulary.json`. Plain values only; how typed text becomes one of them is told in `queries`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any, Literal

Side = Literal["left", "right"]

REGIONS = ("head", "neck", "chest", "heart", "abdomen", "pelvis", "spine", "limb", "breast", "whole")

SPACES = ("space", "cavity")  # last words of names of what only contains structures
MADE_OF_PARTS = ("heart", "lung infection")  # wholes that their parts in the vocabulary make up
ANYWHERE = ("finding", "device")  # kinds that may lie in any structure
KINDS = ("organ", "bone", "muscle", "vessel", "heart", "brain", "dental", "spine", "tissue", "finding", "device")


@dataclass(frozen=True)
class Code:
    """A coded term: scheme designator as DICOM writes it (SCT is SNOMED CT, DCM DICOM's own, NCIt), value, meaning."""

    scheme: str
    value: str
    meaning: str


ANATOMICAL_STRUCTURE = Code("SCT", "123037004", "Anatomical Structure")
CATEGORIES = MappingProxyType(
    {
        "structure": ANATOMICAL_STRUCTURE,
        "altered": Code("SCT", "49755003", "Morphologically Altered Structure"),
        "tissue": Code("SCT", "85756007", "Tissue"),
        "substance": Code("SCT", "91720002", "Body Substance"),
        "object": Code("SCT", "260787004", "Physical object"),
    }
)
SIDE_CODES: Mapping[str, Code] = MappingProxyType(
    {"left": Code("SCT", "7771000", "Left"), "right": Code("SCT", "24028007", "Right")}
)


@dataclass(frozen=True)
class Structure:
    """One structure, finding or device.

    Attributes
    ----------
    name: canonical name; without a side where left and right are two positions of one structure ("kidney"), with it
        where they are two structures ("left ventricle").
    synonyms: further wordings, abbreviations included, each of which means this structure and no other.
    code, category: terms for the segment's type and category; `code` is None where no certain one is known.
    color: red, green, blue, 0..255.
    window: CT level and width in HU.
    modalities: members of `volume.MODALITIES` in which it is usually seen.
    region, kind: members of `REGIONS` and `KINDS`.
    parts: most connected components in a whole volume (of one side if paired); 0 is any number.
    side: "paired" where left and right are told apart by geometry, else "none".
    parents: names of all structures that contain or overlap it, parents of parents included; the same voxel may be in
        both. Generic findings and devices may lie in any structure besides.
    encloses: for a ring, the name of the structure in its hole.
    names: what it is called in other languages, by `languages.LANGUAGES`; they resolve to it, and no model reads them.
    """

    name: str
    synonyms: tuple[str, ...]
    code: Code | None
    category: Code
    color: tuple[int, int, int]
    window: tuple[float, float]
    modalities: tuple[str, ...]
    region: str
    kind: str
    parts: int
    side: Literal["paired", "none"]
    parents: tuple[str, ...]
    encloses: str | None
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False, compare=False)


@dataclass(frozen=True)
class Abbreviations:
    """Short forms that are more than a synonym.

    Attributes
    ----------
    sided: short form → (structure, side), such as RUL → ("lung upper lobe", "right").
    contextual: short form → structure that it mostly means; what uses it must say so.
    ambiguous: text → the names that it may mean; it is never resolved, only offered.
    """

    sided: Mapping[str, tuple[str, Side]]
    contextual: Mapping[str, str]
    ambiguous: Mapping[str, tuple[str, ...]]


@cache
def _content() -> dict[str, Any]:
    return json.loads(files(__package__).joinpath("vocabulary.json").read_text(encoding="utf-8"))


@cache
def vocabulary() -> Mapping[str, Structure]:
    """All structures by canonical name, in the order of the file: from head to limb, then findings and devices."""
    return MappingProxyType({row["name"]: structure_of(row) for row in _content()["structures"]})


@cache
def abbreviations() -> Abbreviations:
    """The short forms that need a side, a context or a choice."""
    content = _content()["abbreviations"]
    return Abbreviations(
        sided=MappingProxyType({short: (name, side) for short, (name, side) in content["sided"].items()}),
        contextual=MappingProxyType(dict(content["contextual"])),
        ambiguous=MappingProxyType({text: tuple(names) for text, names in content["ambiguous"].items()}),
    )


def may_overlap(one: str, other: str) -> bool:
    """Whether two names may share voxels: the same, one containing the other, or a finding or device in a structure."""
    if one == other:
        return True
    first, second = vocabulary().get(one), vocabulary().get(other)
    if (first is not None and first.kind in ANYWHERE) != (second is not None and second.kind in ANYWHERE):
        return True
    return (first is not None and other in first.parents) or (second is not None and one in second.parents)


def parts_among(whole: str, names: Iterable[str]) -> tuple[str, ...]:
    """Those of some names that are parts of a structure."""
    known = vocabulary()
    return tuple(name for name in names if name in known and whole in known[name].parents)


@cache
def confusions(structure: Structure) -> tuple[str, ...]:
    """What is most easily taken for a structure: the others of its region, kind and modalities that exclude it, and of
    these the wholes, not their parts."""
    near = [
        other
        for other in vocabulary().values()
        if (other.region, other.kind) == (structure.region, structure.kind)
        and set(other.modalities) & set(structure.modalities)
        and not may_overlap(structure.name, other.name)
        and not other.name.endswith(SPACES)
    ]
    names = {other.name for other in near}
    return tuple(other.name for other in near if not names & set(other.parents))


def wordings(structure: Structure) -> tuple[str, ...]:
    """Every wording that a text ensemble or training may use for a structure, the canonical name first."""
    return (structure.name, *structure.synonyms)


def structure_of(row: Mapping[str, Any]) -> Structure:
    """A row of the vocabulary's file; raises KeyError, TypeError or ValueError for something else."""
    code = row["code"]
    red, green, blue = row["color"]
    level, width = row["window"]
    return Structure(
        name=row["name"],
        synonyms=tuple(row["synonyms"]),
        code=None if code is None else Code(*code),
        category=CATEGORIES[row["category"]],
        color=(red, green, blue),
        window=(float(level), float(width)),
        modalities=tuple(row["modalities"]),
        region=row["region"],
        kind=row["kind"],
        parts=row["parts"],
        side=row["side"],
        parents=tuple(row["parents"]),
        encloses=row["encloses"],
        names={language: tuple(names) for language, names in row.get("names", {}).items()},
    )
