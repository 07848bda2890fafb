"""What a run says to the user: its progress, its outcome and the measurements of its segments, each a full sentence.
The engine sends codes and values; here they become words, in the language that Slicer is set to."""

from __future__ import annotations

import html
from collections.abc import Collection

from .run_state import Outcome, Phase, RunState
from .translation import _

FEW_SECONDS = 10  # below it, a count of seconds would jump about more than it tells
ROUNDED_SECONDS = 5


def run_sentence(state: RunState) -> str:
    """The status line of a run that is under way or over; empty before the first."""
    if state.phase is Phase.CHECKING:
        return _("Checking the models and the device...")
    if state.phase in (Phase.RUNNING, Phase.FETCHING):
        return progress_sentence(state)
    if state.phase is Phase.CANCELLING:
        return _("Stopping...")
    if state.phase is Phase.CANCELLED and state.code == "downloading":
        return _("Cancelled. What was downloaded is kept for the next time.")
    if state.phase is Phase.CANCELLED and state.frames > 1:
        text = _("Cancelled after {count} of {frames} frames. Segments that were ready have been kept.")
        return text.format(count=state.frame, frames=state.frames)
    if state.phase is Phase.CANCELLED:
        return _("Cancelled. Segments that were ready have been kept.")
    if state.phase is Phase.FAILED:
        return failure_sentence(state)
    return done_sentence(state) if state.phase is Phase.DONE else ""


def progress_sentence(state: RunState) -> str:
    """What the engine is at and how long it will take: "spleen: slice 9 of 24, about 40 s left"."""
    if state.frames > 1:
        text = _("Frame {frame} of {frames}. {sentence}")
        sentence = _sentence_of_frame(state)
        return text.format(frame=state.frame + 1, frames=state.frames, sentence=sentence)
    return _sentence_of_frame(state)


def _sentence_of_frame(state: RunState) -> str:
    values = {key: value for key, value in state.values.items() if value is not None}
    without_time, with_time = _progress_texts(state.code, values.keys())
    if state.seconds_left is None:
        return without_time.format(**values)
    return with_time.format(**values, time=time_left(state.seconds_left))


def _progress_texts(code: str, known: Collection[str]) -> tuple[str, str]:
    """The sentence for a code, without and with the time left."""
    if {"name", "slice", "slices"} <= set(known):
        return _("{name}: slice {slice} of {slices}"), _("{name}: slice {slice} of {slices}, {time} left")
    if {"done", "total"} <= set(known):
        text = _("Downloading model files: {done} of {total} MB")
        return text, _("Downloading model files: {done} of {total} MB, {time} left")
    if {"slice", "slices"} <= set(known):
        return _("Reading slice {slice} of {slices}"), _("Reading slice {slice} of {slices}, {time} left")
    if "name" in known:
        return _("Segmenting {name}..."), _("Segmenting {name}, {time} left")
    texts = {
        "downloading": (_("Downloading model files..."), _("Downloading model files, {time} left")),
        "starting": (_("Starting..."), _("Starting, {time} left")),
        "loading": (_("Loading the models..."), _("Loading the models, {time} left")),
        "preparing": (_("Preparing the image..."), _("Preparing the image, {time} left")),
        "scoring": (_("Looking for the structures..."), _("Looking for the structures, {time} left")),
    }
    return texts.get(code, (_("Working..."), _("Working, {time} left")))


def time_left(seconds: float) -> str:
    """About how long, in words: coarse where the seconds would only flicker."""
    if seconds < FEW_SECONDS:
        return _("a few seconds")
    if seconds < 90:
        rounded = ROUNDED_SECONDS * round(seconds / ROUNDED_SECONDS)
        return _("about {seconds} s").format(seconds=rounded)
    return _("about {minutes} min").format(minutes=round(seconds / 60))


def time_taken(seconds: float) -> str:
    """How long it took."""
    if seconds < 90:
        return _("{seconds} s").format(seconds=max(1, round(seconds)))
    minutes, rest = divmod(round(seconds), 60)
    return _("{minutes} min {seconds} s").format(minutes=minutes, seconds=rest)


def done_sentence(state: RunState) -> str:
    """ "3 segments, 41 s. Not found in this image: right kidney."; after a check, its answer."""
    if state.ready_line:
        return state.ready_line
    count = len(state.found)
    text = {0: _("No segment, {time}."), 1: _("1 segment, {time}.")}.get(count, _("{count} segments, {time}."))
    if state.frames > 1:
        text = {
            0: _("No segment in {frames} frames, {time}."),
            1: _("1 structure in {frames} frames, {time}."),
        }.get(count, _("{count} structures in {frames} frames, {time}."))
    sentences = [text.format(count=count, frames=state.frames, time=time_taken(state.seconds))]
    if state.absent:
        text = _("Not found in this image: {names}.") if state.frames == 1 else _("Not found in any frame: {names}.")
        sentences.append(text.format(names=", ".join(outcome.name for outcome in state.absent)))
    if state.left_out:
        sentences.append(_("Not known and left out: {names}.").format(names=", ".join(state.left_out)))
    return " ".join(sentences)


def failure_sentence(state: RunState) -> str:
    """Why the run failed and the way out; the engine's own sentence where it gave one."""
    if state.message:
        return state.message
    if state.failure == "memory":
        return _("There is not enough memory for this image: close other programs, crop the image or choose CPU.")
    if state.failure == "worker-died":
        return _("The engine stopped by itself. Segments that were ready have been kept; press Segment to try again.")
    return _("The run failed for an unknown reason; send the report that “Copy report” (Advanced) makes.")


def measurements_html(state: RunState) -> str:
    """The run's outcomes as a small table: color, name, score and size; not found; and what to be careful of."""
    outcomes = state.outcomes if state.frames == 1 else (*state.found, *state.absent)
    rows = "".join(_outcome_html(outcome, _over_frames(state, outcome)) for outcome in outcomes)
    notes = "".join(f"<p>{html.escape(warning)}</p>" for warning in state.warnings)
    return f'<table width="100%" cellspacing="0" cellpadding="1">{rows}</table>{notes}' if rows or notes else ""


def _over_frames(state: RunState, outcome: Outcome) -> str | None:
    """In how many frames a name was found, and its smallest and largest size; None for what is no sequence."""
    if state.frames == 1:
        return None
    looked_for = [other for other in state.outcomes if other.typed == outcome.typed]
    found = [other for other in looked_for if other.found]
    sizes = [other.volume_ml for other in found if other.volume_ml is not None]
    frames = _("{count} of {frames} frames").format(count=len(found), frames=len(looked_for))
    if not sizes:
        return frames
    least, most = _digits(min(sizes)), _digits(max(sizes))
    text = _("{frames}, {most} ml") if least == most else _("{frames}, {least} to {most} ml")
    return text.format(frames=frames, least=least, most=most)


def _outcome_html(outcome: Outcome, over_frames: str | None = None) -> str:
    name = html.escape(outcome.name)
    if not outcome.found:
        text = _("not found, score {score}").format(score=f"{outcome.score:.2f}")
        return f'<tr><td></td><td>{name}</td><td align="right" colspan="2"><i>{text}</i></td></tr>'
    swatch = '<font color="#{:02x}{:02x}{:02x}">■</font>'.format(*outcome.color)
    score, size = _("score {score}").format(score=f"{outcome.score:.2f}"), size_text(outcome)
    cells = [html.escape(cell) for cell in ([over_frames] if over_frames else [score, size]) if cell]
    span = "" if len(cells) == 2 else ' colspan="2"'
    row = f'<tr><td width="14">{swatch}</td><td>{name}</td>'
    row += "".join(f'<td align="right"{span}>{cell}</td>' for cell in cells) + "</tr>"
    notes = (f'<tr><td></td><td colspan="3"><small>{html.escape(text)}</small></td></tr>' for text in outcome.warnings)
    return row + "".join(notes)


def size_text(outcome: Outcome) -> str:
    """Volume in ml with as many digits as it deserves, else the number of slices; nothing in a picture."""
    if outcome.volume_ml is None:
        return _("{count} slices").format(count=outcome.slices) if outcome.slices > 1 else ""
    return _("{volume} ml").format(volume=_digits(outcome.volume_ml))


def _digits(ml: float) -> str:
    return f"{ml:.{0 if ml >= 100 else 1 if ml >= 10 else 2}f}"
