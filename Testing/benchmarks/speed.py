"""Speed, memory and arithmetic of the line, beside the same work written as a plain script, in one process.

Run     .venv/bin/python Testing/benchmarks/speed.py [--slices 32 100 300] [--structures 1 3 10] [--presets lite]
            [--devices cpu] [--distance 1.0] [--images FILE ... [--resample]] [--json FILE]
        A short run: --slices 32 --structures 1 --no-reference
Prints  a line for each volume, number of structures, preset and device: seconds by stage, seconds that three further
        names take on the same volume, peak memory of the process, arithmetic done and its share of what this machine
        reaches in a product of matrices, and how many times longer the plain script takes: every slice, every
        structure, float32 PyTorch, the encoder run anew for each structure as SamPredictor does, one box prompt. That
        one is timed on a few slices and scaled to all of them. Nothing is taken from the store of embeddings.
        Volumes are synthetic CTs of 512 x 512 voxels a slice, or real ones as they are or resampled to that size.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import numpy as np
import psutil
import SimpleITK as sitk
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[2]))

from MedZeroSegLib import encoding, pipeline
from MedZeroSegLib.canvas import fit_canvas
from MedZeroSegLib.mask_decoder.decoder import Embedding, draw_prompts
from MedZeroSegLib.presets import Engine, load_engine
from MedZeroSegLib.volume import Volume
from MedZeroSegLib.volume_io import read_volume

SIZE = 512  # voxels a side of a slice
PIXEL_MM = 0.8
NAMES = (
    "liver", "spleen", "kidney", "pancreas", "stomach", "gallbladder", "inferior vena cava", "colon", "vertebrae",
    "femur",
)  # fmt: skip
FURTHER = ("aorta", "duodenum", "adrenal gland")  # the second set of names
REFERENCE_SLICES = 3
MATRIX, REPEATS = 2048, 5  # of the product that tells the machine's peak
SAMPLED_S = 0.02  # between two looks at the memory in use


@dataclass(frozen=True)
class Run:
    """One line of the table."""

    volume: str
    voxels_kji: tuple[int, int, int]
    slice_mm: float
    preset: str
    device: str
    names: int
    found: int
    encoded: int
    prompts: int
    seconds: float
    seconds_by_stage: dict[str, float]
    further_names_seconds: float
    peak_gb: float
    gflop: float
    share_of_peak: float
    plain_seconds: float | None


@dataclass(frozen=True)
class Arithmetic:
    """GFLOP of one slice in the encoders and of one prompt in the decoder, and GFLOP/s of a product of matrices."""

    slice: float
    prompt: float
    peak: float


class PeakMemory:
    """The most memory that the process holds while the block runs, in bytes; looked at often."""

    def __enter__(self) -> PeakMemory:
        self.bytes, self._ended, self._process = 0, threading.Event(), psutil.Process()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._ended.wait(SAMPLED_S):
            self.bytes = max(self.bytes, self._process.memory_info().rss)

    def __exit__(self, _kind: type | None, _problem: BaseException | None, _trace: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()


def synthetic_ct(slices: int, distance: float) -> Volume:
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
    return Volume(voxels, np.diag([PIXEL_MM, PIXEL_MM, distance, 1.0]), "CT", "given")


def resampled(volume: Volume, slices: int) -> Volume:
    """The same space on 512 x 512 x ``slices`` voxels, linearly interpolated."""
    image = sitk.GetImageFromArray(volume.voxels)  # without a place: only the grid counts
    size = (SIZE, SIZE, slices)
    scale = [old / new for old, new in zip(image.GetSize(), size, strict=True)]
    start = [(step - 1) / 2 for step in scale]
    wide = sitk.Resample(image, size, sitk.Transform(), sitk.sitkLinear, start, scale, image.GetDirection(), -1000)
    matrix = volume.ijk_to_lps @ np.block([[np.diag(scale), np.array(start)[:, None]], [np.zeros(3), np.ones(1)]])
    return Volume(sitk.GetArrayFromImage(wide), matrix, volume.modality, volume.modality_source)


def volumes(arguments: argparse.Namespace) -> Iterator[tuple[str, Volume]]:
    """What is segmented, one after the other."""
    images = [(path, read_volume(path)) for path in arguments.images]
    for slices in arguments.slices if not images or arguments.resample else ():
        if not images:
            yield "synthetic", synthetic_ct(slices, arguments.distance)
        for path, image in images:
            yield f"{path.name}, resampled", resampled(image, slices)
    if not arguments.resample:
        yield from ((path.name, image) for path, image in images)


def arithmetic_of(engine: Engine) -> Arithmetic:
    """Counted on the eager networks, whatever form of them the line runs."""
    network, side = copy.deepcopy(_network(engine)).to("meta"), _side(engine)  # shapes only, no memory
    canvas = fit_canvas((SIZE, SIZE), (1.0, 1.0), encoding.IMAGE_SIZE)
    with torch.inference_mode(), FlopCounterMode(display=False) as encoder:
        coarse, detail = _encode(network, torch.zeros(1, 3, side, side, device="meta"))
        embedding = Embedding(torch.zeros(coarse.shape), torch.zeros(detail.shape))
        engine.text_image.encode_slices(np.zeros((1, SIZE, SIZE), np.uint8), canvas, embedding)
    with torch.inference_mode(), FlopCounterMode(display=False) as decoder:
        _prompt(network, coarse, side)
    slice_, prompt = (counter.get_total_flops() / 1e9 for counter in (encoder, decoder))
    return Arithmetic(slice_, prompt, peak_of(engine.device))


def peak_of(device: str) -> float:
    """GFLOP/s of the best of a few products of float32 matrices."""
    one = torch.rand(MATRIX, MATRIX, device=device)
    best = float("inf")
    for _ in range(REPEATS):
        started = time.perf_counter()
        (one @ one)[0, 0].item()
        best = min(best, time.perf_counter() - started)
    return 2 * MATRIX**3 / best / 1e9


def plain_seconds(engine: Engine, volume: Volume, names: int) -> float:
    """Seconds of the plain script for the whole volume, from a few slices."""
    network, side = _network(engine), _side(engine)
    slices = volume.voxels[:: max(1, len(volume.voxels) // REFERENCE_SLICES)][:REFERENCE_SLICES]
    started = time.perf_counter()
    with torch.inference_mode():
        for section in slices:
            grey = np.clip((section.astype(np.float32) + 160) / 400, 0, 1)
            picture = F.interpolate(torch.from_numpy(grey)[None, None], (side, side)).to(engine.device)
            for _ in range(names):
                coarse, _ = _encode(network, picture.expand(-1, 3, -1, -1).contiguous())
                _prompt(network, coarse, side)[0].cpu()
    return (time.perf_counter() - started) / len(slices) * len(volume.voxels)


def _network(engine: Engine) -> Any:
    return cast(Any, engine.decoder).network


def _side(engine: Engine) -> int:
    return int(getattr(_network(engine).image_encoder, "img_size", encoding.IMAGE_SIZE))


def _encode(network: Any, picture: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Embedding and detail; SAM's detail is its embedding."""
    answer = network.image_encoder(picture)
    return answer if isinstance(answer, tuple) else (answer, answer)


def _prompt(network: Any, coarse: torch.Tensor, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    box = torch.tensor([[60.0, 60.0, 180.0, 180.0]], device=coarse.device) * side / encoding.IMAGE_SIZE
    return draw_prompts(network.prompt_encoder, network.mask_decoder, coarse, box, None, None, several=False)


def measured(
    title: str, volume: Volume, engine: Engine, names: Sequence[str], arithmetic: Arithmetic, reference: bool
) -> Run:
    """One run of the line with warm models on a volume that it hasn't seen."""
    encoding.forget_volumes()
    where = (engine.preset.name, engine.device)
    with PeakMemory() as memory:
        started = time.perf_counter()
        result = pipeline.segment(volume, list(names), *where)
        seconds = time.perf_counter() - started
    kept = [encoded for encoded in encoding._encoded.values()]
    encoded = sum(int(part.filled.sum()) for whole in kept for part in (whole, *whole.others))
    prompts = sum(item.provenance["parts_prompted"] for item in result.segments)
    started = time.perf_counter()
    pipeline.segment(volume, list(FURTHER), *where)
    further = time.perf_counter() - started
    gflop = encoded * arithmetic.slice + prompts * arithmetic.prompt
    return Run(
        volume=title,
        voxels_kji=volume.shape,
        slice_mm=round(max(kept[0].frame.spacing[0], 0.0), 3) if kept else 0.0,
        preset=engine.preset.name,
        device=engine.device,
        names=len(names),
        found=sum(item.found for item in result.segments),
        encoded=encoded,
        prompts=prompts,
        seconds=round(seconds, 1),
        seconds_by_stage=result.seconds,
        further_names_seconds=round(further, 1),
        peak_gb=round(memory.bytes / 1e9, 2),
        gflop=round(gflop),
        share_of_peak=round(gflop / seconds / arithmetic.peak, 2),
        plain_seconds=round(plain_seconds(engine, volume, len(names)), 1) if reference else None,
    )


HEAD = (
    "| volume | slices, mm | preset, device | names | encoded, prompts | seconds | encoding | saliency | masks | "
    "further names | peak GB | GFLOP | of peak | plain script |\n" + "| --- " * 14 + "|"
)


def row(run: Run) -> str:
    """A line of the table."""
    stages = [run.seconds_by_stage.get(name, 0.0) for name in ("encoding", "text and saliency", "masks", "segments")]
    plain = "" if run.plain_seconds is None else f"{run.plain_seconds:.0f} s, {run.plain_seconds / run.seconds:.1f} x"
    return (
        f"| {run.volume} | {run.voxels_kji[0]}, {run.slice_mm:.2g} | {run.preset}, {run.device} | "
        f"{run.found} of {run.names} found | {run.encoded}, {run.prompts} | {run.seconds:.1f} | {stages[0]:.1f} | "
        f"{stages[1]:.1f} | {stages[2] + stages[3]:.1f} | {run.further_names_seconds:.1f} | {run.peak_gb:.2f} | "
        f"{run.gflop:,.0f} | {run.share_of_peak:.0%} | {plain} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, nargs="+", default=[32, 100, 300])
    parser.add_argument("--structures", type=int, nargs="+", default=[1, 3, 10], help=f"how many, up to {len(NAMES)}")
    parser.add_argument("--presets", nargs="+", default=["lite"])
    parser.add_argument("--devices", nargs="+", default=["cpu"])
    parser.add_argument("--distance", type=float, default=1.0, help="mm between synthetic slices")
    parser.add_argument("--images", type=Path, nargs="+", default=[], help="real volumes instead of synthetic ones")
    parser.add_argument("--resample", action="store_true", help="real volumes to 512 x 512 x slices voxels")
    parser.add_argument("--no-reference", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    runs: list[Run] = []
    print(HEAD, flush=True)
    for preset in arguments.presets:
        for device in arguments.devices:
            engine = load_engine(preset, device)
            arithmetic = arithmetic_of(engine)
            encoding.encoder_seconds(engine)  # what is built once is built
            for title, volume in volumes(arguments):
                for count in arguments.structures:
                    names = NAMES[:count]
                    runs.append(measured(title, volume, engine, names, arithmetic, not arguments.no_reference))
                    print(row(runs[-1]), flush=True)
            print(
                f"\n{preset} on {device}: {arithmetic.slice:.0f} GFLOP a slice, {arithmetic.prompt:.1f} a prompt; a "
                f"product of matrices reaches {arithmetic.peak:.0f} GFLOP/s ({torch.get_num_threads()} threads)"
            )
    if arguments.json:
        content = {"threads": torch.get_num_threads(), "runs": [asdict(run) for run in runs]}
        arguments.json.write_text(json.dumps(content, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
