"""Correcting one segment by hand: clicks, strokes, boxes and confirmed slices change it, and the volume follows.

What a person drew or confirmed is never changed by the model afterwards.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from MedZeroSegLib.assembly import leftness, midline_of, sides_visible
from MedZeroSegLib.drawing import FREE, INSIDE, OUTSIDE, Drawing, Revisions
from MedZeroSegLib.edit_change import Change, Grid, changed_box
from MedZeroSegLib.editing_slice import (
    CLICK_RADIUS,
    centres_on,
    correct_slice,
    marked,
    no_hints,
    off_canvas,
    on_canvas,
    only_at,
    pieces_in_whose_middle,
    spots_on,
    with_pushed,
    with_text,
)
from MedZeroSegLib.encoding import kept_volume
from MedZeroSegLib.errors import InputError
from MedZeroSegLib.extent import Extent, crop
from MedZeroSegLib.mask_decoder.corrector import SURE, load_corrector, one_thread
from MedZeroSegLib.presets import Engine
from MedZeroSegLib.progress import Progress
from MedZeroSegLib.queries import resolve
from MedZeroSegLib.slice_embeddings import SliceEmbeddings
from MedZeroSegLib.slices import slice_frame
from MedZeroSegLib.spreading import Spreading
from MedZeroSegLib.text_prior import TextPrior
from MedZeroSegLib.vocabulary import may_overlap
from MedZeroSegLib.volume import Volume

KEPT_EMBEDDINGS = 2  # volumes, axes or windows
_embeddings: OrderedDict[tuple[Any, ...], SliceEmbeddings] = OrderedDict()


@dataclass(frozen=True, eq=False)
class OtherSegment:
    """Another segment of the same image: its name, and its mask bool [k, j, i]."""

    name: str
    mask: np.ndarray


class EditingSession:
    """One segment under correction. Every action returns the `Change` it made and is one revision.

    Parameters
    ----------
    volume
        What is looked at; it may not change meanwhile (see ``require``).
    engine
        A preset whose decoder is LiteMedSAM ("lite", "lite-research").
    mask
        bool [k, j, i] on the volume's grid, from anywhere; None to begin with nothing.
    name
        As typed; "" for a structure without a name. A name that the model was trained on lets the text help.
    others
        The other segments. Those which the vocabulary says can't share a place with this one are never entered.
    stay_out
        Whether the model may enter none of them. What a person draws stays in any case.
    through
        Index axis (0 i, 1 j, 2 k) that runs through the slices; None for the volume's own.

    Attributes
    ----------
    revision
        Counts the actions; see ``return_to``.
    through
        The index axis that runs through the slices; slices are counted along it, from 0, as the volume stores them.

    Raises
    ------
    InputError
        When a mask isn't on the volume's grid, or the preset's decoder isn't LiteMedSAM.
    """

    def __init__(
        self,
        volume: Volume,
        engine: Engine,
        mask: np.ndarray | None = None,
        *,
        name: str = "",
        others: Sequence[OtherSegment] = (),
        stay_out: bool = False,
        through: int | None = None,
    ) -> None:
        if engine.preset.zero_shot is not None:
            raise InputError(f"Corrections aren't made with the preset {engine.preset.name!r}; use lite.")
        self.volume, self.engine, self.name = volume, engine, name
        self.frame = slice_frame(volume, through)
        self.grid = Grid(self.frame, volume.shape)
        self.through = 2 - self.frame.permutation[0]
        self.text = TextPrior(name, engine, volume, self.frame.plane)
        self.embeddings = embeddings_of(volume, self.text.window, engine, through)
        self.drawing = Drawing(self._canonical(mask, "mask").copy() if mask is not None else self._nothing())
        self.revisions = Revisions(self.drawing)
        self.corrector = load_corrector(engine.device)
        self.decoder = engine.decoder.on(self.embeddings.canvas)
        # Of corrected slices the masks, and their mean embeddings.
        self.means: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._closed = self._closed_by(others, stay_out)
        self._side = self._sides()

    @property
    def revision(self) -> int:
        return self.revisions.now

    @property
    def mask(self) -> np.ndarray:
        """The segment, bool [k, j, i]; a read-only view."""
        view = self.frame.inverse(self.drawing.mask).view()
        view.flags.writeable = False
        return view

    def require(self, volume: Volume) -> None:
        """Raises InputError when a volume isn't the one that is being corrected any more."""
        if volume is not self.volume and volume.fingerprint != self.volume.fingerprint:
            raise InputError("The image has changed since the correction began; start correcting again on this image.")

    # What a person does

    def include(self, points: np.ndarray) -> Change:
        """Clicks inside the structure: positions (i, j, k) in voxels [n, 3], which may be fractions.

        Raises InputError, changing nothing, for a point outside the image.
        """
        return self._draw(self.grid.canonical(points), inside=True, radius=CLICK_RADIUS)

    def exclude(self, points: np.ndarray) -> Change:
        """Clicks outside the structure; as ``include``."""
        return self._draw(self.grid.canonical(points), inside=False, radius=CLICK_RADIUS)

    def stroke(self, points: np.ndarray, include: bool) -> Change:
        """Voxels (i, j, k) [n, 3] that were painted in or out; those outside the image are left out, and that is said.

        Raises InputError when all of them are.
        """
        points = np.asarray(points, dtype=np.float64).reshape(-1, 3)
        inside = self.grid.holds(points)
        if not inside.any():
            raise InputError("The stroke lies outside the image; paint inside the image.")
        outside = int((~inside).sum())
        said = (f"{outside} voxels of the stroke lie outside the image and were left out.",) if outside else ()
        return self._draw(self.grid.canonical(points[inside]), include, radius=0, said=said)

    def box(self, box: Extent) -> Change:
        """The structure lies in this box: i0, i1, j0, j1, k0, k1, inclusive; clipped to the image.

        In one slice it is drawn there; through several it is drawn in the middle and followed both ways. Pieces of the
        segment that the box touches are cut at its sides; others stay. Raises InputError for a box outside the image.
        """
        low, high = self._clipped(box)
        with self._change() as said:
            self._spreading().fill_box(low, high, said)
        return self._changed(said)

    def confirm_slice(self, index: int) -> Change:
        """The slice is right as it is: the model doesn't change it any more and learns from it."""
        n = self.grid.canonical_slice(index)
        with self._change() as said:
            self.drawing.remember(n)
            self.drawing.confirmed |= {n}
            self.drawing.absent = self.drawing.absent - {n} if self.drawing.mask[n].any() else self.drawing.absent | {n}
        return self._changed(said)

    def not_in_slice(self, index: int) -> Change:
        """The structure isn't in this slice, which is emptied and stays empty."""
        n = self.grid.canonical_slice(index)
        with self._change() as said:
            if (self.drawing.drawn[n] == INSIDE).any():
                said.append(f"What was drawn in slice {index} is taken back: the structure isn't in it.")
            self.drawing.remember(n)
            self.revisions.touch(n)
            self.drawing.mask[n] = False
            self.drawing.drawn[n] = FREE
            self.drawing.hints.pop(n, None)
            self.drawing.confirmed |= {n}
            self.drawing.absent |= {n}
        return self._changed(said)

    def redraw(self, mask: np.ndarray | None) -> Change:
        """The segment as other tools left it, bool [k, j, i] or None for empty: what differs was drawn by a person."""
        new = self._nothing() if mask is None else self._canonical(mask, "mask")
        with self._change() as said:
            for n in map(int, np.flatnonzero((new != self.drawing.mask).any(axis=(1, 2)))):
                self.drawing.remember(n)
                self.revisions.touch(n)
                differs = new[n] != self.drawing.mask[n]
                self.drawing.drawn[n][differs & new[n]] = INSIDE
                self.drawing.drawn[n][differs & ~new[n]] = OUTSIDE
                self._hint(n, np.argwhere(differs & new[n]), True, 0)
                self._hint(n, np.argwhere(differs & ~new[n]), False, 0)
                self.drawing.mask[n] = new[n]
        return self._changed(said)

    def spread(self, progress: Progress | None = None) -> Change:
        """Carry what was corrected to the other slices.

        Outward from corrected and confirmed slices, between two of them from both sides, until the structure ends or
        nothing changes any more. ``progress`` is told "spreading" before each slice and may raise to end it; then
        nothing has changed.
        """
        with self._change() as said:
            self._spreading().run(said, progress)
        return self._changed(said)

    def return_to(self, revision: int) -> Change:
        """Go back, or forward again, to a revision; what was drawn and confirmed after it is taken back with it.

        Raises SessionLost for a revision that isn't kept: the last fifty are, and a new action replaces those ahead.
        """
        if revision == self.revision:
            return self._since({}, ())
        before = self.drawing.mask.copy()
        self.revisions.go_to(revision)
        return self.change_since(before)

    def change_since(self, before: np.ndarray) -> Change:
        """What differs from the canonical mask ``before``, bool [n, h, w]."""
        changed = np.flatnonzero((before != self.drawing.mask).any(axis=(1, 2)))
        return self._since({int(n): before[n] for n in changed}, ())

    # How it is done

    @contextmanager
    def _change(self) -> Iterator[list[str]]:
        with self.revisions.change(), one_thread():
            said: list[str] = []
            yield said

    def _draw(self, places: np.ndarray, inside: bool, radius: int, said: tuple[str, ...] = ()) -> Change:
        with self._change() as sentences:
            sentences += said
            for n in np.unique(places[:, 0]):
                self._draw_in(int(n), places[places[:, 0] == n, 1:], inside, radius, sentences)
        return self._changed(sentences)

    def _draw_in(self, n: int, places: np.ndarray, inside: bool, radius: int, said: list[str]) -> None:
        """Draw in one slice, places (row, column) [m, 2], and let the model follow there."""
        index = self.grid.canonical_slice(n)
        self.drawing.remember(n)
        self.revisions.touch(n)
        drawn = self.drawing.drawn[n]
        mine, other = (INSIDE, OUTSIDE) if inside else (OUTSIDE, INSIDE)
        contrary = int((drawn[places[:, 0], places[:, 1]] == other).sum())
        if contrary:
            what = "1 voxel" if contrary == 1 else f"{contrary} voxels"
            said.append(f"{what} in slice {index} had been drawn the other way; the newest counts.")
        if n in self.drawing.confirmed:
            self.drawing.confirmed -= {n}
            self.drawing.absent -= {n}
            said.append(f"Slice {index} had been confirmed; that is taken back by drawing in it.")
        drawn[places[:, 0], places[:, 1]] = mine
        spots = self._hint(n, places, inside, radius)
        clicks = centres_on(self.embeddings.canvas, places if radius else places[:0])
        other_side = inside and not self._on_named_side(n, places)
        if other_side:
            said.append(f"That lies on the other side of the body than the name {self.name} says.")
        self.write(n, self.allowed(n, self._corrected(n, spots, clicks, inside), other_side))

    def _hint(self, n: int, places: np.ndarray, inside: bool, radius: int) -> np.ndarray:
        spots = spots_on(self.embeddings.canvas, places, radius) if len(places) else no_hints().include
        self.drawing.hints[n] = marked(self.drawing.hints.get(n) or no_hints(), spots, inside)
        return spots

    def _corrected(self, n: int, spots: np.ndarray, clicks: np.ndarray, inside: bool) -> np.ndarray:
        """The slice's mask bool [h, w] as the models draw it with all hints, the newest of which are spots bool
        [256, 256] on the canvas around clicks (row, column) [m, 2] there."""
        canvas, seen = self.embeddings.canvas, self.embeddings.at(n)
        before = on_canvas(canvas, self.drawing.mask[n])
        share = self.text.share(seen.pixels) if len(clicks) or not before.any() else None  # of no use to strokes
        anchors = self._spreading().anchors_near(n)
        logits = correct_slice(seen, before, self.drawing.hints[n], self.corrector, self.decoder, share, anchors)
        logits = with_pushed(logits, before, clicks, inside)
        if share is not None:
            logits = with_text(logits, before, share, clicks, inside)
        if before.any():
            logits = only_at(spots, before, np.where(spots, SURE if inside else -SURE, logits))
        if not inside:
            whole = pieces_in_whose_middle(before, clicks)
            most = 2 * whole.sum() > before.sum() and self.drawing.mask.any(axis=(1, 2)).sum() == 1
            logits = logits if most else np.where(whole, -SURE, logits).astype(np.float32)  # nobody means nearly all
        return off_canvas(canvas, logits, before, self.drawing.mask[n])

    def _on_named_side(self, n: int, places: np.ndarray) -> bool:
        """Whether places (row, column) [m, 2] of a slice lie on the side of the body that the name has, if any."""
        if self._side is None:
            return True
        named = np.broadcast_to(self._side, self.drawing.mask.shape)[n]
        return bool(named[places[:, 0], places[:, 1]].all())

    def allowed(self, n: int, new: np.ndarray, other_side: bool = False) -> np.ndarray:
        """A slice's new mask without what the model may not add: others' places, and the patient's other side."""
        added = new & ~self.drawing.mask[n]
        if self._closed is not None:
            new = new & ~(added & self._closed[n])
        if self._side is not None and not other_side:
            new = new & ~(added & ~np.broadcast_to(self._side, self.drawing.mask.shape)[n])
        return new

    def write(self, n: int, new: np.ndarray) -> None:
        """Put a slice's new mask in its place, as far as a person allows it."""
        self.revisions.touch(n)
        self.drawing.mask[n] = self.drawing.obey(n, new)

    def mark_corrected(self, n: int) -> None:
        """The slice counts as corrected, so that others follow it."""
        self.drawing.remember(n)
        self.drawing.hints.setdefault(n, no_hints())

    def _spreading(self) -> Spreading:
        return Spreading(self)

    def _changed(self, said: Sequence[str]) -> Change:
        return self._since(self.revisions.changed_slices(self.revision), tuple(said))

    def _since(self, before: dict[int, np.ndarray], sentences: tuple[str, ...]) -> Change:
        box, slices = changed_box(self.grid, before, self.drawing.mask)
        return Change(box, crop(self.mask, box).copy(), slices, self.revision, sentences)

    def _nothing(self) -> np.ndarray:
        return np.zeros(self.grid.canonical_shape, bool)

    def _canonical(self, mask: np.ndarray, what: str) -> np.ndarray:
        if mask.shape != self.volume.shape:
            size, wanted = (" × ".join(map(str, shape[::-1])) for shape in (mask.shape, self.volume.shape))
            raise InputError(f"The {what} has {size} voxels, the image {wanted}; give it on the image's grid.")
        return self.frame.forward(mask.astype(bool, copy=False))

    def _clipped(self, box: Extent) -> tuple[np.ndarray, np.ndarray]:
        """First and last (slice, row, column) of a box, inclusive."""
        size = np.array(self.volume.shape[::-1])
        first, last = np.sort(np.array(box).reshape(3, 2), axis=1).T
        if (last < 0).any() or (first >= size).any():
            raise InputError("The box lies outside the image; draw it around the structure.")
        corners = self.grid.canonical(np.stack((np.clip(first, 0, size - 1), np.clip(last, 0, size - 1))))
        return corners.min(0), corners.max(0)

    def _closed_by(self, others: Sequence[OtherSegment], stay_out: bool) -> np.ndarray | None:
        """Where the model may not go because of other segments, bool [n, h, w]; None for everywhere free."""
        structure = self.text.query.structure if self.text.query else None
        closed = None
        for other in others:
            known = resolve([other.name])[0].structure if other.name.strip() else None
            excluded = structure is not None and known is not None and structure.name != known.name
            if stay_out or (excluded and not may_overlap(structure.name, known.name)):  # type: ignore[union-attr]
                mask = self._canonical(other.mask, f"mask of {other.name}")
                closed = mask.copy() if closed is None else closed | mask
        return closed

    def _sides(self) -> np.ndarray | None:
        """Where a structure with a side may lie, broadcastable to [n, h, w]; None where its name has no side."""
        query = self.text.query
        if query is None or not query.side or not sides_visible(self.frame, self.grid.canonical_shape[0]):
            return None
        position = leftness(self.volume, self.frame)
        middle = midline_of(self.embeddings.body, position, self.drawing.mask).position
        return position > middle if query.side == "left" else position <= middle


def embeddings_of(
    volume: Volume, window: tuple[float, float] | None, engine: Engine, through: int | None
) -> SliceEmbeddings:
    """The embeddings of a volume's slices, shared by all corrections of it; what the line has encoded is used."""
    frame = slice_frame(volume, through)
    key = (volume.fingerprint, volume.modality, volume.dimension, window, engine.preset.name, engine.device, frame)
    if key not in _embeddings:
        kept = kept_volume(volume, window, engine)
        _embeddings[key] = SliceEmbeddings(volume, window, engine, through, kept)
        while len(_embeddings) > KEPT_EMBEDDINGS:
            _embeddings.popitem(last=False)
    _embeddings.move_to_end(key)
    return _embeddings[key]


def forget_embeddings() -> None:
    """Free the embeddings that corrections have made."""
    _embeddings.clear()
