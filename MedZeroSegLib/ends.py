"""Where a structure ends: slices before its first and after its last that are doubtful beside the rest are emptied.

Text alone tells little of where a long structure passes into its neighbour, so masks reach a few slices too far.
"""

from __future__ import annotations

import numpy as np

from MedZeroSegLib.assembly import KeySlices

ROWS_MIN = 5  # key slices; fewer don't tell what is usual, and the outermost always look a little worse
DOUBTFUL_SHARE = 0.7  # of the usual slice's expected Dice; chosen on training patients


def trim_ends(mask: np.ndarray, rows: np.ndarray, expected: np.ndarray, keys: KeySlices) -> None:
    """Empty the slices at both ends of a mask whose expected Dice is low beside its median, up to the first that isn't.

    Those of fewer than ``ROWS_MIN`` key slices stay.

    Parameters
    ----------
    mask
        bool [N, h, w] on all canonical slices; changed in place.
    rows
        Key slices that hold the structure, increasing; int [m].
    expected
        Expected Dice of each, float [m].
    """
    if len(rows) < ROWS_MIN:
        return
    good = np.flatnonzero(expected >= DOUBTFUL_SHARE * np.median(expected))
    first, last = good[0], good[-1]
    if first > 0:
        _empty(mask[: -(-(keys.indices[rows[first]] + keys.indices[rows[first - 1]]) // 2)])
    if last < len(rows) - 1:
        _empty(mask[(keys.indices[rows[last]] + keys.indices[rows[last + 1]]) // 2 + 1 :])


def _empty(sections: np.ndarray) -> None:
    """Only what is set is written to: the rest of a `blank_mask` takes no memory."""
    sections[sections] = False
