"""What a reader finds in a file before it is checked and becomes a Volume; shared by volume_io and dicom_io.

Frames (time points, echoes, cine) are chosen, never averaged; colours become grey levels."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from MedZeroSegLib.errors import InputError

LUMA = (0.299, 0.587, 0.114)  # weights of red, green, blue in a grey level, ITU-R BT.601
COLOUR_WARNING = "The colours of the image were turned into grey levels."


@dataclass(frozen=True)
class Reading:
    """Voxels as read, with what the file says about them; may still hold NaN."""

    voxels: np.ndarray  # [k, j, i]
    ijk_to_lps: np.ndarray  # [4, 4], mm
    dimension: int  # 2 or 3
    calibrated: bool
    modality: str | None = None  # None: the file doesn't say
    outside: np.ndarray | None = None  # bool [k, j, i]; padding that the file declares
    warnings: tuple[str, ...] = ()


def choose_frame(count: int, frame: int | None, path: Path) -> int:
    """Index, from 0, of the frame to read from ``count`` frames; InputError when it isn't clear or doesn't exist."""
    if frame is None and count > 1:
        raise InputError(f"'{path}' holds {count} frames; choose one with the frame option (0 to {count - 1}).")
    chosen = frame or 0
    if not 0 <= chosen < count:
        held = "one frame, number 0" if count == 1 else f"{count} frames, 0 to {count - 1}"
        raise InputError(f"'{path}' has no frame {chosen}; it holds {held}.")
    return chosen


def to_grey(channels: np.ndarray) -> tuple[np.ndarray, bool]:
    """Channels [c, ...] (grey, grey and alpha, RGB or RGBA) → grey [...] of the same type, and whether colour was lost.

    Alpha is dropped. Equal channels come back exactly.
    """
    if len(channels) < 3 or (np.array_equal(channels[0], channels[1]) and np.array_equal(channels[0], channels[2])):
        return channels[0], False
    grey = np.zeros(channels.shape[1:], np.float32)
    for channel, weight in zip(channels[:3], LUMA, strict=True):
        grey += np.float32(weight) * channel
    return (grey if channels.dtype.kind == "f" else np.rint(grey).astype(channels.dtype)), True


def rescale(stored: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    """``stored * slope + intercept``: shifted integers in the smallest type that holds them, all else float32."""
    if (slope, intercept) == (1, 0):
        return stored
    if slope == 1 and float(intercept).is_integer() and stored.dtype.kind in "iu":
        smallest, largest = int(stored.min()) + int(intercept), int(stored.max()) + int(intercept)
        for dtype in (np.int16, np.uint16, np.int32):
            limits = np.iinfo(dtype)
            if limits.min <= smallest and largest <= limits.max:
                # Added in two's complement, which wraps to the right result whatever the stored type was.
                return stored.astype(dtype) + np.array(int(intercept)).astype(dtype)
    scaled = np.empty(stored.shape, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for section, source in zip(scaled, stored, strict=True):
            section[...] = source.astype(np.float64) * slope + intercept
    return scaled


class _Silence:
    """Standard error led nowhere while at least one thread asks for it; threads share the file descriptor."""

    def __init__(self) -> None:
        self.lock, self.threads = threading.Lock(), 0
        self.warned, self.kept = True, None  # type: bool, int | None

    def begin(self) -> None:
        with self.lock:
            self.threads += 1
            if self.threads > 1:
                return
            self.warned = sitk.ProcessObject.GetGlobalWarningDisplay()
            sitk.ProcessObject.SetGlobalWarningDisplay(False)
            try:
                self.kept = os.dup(2)
                with open(os.devnull, "wb") as nowhere:
                    os.dup2(nowhere.fileno(), 2)
            except OSError:  # a program without a console has no stderr
                self.kept = None

    def end(self) -> None:
        with self.lock:
            self.threads -= 1
            if self.threads:
                return
            if self.kept is not None:
                os.dup2(self.kept, 2)
                os.close(self.kept)
                self.kept = None
            sitk.ProcessObject.SetGlobalWarningDisplay(self.warned)


_SILENCE = _Silence()


@contextmanager
def silent_libraries() -> Iterator[None]:
    """Keep off stderr what ITK, MetaIO, GDCM and libjpeg print there; most of them write to file descriptor 2."""
    _SILENCE.begin()
    try:
        yield
    finally:
        _SILENCE.end()
