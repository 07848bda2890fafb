"""Corrections carried through the volume: outward from what a person corrected, from both sides where it lies between
two such slices, until the structure ends.

Each slice starts from a guess made of its neighbour's outline, the outline between two corrected slices (shape-based
interpolation) and its own mask so far, which counts as much as it proved right where the person has looked. The
corrector then draws it, with the structure's features from the corrected slices of this very patient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import ndimage

from MedZeroSegLib.assembly import signed_distance
from MedZeroSegLib.editing_slice import no_hints, off_canvas, on_canvas, only_at, with_decoder
from MedZeroSegLib.embeddings import FIELD_SHARE, KEY_DISTANCE_MM
from MedZeroSegLib.mask_decoder.corrector import SURE, Correction, anchor_means
from MedZeroSegLib.mask_decoder.lite_medsam import IMAGE_SIZE
from MedZeroSegLib.outlines import Outlines
from MedZeroSegLib.progress import Progress
from MedZeroSegLib.prompts import box_around

if TYPE_CHECKING:
    from MedZeroSegLib.editing import EditingSession

EDGE_PIXELS = 2.0  # of signed distance for one logit of a guess
GUESS_MAX = 4.0  # logits, either sign
REFINED_SHARE, REFINED_TRUSTED = 0.6, 0.2  # of the corrector in a slice, against a guess that isn't or is trusted
REPAIR_KEYS = 1.5  # distances between slices with an embedding over which a click is carried
DECODER_SHARE = 0.5  # of the decoder, against both
LIKENESS = 0.7  # Dice of neighbours, where only one slice has been corrected
RIGHT_MIN = 0.3  # Dice below which a mask is no evidence at all
WORTH_SPAN = 0.1  # Dice: who gains half of it on a slice that is known counts wholly, who loses as much not at all
TRUST_SPAN = 0.4  # Dice by which the one has to surpass the other to decide alone
SEEN_SHARE = 0.5  # of the corrector's own view of a neighbour, against the repair that is carried there
AREA_MIN = 0.15  # of the neighbour's; below, the structure has ended
PIXELS_MIN = 6  # of the canvas
BEYOND_MAX = 0.5  # of the segment's larger part, for the smaller beyond an emptied slice to go with it
ANCHORS_MAX = 3  # nearest slices whose features are used
REACH_MAX = 60  # slices with an embedding, from a correction outward

Tell = Callable[[], None]


@dataclass(frozen=True)
class Anchor:
    """A slice that a person corrected, on the canvas.

    Attributes
    ----------
    mask, before, carried
        bool [256, 256]: now, before a person first said something of it, and when it was last carried to others.
    confirmed
        Whether a person called it right.
    pending
        Whether something of it is still to be carried.
    """

    index: int
    mask: np.ndarray
    before: np.ndarray
    carried: np.ndarray
    confirmed: bool
    pending: bool

    def trust(self, likeness: float) -> float:
        """How far the masks of other slices can be trusted, 0..1: as far as this one's was right before it was
        corrected, against how alike corrected slices are, which is what neighbours' outlines are worth."""
        right = overlap(self.mask, self.before)
        return float(np.clip(0.5 + (right - likeness) / TRUST_SPAN, 0, 1)) if right > RIGHT_MIN else 0.0

    @property
    def emptied(self) -> bool:
        """Whether clicks took away all that had been drawn in it, so that the structure ends before it."""
        return not self.confirmed and not self.mask.any() and bool(self.before.any())

    @property
    def local(self) -> bool:
        """Whether the correction is a repair of a piece, which says nothing of the rest of the mask."""
        return not self.confirmed and bool(self.carried.any())


@dataclass(frozen=True)
class Worth:
    """How far the models' answers are worth their usual shares, 0..1."""

    corrector: float = 1.0
    decoder: float = 1.0


ALL = Worth()


class Spreading:
    """One run through the slices of a session."""

    def __init__(self, session: EditingSession) -> None:
        self.session = session
        self.drawing, self.embeddings = session.drawing, session.embeddings
        self.canvas = session.embeddings.canvas
        self._worth = ALL  # where it is at work now

    def anchors_near(self, index: int) -> np.ndarray | None:
        """Mean embeddings [2, 256] of structure and surroundings in the nearest corrected slices but this; or None."""
        solid = [n for n in self._corrected() if n != index and self.drawing.mask[n].any()]
        nearest = sorted(solid, key=lambda n: abs(n - index))[:ANCHORS_MAX]
        return np.mean([self._mean(n) for n in nearest], 0) if nearest else None

    def _mean(self, n: int) -> np.ndarray:
        """`anchor_means` of a slice, made anew only where its mask has changed."""
        now, known = self._now(n), self.session.means.get(n)
        if known is None or not np.array_equal(known[0], now):
            known = self.session.means[n] = now, anchor_means(self.embeddings.at(n).coarse, now)
        return known[1]

    def run(self, said: list[str], progress: Progress | None) -> None:
        """Carry what was corrected to the other slices."""
        anchors = [self._anchor(n) for n in self._corrected()]
        if not any(anchor.pending for anchor in anchors):
            said.append("Nothing new has been corrected that other slices could follow.")
            return
        for anchor in anchors:
            if anchor.pending and (anchor.emptied or anchor.index in self.drawing.absent):
                self._end_at(anchor)
        legs = self._legs(anchors)
        count = max(1, sum(len(slices) for _, slices, _ in legs))
        done = 0

        def tell() -> None:
            nonlocal done
            done += 1
            if progress:
                progress("spreading", min(1.0, (done - 1) / count), slice=min(done, count), slices=count)

        for first, slices, second in legs:
            if first is not None and second is not None:
                self._between(first, slices, second, tell)
            elif first is not None:
                self._outward(first, slices, tell)
            elif second is not None:
                self._outward(second, slices[::-1], tell)
        self.drawing.pending.clear()

    def _anchor(self, n: int) -> Anchor:
        before, carried = (on_canvas(self.canvas, self.drawing.mask_before(n, since)) for since in (False, True))
        return Anchor(n, self._now(n), before, carried, n in self.drawing.confirmed, n in self.drawing.pending)

    def _corrected(self) -> list[int]:
        return sorted(self.drawing.confirmed | set(self.drawing.hints))

    def _now(self, index: int) -> np.ndarray:
        return on_canvas(self.canvas, self.drawing.mask[index])

    def _legs(self, anchors: list[Anchor]) -> list[tuple[Anchor | None, list[int], Anchor | None]]:
        """The key slices before, between and after the anchors, where one of these is still to be carried."""
        keys = [int(key) for key in self.embeddings.keys]
        ends: list[Anchor | None] = [None, *anchors, None]
        legs = []
        for first, second in zip(ends[:-1], ends[1:], strict=True):
            low = first.index if first else -1
            high = second.index if second else len(self.drawing.mask)
            if (first and first.pending) or (second and second.pending):
                sides = [None if end is None or end.emptied else end for end in (first, second)]
                legs.append((sides[0], [key for key in keys if low < key < high], sides[1]))
        return legs

    def _outward(self, anchor: Anchor, slices: list[int], tell: Tell) -> None:
        """From the last anchor to the end of the volume or of the structure."""
        if not anchor.mask.any():
            return
        before = {n: self.drawing.mask[n].copy() for n in slices[:REACH_MAX]}
        done = [anchor.index]
        for n, logits in self._walk(anchor, slices[:REACH_MAX], tell):
            self._put(n, logits)
            done.append(n)
        self._fill_gaps(done, before, anchor.local)

    def _between(self, first: Anchor, slices: list[int], second: Anchor, tell: Tell) -> None:
        """From both sides, and the nearer side counts more."""
        before = {n: self.drawing.mask[n].copy() for n in slices}
        self._worth = self._worth_between(first, second)
        ahead = dict(self._walk(first, slices, tell, towards=second)) if first.pending else {}
        back = dict(self._walk(second, slices[::-1], tell, towards=first)) if second.pending else {}
        done = [first.index]
        for n in slices:
            answers = [answer for answer in (ahead.get(n), back.get(n)) if answer is not None]
            if not answers:
                continue
            share = (n - first.index) / (second.index - first.index)
            logits = answers[0] if len(answers) == 1 else (1 - share) * answers[0] + share * answers[1]
            if first.confirmed or second.confirmed:
                logits = self._decoded(n, logits, self._trust(first, second))
            self._put(n, logits)
            done.append(n)
        self._worth = ALL
        self._fill_gaps([*done, second.index], before, first.local and second.local)

    def _worth_between(self, first: Anchor, second: Anchor) -> Worth:
        """What the models are worth between two slices that are right, measured on these: from the outline half
        way between them they draw both, and either bring it nearer to what is there or spoil it."""
        if not (first.confirmed and second.confirmed and first.mask.any() and second.mask.any()):
            return ALL
        corrected, decoded = [], []
        half = logits_of(Outlines(first.mask, second.mask).field(0.5))
        for end in (first, second):
            drawn = self._drawn(end.index, half > 0, half)
            before, after = overlap(half > 0, end.mask), overlap(drawn > 0, end.mask)
            corrected.append(after - before)
            decoded.append(overlap(self._decoded(end.index, drawn, 0.0) > 0, end.mask) - after)
        return Worth(*(float(np.clip(0.5 + np.mean(gains) / WORTH_SPAN, 0, 1)) for gains in (corrected, decoded)))

    def _walk(
        self, anchor: Anchor, slices: list[int], tell: Tell, towards: Anchor | None = None
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Slice by slice away from an anchor: index and logits [256, 256], until the structure ends."""
        previous, was = anchor.mask, anchor.carried
        local = anchor.local and (towards is None or towards.local)
        for n in slices:
            tell()
            mine = self._now(n)
            repaired = (mine | (previous & ~was)) & ~(was & ~previous)
            if local and not self._is_near(n, anchor):
                return
            if local:
                spots = (repaired != mine) & ndimage.binary_dilation(previous != was, iterations=1)
                if spots.sum() < PIXELS_MIN:
                    return
                seen = self._drawn(n, mine, signed(mine), 1.0)
                logits = only_at(spots, mine, SEEN_SHARE * seen + (1 - SEEN_SHARE) * signed(repaired))
            elif mine.any() and not anchor.confirmed:
                return  # a person hasn't said anything of this mask
            else:
                trust = self._trust(anchor, towards)
                kept = repaired if self._is_near(n, anchor) else mine
                guess = (1 - trust) * self._shape(n, previous, anchor, towards) + trust * signed(kept)
                logits = self._drawn(n, guess > 0, guess, trust * REFINED_TRUSTED + (1 - trust) * REFINED_SHARE)
                if towards is None:
                    logits = self._decoded(n, logits, trust)
                if towards is None and self._has_ended(n, logits > 0, previous):
                    return
            yield n, logits
            previous, was = logits > 0, mine

    def _is_near(self, n: int, anchor: Anchor) -> bool:
        """Whether a repair can be carried so far: into the next key slice of a thin stack, and not at all where slices
        lie farther apart than key slices should."""
        _, height, width = self.embeddings.shape
        between, tall, wide = self.embeddings.frame.spacing
        reach = REPAIR_KEYS * min(KEY_DISTANCE_MM, FIELD_SHARE * max(height * tall, width * wide))
        return abs(n - anchor.index) * between <= reach

    def _trust(self, anchor: Anchor, towards: Anchor | None) -> float:
        """How far the masks so far count between two anchors, or beyond one."""
        if towards is not None:
            likeness = overlap(anchor.mask, towards.mask)
            return (anchor.trust(likeness) + towards.trust(likeness)) / 2
        others = [n for n in self._corrected() if n != anchor.index and n in self.drawing.confirmed]
        if not others:
            return anchor.trust(LIKENESS)
        nearest = min(others, key=lambda n: abs(n - anchor.index))
        return anchor.trust(overlap(anchor.mask, self._now(nearest)))

    def _shape(self, n: int, previous: np.ndarray, anchor: Anchor, towards: Anchor | None) -> np.ndarray:
        """The outline that the neighbours suggest, as logits: of the one before and of the two ends, which alone count
        where the models draw nothing that could be followed."""
        if towards is None:
            return signed(previous)
        share = (n - anchor.index) / (towards.index - anchor.index)
        between = logits_of(Outlines(anchor.mask, towards.mask).field(share))
        followed = self._worth.corrector / 2
        return followed * signed(previous) + (1 - followed) * between

    def _drawn(self, n: int, mask: np.ndarray, guess: np.ndarray, share: float = REFINED_SHARE) -> np.ndarray:
        """Logits [256, 256] of a slice that starts from a guess; the guess where that is empty."""
        if not mask.any():
            return guess
        seen, nothing = self.embeddings.at(n), no_hints()
        correction = Correction(seen.picture, mask, nothing.include, nothing.exclude, self.anchors_near(n))
        refined = self.session.corrector.logits(correction, seen.coarse)
        share = share * self._worth.corrector
        return share * refined + (1 - share) * guess

    def _decoded(self, n: int, logits: np.ndarray, trust: float) -> np.ndarray:
        """The logits with the decoder's, which count less where the mask so far is trusted."""
        share = DECODER_SHARE * (1 - trust) * self._worth.decoder
        return with_decoder(self.embeddings.at(n), logits, self.session.decoder, share)

    def _has_ended(self, n: int, mask: np.ndarray, previous: np.ndarray) -> bool:
        """Whether what was found is too small, or looks more like what surrounds the structure than like it."""
        if mask.sum() < max(PIXELS_MIN, AREA_MIN * previous.sum()):
            return True
        known = self.anchors_near(n)
        if known is None:
            return False
        here = anchor_means(self.embeddings.at(n).coarse, mask)[0]
        middle = known.mean(0)
        own, ring = (float((here - middle) @ (side - middle)) for side in known)
        return own < ring

    def _put(self, n: int, logits: np.ndarray) -> None:
        before = self._now(n)
        new = off_canvas(self.canvas, logits.astype(np.float32), before, self.drawing.mask[n])
        self.session.write(n, self.session.allowed(n, new))

    def _end_at(self, anchor: Anchor) -> None:
        """Empty what lies beyond a slice that the structure isn't in: the side on which a person has corrected
        nothing, if not both; of two such sides the smaller one, where it is small enough.

        Clicks that emptied a slice tell only of what hung together with it, and never take the larger side.
        """
        filled = np.asarray(self.drawing.mask.any(axis=(1, 2)))
        sides = [np.arange(anchor.index)[::-1], np.arange(anchor.index + 1, len(filled))]
        if anchor.emptied:
            sides = [side[np.logical_and.accumulate(filled[side])] for side in sides]
        known = {n for n in self._corrected() if filled[n]}
        free = [side for side in sides if not known & set(side.tolist())]
        if anchor.emptied or len(free) == 2:
            sizes = [int(self.drawing.mask[side].sum()) for side in sides]
            smaller = sides[int(np.argmin(sizes))]
            free = [side for side in free if side is smaller and min(sizes) <= BEYOND_MAX * max(sizes)]
        for n in free[0] if free else ():
            if filled[n]:
                self.session.write(int(n), np.zeros_like(self.drawing.mask[n]))

    def _fill_gaps(self, done: list[int], before: dict[int, np.ndarray], local: bool) -> None:
        """Slices between two key slices get the outline between theirs, where one of these has changed."""
        done = sorted(done)
        for low, high in zip(done[:-1], done[1:], strict=True):
            ends = [self.drawing.mask[n] for n in (low, high)]
            changed = [before[n] != end for n, end in zip((low, high), ends, strict=True) if n in before]
            zone = np.any(changed, axis=0) if changed else np.zeros_like(ends[0])
            if high - low < 2 or not zone.any():
                continue
            zone = ndimage.binary_dilation(zone, iterations=2) if local else np.ones_like(zone)
            outlines = Outlines(ends[0], ends[1])
            for n in range(low + 1, high):
                between = outlines.field((n - low) / (high - low)) >= 0
                new = np.where(zone, between, self.drawing.mask[n])
                self.session.write(n, self.session.allowed(n, new))

    # A box

    def fill_box(self, low: np.ndarray, high: np.ndarray, said: list[str]) -> None:
        """Draw the structure in a box, first and last (slice, row, column), inclusive."""
        middle = int(low[0] + high[0]) // 2
        inside = np.zeros(self.drawing.mask.shape[1:], bool)
        inside[low[1] : high[1] + 1, low[2] : high[2] + 1] = True
        framed = on_canvas(self.canvas, inside)
        if not framed.any():
            said.append("The box is too small for anything to be drawn in it.")
            return
        drawn = self._boxed(middle, framed)
        if not (drawn > 0).any():
            said.append("Nothing stands out in the box; draw it closer around the structure, or paint.")
            return
        self.session.mark_corrected(middle)
        self._put_boxed(middle, drawn, inside)
        slices = [int(key) for key in self.embeddings.keys if low[0] <= key <= high[0]]
        done = [middle]
        before = {n: self.drawing.mask[n].copy() for n in slices}
        for side in ([n for n in slices if n > middle], [n for n in slices if n < middle][::-1]):
            previous = drawn > 0
            for n in side:
                logits = np.where(framed, self._drawn(n, previous, signed(previous)), -SURE)
                if self._has_ended(n, logits > 0, previous):
                    break
                self._put_boxed(n, logits, inside)
                done.append(n)
                previous = logits > 0
        self._fill_gaps(done, before, local=False)

    def _boxed(self, n: int, framed: np.ndarray) -> np.ndarray:
        """The decoder's logits for a box, negative outside it."""
        box = torch.tensor([box_around(framed, IMAGE_SIZE)], dtype=torch.float32)
        coarse = torch.from_numpy(self.embeddings.at(n).coarse)[None]
        drawn, _ = self.session.decoder.decode(coarse, box, None)
        return np.where(framed, drawn[0, 0].float().cpu().numpy(), np.float32(-SURE))

    def _put_boxed(self, n: int, logits: np.ndarray, inside: np.ndarray) -> None:
        """The slice's mask with what was drawn in the box, in place of the pieces that the box touches."""
        mask = self.drawing.mask[n]
        labels, _ = ndimage.label(mask)
        touched = np.unique(labels[inside & mask])
        kept = mask & ~np.isin(labels, touched[touched > 0])
        nothing = np.zeros((IMAGE_SIZE, IMAGE_SIZE), bool)
        drawn = off_canvas(self.canvas, logits.astype(np.float32), nothing, np.zeros_like(mask)) & inside
        self.session.write(n, self.session.allowed(n, kept | drawn))


def overlap(first: np.ndarray, second: np.ndarray) -> float:
    """Dice of two masks; 1 where both are empty."""
    total = int(first.sum()) + int(second.sum())
    return 2 * int((first & second).sum()) / total if total else 1.0


def signed(mask: np.ndarray) -> np.ndarray:
    """A mask [s, s] as logits that grow with the distance from its outline."""
    if not mask.any():
        return np.full(mask.shape, -GUESS_MAX, np.float32)
    return logits_of(signed_distance(mask))


def logits_of(distance: np.ndarray) -> np.ndarray:
    """Signed distances from an outline as logits."""
    return np.clip(distance / EDGE_PIXELS, -GUESS_MAX, GUESS_MAX)
