"""Outlines between two corrected slices: they go with the structure, and holes stay holes."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from MedZeroSegLib.assembly import shape_between
from MedZeroSegLib.outlines import Outlines

ROWS, COLUMNS = np.indices((96, 96))


def disc(row: float, column: float, radius: float) -> np.ndarray:
    return np.hypot(ROWS - row, COLUMNS - column) <= radius


def dice(first: np.ndarray, second: np.ndarray) -> float:
    return 2 * float((first & second).sum()) / float(first.sum() + second.sum())


def test_the_ends_are_the_two_masks():
    first, second = disc(30, 30, 12) & ~disc(30, 32, 7), disc(52, 60, 18) & ~disc(51, 60, 12)
    outlines = Outlines(first, second)
    assert dice(outlines.field(0) >= 0, first) > 0.97
    assert dice(outlines.field(1) >= 0, second) > 0.97


def test_a_disc_that_moves_farther_than_its_size_is_half_way_between():
    outlines = Outlines(disc(20, 20, 8), disc(60, 70, 12))
    assert dice(outlines.field(0.5) >= 0, disc(40, 45, 10)) > 0.95


def test_a_thin_ring_that_moves_and_shrinks_stays_a_ring():
    first, second = disc(48, 48, 30) & ~disc(48, 48, 26), disc(56, 52, 16) & ~disc(56, 52, 12)
    between = Outlines(first, second).field(0.5) >= 0
    assert dice(between, disc(52, 50, 23) & ~disc(52, 50, 19)) > 0.9
    assert ndimage.label(~between)[1] == 2


def test_a_hole_that_only_one_slice_has_does_not_take_the_rest_away():
    between = Outlines(disc(48, 48, 20) & ~disc(48, 48, 6), disc(48, 48, 20)).field(0.5) >= 0
    assert dice(between, disc(48, 48, 20)) > 0.85


def test_towards_an_empty_slice_the_outline_shrinks():
    mask, nothing = disc(48, 48, 16), np.zeros((96, 96), bool)
    assert np.array_equal(Outlines(mask, nothing).field(0.3), shape_between(mask, nothing, 0.3))
    assert not (Outlines(nothing, nothing).field(0.5) >= 0).any()
