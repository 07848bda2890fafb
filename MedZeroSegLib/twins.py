"""The segments of a run as they become ready, and a warning where two names have got nearly the same mask."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from MedZeroSegLib.segment import Segment
from MedZeroSegLib.vocabulary import ANYWHERE, vocabulary

SAME_MASK_DICE = 0.9  # two different names whose masks agree more than this get a warning


class ReadySegments:
    """The segments that are ready, by their place among the names.

    Two with different names and nearly the same mask get a warning each: one of them is likely wrong. A part may fill
    its whole, as a left kidney does where no other is seen; a finding that fills its organ is told all the same.
    """

    def __init__(self) -> None:
        self._segments: dict[int, Segment] = {}
        self._sizes: dict[int, int] = {}

    def add(self, index: int, segment: Segment) -> Segment:
        """The segment with the warnings that those before it give rise to."""
        self._segments[index], self._sizes[index] = segment, int(np.count_nonzero(segment.mask))
        for other in sorted(self._segments):
            if other != index and self._are_twins(index, other):
                first, second = (self._segments[n].name for n in sorted((index, other)))
                sentence = f"{first} and {second} have nearly the same mask; one of them is likely wrong."
                for n in (index, other):
                    twin = self._segments[n]
                    self._segments[n] = replace(twin, warnings=(*twin.warnings, sentence))
        return self._segments[index]

    def in_order(self) -> list[Segment]:
        """All segments in the order of the names."""
        return [self._segments[index] for index in sorted(self._segments)]

    def _are_twins(self, a: int, b: int) -> bool:
        first, second = self._segments[a], self._segments[b]
        enough = SAME_MASK_DICE * (self._sizes[a] + self._sizes[b])
        if first.name == second.name or 2 * min(self._sizes[a], self._sizes[b]) <= enough:  # settles most pairs
            return False
        if _is_part(first, second) or _is_part(second, first):
            return False
        return bool(2 * np.count_nonzero(first.mask & second.mask) > enough)


def _is_part(part: Segment, whole: Segment) -> bool:
    """Whether a segment's name is that of a part of another one's: of a side of it, or of what lies in it."""
    sides = {segment.modifier for segment in (part, whole)} - {None}
    one, other = _without_side(part), _without_side(whole)
    structure = vocabulary().get(one)
    if structure is None or len(sides) > 1:
        return False
    return one == other or (other in structure.parents and structure.kind not in ANYWHERE)


def _without_side(segment: Segment) -> str:
    side = segment.modifier.meaning.lower() if segment.modifier else ""
    return segment.name.removeprefix(f"{side} ")
