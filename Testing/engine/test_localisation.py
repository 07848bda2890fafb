"""The area under the ROC of saliency: by hand on few cells, on a flipped, anisotropic volume so that a mix-up of axes
would show."""

from __future__ import annotations

import numpy as np
import pytest

from MedZeroSegLib.canvas import fit_canvas
from MedZeroSegLib.evaluation.localisation import saliency_auc
from MedZeroSegLib.saliency_map import SaliencyMap
from MedZeroSegLib.slices import SliceFrame

FRAME = SliceFrame((2, 0, 1), (True, False, True), "sagittal", (3.0, 1.0, 1.0))  # slices along i, backwards
SHAPE = (32, 24, 6)  # k, j, i


def organ() -> np.ndarray:
    reference = np.zeros(SHAPE, bool)
    reference[4:20, 6:10, 1:3] = True
    return reference


def map_of(share: np.ndarray, indices: list[int]) -> SaliencyMap:
    return SaliencyMap(FRAME, fit_canvas((32, 24), (1.0, 1.0), 256), np.array(indices), share.astype(np.float16))


def shares_like(reference: np.ndarray, indices: list[int]) -> np.ndarray:
    """The reference on the 32 × 32 cells of the canvas, one for each pixel of its slices."""
    share = np.zeros((len(indices), 32, 32))
    share[:, :, :24] = FRAME.forward(reference)[indices]
    return share


def test_saliency_on_the_structure_is_perfect_and_elsewhere_worse() -> None:
    indices = [1, 3, 4]
    assert saliency_auc(map_of(shares_like(organ(), indices), indices), organ()) == 1.0
    for axis in range(3):
        turned = shares_like(np.flip(organ(), axis), indices)
        found = saliency_auc(map_of(turned, indices), organ())
        assert found is not None and found < 0.8
    assert saliency_auc(map_of(1 - shares_like(organ(), indices), indices), organ()) == 0.0


def test_cells_of_one_value_are_chance_and_halves_count_half() -> None:
    indices = [3]
    assert saliency_auc(map_of(np.full((1, 32, 32), 0.3), indices), organ()) == 0.5
    share = shares_like(organ(), indices)
    share[:, 12:] = 0  # half of the organ is missed: it ties with everything else
    assert saliency_auc(map_of(share, indices), organ()) == pytest.approx(0.75)


def test_padding_of_the_canvas_does_not_count() -> None:
    share = shares_like(organ(), [3])
    share[:, :, 24:] = 1
    assert saliency_auc(map_of(share, [3]), organ()) == 1.0


def test_nothing_to_rank_has_no_area() -> None:
    assert saliency_auc(map_of(np.zeros((1, 32, 32)), [0]), organ()) is None
    assert saliency_auc(map_of(np.zeros((1, 32, 32)), [3]), np.ones(SHAPE, bool)) is None
