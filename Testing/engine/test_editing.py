"""Correcting by hand: what a person says stays, the slice follows, and every action can be taken back."""

from __future__ import annotations

import numpy as np
import pytest
from editing_samples import OBLIQUE, SHAPE, engine, organ, scan
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from MedZeroSegLib.editing import EditingSession, OtherSegment, forget_embeddings
from MedZeroSegLib.editing_slice import with_text
from MedZeroSegLib.errors import InputError, SessionLost
from MedZeroSegLib.extent import EMPTY_EXTENT, crop
from MedZeroSegLib.mask_resampling import on_grid_of

TRUTH = organ()
VOLUME = scan(TRUTH)
ENGINE = engine()
MIDDLE = (33, 16, 5)  # i, j, k, inside the organ
FAR = (4, 36, 5)


def session(mask: np.ndarray | None = None, **more) -> EditingSession:
    return EditingSession(VOLUME, ENGINE, mask, **more)


def dice(first: np.ndarray, second: np.ndarray) -> float:
    return 2 * float((first & second).sum()) / max(1, int(first.sum() + second.sum()))


def cut_in_half() -> np.ndarray:
    half = TRUTH.copy()
    half[:, :, 33:] = False
    return half


# Clicks


def test_a_click_brings_the_missing_half_of_its_slice():
    editing = session(cut_in_half())
    before = dice(editing.mask[5], TRUTH[5])
    change = editing.include([[38, 16, 5]])
    assert change.slices == (5,)
    assert dice(editing.mask[5], TRUTH[5]) > before + 0.1


def test_a_click_removes_what_was_too_much():
    surplus = TRUTH.copy()
    surplus[5, 28:38, 8:20] = True
    editing = session(surplus)
    editing.exclude([[14, 33, 5]])
    assert not editing.mask[5, 33, 14]
    assert dice(editing.mask[5], TRUTH[5]) > dice(surplus[5], TRUTH[5]) + 0.05


def test_a_click_in_the_middle_of_a_piece_takes_all_of_it_away_and_no_other():
    start = np.zeros_like(TRUTH)
    start[5, 10:31, 20:45] = True  # over organ and surroundings alike
    start[5, 10:20, 2:12] = True
    editing = session(start)
    editing.exclude([[32, 20, 5]])
    assert not editing.mask[5, :, 15:].any()
    assert editing.mask[5, 12:18, 4:10].all()


class Content:
    """A corrector that changes nothing."""

    @staticmethod
    def logits(correction, coarse):
        return np.where(correction.mask, 8.0, -8.0).astype(np.float32)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_whole_piece_goes_unless_it_is_all_that_the_segment_has(elsewhere):
    start = np.zeros_like(TRUTH)
    start[5, 10:31, 20:45] = True
    start[2] = TRUTH[2] & elsewhere
    editing = session(start)
    editing.corrector = Content()
    editing.exclude([[32, 20, 5]])
    assert editing.mask[5].any() != elsewhere and not editing.mask[5, 20, 32]


@pytest.mark.parametrize("beside", [(slice(10, 16), slice(2, 8)), (slice(2, 32), slice(0, 19))])
def test_the_larger_part_of_a_segment_in_one_slice_is_not_meant_whole(beside):
    start = np.zeros_like(TRUTH)
    start[5, 10:31, 20:45] = True
    start[5][beside] = True
    editing = session(start)
    editing.corrector = Content()
    editing.exclude([[32, 20, 5]])
    larger = (beside[0].stop - beside[0].start) * (beside[1].stop - beside[1].start) > 21 * 25
    assert editing.mask[5, 10:31, 20:45].any() != larger and not editing.mask[5, 20, 32]


@pytest.mark.parametrize("inside", [True, False])
def test_what_text_holds_for_as_likely_as_the_clicked_place_follows_the_click(inside):
    share = np.full((128, 128), 0.01 if inside else 0.99)
    share[40:60, 40:60] = 0.9 if inside else 0.1
    share[40:60, 60:72] = 0.3 if inside else 0.7  # where the text is of two minds
    before = np.zeros((256, 256), bool)
    before[80:120, 80:120] = True
    before = before if inside else ~before
    undecided = np.zeros((256, 256), np.float32)
    click = np.array([[100, 132]])
    mask = with_text(undecided, before, share, click, inside) > 0
    assert (mask[88:112, 124:140] == inside).all()
    assert (mask[88:112, 148:] != inside).all(), "farther on the text is sure"


def test_text_that_is_sure_and_wrong_is_hardly_heard():
    share = np.full((128, 128), 0.001)
    before = np.zeros((256, 256), bool)
    before[80:120, 80:120] = True
    logits = np.where(np.indices(before.shape)[1] < 150, 2.0, -2.0).astype(np.float32)
    heard = with_text(logits, before, share, np.array([[100, 132]]), True)
    assert np.abs(heard - logits).max() < 0.02


def test_text_says_nothing_of_a_slice_that_is_empty():
    logits = np.full((256, 256), -2.0, np.float32)
    nothing = np.zeros((256, 256), bool)
    assert with_text(logits, nothing, np.ones((128, 128)), np.array([[10, 10]]), True) is logits


def test_a_click_beside_the_middle_of_a_piece_leaves_the_rest_of_it():
    start = np.zeros_like(TRUTH)
    start[5, 10:31, 20:45] = True
    editing = session(start)
    editing.exclude([[23, 27, 5]])
    assert editing.mask[5].any() and not editing.mask[5, 27, 23]


def test_a_click_at_the_rim_of_a_ring_never_cuts_through_it():
    ring = TRUTH[5] & ~ndimage.binary_erosion(TRUTH[5], iterations=4)
    start = TRUTH.copy()
    start[5] = ring
    editing = session(start)
    row, column = np.argwhere(ring)[0]
    editing.exclude([[column, row, 5]])
    assert not editing.mask[5, row, column]
    assert ndimage.label(~editing.mask[5])[1] == 2  # outside and the hole


def test_the_change_is_the_segment_in_the_box_around_all_that_changed():
    start = cut_in_half()
    editing = session(start)
    change = editing.include([[38, 16, 5]])
    everywhere = editing.mask != start
    i0, i1, j0, j1, k0, k1 = change.box
    assert everywhere[k0 : k1 + 1, j0 : j1 + 1, i0 : i1 + 1].sum() == everywhere.sum() > 0
    assert (k0, k1) == (5, 5) and all(everywhere.take(edge, axis).any() for edge, axis in ((j0, 1), (i1, 2)))
    assert np.array_equal(crop(editing.mask, change.box), change.mask)


def test_a_click_that_changes_nothing_has_an_empty_box():
    editing = session(TRUTH)
    editing.confirm_slice(5)
    assert editing.confirm_slice(5).box == EMPTY_EXTENT


def test_positions_are_rounded_to_the_nearest_voxel():
    editing = session()
    editing.stroke([[32.6, 16.4, 5.2]], True)
    assert editing.mask[5, 16, 33]


@pytest.mark.parametrize("point", [(-1, 3, 4), (56, 3, 4), (3, 40, 4), (3, 3, 9), (np.nan, 3, 4)])
def test_a_point_outside_is_refused_and_changes_nothing(point):
    editing = session(TRUTH)
    with pytest.raises(InputError, match="outside the image of 56 × 40 × 9 voxels"):
        editing.include([MIDDLE, point])
    assert np.array_equal(editing.mask, TRUTH) and editing.revision == 0


def test_a_stroke_that_leaves_the_image_is_cut_and_that_is_said():
    change = session(TRUTH).stroke([[55, 3, 4], [56, 3, 4], [57, 3, 4]], True)
    assert change.sentences == ("2 voxels of the stroke lie outside the image and were left out.",)


def test_of_contradictory_strokes_the_newest_counts_and_that_is_said():
    editing = session(TRUTH)
    line = [[i, 16, 5] for i in range(28, 36)]
    editing.stroke(line, True)
    change = editing.stroke(line[:3], False)
    assert any("3 voxels in slice 5 had been drawn the other way; the newest counts." in s for s in change.sentences)
    assert not editing.mask[5, 16, 28:31].any() and editing.mask[5, 16, 31:36].all()


# What a person said stays


actions = st.lists(
    st.tuples(
        st.sampled_from(("include", "exclude", "stroke in", "stroke out", "confirm", "absent", "spread", "box")),
        st.integers(0, SHAPE[2] - 1),
        st.integers(0, SHAPE[1] - 1),
        st.integers(0, SHAPE[0] - 1),
    ),
    min_size=2,
    max_size=6,
)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(actions=actions, half=st.booleans())
def test_what_was_drawn_or_confirmed_is_never_changed_by_the_model(actions, half):
    editing = session(cut_in_half() if half else None)
    said = np.zeros(SHAPE, np.int8)  # 1 inside, -1 outside
    confirmed: dict[int, np.ndarray] = {}
    for kind, i, j, k in actions:
        line = np.array([[min(i + step, SHAPE[2] - 1), j, k] for step in range(6)])
        if kind in ("include", "exclude"):
            getattr(editing, kind)([[i, j, k]])
            said[k, j, i] = 1 if kind == "include" else -1
            confirmed.pop(k, None)
        elif kind.startswith("stroke"):
            editing.stroke(line, kind == "stroke in")
            said[line[:, 2], line[:, 1], line[:, 0]] = 1 if kind == "stroke in" else -1
            confirmed.pop(k, None)
        elif kind == "confirm":
            editing.confirm_slice(k)
            confirmed[k] = editing.mask[k].copy()
        elif kind == "absent":
            editing.not_in_slice(k)
            said[k], confirmed[k] = 0, np.zeros(SHAPE[1:], bool)
        elif kind == "box":
            editing.box((min(i, 40), min(i, 40) + 12, min(j, 28), min(j, 28) + 10, k, k))
        else:
            editing.spread()
        assert editing.mask[said == 1].all() and not editing.mask[said == -1].any()
        assert all(np.array_equal(editing.mask[k], mask) for k, mask in confirmed.items())


def test_drawing_in_a_confirmed_slice_takes_the_confirmation_back_and_says_so():
    editing = session(cut_in_half())
    editing.confirm_slice(5)
    change = editing.include([[38, 16, 5]])
    assert "Slice 5 had been confirmed; that is taken back by drawing in it." in change.sentences
    assert editing.mask[5, 16, 38]


def test_what_another_tool_drew_is_kept_as_drawn():
    editing = session(cut_in_half())
    repaired = cut_in_half()
    repaired[5] = TRUTH[5]
    editing.redraw(repaired)
    assert np.array_equal(editing.mask, repaired)
    editing.confirm_slice(4)
    editing.spread()
    drawn = repaired[5] != cut_in_half()[5]
    assert editing.mask[5][drawn].all()


# Other segments, sides


def test_an_excluding_structure_is_never_entered_another_only_when_asked():
    other = np.zeros_like(TRUTH)
    other[:, :, 38:] = True
    point = [[36, 16, 5]]
    free = session(cut_in_half(), name="liver", others=[OtherSegment("my drawing", other)])
    free.include(point)
    assert (free.mask & other).any()
    for more in (
        {"name": "liver", "others": [OtherSegment("spleen", other)]},
        {"name": "liver", "others": [OtherSegment("my drawing", other)], "stay_out": True},
    ):
        editing = session(cut_in_half(), **more)
        editing.include(point)
        assert not (editing.mask & other).any() and editing.mask[5, 16, 36]


def test_a_person_may_draw_inside_another_segment():
    editing = session(cut_in_half(), others=[OtherSegment("x", np.ones_like(TRUTH))], stay_out=True)
    editing.stroke([[38, 16, 5]], True)
    assert editing.mask[5, 16, 38] and editing.mask.sum() == cut_in_half().sum() + 1


def test_the_other_side_of_the_body_is_entered_only_by_a_person_and_that_is_said():
    mask = np.zeros((5, 40, 80), bool)
    mask[1:4, 12:28, 14:28] = mask[1:4, 12:28, 52:66] = True
    volume = scan(mask, np.diag([1.0, 1.0, 5.0, 1.0]))
    left = mask.copy()
    left[:, :, :40] = False
    editing = EditingSession(volume, ENGINE, left, name="left kidney")
    assert not editing.include([[58, 20, 2]]).sentences
    change = editing.include([[20, 20, 2]])
    assert change.sentences == ("That lies on the other side of the body than the name left kidney says.",)
    assert editing.mask[2, 20, 20]


# Boxes


def test_a_box_in_one_slice_draws_there_and_not_elsewhere():
    editing = session()
    rows, columns = np.nonzero(TRUTH[5])
    change = editing.box((columns.min() - 1, columns.max() + 1, rows.min() - 1, rows.max() + 1, 5, 5))
    assert change.slices == (5,) and dice(editing.mask[5], TRUTH[5]) > 0.8


def test_a_box_through_slices_fills_them_and_nothing_outside_it():
    editing = session()
    k, j, i = np.nonzero(TRUTH)
    editing.box((i.min() - 1, i.max() + 1, j.min() - 1, j.max() + 1, 3, 6))
    assert editing.mask[3:7].any(axis=(1, 2)).all() and not editing.mask[[0, 1, 2, 7, 8]].any()
    assert dice(editing.mask[3:7], TRUTH[3:7]) > 0.75


def test_a_box_outside_is_refused():
    with pytest.raises(InputError, match="box lies outside"):
        session().box((60, 70, 3, 9, 2, 2))


# Back and forth


def test_every_revision_can_be_returned_to_and_forward_again():
    editing = session(cut_in_half())
    masks = [editing.mask.copy()]
    for action in (
        lambda: editing.include([[38, 16, 5]]),
        lambda: editing.not_in_slice(1),
        lambda: editing.confirm_slice(5),
        lambda: editing.spread(),
    ):
        action()
        masks.append(editing.mask.copy())
    for revision in (2, 0, 4, 3, 1):
        change = editing.return_to(revision)
        assert np.array_equal(editing.mask, masks[revision]) and change.revision == revision
    assert np.array_equal(crop(masks[1], change.box), change.mask)


def test_what_was_said_after_a_revision_is_taken_back_with_it():
    editing = session(cut_in_half())
    editing.stroke([[4, 36, 5]], True)
    editing.return_to(0)
    editing.exclude([[5, 36, 5]])
    assert not editing.mask[5, 36, 4]


def test_a_new_action_replaces_the_revisions_ahead():
    editing = session(cut_in_half())
    editing.include([MIDDLE])
    ahead = editing.revision
    editing.return_to(0)
    editing.include([[30, 16, 4]])
    with pytest.raises(SessionLost):
        editing.return_to(ahead)


def test_a_spread_that_is_ended_changes_nothing():
    class Ended(Exception):
        pass

    def end(*_, **__):
        raise Ended

    editing = session(cut_in_half())
    editing.include([[38, 16, 5]])
    before, revision = editing.mask.copy(), editing.revision
    with pytest.raises(Ended):
        editing.spread(end)
    assert np.array_equal(editing.mask, before) and editing.revision == revision


# What it starts from


def test_every_axis_can_run_through_the_slices():
    cube = organ((24, 24, 24))
    volume = scan(cube, OBLIQUE @ np.diag([1, 1, 0.2, 1]))
    place = [int(n) for n in np.argwhere(cube).mean(0)[::-1]]
    for through in range(3):
        editing = EditingSession(volume, ENGINE, through=through)
        change = editing.include([place])
        assert editing.through == through and change.slices == (place[through],)
        assert editing.mask[place[2], place[1], place[0]]
        low, high = change.box[2 * through], change.box[2 * through + 1]
        assert low == high == place[through]


def test_no_slice_is_encoded_twice():
    forget_embeddings()
    own = engine()
    for _ in range(2):
        editing = EditingSession(VOLUME, own, cut_in_half())
        editing.include([[38, 16, 5]])
        editing.confirm_slice(5)
        editing.spread()
    assert len(own.decoder.embedded) == len(set(own.decoder.embedded)) <= SHAPE[0]


def test_an_image_that_changed_is_refused():
    editing = session(TRUTH)
    editing.require(scan(TRUTH))
    with pytest.raises(InputError, match="image has changed"):
        editing.require(scan(TRUTH, seed=1))


def test_a_mask_of_another_size_is_refused():
    with pytest.raises(InputError, match="The mask has 56 × 40 × 8 voxels, the image 56 × 40 × 9"):
        session(TRUTH[:8])


def test_a_mask_on_another_grid_is_resampled_in_world_coordinates_and_that_is_said():
    finer = OBLIQUE @ np.diag([0.5, 0.5, 0.5, 1])
    fine = TRUTH.repeat(2, 0).repeat(2, 1).repeat(2, 2)
    finer[:3, 3] = (OBLIQUE @ [-0.25, -0.25, -0.25, 1])[:3]
    mask, sentences = on_grid_of(VOLUME, fine, finer)
    assert dice(mask, TRUTH) > 0.99 and "another grid" in sentences[0]
    assert on_grid_of(VOLUME, TRUTH, OBLIQUE)[1] == ()


def test_a_mask_beyond_the_image_comes_out_empty_and_that_is_said():
    away = OBLIQUE.copy()
    away[:3, 3] += 900
    mask, sentences = on_grid_of(VOLUME, TRUTH, away)
    assert not mask.any() and sentences[1] == "Nothing of it lies inside the image."
