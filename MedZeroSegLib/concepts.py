"""What the models are asked: each query as a concept with its words and its rivals, and the saliency that they answer.

What a concept competes with is fixed by the vocabulary and the training, not by what else is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from torch import Tensor

from MedZeroSegLib.axes import on_cells_of
from MedZeroSegLib.embeddings import EncodedVolume
from MedZeroSegLib.errors import InputError
from MedZeroSegLib.intensity import in_hounsfield_units
from MedZeroSegLib.presets import Engine
from MedZeroSegLib.progress import Progress
from MedZeroSegLib.queries import Query
from MedZeroSegLib.saliency import Competition, Saliency, saliency_of
from MedZeroSegLib.text_image.model import Scene, ZeroShotModel
from MedZeroSegLib.vocabulary import MADE_OF_PARTS, confusions, may_overlap, parts_among, vocabulary, wordings
from MedZeroSegLib.volume import Volume
from MedZeroSegLib.zero_shot import Against, Ground, Relief, averaged, draw, reliefs

LUNG_LEVEL_MAX = -300.0  # HU; structures whose window lies below are looked at in their own window


@dataclass(frozen=True)
class Concept:
    """What the model is asked: a concept without its side, its wordings and its rivals.

    Attributes
    ----------
    trained
        Whether the model was trained on it.
    calibrated
        Whether the preset's calibration, where it has one, holds for it.
    scene
        What is known of the image, for models whose texts say so.
    kind
        Of the structure in the vocabulary; "" where it is unknown.
    described
        Whether the query is no name, but a text that resembles the structure.
    parts_asked
        Trained names that are asked in place of a whole which the model wasn't trained on.
    """

    name: str
    wordings: tuple[str, ...]
    rivals: tuple[str, ...]
    trained: bool
    calibrated: bool
    window: tuple[float, float] | None
    ring: bool
    parts: int
    scene: Scene
    kind: str
    described: bool = False
    parts_asked: tuple[str, ...] = ()

    @property
    def asked(self) -> tuple[str, ...]:
        """The names whose answers together are the concept's."""
        return self.parts_asked or (self.name,)


def concept_of(query: Query, engine: Engine, volume: Volume, plane: str) -> Concept:
    """What the model is asked for a query, and against which rivals; ``plane`` is that of the slices.

    Raises
    ------
    InputError
        When the model knows nothing but what it was trained on, and not this.
    """
    card = engine.text_image.card
    structure = query.structure
    like = None if structure else engine.text_image.structure_like(query.name)
    structure = vocabulary()[like] if like else structure
    name = structure.name if structure else query.concept
    trained = name in card.competitors
    parts_asked = parts_among(name, card.concepts) if name in MADE_OF_PARTS and not trained else ()
    if trained:
        rivals = card.competitors[name]
    elif parts_asked:
        others = {rival for part in parts_asked for rival in card.competitors[part]}
        rivals = tuple(sorted(other for other in others if not may_overlap(name, other)))
    elif card.closed:
        raise InputError(
            f"The preset {engine.preset.name} was trained on {', '.join(card.concepts)} alone, not on {name}; ask for "
            "one of these, or take another preset."
        )
    elif card.concepts:
        rivals = tuple(other for other in card.concepts if not may_overlap(name, other))
    else:
        rivals = confusions(structure) if structure else ()
    has_window = structure and not card.closed and volume.modality == "CT" and in_hounsfield_units(volume)
    window = structure.window if structure and has_window else None
    return Concept(
        name=name,
        wordings=wordings(structure) if structure else (query.name,),
        rivals=rivals,
        trained=trained or bool(parts_asked),
        calibrated=trained and name not in card.own,
        window=window if window and window[0] <= LUNG_LEVEL_MAX else None,
        ring=bool(structure and structure.encloses),
        parts=structure.parts * (2 if structure.side == "paired" else 1) if structure else 0,
        scene=Scene(volume.modality, plane, structure.region if structure else ""),
        kind=structure.kind if structure else "",
        described=like is not None,
        parts_asked=parts_asked,
    )


def ask(
    encoded: EncodedVolume,
    concepts: Sequence[Concept],
    engine: Engine,
    tell: Progress,
    rows: np.ndarray | None = None,
) -> list[Saliency]:
    """Saliency of each concept over the encoded slices, or over some of them, where the model judges slices alone;
    the others hold nothing."""
    texts = Texts(engine, lambda: tell("scoring", 0.0, slices=len(encoded.keys.indices)))
    if engine.text_image.calibrated:
        return _ask_trained(encoded, concepts, engine, texts, tell, rows)
    return _ask_zero_shot(encoded, concepts, engine, texts, tell)


class Texts:
    """The text matrix, a row for each name that takes part."""

    def __init__(self, engine: Engine, tell: Callable[[], None]) -> None:
        self.engine, self.tell = engine, tell
        self.rows: dict[tuple[tuple[str, ...], Scene | None], int] = {}
        self.vectors: list[Tensor] = []

    def rows_of(self, concept: Concept) -> list[int]:
        """The rows of what is asked for the concept, then its rivals'."""
        known, model = vocabulary(), self.engine.text_image
        rows = []
        for name in (*concept.asked, *concept.rivals):
            words = wordings(known[name]) if name in known else (name,)
            key = (words, None if model.calibrated else concept.scene)
            if key not in self.rows:
                self.tell()
                self.rows[key] = self.add(model.encode_text(words, concept.scene))
            rows.append(self.rows[key])
        return rows

    def competition_of(self, concept: Concept) -> Competition:
        """What a trained model's logits are compared by."""
        rows, count = self.rows_of(concept), len(concept.asked)
        return Competition(rows[0], tuple(rows[count:]), tuple(rows[1:count]))

    def add(self, vector: Tensor) -> int:
        self.vectors.append(vector)
        return len(self.vectors) - 1

    @property
    def matrix(self) -> Tensor:
        return torch.stack(self.vectors)


def _ask_trained(
    encoded: EncodedVolume,
    concepts: Sequence[Concept],
    engine: Engine,
    texts: Texts,
    tell: Progress,
    rows: np.ndarray | None,
) -> list[Saliency]:
    count = len(encoded.keys.indices)
    competitions = [texts.competition_of(concept) for concept in concepts]
    matrix = texts.matrix

    def score_slab(slab: np.ndarray) -> Tensor:
        tell("scoring", slab[0] / count, slices=count)
        return engine.text_image.score(torch.from_numpy(np.ascontiguousarray(encoded.pixels[slab])), matrix)

    body = torch.from_numpy(encoded.body)
    return saliency_of(encoded.slabs(rows), score_slab, competitions, body, count, encoded.body.shape[-1])


def _ask_zero_shot(
    encoded: EncodedVolume, concepts: Sequence[Concept], engine: Engine, texts: Texts, tell: Progress
) -> list[Saliency]:
    """Against rivals and negatives, on the scale of this volume, along all axes that it was encoded along."""
    settings = engine.preset.zero_shot
    assert settings is not None
    found = _reliefs(encoded, concepts, engine, texts, tell)
    for other in encoded.others:
        along = _reliefs(other, concepts, engine, texts, tell)
        maps = [None if relief is None else on_cells_of(encoded, other, relief.height) for relief in along]
        found = [averaged(relief, more, encoded.body) for relief, more in zip(found, maps, strict=True)]
    ground = Ground(encoded.body, encoded.pictures, encoded.cell_mm, encoded.distance_mm)
    return [draw(relief, ground, settings.rules) for relief in found]


def _reliefs(
    encoded: EncodedVolume, concepts: Sequence[Concept], engine: Engine, texts: Texts, tell: Progress
) -> list[Relief | None]:
    """Each concept's relief along one axis, whose plane the texts name."""
    model, settings, count = cast(ZeroShotModel, engine.text_image), engine.preset.zero_shot, len(encoded.keys.indices)
    assert settings is not None
    queries = []
    for concept in concepts:
        concept = replace(concept, scene=replace(concept.scene, plane=encoded.frame.plane))
        own, *rivals = texts.rows_of(concept)
        negatives = [texts.add(vector) for vector in model.negatives(concept.kind, concept.scene)]
        queries.append(Against(own, tuple(rivals), tuple(negatives)))
    matrix = texts.matrix

    def maps_of(slab: np.ndarray, rows: list[int]) -> Tensor:
        tell("scoring", slab[0] / count, slices=count)
        return model.maps(torch.from_numpy(np.ascontiguousarray(encoded.pixels[slab])), matrix[rows])

    whole = torch.from_numpy(encoded.summary).to(matrix) @ matrix.T if count else torch.zeros(0, len(matrix))
    return reliefs(
        encoded.slabs(), maps_of, whole, queries, encoded.body, settings.rules, model.scale, model.contrastive
    )
