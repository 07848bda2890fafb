"""Messages between the Slicer module and the engine's process: one JSON object a line, checked alike on both sides.
Voxels and masks travel as .npy files that the messages name. Needs no PyTorch.

To the engine, "id" being a number that the module has not used before:

- ``{"id", "cmd": "segment", "volume": {...}, "names": [...], "folder", "preset", "device", "weights_folder"}``,
  and where they aren't as usual ``"sensitivity": 0..1`` and ``"region": {"box", "ijk_to_unit"}`` of `region.Region`
- ``{"id", "cmd": "check", "preset", "device", "weights_folder"}``: do packages, weights and device work?
- ``{"id", "cmd": "fetch", ...}`` with the fields of "check": download the model files that the preset lacks
- ``{"id", "cmd": "edit-start" | "edit" | "edit-end", ...}``: correcting by hand, see `edit_protocol`
- ``{"id", "cmd": "forget"}``: free models and volumes
- ``{"id", "cmd": "cancel"}``: of the request with that id; ``{"cmd": "exit"}``

From the engine, with the request's id: any number of

- "progress": ``fraction`` of the predicted time, ``seconds_left`` or null, ``code``, ``values``
- "segment": see `delivery.segment_fields`
- "result": ``line``, ``device``; the answer of "check" and "fetch"
- "editing", "edited": see `edit_protocol`

and then one of "finished", "cancelled" and "error" (``code`` of `ERROR_CODES`, ``message``: a sentence for the user).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from MedZeroSegLib.region import Region
from MedZeroSegLib.sensitivity import NEUTRAL

FINAL_EVENTS = ("finished", "cancelled", "error")
EVENTS = ("progress", "segment", "result", "editing", "edited", *FINAL_EVENTS)
ERROR_CODES = ("input", "session", "installation", "memory", "worker-died", "internal")

# Of the engine's process: UTF-8 whatever the system's language, no network, no usage statistics.
ENVIRONMENT: Mapping[str, str] = MappingProxyType(
    {
        "PYTHONUTF8": "1",
        "PYTHONIOENCODING": "utf-8",
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
    }
)

Value = TypeVar("Value")


class ProtocolError(ValueError):
    """A message that lacks something or holds something else than agreed; the text names it."""


@dataclass(frozen=True)
class VolumeFile:
    """A volume handed over as file.

    Attributes
    ----------
    voxels : .npy file of the array [k, j, i].
    ijk_to_lps : rows of the 4×4 matrix, mm.
    modality : member of `volume.MODALITIES`; None leaves it to the engine to guess.
    modality_source : "dicom", "guess" or "given".
    dimension : 2 or 3.
    calibrated : whether the spacing is in mm.
    """

    voxels: Path
    ijk_to_lps: tuple[tuple[float, ...], ...]
    modality: str | None
    modality_source: str
    dimension: int
    calibrated: bool


@dataclass(frozen=True)
class CheckRequest:
    """Models and device to be tried."""

    id: int
    preset: str
    device: str
    weights_folder: Path | None


@dataclass(frozen=True)
class SegmentRequest(CheckRequest):
    """Names to be segmented in a volume; masks are written into ``folder``."""

    volume: VolumeFile
    names: tuple[str, ...]
    folder: Path
    sensitivity: float = NEUTRAL
    region: Region | None = None


def encode_line(message: Mapping[str, Any]) -> bytes:
    """The line of a message; ASCII, so that any path and any name gets through. ValueError for NaN and infinity."""
    return json.dumps(message, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode("ascii") + b"\n"


def decode_line(line: bytes) -> dict[str, Any] | None:
    """The message of a line; None when the line is none: something that a library has printed."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return message if isinstance(message, dict) else None


def decode_event(line: bytes) -> dict[str, Any] | None:
    """The engine's event in a line; None when the line is none."""
    message = decode_line(line)
    known = message is not None and message.get("event") in EVENTS and type(message.get("id")) is int
    return message if known else None


def request_id(message: Mapping[str, Any]) -> int:
    """Raises ProtocolError where there is none."""
    return entry_of(message, "id", int)


def read_check(message: Mapping[str, Any]) -> CheckRequest:
    """Raises ProtocolError."""
    return CheckRequest(**common_fields(message))


def read_segment(message: Mapping[str, Any]) -> SegmentRequest:
    """Raises ProtocolError."""
    names = entry_of(message, "names", list)
    if not all(isinstance(name, str) for name in names):
        raise ProtocolError("'names' holds something else than texts")
    return SegmentRequest(
        **common_fields(message),
        volume=volume_file(entry_of(message, "volume", dict)),
        names=tuple(names),
        folder=Path(entry_of(message, "folder", str)),
        sensitivity=entry_of(message, "sensitivity", float) if "sensitivity" in message else NEUTRAL,
        region=_region(entry_of(message, "region", dict)) if message.get("region") is not None else None,
    )


def check_request(message: Mapping[str, Any]) -> None:
    """Raises ProtocolError for a message that the engine would refuse."""
    command = message.get("cmd")
    if command == "segment":
        read_segment(message)
    elif command in ("check", "fetch"):
        read_check(message)
    elif command == "forget":
        request_id(message)
    elif str(command).startswith("edit"):
        from MedZeroSegLib.edit_protocol import EDIT_COMMANDS, check_edit_request

        if command not in EDIT_COMMANDS:
            raise ProtocolError(f"{command!r} is no request")
        check_edit_request(message)
    else:
        raise ProtocolError(f"{command!r} is no request")


def common_fields(message: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `CheckRequest`; raises ProtocolError."""
    folder = message.get("weights_folder")
    if folder is not None and not isinstance(folder, str):
        raise ProtocolError("'weights_folder' is no text")
    return {
        "id": request_id(message),
        "preset": entry_of(message, "preset", str),
        "device": entry_of(message, "device", str),
        "weights_folder": Path(folder) if folder else None,
    }


def volume_file(entry: Mapping[str, Any]) -> VolumeFile:
    """Raises ProtocolError."""
    rows = matrix_rows(entry)
    modality = entry.get("modality")
    if modality is not None and not isinstance(modality, str):
        raise ProtocolError("'modality' is no text")
    return VolumeFile(
        voxels=Path(entry_of(entry, "voxels", str)),
        ijk_to_lps=rows,
        modality=modality,
        modality_source=entry_of(entry, "modality_source", str) if modality else "guess",
        dimension=entry_of(entry, "dimension", int),
        calibrated=entry_of(entry, "calibrated", bool),
    )


def _region(entry: Mapping[str, Any]) -> Region:
    box = entry_of(entry, "box", list)
    if len(box) != 6 or not all(type(index) is int for index in box):
        raise ProtocolError("'box' isn't six indices")
    i0, i1, j0, j1, k0, k1 = box
    return Region((i0, i1, j0, j1, k0, k1), matrix_rows(entry, "ijk_to_unit") if entry.get("ijk_to_unit") else None)


def matrix_rows(entry: Mapping[str, Any], key: str = "ijk_to_lps") -> tuple[tuple[float, ...], ...]:
    """The rows of a 4×4 matrix; raises ProtocolError."""
    matrix = entry_of(entry, key, list)
    try:
        rows = tuple(tuple(float(number) for number in row) for row in matrix)
    except (TypeError, ValueError) as problem:
        raise ProtocolError(f"{key!r} holds something else than numbers") from problem
    if [len(row) for row in rows] != [4, 4, 4, 4]:
        raise ProtocolError(f"{key!r} is no 4×4 matrix")
    return rows


def entry_of(message: Mapping[str, Any], key: str, kind: type[Value]) -> Value:
    """The value of a key, which must be of this very type; raises ProtocolError."""
    value = message.get(key)
    if type(value) is not kind:
        raise ProtocolError(f"{key!r} is missing" if value is None else f"{key!r} is {value!r:.80}")
    return value
