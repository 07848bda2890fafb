"""What a worker does with a case that a person has accepted or corrected: the features of its structures, and how much
better others' would have drawn them than the text alone."""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from MedZeroSegLib.assembly import leftness, midline_of, sides_visible
from MedZeroSegLib.cohort.case import Case
from MedZeroSegLib.cohort.masks_file import read_masks
from MedZeroSegLib.cohort.settings import RunSettings
from MedZeroSegLib.cohort.work import alone
from MedZeroSegLib.concepts import Concept, concept_of
from MedZeroSegLib.embeddings import EncodedVolume
from MedZeroSegLib.encoding import encode, forget_volumes
from MedZeroSegLib.mask_resampling import on_grid_of
from MedZeroSegLib.pipeline import segment
from MedZeroSegLib.presets import Engine, load_engine, own_structures
from MedZeroSegLib.prototypes import Moments, Prototype, Side, adjusting, moments_of
from MedZeroSegLib.queries import Query, resolve
from MedZeroSegLib.slices import slice_frame
from MedZeroSegLib.volume import Volume
from MedZeroSegLib.volume_io import read_volume
from MedZeroSegLib.writers import replacing

WINDOW, SIDES = "window", ("inside", "outside")


@dataclass(frozen=True, eq=False)
class Taught:
    """One structure of one case: its moments, and the window (CT level and width in HU) in which it was looked at."""

    moments: Moments
    window: tuple[float, float] | None


@dataclass(frozen=True, eq=False)
class Lesson:
    """What one case teaches: its modality, and structures by the name of the concept, which has no side."""

    modality: str
    structures: Mapping[str, Taught]


def learn_case(case: Case, settings: RunSettings, labels: Path) -> Lesson:
    """The moments of all structures that were asked for and stand in the masks' file.

    Raises
    ------
    InputError, InstallationError
        When image or masks can't be read.
    """
    with _looked_at(case, settings) as (volume, engine):
        masks, plane = _masks_of(case, settings, volume, labels), slice_frame(volume).plane
        concepts: dict[str, tuple[Concept, list[Query]]] = {}
        for query in asked_of(case.structures, settings.preset):
            if query.name in masks:
                concept = concept_of(query, engine, volume, plane)
                concepts.setdefault(concept.name, (concept, []))[1].append(query)
        taught = {}
        for name, (concept, queries) in concepts.items():
            encoded = encode(volume, concept.window, engine, None)
            whole = encoded.frame.forward(np.any([masks[query.name] for query in queries], axis=0))
            ignored = _other_side(volume, encoded, whole, {query.side for query in queries})
            taught[name] = Taught(moments_of(encoded, whole, ignored), concept.window)
        return Lesson(volume.modality, taught)


def judge_case(
    case: Case, settings: RunSettings, labels: Path, prototypes: Mapping[str, Prototype], weights: Sequence[float]
) -> dict[str, list[float]]:
    """For each concept with a prototype the Dice of the text's mask with the person's, then of those with each weight.

    Two empty masks agree wholly. Where a concept was asked for by side, the mean of its sides.

    Raises
    ------
    InputError, InstallationError
        As ``learn_case``.
    """
    with _looked_at(case, settings) as (volume, _engine):
        masks = _masks_of(case, settings, volume, labels)
        found: dict[str, list[list[float]]] = {}
        for weight in (None, *weights):
            weighed = {name: replace(one, weight=weight) for name, one in prototypes.items()} if weight else {}
            result = segment(
                volume, case.structures, settings.preset, settings.device, settings.weights_folder,
                adjust=adjusting(weighed),
            )  # fmt: skip
            dice: dict[str, list[float]] = {}
            for query, drawn in zip(asked_of(case.structures, settings.preset), result.segments, strict=True):
                if query.name in masks and query.concept in prototypes:
                    dice.setdefault(query.concept, []).append(_dice(drawn.mask, masks[query.name]))
            for name, values in dice.items():
                found.setdefault(name, []).append(values)
        return {name: [float(np.mean(values)) for values in each] for name, each in found.items()}


def asked_of(names: str | Sequence[str], preset: str) -> list[Query]:
    """Names as the line understands them with a preset."""
    return resolve(names, own_structures(preset))


@contextmanager
def _looked_at(case: Case, settings: RunSettings) -> Iterator[tuple[Volume, Engine]]:
    """The image and the engine, with nothing else at work in this process."""
    with alone():
        volume = read_volume(case.image, case.modality, case.frame, case.files or None)
        try:
            yield volume, load_engine(settings.preset, settings.device, settings.weights_folder)
        finally:
            forget_volumes()


def _masks_of(case: Case, settings: RunSettings, volume: Volume, labels: Path) -> dict[str, np.ndarray]:
    """The masks by the canonical names that were asked for, bool [k, j, i] on the volume's grid.

    A structure whose segment a person has deleted, or renamed to something else, isn't there.
    """
    stored = read_masks(labels)
    named = {asked_of([one.name], settings.preset)[0].name: one.mask for one in stored.segments if one.name.strip()}
    asked = [query.name for query in asked_of(case.structures, settings.preset)]
    return {name: on_grid_of(volume, named[name], stored.ijk_to_lps)[0] for name in asked if name in named}


def _other_side(volume: Volume, encoded: EncodedVolume, whole: np.ndarray, sides: set[str | None]) -> np.ndarray | None:
    """Where the same structure lies on the side that nobody asked for, bool [N, h, w]; None for nowhere."""
    if len(sides) != 1 or None in sides or not sides_visible(encoded.frame, len(whole)):
        return None
    position = leftness(volume, encoded.frame)
    is_left = position > midline_of(encoded.body_mask, position, whole).position
    return np.broadcast_to(~is_left if sides == {"left"} else is_left, whole.shape)


def _dice(one: np.ndarray, other: np.ndarray) -> float:
    total = int(np.count_nonzero(one)) + int(np.count_nonzero(other))
    return 2 * int(np.count_nonzero(one & other)) / total if total else 1.0


# On disk


def keep_lesson(lesson: Lesson, file: Path, key: str) -> None:
    """Write a lesson with what it depends on; raises InstallationError."""
    arrays: dict[str, np.ndarray] = {}
    described: dict[str, Any] = {"key": key, "modality": lesson.modality, "structures": {}}
    for number, (name, taught) in enumerate(lesson.structures.items()):
        counts: dict[str, int] = {}
        for side in SIDES:
            cells: Side | None = getattr(taught.moments, side)
            if cells is not None:
                counts[side] = cells.count
                arrays[f"{number}.{side}.mean"], arrays[f"{number}.{side}.product"] = cells.mean, cells.product
        described["structures"][name] = {"counts": counts, WINDOW: taught.window}
    content = io.BytesIO()
    arrays["description"] = np.array(json.dumps(described, ensure_ascii=False))
    np.savez(content, allow_pickle=False, **arrays)
    with replacing(file) as target:
        target.write(content.getvalue())


def kept_lesson(file: Path, key: str) -> Lesson | None:
    """A lesson that depends on the same, from its file; None where there is none that can be read."""
    try:
        with np.load(file, allow_pickle=False) as stored:
            described = json.loads(str(stored["description"]))
            if described["key"] != key:
                return None
            structures = {
                name: Taught(Moments(*(_kept_side(stored, number, side, entry) for side in SIDES)), _window(entry))
                for number, (name, entry) in enumerate(described["structures"].items())
            }
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile, zlib.error):
        return None
    return Lesson(described["modality"], structures)


def _kept_side(stored: Mapping[str, np.ndarray], number: int, side: str, entry: Mapping[str, Any]) -> Side | None:
    count = entry["counts"].get(side)
    if count is None:
        return None
    return Side(count, stored[f"{number}.{side}.mean"], stored[f"{number}.{side}.product"])


def _window(entry: Mapping[str, Any]) -> tuple[float, float] | None:
    return None if entry[WINDOW] is None else (entry[WINDOW][0], entry[WINDOW][1])
