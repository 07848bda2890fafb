"""What confidence and presence are fitted to: images of training patients, asked as an evaluation asks them, with what
the line measured of each name and what is true of it. Kept image by image, so that a stopped run goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from MedZeroSegLib.concepts import Concept, ask, concept_of
from MedZeroSegLib.encoding import encode
from MedZeroSegLib.evaluation.manifest import Case
from MedZeroSegLib.evaluation.metrics import dice_of
from MedZeroSegLib.evaluation.questions import Question, Questionnaire
from MedZeroSegLib.pipeline import Whole, asked_side, draw, measured_segment
from MedZeroSegLib.presence import presence_features
from MedZeroSegLib.presets import Engine
from MedZeroSegLib.progress import tell_nobody
from MedZeroSegLib.queries import Query, resolve
from MedZeroSegLib.slices import slice_frame
from MedZeroSegLib.volume import Volume
from MedZeroSegLib.writers import replacing

DRAWN_EVIDENCE = 0.5  # structures with less in every slice aren't drawn: their masks would be empty


@dataclass(frozen=True)
class Row:
    """One name asked of one image.

    Attributes
    ----------
    kind
        "marked", "whole" or "far", as in `evaluation.questions`.
    concept
        The structure without its side.
    present, concept_present
        Whether it is in the image; whether either side of it is.
    score
        Evidence, which decides where nothing is calibrated.
    presence
        Features of the concept's presence.
    segment, slices
        Features of the segment, and of its key slices; empty where nothing was drawn.
    dice, slice_dice
        Against the reference, 0 where the structure is absent; None and empty where nothing was drawn.
    """

    source: str
    patient: str
    case: str
    name: str
    kind: str
    concept: str
    trained: bool
    any_use: bool
    present: bool
    concept_present: bool
    score: float
    presence: dict[str, float]
    segment: dict[str, float] = field(default_factory=dict)
    slices: dict[str, list[float]] = field(default_factory=dict)
    dice: float | None = None
    slice_dice: list[float] = field(default_factory=list)


def rows_of(image: Sequence[Case], questionnaire: Questionnaire, engine: Engine, file: Path) -> list[Row]:
    """Rows of one image, from ``file`` where an earlier run has left them."""
    if file.is_file():
        return [Row(**row) for row in json.loads(file.read_text(encoding="utf-8"))]
    rows = list(_measured_rows(image, questionnaire.of(image), engine))
    with replacing(file) as stream:
        stream.write(json.dumps([asdict(row) for row in rows]).encode())
    return rows


def _measured_rows(image: Sequence[Case], questions: Sequence[Question], engine: Engine) -> Iterator[Row]:
    volume, labels = image[0].read()
    labels_of = {image[0].case_id: labels, **{case.case_id: case.read_labels(volume) for case in image[1:]}}
    queries = [resolve([question.name])[0] for question in questions]
    plane = slice_frame(volume).plane
    concepts = [concept_of(query, engine, volume, plane) for query in queries]
    truths = [question.reference(labels_of[question.case.case_id]) for question in questions]
    there = {concept.name for concept, truth in zip(concepts, truths, strict=True) if truth.any()}
    unique = list({concept.name: concept for concept in concepts}.values())
    for window in dict.fromkeys(concept.window for concept in unique):
        asked = [concept for concept in unique if concept.window == window]
        encoded = encode(volume, window, engine, None)
        for concept, saliency in zip(asked, ask(encoded, asked, engine, tell_nobody), strict=True):
            presence = presence_features(saliency, encoded.body, engine.preset.slice_min)
            drawn = saliency.score >= DRAWN_EVIDENCE
            whole = draw(encoded, concept, saliency, engine, tell_nobody) if drawn else None
            for question, query, one, truth in zip(questions, queries, concepts, truths, strict=True):
                if one.name == concept.name:
                    facts: dict[str, Any] = {
                        "source": question.case.source,
                        "patient": question.case.patient_id,
                        "case": question.case.case_id,
                        "name": question.name,
                        "kind": question.kind,
                        "concept": concept.name,
                        "trained": concept.trained,
                        "any_use": question.case.any_use,
                        "present": bool(truth.any()),
                        "concept_present": concept.name in there,
                        "score": saliency.score,
                        "presence": presence,
                    }
                    judged = _judged(volume, query, concept, whole, truth) if whole and whole.found else {}
                    yield Row(**facts, **judged)


def _judged(volume: Volume, query: Query, concept: Concept, whole: Whole, truth: np.ndarray) -> dict[str, Any]:
    """Features of one segment and its Dice, empty where it is empty."""
    mask, _ = asked_side(volume, query, whole)
    measured = measured_segment(volume, query, concept, whole, mask) if mask.any() else None
    if measured is None:
        return {}
    reference = whole.encoded.frame.forward(truth)
    rows = whole.encoded.keys.indices[measured.rows]
    return {
        "segment": measured.segment,
        "slices": {name: values.tolist() for name, values in measured.slices.items()},
        "dice": dice_of(mask, reference),
        "slice_dice": [dice_of(mask[row], reference[row]) for row in rows],
    }
