"""The section of the panel in which the selected segment is corrected: tools, review, and what is said of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import qt
import slicer

from MedZeroSegLib.errors import InputError

from .correction_state import TOOLS, CorrectionFacts, correction_reason, correction_state
from .correction_target import Target
from .placing import Placing, jump_to, jump_to_slice, shown_slice
from .review_order import Doubtful, next_after, review_order
from .segment_io import provenance_of
from .segmentation_run import Settings
from .translation import _

ROWS_SHOWN, LIST_MARGIN = 5, 8  # of the list of what is doubtful; it scrolls, and pixels around its lines


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
        self._rows: tuple[Doubtful, ...] = ()  # as shown
        self._looked_at: Doubtful | None = None
        self._waiting: tuple[str, list[int | None]] | None = None  # what to do with the slice shown then, for each axis
        self._said = ""
        self._placing: Placing | None = None
        self._soon = qt.QTimer()  # placed points are taken when Slicer is done with the click
        self._soon.setSingleShot(True)
        self._soon.setInterval(0)
        self._soon.connect("timeout()", self.onPlaced)
        self._tool_was_used = False  # when the selection began to change
        self._forget = qt.QTimer()
        self._forget.setSingleShot(True)
        self._forget.setInterval(0)
        self._forget.connect("timeout()", self._forgetTool)
        for name, tool in TOOLS.items():
            getattr(ui, name).connect("clicked(bool)", lambda _checked, tool=tool: self.onTool(tool))
        for button, slot in (
            (ui.sliceRightButton, lambda: self.onSlice("confirm")),
            (ui.notInSliceButton, lambda: self.onSlice("absent")),
            (ui.spreadButton, self.onSpread), (ui.takeBackButton, self.onUndo),
            (ui.doubtButton, self.onNextDoubtful), (ui.acceptButton, self.onAccept),
        ):  # fmt: skip
            button.connect("clicked(bool)", lambda _checked, slot=slot: slot())
        for signal in ("itemClicked(QListWidgetItem*)", "itemActivated(QListWidgetItem*)"):
            ui.doubtList.connect(signal, lambda item: self.look_at(self._rows[ui.doubtList.row(item)]))
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
        return CorrectionFacts(
            ready=self._logic.setup.ready,
            has_segments=segmentation is not None and segmentation.GetSegmentation().GetNumberOfSegments() > 0,
            name=target.segment.GetName() if target else "",
            running=self._logic.run.state.under_way,
            tool=self.tool,
            sentence=self._said or (self._correction.sentence if target else ""),
            can_undo=self._correction.can_undo,
            doubtful=None if (rows := self.rows()) is None else len(rows),
            completed=target is not None and _status(target) == slicer.vtkSlicerSegmentationsModuleLogic.Completed,
        )

    def rows(self) -> tuple[Doubtful, ...] | None:
        """What deserves a look in the chosen result; None where nothing is known of any segment."""
        parameters = self._chosen()
        if parameters is None or parameters.segmentation is None:
            return None
        segmentation, completed = parameters.segmentation.GetSegmentation(), _logic().Completed
        segments = {key: segmentation.GetSegment(key) for key in segmentation.GetSegmentIDs()}
        records = {key: provenance_of(segment) for key, segment in segments.items()}
        if not any("slice_doubt" in record or "expected_dice" in record for record in records.values()):
            return None
        return review_order(
            (key, segment.GetName(), records[key])
            for key, segment in segments.items()
            if _logic().GetSegmentStatus(segment) != completed
        )

    def _showRows(self) -> None:
        rows = self.rows() or ()
        shown = self._ui.doubtList
        if rows != self._rows:
            self._rows = rows
            shown.clear()
            for row in rows:
                shown.addItem(row.text)
                shown.item(shown.count - 1).setToolTip(row.tooltip)
            heights = [shown.sizeHintForRow(number) + 2 * shown.spacing for number in range(len(rows))]
            shown.setFixedHeight(sum(heights[:ROWS_SHOWN]) + LIST_MARGIN)
        places = [(row.segment_id, row.index) for row in rows]
        last = self._looked_at and (self._looked_at.segment_id, self._looked_at.index)
        shown.setCurrentRow(places.index(last) if last in places else -1)

    def refresh(self) -> None:
        """Make every control of the section look as the state says."""
        self._actOnWaiting()
        self._showRows()
        facts = self.facts()
        if facts.tool and correction_reason(facts):
            self._placing.stop()
            facts = self.facts()
        for name, control in correction_state(facts).items():
            for key, value in vars(control).items():
                if value is not None:
                    setattr(getattr(self._ui, name), key, value)

    @property
    def tool(self) -> str:
        """What is placed or drawn in the views now; "" for nothing."""
        return self._placing.tool if self._placing else ""

    def stop(self) -> None:
        """Put the tool away."""
        if self._placing is not None:
            self._placing.stop()

    def close(self) -> None:
        """Nothing is corrected any more: the scene closes, or the module goes."""
        self._soon.stop()
        self._forget.stop()
        if self._placing is not None:
            self._placing.close()
            self._placing = None
        self._correction.choose(None, Settings())

    # What the user does

    def onSelection(self, *_selection: Any) -> None:
        """Another segment: a tool that was used goes back to Include."""
        if self.target() != self._correction.target:
            self._said, self._waiting = "", None
            if self.tool:
                self._tool_was_used = True
                self._forget.start()  # tables let go of one row before they take another
            self.stop()
            if (target := self.target()) is not None:
                jump_to(target.volume, target.center())
            if self._choose() and self._tool_was_used:
                self.use("include")
        self.refresh()

    def _forgetTool(self) -> None:
        self._tool_was_used = False

    def onTool(self, tool: str) -> None:
        """Begin to place points or a box or to draw lines, or end it."""
        self._said = ""
        if self._placing is not None and self._placing.tool == tool:
            self._placing.stop()
        elif self._choose():
            if self._placing is None:
                self._placing = Placing(slicer.mrmlScene, slicer.app.applicationLogic())
                self._placing.on_placed = self._soon.start
                self._placing.on_mode = lambda: self._logic.onChanged()  # keys depend on it, too
            self._placing.start(tool)
            self._correction.open()
            self._logic.watch()
        self.refresh()

    def use(self, tool: str) -> None:
        """Begin with a tool; one that is used already goes on."""
        if self.tool != tool and not correction_reason(self.facts()):
            self.onTool(tool)

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
        """Show what deserves a look next."""
        row = next_after(self.rows() or (), self._looked_at)
        if row is not None:
            self.look_at(row)

    def look_at(self, row: Doubtful) -> None:
        """Select the segment of a line of the list, and show its slice."""
        self._ui.segmentsTable.setSelectedSegmentIDs([row.segment_id])
        self._looked_at = row
        target, rows = self.target(), self.rows() or ()
        if target is not None and row.index is not None:
            jump_to_slice(target.volume, row.through, row.index, target.center())
        number = rows.index(row) + 1 if row in rows else 1
        values = {"name": row.name, "index": row.index, "number": number, "count": len(rows)}
        whole, one = _("{name}, {number} of {count}."), _("{name}, slice {index}, {number} of {count} to look at.")
        self._said = (whole if row.index is None else one).format(**values)
        self.refresh()

    def onAccept(self) -> None:
        """The segment is completed; the most doubtful one that isn't is selected."""
        target = self.target()
        if target is None:
            return
        _logic().SetSegmentStatus(target.segment, _logic().Completed)
        segmentation = target.segmentation.GetSegmentation()
        ids = list(segmentation.GetSegmentIDs())
        first = ids.index(target.segment_id)
        for segment_id in [row.segment_id for row in self.rows() or ()] + ids[first + 1 :] + ids[:first]:
            if _status(Target(target.segmentation, segment_id, target.volume)) != _logic().Completed:
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


def _logic() -> Any:
    return slicer.vtkSlicerSegmentationsModuleLogic


def _status(target: Target) -> int:
    return int(_logic().GetSegmentStatus(target.segment))
