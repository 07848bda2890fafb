"""Takes the engine's place in a worker of a cohort, as a preload of Dask: finds what is bright, in no time. For tests
of the run itself; the pixel in the first corner says what else happens, and every computation is written down.

THRESHOLD_ENGINE_LOG     file to which each computation adds the name of its image
THRESHOLD_ENGINE_SECONDS how long a computation takes
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from types import ModuleType

BRIGHT = 100
KILLS_ITS_PROCESS, KILLS_ITS_PROCESS_ONCE, FAILS = 7, 8, 9  # grey levels of the first pixel


def segment(volume, names, preset="lite", device="auto", weights_folder=None):
    from MedZeroSegLib.queries import resolve
    from MedZeroSegLib.segment import Segment, Segmentation

    log = Path(os.environ["THRESHOLD_ENGINE_LOG"])
    order = int(volume.voxels.flat[0])
    with log.open("a") as file:
        file.write(f"{volume.path.name}\n")
    began_before = log.read_text().splitlines().count(volume.path.name) > 1
    if order == KILLS_ITS_PROCESS or (order == KILLS_ITS_PROCESS_ONCE and not began_before):
        os.kill(os.getpid(), signal.SIGKILL)
    if order == FAILS:
        raise ZeroDivisionError("a fault that nobody thought of")
    time.sleep(float(os.environ.get("THRESHOLD_ENGINE_SECONDS", "0")))
    mask = volume.voxels >= BRIGHT
    segments = tuple(
        Segment(
            typed=query.typed,
            name=query.name,
            found=bool(mask.any()),
            score=0.9,
            mask=mask,
            code=query.code,
            category=query.category,
            modifier=query.modifier,
            color=query.color,
            slices=int(mask.any(axis=(1, 2)).sum()),
            provenance={"trained": True},
        )
        for query in resolve(names)
    )
    return Segmentation(
        volume=volume,
        segments=segments,
        preset=preset,
        weights=({"name": "none", "file": "", "sha256": "0", "licence": ""},),
        device="cpu",
        seconds={},
        settings={},
        version="0",
    )


def forget_volumes():
    pass


def dask_setup(worker):
    """Called by Dask in each worker."""
    pipeline, encoding = ModuleType("MedZeroSegLib.pipeline"), ModuleType("MedZeroSegLib.encoding")
    pipeline.segment, encoding.forget_volumes = segment, forget_volumes
    sys.modules.update({module.__name__: module for module in (pipeline, encoding)})
