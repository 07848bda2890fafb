"""What an evaluation leaves behind beside the scores: the report in Markdown and HTML, its pictures, each patient."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from MedZeroSegLib.evaluation.answers import answers_path, read_answers
from MedZeroSegLib.evaluation.drawings import layers_of, telling_images, write_spread
from MedZeroSegLib.evaluation.overlays import write_layers
from MedZeroSegLib.evaluation.page import write_page
from MedZeroSegLib.evaluation.prompt_sets import Prompts
from MedZeroSegLib.evaluation.questions import Questionnaire
from MedZeroSegLib.evaluation.reference import Image, read_reference
from MedZeroSegLib.evaluation.report import RunFacts, patient_rows, summary
from MedZeroSegLib.evaluation.scores import Score
from MedZeroSegLib.writers import replacing

SPREAD = "dice.png"
SOURCES_DRAWN = 3  # of more, only the worst, median and best image of all


@dataclass(frozen=True)
class Measured:
    """A whole run: its scores, those of the naive reference, and what the pictures are drawn from."""

    scores: Sequence[Score]
    naive: Sequence[Score]
    facts: RunFacts
    images: Sequence[Image]
    questionnaire: Questionnaire
    prompts: Prompts | None
    masks: Path


def write_report_files(measured: Measured, folder: Path, page: bool) -> str:
    """Write ``summary.md`` and ``patients.csv``, with ``page`` also ``report.html`` and the pictures that both show.

    Returns
    -------
    str
        The text of ``summary.md``.

    Raises
    ------
    InputError, InstallationError
        When a file can't be written, or what draws it is missing.
    """
    plot = pictures = ""
    if page and any(score.present and score.kind != "far" for score in measured.scores):
        write_spread(measured.scores, folder / SPREAD)
        plot = f"![Dice of each case by structure]({SPREAD})"
        pictures = _pictures(measured, folder)
    text = summary(measured.scores, measured.facts, measured.naive, plot, pictures)
    with replacing(folder / "summary.md") as file:
        file.write(text.encode("utf-8"))
    _write_patients(measured.scores, folder / "patients.csv")
    if page:
        write_page(text, folder, folder / "report.html")
    return text


def _pictures(measured: Measured, folder: Path) -> str:
    """Markdown with the worst, median and best image of each source, or of all where there are many."""
    sources = list(dict.fromkeys(score.source for score in measured.scores))
    images = {image[0].case_id: image for image in measured.images}
    image_of = {case.case_id: image[0].case_id for image in measured.images for case in image}
    lines = []
    for source in sources if len(sources) <= SOURCES_DRAWN else (None,):
        rows = [score for score in measured.scores if source in (None, score.source)]
        for word, name in telling_images(rows, image_of).items():
            picture = f"{word}-{images[name][0].source}.png"
            _draw(measured, images[name], image_of, folder / picture, f"{word}: {images[name][0].source}, {name}")
            lines.append(f"![{word.capitalize()}: {name}]({picture})")
    if not lines:
        return ""
    note = (
        "By mean Dice over the structures marked in the image. Left: the reference in colored lines; right: the masks "
        "that were found, with the reference in dashed lines."
    )
    return "\n\n".join(["## Worst, median and best image", note, *lines])


def _draw(measured: Measured, image: Image, image_of: Mapping[str, str], path: Path, title: str) -> None:
    reference = read_reference(image, measured.questionnaire, measured.prompts)
    masks = read_answers(answers_path(measured.masks, image), reference.volume.shape)
    rows = [score for score in measured.scores if image_of.get(score.case) == image[0].case_id]
    write_layers(reference.volume, layers_of(rows, masks, reference.masks), path, title)


def _write_patients(scores: Sequence[Score], path: Path) -> None:
    rows = patient_rows(scores)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]) if rows else ["source", "patient"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with replacing(path) as file:
        file.write(text.getvalue().encode("utf-8"))
