"""Belief in a decoder's candidate, and points for shapes that a box says too little of."""

from __future__ import annotations

import numpy as np
import pytest
from analytic import ellipsoid

from MedZeroSegLib.candidates import candidate_score, sides_reached, soft_dice
from MedZeroSegLib.point_prompts import needs_points, points_of
from MedZeroSegLib.prompts import box_around

SIZE = 128
PART = ellipsoid((SIZE, SIZE), (60, 50), (20, 15))
SHARE = np.where(PART, 0.9, 0.05).astype(np.float32)
BOX = box_around(PART, SIZE)
BODY = 9000.0


def logits_of(mask: np.ndarray, height: float = 6.0) -> np.ndarray:
    return np.where(mask, height, -height).astype(np.float32)


def score(mask: np.ndarray, estimate: float = 0.9, height: float = 6.0, **changes) -> float:
    settings = {"share": SHARE, "expected_area": float(PART.sum()), "box": BOX, "body_area": BODY} | changes
    return candidate_score(logits_of(mask, height), estimate, **settings)


def test_the_score_is_the_weighed_sum():
    ring = ellipsoid((SIZE, SIZE), (60, 50), (24, 19)) & ~PART
    dice = 2 * SHARE[PART].sum() / (PART.sum() + SHARE.sum())
    contrast = SHARE[PART].mean() - SHARE[ring].mean()
    assert score(PART, 0.7) == pytest.approx(0.35 * dice + 0.25 + 0.2 * 0.7 + 0.2 * contrast, abs=0.005)


def test_the_right_mask_beats_every_other():
    right = score(PART)
    others = {
        "elsewhere": np.roll(PART, 40, 1),
        "too small": ellipsoid((SIZE, SIZE), (60, 50), (8, 6)),
        "everything": np.ones_like(PART),
        "the box": ellipsoid((SIZE, SIZE), (60, 50), (40, 40)),
    }
    assert right > 0.8
    for name, mask in others.items():
        assert score(mask, 1.0) < right - 0.1, name


@pytest.mark.parametrize(
    ("change", "mask"),
    [({"body_area": 1000.0}, PART), ({"expected_area": 200.0}, PART), ({"box": (36.0, 41.0, 64.0, 80.0)}, PART)],
    ids=["over 60 % of the body", "over thrice the part", "at three sides of the box"],
)
def test_each_fault_costs_the_same(change, mask):
    assert score(mask) - score(mask, **change) == pytest.approx(0.2, abs=1e-6)


def test_a_wavering_mask_is_believed_less():
    assert score(PART, height=6.0) - score(PART, height=0.5) == pytest.approx(0.25, abs=1e-6)  # none above 1


def test_the_decoders_own_estimate_is_a_fifth():
    assert score(PART, 1.0) - score(PART, 0.0) == pytest.approx(0.2, abs=1e-6)
    assert score(PART, 7.0) == score(PART, 1.0)


@pytest.mark.parametrize(
    "logits", [np.full((SIZE, SIZE), -3.0), np.full((SIZE, SIZE), np.nan), np.full((SIZE, SIZE), np.inf)]
)
def test_nothing_and_broken_numbers_are_not_believed(logits):
    assert candidate_score(logits, 1.0, SHARE, 900.0, BOX, BODY) == -1.0


def test_sides_on_the_pictures_edge_do_not_count():
    mask = np.zeros((64, 64), bool)
    mask[:20, :20] = True
    assert sides_reached(mask, (0.0, 0.0, 22.0, 22.0)) == 0
    assert sides_reached(mask, (0.0, 0.0, 20.0, 20.0)) == 2
    assert sides_reached(np.roll(mask, 10, (0, 1)), (10.0, 10.0, 30.0, 30.0)) == 4


def test_soft_dice_of_nothing_is_nothing():
    assert soft_dice(np.zeros((3, 3)), np.zeros((3, 3))) == 0
    assert soft_dice(np.ones((3, 3)), np.ones((3, 3))) == 1


# Points


def crescent() -> np.ndarray:
    return ellipsoid((SIZE, SIZE), (64, 64), (30, 30)) & ~ellipsoid((SIZE, SIZE), (64, 74), (26, 26))


def test_points_are_for_concave_shapes_and_pieces():
    assert not needs_points(PART)
    assert needs_points(crescent())
    assert needs_points(PART | np.roll(PART, 50, 1))


def test_points_inside_lie_inside_and_points_outside_outside():
    part = crescent()
    share = np.where(part, 0.9, 0.1)
    box = box_around(part, SIZE)
    rivals = ellipsoid((SIZE, SIZE), (64, 80), (10, 8))
    points, labels = points_of(share, part, rivals, box)
    assert 1 <= (labels == 1).sum() <= 3 and 1 <= (labels == 0).sum() <= 3
    for (x, y), label in zip(points.astype(int), labels, strict=True):
        assert part[y, x] == bool(label)
        assert label or rivals[y, x]
        assert box[0] <= x < box[2] and box[1] <= y < box[3]


def test_without_rivals_points_outside_are_the_rings_least_salient():
    part = crescent()
    share = np.where(part, 0.9, 0.4)
    share[60:68, 48:54] = 0.0  # in the hollow
    points, labels = points_of(share, part, np.zeros_like(part), box_around(part, SIZE))
    x, y = points[labels == 0][0].astype(int)
    assert 60 <= y < 68 and x < 60 and not part[y, x]


def test_a_box_around_a_part_holds_it_with_its_margin():
    x0, y0, x1, y1 = BOX
    rows, columns = np.flatnonzero(PART.any(1)), np.flatnonzero(PART.any(0))
    width, height = columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]
    assert (x0, x1) == pytest.approx((columns[0] - 0.1 * width, columns[-1] + 1 + 0.1 * width))
    assert (y0, y1) == pytest.approx((rows[0] - 0.1 * height, rows[-1] + 1 + 0.1 * height))
    quarter = box_around(PART, 4 * SIZE)
    assert quarter[0] == pytest.approx(4 * columns[0] - min(15, 0.4 * width))
