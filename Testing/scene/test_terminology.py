"""Every structure that the engine knows has its entry in Slicer's terminology, with the color it is drawn in."""

from __future__ import annotations

import json

import pytest
from MedZeroSegSlicer.terminology import TERMINOLOGY_FILE, code_of, entry_in_slicer, load_terminology, terminology_text
from scans import slicer

from MedZeroSegLib.queries import resolve
from MedZeroSegLib.segment_tags import TERMINOLOGY_CONTEXT, terminology_entry
from MedZeroSegLib.vocabulary import vocabulary


@pytest.fixture
def logic(application_scene):
    load_terminology()
    return application_scene.modules.terminologies.logic()


def test_file_is_what_the_vocabulary_says():
    kept = TERMINOLOGY_FILE.read_text(encoding="utf-8")
    assert kept == terminology_text(), "run: python MedZeroSeg/MedZeroSegSlicer/terminology.py"


def test_slicer_reads_the_file_and_reading_it_again_does_no_harm(logic):
    load_terminology()
    assert logic.IsTerminologyContextLoaded(TERMINOLOGY_CONTEXT)


def test_file_that_is_no_terminology_is_an_error(application_scene, tmp_path, monkeypatch):
    (tmp_path / "a.json").write_text("{}", encoding="utf-8")
    monkeypatch.setattr("MedZeroSegSlicer.terminology.TERMINOLOGY_CONTEXT", "another")
    with pytest.raises(ValueError, match="isn't a terminology"):
        load_terminology(tmp_path / "a.json")


def test_slicer_finds_every_coded_structure_by_name_with_code_and_color(logic):
    """Where several structures share a code, one of them stands for all."""
    labels, asked = set(), 0
    for structure in vocabulary().values():
        if structure.code is None:
            continue
        sides = ("left ", "right ") if structure.side == "paired" else ("",)
        for name in (side + structure.name for side in sides):
            entry = slicer.vtkSlicerTerminologyEntry()
            if not logic.FindTypeInTerminologyBy3dSlicerLabel(TERMINOLOGY_CONTEXT, name, entry):
                continue
            labels.add(name)
            asked += 1
            (query,) = resolve([name])
            shown = entry.GetTypeModifierObject() if query.modifier else entry.GetTypeObject()
            assert entry.GetTypeObject().GetCodeValue() == structure.code.value, name
            assert entry.GetCategoryObject().GetCodeValue() == structure.category.value, name
            assert tuple(shown.GetRecommendedDisplayRGBValue()) == structure.color, name
            assert logic.SerializeTerminologyEntry(entry).startswith(
                terminology_entry(query.category, query.code, query.modifier).rsplit("~", 3)[0]
            ), name
    codes = {(s.category, s.code) for s in vocabulary().values() if s.code}
    assert asked >= len(codes)
    assert {"liver", "left kidney", "right kidney", "tumor", "gallbladder"} <= labels


def test_our_entries_resolve_to_our_list(logic):
    for query in resolve(["left kidney", "liver", "spleen", "aorta"]):
        entry = slicer.vtkSlicerTerminologyEntry()
        assert logic.DeserializeTerminologyEntry(terminology_entry(query.category, query.code, query.modifier), entry)
        assert entry.GetTerminologyContextName() == TERMINOLOGY_CONTEXT
        assert entry.GetTypeObject().GetCodeMeaning() == query.code.meaning
        assert (entry.GetTypeModifierObject().GetCodeValue() or None) == (query.modifier and query.modifier.value)


def test_a_code_stands_once_in_its_category():
    for category in json.loads(terminology_text())["SegmentationCodes"]["Category"]:
        values = [(kind["CodingSchemeDesignator"], kind["CodeValue"]) for kind in category["Type"]]
        assert len(values) == len(set(values)), category["CodeMeaning"]


def test_slicers_lists_are_asked_by_the_exact_name(application_scene, terminologies_of_slicer):
    assert "SCT^99999^Gracilis" in entry_in_slicer("gracilis muscle")
    assert entry_in_slicer("Gracilis muscle") is None
    assert entry_in_slicer("") is None


def test_code_of_a_message():
    assert code_of(None) is None
    assert code_of({"scheme": "SCT", "value": "1", "meaning": "x"}).value == "1"
