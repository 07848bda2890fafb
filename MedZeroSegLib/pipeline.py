"""The line: typed names and a volume in, named segments out; every stage stands in its own file."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from MedZeroSegLib import __version__
from MedZeroSegLib.assembly import (
    fill_holes,
    keep_parts,
    leftness,
    midline_of,
    on_grid,
    restore_mask,
    sides_visible,
    take_side,
)
from MedZeroSegLib.blank_mask import blank_mask
from MedZeroSegLib.coarse_pass import first_rows, own_rows, take_in
from MedZeroSegLib.concepts import Concept, ask, concept_of
from MedZeroSegLib.confidence import Confidence, Measured, confidence_of, expected_slice_dice, measure
from MedZeroSegLib.device import release_memory
from MedZeroSegLib.embedding_store import EmbeddingStore
from MedZeroSegLib.embeddings import EncodedVolume, expected_slices
from MedZeroSegLib.encoding import Filling, any_kept, axes_encoded, forget_volumes, kept_volume, opened
from MedZeroSegLib.ends import trim_ends
from MedZeroSegLib.mask_decoder.decoder import Prompted
from MedZeroSegLib.memory import ran_out_of_memory, require_memory, telling_shortage
from MedZeroSegLib.presence import presence_features
from MedZeroSegLib.presets import Engine, load_engine, own_structures
from MedZeroSegLib.progress import Progress, part_of, tell_nobody
from MedZeroSegLib.propagation import Refined, refine
from MedZeroSegLib.queries import Query, resolve
from MedZeroSegLib.saliency import FOUND_SHARE_MIN, Saliency, smooth_across
from MedZeroSegLib.saliency_map import SaliencyMap
from MedZeroSegLib.segment import Segment, Segmentation
from MedZeroSegLib.sensitivity import NEUTRAL
from MedZeroSegLib.slices import slice_frame
from MedZeroSegLib.tracking import track
from MedZeroSegLib.twins import ReadySegments
from MedZeroSegLib.volume import Volume

CARD_TOO_SMALL = "The graphics card ran out of memory, so the CPU was used."
USUAL = {"unusual": 0.0}  # what is measured of a concept before it is asked for by a name and its modality
DECODING_SHARE = 0.7  # of the time that a structure takes; the rest goes into slices in between and components

OnSegment = Callable[[int, Segment], None]
Adjust = Callable[[EncodedVolume, Sequence[Concept], list[Saliency]], list[Saliency]]


@dataclass
class Clock:
    """Seconds spent in each stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


@telling_shortage()
def segment(
    volume: Volume,
    names: str | Sequence[str],
    preset: str = "lite",
    device: str = "auto",
    weights_folder: Path | None = None,
    progress: Progress | None = None,
    on_segment: OnSegment | None = None,
    sensitivity: float = NEUTRAL,
    adjust: Adjust | None = None,
    store: EmbeddingStore | None = None,
) -> Segmentation:
    """Segment the named structures.

    Parameters
    ----------
    volume
        Where it has a region, only there.
    names
        Names as a person types them, as a list or as one text with separators.
    preset
        One of ``presets.PRESETS``.
    device
        "auto", "cpu", "cuda" or "mps"; where a card's memory doesn't suffice for one slice, the CPU, and that is said.
    weights_folder
        Where weights are looked for first.
    progress
        Called with the stage's name, its share done (0..1) and values; before and after every call of a model at least,
        so that it can end the run by raising.

        =========== =====================================================================================
        stage       values
        =========== =====================================================================================
        loading
        planned     ``encodings``: how often the volume is to be encoded, 0 where it is kept from before;
                    ``slices``: about how many that are each time; ``names``: structures to look for
        encoding    ``slice`` of ``slices``
        scoring     ``slices``
        segmenting  ``name``, and while the decoder draws ``slice`` of ``slices``
        =========== =====================================================================================
    on_segment
        Called with each segment as soon as it is ready, and with its place among the names. A warning that a later
        segment gives rise to is in the result only.
    sensitivity
        0..1, how little evidence is enough; see ``sensitivity.threshold_at``.
    adjust
        Changes the saliency before masks are drawn from it, see ``prototypes.adjusting``.
    store
        Where embeddings of slices are kept on disk; None keeps none.

    Returns
    -------
    One segment per name asked for, in that order, each on the volume's own grid; all false where not found.

    Raises
    ------
    InputError, InstallationError
        With the sentence for the user.
    """
    clock, tell = Clock(), progress or tell_nobody
    queries = resolve(names, own_structures(preset))
    require_memory(volume, len(queries), loaded=any_kept(), preset=preset)
    tell("loading", 0.0)
    with clock.stage("loading"):
        engine = load_engine(preset, device, weights_folder).at(sensitivity)
    given: set[int] = set()

    def give(index: int, segment: Segment) -> None:
        if on_segment and index not in given:
            on_segment(index, segment)
        given.add(index)

    try:
        return segment_with(engine, volume, queries, clock, tell, give, adjust, store)
    except (MemoryError, RuntimeError) as problem:
        if engine.device == "cpu" or not ran_out_of_memory(problem):
            raise
    forget_volumes()
    release_memory(engine.device)
    with clock.stage("loading"):
        engine = load_engine(preset, "cpu", weights_folder).at(sensitivity)
        engine = replace(engine, warnings=(*engine.warnings, CARD_TOO_SMALL))
    return segment_with(engine, volume, queries, clock, tell, give, adjust, store)


def segment_with(
    engine: Engine,
    volume: Volume,
    queries: Sequence[Query],
    clock: Clock,
    tell: Progress,
    on_segment: OnSegment | None = None,
    adjust: Adjust | None = None,
    store: EmbeddingStore | None = None,
) -> Segmentation:
    """The same with loaded models, for names that have been resolved; see ``segment``."""
    plane = slice_frame(volume).plane
    concepts = {query.name: concept_of(query, engine, volume, plane) for query in queries}
    unique = list({concept.name: concept for concept in concepts.values()}.values())
    windows = list(dict.fromkeys(concept.window for concept in unique))
    missing = [window for window in windows if kept_volume(volume, window, engine) is None]
    encodings = len(missing) * len(axes_encoded(volume, engine))
    tell("planned", 1.0, encodings=encodings, slices=expected_slices(volume), names=len(unique))
    ready, done = ReadySegments(), 0
    for window in windows:
        asked = [concept for concept in unique if concept.window == window]
        turn = missing.index(window) if window in missing else 0
        with clock.stage("encoding"):
            encoded = opened(volume, window, engine)
        filling = Filling(encoded, engine, part_of(tell, turn, max(1, len(missing))), store)
        found = _look(filling, asked, clock, tell, whole=adjust is not None)
        if adjust:
            found = adjust(encoded, asked, found)
        for concept, saliency in zip(asked, found, strict=True):
            with clock.stage("masks"):
                whole = _whole(encoded, concept, saliency, engine, part_of(tell, done, len(unique), concept.name))
            with clock.stage("segments"):
                for index, query in enumerate(queries):
                    if concepts[query.name].name == concept.name:
                        segment = ready.add(index, _segment(volume, query, concept, whole, engine))
                        if on_segment:
                            on_segment(index, segment)
            del whole  # may be as large as the volume, and the next is drawn now
            done += 1
            tell("segmenting", done / len(unique), name=concept.name)
    return segmentation_of(volume, ready.in_order(), engine, clock.seconds)


def segmentation_of(
    volume: Volume, segments: Sequence[Segment], engine: Engine, seconds: dict[str, float]
) -> Segmentation:
    """Segments of one volume with how they were made."""
    return Segmentation(
        volume=volume,
        segments=tuple(segments),
        preset=engine.preset.name,
        weights=engine.weights,
        device=engine.device,
        seconds={name: round(value, 3) for name, value in seconds.items()},
        settings=engine.settings,
        version=__version__,
        warnings=volume.warnings + engine.warnings,
    )


@dataclass(frozen=True)
class Whole:
    """One concept on all canonical slices, both sides together, and how it came about; without ``refined`` it wasn't
    drawn, being absent."""

    encoded: EncodedVolume
    mask: np.ndarray
    score: float
    found: bool
    saliency: Saliency
    refined: Refined | None


def _whole(encoded: EncodedVolume, concept: Concept, saliency: Saliency, engine: Engine, tell: Progress) -> Whole:
    tell("segmenting", 0.0)
    if not is_there(encoded, concept, saliency, engine):
        return Whole(encoded, blank_mask(encoded.body_mask.shape), saliency.score, False, saliency, None)
    whole = draw(encoded, concept, saliency, engine, tell)
    if engine.calibration is not None and concept.calibrated and whole.refined is not None:
        measured = measure(whole.mask, encoded, saliency, whole.refined, USUAL)
        if measured is not None:
            expected = expected_slice_dice(concept.name, measured, engine.calibration)
            trim_ends(whole.mask, measured.rows, expected, encoded.keys)
    return whole


def draw(encoded: EncodedVolume, concept: Concept, saliency: Saliency, engine: Engine, tell: Progress) -> Whole:
    """Decoding, choice and components of one concept that is believed to be there."""
    preset = engine.preset
    distance = encoded.frame.spacing[0] * encoded.keys.step
    smoothed = replace(saliency, share=smooth_across(saliency.share, distance, preset.smooth_mm))
    present = saliency.evidence >= preset.slice_min
    decodable = present & (not concept.ring)
    coarse_of, decoder = _telling(encoded, engine, decodable, tell)
    if preset.zero_shot is None:
        size, parts = encoded.canvas.size, concept.parts
        refined = refine(smoothed, decodable, coarse_of, decoder.decode, size, preset.choice, parts)
    else:
        refined = track(smoothed, decodable, coarse_of, decoder, encoded.body_area)
    tell("segmenting", DECODING_SHARE)
    mask = restore_mask(refined.probability, present, encoded.keys, encoded.canvas, FOUND_SHARE_MIN)
    tell("segmenting", (1 + DECODING_SHARE) / 2)
    if encoded.within is not None:
        mask &= encoded.within
    if not concept.ring:
        fill_holes(mask)
    keep_parts(mask, concept.parts)
    tell("segmenting", 1.0)
    return Whole(encoded, mask, saliency.score, bool(mask.any()), saliency, refined)


def is_there(encoded: EncodedVolume, concept: Concept, saliency: Saliency, engine: Engine) -> bool:
    """Whether the concept is in the image: calibrated where it was trained, else by the evidence alone."""
    preset = engine.preset
    if engine.calibration is not None and concept.calibrated:
        features = presence_features(saliency, encoded.body, preset.slice_min)
        return engine.calibration.is_found(concept.name, features)
    return saliency.score >= (preset.found_min if concept.trained else preset.found_min_untrained)


class _TellingDecoder:
    """The decoder on the volume's canvas, whose calls are told."""

    def __init__(self, decoder: Prompted, tell: Callable[[], None]) -> None:
        self.decoder, self.tell = decoder, tell
        self.prompts, self.device = decoder.prompts, decoder.device

    def decode(self, coarse: Tensor, boxes: Tensor, masks: Tensor | None, **more: Any) -> tuple[Tensor, Tensor]:
        answer = self.decoder.decode(coarse, boxes, masks, **more)
        self.tell()
        return answer


def _telling(
    encoded: EncodedVolume, engine: Engine, present: np.ndarray, tell: Progress
) -> tuple[Callable[[list[int]], Tensor], _TellingDecoder]:
    """The embeddings' and the decoder's calls, told before and after; ``present`` bool [n]: slices that are decoded."""
    places = np.cumsum(present)
    place = 0

    def tell_place() -> None:
        count = max(1, int(present.sum()))
        tell("segmenting", DECODING_SHARE * place / count, slice=place, slices=count)

    def coarse_of(rows: list[int]) -> Tensor:
        nonlocal place
        place = max(place, int(places[max(rows)]))
        tell_place()
        return encoded.coarse_of(rows)

    return coarse_of, _TellingDecoder(engine.decoder.on(encoded.canvas), tell_place)


def asked_side(volume: Volume, query: Query, whole: Whole) -> tuple[np.ndarray, tuple[str, ...]]:
    """The part of a concept that a query asks for, bool [N, h, w], and what the user must know of its side."""
    mask = whole.mask
    if not query.side or not whole.found:
        return mask, ()
    if not sides_visible(whole.encoded.frame, len(mask)):
        return mask, (f"A single sagittal slice doesn't tell left from right: {query.concept} is shown whole.",)
    position = leftness(volume, whole.encoded.frame)
    midline = midline_of(whole.encoded.body_mask, position, mask)
    mask = take_side(mask, position, midline, query.side)
    doubt = f"The side of {query.name} was taken from the middle of the image; check it."
    return mask, () if midline.certain else (doubt,)


def _segment(volume: Volume, query: Query, concept: Concept, whole: Whole, engine: Engine) -> Segment:
    mask, side_warnings = asked_side(volume, query, whole)
    warnings = [*query.warnings, *side_warnings]
    found = bool(mask.any())
    warnings += engine.text_image.text_remarks(concept.wordings, concept.scene)
    if not concept.trained and engine.text_image.card.concepts:
        warnings.append(f"The model was not trained on {concept.name!r}: this is a try, look at it closely.")
    if concept.parts_asked:
        warnings.append(f"{concept.name} was put together from {', '.join(concept.parts_asked)}.")
    if concept.described:
        warnings.append(f"{query.typed!r} isn't a known name; {concept.name} was looked for, which it resembles.")
    elif query.suggestions:
        warnings.append(f"{query.typed!r} isn't a known name; did you mean {' or '.join(query.suggestions)}?")
    if query.structure and volume.modality != "other" and volume.modality not in query.structure.modalities:
        warnings.append(f"{query.name} is seldom seen in {volume.modality}.")
    confidence = _confidence(volume, query, concept, whole, mask, engine) if found else None
    return Segment(
        typed=query.typed,
        name=query.name,
        found=found,
        score=whole.score if found or not whole.found else 0.0,  # the other side's evidence isn't this side's
        mask=on_grid(mask, whole.encoded.frame),
        code=query.code,
        category=query.category,
        modifier=query.modifier,
        color=query.color,
        slices=int(mask.any(axis=(1, 2)).sum()),
        warnings=tuple(warnings),
        provenance=_provenance(query, concept, whole, confidence, engine),
        confidence=confidence,
        saliency=None if query.side else _saliency_map(whole),
    )


def _saliency_map(whole: Whole) -> SaliencyMap:
    encoded = whole.encoded
    return SaliencyMap(encoded.frame, encoded.canvas, encoded.keys.indices, whole.saliency.share)


def _confidence(
    volume: Volume, query: Query, concept: Concept, whole: Whole, mask: np.ndarray, engine: Engine
) -> Confidence | None:
    """How far a found segment can be trusted, where the preset knows; ``mask`` bool [N, h, w] is final.

    Nothing is known of names that the model wasn't trained on: no case tells how good their masks are.
    """
    if engine.calibration is None or not concept.calibrated:
        return None
    measured = measured_segment(volume, query, concept, whole, mask)
    if measured is None or whole.refined is None:
        return None
    return confidence_of(concept.name, measured, mask, whole.encoded, whole.saliency, whole.refined, engine.calibration)


def measured_segment(volume: Volume, query: Query, concept: Concept, whole: Whole, mask: np.ndarray) -> Measured | None:
    """What the calibration judges a segment by, None for one that no key slice holds."""
    if whole.refined is None:
        return None
    expected = query.structure.modalities if query.structure else ()
    facts = {"unusual": float(bool(expected) and volume.modality not in expected)}
    return measure(mask, whole.encoded, whole.saliency, whole.refined, facts)


def _provenance(
    query: Query, concept: Concept, whole: Whole, confidence: Confidence | None, engine: Engine
) -> dict[str, Any]:
    refined = whole.refined
    return {
        "typed": query.typed,
        "understood_as": concept.name if concept.described else query.name,
        "status": query.status,
        "wordings": list(concept.wordings),
        "trained": concept.trained,
        "preset": engine.preset.name,
        "weights": {record["name"]: record["sha256"] for record in engine.weights},
        "version": __version__,
        "evidence": round(whole.score, 4),
        "expected_dice": None if confidence is None else round(confidence.expected_dice, 3),
        "parts_prompted": refined.kept if refined else 0,
        "parts_drawn_by_decoder": refined.decoded if refined else 0,
    }


def _look(filling: Filling, asked: Sequence[Concept], clock: Clock, tell: Progress, whole: bool) -> list[Saliency]:
    """The concepts' saliency; unless the ``whole`` volume is wanted, slices of a long one in which none of them can be
    are not encoded."""
    encoded, engine = filling.encoded, filling.engine
    every = np.arange(len(encoded.filled))
    first = first_rows(len(every)) if engine.preset.judges_slices_alone and not whole else every
    with clock.stage("encoding"):
        filling(first, every)
    with clock.stage("text and saliency"):
        found = ask(encoded, asked, engine, tell, first)
    own = [own_rows(saliency.evidence, first) for saliency in found]
    more = np.setdiff1d(np.flatnonzero(np.any(own, axis=0)), first)
    with clock.stage("encoding"):
        filling(more)
    if len(more):
        with clock.stage("text and saliency"):
            for saliency, added, rows in zip(found, ask(encoded, asked, engine, tell, more), own, strict=True):
                rows[first] = False
                take_in(saliency, added, rows)
    return found
