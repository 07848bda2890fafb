"""Codes of segments as Slicer's Terminologies module keeps them, and the list of all that MedZeroSeg knows by name.
Resources/MedZeroSeg.term.json is written by `python MedZeroSeg/MedZeroSegSlicer/terminology.py`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from MedZeroSegLib.segment_tags import TERMINOLOGY_CONTEXT
from MedZeroSegLib.vocabulary import CATEGORIES, SIDE_CODES, Code, Structure, vocabulary, wordings

TERMINOLOGY_FILE = Path(__file__).parents[1] / "Resources" / "MedZeroSeg.term.json"
SCHEMA = "https://raw.githubusercontent.com/qiicr/dcmqi/master/doc/segment-context-schema.json#"
SLICERS_CONTEXTS = (
    "Segmentation category and type - 3D Slicer General Anatomy list",
    "Segmentation category and type - DICOM master list",
)
WITH_ANATOMY = ("altered", "tissue", "object")  # categories for which Slicer also asks for the region, as in its list


def code_of(triple: Mapping[str, str] | None) -> Code | None:
    """The code of a message's {"scheme", "value", "meaning"}."""
    return None if triple is None else Code(triple["scheme"], triple["value"], triple["meaning"])


def load_terminology(path: Path = TERMINOLOGY_FILE) -> None:
    """Make the list known to Slicer, so that its terminology selector offers and colors our entries.

    Raises
    ------
    ValueError
        When Slicer does not take the file.
    """
    import slicer

    logic = slicer.modules.terminologies.logic()
    if not logic.IsTerminologyContextLoaded(TERMINOLOGY_CONTEXT) and not logic.LoadTerminologyFromFile(str(path)):
        raise ValueError(f"'{path}' isn't a terminology that Slicer reads")


def entry_in_slicer(name: str) -> str | None:
    """Serialised entry of a name in the lists that Slicer ships; None where they don't hold exactly this name.

    For names without a code of ours. Slicer compares letter by letter, so the name has to be the canonical one.
    """
    import slicer

    logic, entry = slicer.modules.terminologies.logic(), slicer.vtkSlicerTerminologyEntry()
    for context in SLICERS_CONTEXTS:
        if (
            name
            and logic.IsTerminologyContextLoaded(context)
            and logic.FindTypeInTerminologyBy3dSlicerLabel(context, name, entry)
        ):
            return logic.SerializeTerminologyEntry(entry)
    return None


def terminology_text() -> str:
    """The list as a file that Slicer's Terminologies module reads: every coded structure, sides as modifiers.

    A code stands once in its category. Where several structures share it, as tumors of different organs do, the one
    that bears its name gives label and color.
    """
    categories = [_category(key, code) for key, code in CATEGORIES.items()]
    document = {
        "SegmentationCategoryTypeContextName": TERMINOLOGY_CONTEXT,
        "@schema": SCHEMA,
        "SegmentationCodes": {"Category": [category for category in categories if category["Type"]]},
    }
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def _category(key: str, code: Code) -> dict[str, Any]:
    by_code: dict[Code, list[Structure]] = {}
    for structure in vocabulary().values():
        if structure.category == code and structure.code is not None:
            by_code.setdefault(structure.code, []).append(structure)
    types = [_type(type_code, _namesake(type_code, sharing)) for type_code, sharing in by_code.items()]
    return {**_coded(code), "showAnatomy": key in WITH_ANATOMY, "Type": types}


def _namesake(code: Code, sharing: list[Structure]) -> Structure:
    meaning = code.meaning.casefold()
    return next((structure for structure in sharing if meaning in wordings(structure)), sharing[0])


def _type(code: Code, structure: Structure) -> dict[str, Any]:
    entry = {**_coded(code), **_shown(structure.name, structure)}
    if structure.side == "paired":
        entry["Modifier"] = [
            {**_coded(side_code), **_shown(f"{side} {structure.name}", structure)}
            for side, side_code in SIDE_CODES.items()
        ]
    return entry


def _coded(code: Code) -> dict[str, Any]:
    return {"CodingSchemeDesignator": code.scheme, "CodeValue": code.value, "CodeMeaning": code.meaning}


def _shown(label: str, structure: Structure) -> dict[str, Any]:
    return {"3dSlicerLabel": label, "recommendedDisplayRGBValue": list(structure.color)}


if __name__ == "__main__":
    TERMINOLOGY_FILE.write_text(terminology_text(), encoding="utf-8", newline="\n")
