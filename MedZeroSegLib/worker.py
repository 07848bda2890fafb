"""The engine's process, started by this file's path or as `python -m MedZeroSegLib.worker`, and its answers to the
requests of `protocol`. Models and the last volumes stay in memory from one request to the next."""

from __future__ import annotations

import argparse
import faulthandler
import os
import sys
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

if not __package__:  # started by its path: this folder's modules are no top-level modules
    HERE = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [os.path.dirname(HERE), *(path for path in sys.path if os.path.abspath(path or ".") != HERE)]

from MedZeroSegLib.errors import InputError, InstallationError
from MedZeroSegLib.protocol import ENVIRONMENT, CheckRequest, SegmentRequest, VolumeFile, read_check, read_segment
from MedZeroSegLib.request_loop import IDLE_S, Cancelled, Report, serve

if TYPE_CHECKING:
    from MedZeroSegLib.extent import Extent
    from MedZeroSegLib.segment import Segment, Segmentation
    from MedZeroSegLib.volume import Volume

NICENESS = 5  # the window that waits for the result comes first


def segment_volume(message: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """Answer "segment": each result as soon as it is ready, and at the end how it was made."""
    from MedZeroSegLib.forecast import Forecast, rates_file, remember_rates, remembered_rates

    request = read_segment(message)
    report.progress("loading")
    pipeline = _pipeline()
    volume = _volume(request.volume, _signature(request.volume.voxels))
    setting = _setting(request)
    forecast = Forecast(volume.voxels.size / 1e6, remembered_rates(rates_file(), setting))

    def tell(stage: str, share: float, /, **values: str | int) -> None:
        fraction, seconds_left = forecast.tell(stage, share, values)
        shown = {} if stage == "planned" else values
        report.progress("preparing" if stage == "planned" else stage, fraction, seconds_left, **shown)

    def deliver(_index: int, segment: Segment) -> None:
        engine = pipeline.load_engine(request.preset, request.device, request.weights_folder)
        _deliver(request, segment, pipeline.segmentation_of(volume, (segment,), engine, {}), report)

    result = pipeline.segment(
        volume, request.names, request.preset, request.device, request.weights_folder, tell, deliver
    )
    remember_rates(rates_file(), setting, forecast.measured())
    return {
        "seconds": result.seconds,
        "warnings": result.warnings,
        "weights": result.weights,
        "device": result.device,
        "version": result.version,
    }


def segment_fields(request: SegmentRequest, segment: Segment, segmentation: Segmentation) -> dict[str, Any]:
    """Fields of the event "segment", but for ``mask``: path of the .npy with uint8 [k, j, i] of the box, or null.

    ``index`` is the place among the request's names; ``box`` is i0, i1, j0, j1, k0, k1, inclusive, or null when the
    structure was not found; ``code``, ``category`` and ``modifier`` are {"scheme", "value", "meaning"} or null;
    ``color`` is 0..255; ``volume_ml`` is null where no mm are known or the image has no depth; ``provenance`` is what
    `segment_tags.provenance_record` keeps in the scene.
    """
    from MedZeroSegLib.extent import mask_extent
    from MedZeroSegLib.segment_tags import provenance_record

    return {
        "index": [name.strip() for name in request.names].index(segment.typed),
        "typed": segment.typed,
        "name": segment.name,
        "found": segment.found,
        "score": segment.score,
        "box": mask_extent(segment.mask) if segment.found else None,
        **{key: code and asdict(code) for key, code in _codes(segment).items()},
        "color": segment.color,
        "slices": segment.slices,
        "volume_ml": segmentation.volume_ml(segment),
        "warnings": segment.warnings,
        "trained": segment.provenance["trained"],
        "provenance": provenance_record(segment, segmentation),
    }


def check_engine(message: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """Answer "check": packages, weights, device and one slice through the encoder, as one line for the user."""
    from MedZeroSegLib.forecast import rates_file, remember_rates
    from MedZeroSegLib.memory import telling_shortage

    request = read_check(message)
    report.progress("loading")
    pipeline = _pipeline()
    from MedZeroSegLib.device import device_line

    with telling_shortage():
        engine = pipeline.load_engine(request.preset, request.device, request.weights_folder)
        report.progress("checking")
        seconds = pipeline.encoder_seconds(engine)
    remember_rates(rates_file(), _setting(request), {"encoding": seconds})
    ten = f"about {round(10 * seconds)} s" if seconds >= 0.1 else "less than a second"
    line = " ".join((f"Ready, {device_line(engine.device)}: {ten} for ten slices.", *engine.warnings))
    report.event("result", line=line, device=engine.device)
    return {"seconds": {"slice": round(seconds, 3)}}


def forget(_message: Mapping[str, Any], _report: Report) -> dict[str, Any]:
    """Answer "forget": free models and volumes."""
    import gc

    _volume.cache_clear()
    if "MedZeroSegLib.pipeline" in sys.modules:
        pipeline = _pipeline()
        pipeline.forget_volumes()
        pipeline.load_engine.cache_clear()
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


def _deliver(request: SegmentRequest, segment: Segment, segmentation: Segmentation, report: Report) -> None:
    """Write the mask, whole or not at all, and then tell of it."""
    report.check()
    fields = segment_fields(request, segment, segmentation)
    mask = _write_mask(request.folder / f"{request.id}-{fields['index']}.npy", segment, fields["box"])
    try:
        report.event("segment", **fields, mask=mask and str(mask))
    except Cancelled:
        if mask is not None:
            with suppress(OSError):
                mask.unlink()
        raise


def _write_mask(file: Path, segment: Segment, box: Extent | None) -> Path | None:
    import numpy as np

    from MedZeroSegLib.extent import crop
    from MedZeroSegLib.writers import replacing

    if box is None:
        return None
    if not file.parent.is_dir():
        raise InstallationError("The folder for the results has gone; press Segment again.")
    with replacing(file) as stream:
        np.save(stream, crop(segment.mask, box).astype(np.uint8), allow_pickle=False)
    return file


def _codes(segment: Segment) -> dict[str, Any]:
    return {"code": segment.code, "category": segment.category, "modifier": segment.modifier}


def main() -> NoReturn:
    """Entry point of the process."""
    parser = argparse.ArgumentParser(description="The engine's process; talks to the Slicer module.")
    parser.add_argument("--idle-seconds", type=float, default=IDLE_S, help="leave after so long without a request")
    arguments = parser.parse_args()
    os.environ.update(ENVIRONMENT)
    faulthandler.enable()
    with suppress(AttributeError, OSError):  # Windows: the module starts it with a lower priority
        os.nice(NICENESS)
    serve({"segment": segment_volume, "check": check_engine, "forget": forget}, arguments.idle_seconds)


if __name__ == "__main__":
    main()
