"""The vocabulary as data: size, codes against pydicom's dictionary, relations without holes or cycles,
wordings that belong to one structure only, colours that can be told apart."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Iterator
from importlib.resources import files

import pytest
from pydicom.sr._concepts_dict import concepts

from MedZeroSegLib.queries import SEPARATORS, resolve
from MedZeroSegLib.vocabulary import (
    CATEGORIES,
    KINDS,
    REGIONS,
    SIDE_CODES,
    Code,
    Structure,
    abbreviations,
    vocabulary,
    wordings,
)
from MedZeroSegLib.volume import MODALITIES

LEAST_COLOR_DISTANCE = 12.0  # Euclidean, in RGB 0..255, within a region

# SNOMED CT codes that pydicom's dictionary lacks. Sources: the body-structure value set of HL7's mCODE radiotherapy
# guide, the SNOMED mapping of TotalSegmentator as Slicer ships it, SNOMED CT itself for the findings.
OUTSIDE_THE_DICTIONARY = {
    "pons", "masseter muscle", "hypothalamus", "cochlea", "hard palate", "ethmoid sinus", "sphenoid sinus",
    "temporalis muscle", "medial pterygoid muscle", "lateral pterygoid muscle", "thyroid cartilage",
    "cricoid cartilage", "vocal cords", "main bronchus", "renal cortex", "portal vein and splenic vein",
    "pancreas head", "pancreas tail", "gluteus maximus muscle", "gluteus medius muscle", "gluteus minimus muscle",
    "iliopsoas muscle", "vertebra S1", "spinal nerve root", "autochthonous back muscle", "shoulder joint",
    "subcutaneous fat", "consolidation", "atelectasis", "emphysema", "ascites", "fracture",
    *(f"rib {number}" for number in range(1, 13)),
}  # fmt: skip

# Words of code meanings that say nothing about which structure is meant.
EMPTY_WORDS = {"structure", "of", "the", "and", "entire", "system", "in", "disorder", "physical", "object"}

# Verhoeff's check digit, which ends every SNOMED CT identifier: multiplication in the dihedral group D5, permutation.
DIHEDRAL = [
    [(a + b) % 5 if a < 5 > b else (a + b - 5) % 5 + 5 if a < 5 else (a - 5 - b) % 5 + 5 if b < 5 else (a - b) % 5
     for b in range(10)]
    for a in range(10)
]  # fmt: skip
PERMUTATION = (1, 5, 7, 6, 2, 8, 3, 0, 9, 4)


def check_digit_holds(identifier: str) -> bool:
    check = 0
    for position, character in enumerate(reversed(identifier)):
        digit = int(character)
        for _ in range(position % 8):
            digit = PERMUTATION[digit]
        check = DIHEDRAL[check][digit]
    return check == 0


def dictionary_meanings(code: Code) -> set[str]:
    return {
        meaning
        for by_value in concepts[code.scheme].values()
        for value, (meaning, _) in by_value.items()
        if value == code.value
    }


def words(*texts: str) -> set[str]:
    plain = " ".join(texts).lower().replace("(body structure)", "")
    for mark in "-/(),'":
        plain = plain.replace(mark, " ")
    return {word.rstrip("s") for word in plain.split()} - EMPTY_WORDS


def structures_with_code() -> Iterator[tuple[Structure, Code]]:
    return ((structure, structure.code) for structure in vocabulary().values() if structure.code)


def test_there_are_enough_structures_and_the_file_names_each_once() -> None:
    rows = json.loads(files("MedZeroSegLib").joinpath("vocabulary.json").read_text(encoding="utf-8"))["structures"]
    assert len(rows) == len(vocabulary()) >= 150


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_represented(kind: str) -> None:
    assert sum(structure.kind == kind for structure in vocabulary().values()) >= 5


@pytest.mark.parametrize("region", REGIONS)
def test_each_structure_is_complete(region: str) -> None:
    structures = [structure for structure in vocabulary().values() if structure.region == region]
    assert structures
    for structure in structures:
        assert structure.name == structure.name.strip()
        assert len(structure.synonyms) >= 4, structure.name
        assert len(set(wordings(structure))) == len(wordings(structure)), structure.name
        assert wordings(structure)[0] == structure.name
        assert not set("".join(wordings(structure))) & set(SEPARATORS + '"'), structure.name
        assert structure.category in CATEGORIES.values()
        assert len(structure.color) == 3 and all(part in range(256) for part in structure.color)
        assert structure.window in {(40, 400), (-600, 1500), (400, 1800), (40, 80)}
        assert structure.modalities and set(structure.modalities) <= set(MODALITIES)
        assert structure.kind in KINDS and structure.side in {"paired", "none"}
        assert structure.parts >= 0


def test_no_wording_belongs_to_two_structures() -> None:
    for structure in vocabulary().values():
        for wording in wordings(structure):
            (query,) = resolve([wording])
            assert (query.status, query.structure, query.warnings) == ("known", structure, ()), wording


def test_wordings_of_paired_structures_name_no_side() -> None:
    for structure in vocabulary().values():
        if structure.side == "paired":
            assert not any({"left", "right"} & set(wording.split()) for wording in wordings(structure)), structure.name


def test_codes_exist_in_the_dictionary_and_mean_the_structure() -> None:
    for structure, code in structures_with_code():
        known = dictionary_meanings(code)
        assert bool(known) != (structure.name in OUTSIDE_THE_DICTIONARY), structure.name
        generic = [parent for parent in map(vocabulary().get, structure.parents) if parent and parent.code == code]
        spelled = words(*wordings(structure), *(wording for parent in generic for wording in wordings(parent)))
        assert words(code.meaning) & spelled, structure.name
        assert not known or words(code.meaning) & words(*known), (structure.name, known)


def test_codes_out_of_the_dictionary_carry_a_valid_check_digit() -> None:
    assert check_digit_holds("10200004") and not check_digit_holds("10200005")
    assert not OUTSIDE_THE_DICTIONARY - set(vocabulary())
    for _, code in structures_with_code():
        assert code.scheme in {"SCT", "DCM", "NCIt"}
        assert code.scheme != "SCT" or check_digit_holds(code.value), code


def test_category_and_side_codes_exist_in_the_dictionary() -> None:
    for code in (*CATEGORIES.values(), *SIDE_CODES.values()):
        assert check_digit_holds(code.value)
    for code in SIDE_CODES.values():
        assert code.meaning in dictionary_meanings(code)


def test_a_code_is_shared_only_by_a_finding_or_device_and_its_narrower_forms() -> None:
    sharers: dict[str, list[Structure]] = defaultdict(list)
    for structure, code in structures_with_code():
        sharers[code.value].append(structure)
    for structures in sharers.values():
        generic = [one for one in structures if all(one is other or one.name in other.parents for other in structures)]
        assert len(structures) == 1 or (len(generic) == 1 and generic[0].kind in {"finding", "device"}), structures


def test_most_structures_have_a_code() -> None:
    assert len(list(structures_with_code())) >= 400


def test_parents_exist_and_include_the_parents_of_parents() -> None:
    for structure in vocabulary().values():
        for parent in structure.parents:
            assert set(vocabulary()[parent].parents) <= {*structure.parents} - {structure.name}, structure.name


@pytest.mark.parametrize(
    ("child", "parent"),
    [
        ("anterior hippocampus", "hippocampus"),
        ("posterior hippocampus", "hippocampus"),
        ("left ventricle", "heart"),
        ("heart", "heart and mediastinum"),
        ("vertebra L4", "vertebrae"),
        ("intervertebral disc L4-L5", "intervertebral discs"),
        ("intervertebral disc C5-C6", "upper intervertebral discs"),
        ("rib 9", "ribs"),
        ("lung upper lobe", "lung"),
        ("ground glass opacity", "lung"),
        ("liver tumor", "liver"),
        ("malignant breast tumor", "breast tumor"),
        ("benign breast tumor", "breast tumor"),
        ("enhancing tumor", "brain tumor"),
        ("aortic arch", "aorta"),
    ],
)
def test_structures_know_what_they_lie_in(child: str, parent: str) -> None:
    assert parent in vocabulary()[child].parents


@pytest.mark.parametrize(
    "together",
    [
        ("left ventricle", "right ventricle", "left ventricular myocardium", "left atrium", "right atrium", "aorta"),
        ("liver", "spleen", "kidney", "pancreas", "stomach", "aorta", "inferior vena cava", "adrenal gland"),
        ("lung", "heart and mediastinum", "airways"),
        ("anterior hippocampus", "posterior hippocampus"),
        ("vertebra T12", "upper vertebrae", "spinal canal", "intervertebral disc T12-L1"),
        ("tumor necrosis", "peritumoral edema", "non-enhancing tumor", "enhancing tumor"),
        ("ground glass opacity", "consolidation", "pleural effusion"),
        ("gray matter", "white matter", "cerebrospinal fluid", "skull"),
    ],
)
def test_structures_that_exclude_each_other_are_no_parents_of_each_other(together: tuple[str, ...]) -> None:
    for one, other in itertools.permutations(together, 2):
        if one != "skull":
            assert other not in vocabulary()[one].parents, (one, other)


def test_the_myocardium_is_a_ring_around_the_left_ventricle() -> None:
    rings = {name: structure.encloses for name, structure in vocabulary().items() if structure.encloses}
    assert rings == {"left ventricular myocardium": "left ventricle"}


def test_paired_organs_are_one_structure_and_heart_chambers_are_two() -> None:
    for name in ("kidney", "lung", "adrenal gland", "femur", "hip bone", "iliac artery", "rib 9", "lung middle lobe"):
        assert vocabulary()[name].side == "paired" and f"left {name}" not in vocabulary()
    for name in ("left ventricle", "right ventricle", "left atrium", "right atrium", "liver", "left pulmonary artery"):
        assert vocabulary()[name].side == "none"


def test_colors_of_one_region_can_be_told_apart() -> None:
    by_region: dict[str, list[Structure]] = defaultdict(list)
    for structure in vocabulary().values():
        by_region[structure.region].append(structure)
    for structures in by_region.values():
        for one, other in itertools.combinations(structures, 2):
            distance = sum((a - b) ** 2 for a, b in zip(one.color, other.color, strict=True)) ** 0.5
            assert distance >= LEAST_COLOR_DISTANCE, (one.name, other.name)


@pytest.mark.parametrize(
    ("name", "color"),
    [
        ("liver", (221, 130, 101)),
        ("spleen", (157, 108, 162)),
        ("kidney", (185, 102, 83)),
        ("aorta", (224, 97, 76)),
        ("lung", (197, 165, 145)),
    ],
)
def test_main_organs_have_the_colors_of_slicers_anatomy_table(name: str, color: tuple[int, int, int]) -> None:
    assert vocabulary()[name].color == color


def test_windows_fit_the_tissue() -> None:
    expected = {"liver": (40, 400), "lung": (-600, 1500), "femur": (400, 1800), "brain": (40, 80)}
    assert {name: vocabulary()[name].window for name in expected} == expected


def test_short_forms_lead_to_structures_and_are_no_synonyms() -> None:
    short = abbreviations()
    named = {
        *(name for name, _ in short.sided.values()),
        *short.contextual.values(),
        *itertools.chain.from_iterable(short.ambiguous.values()),
    }
    assert named <= set(vocabulary())
    assert all(vocabulary()[name].side == "paired" for name, _ in short.sided.values())
    spelled = {wording.casefold() for structure in vocabulary().values() for wording in wordings(structure)}
    tables = [*short.sided, *short.contextual, *short.ambiguous]
    assert len({text.casefold() for text in tables}) == len(tables)
    assert not spelled & {text.casefold() for text in tables}
