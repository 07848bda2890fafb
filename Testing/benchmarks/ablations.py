"""What each part of the trained line earns on images that training never saw: one change at a time, without training.

Run     .venv/bin/python Testing/benchmarks/ablations.py --manifest MANIFEST [--preset lite] [--images 6]
Prints  tables for Testing/benchmarks/ablations.md: for each change the Dice over present structures with a 95 %
        bootstrap interval over patients, the paired difference to the line as it ships, false finds, seconds each.
        Each image is encoded once for all changes, and once more, mirrored, where its structures have no sides.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

from MedZeroSegLib import concepts as asking
from MedZeroSegLib.base_preset import BASE
from MedZeroSegLib.concepts import Concept, ask, concept_of
from MedZeroSegLib.embeddings import EncodedVolume
from MedZeroSegLib.encoding import encode, forget_volumes
from MedZeroSegLib.evaluation import figures
from MedZeroSegLib.evaluation.figures import Bootstrap, cells, compare
from MedZeroSegLib.evaluation.manifest import Case, read_manifest
from MedZeroSegLib.evaluation.metrics import Agreement, dice_of
from MedZeroSegLib.evaluation.questions import Questionnaire, images_of
from MedZeroSegLib.evaluation.scores import Score
from MedZeroSegLib.mask_decoder.lite_medsam import IMAGE_SIZE
from MedZeroSegLib.pipeline import asked_side, draw, is_there
from MedZeroSegLib.presets import Engine, load_engine
from MedZeroSegLib.progress import tell_nobody
from MedZeroSegLib.propagation import Choice
from MedZeroSegLib.queries import Query, resolve
from MedZeroSegLib.saliency import Saliency, evidence_of
from MedZeroSegLib.slices import slice_frame
from MedZeroSegLib.training.confidence import sample
from MedZeroSegLib.volume import Volume

MIRRORED = ("busi_breast_ultrasound", "msd_hippocampus_mr", "covid_lung_xray")  # whose wholes look alike mirrored
FULL = "as it ships"
HEAD = "| change | Dice | difference | false finds | cost a structure | n |\n| --- | --- | --- | --- | --- | --- |"


@dataclass(frozen=True)
class Change:
    """One change of the line: what is asked, with which models, and what is done to the saliency before drawing."""

    concept: Callable[[Concept], Concept] = lambda concept: concept
    engine: Callable[[Engine], Engine] = lambda engine: engine
    saliency: Callable[[Saliency], Saliency] = lambda saliency: saliency
    one_wording: bool = False


class _BoxOnly:
    """A decoder that is given no mask."""

    def __init__(self, decoder: Any) -> None:
        self.decoder = decoder

    def __getattr__(self, name: str) -> Any:
        return getattr(self.decoder, name)

    def on(self, canvas: Any) -> _BoxOnly:
        return _BoxOnly(self.decoder.on(canvas))

    def decode(self, coarse: Tensor, boxes: Tensor, _masks: Tensor | None, **more: Any) -> Any:
        return self.decoder.decode(coarse, boxes, None, **more)


def preset_with(**settings: Any) -> Callable[[Engine], Engine]:
    return lambda engine: replace(engine, preset=replace(engine.preset, **settings))


def on_pixels(saliency: Saliency) -> Saliency:
    """The saliency on the canvas's pixels, as following from slice to slice needs it."""
    times = IMAGE_SIZE // saliency.share.shape[-1]
    share, lost = (array.repeat(times, 1).repeat(times, 2) for array in (saliency.share, saliency.lost))
    return replace(saliency, share=share, lost=lost)


CHANGES = {
    FULL: Change(),
    "head only, no decoder": Change(engine=preset_with(choice=Choice(area_max=0.0))),
    "decoder prompted with the box alone": Change(
        engine=lambda engine: replace(engine, decoder=_BoxOnly(engine.decoder))
    ),
    "choice rule off: every answer of the decoder is blended in": Change(
        engine=preset_with(choice=Choice(0.0, float("inf"), 0.0))
    ),
    "every answer of the decoder replaces the head's": Change(
        engine=preset_with(choice=Choice(0.0, float("inf"), 0.0, decoder_share=1.0))
    ),
    "propagation from slice to slice": Change(engine=preset_with(zero_shot=BASE), saliency=on_pixels),
    "no smoothing across slices": Change(engine=preset_with(smooth_mm=0.0)),
    "no exclusive rivals": Change(concept=lambda concept: replace(concept, rivals=())),
    "one wording in place of the ensemble": Change(one_wording=True),
    "presence by evidence alone": Change(engine=lambda engine: replace(engine, calibration=None)),
}  # fmt: skip


@contextmanager
def wordings_cut(cut: bool) -> Iterator[None]:
    """All structures, rivals too, by their canonical names alone."""
    kept = asking.wordings
    if cut:
        asking.wordings = lambda structure: (structure.name,)
    try:
        yield
    finally:
        asking.wordings = kept


@dataclass(frozen=True)
class Asked:
    """One image and what is asked of it."""

    volume: Volume
    case: Case
    queries: Sequence[Query]
    names: Sequence[str]
    kinds: Sequence[str]
    truths: Sequence[np.ndarray]


def read_image(image: Sequence[Case], questionnaire: Questionnaire) -> Asked:
    volume, labels = image[0].read()
    labels_of = {image[0].case_id: labels, **{case.case_id: case.read_labels(volume) for case in image[1:]}}
    questions = [question for question in questionnaire.of(image) if question.kind != "far"]
    return Asked(
        volume,
        image[0],
        [resolve([question.name])[0] for question in questions],
        [question.name for question in questions],
        [question.kind for question in questions],
        [question.reference(labels_of[question.case.case_id]) for question in questions],
    )


def measured(asked: Asked, engine: Engine, change: Change, mirrored: bool = False) -> list[Score]:
    """Scores of one image with one change; ``mirrored`` averages with what its mirror image shows."""
    changed, scores = change.engine(engine), []
    plane = slice_frame(asked.volume).plane
    concepts = [change.concept(concept_of(query, engine, asked.volume, plane)) for query in asked.queries]
    unique = list({concept.name: concept for concept in concepts}.values())
    for window in dict.fromkeys(concept.window for concept in unique):
        group = [concept for concept in unique if concept.window == window]
        encoded = encode(asked.volume, window, engine, None)
        started = time.perf_counter()
        with wordings_cut(change.one_wording):
            saliencies = ask(encoded, group, changed, tell_nobody)
        if mirrored:
            saliencies = averaged_with_mirror(asked.volume, encoded, saliencies, group, engine)
        shared = (time.perf_counter() - started) / len(group)
        for concept, saliency in zip(group, saliencies, strict=True):
            started = time.perf_counter()
            there = is_there(encoded, concept, saliency, changed)
            whole = draw(encoded, concept, change.saliency(saliency), changed, tell_nobody) if there else None
            seconds = shared + time.perf_counter() - started
            for query, name, kind, one, truth in zip(
                asked.queries, asked.names, asked.kinds, concepts, asked.truths, strict=True
            ):
                if one.name == concept.name:
                    reference = encoded.frame.forward(truth)
                    mask = asked_side(asked.volume, query, whole)[0] if whole else np.zeros(reference.shape, bool)
                    agreed = agreement_of(reference, mask)
                    case = asked.case
                    scores.append(
                        Score(case=case.case_id, source=case.source, structure=name, **asdict(agreed), seconds=seconds,
                              patient=case.patient_id, modality=case.modality, kind=kind)
                    )  # fmt: skip
    return scores


def agreement_of(truth: np.ndarray, mask: np.ndarray) -> Agreement:
    present, found = bool(truth.any()), bool(mask.any())
    return Agreement(present, found, dice_of(truth, mask) if present or found else None, None, None)


def averaged_with_mirror(
    volume: Volume, encoded: EncodedVolume, saliencies: Sequence[Saliency], concepts: Sequence[Concept], engine: Engine
) -> list[Saliency]:
    """Shares averaged with those of the volume turned left to right in the slice."""
    frame = encoded.frame
    turned = np.ascontiguousarray(frame.inverse(frame.forward(volume.voxels)[:, :, ::-1]))
    mirror = encode(replace(volume, voxels=turned), concepts[0].window, engine, None)
    width = encoded.canvas.at(saliencies[0].share.shape[-1]).columns
    averaged = []
    for saliency, other in zip(saliencies, ask(mirror, concepts, engine, tell_nobody), strict=True):
        share = saliency.share.astype(np.float32)
        share[:, :, :width] += other.share[:, :, :width][:, :, ::-1]
        share[:, :, width:] *= 2
        averaged.append(Saliency((share / 2).astype(np.float16), saliency.lost, evidence_of(share / 2)))
    return averaged


def table(results: dict[str, list[Score]], full: list[Score]) -> Iterator[str]:
    for title, scores in results.items():
        bootstrap, paired = Bootstrap(scores), compare(scores, full)
        dice = bootstrap.estimate(list(cells(scores).values()), figures.dice)
        false = bootstrap.estimate([scores], figures.falsely_found)
        seconds = np.mean([score.seconds for score in scores])
        gain = paired.difference
        difference = "" if scores is full else f"{gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}], p {paired.p:.2g}"
        yield (
            f"| {title} | {dice.mean:.3f} [{dice.low:.3f}, {dice.high:.3f}] | {difference} | {false.mean:.1%} | "
            f"{seconds:.2f} s | {dice.cases} images of {dice.patients} patients |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--preset", default="lite")
    parser.add_argument("--images", type=int, default=6, help="pictures of each source")
    parser.add_argument("--volumes", type=int, default=4, help="volumes of each source")
    arguments = parser.parse_args()
    engine = load_engine(arguments.preset, "cpu")
    questionnaire = Questionnaire(read_manifest(arguments.manifest))
    results: dict[str, list[Score]] = {title: [] for title in CHANGES}
    volumes: list[Score] = []
    plain: list[Score] = []
    mirrored: list[Score] = []
    for image in sample(images_of(read_manifest(arguments.manifest, "val")), arguments.images, arguments.volumes):
        asked = read_image(image, questionnaire)
        several = slice_frame(asked.volume).forward(asked.volume.voxels).shape[0] > 1
        for title, change in CHANGES.items():
            if several or "slice" not in title:
                results[title] += measured(asked, engine, change)
        if several:
            volumes += [score for score in results[FULL] if score.case == image[0].case_id]
        if image[0].source in MIRRORED and not several:
            plain += [score for score in results[FULL] if score.case == image[0].case_id]
            mirrored += measured(asked, engine, Change(), mirrored=True)
        forget_volumes()
        print(image[0].case_id, file=sys.stderr, flush=True)
    of_volumes = {title: results.pop(title) for title in [title for title in results if "slice" in title]}
    for part in (
        table(results, results[FULL]),
        table({f"{FULL}, volumes": volumes, **of_volumes}, volumes),
        table({f"{FULL}, pictures without sides": plain, "averaged with the mirror image": mirrored}, plain),
    ):
        print(HEAD)
        print("\n".join(part))


if __name__ == "__main__":
    main()
