"""Which key slices are encoded: in long volumes every second first, then those near where an asked structure showed.

What a structure's mask is made of depends on its own evidence alone, never on what else was asked or is at hand. How
much is saved depends on how surely the head tells slices apart: of a trunk CT of 57 key slices that of `lite` had 2 %
left out for names that were found, 18 % for those that weren't, and one slice of one disc was missed.
"""

from __future__ import annotations

import numpy as np

from MedZeroSegLib.saliency import Saliency

KEYS_MIN = 40  # key slices from which the first look leaves some out; in fewer, little is saved
STEP = 2  # every so manieth key slice is looked at first
SHOWN_MIN = 0.2  # evidence in a slice from which its neighbours are looked at too, well below that of presence


def first_rows(count: int) -> np.ndarray:
    """Rows of ``count`` key slices that are looked at in any case, first and last included; int, increasing."""
    if count < KEYS_MIN:
        return np.arange(count)
    return np.unique(np.append(np.arange(0, count, STEP), count - 1))


def own_rows(evidence: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Which key slices count for a structure: the first ones, and all between two of these of which one shows it.

    Parameters
    ----------
    evidence
        float32 [n] of the structure; only that of the first slices is looked at.
    first
        Rows of these, increasing.

    Returns
    -------
    bool [n]
    """
    own = np.zeros(len(evidence), bool)
    own[first] = True
    shown = evidence[first] >= SHOWN_MIN
    for place in np.flatnonzero(shown[:-1] | shown[1:]):
        own[first[place] : first[place + 1]] = True
    return own


def take_in(saliency: Saliency, more: Saliency, rows: np.ndarray) -> None:
    """What was seen in further key slices, bool [n]; in place."""
    saliency.share[rows], saliency.lost[rows] = more.share[rows], more.lost[rows]
    saliency.evidence[rows] = more.evidence[rows]
