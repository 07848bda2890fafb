"""The segments of a run as they become ready, and a warning where two names have got nearly the same mask."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from MedZeroSegLib.segment import Segment

SAME_MASK_DICE = 0.9  # two different names whose masks agree more than this get a warning


class ReadySegments:
    """The segments that are ready, by their place among the names.

    Two with different names and nearly the same mask get a warning each: one of them is likely wrong.
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
        return bool(2 * np.count_nonzero(first.mask & second.mask) > enough)
