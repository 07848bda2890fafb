"""Free text is understood as the structure that it clearly describes, and as nothing where it describes several."""

from __future__ import annotations

import numpy as np
import pytest
from pydicom.data import get_testdata_file

from MedZeroSegLib import read_volume, segment, weights
from MedZeroSegLib.presets import head_file
from MedZeroSegLib.text_image.lite import read_head
from MedZeroSegLib.text_image.minilm import MiniLmTextTower
from MedZeroSegLib.text_image.resemblance import Resemblance
from MedZeroSegLib.text_image.text_vectors import TextVectors


@pytest.fixture(scope="module")
def resemblance() -> Resemblance:
    trained = read_head(head_file())[1].concepts
    return Resemblance(TextVectors(lambda: MiniLmTextTower(weights.locate("minilm"))), trained)


@pytest.mark.parametrize(
    ("text", "structure"),
    [
        ("large hepatic organ", "liver"),
        ("kidneys with contrast medium", "kidney"),
        ("hippocampal region", "hippocampus"),  # as like its two parts
        ("gastric region of the abdomen", "stomach"),
        ("suspicious mass in the breast", "breast tumor"),
    ],
)
def test_a_description_means_the_structure_it_resembles(resemblance, text, structure):
    assert resemblance.structure_like(text) == structure


@pytest.mark.parametrize(
    "text",
    [
        "banana",
        "left chamber that pumps into the aorta",
        "something bright",
        "the thing on the right",
        "fracture of the nasal bone",
    ],
)
def test_a_text_that_describes_nothing_or_several_means_none(resemblance, text):
    assert resemblance.structure_like(text) is None


def test_a_described_structure_gets_the_mask_of_its_name_and_says_so():
    text = "lung parenchyma without the heart"
    named, described = segment(read_volume(get_testdata_file("RG1_UNCR.dcm")), ["lung", text]).segments
    assert described.found
    assert np.array_equal(named.mask, described.mask)
    assert (described.name, described.code) == (text, None)
    assert described.provenance["understood_as"] == "lung"
    assert any("lung was looked for" in warning for warning in described.warnings)
