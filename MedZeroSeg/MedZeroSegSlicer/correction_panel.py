"""The section of the panel in which the selected segment is corrected: tools, review, and what is said of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import qt
import slicer

from MedZeroSegLib.errors import InputError

from .correction import Target
from .correction_state import TOOLS, CorrectionFacts, correction_reason, correction_state
from .placing import Placing, jump_to_slice, shown_slice
from .review_order import doubtful_slices, next_after
from .segment_io import provenance_of
from .segmentation_run import Settings
from .translation import _


class CorrectionPanel:
    """Connects the section's controls with the correction.

    Parameters
    ----------
    ui : the panel's controls.
    logic : MedZeroSegLogic.
    chosen : the parameter node as it is now, or None.
    settings : how the engine is to run.
    """

    def __init__(self, ui: Any, logic: Any, chosen: Callable[[], Any], settings: Callable[[], Settings]) -> None:
        self._ui, self._logic, self._chosen, self._settings = ui, logic, chosen, settings
        self._correction = logic.correction
        self._doubtful: int | None = None  # the slice that was shown last
        self._waiting: tuple[str, list[int | None]] | None = None  # what to do with the slice shown then, for each axis
        self._said = ""
        self._placing: Placing | None = None
        self._soon = qt.QTimer()  # placed points are taken when Slicer is done with the click
        self._soon.setSingleShot(True)
        self._soon.setInterval(0)
        self._soon.connect("timeout()", self.onPlaced)
        for name, tool in TOOLS.items():
            getattr(ui, name).connect("clicked(bool)", lambda _checked, tool=tool: self.onTool(tool))
        for button, slot in (
            (ui.sliceRightButton, lambda: self.onSlice("confirm")),
            (ui.notInSliceButton, lambda: self.onSlice("absent")),
            (ui.spreadButton, self.onSpread), (ui.takeBackButton, self.onUndo),
            (ui.doubtButton, self.onNextDoubtful), (ui.acceptButton, self.onAccept),
        ):  # fmt: skip
            button.connect("clicked(bool)", lambda _checked, slot=slot: slot())
        ui.segmentsTable.connect("selectionChanged(QItemSelection,QItemSelection)", self.onSelection)

    # State

    def target(self) -> Target | None:
        """The one segment that is selected."""
        parameters = self._chosen()
        if parameters is None or parameters.segmentation is None or parameters.inputVolume is None:
            return None
        chosen = list(self._ui.segmentsTable.selectedSegmentIDs())
        if len(chosen) != 1 or parameters.segmentation.GetSegmentation().GetSegment(chosen[0]) is None:
            return None
        return Target(parameters.segmentation, chosen[0], parameters.inputVolume)

    def facts(self) -> CorrectionFacts:
        """What is true now."""
        parameters, target = self._chosen(), self.target()
        segmentation = parameters.segmentation if parameters else None
        record = provenance_of(target.segment) if target else {}
        return CorrectionFacts(
            ready=self._logic.setup.ready,
            has_segments=segmentation is not None and segmentation.GetSegmentation().GetNumberOfSegments() > 0,
            name=target.segment.GetName() if target else "",
            running=self._logic.run.state.under_way,
            tool=self._placing.tool if self._placing else "",
            sentence=self._said or (self._correction.sentence if target else ""),
            can_undo=self._correction.can_undo,
            doubtful=len(doubtful_slices(record)[1]) if record.get("slice_doubt") else None,
            completed=target is not None and _status(target) == slicer.vtkSlicerSegmentationsModuleLogic.Completed,
        )

    def refresh(self) -> None:
        """Make every control of the section look as the state says."""
        self._actOnWaiting()
        facts = self.facts()
        if facts.tool and correction_reason(facts):
            self._placing.stop()
            facts = self.facts()
        for name, control in correction_state(facts).items():
            for key, value in vars(control).items():
                if value is not None:
                    setattr(getattr(self._ui, name), key, value)

    def close(self) -> None:
        """Nothing is corrected any more: the scene closes, or the module goes."""
        self._soon.stop()
        if self._placing is not None:
            self._placing.close()
            self._placing = None
        self._correction.choose(None, Settings())

    # What the user does

    def onSelection(self, *_selection: Any) -> None:
        """Another segment: the tool goes back to looking."""
        if self.target() != self._correction.target:
            self._said, self._doubtful, self._waiting = "", None, None
            if self._placing is not None:
                self._placing.stop()
            self._choose()
        self.refresh()

    def onTool(self, tool: str) -> None:
        """Begin to place points or a box, or end it."""
        self._said = ""
        if self._placing is not None and self._placing.tool == tool:
            self._placing.stop()
        elif self._choose():
            if self._placing is None:
                self._placing = Placing(slicer.mrmlScene, slicer.app.applicationLogic())
                self._placing.on_placed = self._soon.start
                self._placing.on_mode = self.refresh
            self._placing.start(tool)
            self._correction.open()
            self._logic.watch()
        self.refresh()

    def onPlaced(self) -> None:
        """Points or a box are in the scene."""
        target = self.target()
        if target is None or self._placing is None:
            return
        self._said = ""
        try:
            actions = self._placing.take(target.volume)
        except InputError as error:
            self._said = str(error)
            self.refresh()
            return
        if actions:
            self.act(*actions)

    def act(self, *actions: dict[str, Any]) -> None:
        """Let the engine do these actions on the selected segment."""
        if self._choose():
            self._correction.act(*actions)
            self._logic.watch()
            self._logic.poll()

    def onSlice(self, kind: str) -> None:
        """The slice shown is right, or doesn't hold the structure."""
        self._said = ""
        if not self._choose():
            return
        volume = self._correction.target.volume
        self._waiting = (kind, [shown_slice(volume, axis) for axis in range(3)])
        self._correction.open()
        self._actOnWaiting()
        self.refresh()

    def _actOnWaiting(self) -> None:
        """Which axis runs through the slices is known once the engine has opened the correction."""
        if self._waiting is None or self._correction.through is None:
            return
        (kind, shown), self._waiting = self._waiting, None
        index = shown[self._correction.through]
        if index is None:
            self._said = _("No view shows a slice of this image; scroll to one, in a view along its slices.")
        else:
            self.act({"kind": kind, "slice": index})

    def onSpread(self) -> None:
        """Carry the corrections to the other slices."""
        self._said = ""
        if self._choose():
            self._correction.spread()
            self._logic.watch()

    def onUndo(self) -> None:
        """Take the last step back."""
        self._said = ""
        self._correction.undo()
        self._logic.watch()

    def onNextDoubtful(self) -> None:
        """Show the slice that deserves a look."""
        target = self.target()
        if target is None:
            return
        through, order = doubtful_slices(provenance_of(target.segment))
        self._doubtful = next_after(order, self._doubtful)
        if self._doubtful is not None:
            _mask, extent, _resampled = target.voxels()
            center = (np.array(extent[::2]) + np.array(extent[1::2])) / 2
            jump_to_slice(target.volume, through, self._doubtful, center)
            text = _("Slice {index}, {number} of {count} to look at.")
            number = order.index(self._doubtful) + 1
            self._said = text.format(index=self._doubtful, number=number, count=len(order))
        self.refresh()

    def onAccept(self) -> None:
        """The segment is completed; the next one that isn't is selected."""
        target = self.target()
        if target is None:
            return
        logic = slicer.vtkSlicerSegmentationsModuleLogic
        logic.SetSegmentStatus(target.segment, logic.Completed)
        segmentation = target.segmentation.GetSegmentation()
        ids = list(segmentation.GetSegmentIDs())
        first = ids.index(target.segment_id)
        for segment_id in ids[first + 1 :] + ids[:first]:
            if _status(Target(target.segmentation, segment_id, target.volume)) != logic.Completed:
                self._ui.segmentsTable.setSelectedSegmentIDs([segment_id])
                break
        self.refresh()

    def _choose(self) -> bool:
        """The selected segment is what is corrected; whether it can be."""
        parameters, target = self._chosen(), self.target()
        modality = parameters.modality.value or None if parameters else None
        stay_out = bool(parameters and parameters.stayOut)
        self._correction.choose(target, self._settings(), modality, stay_out)
        self._logic.watch()
        return target is not None and not correction_reason(self.facts())


def _status(target: Target) -> int:
    return int(slicer.vtkSlicerSegmentationsModuleLogic.GetSegmentStatus(target.segment))
