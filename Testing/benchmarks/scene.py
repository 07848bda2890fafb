"""Seconds to put three structures of a 512 x 512 x 300 volume into a Slicer scene, beside Slicer's own convenience
function for the same masks, in one process.

Run     .venv/bin/python Testing/benchmarks/scene.py [--output FILE.json]
Prints  median milliseconds for each structure (file of the engine read, segment named, coded, tagged and written), the
        same for slicer.util.updateSegmentBinaryLabelmapFromArray, and the ratio; and the milliseconds that
        describing a volume, its export and one undo state take. Exit status 1 when a structure took over 50 ms.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "MedZeroSeg"), str(ROOT / "Testing" / "scene")]

from MedZeroSegSlicer.scene_undo import SceneUndo  # noqa: E402
from MedZeroSegSlicer.segment_io import add_result, create_segmentation  # noqa: E402
from MedZeroSegSlicer.volumes import describe_volume, export_volume  # noqa: E402
from mrml_scene import new_scene  # noqa: E402

from MedZeroSegLib.extent import Extent, crop  # noqa: E402

SIZE = (300, 512, 512)  # k, j, i
MOST_MS = 50.0  # for one structure
REPEATS = 5
# Ellipsoids of the size of a liver, a spleen and an aorta, at opposite ends of the volume.
STRUCTURES: dict[str, Extent] = {
    "liver": (90, 309, 140, 369, 60, 179),
    "spleen": (330, 429, 250, 389, 150, 239),
    "aorta": (235, 279, 250, 299, 0, 299),
}


def ellipsoid(extent: Extent) -> np.ndarray:
    """The ellipsoid that fills a box, uint8 [k, j, i] of the box."""
    axes = [np.linspace(-1, 1, extent[2 * axis + 1] - extent[2 * axis] + 1) for axis in (2, 1, 0)]
    k, j, i = np.ix_(*axes)
    return (k**2 + j**2 + i**2 <= 1).astype(np.uint8)


def event(folder: Path, name: str, extent: Extent) -> dict[str, Any]:
    """What the engine sends for a structure."""
    path = folder / f"{name}.npy"
    np.save(path, ellipsoid(extent))
    return {
        "found": True, "name": name, "box": list(extent), "mask": str(path), "color": [221, 130, 101],
        "code": {"scheme": "SCT", "value": "10200004", "meaning": "Liver"}, "modifier": None,
        "category": {"scheme": "SCT", "value": "123037004", "meaning": "Anatomical Structure"},
        "provenance": {"typed": name, "name": name, "volume_fingerprint": "f1" * 32},
    }  # fmt: skip


def milliseconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - started)


def ours(volume: Any, events: dict[str, dict[str, Any]]) -> tuple[Any, dict[str, float]]:
    """Segmentation and milliseconds for each structure, into a new segmentation."""
    node = create_segmentation(volume)
    return node, {name: milliseconds(lambda e=e: add_result(node, volume, e)) for name, e in events.items()}


def convenience(volume: Any) -> dict[str, float]:
    """Milliseconds of slicer.util's function for the same masks, which it takes in full size."""
    import slicer.util

    node = create_segmentation(volume)
    taken = {}
    for name, extent in STRUCTURES.items():
        full = np.zeros(SIZE, np.uint8)
        crop(full, extent)[...] = ellipsoid(extent)
        segment_id = node.GetSegmentation().AddEmptySegment("", name)
        taken[name] = milliseconds(
            lambda full=full, segment_id=segment_id: slicer.util.updateSegmentBinaryLabelmapFromArray(
                full, node, segment_id, volume
            )
        )
    return taken


def medians(runs: list[dict[str, float]]) -> dict[str, float]:
    """The middle of several runs, for each structure."""
    return {name: round(statistics.median(run[name] for run in runs), 1) for name in runs[0]}


def measure(folder: Path) -> dict[str, Any]:
    """All figures, in milliseconds."""
    import slicer.util

    environment = new_scene(folder)
    voxels = np.random.default_rng(0).integers(-1000, 1000, SIZE, dtype=np.int16)
    volume = slicer.util.addVolumeFromArray(voxels, np.diag([-0.7, -0.7, 1.0, 1.0]), "CT")
    figures: dict[str, Any] = {
        "describe_volume": round(milliseconds(lambda: describe_volume(volume)), 1),
        "describe_volume_again": round(milliseconds(lambda: describe_volume(volume)), 2),
        "export_volume": round(milliseconds(lambda: export_volume(volume, folder)), 1),
        "export_volume_again": round(milliseconds(lambda: export_volume(volume, folder)), 2),
    }
    events = {name: event(folder, name, extent) for name, extent in STRUCTURES.items()}
    runs = [ours(volume, events) for _ in range(REPEATS)]
    node = runs[-1][0]
    figures["add_result"] = medians([taken for _node, taken in runs])
    figures["rerun"] = medians(
        [{n: milliseconds(lambda e=e: add_result(node, volume, e)) for n, e in events.items()} for _ in range(REPEATS)]
    )
    undo = SceneUndo(node, volume)
    undo.begin_step()
    figures["undo_state"] = round(milliseconds(lambda: undo.change().__enter__()), 2)
    undo.close()
    figures["slicer.util"] = medians([convenience(volume) for _ in range(3)])
    figures["times_faster"] = {
        name: round(figures["slicer.util"][name] / figures["add_result"][name], 1) for name in STRUCTURES
    }
    environment.close()
    return figures


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder))
    text = json.dumps(figures, indent=2)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n", encoding="utf-8")
    return int(max(figures["add_result"].values()) > MOST_MS)


if __name__ == "__main__":
    sys.exit(main())
