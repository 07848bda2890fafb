"""The slices of a segment in the order in which they deserve a look: the most doubtful first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

DOUBT_MIN = 0.1  # of 0 sure .. 1 doubtful; below it a slice needs no look
LOOKED_AT = ("confirm", "absent")  # corrections that settle a slice


def doubtful_slices(record: Mapping[str, Any]) -> tuple[int, list[int]]:
    """Index axis (0 i, 1 j, 2 k) and the slices along it, from a segment's provenance; none where no doubt is known.

    Of neighbours that are doubtful together only the most doubtful is named; slices that a person has settled are not.
    """
    doubt = np.array(record.get("slice_doubt") or (), float)
    if not doubt.size:
        return 2, []
    corrections = record.get("corrections", ())
    settled = {action.get("slice") for action in corrections if action.get("kind") in LOOKED_AT}
    left = [0.0 if index in settled else value for index, value in enumerate(doubt)]
    padded = np.pad(left, 1)
    peaks = (padded[1:-1] >= DOUBT_MIN) & (padded[1:-1] >= padded[:-2]) & (padded[1:-1] > padded[2:])
    order = sorted(np.flatnonzero(peaks).tolist(), key=lambda index: -left[index])
    return 2 - int(record["slice_axis"]), order


def next_after(order: list[int], last: int | None) -> int | None:
    """The slice after ``last`` in an order, from the beginning again after its end; None where there is none."""
    if not order:
        return None
    return order[(order.index(last) + 1) % len(order)] if last in order else order[0]
