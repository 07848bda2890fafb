"""One image read for measuring: its volume, what is asked of it in which words, and the true mask of each name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from MedZeroSegLib.errors import InputError
from MedZeroSegLib.evaluation.manifest import Case
from MedZeroSegLib.evaluation.prompt_sets import Prompts
from MedZeroSegLib.evaluation.questions import Question, Questionnaire
from MedZeroSegLib.volume import Volume

Image = Sequence[Case]  # all rows of one image


@dataclass(frozen=True)
class Reference:
    """``typed`` and ``masks``, bool [k, j, i], are of the questions' names."""

    volume: Volume
    questions: tuple[Question, ...]
    typed: dict[str, str]
    masks: dict[str, np.ndarray]

    @property
    def texts(self) -> list[str]:
        """What is typed, in the order of the questions."""
        return [self.typed[question.name] for question in self.questions]


def read_reference(image: Image, questionnaire: Questionnaire, prompts: Prompts | None = None) -> Reference:
    """Read an image and its masks.

    Raises
    ------
    InputError
        When a file is at fault, or the prompts type one text for two of the image's structures.
    """
    volume, labels = image[0].read()
    labels_of = {image[0].case_id: labels}
    labels_of.update({case.case_id: case.read_labels(volume) for case in image[1:]})
    questions = tuple(questionnaire.of(image))
    masks = {question.name: question.reference(labels_of[question.case.case_id]) for question in questions}
    typed = {
        question.name: question.name if prompts is None else prompts.text(image[0].case_id, question.name)
        for question in questions
    }
    owners: dict[str, str] = {}
    for name, text in typed.items():
        other = owners.setdefault(" ".join(text.split()).casefold(), name)
        if other != name:
            raise InputError(f"The text {text!r} stands for {other!r} and {name!r} in one image; let prompts differ.")
    return Reference(volume, questions, typed, masks)
