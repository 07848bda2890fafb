"""The section of the panel with which a cohort is worked through: open the review list, Next, Accept, Corrected."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import qt
import slicer

from MedZeroSegLib.errors import MedZeroSegError

from .panel_state import Control
from .translation import _
from .work_list import WorkList


class WorkListPanel:
    """Connects the section's controls with the list.

    Parameters
    ----------
    ui : the panel's controls.
    chosen : the parameter node as it is now, or None; gets the case's image and masks.
    busy : whether the engine is at work, with nodes that must stay.

    Attributes
    ----------
    work : the list; None before one is opened.
    """

    def __init__(self, ui: Any, chosen: Callable[[], Any], busy: Callable[[], bool]) -> None:
        self._ui, self._chosen, self._busy = ui, chosen, busy
        self.work: WorkList | None = None
        self._said = ""
        self._shown: Any = None  # the masks that were handed to the panel last
        for button, slot in (
            (ui.openListButton, self.onOpen), (ui.nextCaseButton, self.onNext),
            (ui.acceptCaseButton, self.onAccept), (ui.correctedCaseButton, self.onCorrected),
        ):  # fmt: skip
            button.connect("clicked(bool)", lambda _checked, slot=slot: self._tell(slot))

    def refresh(self) -> None:
        """Make every control of the section look as the state says."""
        for name, control in self._controls().items():
            for key, value in vars(control).items():
                if value is not None:
                    setattr(getattr(self._ui, name), key, value)

    def _controls(self) -> dict[str, Control]:
        state = self.work.state if self.work else None
        busy = _("The engine is at work; cancel it first.") if self._busy() else ""
        none = "" if state else _("Open the review.csv of a cohort first.")
        done = "" if state and state.left else _("No case is open any more.")
        bare = "" if state and state.loaded else _("No case is loaded; press Next.")
        lines = [state.text if state else "", self._said]
        text = "\n".join(line for line in lines if line)
        return {
            "workListLabel": Control(text=text, visible=bool(text), toolTip=state.tooltip if state else ""),
            "openListButton": _button(busy, _("Open the review.csv of a cohort as a work list.")),
            "nextCaseButton": _button(busy or none or done, _("Load the next open case (Alt+N).")),
            "acceptCaseButton": _button(
                busy or none or bare, _("The masks are right as they were loaded; on to the next case (Alt+A).")
            ),
            "correctedCaseButton": _button(
                busy or none or bare, _("Save the masks over their file as they are now; on to the next case (Alt+C).")
            ),
        }

    def _tell(self, action: Callable[[], None]) -> None:
        """Do what a button says; what hinders it is told in the section."""
        self._said = ""
        try:
            action()
        except MedZeroSegError as error:
            self._said = str(error)
        self._choose()
        self.refresh()

    # What the user does

    def onOpen(self) -> None:
        """Choose a list, and load its first open case."""
        title, kinds = _("Review list of a cohort"), _("Review list (*.csv)")
        file = qt.QFileDialog.getOpenFileName(self._ui.workListSection, title, "", kinds)
        if file:
            self.open(Path(file))

    def open(self, file: Path) -> None:
        """Work through this list from now on."""
        self.work = WorkList(file)
        self.onNext()

    def onNext(self) -> None:
        """Load the next open case; changed masks stay in the scene."""
        if self.work is None:
            return
        case = self.work.row.case if self.work.row and self.work.is_changed else ""
        if not self.work.next():
            self._said = _("All cases of this list are reviewed.")
        elif case:
            self._said = _("The changed masks of {case} stay in the scene; they are not saved.").format(case=case)

    def onAccept(self) -> None:
        """The masks are right."""
        if self.work is not None:
            self.work.accept()
            self.onNext()

    def onCorrected(self) -> None:
        """The masks are right now."""
        if self.work is not None:
            self.work.correct()
            self.onNext()

    def _choose(self) -> None:
        """The case's image and masks become those of the panel and of the slice views."""
        parameters, work = self._chosen(), self.work
        if parameters is None or work is None or not work.is_loaded or work.segmentation is self._shown:
            return
        self._shown = work.segmentation
        parameters.inputVolume = work.volume
        parameters.segmentation = work.segmentation
        application = slicer.app.applicationLogic()
        application.GetSelectionNode().SetActiveVolumeID(work.volume.GetID())
        application.PropagateVolumeSelection()


def _button(reason: str, purpose: str) -> Control:
    """A button that is off for a reason, or on for a purpose."""
    return Control(enabled=not reason, toolTip=reason or purpose)
