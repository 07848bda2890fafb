"""Typed names: what they are understood as, which side, what is said when in doubt, and that text in any
script passes unharmed. Includes every label of the real data."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import unicodedata
from importlib.resources import files
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from MedZeroSegLib.errors import InputError
from MedZeroSegLib.queries import LONGEST_NAME, Query, resolve, split_names
from MedZeroSegLib.vocabulary import ANATOMICAL_STRUCTURE, SIDE_CODES, vocabulary

MANIFEST = Path(__file__).parents[2].parent / "shared" / "data" / "manifest.csv"

# Labels of the data whose structure or side isn't plain from the words.
TRICKY_LABELS = {
    "kidney": ("kidney", None),
    "left kidney": ("kidney", "left"),
    "left ventricle": ("left ventricle", None),
    "right ventricle": ("right ventricle", None),
    "left atrium": ("left atrium", None),
    "left ventricular myocardium": ("left ventricular myocardium", None),
    "left lung upper lobe": ("lung upper lobe", "left"),
    "right lung middle lobe": ("lung middle lobe", "right"),
    "left rib 9": ("rib 9", "left"),
    "right rib 12": ("rib 12", "right"),
    "left hip bone": ("hip bone", "left"),
    "right iliac artery": ("iliac artery", "right"),
    "left autochthonous back muscle": ("autochthonous back muscle", "left"),
    "vertebra L1": ("vertebra L1", None),
    "intervertebral disc T12-L1": ("intervertebral disc T12-L1", None),
    "vertebrae": ("vertebrae", None),
    "upper vertebrae": ("upper vertebrae", None),
    "portal vein and splenic vein": ("portal vein and splenic vein", None),
    "heart and mediastinum": ("heart and mediastinum", None),
    "scalp and soft tissue": ("scalp and soft tissue", None),
    "ground glass opacity": ("ground glass opacity", None),
    "benign breast tumor": ("benign breast tumor", None),
    "monitoring leads": ("monitoring leads", None),
}


def only(text: str) -> Query:
    (query,) = resolve([text])
    return query


@pytest.mark.skipif(not MANIFEST.parent.exists(), reason="The folder shared/data isn't beside the checkout.")
def test_every_label_of_the_data_is_known_as_itself() -> None:
    with MANIFEST.open(encoding="utf-8", newline="") as file:
        items = [item for row in csv.DictReader(file) for item in row["labels"].split(";") if item]
    labels = {item.split("=", 1)[1] for item in items}
    assert len(labels) > 100 and set(TRICKY_LABELS) <= labels
    for label in labels:
        query = only(label)
        assert (query.status, query.name, query.warnings) == ("known", label, ())


@pytest.mark.parametrize(("label", "expected"), TRICKY_LABELS.items())
def test_tricky_labels_have_the_right_structure_and_side(label: str, expected: tuple[str, str | None]) -> None:
    query = only(label)
    assert query.structure is not None
    assert (query.structure.name, query.side) == expected


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("Liver", "liver"),
        ("  LIVER ", "liver"),
        ("hepatic parenchyma", "liver"),
        ("LV", "left ventricle"),
        ("IVC", "inferior vena cava"),
        ("RV blood pool", "right ventricle"),
        ("left ventricle cavity", "left ventricle"),
        ("ventricle, left", "left ventricle"),
        ("l ventricle", "left ventricle"),
        ("ventriculus sinister", "left ventricle"),
        ("myocardium", "left ventricular myocardium"),
        ("Lt kidney", "left kidney"),
        ("L kidney", "left kidney"),
        ("kidney, left", "left kidney"),
        ("kidney (right)", "right kidney"),
        ("left-sided kidney", "left kidney"),
        ("kidney on... left", "kidney on... left"),
        ("ren dexter", "right kidney"),
        ("RK", "right kidney"),
        ("RUL", "right lung upper lobe"),
        ("upper lobe of the left lung", "left lung upper lobe"),
        ("kidneys", "kidney"),
        ("both kidneys", "kidney"),
        ("left and right kidney", "kidney"),
        ("lungs", "lung"),
        ("vertebra", "vertebrae"),
        ("oesophagus", "esophagus"),
        ("tumour", "tumor"),
        ("peritumoural oedema", "peritumoral edema"),
        ("Haemorrhage", "hemorrhage"),
        ("grey matter", "gray matter"),
        ("coeliac trunk", "celiac trunk"),
        ("ground-glass opacity", "ground glass opacity"),
        ("gall-bladder", "gallbladder"),
        ("gall bladder", "gallbladder"),
        ("brain stem", "brainstem"),
        ("tumor of the liver", "liver tumor"),
        ("L4", "vertebra L4"),
        ("L 4 vertebra", "vertebra L4"),
        ("vertebral body L4", "vertebra L4"),
        ("L4/5", "intervertebral disc L4-L5"),
        ("L4/L5 disk", "intervertebral disc L4-L5"),
        ("l-spine", "lumbar spine"),
        ("left 9th rib", "left rib 9"),
        ("ninth rib", "rib 9"),
        ("left liver", "left lobe of the liver"),
        ("left colon", "descending colon"),
        ("lung_upper_lobe_left", "left lung upper lobe"),
        ("heart_atrium_left", "left atrium"),
        ("iliac_vena_left", "left iliac vein"),
        ("vertebrae_L1", "vertebra L1"),
    ],
)
def test_wording_is_understood(typed: str, name: str) -> None:
    assert only(typed).name == name


def test_chambers_of_the_heart_never_merge() -> None:
    sides = {only(f"{side} {part}").name for side in ("left", "right") for part in ("ventricle", "atrium")}
    assert len(sides) == 4
    assert only("ventricle").status == "unknown"


@pytest.mark.parametrize(
    ("typed", "suggestions"),
    [
        ("livr", ("liver",)),
        ("spleeen", ("spleen",)),
        ("left kidny", ("left kidney",)),
        ("plmonary artry", ("pulmonary artery",)),
        ("vertabra L1", ("vertebra L1",)),
        ("lft kidney", ("left kidney",)),
        ("rigth kidny", ("right kidney",)),
        ("lft ventrikle", ("left ventricle",)),
        ("PV", ("portal vein", "pulmonary veins")),
        ("ventricle", ("left ventricle", "right ventricle", "brain ventricles")),
        ("left hemisphere", ("left cerebral hemisphere", "cerebellum")),
        ("banana", ()),
        ("a large organ in the upper right abdomen", ()),
    ],
)
def test_doubtful_text_is_offered_a_reading_and_passes_on_as_typed(typed: str, suggestions: tuple[str, ...]) -> None:
    query = only(typed)
    assert (query.status, query.name, query.structure, query.side) == ("unknown", typed, None, None)
    assert query.suggestions == suggestions
    assert (query.code, query.modifier, query.category) == (None, None, ANATOMICAL_STRUCTURE)


def test_what_an_ambiguous_short_form_may_mean_is_said() -> None:
    assert only("PV").warnings == ("“PV” can mean portal vein or pulmonary veins; type the one that is meant.",)
    context = only("PA")
    assert context.name == "pulmonary artery" and "understood as pulmonary artery" in context.warnings[0]


def test_a_side_that_an_unpaired_structure_lacks_is_said() -> None:
    query = only("left spleen")
    assert (query.name, query.side) == ("spleen", None)
    assert "left and right" in query.warnings[0]


def test_a_short_form_with_the_other_side_is_not_taken_for_either() -> None:
    query = only("left RUL")
    assert query.status == "unknown" and "both sides" in query.warnings[0]
    assert only("right RUL").name == "right lung upper lobe"


def test_a_side_alone_names_nothing() -> None:
    query = only("left")
    assert query.status == "unknown" and "no structure" in query.warnings[0]


def test_a_query_carries_what_the_segment_needs() -> None:
    query = only("rt kidney")
    assert query.code is not None and query.code.value == "64033007"
    assert query.modifier == SIDE_CODES["right"]
    assert query.color == vocabulary()["kidney"].color
    assert only("kidney").modifier is None and only("left ventricle").modifier is None


def test_unknown_text_has_a_color_of_its_own_each_time() -> None:
    assert only("banana").color == only(" Banana").color != only("papaya").color


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("liver, spleen", ["liver", "spleen"]),
        ("liver;spleen", ["liver", "spleen"]),
        ("\nliver\n\n  \r\nspleen\n", ["liver", "spleen"]),
        ("liver,,spleen,", ["liver", "spleen"]),
        ("liver，spleen；kidney、lung", ["liver", "spleen", "kidney", "lung"]),
        ('"mass, solid part"; liver', ["mass, solid part", "liver"]),
        ("“mass, solid part”\nliver", ["mass, solid part", "liver"]),
        ('5" tube, liver', ['5" tube', "liver"]),
        ('"liver, spleen', ['"liver', "spleen"]),
        ("kidney, left; spleen", ["kidney, left", "spleen"]),
        ("kidney, left, spleen", ["kidney, left", "spleen"]),
        ("kidney, left, kidney, right", ["kidney, left", "kidney, right"]),
        ("left, kidney, spleen", ["left, kidney", "spleen"]),
        ("left kidney, right", ["left kidney", "right"]),
        ("kidneys, both", ["kidneys, both"]),
        ('kidney, "left"', ["kidney", "left"]),
        (" , ; \n", []),
    ],
)
def test_lists_are_split_at_separators(text: str, names: list[str]) -> None:
    assert split_names(text) == names


def test_a_sequence_is_one_name_an_item() -> None:
    assert only("kidney, left").name == "left kidney"
    query = only("liver, spleen")
    assert query.status == "unknown" and query.suggestions == ("liver", "spleen")
    assert "one name" in query.warnings[0]


@pytest.mark.parametrize("nothing", ["", "  ", ", ;\n", [], ["", "  "]])
def test_nothing_typed_is_refused_with_an_example(nothing: str | list[str]) -> None:
    with pytest.raises(InputError, match=r"^No structure was named; type at least one name, for example: .*\.$"):
        resolve(nothing)


def test_text_that_is_no_unicode_is_refused_in_one_printable_sentence() -> None:
    with pytest.raises(InputError) as refusal:
        resolve(["leber\udcff"])
    assert str(refusal.value).isascii() and "leber" in str(refusal.value)


def test_names_equal_apart_from_case_and_blanks_run_once_and_that_is_said() -> None:
    first, second = resolve("liver\nLiver ; spleen; LIVER")
    assert (first.typed, second.typed) == ("liver", "spleen")
    assert first.warnings == ("“liver”, “Liver”, “LIVER” differ at most in case and blanks; they run once.",)
    assert second.warnings == ()


def test_different_names_stay_different() -> None:
    names = ["lesion of my own", "kidney/left x", "kidney-left x", "../x", "CON", "kidney.left x"]
    queries = resolve(names)
    assert [query.typed for query in queries] == names
    assert len({query.name for query in queries}) == len(names)


def test_two_wordings_of_one_structure_both_run_and_that_is_said() -> None:
    first, second = resolve("liver; hepatic parenchyma")
    assert first.name == second.name == "liver" and not first.warnings
    assert second.warnings == ("“hepatic parenchyma” means the same as “liver”: liver; the masks are equal.",)


def test_a_sentence_of_300_characters_passes_with_a_warning_that_does_not_repeat_it() -> None:
    sentence = ("a dark round thing behind the liver " * 10)[:300].strip()
    query = only(sentence)
    assert len(sentence) > LONGEST_NAME and query.name == sentence and query.status == "unknown"
    assert len(query.warnings) == 1 and len(query.warnings[0]) < 130


@pytest.mark.parametrize("typed", ["Vorhof (Ö)", "左手指", "أذين أيسر", "сердце", "हृदय", "👁 oculus", "???"])
def test_text_in_any_script_comes_back_code_point_for_code_point(typed: str) -> None:
    query = only(typed)
    assert query.typed == typed == query.name
    assert query.status == "unknown"


def test_both_normal_forms_of_unicode_are_one_name() -> None:
    composed, decomposed = (unicodedata.normalize(form, "Vorhof (Ö)") for form in ("NFC", "NFD"))
    assert composed != decomposed
    assert only(decomposed).typed == decomposed
    assert only(decomposed).name == only(composed).name and only(decomposed).color == only(composed).color
    assert len(resolve([composed, decomposed])) == 1
    assert only("ｌｉｖｅｒ").name == "liver"  # full-width letters


def test_control_characters_stay_out_of_names() -> None:
    assert only("dark\x00 \tspot").name == "dark spot"


def test_names_need_no_torch_and_no_image_library() -> None:
    program = (
        "import sys, MedZeroSegLib.queries as q; q.resolve('lt kidney; livr');"
        "print([name for name in ('torch', 'SimpleITK', 'pydicom', 'vtk') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "[]\n"


anytime = settings(deadline=None)  # a busy machine is no failure
known_names = st.sampled_from(sorted(vocabulary()))
plain_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@anytime
@given(known_names, st.sampled_from([str.upper, str.title, str.swapcase]), st.sampled_from(["", " ", "\t", "\u00a0"]))
def test_case_and_blanks_change_nothing(name: str, case: object, blank: str) -> None:
    assert callable(case)
    changed = f"{blank}{case(name).replace(' ', f' {blank}')}{blank}"
    assert only(changed).structure is vocabulary()[name]


@anytime
@given(known_names, st.randoms(use_true_random=False), st.sampled_from(["left", "right", None]))
def test_word_order_changes_nothing(name: str, random: object, side: str | None) -> None:
    straight = only(f"{side} {name}" if side and vocabulary()[name].side == "paired" else name)
    words = straight.typed.split()
    random.shuffle(words)  # type: ignore[attr-defined]
    shuffled = only(" ".join(words))
    assert (shuffled.structure, shuffled.side, shuffled.name) == (straight.structure, straight.side, straight.name)


@anytime
@given(known_names, st.sampled_from(["left", "right"]))
def test_a_side_is_kept_exactly_where_there_are_two(name: str, side: str) -> None:
    query = only(f"{side} {name}")
    paired = vocabulary()[name].side == "paired"
    assert (query.side == side) is paired
    assert not paired or query.name == f"{side} {name}"


@anytime
@given(st.lists(known_names, min_size=1, max_size=5, unique=True), st.sampled_from([", ", ";", "\n", "，", ";;\n "]))
def test_a_joined_list_resolves_as_its_items(names: list[str], separator: str) -> None:
    assert [query.name for query in resolve(separator.join(names))] == [query.name for query in resolve(names)]


@anytime
@given(st.lists(plain_text, min_size=1, max_size=4))
def test_any_text_resolves_or_is_refused_as_empty(texts: list[str]) -> None:
    try:
        queries = resolve(texts)
    except InputError:
        assert not any(text.strip() for text in texts)
        return
    assert {query.typed for query in queries} <= {text.strip() for text in texts}
    assert all(query.status == "known" or query.structure is None for query in queries)


@anytime
@given(plain_text)
def test_splitting_loses_no_letter_and_is_stable(text: str) -> None:
    names = split_names(text)
    letters = [character for character in text if character.isalnum()]
    assert [character for character in "".join(names) if character.isalnum()] == letters
    assert all(name == name.strip() and name for name in names)


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("CT scan of the liver", "liver"),
        ("show me the left kidney, please", "left kidney"),
        ("A medical image of the kind cardiac MRI in which the left ventricle can be seen.", "left ventricle"),
        ("x-ray of the left lung", "left lung"),
        ("liver on CT", "liver"),
        ("abdominal CT of the portal vein and splenic vein", "portal vein and splenic vein"),
    ],
)
def test_a_sentence_that_only_speaks_of_the_picture_means_its_one_name(typed: str, name: str) -> None:
    (query,) = resolve([typed])
    assert (query.name, query.status, query.typed) == (name, "known", typed)
    assert "was understood as" in query.warnings[0] and name in query.warnings[0]


@pytest.mark.parametrize(
    "typed",
    ["dark irregular mass in the breast", "image of liver and spleen", "chest x-ray", "tube behind the stomach"],
)
def test_a_sentence_that_says_more_than_a_name_stays_as_it_was_typed(typed: str) -> None:
    (query,) = resolve([typed])
    assert (query.name, query.status) == (typed, "unknown")


@pytest.mark.parametrize("prompts", ["P1", "P2"])
@pytest.mark.parametrize("data", ["acdc", "synapse", "covidqu"])
def test_the_shipped_sentences_with_a_name_are_understood(data: str, prompts: str) -> None:
    file = Path(str(files("MedZeroSegLib"))) / "evaluation" / "prompts" / f"{data}-{prompts}.json"
    for name, texts in json.loads(file.read_text(encoding="utf-8"))["structures"].items():
        assert {query.name for query in resolve(texts)} == {resolve([name])[0].name}
