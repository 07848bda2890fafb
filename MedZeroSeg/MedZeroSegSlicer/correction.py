"""Correcting one segment by hand: what a person does goes to the engine as `MedZeroSegLib.edit_protocol` has it, and
its answers go into the scene, one step of undo each. No widgets; all happens in the thread that calls ``poll``."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from MedZeroSegLib.errors import MedZeroSegError
from MedZeroSegLib.extent import EMPTY_EXTENT, mask_sha256

from .correction_target import Target, Voxels, pasted
from .segment_io import keep_provenance, provenance_of
from .segment_voxels import read_on_grid, write_segment
from .segmentation_run import SegmentationRun, Settings
from .translation import _
from .volumes import prepare_export, volume_stamp
from .writing import Writing

DEBOUNCE_S = 0.05  # actions that follow each other more quickly go together
POSITION_DIGITS = 2  # of a voxel, kept in a segment's provenance
CORRECTIONS = "corrections"  # their key in there

Action = dict[str, Any]
Look = tuple[str, int]  # of a segment in the scene: its voxels' SHA-256, and how many corrections it has seen


@dataclass
class _Message:
    """What the engine is at: opening when it has no actions and doesn't spread."""

    id: int
    look: Look
    actions: tuple[Action, ...] = ()
    spread: bool = False
    revision: int = 0


class Correction:
    """The segment that is being corrected, and what is on its way to the engine and back.

    One message is under way at a time; actions that come meanwhile wait here and go together with the next one. The
    engine is always told the revision that the scene shows, found by the segment's look: so any undo, of this module or
    of the Segment Editor, is followed, and what was drawn by other tools is handed over as drawn by a person.

    Attributes
    ----------
    target : the segment that is corrected; None when there is none.
    sentence : what to tell the user; "" when there is nothing to say.
    through : the index axis (0 i, 1 j, 2 k) that runs through the slices; None until the engine has said it.
    on_changed : called when something of this has changed.
    """

    def __init__(self, run: SegmentationRun) -> None:
        self.target: Target | None = None
        self.sentence = ""
        self.through: int | None = None
        self.on_changed: Callable[[], None] = lambda: None
        self._run = run
        run.on_other = self._on_event
        self._settings, self._modality, self._stay_out = Settings(), None, False
        self._files = 0  # written so far; each has a name of its own
        self._written: list[Path] = []
        self._writing: Writing | None = None  # of what opens the correction
        self._opening: tuple[dict[str, Any], Look] | None = None  # what is sent then; None where nobody wants it now
        self._lose_session()
        self._begin_anew()

    # Control

    def choose(
        self, target: Target | None, settings: Settings, modality: str | None = None, stay_out: bool = False
    ) -> None:
        """Correct this segment from now on; the present one stays as it is. None: correct nothing."""
        other = (settings, modality, stay_out) != (self._settings, self._modality, self._stay_out)
        if target == self.target and not (other and target is not None and not self.busy):
            return
        self._settings, self._modality, self._stay_out = settings, modality, stay_out
        if target != self.target:
            self._cancel()
            self.sentence, self.through = "", None
        self.target = target
        self._end_session()
        self._begin_anew()

    def open(self) -> None:
        """Let the engine get ready for the segment, so that the first action is answered at once."""
        if self.target is not None and self._session is None and not self._run.state.under_way:
            self._asked = True

    def act(self, *actions: Action) -> None:
        """Do these actions of `edit_protocol`; what they bring is in the scene a little later."""
        if self.target is None or self._run.state.under_way:
            return
        self._pending += actions
        now = time.monotonic()
        self._due = now + DEBOUNCE_S if now < self._last + DEBOUNCE_S else now  # a single click is sent at once
        self._last = now
        if self._current is not None and self._current.spread:  # it would be done again anyway
            self._run.engine.cancel()
        self.on_changed()

    def spread(self) -> None:
        """Carry the corrections to the other slices."""
        if self.target is not None and not self._run.state.under_way:
            self._spread = True
            self.on_changed()

    def undo(self) -> None:
        """Take back what is on its way, or else the last step in the scene."""
        if self.busy:
            self._cancel()
        else:
            self._run.take_back()
        self.sentence = ""
        self.on_changed()

    def poll(self) -> bool:
        """Send what waits; True while there is something to wait for. To be called from a timer, after the run's."""
        if self.target is not None and self.target.segment is None:
            self._cancel()
            self.target = None
            self._lose_session()
            self.on_changed()
        if self._writing is not None:
            if self._writing.is_alive():
                return True
            self._submit_opening()
        waits = self._asked or bool(self._pending) or self._spread
        if waits and self._current is None and not self._run.state.under_way and time.monotonic() >= self._due:
            self._send()
        return self.busy

    def close(self) -> None:
        """Correct nothing any more, and write no files."""
        self.choose(None, Settings())
        if self._writing is not None:
            self._writing.join()

    @property
    def busy(self) -> bool:
        """Whether something is on its way."""
        opening = self._opening is not None
        return self._current is not None or opening or self._asked or bool(self._pending) or self._spread

    @property
    def can_undo(self) -> bool:
        """Whether there is anything to take back."""
        return self.busy or self._run.can_undo

    # To the engine

    def _send(self) -> None:
        assert self.target is not None
        try:
            if self._session is None or volume_stamp(self.target.volume) != self._stamp:
                self._send_start(self.target)
            else:
                self._send_edit(self.target)
        except MedZeroSegError as error:
            self._give_up(str(error))
        except OSError as error:
            self._tell_of_disk(error)
        self.on_changed()

    def _tell_of_disk(self, error: OSError) -> None:
        text = _("The segment could not be handed to the engine ({reason}); make room on the disk and try again.")
        self._give_up(text.format(reason=error.strerror or error))

    def _look(self, target: Target) -> tuple[Voxels, Look]:
        """The segment's voxels, and what tells this state of it from all others; read anew when it has changed."""
        stamp = target.stamp()
        if self._seen is None or self._seen[0] != stamp:
            voxels = target.voxels()
            self._seen = stamp, voxels, mask_sha256(*voxels[:2])
        _stamp, voxels, fingerprint = self._seen
        return voxels, (fingerprint, len(provenance_of(target.segment).get(CORRECTIONS, ())))

    def _send_start(self, target: Target) -> None:
        self._lose_session()
        voxels, look = self._look(target)
        export = prepare_export(target.volume, self._run.folder, self._modality)
        self._volume, self._stamp = export.message, volume_stamp(target.volume)
        writes = [export.write]
        message = {
            "cmd": "edit-start",
            "volume": self._volume,
            "name": self._name(target.segment),
            "mask": self._mask_file(voxels, writes),
            "others": list(self._others(target, writes)),
            "stay_out": self._stay_out,
            "through": None,
            "preset": self._settings.preset,
            "device": self._settings.device,
            "weights_folder": self._settings.weights_folder or None,
        }
        self.sentence = _("Getting ready to correct {name}...").format(name=target.segment.GetName())
        self._opening, self._writing, self._asked = (message, look), Writing(*writes), False

    def _submit_opening(self) -> None:
        """The files are written: send the message, unless nobody wants it any more."""
        assert self._writing is not None
        fault, opening = self._writing.fault, self._opening
        self._writing = self._opening = None
        if opening is None:
            self._forget_files()
        elif fault is not None:
            self._forget_files()
            self._tell_of_disk(fault)
            self.on_changed()
        elif self._run.state.under_way:  # it has begun meanwhile and goes first
            self._forget_files()
            self._asked = True
        else:
            self._current = _Message(self._run.engine.submit(opening[0]), opening[1])

    def _send_edit(self, target: Target) -> None:
        voxels, look = self._look(target)
        actions, self._pending, self._asked = self._pending, [], False
        if look not in self._revisions:
            writes: list[Callable[[], None]] = []
            actions = [{"kind": "redraw", "mask": self._mask_file(voxels, writes)}, *actions]
            for write in writes:
                write()
        revision = self._revisions.get(look, self._revision)
        spread = not actions and self._spread
        if spread:
            self._spread = False
        if not actions and not spread:
            return
        message = {
            "cmd": "edit",
            "session": self._session,
            "revision": revision,
            "volume": self._volume,
            "actions": list(actions),
            "spread": spread,
            "folder": str(self._run.folder),
        }
        self.sentence = _("Updating the neighboring slices...") if spread else _("Correcting...")
        number = self._run.engine.submit(message)
        self._current = _Message(number, look, tuple(actions), spread, revision)

    def _mask_file(self, voxels: Voxels, writes: list[Callable[[], None]]) -> dict[str, Any] | None:
        """The message's entry of a mask, whose writing is added to ``writes``; None for an empty one."""
        mask, extent, _resampled = voxels
        if extent == EMPTY_EXTENT:
            return None
        file = self._run.folder / f"edit-{self._files}.npy"
        self._files += 1
        writes.append(lambda: np.save(file, mask.view(np.uint8), allow_pickle=False))
        self._written.append(file)
        return {"file": str(file), "box": list(extent)}

    def _others(self, target: Target, writes: list[Callable[[], None]]) -> Iterator[dict[str, Any]]:
        segmentation = target.segmentation.GetSegmentation()
        for other_id in segmentation.GetSegmentIDs():
            if other_id == target.segment_id:
                continue
            mask = self._mask_file(read_on_grid(target.segmentation, target.volume, other_id), writes)
            if mask is not None:
                yield {"name": self._name(segmentation.GetSegment(other_id)), "mask": mask}

    @staticmethod
    def _name(segment: Any) -> str:
        """What a segment is known as: by the run that made it, or by the user."""
        return str(provenance_of(segment).get("name") or segment.GetName())

    # From the engine

    def _on_event(self, event: Mapping[str, Any]) -> None:
        message = self._current
        if message is None or event.get("id") != message.id:
            return
        kind = event["event"]
        if kind == "editing":
            self._session, self._revision = event["session"], event["revision"]
            self._revisions, self.through = {message.look: event["revision"]}, event["through"]
            self.sentence = " ".join(event["sentences"])
        elif kind == "edited":
            self._take_in(message, event)
        elif kind == "error":
            self._on_error(message, event)
        if kind in ("finished", "cancelled", "error"):
            self._current = None
            self._forget_files()
            if kind == "cancelled":
                self.sentence = ""
        self.on_changed()

    def _on_error(self, message: _Message, event: Mapping[str, Any]) -> None:
        if event["code"] == "session" and not self._opened_again:
            self._opened_again = True
            self._lose_session()
            self._send_again(message)
            self._asked = True
            return
        if event["code"] != "input" or not (message.actions or message.spread):
            self._lose_session()
        self._give_up(event["message"])

    def _take_in(self, message: _Message, event: Mapping[str, Any]) -> None:
        """Put an answer into the scene, unless the segment was changed while the engine was at it."""
        target = self.target
        if target is None or target.segment is None:
            return
        voxels, look = self._look(target)
        if look != message.look or self._run.state.under_way:
            self._send_again(message)
            return
        self._opened_again = False
        try:
            with self._run.history(target.segmentation, target.volume).change():
                if event["box"] is not None:
                    new = np.load(event["mask"], allow_pickle=False) != 0
                    mask, extent = pasted(*voxels[:2], new, tuple(event["box"]))
                    write_segment(target.segmentation, target.volume, target.segment_id, mask, extent)
                    voxels = mask, extent, False
                self._record(target.segment, message)
            self._seen = target.stamp(), voxels, mask_sha256(*voxels[:2])
        except (MedZeroSegError, OSError, ValueError, RuntimeError):
            logging.exception("MedZeroSeg: a correction was not written")
            self._lose_session()
            self._give_up(_("The correction could not be put into the scene; Slicer's log tells more."))
            return
        if event["mask"] is not None:
            Path(event["mask"]).unlink(missing_ok=True)
        # Revisions that were ahead of the one that was gone back to are replaced by this one.
        kept = {look: revision for look, revision in self._revisions.items() if revision <= message.revision}
        self._revision = event["revision"]
        self._revisions = {**kept, self._look(target)[1]: self._revision}
        self.sentence = " ".join(event["sentences"])
        if not self.sentence and event["stage"] == "volume":
            count = len(event["slices"])
            self.sentence = (
                _("The other slices stay as they are.") if not count
                else _("1 slice was updated.") if count == 1
                else _("{count} slices were updated.").format(count=count)
            )  # fmt: skip

    def _send_again(self, message: _Message) -> None:
        """What a message asked for waits again, before what has come since; the mask is handed over anew."""
        self._pending = [action for action in message.actions if action["kind"] != "redraw"] + self._pending
        self._spread = self._spread or message.spread

    def _record(self, segment: Any, message: _Message) -> None:
        record = provenance_of(segment)
        done = [recorded(action) for action in message.actions] + [{"kind": "spread"}] * message.spread
        record[CORRECTIONS] = [*record.get(CORRECTIONS, ()), *done]
        keep_provenance(segment, record)

    # States

    def _begin_anew(self) -> None:
        """Nothing is on its way."""
        self._current: _Message | None = None
        self._opening = None
        self._pending: list[Action] = []
        self._spread = self._asked = self._opened_again = False
        self._due = self._last = 0.0

    def _lose_session(self) -> None:
        """It has to be opened again, with the segment as it is then."""
        self._session: int | None = None
        self._revision = 0
        self._revisions: dict[Look, int] = {}
        self._seen: tuple[Hashable, Voxels, str] | None = None  # of the segment: its stamp, voxels, their SHA-256
        self._volume: dict[str, Any] = {}
        self._stamp: tuple[str, int] | None = None

    def _end_session(self) -> None:
        """Let the engine forget it."""
        if self._session is not None and self._run.warm and not self._run.engine.busy:
            self._run.engine.submit({"cmd": "edit-end", "session": self._session})
        self._lose_session()

    def _cancel(self) -> None:
        if self._current is not None:
            self._current = None
            if not self._run.state.under_way:  # else the run that waits would be cancelled, too
                self._run.engine.cancel()
        self._begin_anew()

    def _give_up(self, sentence: str) -> None:
        self._begin_anew()
        self.sentence = sentence

    def _forget_files(self) -> None:
        for file in self._written:
            file.unlink(missing_ok=True)
        self._written.clear()


def recorded(action: Action) -> Action:
    """An action as a segment's provenance keeps it: with positions, without masks."""
    kept = {key: value for key, value in action.items() if key != "mask"}
    if "points" in kept:
        kept["points"] = [[round(float(index), POSITION_DIGITS) for index in point] for point in kept["points"]]
    return kept
