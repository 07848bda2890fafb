"""In which slices a structure is, from a whole volume's evidence: features against the volume's mean, then Viterbi.

Reliable for large structures only; what it says is evidence, and no slice at all is an answer.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from scipy.special import expit

SMOOTHING_MM = 5.0  # standard deviation along the slices
STAY, STAY_MM = 0.95, 5.0  # probability that a slice is as the one before, at this distance
SURE = 1e-6  # least probability of either state


def presence(features: np.ndarray, distance_mm: float) -> tuple[np.ndarray, np.ndarray]:
    """Probability of presence in each slice, and the most likely run of states.

    Parameters
    ----------
    features
        [n, f]; each is larger where the structure is present.
    distance_mm
        Between slices.

    Returns
    -------
    float [n] in 0..1 and bool [n]. A single slice has nothing to be compared with and counts as present.
    """
    deviation = features.std(0)
    standard = (features - features.mean(0)) / np.where(deviation > 0, deviation, 1)
    sums = standard.sum(1)
    if len(sums) > 1:
        sums = ndimage.gaussian_filter1d(sums, SMOOTHING_MM / distance_mm, mode="nearest")
    probability = expit(sums / np.sqrt(features.shape[1]))  # as if the features were independent
    return probability, most_likely_run(probability, STAY ** (distance_mm / STAY_MM))


def most_likely_run(probability: np.ndarray, stay: float) -> np.ndarray:
    """Viterbi's path through two states, absent and present; bool [n]. Ties are taken as present."""
    certain = np.clip(probability, SURE, 1 - SURE)
    emission = np.log(np.stack((1 - certain, certain), 1))
    move = np.log(np.array([[stay, 1 - stay], [1 - stay, stay]]).clip(SURE))
    best = emission[0]
    came_from = np.zeros((len(certain), 2), int)
    for k in range(1, len(certain)):
        ways = best[:, None] + move  # from state, to state
        came_from[k] = np.where(ways[1] >= ways[0], 1, 0)
        best = ways.max(0) + emission[k]
    state = int(best[1] >= best[0])
    path = [state]
    for k in range(len(certain) - 1, 0, -1):
        state = int(came_from[k, state])
        path.append(state)
    return np.array(path[::-1], bool)
