"""The shipped text vectors are those that the text tower gives today, for every name in the vocabulary."""

from __future__ import annotations

import pytest
import torch

from MedZeroSegLib import weights
from MedZeroSegLib.text_image.minilm import MiniLmTextTower
from MedZeroSegLib.text_image.text_vectors import SHIPPED, TextVectors, key_of, read_table, write_table
from MedZeroSegLib.vocabulary import vocabulary, wordings


@pytest.fixture(scope="module")
def tower() -> MiniLmTextTower:
    return MiniLmTextTower(weights.locate("minilm"))


def test_every_structure_has_its_vector():
    table = read_table(SHIPPED)
    missing = [name for name, structure in vocabulary().items() if key_of(wordings(structure)) not in table]
    assert missing == []


@pytest.mark.parametrize("name", ["liver", "left ventricle", "vertebra L4"])
def test_shipped_vectors_are_the_towers(tower, name):
    words = wordings(vocabulary()[name])
    shipped = read_table(SHIPPED)[key_of(words)]
    assert torch.dot(shipped, tower.encode_ensemble(words)) > 0.9999


def test_known_names_dont_load_the_tower_and_unknown_text_does(tower):
    opened = []
    vectors = TextVectors(lambda: opened.append(1) or tower)
    vectors.encode_ensemble(wordings(vocabulary()["spleen"]))
    assert not opened
    banana = vectors.encode_ensemble(("banana",))
    assert opened == [1] and banana.norm() == pytest.approx(1)
    vectors.encode_ensemble(("cherry",))
    assert opened == [1]


def test_other_wordings_find_no_stale_vector():
    assert key_of(("liver", "hepar")) != key_of(("liver",)) != key_of(("hepar",))


def test_a_table_written_anew_holds_the_towers_vectors(tower, tmp_path):
    asked = [("liver", "hepar"), ("spleen",)]
    write_table(tower, asked, tmp_path / "table.safetensors")
    table = read_table(tmp_path / "table.safetensors")
    assert list(table) == [key_of(words) for words in asked]
    for words in asked:
        assert torch.dot(table[key_of(words)], tower.encode_ensemble(words)) > 0.9999
