"""The engine's process, started by this file's path or as `python -m MedZeroSegLib.worker`, and its answers to the
requests of `protocol`. Models and the last volumes stay in memory from one request to the next."""

from __future__ import annotations

import argparse
import faulthandler
import os
import sys
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

if not __package__:  # started by its path: this folder's modules are no top-level modules
    HERE = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [os.path.dirname(HERE), *(path for path in sys.path if os.path.abspath(path or ".") != HERE)]

from MedZeroSegLib.delivery import deliver
from MedZeroSegLib.edit_protocol import read_edit, read_edit_end, read_edit_start
from MedZeroSegLib.errors import InputError, InstallationError
from MedZeroSegLib.protocol import ENVIRONMENT, CheckRequest, SegmentRequest, VolumeFile, read_check, read_segment
from MedZeroSegLib.request_loop import IDLE_S, Report, serve

if TYPE_CHECKING:
    from MedZeroSegLib.segment import Segment
    from MedZeroSegLib.volume import Volume

NICENESS = 5  # the window that waits for the result comes first


def segment_volume(message: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """Answer "segment": each result as soon as it is ready, and at the end how it was made."""
    from MedZeroSegLib.forecast import Forecast, rates_file, remember_rates, remembered_rates

    request = read_segment(message)
    report.progress("loading")
    pipeline = _pipeline()
    from MedZeroSegLib.embedding_store import embedding_store

    volume = _asked(_volume(request.volume, _signature(request.volume.voxels)), request)
    setting = _setting(request)
    forecast = Forecast(volume.voxels.size / 1e6, remembered_rates(rates_file(), setting))

    def tell(stage: str, share: float, /, **values: str | int) -> None:
        fraction, seconds_left = forecast.tell(stage, share, values)
        shown = {} if stage == "planned" else values
        report.progress("preparing" if stage == "planned" else stage, fraction, seconds_left, **shown)

    def hand_over(_index: int, segment: Segment) -> None:
        engine = pipeline.load_engine(request.preset, request.device, request.weights_folder).at(request.sensitivity)
        deliver(request, segment, pipeline.segmentation_of(volume, (segment,), engine, {}), report)

    where = (request.preset, request.device, request.weights_folder)
    result = pipeline.segment(
        volume, request.names, *where, tell, hand_over, request.sensitivity, store=embedding_store()
    )
    remember_rates(rates_file(), setting, forecast.measured())
    return {
        "seconds": result.seconds,
        "warnings": result.warnings,
        "weights": result.weights,
        "device": result.device,
        "version": result.version,
    }


def start_edit(message: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """Answer "edit-start": see `edit_protocol`."""
    request = read_edit_start(message)
    report.progress("loading")
    return _corrections().start_edit(request, report, _volume(request.volume, _signature(request.volume.voxels)))


def edit(message: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """Answer "edit"."""
    request = read_edit(message)
    return _corrections().edit(request, report, _volume(request.volume, _signature(request.volume.voxels)))


def end_edit(message: Mapping[str, Any], _report: Report) -> dict[str, Any]:
    """Answer "edit-end"."""
    _corrections().end_edit(read_edit_end(message))
    return {}


def check_engine(message: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """Answer "check": packages, weights, device and one slice through the encoder, as one line for the user."""
    from MedZeroSegLib.forecast import rates_file, remember_rates
    from MedZeroSegLib.memory import telling_shortage

    request = read_check(message)
    report.progress("loading")
    pipeline = _pipeline()
    from MedZeroSegLib.device import device_line
    from MedZeroSegLib.encoding import encoder_seconds

    with telling_shortage():
        engine = pipeline.load_engine(request.preset, request.device, request.weights_folder)
        report.progress("checking")
        seconds = encoder_seconds(engine)
    remember_rates(rates_file(), _setting(request), {"encoding": seconds})
    ten = f"about {round(10 * seconds)} s" if seconds >= 0.1 else "less than a second"
    line = " ".join((f"Ready, {device_line(engine.device)}: {ten} for ten slices.", *engine.warnings))
    report.event("result", line=line, device=engine.device)
    return {"seconds": {"slice": round(seconds, 3)}}


def fetch_weights(message: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """Answer "fetch": the model files that a preset lacks, from the network; goes on where an earlier one stopped."""
    from MedZeroSegLib.presets import is_folder, preset_named
    from MedZeroSegLib.weights import weights_store

    request = read_check(message)
    report.progress("downloading")
    first: list[tuple[float, int]] = []

    def tell(done: int, total: int | None) -> None:
        now = time.monotonic()
        first[:] = first or [(now, done)]
        gained, whole = done - first[0][1], total or 0
        left = (now - first[0][0]) * (whole - done) / gained if gained > 0 else None
        values = {"done": round(done / 1e6), "total": round(whole / 1e6)}
        report.progress("downloading", min(1.0, done / whole) if whole else 0.0, left, **values)

    trained = is_folder(request.preset)
    preset = preset_named(request.preset).catalogued if trained else request.preset.partition("/")[0]
    store = weights_store()
    if preset:
        store.fetch(preset, progress=tell)
    size = sum(row.size or 0 for row in store.rows(preset)) if preset else 0
    report.event("result", line=f"The model files are here ({size / 1e6:,.0f} MB).", device="")
    return {}


def forget(_message: Mapping[str, Any], _report: Report) -> dict[str, Any]:
    """Answer "forget": free models and volumes."""
    import gc

    _volume.cache_clear()
    if "MedZeroSegLib.edit_worker" in sys.modules:
        _corrections().forget_sessions()
        sys.modules["MedZeroSegLib.editing"].forget_embeddings()
    if "MedZeroSegLib.pipeline" in sys.modules:
        sys.modules["MedZeroSegLib.encoding"].forget_volumes()
        sys.modules["MedZeroSegLib.presets"].forget_engines()
        gc.collect()
        from MedZeroSegLib.device import release_memory

        release_memory("cuda")
    return {}


def _pipeline() -> ModuleType:
    """The line, whose import brings PyTorch."""
    try:
        from MedZeroSegLib import pipeline
    except MemoryError:
        raise
    except Exception as problem:  # a broken PyTorch raises anything
        traceback.print_exc()
        reason = str(problem).partition("\n")[0] or type(problem).__name__
        raise InstallationError(
            f"A package that the engine needs can't be loaded ({reason}); set up the module again."
        ) from problem
    return pipeline


def _corrections() -> ModuleType:
    """Correcting by hand, on the line."""
    _pipeline()
    from MedZeroSegLib import edit_worker

    return edit_worker


def _setting(request: CheckRequest) -> str:
    """What the time that stages take depends on."""
    return f"{request.preset} on {request.device}"


def _signature(file: Path) -> tuple[int, int]:
    """Tells whether a file is still what it was."""
    try:
        state = file.stat()
    except OSError as problem:
        raise InputError("The image's voxels were not handed over; press Segment again.") from problem
    return state.st_mtime_ns, state.st_size


def _asked(volume: Volume, request: SegmentRequest) -> Volume:
    """The volume with the region that is asked about."""
    if request.region is None:
        return volume
    if not request.region.lies_in(volume.shape):
        raise InputError("The region of interest lies outside the image; move it, or choose none.")
    return replace(volume, region=request.region)


@lru_cache(maxsize=1)
def _volume(entry: VolumeFile, _signature: tuple[int, int]) -> Volume:
    """The volume of a file, checked as images read from disk are; the last one is kept with its fingerprint."""
    import numpy as np

    from MedZeroSegLib.modality import guess_modality, holds_whole_numbers
    from MedZeroSegLib.outside import mark_outside
    from MedZeroSegLib.reading import Reading
    from MedZeroSegLib.volume import Volume
    from MedZeroSegLib.volume_io import refuse_shear

    matrix = np.array(entry.ijk_to_lps)
    refuse_shear(matrix, Path("The image"))
    voxels = np.load(entry.voxels, allow_pickle=False)
    reading = mark_outside(Reading(voxels, matrix, entry.dimension, entry.calibrated), "The image")
    voxels = reading.voxels
    guess = guess_modality(voxels.min(), voxels.max(), holds_whole_numbers(voxels), entry.dimension)
    return Volume(
        voxels=voxels,
        ijk_to_lps=matrix,
        modality=entry.modality or guess,
        modality_source=entry.modality_source,
        dimension=entry.dimension,
        calibrated=entry.calibrated,
        outside=reading.outside,
        warnings=reading.warnings,
    )


def main() -> NoReturn:
    """Entry point of the process."""
    parser = argparse.ArgumentParser(description="The engine's process; talks to the Slicer module.")
    parser.add_argument("--idle-seconds", type=float, default=IDLE_S, help="leave after so long without a request")
    arguments = parser.parse_args()
    os.environ.update(ENVIRONMENT)
    faulthandler.enable()
    with suppress(AttributeError, OSError):  # Windows: the module starts it with a lower priority
        os.nice(NICENESS)
    handlers = {
        "segment": segment_volume,
        "edit-start": start_edit,
        "edit": edit,
        "edit-end": end_edit,
        "check": check_engine,
        "fetch": fetch_weights,
        "forget": forget,
    }
    serve(handlers, arguments.idle_seconds)


if __name__ == "__main__":
    main()
