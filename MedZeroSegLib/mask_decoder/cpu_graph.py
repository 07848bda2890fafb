"""A network as the device runs it fastest: an OpenVINO graph in float32 on CPUs, bfloat16 on graphics cards.

On AVX2 processors the graph needs less than half of eager PyTorch's time and differs by less than 1e-5. Compiled graphs
are kept on disk, so that the next process needs neither the network nor the packages that it is built with.

Two slices at once, one thread each, took .67 s a slice where one slice on two threads took .70 (AVX-512: .31 and .35;
prompts .026 and .034), so nothing is calibrated here: one row at a time on PyTorch's number of threads, which can also
be stopped after each, and answers a single click soonest.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from MedZeroSegLib.device import precision_of
from MedZeroSegLib.errors import MedZeroSegError
from MedZeroSegLib.writers import replacing

Graph = Callable[..., tuple[Tensor, Tensor]]
OPENVINO_TYPES = {"bfloat16": "bf16", "float32": "f32"}  # stated, or OpenVINO would choose by the processor
HASH_BYTES = hashlib.sha256().digest_size  # at the head of a stored graph; what doesn't match it is not opened


def fastest_form(
    network: Callable[[], nn.Module], examples: tuple[Tensor, ...], device: torch.device, stored: Path | None
) -> Graph:
    """A callable that gives what a network gives: two float32 tensors for each row of its arguments.

    Parameters
    ----------
    network
        Builds the network; not called where the stored graph is at hand.
    examples
        Arguments of one row each, which fix the shapes; larger batches go through the graph row by row, which was no
        slower on two cores.
    stored
        Name of the file in which the graph is kept between runs, which tells what it was made from; the file's own
        name adds OpenVINO's version and the processor. None builds the graph each time.
    """
    if device.type == "cpu" and importlib.util.find_spec("openvino") is not None:
        return _openvino_graph(network, examples, stored)
    eager = network().to(memory_format=torch.channels_last)
    reduced = precision_of(device.type) == "bfloat16"

    def run(*arguments: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(device.type, torch.bfloat16) if reduced else contextlib.nullcontext():
            first, second = eager(*arguments)
        return first.float(), second.float()

    return run


def _openvino() -> Any:
    """OpenVINO without the package through which its converter reports conversions over the network."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # not found, so it does without
    import openvino

    return openvino


def _openvino_graph(network: Callable[[], nn.Module], examples: tuple[Tensor, ...], stored: Path | None) -> Graph:
    core = _openvino().Core()
    # OpenVINO would take all cores, and bind the threads of each process to the same first ones; PyTorch keeps to what
    # OMP_NUM_THREADS leaves to each of several processes.
    threads = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "ENABLE_CPU_PINNING": False}
    precision = OPENVINO_TYPES[precision_of("cpu")]
    options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision, **threads}
    file = None if stored is None else _file_here(stored, core, options)
    compiled = None if file is None else _read_graph(core, file, options)
    if compiled is None:
        compiled = core.compile_model(_trace(network(), examples), "CPU", options)
        if file is not None:
            _save_graph(compiled, file)

    def run(*arguments: Tensor) -> tuple[Tensor, Tensor]:
        rows = [[a[n : n + 1].contiguous().numpy() for a in arguments] for n in range(len(arguments[0]))]
        outputs = [compiled(row) for row in rows]
        first, second = (torch.cat([torch.from_numpy(result[n].copy()) for result in outputs]) for n in range(2))
        return first, second

    return run


def _file_here(stored: Path, core: Any, options: dict[str, Any]) -> Path:
    """The file of a graph that was compiled by this OpenVINO for this processor, to compute in the stated precision."""
    processor = (core.get_property("CPU", name) for name in ("FULL_DEVICE_NAME", "OPTIMIZATION_CAPABILITIES"))
    made_for = (version("openvino"), options["INFERENCE_PRECISION_HINT"], *processor)
    place = hashlib.sha256(repr(made_for).encode()).hexdigest()[:8]
    return stored.with_name(f"{stored.name}-{place}.graph")


def _read_graph(core: Any, file: Path, options: dict[str, Any]) -> Any | None:
    """The stored graph, or None where there is none, or a damaged one."""
    try:
        content = file.read_bytes()
        if hashlib.sha256(memoryview(content)[HASH_BYTES:]).digest() != content[:HASH_BYTES]:
            return None
        return core.import_model(io.BytesIO(content[HASH_BYTES:]), "CPU", options)
    except (OSError, RuntimeError):
        return None


def _trace(network: nn.Module, examples: tuple[Tensor, ...]) -> Any:
    shapes = [list(example.shape) for example in examples]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's remarks on branches that depend on shapes, which are fixed here
        return _openvino().convert_model(network, example_input=examples, input=shapes)


def _save_graph(compiled: Any, file: Path) -> None:
    """Keep the graph for the next run; a cache that can't be written costs seconds, not results."""
    content = compiled.export_model().getbuffer()
    with contextlib.suppress(MedZeroSegError, RuntimeError), replacing(file) as out:
        out.write(hashlib.sha256(content).digest())
        out.write(content)
