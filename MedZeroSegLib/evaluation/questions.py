"""What is asked of each image of a manifest: the names that its masks mark, wholes of marked parts, and far names.

Far names are structures of other body regions, clearly absent: what is found for them is a false find."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from MedZeroSegLib.evaluation.manifest import Case, annotated_names, annotation_scheme, complete_wholes
from MedZeroSegLib.queries import resolve
from MedZeroSegLib.vocabulary import REGIONS, Structure, vocabulary

Kind = Literal["marked", "whole", "far"]

FAR_MARKED, FAR_OTHER = 2, 2  # far names a case: marked somewhere in the manifest, and the vocabulary's others
FAR_KINDS = ("organ", "bone", "muscle", "vessel", "heart", "brain", "dental", "spine")  # findings occur everywhere
# Regions that an image of a structure of one region may show as well; generous, so that what is far is surely absent.
IN_VIEW: Mapping[str, tuple[str, ...]] = {
    "head": ("head", "neck"),
    "neck": ("neck", "head", "chest", "spine", "limb"),
    "chest": ("chest", "heart", "breast", "neck", "abdomen", "spine", "limb"),
    "heart": ("heart", "chest", "breast", "abdomen", "spine", "limb"),
    "abdomen": ("abdomen", "chest", "heart", "breast", "pelvis", "spine", "limb"),
    "pelvis": ("pelvis", "abdomen", "spine", "limb"),
    "spine": ("spine", "neck", "chest", "heart", "abdomen", "pelvis"),
    "limb": ("limb", "pelvis", "chest", "neck", "breast"),
    "breast": ("breast", "chest", "heart", "limb"),
}


@dataclass(frozen=True)
class Question:
    """One name to ask for in one image, and the mask values that are its reference.

    ``case`` is the manifest row that holds the reference; ``values`` is empty where the structure is absent.
    """

    name: str
    kind: Kind
    case: Case
    values: tuple[int, ...] = ()

    def reference(self, labels: np.ndarray) -> np.ndarray:
        """bool [k, j, i] from the label values of the case's mask."""
        return np.isin(labels, self.values)


class Questionnaire:
    """The questions of every image of a manifest.

    Parameters
    ----------
    cases
        All rows of the manifest, of every split: they tell which names an annotation scheme marks, so that a name
        which one mask lacks is known to be absent there.
    """

    def __init__(self, cases: Iterable[Case]) -> None:
        self.schemes = {scheme: tuple(sorted(names)) for scheme, names in annotated_names(cases).items()}
        wholes = {whole for scheme in self.schemes for whole in complete_wholes(scheme)}
        everything = {name for names in self.schemes.values() for name in names} | wholes
        self._structures = {name: resolve([name])[0].structure for name in everything}
        marked = {structure.name for structure in self._structures.values() if structure}
        candidates = [structure for structure in vocabulary().values() if structure.kind in FAR_KINDS]
        self._far_marked = [structure for structure in candidates if structure.name in marked]
        self._far_other = [structure for structure in candidates if structure.name not in marked]

    def of(self, image: Sequence[Case]) -> list[Question]:
        """Questions for one image with all its mask files; each name once."""
        questions: dict[str, Question] = {}
        for case in image:
            scheme = annotation_scheme(case)
            for name in self.schemes[scheme]:
                questions.setdefault(name, Question(name, "marked", case, _values(case, [name])))
            for whole in complete_wholes(scheme):
                parts = [name for name in self.schemes[scheme] if self._is_part(name, whole)]
                if parts:
                    questions.setdefault(whole, Question(whole, "whole", case, _values(case, parts)))
        for name in self._far_names(image):
            questions.setdefault(name, Question(name, "far", image[0]))
        return list(questions.values())

    def _is_part(self, name: str, whole: str) -> bool:
        """Whether a marked name is a part of the whole, or one of its two sides."""
        structure = self._structures[name]
        return structure is not None and name != whole and whole in (structure.name, *structure.parents)

    def _far_names(self, image: Sequence[Case]) -> list[str]:
        """Chosen by a hash of the case and the name, so that the choice is the same everywhere."""
        marked = [self._structures[name] for case in image for name in self.schemes[annotation_scheme(case)]]
        in_view = {"whole"} | {seen for structure in marked if structure for seen in IN_VIEW.get(structure.region, ())}
        if in_view == {"whole"}:
            return []  # nothing is known of the region

        def rank(structure: Structure) -> str:
            return hashlib.sha256(f"{image[0].case_id}:{structure.name}".encode()).hexdigest()

        chosen = []
        for pool, count in ((self._far_marked, FAR_MARKED), (self._far_other, FAR_OTHER)):
            far = [structure for structure in pool if not in_view.intersection(_regions(structure))]
            chosen += [structure.name for structure in sorted(far, key=rank)[:count]]
        return chosen


def images_of(cases: Iterable[Case], limit: int | None = None) -> list[tuple[Case, ...]]:
    """Rows of one image together, in the manifest's order; at most ``limit`` images of each source."""
    images: dict[str, dict[str, list[Case]]] = {}
    for case in cases:
        images.setdefault(case.source, {}).setdefault(str(case.image), []).append(case)
    return [tuple(rows) for of_source in images.values() for rows in list(of_source.values())[:limit]]


def _values(case: Case, names: Sequence[str]) -> tuple[int, ...]:
    return tuple(value for value, name in case.labels.items() if name in names)


def _regions(structure: Structure) -> set[str]:
    """The structure's region and the regions that contain it or into which it reaches."""
    return {structure.region} | {parent for parent in structure.parents if parent in REGIONS}
