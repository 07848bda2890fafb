"""Whether a structure is in the image at all: what its saliency looks like, beyond the strength of its best cells."""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from scipy.special import logit

from MedZeroSegLib.saliency import FOUND_SHARE_MIN, Saliency

LOGIT_MAX = 7.0  # shares are float16, which tells no larger logits apart
RIM = 2  # cells around the found ones in which rivals are looked for


def clipped_logit(share: np.ndarray | float) -> np.ndarray:
    """Logit of shares in 0..1, between ±``LOGIT_MAX``; float32."""
    wide = np.asarray(share, np.float32)
    edge = 1 / (1 + np.exp(LOGIT_MAX))
    return logit(np.clip(wide, edge, 1 - edge))


def presence_features(saliency: Saliency, body: np.ndarray, slice_min: float) -> dict[str, float]:
    """What tells a structure that is there from one that isn't.

    Parameters
    ----------
    saliency
        Not yet smoothed across slices.
    body
        bool [n, s, s]: the patient on the saliency's cells.
    slice_min
        Least evidence of a slice for the structure to be present there.

    Returns
    -------
    Features of the slice with the strongest evidence, and how many slices show the structure:

    ======== ============================================================================
    evidence logit of the slice's evidence
    area     log2 of the found cells
    share    log2 of their share of the body
    belief   mean logit of the found cells
    focus    share of all probability that lies in them
    rivals   share of the cells around them that rivals hold
    pieces   log2 of the number of pieces
    spread   share of the slices in which the structure is present; 0 in a single slice
    ======== ============================================================================
    """
    if not len(saliency.evidence):
        return dict.fromkeys(("evidence", "area", "share", "belief", "focus", "rivals", "pieces", "spread"), 0.0)
    best = int(np.argmax(saliency.evidence))
    share = saliency.share[best].astype(np.float32)
    found = share >= FOUND_SHARE_MIN
    cells = int(found.sum())
    rim = ndimage.binary_dilation(found, iterations=RIM) & ~found
    pieces = ndimage.label(found)[1]
    several = len(saliency.evidence) > 1
    return {
        "evidence": float(clipped_logit(saliency.evidence[best])),
        "area": float(np.log2(1 + cells)),
        "share": float(np.log2((1 + cells) / (1 + body[best].sum()))),
        "belief": float(clipped_logit(share[found]).mean()) if cells else 0.0,
        "focus": float(share[found].sum() / max(float(share.sum()), 1e-6)),
        "rivals": float(saliency.lost[best][rim].mean()) if rim.any() else 0.0,
        "pieces": float(np.log2(max(1, pieces))),
        "spread": float((saliency.evidence >= slice_min).mean()) if several else 0.0,
    }
