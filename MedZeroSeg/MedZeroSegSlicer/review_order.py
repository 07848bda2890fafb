"""The slices and segments of a result in the order in which they deserve a look: the most doubtful first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .translation import _

DOUBT_MIN = 0.1  # of 0 sure .. 1 doubtful; below it a slice needs no look
LOOKED_AT = ("confirm", "absent")  # corrections that settle a slice


@dataclass(frozen=True)
class Doubtful:
    """One line of the list.

    Attributes
    ----------
    through : index axis (0 i, 1 j, 2 k) along which slices are counted.
    index : the slice; None for a segment of which no single slice stands out.
    doubt : 0 sure .. 1 doubtful.
    expected_dice : of the whole segment; None where it isn't known.
    """

    segment_id: str
    name: str
    through: int
    index: int | None
    doubt: float
    expected_dice: float | None = None

    @property
    def text(self) -> str:
        """What the list shows."""
        percent = round(100 * self.doubt)
        if self.index is None:
            return _("{name}, as a whole - {percent} % doubt").format(name=self.name, percent=percent)
        text = _("{name}, slice {index} - {percent} % doubt")
        return text.format(name=self.name, index=self.index, percent=percent)

    @property
    def tooltip(self) -> str:
        """What is known of the segment."""
        if self.expected_dice is None:
            return _("Click to look at it.")
        text = _("Click to look at it. The whole segment is likely to have a Dice of {dice}.")
        return text.format(dice=f"{self.expected_dice:.2f}")


def review_order(segments: Iterable[tuple[str, str, Mapping[str, Any]]]) -> tuple[Doubtful, ...]:
    """The list of segments: ID, name, and provenance of each that the user hasn't accepted yet."""
    rows = [row for segment in segments for row in _rows(*segment)]
    return tuple(sorted(rows, key=lambda row: -row.doubt))


def _rows(segment_id: str, name: str, record: Mapping[str, Any]) -> list[Doubtful]:
    through, doubts = doubtful_slices(record)
    dice = record.get("expected_dice")
    rows = [Doubtful(segment_id, name, through, index, doubt, dice) for index, doubt in doubts.items()]
    if not rows and dice is not None and 1 - dice >= DOUBT_MIN:
        rows = [Doubtful(segment_id, name, through, None, 1 - dice, dice)]
    return rows


def doubtful_slices(record: Mapping[str, Any]) -> tuple[int, dict[int, float]]:
    """Index axis (0 i, 1 j, 2 k), and the doubt of slices along it, the most doubtful first, from a segment's
    provenance; none where no doubt is known.

    Of neighbours that are doubtful together only the most doubtful is named; slices that a person has settled are not.
    """
    doubt = np.array(record.get("slice_doubt") or (), float)
    if not doubt.size:
        return 2, {}
    corrections = record.get("corrections", ())
    settled = {action.get("slice") for action in corrections if action.get("kind") in LOOKED_AT}
    left = [0.0 if index in settled else value for index, value in enumerate(doubt)]
    padded = np.pad(left, 1)
    peaks = (padded[1:-1] >= DOUBT_MIN) & (padded[1:-1] >= padded[:-2]) & (padded[1:-1] > padded[2:])
    order = sorted(np.flatnonzero(peaks).tolist(), key=lambda index: -left[index])
    return 2 - int(record["slice_axis"]), {index: float(left[index]) for index in order}


def next_after(rows: tuple[Doubtful, ...], last: Doubtful | None) -> Doubtful | None:
    """The line after the one looked at last, from the beginning again after the end; None where there is none.

    A line that is settled meanwhile is followed by the one that was below it.
    """
    if not rows:
        return None
    if last is None:
        return rows[0]
    places = [(row.segment_id, row.index) for row in rows]
    place = (last.segment_id, last.index)
    if place in places:
        return rows[(places.index(place) + 1) % len(rows)]
    return next((row for row in rows if row.doubt <= last.doubt), rows[0])
