"""Measure a segmenter on images with reference masks: ask, compare, keep scores; an interrupted run goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from MedZeroSegLib.evaluation.answers import answers_path, write_answers
from MedZeroSegLib.evaluation.drawings import layers_of
from MedZeroSegLib.evaluation.localisation import saliency_auc
from MedZeroSegLib.evaluation.metrics import agreement, metric_spacing
from MedZeroSegLib.evaluation.overlays import write_layers
from MedZeroSegLib.evaluation.prompt_sets import Prompts, check_known
from MedZeroSegLib.evaluation.questions import Questionnaire, images_of
from MedZeroSegLib.evaluation.reference import Image, Reference, read_reference
from MedZeroSegLib.evaluation.report import RunFacts
from MedZeroSegLib.evaluation.report_files import Measured, write_report_files
from MedZeroSegLib.evaluation.scores import Score, ScoreTable
from MedZeroSegLib.evaluation.target import Target
from MedZeroSegLib.saliency_map import SaliencyMap
from MedZeroSegLib.segment import Segmentation
from MedZeroSegLib.slices import slice_frame
from MedZeroSegLib.volume import Volume
from MedZeroSegLib.writers import replacing

Segmenter = Callable[[Volume, Sequence[str]], Segmentation]
NaiveSegmenter = Callable[[Volume, Sequence[str]], Mapping[str, np.ndarray]]


def evaluate(
    target: Target,
    segmenter: Segmenter,
    output: Path | str,
    preset: str,
    prompts: Prompts | None = None,
    baseline: NaiveSegmenter | None = None,
    overlays: Path | str | None = None,
    limit: int | None = None,
    page: bool = False,
    progress: bool = True,
) -> str:
    """Ask for every structure that the images mark, compare, and report.

    Writes ``cases.csv``, ``patients.csv``, ``summary.md``, ``run.json`` (what was run) and the masks into ``output``,
    ``baseline.csv`` when a baseline is given, and ``report.html`` when a page is wanted. Images that the folder
    already holds for the same images, preset, prompts, version, weights and settings are not segmented again.

    Parameters
    ----------
    segmenter
        Gives one segment for each text, in order.
    preset
        Its name, for the report.
    prompts
        What is typed; the structures' names without.
    baseline
        The naive reference on the same weights.
    overlays
        Folder for one PNG of each image.
    limit
        At most so many images of each source.
    page
        Whether to write the report as HTML too, with pictures.
    progress
        Whether to show a bar and remarks on stderr.

    Returns
    -------
    str
        The text of ``summary.md``.

    Raises
    ------
    InputError, InstallationError
        When an image or the prompts are at fault, or the folder can't be written to.
    """
    output = Path(output)
    images = images_of(target.cases, limit)
    questionnaire = Questionnaire(target.annotated)
    if prompts is not None:
        check_known(prompts, {name for names in questionnaire.schemes.values() for name in names})
    asked: dict[str, Any] = {**target.identity, "preset": preset}
    if prompts is not None:
        asked["prompts"] = {"name": prompts.name, "sha256": prompts.sha256}
    run = _Run(
        segmenter,
        baseline,
        questionnaire,
        prompts,
        _RunFile(output / "run.json", asked),
        ScoreTable(output / "cases.csv"),
        ScoreTable(output / "baseline.csv"),
        output / "masks",
        None if overlays is None else Path(overlays),
        Console(stderr=True, quiet=not progress),
    )
    run.ours.save()  # a folder that can't be written to shows before the work
    run.measure_all(images)
    chosen = {case.case_id for image in images for case in image}
    measured = Measured(
        [row for row in run.ours.rows if row.case in chosen],
        [row for row in run.naive.rows if row.case in chosen],
        run.file.facts,
        images,
        questionnaire,
        prompts,
        run.masks,
    )
    return write_report_files(measured, output, page)


class _RunFile:
    """``run.json``: what the scores beside it were made with."""

    def __init__(self, path: Path, asked: Mapping[str, Any]) -> None:
        self.path = path
        self.asked = dict(asked)
        try:
            self.content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self.content = {}

    def matches(self, segmentation: Segmentation) -> bool:
        """Whether the scores beside the file were made with what made this segmentation."""
        identity = self._identity(segmentation)
        kept = {key: value for key, value in self.content.items() if key != "device"}
        return kept == identity

    def save(self, segmentation: Segmentation) -> None:
        self.content = {**self._identity(segmentation), "device": segmentation.device}
        with replacing(self.path) as file:
            file.write((json.dumps(self.content, indent=2, ensure_ascii=False) + "\n").encode("utf-8"))

    @property
    def facts(self) -> RunFacts:
        content = self.content
        trained = content["settings"].get("trained_sources")
        return RunFacts(
            preset=content["preset"],
            version=content["version"],
            split=content["split"],
            device=content["device"],
            weights=tuple(content["weights"]),
            trained_sources=None if trained is None else tuple(trained),
            data=content.get("data", ""),
            prompts=content.get("prompts"),
        )

    def _identity(self, segmentation: Segmentation) -> dict[str, Any]:
        weights = [{"name": record["name"], "sha256": record["sha256"]} for record in segmentation.weights]
        settings = json.loads(json.dumps(segmentation.settings))  # as they are read back
        return {**self.asked, "version": segmentation.version, "weights": weights, "settings": settings}


@dataclass(frozen=True)
class _Run:
    segmenter: Segmenter
    baseline: NaiveSegmenter | None
    questionnaire: Questionnaire
    prompts: Prompts | None
    file: _RunFile
    ours: ScoreTable
    naive: ScoreTable
    masks: Path
    overlays: Path | None
    console: Console

    def measure_all(self, images: Sequence[Image]) -> None:
        """Measure the images whose scores aren't there yet, and one in any case: it tells what the segmenter is."""
        first = next((image for image in images if not self.is_done(image)), images[0])
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self.console, disable=self.console.quiet) as bar:
            task = bar.add_task(first[0].case_id, total=len(images))
            self._begin(first)
            pending = [image for image in images if not self.is_done(image)]
            if kept := len(images) - len(pending) - 1:
                folder = self.file.path.parent
                self.console.print(f"{kept} images are taken from {folder}; remove that folder to measure them anew.")
            for count, image in enumerate(pending, start=kept + 1):
                bar.update(task, description=image[0].case_id, completed=count)
                self._go_on(image)
            bar.update(task, completed=len(images))

    def is_done(self, image: Image) -> bool:
        drawn = self.overlays is None or _overlay_path(self.overlays, image).is_file()
        kept = drawn and answers_path(self.masks, image).is_file()
        return kept and self.ours.holds(image) and (self.baseline is None or self.naive.holds(image))

    def _begin(self, image: Image) -> None:
        """Measure the first image; scores that another segmenter left are forgotten."""
        reference = read_reference(image, self.questionnaire, self.prompts)
        segmentation, rows = _measure(reference, self.segmenter)
        if not self.file.matches(segmentation):
            if self.ours.rows:
                folder = self.file.path.parent
                self.console.print(f"The scores in {folder} are of another run; all images are measured anew.")
            self.ours.clear()
            self.naive.clear()
        self.file.save(segmentation)
        self._keep(image, reference, segmentation, rows)

    def _go_on(self, image: Image) -> None:
        reference = read_reference(image, self.questionnaire, self.prompts)
        self._keep(image, reference, *_measure(reference, self.segmenter))

    def _keep(self, image: Image, reference: Reference, segmentation: Segmentation, rows: Sequence[Score]) -> None:
        masks = _masks(reference, segmentation)
        write_answers(answers_path(self.masks, image), masks)
        if self.baseline is not None:
            self.naive.put(_measure_naive(reference, self.baseline))
        if self.overlays is not None:
            title = f"{rows[0].source}, {rows[0].case}"
            layers = layers_of(rows, masks, reference.masks)
            write_layers(reference.volume, layers, _overlay_path(self.overlays, image), title)
        self.ours.put(rows)


def _measure(reference: Reference, segmenter: Segmenter) -> tuple[Segmentation, list[Score]]:
    started = time.perf_counter()
    segmentation = segmenter(reference.volume, reference.texts)
    seconds = time.perf_counter() - started
    maps = {
        question.name: segment.saliency
        for question, segment in zip(reference.questions, segmentation.segments, strict=True)
    }
    return segmentation, _scores(reference, _masks(reference, segmentation), maps, seconds)


def _masks(reference: Reference, segmentation: Segmentation) -> dict[str, np.ndarray]:
    """The mask of each name that was asked for."""
    pairs = zip(reference.questions, segmentation.segments, strict=True)
    return {question.name: segment.mask for question, segment in pairs}


def _measure_naive(reference: Reference, baseline: NaiveSegmenter) -> list[Score]:
    started = time.perf_counter()
    masks = baseline(reference.volume, reference.texts)
    by_name = {question.name: masks[reference.typed[question.name]] for question in reference.questions}
    return _scores(reference, by_name, {}, time.perf_counter() - started)


def _scores(
    reference: Reference,
    masks: Mapping[str, np.ndarray],
    maps: Mapping[str, SaliencyMap | None],
    seconds: float,
) -> list[Score]:
    spacing, slice_axis = metric_spacing(reference.volume), slice_frame(reference.volume).permutation[0]
    rows = []
    for question in reference.questions:
        case = question.case
        truth, saliency = reference.masks[question.name], maps.get(question.name)
        agreed = agreement(truth, masks[question.name], spacing, slice_axis)
        rows.append(
            Score(
                case=case.case_id,
                source=case.source,
                structure=question.name,
                **asdict(agreed),
                seconds=seconds / len(reference.questions),
                patient=case.patient_id,
                modality=case.modality,
                kind=question.kind,
                typed=reference.typed[question.name],
                auc=None if saliency is None else saliency_auc(saliency, truth),
            )
        )
    return rows


def _overlay_path(folder: Path, image: Image) -> Path:
    return folder / f"{image[0].source}_{image[0].case_id}.png"
