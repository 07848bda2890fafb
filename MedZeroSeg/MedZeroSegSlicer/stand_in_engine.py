"""The engine's process with grey levels in place of models, for self-tests: needs no weights and no PyTorch.

python stand_in_engine.py
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

if __name__ == "__main__":  # beside this folder in an installation, one level up in a working copy
    sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from MedZeroSegLib.delivery import deliver
from MedZeroSegLib.protocol import read_segment
from MedZeroSegLib.queries import Query, resolve
from MedZeroSegLib.request_loop import Report, serve
from MedZeroSegLib.segment import Segment, Segmentation
from MedZeroSegLib.volume import Volume

# Grey level of each structure in the phantoms; all others are in none.
LEVELS = {"liver": 80, "spleen": 110, "aorta": 150}
NOWHERE = 32767
SLICES_A_STEP = 6  # between two tellings of progress

Step = Callable[[str, str], None]


def segment(message: Mapping[str, Any], report: Report, step: Step = lambda code, name: None) -> dict[str, Any]:
    """Answer "segment": each name is where its grey level is.

    Parameters
    ----------
    step : called with what the engine is at and with the name, several times for each; it may wait or raise.
    """
    report.progress("loading")
    step("loading", "")
    request = read_segment(message)
    entry = request.volume
    volume = Volume(
        np.load(entry.voxels), np.array(entry.ijk_to_lps), entry.modality or "other", "given", entry.dimension,
        region=request.region,
    )  # fmt: skip
    voxels = volume.voxels
    asked = True if request.region is None else request.region.mask(voxels.shape)
    report.progress("encoding", 0.05, None, slice=1, slices=len(voxels))
    step("encoding", "")
    queries = resolve(request.names)
    for index, query in enumerate(queries):
        for first in range(0, len(voxels), SLICES_A_STEP):
            done = (index + first / len(voxels)) / len(queries)
            values = {"name": query.name, "slice": first + 1, "slices": len(voxels)}
            report.progress("segmenting", 0.05 + 0.95 * done, 5.0 * (1 - done), **values)
            step("segmenting", query.name)
        result = _segment(query, asked & (voxels == LEVELS.get(query.name, NOWHERE)))
        deliver(request, result, _segmentation(volume, result), report)
    return {"seconds": {}, "warnings": [], "weights": [], "version": "stand-in"}


def _segment(query: Query, mask: np.ndarray) -> Segment:
    found = bool(mask.any())
    return Segment(
        typed=query.typed,
        name=query.name,
        found=found,
        score=0.97 if found else 0.2,
        mask=mask,
        code=query.code,
        category=query.category,
        modifier=query.modifier,
        color=query.color,
        slices=int(mask.any(axis=(1, 2)).sum()),
        warnings=query.warnings,
        provenance={"trained": query.structure is not None},
    )


def _segmentation(volume: Volume, segment: Segment) -> Segmentation:
    nothing: dict[str, Any] = {"weights": (), "seconds": {}, "settings": {}}
    return Segmentation(
        volume=volume, segments=(segment,), preset="stand-in", device="cpu", version="stand-in", **nothing
    )


def check(_message: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """Answer "check"."""
    report.event("result", line="Ready, with grey levels in place of models.", device="cpu")
    return {}


def fetch(_message: Mapping[str, Any], report: Report, step: Step = lambda code, name: None) -> dict[str, Any]:
    """Answer "fetch" without fetching anything."""
    for done in range(0, 1001, 250):
        report.progress("downloading", done / 1000, (1000 - done) / 25, done=done, total=1000)
        step("downloading", "")
    report.event("result", line="The model files are here (1,000 MB).", device="")
    return {}


def forget(_message: Mapping[str, Any], _report: Report) -> dict[str, Any]:
    """Answer "forget"."""
    return {}


if __name__ == "__main__":
    serve({"segment": segment, "check": check, "fetch": fetch, "forget": forget})
