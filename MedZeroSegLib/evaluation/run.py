"""Measure a segmenter on the images of a manifest: ask, compare, keep scores; an interrupted run goes on."""

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

from MedZeroSegLib.evaluation.manifest import Case, read_manifest
from MedZeroSegLib.evaluation.metrics import agreement, metric_spacing
from MedZeroSegLib.evaluation.overlays import Layer, write_layers
from MedZeroSegLib.evaluation.questions import Question, Questionnaire, images_of
from MedZeroSegLib.evaluation.report import RunFacts, summary
from MedZeroSegLib.evaluation.scores import Score, ScoreTable
from MedZeroSegLib.segment import Segmentation
from MedZeroSegLib.volume import Volume
from MedZeroSegLib.weights_catalogue import sha256_of
from MedZeroSegLib.writers import replacing

Segmenter = Callable[[Volume, Sequence[str]], Segmentation]
NaiveSegmenter = Callable[[Volume, Sequence[str]], Mapping[str, np.ndarray]]
Image = Sequence[Case]  # all rows of one image


@dataclass(frozen=True)
class _Reference:
    """One image, what is asked of it, and the true mask of each name."""

    volume: Volume
    questions: tuple[Question, ...]
    masks: dict[str, np.ndarray]

    @property
    def names(self) -> list[str]:
        return [question.name for question in self.questions]


def evaluate_manifest(
    manifest: Path | str,
    split: str,
    segmenter: Segmenter,
    output: Path | str,
    preset: str,
    baseline: NaiveSegmenter | None = None,
    overlays: Path | str | None = None,
    limit: int | None = None,
    progress: bool = True,
) -> str:
    """Ask for every structure that a split's images mark, compare, and report.

    Writes ``cases.csv``, ``summary.md`` and ``run.json`` (what was run) into ``output``, and ``baseline.csv`` when a
    baseline is given. Images that the folder already holds for the same manifest, split, preset, version, weights
    and settings are not segmented again.

    Parameters
    ----------
    segmenter
        Gives one segment for each name, in order.
    preset
        Its name, for the report.
    baseline
        The naive reference on the same weights.
    overlays
        Folder for one PNG of each image.
    limit
        At most so many images of each source.
    progress
        Whether to show a bar and remarks on stderr.

    Returns
    -------
    str
        The text of ``summary.md``.

    Raises
    ------
    InputError, InstallationError
        When the manifest or an image is at fault, or the folder can't be written to.
    """
    output = Path(output)
    images = images_of(read_manifest(manifest, split), limit)
    console = Console(stderr=True, quiet=not progress)
    run = _Run(
        segmenter,
        baseline,
        Questionnaire(read_manifest(manifest)),
        _RunFile(output / "run.json", {"manifest": sha256_of(Path(manifest)), "split": split, "preset": preset}),
        ScoreTable(output / "cases.csv"),
        ScoreTable(output / "baseline.csv"),
        None if overlays is None else Path(overlays),
        console,
    )
    run.ours.save()  # a folder that can't be written to shows before the work
    run.measure_all(images)
    chosen = {case.case_id for image in images for case in image}
    text = summary(
        [row for row in run.ours.rows if row.case in chosen],
        run.file.facts,
        [row for row in run.naive.rows if row.case in chosen],
    )
    with replacing(output / "summary.md") as file:
        file.write(text.encode("utf-8"))
    return text


class _RunFile:
    """``run.json``: what the scores beside it were made with."""

    def __init__(self, path: Path, asked: Mapping[str, str]) -> None:
        self.path = path
        self.asked = dict(asked)
        try:
            self.content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self.content = {}

    def matches(self, segmentation: Segmentation) -> bool:
        """Whether the scores beside the file were made with what made this segmentation."""
        identity = self._identity(segmentation)
        return {key: self.content.get(key) for key in identity} == identity

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
    file: _RunFile
    ours: ScoreTable
    naive: ScoreTable
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
        return drawn and self.ours.holds(image) and (self.baseline is None or self.naive.holds(image))

    def _begin(self, image: Image) -> None:
        """Measure the first image; scores that another segmenter left are forgotten."""
        reference = _read(image, self.questionnaire)
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
        reference = _read(image, self.questionnaire)
        self._keep(image, reference, *_measure(reference, self.segmenter))

    def _keep(self, image: Image, reference: _Reference, segmentation: Segmentation, rows: Sequence[Score]) -> None:
        if self.baseline is not None:
            self.naive.put(_measure_naive(reference, self.baseline))
        if self.overlays is not None:
            _draw(reference, segmentation, rows, _overlay_path(self.overlays, image))
        self.ours.put(rows)


def _read(image: Image, questionnaire: Questionnaire) -> _Reference:
    volume, labels = image[0].read()
    labels_of = {image[0].case_id: labels}
    labels_of.update({case.case_id: case.read_labels(volume) for case in image[1:]})
    questions = tuple(questionnaire.of(image))
    masks = {question.name: question.reference(labels_of[question.case.case_id]) for question in questions}
    return _Reference(volume, questions, masks)


def _measure(reference: _Reference, segmenter: Segmenter) -> tuple[Segmentation, list[Score]]:
    started = time.perf_counter()
    segmentation = segmenter(reference.volume, reference.names)
    seconds = time.perf_counter() - started
    masks = {name: segment.mask for name, segment in zip(reference.names, segmentation.segments, strict=True)}
    return segmentation, _scores(reference, masks, seconds)


def _measure_naive(reference: _Reference, baseline: NaiveSegmenter) -> list[Score]:
    started = time.perf_counter()
    masks = baseline(reference.volume, reference.names)
    return _scores(reference, masks, time.perf_counter() - started)


def _scores(reference: _Reference, masks: Mapping[str, np.ndarray], seconds: float) -> list[Score]:
    spacing = metric_spacing(reference.volume)
    rows = []
    for question in reference.questions:
        case = question.case
        agreed = agreement(reference.masks[question.name], masks[question.name], spacing)
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
            )
        )
    return rows


def _draw(reference: _Reference, segmentation: Segmentation, rows: Sequence[Score], path: Path) -> None:
    """What is present or was found."""
    layers: list[Layer] = []
    for question, segment, row in zip(reference.questions, segmentation.segments, rows, strict=True):
        if row.present or row.found:
            verdict = f"Dice {row.dice:.2f}" if row.present and row.found else "missed" if row.present else "false find"
            label, filled = f"{question.name}: {verdict}", row.kind != "whole"
            layers.append(Layer(label, segment.mask, reference.masks[question.name], filled))
    write_layers(reference.volume, layers, path, f"{rows[0].source}, {rows[0].case}")


def _overlay_path(folder: Path, image: Image) -> Path:
    return folder / f"{image[0].source}_{image[0].case_id}.png"
