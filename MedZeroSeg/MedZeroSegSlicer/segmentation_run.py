"""A run from the press of Segment to the last segment in the scene: voxels out, messages to the engine, results in.
All of it happens in the thread that calls ``poll``, but for the writing of the voxels into their file."""

from __future__ import annotations

import logging
import shutil
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from MedZeroSegLib.errors import MedZeroSegError

from .engine_process import EngineProcess
from .frames import FrameResults, frame_of
from .region_of_interest import region_of
from .run_state import CANCELLABLE, Phase, RunState, advanced, failed
from .scene_undo import SceneUndo
from .scratch_folder import ScratchFolder
from .segment_io import add_result, create_segmentation, prepare_segmentation
from .translation import _
from .volumes import VolumeExport, prepare_export, volume_stamp
from .writing import Writing

LOG_LINES = 400  # of the engine, kept for a report


def worker_command() -> list[str]:
    """The engine's process: Slicer's Python, and the worker's file."""
    spec = find_spec("MedZeroSegLib")
    assert spec is not None and spec.origin is not None
    return [python_executable(), str(Path(spec.origin).with_name("worker.py"))]


def python_executable() -> str:
    """Slicer's Python, started as it starts itself."""
    return shutil.which("PythonSlicer") or sys.executable


@dataclass(frozen=True)
class Settings:
    """How the engine is to run: a preset's name, a device's, the folder with weights looked at first ("" for none), and
    the sensitivity, 0..1."""

    preset: str = "lite"
    device: str = "auto"
    weights_folder: str = ""
    sensitivity: float = 0.5

    def message(self) -> dict[str, Any]:
        """Their part of a message."""
        return {
            "preset": self.preset,
            "device": self.device,
            "weights_folder": self.weights_folder or None,
            "sensitivity": float(self.sensitivity),
        }


class SegmentationRun:
    """One engine process, the run that it is at or was at last, and the segmentation that results go into.

    Attributes
    ----------
    state : RunState
    segmentation : the node that results go into; None until there is one.
    log : the last lines that the engine wrote.
    on_segmentation : called with a segmentation node that a run had to make.
    on_other : called with the engine's events of requests that are no run's.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self.state = RunState()
        self.segmentation: Any = None
        self.log: deque[str] = deque(maxlen=LOG_LINES)
        self.on_segmentation: Callable[[Any], None] = lambda node: None
        self.on_other: Callable[[Mapping[str, Any]], None] = lambda event: None
        self.engine = EngineProcess(list(command), self._on_event, self._on_log, environment)
        self._files = ScratchFolder()
        self._volume: Any = None
        self._frames: FrameResults | None = None  # of a run over all frames of a sequence
        self._modality: str | None = None
        self._region: Any = None  # a ROI node
        self._stamp: tuple[str, int] | None = None
        self._request: dict[str, Any] = {}  # what the messages of all frames have in common; empty for other requests
        self._message: dict[str, Any] | None = None  # waits for the voxels to be written
        self._writer: Writing | None = None
        self._masks: Path | None = None
        self._id: int | None = None
        self._arrived: Mapping[str, Any] | None = None  # a result that is written with one of the next polls
        self._is_new = False  # the segmentation, of which nobody has been told
        self._started = 0.0
        self._stay_out = False
        self._steps_since = 0  # corrections since the last run
        self._undo: SceneUndo | FrameResults | None = None

    # Control

    def start(
        self, volume: Any, names: Sequence[str], settings: Settings, segmentation: Any = None,
        modality: str | None = None, left_out: Sequence[str] = (), stay_out: bool = False, all_frames: bool = False,
        region: Any = None,
    ) -> None:  # fmt: skip
        """Begin to segment ``names`` in a volume node; what goes wrong from here on is told by ``state``.

        Parameters
        ----------
        segmentation : the node for the results; None makes one as soon as there is a result.
        modality : as the user gave it; None takes DICOM's or the guess.
        left_out : names that aren't sent, to be told at the end.
        stay_out : leave out voxels that other segments already hold.
        all_frames : of the sequence that the volume shows, one after the other.
        region : the ROI node within which they are looked for; None is the whole image.
        """
        self._begin(Phase.RUNNING, left_out=tuple(left_out))
        self._volume, self._modality, self._stay_out, self._region = volume, modality, stay_out, region
        self._request = {"cmd": "segment", "names": list(names), **settings.message()}
        try:
            self._frames = FrameResults(volume, segmentation) if all_frames else None
            export = self._export()
            if segmentation is not None and self._frames is None:
                prepare_segmentation(segmentation, volume)
        except MedZeroSegError as error:
            self.state = failed(self.state, "input", str(error))
            return
        if self._frames is not None:
            self.state = replace(self.state, frames=self._frames.count)
        self._choose(segmentation if self._frames is None else self._frames.segmentation)
        self._masks = Path(tempfile.mkdtemp(prefix="run-", dir=self._files.path))
        self._request["folder"] = str(self._masks)
        self._hand_over(export)

    def _export(self) -> VolumeExport:
        """The voxels that are next: those that the volume shows, or those of the next frame."""
        frame = self._frames and self._frames.image(self.state.frame)
        self._stamp = volume_stamp(frame or self._volume)
        export = prepare_export(self._volume, self._files.path, self._modality, frame)
        self._request["region"] = self._region and region_of(self._region, self._volume, frame).record()
        return export

    def _hand_over(self, export: VolumeExport) -> None:
        self._id = None
        self._message = {**self._request, "volume": export.message}
        self._writer = Writing(export.write)

    def check(self, settings: Settings) -> None:
        """Begin the engine's self-check; its answer becomes ``state.ready_line``."""
        self._begin(Phase.CHECKING)
        self._id = self.engine.submit({"cmd": "check", **settings.message()})

    def fetch(self, settings: Settings) -> None:
        """Begin to download the model files that are missing, in the engine's process."""
        self._begin(Phase.FETCHING, code="downloading")
        self._id = self.engine.submit({"cmd": "fetch", **settings.message()})

    def cancel(self) -> None:
        """Stop; what is in the scene stays."""
        if self.state.phase not in CANCELLABLE:
            return
        self.state = replace(self.state, phase=Phase.CANCELLING)
        if self._id is not None:
            self.engine.cancel()

    def abandon(self) -> None:
        """Stop because the image is gone: nothing more is written, whatever the engine still sends."""
        if self.state.under_way:
            if self._id is not None:
                self.engine.cancel()
            self.state = replace(self.state, phase=Phase.CANCELLED)
        self._remove_untold()
        self._id = self._message = self._arrived = self._volume = self._frames = None
        self._choose(None)

    def poll(self) -> bool:
        """Deliver what has happened; True while there is something to wait for. To be called from a timer."""
        if self._writer is not None and not self._writer.is_alive():
            self._submit()
        if self.state.under_way and self._request:
            self._look_after_volume()
        if self._arrived is not None:
            event, self._arrived = self._arrived, None
            self._on_event(event)
            return True
        waits = self.engine.poll()
        return waits or self.state.under_way or self._writer is not None

    def free(self, wait: bool = True) -> None:
        """End the engine's process, with all memory that it holds."""
        self.engine.close(wait)

    def close(self) -> None:
        """End for good: no process, no files."""
        self.abandon()
        self.engine.close()
        if self._writer is not None:
            self._writer.join()
        self._files.close()

    @property
    def warm(self) -> bool:
        """Whether an engine process is there."""
        return self.engine.running

    # Undo

    @property
    def can_undo(self) -> bool:
        """Whether the last run's changes can be taken back."""
        return not self.state.under_way and self._undo is not None and self._undo.can_undo

    def undo(self) -> None:
        """Take the last step back; what the last run told goes with the run's own."""
        if self.can_undo and not self._steps_since:
            self.state = RunState()
        self.take_back()

    def share_undo(self) -> None:
        """Let the Segment Editor undo what was done here, if it shows the segmentation."""
        if isinstance(self._undo, SceneUndo):
            self._undo.share()

    def take_back(self) -> None:
        """Take the last step back, of a run or a correction; what the last run told stays."""
        if self.can_undo and self._undo is not None:
            self._undo.undo()
            self._steps_since = max(0, self._steps_since - 1)

    def history(self, segmentation: Any, volume: Any) -> SceneUndo:
        """The undo of a segmentation, which runs and corrections share; a new step begins."""
        if self.state.under_way:
            raise RuntimeError("a run is under way")
        self._frames, self._volume = None, volume
        self._choose(segmentation)
        self._steps_since += 1
        assert isinstance(self._undo, SceneUndo)
        return self._undo

    @property
    def folder(self) -> Path:
        """Where arrays lie for the engine; it goes with the run."""
        return self._files.path

    # What happens between

    def _begin(self, phase: Phase, **values: Any) -> None:
        if self.state.under_way:
            raise RuntimeError("a run is under way")
        self.state = RunState(phase=phase, **values)
        self._id = self._message = self._arrived = None
        self._request, self._is_new = {}, False
        self._steps_since = 0
        self._started = time.monotonic()

    def _submit(self) -> None:
        """The voxels are written: send the request, unless it isn't wanted any more."""
        writer, self._writer = self._writer, None
        message, self._message = self._message, None
        if message is None:
            return
        if self.state.phase is Phase.CANCELLING:
            self.state = replace(self.state, phase=Phase.CANCELLED)
        elif writer is not None and writer.fault is not None:
            text = _("The image could not be handed to the engine ({reason}); make room on the disk and try again.")
            self.state = failed(self.state, "disk", text.format(reason=writer.fault.strerror or writer.fault))
        else:
            self._id = self.engine.submit(message)

    def _on_log(self, line: str) -> None:
        self.log.append(line)
        logging.debug("MedZeroSeg engine: %s", line)

    def _on_event(self, event: Mapping[str, Any]) -> None:
        if event.get("id") != self._id or not self.state.under_way:
            self.on_other(event)
            return
        if event["event"] == "segment" and event["found"]:
            if not self._can_write():
                return
            if self._prepare():
                self._arrived = event  # the window lives in between
                return
            if not self._write(event):
                return
        frame = self.state.frame
        self.state = advanced(self.state, event, time.monotonic() - self._started)
        if self.state.frame != frame:
            self._go_on()
        if not self.state.under_way and self._masks is not None:
            shutil.rmtree(self._masks, ignore_errors=True)

    def _can_write(self) -> bool:
        """Whether the image is still what is segmented; else the run has ended for it."""
        if not self._look_after_volume():
            return False
        if volume_stamp(self._grid) != self._stamp:
            self._give_up("input", self._changed_sentence())
            return False
        return True

    def _prepare(self) -> bool:
        """Do the next thing that the first result needs before it is written; False when all is done."""
        if self._frames is not None:
            return False
        if self.segmentation is None or self.segmentation.GetScene() is None:
            self._choose(create_segmentation(self._volume))
            self._is_new = True
            return True
        if self._is_new:
            self._is_new = False
            self.on_segmentation(self.segmentation)
            return True
        assert isinstance(self._undo, SceneUndo)
        return self._undo.save_step()

    def _remove_untold(self) -> None:
        """A segmentation that was made for a result which will not come any more goes."""
        if self._is_new and self.segmentation is not None and self.segmentation.GetScene() is not None:
            node = self.segmentation
            self._choose(None)
            node.GetScene().RemoveNode(node)
        self._is_new = False

    def _write(self, event: Mapping[str, Any]) -> bool:
        """Put a result into the scene; False where that was not possible, and the run has ended for it."""
        try:
            self._put(event)
        except MedZeroSegError as error:
            self._give_up("input", str(error))
            return False
        except (OSError, ValueError, RuntimeError):
            logging.exception("MedZeroSeg: a result was not written")
            text = _("The result for {name} could not be put into the scene; Slicer's log tells more.")
            self._give_up("internal", text.format(name=event["name"]))
            return False
        return True

    def _put(self, event: Mapping[str, Any]) -> None:
        if self._frames is not None:
            if self._frames.add(self.state.frame, event, self._stay_out):
                self._choose(self._frames.segmentation)
                self.on_segmentation(self.segmentation)
            return
        assert isinstance(self._undo, SceneUndo)
        with self._undo.change():
            add_result(self.segmentation, self._volume, event, self._stay_out)

    def _go_on(self) -> None:
        """The next frame of the sequence."""
        if not self._look_after_volume():
            return
        try:
            self._hand_over(self._export())
        except MedZeroSegError as error:
            self.state = failed(self.state, "input", str(error))

    @property
    def _grid(self) -> Any:
        """The node whose voxels are segmented."""
        return self._volume if self._frames is None else self._frames.image(self.state.frame)

    def _changed_sentence(self) -> str:
        if self._frames is None and frame_of(self._volume):
            return _("Another frame was chosen while this one was segmented; stay on it, or segment all frames.")
        return _("The image was changed while it was segmented; press Segment to try again.")

    def _give_up(self, code: str, sentence: str) -> None:
        self.engine.cancel()
        self._remove_untold()
        self._id = self._message = self._arrived = None
        self.state = failed(self.state, code, sentence)

    def _choose(self, segmentation: Any) -> None:
        """Results go into this node from here on; a new step of undo begins."""
        same = isinstance(self._undo, SceneUndo) and segmentation is self.segmentation
        if self._undo is not None and not (same if self._frames is None else self._undo is self._frames):
            self._undo.close()
            self._undo = None
        self.segmentation = segmentation
        if self._undo is None and self._frames is not None:
            self._undo = self._frames
        elif self._undo is None and segmentation is not None:
            self._undo = SceneUndo(segmentation, self._volume)
        if self._undo is not None:
            self._undo.begin_step()

    def _look_after_volume(self) -> bool:
        """Whether the image, or the sequence of them, is still there as it was; else the run ends."""
        there = self._volume is not None and self._volume.GetScene() is not None
        if not there or (self._frames is not None and not self._frames.is_there):
            self.abandon()
            return False
        if self._frames is not None and not self._frames.is_same:
            text = _("The sequence was changed while it was segmented; frames that were ready have been kept.")
            self._give_up("input", text)
            return False
        return True
