"""The engine's process with grey levels in place of models, for self-tests: needs no weights and no PyTorch.

python stand_in_engine.py
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

if __name__ == "__main__":  # beside this folder in an installation, one level up in a working copy
    sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from MedZeroSegLib.extent import crop, mask_extent, mask_sha256
from MedZeroSegLib.queries import Query, resolve
from MedZeroSegLib.request_loop import Report, serve

# Grey level of each structure in the phantoms; all others are in none.
LEVELS = {"liver": 80, "spleen": 110, "aorta": 150}
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
    voxels = np.load(message["volume"]["voxels"])
    image = hashlib.sha256(voxels.tobytes()).hexdigest()
    report.progress("encoding", 0.05, None, slice=1, slices=len(voxels))
    step("encoding", "")
    queries = resolve(message["names"])
    for index, query in enumerate(queries):
        for first in range(0, len(voxels), SLICES_A_STEP):
            done = (index + first / len(voxels)) / len(queries)
            values = {"name": query.name, "slice": first + 1, "slices": len(voxels)}
            report.progress("segmenting", 0.05 + 0.95 * done, 5.0 * (1 - done), **values)
            step("segmenting", query.name)
        report.event("segment", **_fields(message, index, query, voxels == LEVELS.get(query.name), image))
    return {"seconds": {}, "warnings": [], "weights": [], "version": "stand-in"}


def _fields(message: Mapping[str, Any], index: int, query: Query, mask: np.ndarray, image: str) -> dict[str, Any]:
    found = bool(mask.any())
    box = mask_extent(mask) if found else None
    sha256 = mask_sha256(crop(mask, box), box) if box else ""
    path = Path(message["folder"]) / f"{index}.npy" if found else None
    if box is not None and path is not None:
        np.save(path, crop(mask, box).astype(np.uint8))
    voxel_ml = abs(float(np.linalg.det(np.array(message["volume"]["ijk_to_lps"])[:3, :3]))) / 1000
    codes = {"code": query.code, "category": query.category, "modifier": query.modifier}
    return {
        "index": index,
        "typed": query.typed,
        "name": query.name,
        "found": found,
        "score": 0.97 if found else 0.2,
        "box": box,
        "mask": path and str(path),
        **{key: code and asdict(code) for key, code in codes.items()},
        "color": query.color,
        "slices": int(mask.any(axis=(1, 2)).sum()),
        "volume_ml": mask.sum() * voxel_ml,
        "warnings": query.warnings,
        "trained": query.structure is not None,
        "provenance": {
            "typed": query.typed,
            "name": query.name,
            "volume_fingerprint": image,
            "mask_sha256": sha256,
        },
    }


def check(_message: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """Answer "check"."""
    report.event("result", line="Ready, with grey levels in place of models.", device="cpu")
    return {}


def forget(_message: Mapping[str, Any], _report: Report) -> dict[str, Any]:
    """Answer "forget"."""
    return {}


if __name__ == "__main__":
    serve({"segment": segment, "check": check, "forget": forget})
