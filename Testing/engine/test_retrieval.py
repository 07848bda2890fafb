"""Retrieval figures: right by hand, fair to twins and ties, and never without the size of their pool."""

from __future__ import annotations

import numpy as np
import pytest

from MedZeroSegLib.evaluation.retrieval import mcnemar, ranks_of, retrieval, retrieval_table


def vectors(count: int, noise: float, width: int = 16) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    images = rng.normal(size=(count, width))
    texts = images + noise * rng.normal(size=images.shape)
    return tuple(part / np.linalg.norm(part, axis=1, keepdims=True) for part in (images, texts))


def test_ranks_are_those_of_a_matrix_by_hand():
    cosine = np.array([[0.9, 0.1, 0.2], [0.8, 0.5, 0.4], [0.7, 0.6, 0.3]])
    assert ranks_of(cosine, np.eye(3, dtype=bool)).tolist() == [0, 1, 2]
    assert ranks_of(cosine.T, np.eye(3, dtype=bool)).tolist() == [0, 1, 1]


def test_any_twin_is_a_right_answer():
    twins = np.eye(3, dtype=bool)
    twins[1, 0] = twins[0, 1] = True
    cosine = np.array([[0.9, 0.1, 0.2], [0.8, 0.5, 0.4], [0.7, 0.6, 0.3]])
    assert ranks_of(cosine, twins).tolist() == [0, 0, 2]


def test_a_model_that_says_the_same_of_everything_finds_nothing():
    assert ranks_of(np.full((4, 4), 0.5), np.eye(4, dtype=bool)).tolist() == [3] * 4


def test_every_pool_size_that_the_pairs_fill_is_measured_and_larger_ones_are_harder():
    images, texts = vectors(130, 1.2)
    rows = retrieval(images, texts, np.eye(130, dtype=bool))
    assert [(row.direction, row.pool) for row in rows] == [
        ("image to text", 50), ("text to image", 50), ("image to text", 130), ("text to image", 130),
    ]  # fmt: skip
    assert [row.queries for row in rows] == [500, 500, 130, 130]  # two pools of 50 in each of five shuffles
    for small, large in zip(rows[:2], rows[2:], strict=True):
        assert small.tops[0] > large.tops[0]
        assert small.tops[0] <= small.tops[1] <= small.tops[2] <= 1
    perfect = retrieval(images, images, np.eye(130, dtype=bool))
    assert all(row.tops == (1, 1, 1) for row in perfect)


def test_chance_is_one_over_the_pool():
    rng = np.random.default_rng(1)
    images, texts = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in rng.normal(size=(2, 1000, 64)))
    row = retrieval(images, texts, np.eye(1000, dtype=bool))[0]
    assert row.pool == 50 and row.tops[0] == pytest.approx(1 / 50, abs=0.01)


def test_mcnemar_looks_at_the_pairs_that_changed_only():
    before = np.array([True] * 50 + [False] * 50)
    after = before.copy()
    assert mcnemar(before, after) == 1.0
    after[50:60] = True  # ten won, none lost
    assert mcnemar(before, after) == pytest.approx(2 * 0.5**10)
    assert mcnemar(after, before) == pytest.approx(2 * 0.5**10)


def test_the_table_names_pool_and_queries():
    images, texts = vectors(60, 0.1)
    table = retrieval_table([("start", retrieval(images, texts, np.eye(60, dtype=bool)))])
    assert "| start | image to text | 50 | 250 | 100.00 % |" in table and "| 60 | 60 |" in table
    assert len({line.count("|") for line in table.splitlines()}) == 1
