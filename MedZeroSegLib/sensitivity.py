"""How little evidence is enough, as one number from 0 to 1; at .5 the thresholds are the preset's own."""

from __future__ import annotations

import math

from MedZeroSegLib.errors import InputError

NEUTRAL = 0.5
LOG_ODDS_SPAN = 4.0  # by which the ends, 0 and 1, lie apart; at 1 the odds that are enough are e² times smaller


def threshold_at(threshold: float, sensitivity: float) -> float:
    """The threshold 0..1 of an evidence, moved: its log odds less ``LOG_ODDS_SPAN`` times (sensitivity - .5).

    One rule for all thresholds. Of .88 it makes .98 at sensitivity 0, .73 at .75 and .50 at 1.
    """
    if sensitivity == NEUTRAL or not 0 < threshold < 1:
        return threshold
    log_odds = math.log(threshold / (1 - threshold)) - LOG_ODDS_SPAN * (sensitivity - NEUTRAL)
    return 1 / (1 + math.exp(-log_odds))


def check_sensitivity(sensitivity: float) -> float:
    """The number itself; raises InputError where it leaves 0..1."""
    if not 0 <= sensitivity <= 1:  # also NaN
        raise InputError(f"The sensitivity {sensitivity:g} isn't between 0 and 1; 0.5 is the usual one.")
    return sensitivity
