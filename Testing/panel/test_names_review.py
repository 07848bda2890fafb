"""The review of typed names: what each line says, and what a click on it or Tab puts into the text."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from MedZeroSegSlicer.names_review import (
    OFFERED_MOST,
    completions,
    insert_names,
    name_at,
    name_lists,
    replace_name,
    review_names,
)

from MedZeroSegLib.field_of_view import FieldOfView
from MedZeroSegLib.queries import resolve, split_names

HEAD = Path(__file__).parents[2] / "MedZeroSegLib" / "heads" / "lite.safetensors"


def lines(text: str, modality: str | None = None) -> list[str]:
    return [row.text.strip() for row in review_names(text, modality).rows]


def test_known_names_are_ticked_and_other_wordings_are_explained():
    assert lines("liver\nRt kidney") == ["✓ liver", "✓ Rt kidney → right kidney"]


def test_likely_typo_is_offered_and_not_used():
    review = review_names("hart")
    assert review.rows[0].text == "? hart – did you mean heart?"
    assert review.rows[0].replacement == "heart"
    assert (review.known, review.unknown) == ((), ("hart",))


def test_text_that_is_no_structure_is_crossed_out():
    assert lines("hello world") == ["✗ hello world – not a known structure"]


def test_structure_that_this_modality_seldom_shows_is_doubted():
    assert lines("prostate", "X-ray") == ["! prostate – seldom seen in X-ray images"]
    assert lines("prostate", "MR") == lines("prostate", None) == lines("prostate", "other") == ["✓ prostate"]


def test_beginning_of_a_name_is_completed_with_its_side():
    assert completions("kidn")[0] == "kidney"
    assert completions("lt kidn")[0] == "left kidney"
    assert completions("left ven")[0] == "left ventricle"
    assert completions("ki") == ()


def test_further_offers_have_lines_of_their_own():
    rows = review_names("left kidn").rows
    assert [row.replacement for row in rows] == list(completions("left kidn"))
    assert {row.typed for row in rows} == {"left kidn"}
    assert rows[1].text.strip().startswith("or ")


def test_every_offer_is_a_known_name():
    offers = {row.replacement for text in ("kidn", "left ven", "hart", "ate", "splen", "rt lu") for row in
              review_names(text).rows} - {None}  # fmt: skip
    assert offers
    assert [name for name in offers if resolve([name])[0].structure is None] == []


def test_same_name_twice_is_sent_once():
    assert review_names("liver; Liver ;spleen").names == ("liver", "spleen")


def test_text_that_is_not_unicode_is_told_in_one_sentence():
    review = review_names("liver; \ud800")
    assert review.rows == () and "Unicode" in review.problem


def test_nothing_typed_gives_no_lines():
    assert review_names(" \n; ,").rows == ()


def test_click_replaces_the_name_and_leaves_the_rest_as_typed():
    assert replace_name("Liver;  hart,spleen\n", "hart", "heart") == "Liver;  heart,spleen\n"


def test_click_replaces_a_name_of_two_parts():
    assert split_names(replace_name("kidny,left; spleen", "kidny, left", "left kidney")) == ["left kidney", "spleen"]


def test_name_within_another_is_left_alone():
    assert replace_name("hart; hartley", "hart", "heart") == "heart; hartley"


def test_list_adds_only_what_is_lacking():
    assert insert_names("Liver;\n", ["liver", "spleen"]) == "Liver\nspleen"
    assert insert_names("", ["liver", "spleen"]) == "liver\nspleen"


@pytest.mark.parametrize(("position", "name"), [(0, "liver"), (5, "liver"), (7, "left kidn"), (16, "left kidn")])
def test_name_at_the_cursor(position, name):
    assert name_at("liver; left kidn", position) == name


def test_no_name_at_a_cursor_between_separators():
    assert name_at("liver;  ; spleen", 7) is None


def test_names_of_the_lists_are_what_the_lite_preset_was_trained_on():
    from MedZeroSegLib.text_image.lite import read_head

    concepts = read_head(HEAD)[1].concepts
    for title, names in name_lists().items():
        modality = title[title.index("(") + 1 : -1]
        review = review_names("; ".join(names), modality)
        assert [row.mark for row in review.rows] == ["✓"] * len(names), title
        assert [query.name for query in resolve(names) if query.structure.name not in concepts] == []


@given(st.text(max_size=40))
def test_any_text_can_be_reviewed_and_offers_at_most_a_few_names(text):
    review = review_names(text)
    assert set(review.known) | set(review.unknown) == set(review.names)
    for name in review.names:
        assert len([row for row in review.rows if row.typed == name]) <= OFFERED_MOST


@given(st.lists(st.sampled_from(["liver", "hart", "left kidn", "Ö", "左心房", "a b"]), min_size=1, max_size=5))
def test_replacing_a_name_changes_no_other(names):
    text = "; ".join(names)
    after = split_names(replace_name(text, names[0], "spleen"))
    assert after == ["spleen" if name == names[0] else name for name in names]


# What lies outside the scan


def test_name_outside_the_scan_is_marked_with_the_reason_and_may_be_run():
    shown = FieldOfView((("pelvis", "at-lungs"),))
    review = review_names("liver; prostate", "CT", shown)
    assert [row.text for row in review.rows] == ["✓ liver", "! prostate – outside this scan?"]
    assert review.rows[1].tooltip == "The scan ends at the lungs, above the prostate."
    assert review.unknown == () and review.names == ("liver", "prostate")


@pytest.mark.parametrize("reason", ["head-or-limb", "too-wide", "at-lungs", "no-lungs", "dicom"])
def test_every_reason_has_its_sentence(reason):
    (row,) = review_names("Rt kidney", "CT", FieldOfView((("abdomen", reason),))).rows
    assert row.text == "! Rt kidney → right kidney – outside this scan?" and "right kidney" in row.tooltip
