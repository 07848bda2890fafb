"""Evaluation of presets that know a few names only: other names aren't asked, and count as not found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from MedZeroSegLib.pipeline import segmentation_of
from MedZeroSegLib.presets import Engine
from MedZeroSegLib.queries import Query, resolve
from MedZeroSegLib.segment import Segment, Segmentation
from MedZeroSegLib.volume import Volume


def segment_known(
    engine: Engine, volume: Volume, asked: Sequence[str], segment: Callable[[Volume, Sequence[str]], Segmentation]
) -> Segmentation:
    """One segment for each text, in order; ``segment`` is asked for those that the preset knows."""
    card = engine.text_image.card
    if not card.closed:
        return segment(volume, asked)
    queries = resolve(asked)
    known = [query for query in queries if query.concept in card.concepts]
    texts = [query.typed for query in known]
    result = segment(volume, texts) if texts else segmentation_of(volume, (), engine, {})
    ready = dict(zip(texts, result.segments, strict=True))
    segments = tuple(ready.get(query.typed) or _unknown(query, volume) for query in queries)
    return replace(result, segments=segments)


def _unknown(query: Query, volume: Volume) -> Segment:
    return Segment(
        typed=query.typed,
        name=query.name,
        found=False,
        score=0.0,
        mask=np.zeros(volume.shape, bool),
        code=query.code,
        category=query.category,
        modifier=query.modifier,
        color=query.color,
        slices=0,
        warnings=(f"The preset doesn't know {query.name}.",),
    )
