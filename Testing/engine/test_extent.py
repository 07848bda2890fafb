"""Boxes of masks and their fingerprints."""

from __future__ import annotations

import hashlib

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from MedZeroSegLib.extent import EMPTY_EXTENT, PORTION, crop, mask_extent, mask_sha256

MASKS = arrays(bool, array_shapes(min_dims=3, max_dims=3, max_side=7))


@given(MASKS)
def test_extent_is_the_smallest_box_that_holds_the_mask(mask):
    extent = mask_extent(mask)
    if not mask.any():
        assert extent == EMPTY_EXTENT
        return
    inside = crop(mask, extent)
    assert np.count_nonzero(inside) == np.count_nonzero(mask)
    assert all(inside.any(axis=others)[end] for others in ((1, 2), (0, 2), (0, 1)) for end in (0, -1))


def fingerprint(mask: np.ndarray) -> str:
    extent = mask_extent(mask)
    return mask_sha256(crop(mask, extent), extent)


@given(MASKS, st.integers(0, 10**6))
def test_fingerprint_tells_masks_apart_by_a_single_voxel(mask, position):
    other = mask.copy()
    other.flat[position % mask.size] ^= True
    assert fingerprint(mask) == fingerprint(mask.copy())
    assert fingerprint(mask) != fingerprint(other)


@given(MASKS)
def test_fingerprint_tells_where_a_mask_lies_and_not_how_much_room_is_around(mask):
    assert fingerprint(np.pad(mask, ((0, 2), (0, 1), (0, 3)))) == fingerprint(mask)
    assert (fingerprint(np.pad(mask, ((1, 0), (0, 0), (0, 0)))) != fingerprint(mask)) == mask.any()


def test_type_of_the_voxels_does_not_matter():
    mask = np.eye(4, dtype=bool)[None]
    assert mask_sha256(mask.astype(np.uint8) * 255, (0, 3, 0, 3, 0, 0)) == fingerprint(mask)


@given(arrays(np.uint8, (3, 40, 1100), elements=st.integers(0, 3)))
def test_fingerprint_of_a_label_is_that_of_its_mask(labels):
    """Also where a mask is looked at in several portions."""
    whole = (0, 1099, 0, 39, 0, 2)
    assert labels.size > PORTION and mask_sha256(labels, whole, 2) == mask_sha256(labels == 2, whole)
    expected = hashlib.sha256(",".join(map(str, whole)).encode() + np.packbits(labels == 2).tobytes()).hexdigest()
    assert mask_sha256(labels, whole, 2) == expected
