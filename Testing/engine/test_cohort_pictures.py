"""Mosaic and thumbnail of a case: sides as radiologists expect them, true proportions, the segments' colours."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cohort_samples as samples
import numpy as np
import phantoms
import pytest
from PIL import Image

from MedZeroSegLib.cohort.mosaic import edge_letters, tiles_of, write_mosaic, write_thumbnail
from MedZeroSegLib.confidence import Confidence
from MedZeroSegLib.segment import Segmentation
from MedZeroSegLib.slices import slice_frame
from MedZeroSegLib.volume import Volume

SHAPE = (30, 24, 9)  # i to the left, j posterior, k superior
SPACING = (0.8, 1.6, 4.0)
RED, BLUE = (255, 0, 0), (0, 0, 255)


def stored_case(storage: phantoms.Storage, **changes: object) -> Segmentation:
    """Red at the patient's left front, blue at the right back, in any order of axes."""
    volume = Volume(
        np.zeros(storage.store(np.empty(SHAPE)).T.shape, np.int16),
        storage.matrix(SHAPE, phantoms.lps_matrix(SPACING)),
        "MR",
        **changes,
    )
    masks = np.zeros((2, *SHAPE), bool)
    masks[0, 20:26, 3:9, 2:7] = True
    masks[1, 3:9, 14:20, 2:7] = True
    red, blue = (np.ascontiguousarray(storage.store(mask).T) for mask in masks)
    return samples.segmentation(
        volume, samples.segment("left $ part", red, color=RED), samples.segment("right part", blue, color=BLUE)
    )


def pixels_of(file: Path, color: tuple[int, int, int], within: int = 200) -> np.ndarray:
    """(row, column) of the pixels of a colour; filled areas are darker and JPEG blurs."""
    image = np.array(Image.open(file).convert("RGB")).astype(int)
    far = np.abs(image - color)
    primary = np.argmax(color)
    return np.argwhere(
        (far.max(axis=2) < within) & (2 * np.delete(image, primary, 2).max(axis=2) < image[..., primary])
    )


def doubt_frame(file: Path) -> int:
    """Number of pixels of the frame around doubtful slices."""
    image = np.array(Image.open(file).convert("RGB")).astype(int)
    return int(np.count_nonzero(np.abs(image - (255, 165, 0)).max(axis=2) < 8))


@pytest.mark.parametrize("number", [0, 7, 21, 38, 47])
def test_patients_left_is_at_the_right_and_front_above_however_the_file_is_stored(tmp_path, number):
    case = stored_case(list(phantoms.storages())[number])
    assert edge_letters(case.volume, slice_frame(case.volume)) == ("R", "L", "A", "P")
    thumbnail = write_thumbnail(case, tmp_path / "t.jpg")
    red, blue = pixels_of(thumbnail, RED).mean(axis=0), pixels_of(thumbnail, BLUE).mean(axis=0)
    assert red[0] < blue[0] and red[1] > blue[1]
    assert Image.open(thumbnail).format == "JPEG" and max(Image.open(thumbnail).size) == 128


def test_pixels_keep_the_proportions_of_their_spacing(tmp_path):
    case = stored_case(next(phantoms.storages()))
    thumbnail = write_thumbnail(case, tmp_path / "t.jpg")
    rows, columns = np.ptp(pixels_of(thumbnail, RED), axis=0)
    assert rows / columns == pytest.approx((6 * 1.6) / (6 * 0.8), rel=0.2)


def test_a_mosaic_is_the_same_every_time_and_names_the_segments(tmp_path):
    case = stored_case(list(phantoms.storages())[11])
    first, again = (write_mosaic(case, tmp_path / f"{n}.png").read_bytes() for n in range(2))
    assert first == again
    assert len(pixels_of(tmp_path / "0.png", RED)) > 100 < len(pixels_of(tmp_path / "0.png", BLUE))
    assert doubt_frame(tmp_path / "0.png") < 20  # the letters' rims come near


@pytest.mark.parametrize("flipped", [False, True])
def test_the_most_doubtful_slices_are_shown_and_marked(tmp_path, flipped):
    storage = phantoms.Storage((0, 1, 2), (False, False, flipped))
    case = stored_case(storage)
    doubt = np.zeros(SHAPE[2], np.float32)
    doubt[4], doubt[5] = 0.9, 0.8
    stored = doubt[::-1] if flipped else doubt
    confidence = Confidence(0.7, 0, np.ascontiguousarray(stored), (0, 1, 0, 1, 0, 1), np.zeros((2, 2, 2), np.uint8))
    red = replace(case.segments[0], confidence=confidence)
    case = replace(case, segments=(red, case.segments[1]))
    tiles = {tile.index: tile.doubt for tile in tiles_of(case, slice_frame(case.volume))}
    assert list(tiles) == [2, 3, 4, 5, 6]
    assert tiles[4] == pytest.approx(0.9) and tiles[5] is None  # a neighbour tells nothing new
    assert doubt_frame(write_mosaic(case, tmp_path / "m.png")) > 500


def test_where_nothing_was_found_the_whole_image_is_shown(tmp_path):
    case = stored_case(next(phantoms.storages()))
    empty = np.zeros(case.volume.shape, bool)
    case = replace(case, segments=tuple(samples.segment(name, empty) for name in ("liver", "spleen")))
    assert [tile.index for tile in tiles_of(case, slice_frame(case.volume))] == list(range(SHAPE[2]))
    assert write_mosaic(case, tmp_path / "m.png").stat().st_size > 1000
    assert write_thumbnail(case, tmp_path / "t.jpg").stat().st_size > 300


def test_oblique_edges_have_two_letters_and_pictures_none():
    turned = phantoms.lps_matrix((0.8, 0.8, 4.0), rotation=phantoms.rotation_about((0, 0, 1), 30))
    volume = Volume(np.zeros((9, 20, 20), np.int16), turned, "MR")
    assert edge_letters(volume, slice_frame(volume)) == ("RA", "LP", "AL", "PR")
    picture = Volume(np.zeros((1, 20, 20), np.uint8), np.eye(4), "X-ray", dimension=2)
    assert edge_letters(picture, slice_frame(picture)) == ("", "", "", "")
