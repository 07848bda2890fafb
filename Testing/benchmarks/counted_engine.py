"""Preload of a cohort's workers that lets the real engine work and writes down what it does; for cohort.py.

COUNTED_LOG      file: a line "begin NAME" and a line "end NAME RESIDENT_BYTES PID TIME" for each computation
SLOW_READING_S   seconds that each image takes longer to be read, as from a storage far away
QUICK_ENGINE     set: no models, nothing is found; what is left is reading and writing
"""

from __future__ import annotations

import os
import time

import psutil


def note(line: str) -> None:
    with open(os.environ["COUNTED_LOG"], "a") as file:  # one short line at a time is written whole
        file.write(f"{line}\n")


def dask_setup(worker):
    """Called by Dask in each worker."""
    if "QUICK_ENGINE" in os.environ:
        os.environ["THRESHOLD_ENGINE_LOG"] = os.devnull
        import threshold_engine  # of Testing/engine, which the benchmark puts on the path

        # Grey levels that mean an accident there mean nothing in these images.
        threshold_engine.KILLS_ITS_PROCESS = threshold_engine.KILLS_ITS_PROCESS_ONCE = threshold_engine.FAILS = -1
        threshold_engine.dask_setup(worker)
    from MedZeroSegLib import pipeline, volume_io

    segment, read_volume, delay = pipeline.segment, volume_io.read_volume, float(os.environ.get("SLOW_READING_S", "0"))

    def counted(volume, *arguments, **options):
        note(f"begin {volume.path.name}")
        result = segment(volume, *arguments, **options)
        note(f"end {volume.path.name} {psutil.Process().memory_info().rss} {os.getpid()} {time.time():.3f}")
        return result

    def slow(*arguments, **options):
        time.sleep(delay)
        return read_volume(*arguments, **options)

    pipeline.segment, volume_io.read_volume = counted, slow
