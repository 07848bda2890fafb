"""Messages of correcting by hand, beside those of `protocol`: open a correction, act on it, close it.
Needs nothing but Python itself.

To the engine:

- ``{"id", "cmd": "edit-start", "volume": {...}, "name": "" or as typed, "mask": MASK or null, "others": [OTHER...],
  "stay_out": bool, "through": null | 0 | 1 | 2, "preset", "device", "weights_folder"}``: open a correction of one
  segment. ``mask``: the segment as it is now, null for an empty one. ``others``: the other segments; where the
  vocabulary says that two structures exclude each other the model never enters them, with ``stay_out`` it enters none.
  ``through``: the index axis (0 i, 1 j, 2 k) that runs through the slices that the person corrects; null for the
  volume's own.
- ``{"id", "cmd": "edit", "session", "revision", "volume": {...}, "actions": [ACTION...], "spread": bool, "folder"}``:
  go back (or forward again) to ``revision``, which is what the person sees, and apply the actions one after the other.
  Undo therefore needs no message: the next action names the revision that is shown. A waiting message that is replaced
  by a newer one is lost: the newer one repeats its actions. With ``spread`` the change is carried to other slices
  afterwards; a cancelled spread leaves the revision before it. ``actions`` may be empty.
- ``{"id", "cmd": "edit-end", "session"}``: forget the correction; the image's embeddings stay.

MASK is ``{"file": .npy of uint8 [k, j, i], "box": [i0, i1, j0, j1, k0, k1]}``, the box on the volume's grid,
inclusive; a mask on another grid is given whole, with ``"ijk_to_lps"`` (4×4) in place of ``box``. OTHER is
``{"name": "spleen", "mask": MASK}``.

ACTION is one of

- ``{"kind": "include" | "exclude", "points": [[i, j, k]...]}``: clicks, positions in voxels, which may be fractions
- ``{"kind": "stroke", "include": bool, "points": [[i, j, k]...]}``: voxels that were painted
- ``{"kind": "box", "box": [i0, i1, j0, j1, k0, k1]}``: the structure lies in here; in one slice or in several
- ``{"kind": "confirm" | "absent", "slice": n}``: the slice is right; the structure isn't in it. ``n`` counts along the
  axis ``through`` of the volume's grid
- ``{"kind": "redraw", "mask": MASK or null}``: the segment as other tools left it; what differs was drawn by a person

From the engine, before "finished":

- "editing", the answer of "edit-start": ``session``, ``revision``, ``through``, ``slices``, ``name``, ``trained``
  (whether text helps), ``sentences``
- "edited": ``session``, ``revision`` (after the change), ``stage`` ("slice" after the actions, "volume" after the
  spread), ``box`` (inclusive; null where nothing changed), ``mask`` (path of the .npy, bool [k, j, i]: the segment
  in the whole box, afterwards; or null), ``slices`` (slices that changed, counted along ``through``), ``sentences``,
  ``seconds``

An "error" with the code "session" means that the engine doesn't know the session or the revision (it has been started
anew): open the correction again with the mask as it is now.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from MedZeroSegLib.protocol import (
    CheckRequest,
    ProtocolError,
    VolumeFile,
    common_fields,
    entry_of,
    matrix_rows,
    request_id,
    volume_file,
)

Box = tuple[int, int, int, int, int, int]
POINT_ACTIONS, SLICE_ACTIONS = ("include", "exclude"), ("confirm", "absent")
EDIT_COMMANDS = ("edit-start", "edit", "edit-end")


@dataclass(frozen=True)
class MaskFile:
    """A mask handed over as file: its box on the volume's grid, or whole with its own grid's matrix."""

    file: Path
    box: Box | None
    ijk_to_lps: tuple[tuple[float, ...], ...] | None


@dataclass(frozen=True)
class OtherFile:
    """Another segment of the same image."""

    name: str
    mask: MaskFile


@dataclass(frozen=True)
class Action:
    """One thing that a person did; what doesn't belong to its kind is empty."""

    kind: Literal["include", "exclude", "stroke", "box", "confirm", "absent", "redraw"]
    points: tuple[tuple[float, float, float], ...] = ()
    include: bool = True
    box: Box | None = None
    slice: int = 0
    mask: MaskFile | None = None


@dataclass(frozen=True)
class EditStartRequest(CheckRequest):
    """A correction to be opened."""

    volume: VolumeFile
    name: str
    mask: MaskFile | None
    others: tuple[OtherFile, ...]
    stay_out: bool
    through: int | None


@dataclass(frozen=True)
class EditRequest:
    """Actions on a correction; masks are written into ``folder``."""

    id: int
    session: int
    revision: int
    volume: VolumeFile
    actions: tuple[Action, ...]
    spread: bool
    folder: Path


def read_edit_start(message: Mapping[str, Any]) -> EditStartRequest:
    """Raises ProtocolError."""
    through = message.get("through")
    if through not in (None, 0, 1, 2):
        raise ProtocolError(f"'through' is {through!r:.80}")
    return EditStartRequest(
        **common_fields(message),
        volume=volume_file(entry_of(message, "volume", dict)),
        name=entry_of(message, "name", str),
        mask=_mask_or_none(message.get("mask")),
        others=tuple(_other(other) for other in entry_of(message, "others", list)),
        stay_out=entry_of(message, "stay_out", bool),
        through=through,
    )


def read_edit(message: Mapping[str, Any]) -> EditRequest:
    """Raises ProtocolError."""
    return EditRequest(
        id=request_id(message),
        session=entry_of(message, "session", int),
        revision=entry_of(message, "revision", int),
        volume=volume_file(entry_of(message, "volume", dict)),
        actions=tuple(_action(action) for action in entry_of(message, "actions", list)),
        spread=entry_of(message, "spread", bool),
        folder=Path(entry_of(message, "folder", str)),
    )


def read_edit_end(message: Mapping[str, Any]) -> int:
    """The session that is closed; raises ProtocolError."""
    request_id(message)
    return entry_of(message, "session", int)


def check_edit_request(message: Mapping[str, Any]) -> None:
    """Raises ProtocolError for a message that the engine would refuse."""
    readers = {"edit-start": read_edit_start, "edit": read_edit, "edit-end": read_edit_end}
    readers[str(message.get("cmd"))](message)


def _action(action: Any) -> Action:
    if not isinstance(action, dict):
        raise ProtocolError(f"an action is {action!r:.80}")
    kind = action.get("kind")
    if kind in POINT_ACTIONS:
        return Action(kind, points=_points(action))
    if kind == "stroke":
        return Action(kind, points=_points(action), include=entry_of(action, "include", bool))
    if kind == "box":
        return Action(kind, box=_box(entry_of(action, "box", list)))
    if kind in SLICE_ACTIONS:
        return Action(kind, slice=entry_of(action, "slice", int))
    if kind == "redraw":
        return Action(kind, mask=_mask_or_none(action.get("mask")))
    raise ProtocolError(f"{kind!r:.80} is no action")


def _points(action: Mapping[str, Any]) -> tuple[tuple[float, float, float], ...]:
    try:
        points = tuple((float(i), float(j), float(k)) for i, j, k in entry_of(action, "points", list))
    except (TypeError, ValueError) as problem:
        raise ProtocolError("'points' holds something else than (i, j, k)") from problem
    if not points:
        raise ProtocolError("'points' is empty")
    return points


def _box(numbers: list[Any]) -> Box:
    if len(numbers) != 6 or not all(type(number) is int for number in numbers):
        raise ProtocolError(f"'box' is {numbers!r:.80}")
    i0, i1, j0, j1, k0, k1 = numbers
    return i0, i1, j0, j1, k0, k1


def _mask_or_none(entry: Any) -> MaskFile | None:
    if entry is None:
        return None
    if not isinstance(entry, dict):
        raise ProtocolError(f"'mask' is {entry!r:.80}")
    file = Path(entry_of(entry, "file", str))
    if entry.get("ijk_to_lps") is not None:
        return MaskFile(file, None, matrix_rows(entry))
    return MaskFile(file, _box(entry_of(entry, "box", list)), None)


def _other(entry: Any) -> OtherFile:
    if not isinstance(entry, dict):
        raise ProtocolError(f"one of 'others' is {entry!r:.80}")
    mask = _mask_or_none(entry.get("mask"))
    if mask is None:
        raise ProtocolError("one of 'others' has no mask")
    return OtherFile(entry_of(entry, "name", str), mask)
