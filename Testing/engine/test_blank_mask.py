"""Masks as large as the volume take memory where they are drawn, and nowhere else."""

from __future__ import annotations

import mmap
import pickle

import numpy as np
import psutil
import pytest

from MedZeroSegLib.assembly import KeySlices, fill_holes, keep_parts, restore_mask
from MedZeroSegLib.blank_mask import SMALL_BYTES, blank_mask
from MedZeroSegLib.canvas import fit_canvas

SHAPE = (200, 512, 512)  # 52 MB
sparing = pytest.mark.skipif(not hasattr(mmap, "MADV_NOHUGEPAGE"), reason="the system can't be told to spare pages")


def resident_mb() -> float:
    return psutil.Process().memory_info().rss / 1e6


@pytest.mark.parametrize("shape", [(0, 4, 4), (3, 5, 7), (SMALL_BYTES // 4096 + 1, 64, 64)])
def test_a_blank_mask_is_an_ordinary_array(shape):
    mask = blank_mask(shape)
    assert mask.shape == shape and mask.dtype == np.bool_ and not mask.any() and mask.flags.c_contiguous
    mask[1:, 2] = True
    assert mask.sum() == max(0, shape[0] - 1) * shape[2]
    assert not blank_mask(shape).any()
    assert np.array_equal(pickle.loads(pickle.dumps(mask)), mask) and np.array_equal(mask.copy(), mask)


@sparing
def test_looking_at_a_blank_mask_takes_no_memory_and_a_thin_structure_little():
    before = resident_mb()
    mask = blank_mask(SHAPE)
    assert not mask.any() and mask.sum() == 0
    mask[:, 100:110, 200:210] = True
    assert mask.sum() == 200 * 100
    assert resident_mb() - before < 10


@sparing
def test_a_thin_structure_through_all_slices_is_put_together_in_little_memory():
    """The spine of a trunk: one outline in each slice, a small part of it."""
    canvas = fit_canvas(SHAPE[1:], (0.8, 0.8), 256)
    keys = KeySlices(np.arange(0, SHAPE[0], 4), SHAPE[0])
    probability = np.zeros((len(keys.indices), 256, 256), np.float16)
    probability[:, 120:136, 120:136] = 1
    probability[:, 127:129, 127:129] = 0
    restore_mask(probability[:2], np.ones(2, bool), KeySlices(keys.indices[:2], 5), canvas, 0.5)  # what is loaded once
    before = resident_mb()
    mask = restore_mask(probability, np.ones(len(probability), bool), keys, canvas, 0.5)
    fill_holes(mask)
    keep_parts(mask, 1)
    assert mask[::4].any(axis=(1, 2)).all() and mask[10, 255, 255]
    assert resident_mb() - before < 25
