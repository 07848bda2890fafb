"""The line: typed names and a volume in, named segments out; every stage stands in its own file."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch

from MedZeroSegLib import __version__
from MedZeroSegLib.assembly import (
    fill_holes,
    keep_parts,
    leftness,
    midline_of,
    restore_mask,
    sides_visible,
    take_side,
)
from MedZeroSegLib.embeddings import EncodedVolume, Progress, encode_volume
from MedZeroSegLib.intensity import in_hounsfield_units
from MedZeroSegLib.mask_decoder.lite_medsam import IMAGE_SIZE
from MedZeroSegLib.memory import require_memory
from MedZeroSegLib.presets import Engine, load_engine
from MedZeroSegLib.propagation import Refined, refine
from MedZeroSegLib.queries import Query, resolve
from MedZeroSegLib.saliency import FOUND_SHARE_MIN, Competition, Saliency, saliency_of, smooth_across
from MedZeroSegLib.segment import Segment, Segmentation
from MedZeroSegLib.vocabulary import may_overlap, vocabulary, wordings
from MedZeroSegLib.volume import Volume

LUNG_LEVEL_MAX = -300.0  # HU; structures whose window lies below are looked at in their own window
SAME_MASK_DICE = 0.9  # two different names whose masks agree more than this get a warning
KEPT_VOLUMES = 2  # encoded volumes kept for the next question

_encoded: OrderedDict[tuple[Any, ...], EncodedVolume] = OrderedDict()


@dataclass(frozen=True)
class Concept:
    """What the head is asked: a concept without its side, its wordings and its rivals."""

    name: str
    wordings: tuple[str, ...]
    rivals: tuple[str, ...]
    trained: bool
    window: tuple[float, float] | None
    ring: bool
    parts: int


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


def segment(
    volume: Volume,
    names: str | Sequence[str],
    preset: str = "lite",
    device: str = "auto",
    weights_folder: Path | None = None,
    progress: Progress | None = None,
) -> Segmentation:
    """Segment the named structures.

    Parameters
    ----------
    names
        Names as a person types them, as a list or as one text with separators.
    preset
        One of ``presets.PRESETS``.
    device
        "auto", "cpu", "cuda" or "mps".
    weights_folder
        Where weights are looked for first.
    progress
        Called with the stage's name and its share done, 0..1.

    Returns
    -------
    One segment per name asked for, in that order, each on the volume's own grid; all false where not found.

    Raises
    ------
    InputError, InstallationError
        With the sentence for the user.
    """
    clock = Clock()
    queries = resolve(names)
    require_memory(volume, len(queries))
    with clock.stage("loading"):
        engine = load_engine(preset, device, weights_folder)
    concepts = {query.name: concept_of(query, engine, volume) for query in queries}
    unique = list({concept.name: concept for concept in concepts.values()}.values())
    masks: dict[str, _Whole] = {}
    for window in dict.fromkeys(concept.window for concept in unique):
        asked = [concept for concept in unique if concept.window == window]
        with clock.stage("encoding"):
            encoded = encode(volume, window, engine, progress)
        with clock.stage("text and saliency"):
            found = ask(encoded, asked, engine)
        for number, concept in enumerate(asked):
            with clock.stage("masks"):
                masks[concept.name] = _whole(encoded, concept, found[number], engine)
            if progress:
                progress("segmenting", (len(masks)) / len(unique))
    with clock.stage("segments"):
        segments = [_segment(volume, query, concepts[query.name], masks, engine) for query in queries]
        segments = _warn_of_twins(segments)
    return Segmentation(
        volume=volume,
        segments=tuple(segments),
        preset=preset,
        weights=engine.weights,
        device=engine.device,
        seconds={name: round(value, 3) for name, value in clock.seconds.items()},
        settings=engine.settings,
        version=__version__,
        warnings=volume.warnings + engine.warnings,
    )


def concept_of(query: Query, engine: Engine, volume: Volume) -> Concept:
    """What the head is asked for a query, and against which rivals: fixed by vocabulary and training alone."""
    card = engine.text_image.card
    structure = query.structure
    name = structure.name if structure else query.name
    trained = name in card.competitors
    if trained:
        rivals = card.competitors[name]
    else:
        rivals = tuple(other for other in card.concepts if not may_overlap(name, other))
    window = structure.window if structure and volume.modality == "CT" and in_hounsfield_units(volume) else None
    return Concept(
        name=name,
        wordings=wordings(structure) if structure else (query.name,),
        rivals=rivals,
        trained=trained,
        window=window if window and window[0] <= LUNG_LEVEL_MAX else None,
        ring=bool(structure and structure.encloses),
        parts=structure.parts * (2 if structure.side == "paired" else 1) if structure else 0,
    )


def ask(encoded: EncodedVolume, concepts: Sequence[Concept], engine: Engine) -> list[Saliency]:
    """Saliency of each concept over the encoded slices."""
    known = vocabulary()
    rows: dict[str, int] = {}
    texts = []
    for concept in concepts:
        for name in (concept.name, *concept.rivals):
            if name not in rows:
                rows[name] = len(rows)
                words = wordings(known[name]) if name in known else (name,)
                texts.append(engine.text_image.encode_text(words))
    matrix = torch.stack(texts)
    competitions = [Competition(rows[c.name], tuple(rows[rival] for rival in c.rivals)) for c in concepts]

    def score_slab(slab: slice) -> torch.Tensor:
        return engine.text_image.score(torch.from_numpy(np.ascontiguousarray(encoded.pixels[slab])), matrix)

    return saliency_of(
        encoded.slabs(),
        score_slab,
        competitions,
        torch.from_numpy(encoded.body),
        len(encoded.keys.indices),
        encoded.body.shape[-1],
    )


@dataclass(frozen=True)
class _Whole:
    """One concept on all canonical slices, both sides together, and how it came about."""

    encoded: EncodedVolume
    mask: np.ndarray
    score: float
    found: bool
    refined: Refined | None


def _whole(encoded: EncodedVolume, concept: Concept, saliency: Saliency, engine: Engine) -> _Whole:
    """Presence, decoding, choice and components of one concept."""
    preset = engine.preset
    needed = preset.found_min if concept.trained else preset.found_min_untrained
    empty = np.zeros(encoded.body_mask.shape, bool)
    if saliency.score < needed:
        return _Whole(encoded, empty, saliency.score, False, None)
    distance = encoded.frame.spacing[0] * encoded.keys.step
    smoothed = replace(saliency, share=smooth_across(saliency.share, distance, preset.smooth_mm))
    present = saliency.evidence >= preset.slice_min
    decodable = present & (not concept.ring)
    refined = refine(smoothed, decodable, encoded.coarse_of, engine.decoder.decode, IMAGE_SIZE, preset.choice)
    mask = restore_mask(refined.probability, present, encoded.keys, encoded.canvas, FOUND_SHARE_MIN)
    mask = keep_parts(mask if concept.ring else fill_holes(mask), concept.parts)
    return _Whole(encoded, mask, saliency.score, bool(mask.any()), refined)


def _segment(volume: Volume, query: Query, concept: Concept, wholes: dict[str, _Whole], engine: Engine) -> Segment:
    whole = wholes[concept.name]
    mask, warnings = whole.mask, list(query.warnings)
    if query.side and whole.found and not sides_visible(whole.encoded.frame, len(mask)):
        warnings.append(f"A single sagittal slice doesn't tell left from right: {concept.name} is shown whole.")
    elif query.side and whole.found:
        position = leftness(volume, whole.encoded.frame)
        midline = midline_of(whole.encoded.body_mask, position, mask)
        mask = take_side(mask, position, midline, query.side)
        if not midline.certain:
            warnings.append(f"The side of {query.name} was taken from the middle of the image; check it.")
    found = bool(mask.any())
    if not concept.trained:
        warnings.append(f"The model was not trained on {concept.name!r}: this is a try, look at it closely.")
    if query.suggestions:
        warnings.append(f"{query.typed!r} isn't a known name; did you mean {' or '.join(query.suggestions)}?")
    if query.structure and volume.modality != "other" and volume.modality not in query.structure.modalities:
        warnings.append(f"{query.name} is seldom seen in {volume.modality}.")
    return Segment(
        typed=query.typed,
        name=query.name,
        found=found,
        score=whole.score if found or not whole.found else 0.0,  # the other side's evidence isn't this side's
        mask=np.ascontiguousarray(whole.encoded.frame.inverse(mask)),
        code=query.code,
        category=query.category,
        modifier=query.modifier,
        color=query.color,
        slices=int(mask.any(axis=(1, 2)).sum()),
        warnings=tuple(warnings),
        provenance=_provenance(query, concept, whole, engine),
    )


def _provenance(query: Query, concept: Concept, whole: _Whole, engine: Engine) -> dict[str, Any]:
    refined = whole.refined
    return {
        "typed": query.typed,
        "understood_as": query.name,
        "status": query.status,
        "wordings": list(concept.wordings),
        "trained": concept.trained,
        "preset": engine.preset.name,
        "weights": {record["name"]: record["sha256"] for record in engine.weights},
        "version": __version__,
        "evidence": round(whole.score, 4),
        "parts_prompted": refined.kept if refined else 0,
        "parts_drawn_by_decoder": refined.decoded if refined else 0,
    }


def _warn_of_twins(segments: list[Segment]) -> list[Segment]:
    """Different names whose masks are nearly the same: one of them is likely wrong."""
    warned = list(segments)
    sizes = [np.count_nonzero(segment.mask) for segment in segments]
    for a, b in combinations(range(len(segments)), 2):
        first, second = segments[a], segments[b]
        enough = SAME_MASK_DICE * (sizes[a] + sizes[b])
        if first.name == second.name or 2 * min(sizes[a], sizes[b]) <= enough:  # sizes alone settle most pairs
            continue
        if 2 * np.count_nonzero(first.mask & second.mask) > enough:
            sentence = f"{first.name} and {second.name} have nearly the same mask; one of them is likely wrong."
            for n in (a, b):
                warned[n] = replace(warned[n], warnings=(*warned[n].warnings, sentence))
    return warned


def encode(
    volume: Volume, window: tuple[float, float] | None, engine: Engine, progress: Progress | None
) -> EncodedVolume:
    """Encoded volume from the cache of the last ones, or made now."""
    key = (volume.fingerprint, volume.modality, volume.dimension, window, engine.preset.name, engine.device)
    if key not in _encoded:
        _encoded[key] = encode_volume(volume, window, _Embedder(engine), engine.text_image, IMAGE_SIZE, progress)
        while len(_encoded) > KEPT_VOLUMES:
            _encoded.popitem(last=False)
    _encoded.move_to_end(key)
    return _encoded[key]


@dataclass(frozen=True)
class _Embedder:
    """The decoder's encoder as the embeddings' image model."""

    engine: Engine

    def embed(self, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        embedding = self.engine.decoder.embed(pictures)
        return embedding.coarse, embedding.detail
