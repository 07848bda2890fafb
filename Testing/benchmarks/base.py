"""Time and memory of the `base` line with networks of the true shapes (BiomedCLIP, SAM ViT-B) and random weights.

Run     .venv/bin/python Testing/benchmarks/base.py [--image FILE] [--structures "liver; spleen"] [--variant NAME]
Prints  seconds of each stage and slice, of a second set of names, and peak memory. Masks mean nothing here: presence is
        not asked for, so that every stage runs.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))

from speed import synthetic_ct
from word_list import write_words

from MedZeroSegLib import encoding, pipeline
from MedZeroSegLib.base_preset import text_image_of
from MedZeroSegLib.canvas import fit_canvas
from MedZeroSegLib.mask_decoder.sam import MedSamModel, SamModel, build_sam
from MedZeroSegLib.presets import Engine, preset_named
from MedZeroSegLib.text_image.clip_model import biomedclip
from MedZeroSegLib.volume_io import read_volume

WORDS = 30_522
SLICES = 3


def random_engine(preset_name: str) -> Engine:
    """The preset with networks of their true shapes; everything counts as found."""
    torch.manual_seed(0)
    preset = preset_named(preset_name)
    assert preset.zero_shot is not None
    with tempfile.TemporaryDirectory() as folder:
        clip = biomedclip(None, write_words(Path(folder) / "vocab.txt", WORDS))
    family, _, size = preset.zero_shot.decoder.partition("-")
    network = build_sam(size.replace("-", "_"))
    decoder = MedSamModel(network) if family == "medsam" else SamModel(network)
    rules = replace(preset.zero_shot.rules, gated=False)
    everything = replace(preset, found_min_untrained=0.0, zero_shot=replace(preset.zero_shot, rules=rules))
    return Engine(everything, text_image_of(preset.zero_shot, clip, ""), decoder, "cpu", (), ())


def seconds_of(engine: Engine) -> dict[str, float]:
    """Seconds of one slice in each encoder."""
    slices = (torch.rand(1, 512, 512) * 255).byte().numpy()
    canvas = fit_canvas((512, 512), (1.0, 1.0), encoding.IMAGE_SIZE)
    started = time.perf_counter()
    embedding = engine.decoder.embed_slices(slices, canvas)
    embedded = time.perf_counter()
    engine.text_image.encode_slices(slices, canvas, embedding)
    return {"decoder": embedded - started, "text_image": time.perf_counter() - embedded}


def peak_gigabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--image", type=Path)
    parser.add_argument("--slices", type=int, default=SLICES)
    parser.add_argument("--structures", default="liver; spleen")
    parser.add_argument("--variant")
    arguments = parser.parse_args()
    volume = read_volume(arguments.image) if arguments.image else synthetic_ct(arguments.slices)
    names = [name.strip() for name in arguments.structures.split(";")]
    started = time.perf_counter()
    engine = random_engine(f"base/{arguments.variant}" if arguments.variant else "base")
    built, loaded_gigabytes = time.perf_counter() - started, peak_gigabytes()
    slice_seconds = seconds_of(engine)
    pipeline.load_engine = lambda *_: engine
    started = time.perf_counter()
    result = pipeline.segment(volume, names, engine.preset.name)
    seconds = time.perf_counter() - started
    started = time.perf_counter()
    pipeline.segment(volume, ["pancreas"], engine.preset.name)
    (encoded,) = encoding._encoded.values()
    table = {
        "preset": engine.preset.name,
        "voxels_kji": list(volume.shape),
        "slices_encoded": len(encoded.keys.indices),
        "structures": names,
        "threads": torch.get_num_threads(),
        "seconds_building": round(built, 1),
        "seconds_a_slice": {name: round(value, 2) for name, value in slice_seconds.items()},
        "seconds": round(seconds, 1),
        "seconds_by_stage": result.seconds,
        "seconds_of_a_further_structure": round(time.perf_counter() - started, 2),
        "parts_prompted": [segment.provenance["parts_prompted"] for segment in result.segments],
        "parts_drawn_by_decoder": [segment.provenance["parts_drawn_by_decoder"] for segment in result.segments],
        "megabytes_kept_a_slice": round((encoded.pixels.nbytes + encoded.coarse.nbytes) / 1e6 / len(encoded.pixels), 1),
        "memory_gb_models": round(loaded_gigabytes, 2),
        "memory_gb_peak": round(peak_gigabytes(), 2),
    }
    print(json.dumps(table, indent=2))


if __name__ == "__main__":
    main()
