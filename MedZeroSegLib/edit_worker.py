"""Correcting by hand in the engine's process: the answers to the requests of `edit_protocol`. Sessions live here, with
the models and the image's embeddings, until they are closed, four newer ones have come, or the process leaves."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np

from MedZeroSegLib.delivery import hand_over
from MedZeroSegLib.edit_change import Change
from MedZeroSegLib.edit_protocol import Action, EditRequest, EditStartRequest, MaskFile
from MedZeroSegLib.editing import EditingSession, OtherSegment
from MedZeroSegLib.errors import InputError, SessionLost
from MedZeroSegLib.extent import EMPTY_EXTENT, crop
from MedZeroSegLib.mask_resampling import on_grid_of
from MedZeroSegLib.presets import load_engine, preset_named
from MedZeroSegLib.progress import Progress
from MedZeroSegLib.request_loop import Cancelled, Report
from MedZeroSegLib.volume import Volume

SESSIONS_KEPT = 4
_sessions: OrderedDict[int, EditingSession] = OrderedDict()


def start_edit(request: EditStartRequest, report: Report, volume: Volume) -> dict[str, Any]:
    """Answer "edit-start"."""
    asked = preset_named(request.preset)
    preset = "lite" if asked.zero_shot is not None or asked.is_student else request.preset
    engine = load_engine(preset, request.device, request.weights_folder)
    mask, said = (None, ()) if request.mask is None else _mask(request.mask, volume)
    others = [OtherSegment(other.name, _mask(other.mask, volume)[0]) for other in request.others]
    report.progress("preparing")
    session = EditingSession(
        volume,
        engine,
        mask,
        name=request.name,
        others=others,
        stay_out=request.stay_out,
        through=request.through,
    )
    report.check()
    _sessions[request.id] = session
    while len(_sessions) > SESSIONS_KEPT:
        _sessions.popitem(last=False)
    report.event(
        "editing",
        session=request.id,
        revision=session.revision,
        through=session.through,
        slices=session.grid.canonical_shape[0],
        name=session.name,
        trained=session.text.trained,
        sentences=said,
    )
    return {}


def edit(request: EditRequest, report: Report, volume: Volume) -> dict[str, Any]:
    """Answer "edit": the revision that the person sees, the actions, and the spread where it is asked for."""
    session = _session(request.session)
    session.require(volume)
    started = time.perf_counter()
    session.return_to(request.revision)
    said: list[str] = []
    try:
        before = session.drawing.mask.copy() if len(request.actions) > 1 else None
        changes = []
        for action in request.actions:
            report.check()
            changes.append(_act(session, action, volume, said))
            said += changes[-1].sentences
    except (Cancelled, InputError):
        session.return_to(request.revision)
        raise
    if changes:
        change = changes[0] if before is None else session.change_since(before)
        _tell(request, change, "slice", said, time.perf_counter() - started, report)
    if request.spread:
        started = time.perf_counter()
        change = session.spread(_telling(report))
        _tell(request, change, "volume", change.sentences, time.perf_counter() - started, report)
    return {}


def end_edit(session: int) -> None:
    """Answer "edit-end"; a session that isn't known any more is closed, too."""
    _sessions.pop(session, None)


def forget_sessions() -> None:
    """Close all corrections."""
    _sessions.clear()


def _session(number: int) -> EditingSession:
    if number not in _sessions:
        raise SessionLost("The engine was started anew since this correction began; start correcting again.")
    _sessions.move_to_end(number)
    return _sessions[number]


def _act(session: EditingSession, action: Action, volume: Volume, said: list[str]) -> Change:
    if action.kind in ("include", "exclude"):
        points = np.array(action.points)
        return session.include(points) if action.kind == "include" else session.exclude(points)
    if action.kind == "stroke":
        return session.stroke(np.array(action.points), action.include)
    if action.kind == "box":
        return session.box(action.box or EMPTY_EXTENT)
    if action.kind == "confirm":
        return session.confirm_slice(action.slice)
    if action.kind == "absent":
        return session.not_in_slice(action.slice)
    mask, sentences = (None, ()) if action.mask is None else _mask(action.mask, volume)
    said += sentences
    return session.redraw(mask)


def _telling(report: Report) -> Progress:
    def tell(stage: str, share: float, /, **values: str | int) -> None:
        report.progress(stage, share, None, **values)

    return tell


def _mask(entry: MaskFile, volume: Volume) -> tuple[np.ndarray, tuple[str, ...]]:
    """A mask that was handed over, bool [k, j, i] on the volume's grid, and what is to be said of it."""
    try:
        voxels = np.load(entry.file, allow_pickle=False)
    except (OSError, ValueError) as problem:
        raise InputError("The segment's mask was not handed over; start correcting again.") from problem
    if entry.ijk_to_lps is not None:
        return on_grid_of(volume, voxels != 0, np.array(entry.ijk_to_lps))
    mask = np.zeros(volume.shape, bool)
    box = entry.box or EMPTY_EXTENT
    if voxels.size:
        inside = crop(mask, box)
        if min(box[::2]) < 0 or inside.shape != voxels.shape:
            raise InputError("The segment's mask doesn't fit into the image; start correcting again.")
        inside[:] = voxels != 0
    return mask, ()


def _tell(
    request: EditRequest, change: Change, stage: str, said: Sequence[str], seconds: float, report: Report
) -> None:
    """Hand over the segment in the changed box."""
    report.check()
    nothing = change.box == EMPTY_EXTENT
    fields = {
        "session": request.session,
        "revision": change.revision,
        "stage": stage,
        "box": None if nothing else change.box,
        "slices": change.slices,
        "sentences": list(said),
        "seconds": round(seconds, 3),
    }
    file = request.folder / f"{request.id}-{stage}.npy"
    hand_over("edited", fields, None if nothing else change.mask, file, "try the correction again", report)
