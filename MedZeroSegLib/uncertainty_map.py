"""How sure a segmentation is, as files: a map of doubtful voxels on the image's own grid, and each slice's doubt."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np

from MedZeroSegLib.nifti_labels import nifti_header
from MedZeroSegLib.segment import Segmentation
from MedZeroSegLib.writers import replacing

MAP_SUFFIX, TABLE_SUFFIX = ".uncertainty.nii.gz", ".uncertainty.json"


def uncertainty_map(segmentation: Segmentation) -> np.ndarray:
    """The largest uncertainty of all segments, uint8 [k, j, i]: 0 sure .. 255 as likely inside as outside."""
    largest = np.zeros(segmentation.volume.voxels.shape, np.uint8)
    for segment in segmentation.segments:
        if segment.confidence is not None:
            i0, i1, j0, j1, k0, k1 = segment.confidence.box
            part = largest[k0 : k1 + 1, j0 : j1 + 1, i0 : i1 + 1]
            np.maximum(part, segment.confidence.uncertainty, out=part)
    return largest


def write_uncertainty(segmentation: Segmentation, folder: Path, name: str) -> tuple[Path, Path]:
    """Write the map, and what is known of each segment: whether it was found, score, expected Dice and slices' doubt.

    Raises
    ------
    InputError, InstallationError
        As `writers.write_segmentation`.
    """
    chart, table = folder / f"{name}{MAP_SUFFIX}", folder / f"{name}{TABLE_SUFFIX}"
    header = nifti_header(segmentation.volume, np.dtype(np.uint8))
    header["intent_code"] = 0  # no label map
    with replacing(chart) as file, gzip.GzipFile("", "wb", 6, file, mtime=0) as stream:
        stream.write(header.tobytes())
        stream.write(uncertainty_map(segmentation).tobytes())
    with replacing(table) as file:
        file.write((json.dumps({"structures": _structures(segmentation)}, ensure_ascii=False) + "\n").encode())
    return chart, table


def _structures(segmentation: Segmentation) -> list[dict[str, object]]:
    """One entry for each segment, in order; what isn't known is None. Slices are counted along ``slice_axis``."""
    listed = []
    for segment in segmentation.segments:
        entry: dict[str, object] = {"name": segment.name, "found": segment.found, "score": round(segment.score, 4)}
        confidence = segment.confidence
        if confidence is None:
            entry |= {"expected_dice": None, "slice_axis": None, "slice_doubt": None}
        else:
            entry |= {
                "expected_dice": round(confidence.expected_dice, 4),
                "slice_axis": "kji"[confidence.slice_axis],
                "slice_doubt": [round(float(doubt), 3) for doubt in confidence.slice_doubt],
            }
        listed.append(entry)
    return listed
