"""Correcting by hand in the stand-in engine: clicks paint or clear squares, answers are as agreed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from MedZeroSegLib.delivery import write_mask
from MedZeroSegLib.edit_protocol import Action, MaskFile, read_edit, read_edit_end, read_edit_start
from MedZeroSegLib.errors import InputError, SessionLost
from MedZeroSegLib.extent import crop, mask_extent
from MedZeroSegLib.request_loop import Report

RADIUS = 2  # voxels; a click's square has 2 * RADIUS + 1 a side
THROUGH = 2  # the axis k
_sessions: dict[int, list[np.ndarray]] = {}  # each with the masks of its revisions


def start_edit(message: Mapping[str, Any], report: Report, wait: Callable[[str], None]) -> dict[str, Any]:
    """Answer "edit-start"."""
    request = read_edit_start(message)
    report.progress("loading")
    wait("opening")
    shape = np.load(request.volume.voxels, mmap_mode="r").shape
    for other in request.others:
        _mask(other.mask, shape)
    _sessions[request.id] = [_mask(request.mask, shape)]
    report.event(
        "editing", session=request.id, revision=0, through=THROUGH, slices=shape[0], name=request.name, trained=True,
        sentences=[],
    )  # fmt: skip
    return {}


def edit(message: Mapping[str, Any], report: Report, wait: Callable[[str], None]) -> dict[str, Any]:
    """Answer "edit"."""
    request = read_edit(message)
    if request.session not in _sessions or request.revision >= len(_sessions[request.session]):
        raise SessionLost("The engine was started anew since this correction began; start correcting again.")
    masks = _sessions[request.session]
    mask = masks[request.revision].copy()
    wait("spreading" if request.spread else "editing")
    for action in request.actions:
        mask = _act(mask, action)
    if request.actions:
        _tell(request, masks, mask, "slice", report)
    if request.spread:
        report.check()
        mask = mask.copy()
        mask[1:] |= masks[-1][:-1]
        _tell(request, masks, mask, "volume", report)
    return {}


def end_edit(message: Mapping[str, Any], _report: Report) -> dict[str, Any]:
    """Answer "edit-end"."""
    _sessions.pop(read_edit_end(message), None)
    return {}


def _act(mask: np.ndarray, action: Action) -> np.ndarray:
    if action.kind in ("include", "exclude"):
        for point in action.points:
            i, j, k = (round(index) for index in point)
            if not all(0 <= index < size for index, size in zip((k, j, i), mask.shape, strict=True)):
                raise InputError("The point lies outside the image; click inside it.")
            square = (k, slice(max(0, j - RADIUS), j + RADIUS + 1), slice(max(0, i - RADIUS), i + RADIUS + 1))
            mask[square] = action.kind == "include"
    elif action.kind == "stroke":
        points = np.array(action.points, int)
        points = points[((points >= 0) & (points < mask.shape[::-1])).all(axis=1)]
        if not len(points):
            raise InputError("The stroke lies outside the image; paint inside the image.")
        i, j, k = points.T
        mask[k, j, i] = action.include
    elif action.kind == "box":
        crop(mask, action.box)[:] = True
    elif action.kind == "absent":
        mask[action.slice] = False
    elif action.kind == "redraw":
        mask = _mask(action.mask, mask.shape)
    return mask


def _tell(request: Any, masks: list[np.ndarray], mask: np.ndarray, stage: str, report: Report) -> None:
    base = masks[request.revision]
    differs = mask != base
    del masks[request.revision + 1 :]
    masks.append(mask)
    file, box = None, None
    if differs.any():
        box = mask_extent(differs)
        file = request.folder / f"{request.id}-{stage}.npy"
        write_mask(file, crop(mask, box), "try the correction again")
    report.event(
        "edited", session=request.session, revision=len(masks) - 1, stage=stage, box=box, mask=file and str(file),
        slices=np.flatnonzero(differs.any(axis=(1, 2))).tolist(), sentences=[], seconds=0.0,
    )  # fmt: skip


def _mask(entry: MaskFile | None, shape: tuple[int, ...]) -> np.ndarray:
    mask = np.zeros(shape, bool)
    if entry is not None:
        crop(mask, entry.box)[:] = np.load(Path(entry.file)) != 0
    return mask
