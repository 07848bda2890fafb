"""Speed and memory of the `lite` line on a CT, beside the same work written as a plain script, in one process.

Run     .venv/bin/python Testing/benchmarks/speed.py [--slices 100] [--structures "liver; spleen"] [--image FILE]
Prints  seconds per stage, peak memory, the cost of a second set of names, and the ratio to the plain reference:
        every slice, every structure, float32 PyTorch, the encoder run anew for each structure, one box prompt.
        The reference is timed on a few slices and scaled to all of them.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from MedZeroSegLib.mask_decoder.lite_medsam import IMAGE_SIZE
from MedZeroSegLib.pipeline import segment
from MedZeroSegLib.presets import load_engine
from MedZeroSegLib.volume import Volume
from MedZeroSegLib.volume_io import read_volume

REFERENCE_SLICES = 3
SIZE = 512  # voxels a side of the synthetic slices
SPACING_MM = (0.8, 0.8, 3.0)


def synthetic_ct(slices: int) -> Volume:
    """A trunk of soft tissue in air with three brighter organs and a spine, in HU with noise; int16 [k, j, i]."""
    rng = np.random.default_rng(0)
    row, column = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)
    voxels = np.full((slices, SIZE, SIZE), -1000, np.int16)
    organs = ((110, 180, 230, 90, 80), (120, 370, 250, 45, 50), (180, 180, 330, 32, 36), (500, 256, 340, 28, 28))
    for k in range(slices):
        shrink = 0.75 + 0.25 * np.sin(np.pi * (k + 0.5) / slices)
        section = np.full((SIZE, SIZE), -1000, np.float32)
        section[((column - 256) / 200) ** 2 + ((row - 256) / 140) ** 2 < 1] = 40
        for level, x, y, width, height in organs:
            section[((column - x) / (width * shrink)) ** 2 + ((row - y) / (height * shrink)) ** 2 < 1] = level
        voxels[k] = section + rng.normal(0, 12, section.shape)
    matrix = np.diag([*SPACING_MM, 1.0])
    return Volume(voxels, matrix, "CT", "given")


def reference_seconds(volume: Volume, structures: int) -> float:
    """Seconds of the plain script for the whole volume, from a few slices."""
    network = load_engine("lite", "cpu").decoder.network
    slices = volume.voxels[:: max(1, len(volume.voxels) // REFERENCE_SLICES)][:REFERENCE_SLICES]
    started = time.perf_counter()
    with torch.inference_mode():
        for section in slices:
            grey = np.clip((section.astype(np.float32) + 160) / 400, 0, 1)
            picture = torch.nn.functional.interpolate(torch.from_numpy(grey)[None, None], (IMAGE_SIZE, IMAGE_SIZE))
            for _ in range(structures):
                coarse, _detail = network.image_encoder(picture.expand(-1, 3, -1, -1).contiguous())
                box = torch.tensor([[60.0, 60.0, 180.0, 180.0]])
                sparse, dense = network.prompt_encoder(points=None, boxes=box, masks=None)
                network.mask_decoder(coarse, network.prompt_encoder.get_dense_pe(), sparse, dense, False)
    return (time.perf_counter() - started) / len(slices) * len(volume.voxels)


def peak_gigabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--slices", type=int, default=100)
    parser.add_argument("--structures", default="liver; spleen; kidney")
    parser.add_argument("--image", type=Path)
    parser.add_argument("--no-reference", action="store_true")
    arguments = parser.parse_args()
    volume = read_volume(arguments.image) if arguments.image else synthetic_ct(arguments.slices)
    names = [name.strip() for name in arguments.structures.split(";")]
    load_engine("lite", "cpu").decoder.embed(torch.zeros(1, 1, IMAGE_SIZE, IMAGE_SIZE))  # graph ready, as when warm
    started = time.perf_counter()
    result = segment(volume, names, device="cpu")
    seconds = time.perf_counter() - started
    started = time.perf_counter()
    segment(volume, ["aorta"], device="cpu")
    second = time.perf_counter() - started
    table = {
        "voxels_kji": list(volume.shape),
        "structures": names,
        "found": [item.found for item in result.segments],
        "threads": torch.get_num_threads(),
        "seconds": round(seconds, 1),
        "seconds_by_stage": result.seconds,
        "seconds_of_a_further_structure": round(second, 2),
        "share_of_a_further_structure": round(second / seconds, 3),
        "peak_memory_gb": round(peak_gigabytes(), 2),
    }
    if not arguments.no_reference:
        plain = reference_seconds(volume, len(names))
        table |= {"plain_script_seconds": round(plain, 1), "times_faster": round(plain / seconds, 1)}
    print(json.dumps(table, indent=2))


if __name__ == "__main__":
    main()
