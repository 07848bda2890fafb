"""What the section for correcting shows in each state; plain values in and out, as `panel_state`."""

from __future__ import annotations

from dataclasses import dataclass

from .panel_state import Control
from .translation import _

TOOLS = {
    "includeButton": "include",
    "excludeButton": "exclude",
    "boxButton": "box",
    "scribbleInButton": "scribble-in",
    "scribbleOutButton": "scribble-out",
}


@dataclass(frozen=True)
class CorrectionFacts:
    """What is true now.

    Attributes
    ----------
    ready : the models are set up.
    has_segments : the chosen result holds segments.
    name : of the segment that is selected, "" without one.
    running : a run, a check or a download is under way.
    tool : what is being placed in the views, "" for nothing.
    sentence : what the correction says.
    can_undo : there is something to take back.
    doubtful : how many slices and segments deserve a look; None where nothing is known of any.
    completed : the user has accepted the segment.
    """

    ready: bool = True
    has_segments: bool = False
    name: str = ""
    running: bool = False
    tool: str = ""
    sentence: str = ""
    can_undo: bool = False
    doubtful: int | None = None
    completed: bool = False


def correction_state(facts: CorrectionFacts) -> dict[str, Control]:
    """The look of each control of the section, by its name."""
    reason = correction_reason(facts)
    purposes = {
        "includeButton": _("Click in a slice where {name} should be (1)."),
        "excludeButton": _("Click in a slice where {name} should not be (2)."),
        "scribbleInButton": _("Draw through {name} in a slice, with the left mouse button held down (3)."),
        "scribbleOutButton": _("Draw through what isn't {name} in a slice, with the left mouse button held down (4)."),
        "boxButton": _("Draw a box around {name}, in one slice or in several (B)."),
        "sliceRightButton": _("The slice shown is right: it is never changed again, and others learn from it."),
        "notInSliceButton": _("{name} is not in the slice shown."),
        "spreadButton": _("Carry the corrections to the other slices."),
    }
    controls = {
        name: Control(enabled=not reason, toolTip=reason or purpose.format(name=facts.name))
        for name, purpose in purposes.items()
    }
    for button, tool in TOOLS.items():
        look = controls[button]
        controls[button] = Control(enabled=look.enabled, toolTip=look.toolTip, checked=facts.tool == tool)
    nothing = "" if facts.can_undo else _("There is nothing to take back.")
    accepted = _("{name} is completed already.").format(name=facts.name) if facts.completed else ""
    busy = _running(facts)
    return {
        "correctionSection": Control(visible=facts.has_segments),
        **controls,
        "takeBackButton": _button(busy or nothing, _("Take back the last change of these segments.")),
        "doubtButton": _button(_no_doubt(facts), _("Show what deserves a look next, the most doubtful first (N).")),
        "doubtList": Control(visible=bool(facts.doubtful)),
        "acceptButton": _button(
            _no_name(facts) or accepted, _("Mark {name} as completed and go on to the next segment (Shift+A).").format(
                name=facts.name
            )
        ),
        "correctionLabel": Control(text=(sentence := facts.sentence or reason), visible=bool(sentence)),
    }  # fmt: skip


def correction_reason(facts: CorrectionFacts) -> str:
    """Why nothing can be corrected now; empty when it can."""
    return _running(facts) or _no_name(facts) or ("" if facts.ready else _("Set up the models first."))


def _running(facts: CorrectionFacts) -> str:
    return _("The engine is at work; cancel it first.") if facts.running else ""


def _no_name(facts: CorrectionFacts) -> str:
    return "" if facts.name else _("Select a segment in the table above to correct it.")


def _no_doubt(facts: CorrectionFacts) -> str:
    if facts.doubtful is None:
        return _("Nothing is known of how doubtful these segments are.")
    return "" if facts.doubtful else _("Nothing is doubtful any more.")


def _button(reason: str, purpose: str) -> Control:
    return Control(enabled=not reason, toolTip=reason or purpose)
