"""What a run has come to: its phase, its progress, and the outcome for each name so far; a value that events advance.
Nothing here touches the scene, Qt or the engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any


class Phase(Enum):
    """Where the run stands."""

    IDLE = "idle"
    CHECKING = "checking"
    FETCHING = "fetching"
    RUNNING = "running"
    CANCELLING = "cancelling"
    DONE = "done"
    CANCELLED = "cancelled"
    FAILED = "failed"


CANCELLABLE = (Phase.CHECKING, Phase.FETCHING, Phase.RUNNING)
UNDER_WAY = (*CANCELLABLE, Phase.CANCELLING)


@dataclass(frozen=True)
class Outcome:
    """What came of one name.

    Attributes
    ----------
    score : evidence, 0..1.
    volume_ml : None in a picture, or where the spacing isn't known in mm.
    trained : False where the model never learned this name.
    """

    typed: str
    name: str
    found: bool
    score: float
    color: tuple[int, int, int]
    volume_ml: float | None = None
    slices: int = 0
    trained: bool = True
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunState:
    """A run, or the last one.

    Attributes
    ----------
    fraction : share of the predicted time, 0..1; seconds_left is None until it is known. Both of all frames together.
    code, values : what the engine is at, for the sentence.
    left_out : names that weren't sent because nobody knows them.
    failure, message : the engine's error code ("input", "installation", "memory", ...) and its sentence.
    ready_line : the answer of a self-check or a download.
    frame, frames : the frame, from 0, that the run is at, of so many; 0 of 1 for what is no sequence.
    """

    phase: Phase = Phase.IDLE
    fraction: float = 0.0
    seconds_left: float | None = None
    code: str = "starting"
    values: Mapping[str, Any] = field(default_factory=dict)
    outcomes: tuple[Outcome, ...] = ()
    left_out: tuple[str, ...] = ()
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()
    failure: str = ""
    message: str = ""
    ready_line: str = ""
    frame: int = 0
    frames: int = 1

    @property
    def under_way(self) -> bool:
        return self.phase in UNDER_WAY

    @property
    def found(self) -> tuple[Outcome, ...]:
        """The names that were found, each once, in the first frame that has it."""
        first: dict[str, Outcome] = {}
        for outcome in self.outcomes:
            if outcome.found:
                first.setdefault(outcome.typed, outcome)
        return tuple(first.values())

    @property
    def absent(self) -> tuple[Outcome, ...]:
        """The names that were looked for and found in no frame, each once."""
        found = {outcome.typed for outcome in self.found}
        return tuple({outcome.typed: outcome for outcome in self.outcomes if outcome.typed not in found}.values())


def advanced(state: RunState, event: Mapping[str, Any], seconds: float) -> RunState:
    """The run after an event of the engine, ``seconds`` after its start."""
    state = replace(state, seconds=seconds)
    kind = event["event"]
    if kind == "progress":
        return replace(
            state,
            fraction=max(state.fraction, (state.frame + float(event["fraction"])) / state.frames),
            seconds_left=_left_of_all(state, event.get("seconds_left")),
            code=event["code"],
            values=event.get("values") or {},
        )
    if kind == "segment":
        return replace(state, outcomes=(*state.outcomes, outcome_of(event)))
    if kind == "result":
        return replace(state, ready_line=event["line"])
    if kind == "finished":
        state = replace(state, warnings=tuple(dict.fromkeys((*state.warnings, *(event.get("warnings") or ())))))
        if state.frame + 1 < state.frames:
            fraction = (state.frame + 1) / state.frames
            return replace(state, frame=state.frame + 1, fraction=fraction, code="starting", values={})
        return replace(state, phase=Phase.DONE, fraction=1.0)
    if kind == "cancelled":
        return replace(state, phase=Phase.CANCELLED)
    if kind == "error":
        return failed(state, event["code"], event.get("message") or "")
    return state


def _left_of_all(state: RunState, left: float | None) -> float | None:
    """Seconds left for all frames, from those for the frame at work: each takes as long as those before did."""
    if left is None:
        return None
    return left + (state.frames - state.frame - 1) * (state.seconds + left) / (state.frame + 1)


def failed(state: RunState, failure: str, message: str) -> RunState:
    """The run ended by a fault."""
    return replace(state, phase=Phase.FAILED, failure=failure, message=message)


def outcome_of(event: Mapping[str, Any]) -> Outcome:
    """Outcome that a "segment" event tells."""
    red, green, blue = event["color"]
    return Outcome(
        typed=event["typed"],
        name=event["name"],
        found=bool(event["found"]),
        score=float(event["score"]),
        color=(red, green, blue),
        volume_ml=event.get("volume_ml"),
        slices=int(event.get("slices") or 0),
        trained=bool(event.get("trained", True)),
        warnings=tuple(event.get("warnings") or ()),
    )
