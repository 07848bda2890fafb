"""Names in German, French, Spanish, Chinese and Latin: each leads to one concept, whatever the accents, the case, the
word order or the way in which a side is said; no name means another thing in another language."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from MedZeroSegLib.languages import LANGUAGES
from MedZeroSegLib.queries import Query, resolve
from MedZeroSegLib.text_image.text_vectors import SHIPPED, key_of, read_table
from MedZeroSegLib.vocabulary import Structure, vocabulary, wordings

NAMES = [
    (structure, language, name)
    for structure in vocabulary().values()
    for language, names in structure.names.items()
    for name in names
]
SIDED = {"de": ("linke {}", "{} rechts"), "fr": ("{} gauche", "{} droit"), "es": ("{} izquierdo", "{} derecho"),
         "zh": ("左{}", "右侧{}")}  # fmt: skip


def only(text: str) -> Query:
    (query,) = resolve([text])
    return query


def test_the_commonest_structures_have_names_in_every_language() -> None:
    named = [structure for structure in vocabulary().values() if {"de", "fr", "es", "zh"} <= set(structure.names)]
    assert len(named) >= 40
    assert {language for structure in vocabulary().values() for language in structure.names} <= set(LANGUAGES)


def test_every_name_means_its_structure_whole_and_without_a_doubt() -> None:
    for structure, language, name in NAMES:
        query = only(name)
        assert (query.structure, query.side, query.warnings) == (structure, None, ()), (language, name)
        assert query.status == "known" and query.language in (None, LANGUAGES[language], *LANGUAGES.values())


def test_no_name_belongs_to_two_structures_in_any_two_languages() -> None:
    meant: dict[str, Structure] = {}
    for structure, _, name in NAMES:
        assert meant.setdefault(name.casefold(), structure) is structure, name
    for structure in vocabulary().values():
        for wording in wordings(structure):
            assert meant.get(wording.casefold(), structure) is structure, wording


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(NAMES), st.sampled_from(["upper", "plain", "decomposed", "turned", "spaced"]))
def test_case_accents_and_order_do_not_matter(one: tuple[Structure, str, str], how: str) -> None:
    structure, _, name = one
    plain = "".join(c for c in unicodedata.normalize("NFKD", name) if not unicodedata.combining(c))
    shown = {"upper": name.upper(), "plain": plain, "decomposed": unicodedata.normalize("NFD", name),
             "turned": " ".join(reversed(name.split())), "spaced": f"  {name} "}[how]  # fmt: skip
    assert only(shown).structure is structure, shown


def test_every_paired_structure_has_its_sides_in_every_language() -> None:
    for structure, language, name in NAMES:
        if structure.side == "paired" and language in SIDED:
            for side, pattern in zip(("left", "right"), SIDED[language], strict=True):
                query = only(pattern.format(name))
                assert (query.structure, query.side) == (structure, side), query.typed


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("linke Niere", "left kidney"),
        ("Niere li.", "left kidney"),
        ("rechter Lungenoberlappen", "right lung upper lobe"),
        ("beide Nieren", "kidney"),
        ("Gebaermutter", "uterus"),
        ("grosser Lendenmuskel", "psoas major muscle"),
        ("Ventrikel, linker", "left ventricle"),
        ("le rein gauche", "left kidney"),
        ("l'œsophage", "esophagus"),
        ("reins droits", "right kidney"),
        ("riñón izquierdo", "left kidney"),
        ("rinon izquierdo", "left kidney"),
        ("el pulmón derecho", "right lung"),
        ("左肾", "left kidney"),
        ("肾（左）", "left kidney"),
        ("左側腎臟", "left kidney"),
        ("左心室", "left ventricle"),
        ("ren sinister", "left kidney"),
    ],
)
def test_names_as_people_write_them(typed: str, name: str) -> None:
    query = only(typed)
    assert (query.name, query.status) == (name, "known")


def test_the_language_is_said_and_english_has_none() -> None:
    assert [query.language for query in resolve("Leber; foie; hígado; 肝; liver; aorta")] == [
        "German", "French", "Spanish", "Chinese", None, None,
    ]  # fmt: skip


def test_a_list_in_another_language_is_split_and_a_side_stays_with_its_name() -> None:
    assert [query.name for query in resolve("肝、脾；左肾")] == ["liver", "spleen", "left kidney"]
    assert [query.name for query in resolve("Niere, links, Milz")] == ["left kidney", "spleen"]


def test_a_misspelt_name_is_offered_with_its_side_and_never_used() -> None:
    query = only("linke Nirre")
    assert (query.status, query.structure, query.suggestions) == ("unknown", None, ("left kidney",))
    assert "liver" in only("Lebber").suggestions


def test_names_in_two_languages_are_one_concept() -> None:
    german, english = resolve("Milz; spleen")
    assert (german.name, german.color, german.code) == (english.name, english.color, english.code)
    assert any("means the same" in warning for warning in english.warnings)


def test_no_text_tower_reads_them() -> None:
    table = read_table(SHIPPED)
    assert all(key_of(wordings(structure)) in table for structure in vocabulary().values())
