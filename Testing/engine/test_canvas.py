"""Slices reach the model's square in true proportions, and maps come back to the slice's pixels where they belong."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from MedZeroSegLib.canvas import Canvas, fit_canvas

SIZE = 64
SHAPES = st.tuples(st.integers(8, 90), st.integers(8, 90))
SPACINGS = st.tuples(*[st.sampled_from([0.5, 0.7, 1.0, 1.01, 2.0, 3.0])] * 2)


def blob(shape: tuple[int, int], centre: tuple[float, float], radius: tuple[float, float]) -> np.ndarray:
    """Gaussian blob float [h, w] with its maximum 1 at ``centre`` (row, column), ``radius`` in pixels."""
    row, column = np.indices(shape)
    return np.exp(-0.5 * (((row - centre[0]) / radius[0]) ** 2 + ((column - centre[1]) / radius[1]) ** 2))


def centroid(image: np.ndarray) -> np.ndarray:
    row, column = np.indices(image.shape)
    return np.array([(row * image).sum(), (column * image).sum()]) / image.sum()


@pytest.mark.parametrize(
    ("shape", "spacing", "rows", "columns"),
    [
        ((100, 50), (1.0, 1.0), 64, 32),
        ((50, 100), (1.0, 1.0), 32, 64),
        ((50, 50), (2.0, 1.0), 64, 32),
        ((50, 50), (1.0, 2.0), 32, 64),
        ((40, 100), (2.5, 1.0), 64, 64),
        ((1, 400), (1.0, 1.0), 1, 64),
    ],
)
def test_the_longer_side_in_mm_fills_the_square(shape, spacing, rows, columns):
    canvas = fit_canvas(shape, spacing, SIZE)
    assert (canvas.rows, canvas.columns) == (rows, columns)


def test_spacings_that_hardly_differ_are_taken_as_equal():
    assert fit_canvas((100, 100), (1.0, 1.015), SIZE) == fit_canvas((100, 100), (1.0, 1.0), SIZE)
    assert fit_canvas((100, 100), (1.0, 1.2), SIZE) != fit_canvas((100, 100), (1.0, 1.0), SIZE)


@given(shape=SHAPES, spacing=SPACINGS)
def test_the_slice_lies_on_the_square_in_its_proportions(shape, spacing):
    canvas = fit_canvas(shape, spacing, SIZE)
    assert max(canvas.rows, canvas.columns) == SIZE
    assert min(canvas.rows, canvas.columns) >= 1
    tall, wide = shape[0] * spacing[0], shape[1] * spacing[1]
    scale = SIZE / max(tall, wide)
    tolerance = 0.5 + 0.02 * SIZE  # a pixel is rounded; spacings within 2 % count as equal
    assert abs(canvas.rows - tall * scale) <= tolerance
    assert abs(canvas.columns - wide * scale) <= tolerance


@settings(deadline=None, max_examples=30)
@given(shape=SHAPES, spacing=SPACINGS)
def test_the_picture_fills_its_part_and_the_padding_is_black(shape, spacing):
    canvas = fit_canvas(shape, spacing, SIZE)
    placed = canvas.place(np.full((2, *shape), 255, np.uint8))
    assert placed.shape == (2, 1, SIZE, SIZE)
    assert placed.dtype == torch.float32
    assert torch.allclose(placed[:, :, : canvas.rows, : canvas.columns], torch.ones(()), atol=1e-5)
    assert not placed[:, :, canvas.rows :].any()
    assert not placed[:, :, :, canvas.columns :].any()


def test_slices_of_a_stack_stay_in_order_and_are_not_rescaled_one_by_one():
    canvas = fit_canvas((20, 30), (1.0, 1.0), SIZE)
    grey = np.stack([np.full((20, 30), value, np.uint8) for value in (0, 51, 255, 102)])
    means = canvas.place(grey)[:, 0, : canvas.rows, : canvas.columns].mean((1, 2))
    assert means.tolist() == pytest.approx([0.0, 0.2, 1.0, 0.4], abs=1e-5)


@settings(deadline=None, max_examples=60)
@given(shape=SHAPES, spacing=SPACINGS, place=st.tuples(st.floats(0.3, 0.7), st.floats(0.3, 0.7)))
def test_a_blob_returns_to_its_place_within_half_a_pixel(shape, spacing, place):
    canvas = fit_canvas(shape, spacing, SIZE)
    cell = np.array([shape[0] / canvas.rows, shape[1] / canvas.columns])  # pixels that a canvas pixel spans
    centre = (place[0] * (shape[0] - 1), place[1] * (shape[1] - 1))
    radius = tuple(np.maximum(np.array(shape) / 12, 1.2 * cell))
    image = blob(shape, centre, radius)
    if min(canvas.rows, canvas.columns) < 12:  # too narrow to hold a blob
        return
    stack = np.rint(np.stack([np.zeros(shape), image]) * 255).astype(np.uint8)
    restored = canvas.restore(canvas.place(stack))
    assert restored.shape == (2, 1, *shape)
    assert not restored[0].any()
    offset = np.abs(centroid(restored[1, 0].numpy()) - centroid(stack[1].astype(float)))
    assert np.all(offset <= 0.5 * np.maximum(1, cell))


@settings(deadline=None, max_examples=40)
@given(shape=SHAPES, spacing=SPACINGS)
def test_a_map_of_coarser_cells_returns_to_the_same_place(shape, spacing):
    """The square's own coordinates, written on its cells, come back as the coordinates of the slice's pixels."""
    canvas = fit_canvas(shape, spacing, SIZE)
    cells = 16
    along = (torch.arange(cells, dtype=torch.float32) + 0.5) / cells
    y, x = torch.meshgrid(along, along, indexing="ij")
    restored = canvas.restore(torch.stack((y, x))[None])[0].numpy()
    row = (np.arange(shape[0]) + 0.5) / shape[0] * canvas.rows / SIZE
    column = (np.arange(shape[1]) + 0.5) / shape[1] * canvas.columns / SIZE
    edge = 0.5 / cells  # beyond the outermost cells' centres the border is repeated
    expected = np.clip(np.stack(np.meshgrid(row, column, indexing="ij")), edge, 1 - edge)
    assert np.abs(restored - expected).max() < 1e-4


@settings(deadline=None, max_examples=40)
@given(shape=SHAPES, spacing=SPACINGS, corner=st.tuples(st.floats(0, 0.5), st.floats(0, 0.5)))
def test_labels_lie_where_the_picture_lies(shape, spacing, corner):
    canvas = fit_canvas(shape, spacing, SIZE)
    if min(canvas.rows, canvas.columns) < 8:
        return
    labels = np.zeros((1, *shape), np.uint16)
    top, left = int(corner[0] * shape[0]), int(corner[1] * shape[1])
    labels[0, top : top + (shape[0] + 1) // 2, left : left + (shape[1] + 1) // 2] = 7
    placed = canvas.place_labels(labels)
    assert placed.dtype == np.uint8
    assert placed.shape == (1, SIZE, SIZE)
    assert set(np.unique(placed)) <= {0, 7}
    picture = canvas.place((labels > 0).astype(np.uint8) * 255)[0, 0].numpy()
    offset = np.abs(centroid(placed[0] > 0) - centroid(picture))
    assert np.all(offset <= 0.75)  # half a pixel of rounding, and the soft edge of the picture
    assert not placed[:, canvas.rows :].any()
    assert not placed[:, :, canvas.columns :].any()


def test_labels_on_the_slices_own_grid_are_kept_voxel_for_voxel():
    labels = np.random.default_rng(0).integers(0, 256, (3, SIZE, 40)).astype(np.uint16)
    placed = Canvas(SIZE, 40, SIZE, 40, SIZE).place_labels(labels)
    assert np.array_equal(placed[:, :, :40], labels)


def test_a_label_over_255_is_refused_and_not_turned_into_another():
    with pytest.raises(ValueError, match="300"):
        fit_canvas((4, 4), (1.0, 1.0), SIZE).place_labels(np.full((1, 4, 4), 300, np.uint16))


@given(shape=SHAPES, spacing=SPACINGS, cells=st.sampled_from([16, 32, 64]))
def test_covered_cells_hold_the_slice_and_no_more(shape, spacing, cells):
    canvas = fit_canvas(shape, spacing, SIZE)
    rows, columns = canvas.covered(cells)
    side = SIZE / cells
    assert (rows - 1) * side < canvas.rows <= rows * side
    assert (columns - 1) * side < canvas.columns <= columns * side


@pytest.mark.parametrize("size", [224, 448, 1024])
def test_a_canvas_of_another_size_shows_the_same_places(size):
    """Coordinates that are scaled from one square to the other point at the same part of the slice."""
    canvas = fit_canvas((150, 203), (1.3, 1.0), 256)
    other = canvas.at(size)
    assert (other.height, other.width, other.size) == (150, 203, size)
    for side in ("rows", "columns"):
        assert abs(getattr(other, side) / size - getattr(canvas, side) / 256) <= 0.5 / size
    assert canvas.at(256) is canvas
