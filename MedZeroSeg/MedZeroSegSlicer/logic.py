"""What the panel does, for scripts and the Python console as well."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import qt
import slicer
from slicer.ScriptedLoadableModule import ScriptedLoadableModuleLogic

from MedZeroSegLib.errors import InstallationError

from .choices import Device, Modality, Models
from .correction import Correction
from .install import Setup, examine, install
from .names_review import review_names
from .parameters import MedZeroSegParameterNode
from .preferences import preference
from .report import report_text
from .run_state import Phase, RunState
from .scene_choice import likely_volume
from .segmentation_run import SegmentationRun, Settings, worker_command
from .sentences import run_sentence
from .terminology import load_terminology
from .translation import _
from .volumes import VolumeState, describe_volume, volume_stamp

POLL_MS = 50


class MedZeroSegLogic(ScriptedLoadableModuleLogic):
    """What the panel does, for the Python console and scripts as well; Slicer's main thread only.

    >>> logic = MedZeroSegLogic()
    >>> segmentation = logic.segment(volume, ["liver", "left kidney"])
    >>> logic.absent
    []

    Attributes
    ----------
    run : the engine and its run; ``run.state`` tells what has come of it.
    correction : the segment that is corrected by hand, with the same engine.
    setup : what is missing on this machine, as ``examine`` found it.
    onChanged : called when the state has changed.
    """

    def __init__(self, worker: Sequence[str] | None = None) -> None:
        ScriptedLoadableModuleLogic.__init__(self)
        self.onChanged: Callable[[], None] = lambda: None
        self.run = SegmentationRun(worker or worker_command(), slicer.util.startupEnvironment())
        self.correction = Correction(self.run)
        self.correction.on_changed = lambda: self.onChanged()
        self.setup = Setup()
        self._models = Models.LITE  # those that were examined
        self._described: tuple[Any, VolumeState] | None = None
        self._looking = False  # a volume is looked at, of which the panel waits to be told
        self._timer = qt.QTimer()
        self._timer.setInterval(POLL_MS)
        self._timer.connect("timeout()", self.poll)
        self._soon = qt.QTimer()  # the panel shows a result when the window has breathed after its writing
        self._soon.setSingleShot(True)
        self._soon.setInterval(0)
        self._soon.connect("timeout()", lambda: self.onChanged())

    def getParameterNode(self) -> MedZeroSegParameterNode:
        """The scene's parameters of this module."""
        return MedZeroSegParameterNode(ScriptedLoadableModuleLogic.getParameterNode(self))

    def segment(
        self, volume: Any, names: str | Sequence[str], segmentation: Any = None, modality: Modality = Modality.AUTO,
        models: Models = Models.LITE, device: Device = Device.AUTO, tryUnknown: bool = False, wait: bool = True,
        allFrames: bool = False, region: Any = None, sensitivity: float = 0.5,
    ) -> Any:  # fmt: skip
        """Segment names in a volume node.

        Parameters
        ----------
        names : a list, or one text with separators.
        segmentation : where the results go; None makes a new one when something was found.
        tryUnknown : also send names that are no known structure, which are refused otherwise.
        wait : return when all is done; else at once, and ``onChanged`` tells.
        allFrames : of the sequence that the volume shows; the results become a sequence in the same browser.
        region : a markups ROI node within which they are looked for.
        sensitivity : 0..1; .5 is the models' own threshold.

        Returns
        -------
        The segmentation node; None where nothing was found, or not yet.

        Raises
        ------
        ValueError
            With the sentence, when a name isn't known.
        RuntimeError
            With the sentence, when the run failed.
        """
        text = names if isinstance(names, str) else "\n".join(f'"{name}"' for name in names)
        review = review_names(text)
        if review.problem or not review.names or (review.unknown and not tryUnknown):
            unknown = _("Not known: {names}; correct these names, or say tryUnknown=True.")
            listed = ", ".join(review.unknown)
            raise ValueError(review.problem or (unknown.format(names=listed) if listed else _("No name was given.")))
        settings = Settings(models.value, device.value, preference("weightsFolder"), sensitivity)
        options = {"all_frames": allFrames, "region": region}
        self.start(volume, review.names, settings, segmentation, modality.value or None, **options)
        while wait and self.run.poll():
            time.sleep(POLL_MS / 1000)
        if self.run.state.phase is Phase.FAILED:
            raise RuntimeError(run_sentence(self.run.state))
        return self.run.segmentation

    def start(self, volume: Any, names: Sequence[str], settings: Settings, *arguments: Any, **options: Any) -> None:
        """Begin a run, as `SegmentationRun.start`; ``onChanged`` and ``run.state`` tell what comes of it."""
        load_terminology()
        self.run.start(volume, names, settings, *arguments, **options)
        self.watch()

    def check(self, settings: Settings) -> None:
        """Begin the engine's self-check."""
        self.run.check(settings)
        self.watch()

    def fetch(self, settings: Settings) -> None:
        """Begin to download the model files that are missing; the user has agreed."""
        self.run.fetch(settings)
        self.watch()

    def cancel(self) -> None:
        """Stop the run; what is in the scene stays."""
        self.run.cancel()
        self.onChanged()

    def undo(self) -> None:
        """Take back what the last run changed."""
        self.run.undo()
        self.onChanged()

    def free(self) -> None:
        """End the engine's process, with the memory that it holds."""
        self.run.free(wait=False)
        self.onChanged()

    def close(self) -> None:
        """End for good."""
        self._timer.stop()
        self._soon.stop()
        self.correction.close()
        self.run.close()

    def watch(self) -> None:
        """Listen to the engine from now on, until nothing is under way."""
        self._timer.start()
        self.onChanged()

    def poll(self) -> None:
        """Take in what the engine has sent."""
        before = self.run.state
        waits = self.run.poll()
        if not (self.correction.poll() or waits):
            self._timer.stop()
        if self._looking:
            self._looking = False
            self.onChanged()
        if before.phase is Phase.FETCHING and not self.run.state.under_way:
            self.examine(self._models)
        if self.run.state.under_way and len(self.run.state.outcomes) > len(before.outcomes):
            self._soon.start()
        elif self.run.state is not before:
            self.onChanged()

    @property
    def absent(self) -> list[str]:
        """Names that the last run did not find in the image."""
        return [outcome.name for outcome in self.run.state.absent]

    def examine(self, models: Models = Models.LITE) -> None:
        """Look what is missing on this machine for these models."""
        self._models = models
        self.setup = examine(preference("weightsFolder"), models.value)

    def install(self, models: Models = Models.LITE) -> None:
        """Install what is missing, or anew what does not work; the user has agreed."""
        self.run.free()
        try:
            install(self.setup, repair=self.setup.ready, preset=models.value)
            self.run.state = RunState()
        except InstallationError as error:
            self.run.state = RunState(phase=Phase.FAILED, failure="setup", message=str(error))
        self.examine(models)
        self.onChanged()

    def describe(self, volume: Any, modality: Modality = Modality.AUTO) -> VolumeState:
        """What a volume is; looked at anew only when it, its voxels or its transform have changed.

        A large one is looked at while the window lives; ``onChanged`` tells when there is more to know.
        """
        transform = volume.GetParentTransformNode()
        moved = transform.GetTransformToWorldMTime() if transform else 0
        key = (volume.GetID(), volume.GetMTime(), volume_stamp(volume), moved, modality)
        if self._described is None or self._described[0] != key:
            state = describe_volume(volume, modality.value or None, wait=False)
            if state.looking:
                self._looking = True
                self._timer.start()
                return state
            self._described = (key, state)
        return self._described[1]

    def likelyVolume(self) -> Any:
        """The image to begin with: the one that the slice views show, or the first that can be segmented."""
        selection = slicer.app.applicationLogic().GetSelectionNode()
        return likely_volume(slicer.mrmlScene, selection.GetActiveVolumeID() if selection else None)

    def report(self, settings: Settings, volumeLine: str) -> str:
        """Text for a bug report; see `MedZeroSegSlicer.report`."""
        application = f"{slicer.app.applicationName} {slicer.app.applicationVersion}"
        return report_text(application, settings, volumeLine, self.run.state, self.run.log)
