"""Objects are followed through the slices by their believed masks, and stop where they end."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from analytic import dice, ellipse_logits, ellipsoid, without_margin

from MedZeroSegLib.saliency import Saliency
from MedZeroSegLib.tracking import BELIEVED_MIN, SEEDS, track

SIZE, COUNT = 128, 16
TRUTH = ellipsoid((COUNT, SIZE, SIZE), (7.5, 60, 50), (6, 30, 22))
BODY = np.full(COUNT, 12_000.0)


def saliency_of(masks: np.ndarray, inside: float = 0.85, lost: np.ndarray | None = None) -> Saliency:
    share = np.where(masks, inside, 0.1).astype(np.float16)
    evidence = masks.any((1, 2)).astype(np.float32)
    return Saliency(share, np.zeros(masks.shape, bool) if lost is None else lost, evidence)


def rows_of(rows: list[int]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float32)[:, None, None, None]


class Decoder:
    """Answers each box with its ellipse, or each slice with what is written for it; keeps what it was asked."""

    device = torch.device("cpu")

    def __init__(self, prompts=("box", "mask"), masks: np.ndarray | None = None, several: bool = False) -> None:
        self.prompts, self.masks, self.several = prompts, masks, several
        self.rows: list[int] = []
        self.given: list[dict] = []

    def decode(self, coarse, boxes, masks, **more):
        rows = coarse[:, 0, 0, 0].long().tolist()
        self.rows += rows
        self.given.append({"masks": masks, **more})
        if self.masks is None:
            logits = ellipse_logits(without_margin(boxes), SIZE)
        else:
            logits = torch.from_numpy(np.where(self.masks[rows], 6.0, -6.0).astype(np.float32))[:, None]
        if self.several:
            rubbish = torch.full_like(logits, 6.0)
            return torch.cat((rubbish, logits, -rubbish), 1), torch.tensor([[1.0, 0.8, 0.9]] * len(rows))
        return logits, torch.full((len(rows),), 0.8)


def run(saliency: Saliency, decoder: Decoder, present: np.ndarray | None = None):
    return track(saliency, saliency.evidence > 0 if present is None else present, rows_of, decoder, BODY)


@pytest.mark.parametrize("several", [False, True], ids=["one candidate", "three candidates"])
def test_an_ellipsoid_comes_back_with_any_decoder_that_works(several):
    refined = run(saliency_of(TRUTH), Decoder(several=several))
    assert dice(refined.probability >= 0.5, TRUTH) >= 0.9
    assert refined.decoded == np.count_nonzero(TRUTH.sum((1, 2)) > 0)
    assert not (refined.probability[[0, 1, -2, -1]] >= 0.5).any()  # it stops at both ends


def test_an_object_is_followed_into_slices_that_the_saliency_misses():
    """Two slices in the middle lack saliency; the masks of their neighbours prompt them."""
    seen = TRUTH.copy()
    seen[[6, 9]] = False
    saliency = saliency_of(seen)
    present = TRUTH.any((1, 2))
    refined = run(saliency, Decoder(masks=TRUTH), present)
    assert dice(refined.probability[[6, 9]] >= 0.5, TRUTH[[6, 9]]) > 0.95


def test_following_ends_with_presence():
    present = TRUTH.any((1, 2))
    present[11:] = False
    decoder = Decoder(masks=TRUTH)
    run(saliency_of(TRUTH), decoder, present)
    assert max(decoder.rows) == 10 and min(decoder.rows) == int(np.flatnonzero(present)[0])


def test_following_ends_after_two_rejects():
    """The decoder has nothing to show beyond the object, although all slices count as present."""
    decoder = Decoder(masks=TRUTH)
    refined = run(saliency_of(TRUTH), decoder, np.ones(COUNT, bool))
    first, last = np.flatnonzero(TRUTH.any((1, 2)))[[0, -1]]
    assert {row for row in decoder.rows if row < first} <= {first - 1, first - 2}
    assert {row for row in decoder.rows if row > last} <= {last + 1, last + 2}
    assert not (refined.probability[[0, -1]] >= 0.5).any()


def test_each_slice_is_visited_at_most_once_in_each_direction():
    decoder = Decoder()
    run(saliency_of(TRUTH), decoder)
    assert max(decoder.rows.count(row) for row in set(decoder.rows)) <= 3  # from the saliency, up, down
    assert SEEDS == 3


@pytest.mark.parametrize("masks", [np.zeros_like(TRUTH), np.ones_like(TRUTH), np.roll(TRUTH, 60, 2)])
def test_where_no_candidate_is_believed_the_saliency_stands(masks):
    saliency = saliency_of(TRUTH)
    refined = run(saliency, Decoder(masks=masks))
    assert refined.decoded == 0 < refined.kept
    assert np.array_equal(refined.probability, saliency.share)
    assert BELIEVED_MIN == 0.3


def test_the_best_of_three_candidates_is_taken_not_the_one_that_praises_itself():
    refined = run(saliency_of(TRUTH), Decoder(masks=TRUTH, several=True))
    assert dice(refined.probability >= 0.5, TRUTH) > 0.99


def test_objects_keep_to_themselves():
    """A large and a small one; the decoder spills over both when the large one is asked for."""
    small = ellipsoid((COUNT, SIZE, SIZE), (7.5, 100, 100), (4, 12, 10))
    both = TRUTH | small
    refined = run(saliency_of(both), Decoder(masks=both))
    assert (refined.probability[small] >= 0.5).all() and (refined.probability[TRUTH] >= 0.5).all()
    assert refined.decoded >= TRUTH.any((1, 2)).sum()


def test_what_rivals_hold_is_left_to_them():
    lost = np.zeros(TRUTH.shape, bool)
    lost[:, :, 60:] = True
    refined = run(saliency_of(TRUTH & ~lost, lost=lost), Decoder(masks=TRUTH))
    assert not (refined.probability[lost] >= 0.5).any()
    assert (refined.probability[TRUTH & ~lost] >= 0.5).mean() > 0.98


def test_a_decoder_gets_only_the_prompts_that_it_was_made_for():
    crescent = TRUTH & ~ellipsoid(TRUTH.shape, (7.5, 60, 62), (9, 26, 18))
    saliency = saliency_of(crescent)
    boxes_only, with_points = Decoder(("box",)), Decoder(("box", "mask", "points"))
    run(saliency, boxes_only)
    run(saliency, with_points)
    assert all(given["masks"] is None and "points" not in given for given in boxes_only.given)
    assert all(given["masks"].shape[1:] == (1, SIZE, SIZE) for given in with_points.given)
    places, labels = with_points.given[0]["points"]
    assert places.shape[:2] == labels.shape and set(labels.unique().tolist()) <= {-1, 0, 1}
    convex = Decoder(("box", "mask", "points"))
    run(saliency_of(TRUTH), convex)
    assert all("points" not in given for given in convex.given)


def test_a_decoder_without_boxes_is_refused():
    with pytest.raises(ValueError, match="boxes"):
        run(saliency_of(TRUTH), Decoder(("points",)))


def test_nothing_found_is_nothing_prompted():
    decoder = Decoder()
    refined = run(saliency_of(np.zeros_like(TRUTH)), decoder)
    assert (refined.decoded, refined.kept, decoder.rows) == (0, 0, [])
    specks = np.zeros_like(TRUTH)
    specks[5, 10:13, 10:13] = True
    assert run(saliency_of(specks), decoder).decoded == 0 and decoder.rows == []
