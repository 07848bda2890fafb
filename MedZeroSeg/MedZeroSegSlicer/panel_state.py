"""What the panel shows in each state: one table of rules, from what is true now to the look of every control.
Plain values in and out; the widget only copies them onto the controls of the same names."""

from __future__ import annotations

from dataclasses import dataclass, replace

from MedZeroSegLib.region import Region

from .install import Setup, banner_sentence
from .names_review import Review
from .run_state import CANCELLABLE, Phase, RunState
from .sentences import measurements_html, run_sentence
from .translation import _
from .volumes import VolumeState

# Controls that say what to segment, and how; they rest while the engine is at work.
INPUTS = (
    "inputVolumeSelector", "modalitySelector", "promptsEdit", "listsButton", "reviewList", "segmentationSelector",
    "modelsSelector", "deviceSelector", "stayOutBox", "weightsFolderEdit", "allFramesBox", "regionSelector",
    "sensitivitySlider",
)  # fmt: skip


@dataclass(frozen=True)
class Facts:
    """What is true now.

    Attributes
    ----------
    volume : None where no volume is chosen.
    region, region_problem : where structures are looked for, None for everywhere; or why that cannot be.
    confirmed : the names that nobody knows which the user has confirmed to try.
    licence_asked, licence_accepted : whether the chosen models have a licence to accept, and whether it was.
    has_segments : the chosen result holds segments.
    engine_warm : the engine's process is there.
    can_undo : the last run's changes can be taken back.
    """

    setup: Setup
    volume: VolumeState | None
    review: Review
    run: RunState
    region: Region | None = None
    region_problem: str = ""
    confirmed: tuple[str, ...] = ()
    licence_asked: bool = False
    licence_accepted: bool = False
    has_segments: bool = False
    engine_warm: bool = False
    can_undo: bool = False

    @property
    def tries_unknown(self) -> bool:
        """Whether the confirmation holds for just the unknown names that stand there now."""
        return bool(self.review.unknown) and self.confirmed == self.review.unknown

    @property
    def frames(self) -> int:
        """Frames of the sequence that the volume shows; 1 where it shows none."""
        return self.volume.frames if self.volume else 1

    @property
    def needs_repair(self) -> bool:
        """Whether all is in place and yet the engine found the installation at fault."""
        return self.setup.ready and self.run.phase is Phase.FAILED and self.run.failure == "installation"

    @property
    def has_news(self) -> bool:
        """Whether the answer of a set-up or self-check is there, which is told before the reason why Segment is off."""
        news = bool(self.run.ready_line) or self.run.failure in ("setup", "installation")
        return news or (self.run.code == "downloading" and self.run.phase is not Phase.IDLE)


@dataclass(frozen=True)
class Control:
    """The look of one control; None leaves a property as it is. A tooltip says what it does or why it is off."""

    text: str | None = None
    visible: bool | None = None
    enabled: bool | None = None
    toolTip: str | None = None  # the names are Qt's
    checked: bool | None = None
    value: int | None = None


def panel_state(facts: Facts) -> dict[str, Control]:
    """The table: the look of each control, by its name."""
    run = facts.run
    running = run.under_way
    reason = run_reason(facts)
    banner = banner_sentence(facts.setup) or (run_sentence(run) if facts.needs_repair else "")
    controls = {
        "setupBanner": Control(visible=bool(banner)),
        "setupLabel": _shown(banner),
        "setupButton": _setup_button(facts),
        "fetchButton": Control(visible=facts.setup.fetchable, enabled=not running),
        "folderButton": Control(visible=bool(facts.setup.weights or facts.setup.fault), enabled=not running),
        "volumeLabel": _shown(volume_line(facts.volume)),
        "modalityLabel": _shown(modality_line(facts.volume)),
        "allFramesBox": Control(
            text=_("All {count} frames of the sequence").format(count=facts.frames),
            visible=facts.frames > 1,
        ),
        "regionLabel": _shown("" if facts.region_problem else region_line(facts.region)),
        "tryUnknownBox": _confirmation(facts),
        "licenceBox": Control(visible=facts.licence_asked, enabled=not running, checked=facts.licence_accepted),
        "runButton": Control(
            visible=not running,
            enabled=not reason,
            toolTip=reason or _("Segment the structures above (Ctrl+Enter)."),
        ),
        "cancelButton": Control(
            visible=running,
            enabled=run.phase in CANCELLABLE,
            toolTip=_("Stop; segments that are ready stay (Esc).") if run.phase in CANCELLABLE else _("Stopping..."),
        ),
        "progressBar": Control(visible=running, value=round(1000 * run.fraction)),
        "statusLabel": _shown(run_sentence(run) if running or not reason or facts.has_news else reason),
        "resultsSection": Control(visible=facts.has_segments or bool(run.outcomes)),
        "measurementsLabel": _shown(measurements_html(run)),
        **_buttons(facts),
    }
    for name in INPUTS:
        controls[name] = replace(controls.get(name, Control()), enabled=not running)
    return {
        name: control if control.enabled is not False else _with_reason(control) for name, control in controls.items()
    }


def _with_reason(control: Control) -> Control:
    """A control that is off, and says why."""
    return control if control.toolTip else replace(control, toolTip=_("The engine is at work; cancel it first."))


def _buttons(facts: Facts) -> dict[str, Control]:
    busy = _("The engine is at work; cancel it first.") if facts.run.under_way else ""
    empty = "" if facts.has_segments else _("There are no segments yet.")
    missing = "" if facts.setup.ready else _("Set up the models first.")
    fresh = "" if facts.can_undo else _("There is nothing to take back.")
    cold = "" if facts.engine_warm else _("The engine holds no memory now.")
    return {
        "show3DButton": _button(empty, _("Show the segments in 3D.")),
        "undoButton": _button(busy or fresh, _("Take back the last change of these segments.")),
        "editButton": _button(busy or empty, _("Edit these segments by hand with Slicer's tools.")),
        "checkButton": _button(busy or missing, _("Load the models and tell what they run on.")),
        "freeButton": _button(busy or cold, _("End the engine; the next run takes longer to start.")),
    }


def run_reason(facts: Facts) -> str:
    """Why Segment cannot be pressed now, in the order in which a user would mend it; empty when it can."""
    volume, review = facts.volume, facts.review
    if not facts.setup.ready:
        return _("Set up the models first.")
    if volume is None:
        return _("Load an image first (drag a DICOM folder or a file here).")
    if not volume.usable:
        return volume.sentence
    if facts.region_problem:
        return facts.region_problem
    if review.problem:
        return review.problem
    if not review.rows:
        return _("Type at least one structure.")
    if not review.known and not facts.tries_unknown:
        return _("Correct the names marked with a question mark, or remove them.")
    if facts.licence_asked and not facts.licence_accepted:
        return _("Accept the licence of the chosen models first (Advanced).")
    return ""


def volume_line(volume: VolumeState | None) -> str:
    """Size and spacing, and what to know of the image; why it cannot be used is told in the status line."""
    if volume is None or not volume.usable:
        return ""
    return "\n".join([volume.size_line, *volume.warnings])


def region_line(region: Region | None) -> str:
    """Size of the box that is looked at."""
    if region is None:
        return ""
    text = _("{size} voxels") if region.ijk_to_unit is None else _("turned, within {size} voxels")
    return text.format(size=" x ".join(map(str, region.shape[::-1])))


def modality_line(volume: VolumeState | None) -> str:
    """What kind of image it is taken for, and who says so."""
    if volume is None or not volume.usable:
        return ""
    text = {
        "dicom": _("{modality}, from DICOM"),
        "given": _("{modality}, as you chose"),
    }.get(volume.modality_source or "", _("probably {modality}, please check"))
    return text.format(modality=volume.modality)


def _confirmation(facts: Facts) -> Control:
    """What the user confirms before names that nobody knows are sent to the model."""
    names = ", ".join(f"“{name}”" for name in facts.review.unknown)
    return Control(
        visible=bool(names),
        enabled=not facts.run.under_way,
        toolTip=_("The model gets {names} as typed; expect a wrong result.").format(names=names),
        checked=facts.tries_unknown,
    )


def _setup_button(facts: Facts) -> Control:
    offered = facts.setup.installable or facts.needs_repair
    return Control(
        text=_("Repair...") if facts.needs_repair else _("Set up..."), visible=offered, enabled=not facts.run.under_way
    )


def _shown(text: str) -> Control:
    """A label that is there only while it has something to say."""
    return Control(text=text, visible=bool(text))


def _button(reason: str, purpose: str) -> Control:
    """A button that is off for a reason, or on for a purpose."""
    return Control(enabled=not reason, toolTip=reason or purpose)
