"""What only all the voxels of a volume tell: the range of its grey levels, and which part of the body it cannot show.
Looked at once for each state of the voxels; large volumes in a thread, which touches nothing of the scene."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, MutableMapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from MedZeroSegLib.field_of_view import FieldOfView, field_of_view
from MedZeroSegLib.modality import guess_modality, holds_whole_numbers
from MedZeroSegLib.outside import padding_value

SEEN_VOLUMES = 8  # whose looks are remembered
FEW_VOXELS = 1 << 21  # so many are looked at in a few milliseconds, for which nobody needs a thread

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


@dataclass(frozen=True)
class GreyLevels:
    """Range of what is image, as the engine sees it after it has set padding and NaN aside."""

    empty: bool
    smallest: float = 0.0
    largest: float = 0.0
    whole_numbers: bool = True
    not_finite: int = 0
    lost_colour: bool = False


@dataclass(frozen=True)
class Look:
    """What was seen; ``modality`` is the one stated, else the guess."""

    levels: GreyLevels
    modality: str
    field_of_view: FieldOfView


@dataclass(frozen=True, eq=False)
class Question:
    """What is looked at.

    Attributes
    ----------
    stamp : names the voxels.
    place : names what is on the image but for its grey levels; frames of a sequence share it.
    voxels : [k, j, i], or with colors [k, j, i, c], not copied.
    matrix : IJK → LPS mm [4, 4].
    stated : the modality, where anybody has said it.
    body_part : as DICOM says.
    """

    stamp: Hashable
    place: Hashable
    voxels: np.ndarray
    matrix: np.ndarray
    stated: str | None
    dimension: int
    calibrated: bool
    body_part: str = ""

    @property
    def key(self) -> Hashable:
        """Equal ones have equal answers."""
        return self.stamp, self.place, self.matrix.tobytes(), self.stated, self.dimension, self.calibrated


_levels: OrderedDict[Hashable, GreyLevels] = OrderedDict()
_fields: OrderedDict[Hashable, FieldOfView] = OrderedDict()
_looks: OrderedDict[Hashable, Look] = OrderedDict()
_threads: dict[Hashable, threading.Thread] = {}


def look(question: Question, wait: bool = True) -> Look | None:
    """The answer to a question; without ``wait`` None while a large volume is looked at in a thread."""
    key = question.key
    if key in _looks:
        return _looks[key]
    thread = _threads.pop(key, None)
    if wait or question.voxels.size <= FEW_VOXELS or (thread is not None and not thread.is_alive()):
        return _look(question)  # also where the thread has failed, so that it is told why
    if thread is None:
        thread = threading.Thread(target=_look, args=(question,), daemon=True)
        thread.start()
    _threads[key] = thread
    return None


def grey_levels(voxels: np.ndarray) -> tuple[np.ndarray, bool]:
    """Grey levels [k, j, i], the same array where there are no colors, and whether color was lost."""
    if voxels.ndim == 3:
        return voxels, False
    from MedZeroSegLib.reading import to_grey  # brings SimpleITK

    grey, lost_colour = to_grey(np.moveaxis(voxels, -1, 0))
    return np.ascontiguousarray(grey), lost_colour


def _look(question: Question) -> Look:
    grey, lost_colour = grey_levels(question.voxels)
    if question.stamp not in _levels:
        _keep(_levels, question.stamp, _range_of(grey, lost_colour))
    levels = _levels[question.stamp]
    modality = question.stated or guess_modality(
        levels.smallest, levels.largest, levels.whole_numbers, question.dimension
    )
    place = (question.place, question.matrix.tobytes(), modality, question.dimension, question.calibrated)
    if place not in _fields and not levels.empty:
        seen = field_of_view(
            grey, question.matrix, modality, question.dimension, question.calibrated, question.body_part
        )
        _keep(_fields, place, seen)
    found = Look(levels, modality, _fields.get(place, FieldOfView()))
    _keep(_looks, question.key, found)
    return found


def _keep(kept: MutableMapping[Key, Value], key: Key, value: Value) -> None:
    kept[key] = value
    for oldest in list(kept)[: max(0, len(kept) - SEEN_VOLUMES)]:
        kept.pop(oldest, None)


def _range_of(voxels: np.ndarray, lost_colour: bool) -> GreyLevels:
    not_finite = 0
    if voxels.dtype.kind == "f":
        with np.errstate(over="ignore", invalid="ignore"):
            looks_finite = bool(np.isfinite(voxels.sum()))  # quick; a sum may also overflow
        not_finite = 0 if looks_finite else sum(int(np.count_nonzero(~np.isfinite(section))) for section in voxels)
    if not_finite == voxels.size:
        return GreyLevels(empty=True)
    if not_finite:
        smallest, largest = _finite_range(voxels)
    else:
        smallest, largest = _range_without_padding(voxels)
    middle = voxels[len(voxels) // 2]
    filled = np.where(np.isfinite(middle), middle, smallest) if not_finite else middle
    return GreyLevels(
        empty=False,
        smallest=smallest,
        largest=largest,
        whole_numbers=holds_whole_numbers(filled[np.newaxis]),
        not_finite=not_finite,
        lost_colour=lost_colour,
    )


def _finite_range(voxels: np.ndarray) -> tuple[float, float]:
    sections = [section[np.isfinite(section)] for section in voxels]
    held = [section for section in sections if section.size]
    return float(min(section.min() for section in held)), float(max(section.max() for section in held))


def _range_without_padding(voxels: np.ndarray) -> tuple[float, float]:
    ends: tuple[Any, Any] = voxels.min(), voxels.max()
    padding = padding_value(voxels, 2 if len(voxels) == 1 else 3, ends)
    if padding is None:
        return float(ends[0]), float(ends[1])
    image = voxels != padding
    return float(voxels.min(where=image, initial=ends[1])), float(voxels.max(where=image, initial=ends[0]))
