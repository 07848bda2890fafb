"""Cases of a cohort for tests: images whose numbers are known, and records with sizes as they are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from MedZeroSegLib.cohort.case_record import CaseRecord
from MedZeroSegLib.cohort.statistics import SegmentStatistics
from MedZeroSegLib.segment import Segment, Segmentation
from MedZeroSegLib.volume import Volume

PROVENANCE = {
    "version": "1.2.3",
    "preset": "lite",
    "settings": {"found_min": 0.5},
    "weights": [{"name": "head", "file": "head.safetensors", "sha256": "ab" * 32, "licence": "Apache-2.0"}],
    "device": "cpu",
    "date": "2026-05-04T10:00:00+00:00",
}


def segment(name: str, mask: np.ndarray, **changes: object) -> Segment:
    fields: dict = {
        "typed": name, "name": name, "found": bool(mask.any()), "score": 0.75, "mask": mask, "code": None,
        "category": None, "modifier": None, "color": (255, 0, 0), "slices": int(mask.any(axis=(1, 2)).sum()),
    }  # fmt: skip
    return Segment(**(fields | changes))


def segmentation(volume: Volume, *segments: Segment) -> Segmentation:
    return Segmentation(
        volume=volume, segments=segments, preset="lite", device="cpu", seconds={}, version="1.2.3",
        settings={"found_min": 0.5}, weights=tuple(PROVENANCE["weights"]), warnings=volume.warnings,
    )  # fmt: skip


def statistics(name: str, size: float | None, **changes: object) -> SegmentStatistics:
    """Numbers of a segment of so many ml, or of one that wasn't found."""
    fields: dict = {
        "typed": name, "name": name, "found": size is not None, "side": None, "code": None, "score": 0.9,
        "voxels": int(size or 0), "volume_ml": size, "area_mm2": None, "mean": None, "sd": None, "unit": "HU",
        "box_ijk": None, "box_lps": None, "centroid_ijk": None, "centroid_lps": None, "slices": 3, "warnings": (),
        "expected_dice": None, "doubt": 0.1 if size is not None else 0.55, "mask_sha256": f"{name}{size}",
    }  # fmt: skip
    return SegmentStatistics(**(fields | changes))


def record(case: str, sizes: Mapping[str, float | None], **changes: object) -> CaseRecord:
    """A case that is done, with structures of so many ml."""
    fields: dict = {
        "case": case, "image": f"/scans/{case}.nii.gz", "status": "done", "seconds": 12.5,
        "segments": tuple(statistics(name, size) for name, size in sizes.items()),
        "files": {"labels": f"cases/{case}.seg.nrrd"}, "provenance": PROVENANCE,
    }  # fmt: skip
    return CaseRecord(**(fields | changes))


def failed(case: str, sentence: str) -> CaseRecord:
    return CaseRecord(case=case, image=str(Path("/scans") / case), status="failed", sentence=sentence)
