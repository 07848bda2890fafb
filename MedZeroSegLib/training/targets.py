"""What a picture's label maps ask of the head: concepts that are there, concepts that are absent, and far ones.

Names of the manifest become concepts of the vocabulary without their side: left and right are positions, decided by
geometry after the head, except in the heart, where they are structures of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from MedZeroSegLib.evaluation.manifest import complete_wholes
from MedZeroSegLib.queries import resolve
from MedZeroSegLib.training.pictures import LabelMap, Picture, PictureStore
from MedZeroSegLib.vocabulary import REGIONS, may_overlap, parts_among, vocabulary

TARGET_SIZE = 128  # cells a side, the head's own resolution
COMPETING_MAX = 14  # queries of one picture that compete for its pixels
UNMARKED_RIVALS = 4  # rivals of present structures that the scheme doesn't mark
FAR_QUERIES = 4  # concepts of other body regions asked of each picture


@dataclass(frozen=True)
class Targets:
    """Queries of one picture.

    ``competing`` names exclude one another and have soft masks [k, 128, 128]; ``unmarked`` names exclude them too but
    aren't marked in this picture, so they may be anywhere in its background; ``single`` names are judged alone (wholes
    of competing parts, and far concepts, whose masks are empty).
    """

    competing: tuple[str, ...]
    competing_masks: Tensor
    unmarked: tuple[str, ...]
    single: tuple[str, ...]
    single_masks: Tensor


class ConceptTable:
    """Concepts of all schemes, their relations, and which of them were marked together."""

    def __init__(self, store: PictureStore, pictures: list[Picture]) -> None:
        used = {label_map.scheme for picture in pictures for label_map in picture.label_maps}
        self._concept = {name: concept_of(name) for scheme in used for name in store.schemes[scheme]}
        self.by_scheme = {
            scheme: tuple(sorted({self._concept[name] for name in store.schemes[scheme]})) for scheme in sorted(used)
        }
        self.wholes = {
            scheme: tuple(
                whole
                for whole in complete_wholes(scheme)
                if self._parts(scheme, whole) and whole not in self.by_scheme[scheme]
            )
            for scheme in self.by_scheme
        }
        self.all = tuple(
            sorted(
                {c for names in self.by_scheme.values() for c in names} | {w for ws in self.wholes.values() for w in ws}
            )
        )

    def concept(self, name: str) -> str:
        """The sideless vocabulary name of a manifest name."""
        return self._concept[name]

    @cached_property
    def competitors(self) -> dict[str, list[str]]:
        """For each concept, those that exclude it and were marked in the same pictures."""
        rivals: dict[str, set[str]] = {concept: set() for concept in self.all}
        for names in self.by_scheme.values():
            for name in names:
                rivals[name] |= {other for other in names if other != name and not may_overlap(name, other)}
        return {name: sorted(others) for name, others in rivals.items()}

    def parts_of(self, scheme: str, whole: str) -> tuple[str, ...]:
        """The scheme's concepts that make up a complete whole."""
        return self._parts(scheme, whole)

    def _parts(self, scheme: str, whole: str) -> tuple[str, ...]:
        return parts_among(whole, self.by_scheme[scheme])


def concept_of(name: str) -> str:
    """The vocabulary name that a manifest name means; an unknown name stands for itself."""
    return resolve([name])[0].concept


def targets_of(
    picture: Picture, label_map: LabelMap, labels: np.ndarray, table: ConceptTable, rng: np.random.Generator
) -> Targets:
    """Queries and soft masks for one label map uint8 [256, 256] of a picture."""
    scheme = label_map.scheme
    masks = _concept_masks(label_map, labels, table)
    marked = table.by_scheme[scheme]
    present = [name for name in marked if name in masks]
    absent = [name for name in marked if name not in masks]
    competing = _choose(present, COMPETING_MAX - 3, rng) + _choose(absent, 3, rng)
    wholes = [whole for whole in table.wholes[scheme]]
    unmarked = {rival for name in present for rival in table.competitors[name]} - set(marked)
    unmarked = {rival for rival in unmarked if not any(may_overlap(rival, name) for name in present)}
    whole_masks = [_union([masks[p] for p in table.parts_of(scheme, whole) if p in masks]) for whole in wholes]
    far = _far_concepts(picture, label_map, table, rng)
    empty = torch.zeros(TARGET_SIZE, TARGET_SIZE)
    return Targets(
        tuple(competing),
        torch.stack([masks.get(name, empty) for name in competing]),
        tuple(_choose(sorted(unmarked), UNMARKED_RIVALS, rng)),
        tuple(wholes + far),
        torch.stack(whole_masks + [empty] * len(far)) if wholes or far else torch.zeros(0, TARGET_SIZE, TARGET_SIZE),
    )


def _concept_masks(label_map: LabelMap, labels: np.ndarray, table: ConceptTable) -> dict[str, Tensor]:
    values: dict[str, list[int]] = {}
    for value, name in label_map.values.items():
        values.setdefault(table.concept(name), []).append(value)
    occurring = set(np.unique(labels).tolist())
    masks = {}
    for concept, numbers in values.items():
        if occurring.intersection(numbers):
            full = torch.from_numpy(np.isin(labels, numbers)).float()
            masks[concept] = F.avg_pool2d(full[None], labels.shape[-1] // TARGET_SIZE)[0]
    return masks


def _union(masks: list[Tensor]) -> Tensor:
    return torch.stack(masks).sum(0).clamp_max(1) if masks else torch.zeros(TARGET_SIZE, TARGET_SIZE)


def _far_concepts(picture: Picture, label_map: LabelMap, table: ConceptTable, rng: np.random.Generator) -> list[str]:
    """Concepts of body regions that the picture's scheme doesn't touch."""
    known = vocabulary()
    marked = table.by_scheme[label_map.scheme]
    near = {region for name in marked if name in known for region in _regions_in_view(known[name].region)}
    if not near:  # nothing tells what the picture shows
        return []
    far = [name for name in table.all if name in known and known[name].region not in near and name not in marked]
    return _choose(far, FAR_QUERIES, rng)


def _regions_in_view(region: str) -> tuple[str, ...]:
    """Regions that a picture of ``region`` may also show."""
    return {
        "chest": ("chest", "heart", "abdomen", "spine", "breast", "neck", "limb", "whole"),
        "heart": ("heart", "chest", "abdomen", "spine", "breast", "whole"),
        "abdomen": ("abdomen", "chest", "heart", "pelvis", "spine", "whole"),
        "pelvis": ("pelvis", "abdomen", "limb", "spine", "whole"),
        "spine": ("spine", "abdomen", "pelvis", "chest", "neck", "whole"),
        "limb": ("limb", "pelvis", "whole"),
        "head": ("head", "neck", "spine", "whole"),
        "neck": ("neck", "head", "spine", "chest", "whole"),
        "breast": ("breast", "whole"),
        "whole": REGIONS,
    }.get(region, (region, "whole"))


def _choose(names: list[str], count: int, rng: np.random.Generator) -> list[str]:
    if len(names) <= count:
        return list(names)
    return [names[n] for n in rng.choice(len(names), count, replace=False)]
