"""Scores → `summary.md`: the figures that the project quotes, presence, the comparison, and every structure by source.

Each source says whether the weights were fitted to it, so that a figure can't pass for more than it is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from MedZeroSegLib.evaluation import figures
from MedZeroSegLib.evaluation.figures import Bootstrap, Comparison, Estimate, cells, compare
from MedZeroSegLib.evaluation.scores import Score

BTCV_FOUR = ("spleen", "left kidney", "right kidney", "aorta")
BTCV_EIGHT = (*BTCV_FOUR, "gallbladder", "liver", "stomach", "pancreas")
BTCV_THIRTEEN = (
    *BTCV_EIGHT, "esophagus", "inferior vena cava", "portal vein and splenic vein", "left adrenal gland",
    "right adrenal gland",
)  # fmt: skip
ACDC_THREE = ("left ventricle", "left ventricular myocardium", "right ventricle")
MEASURES = ("patients", "cases", "Dice", "Dice, false finds as 0", "IoU", "NSD", "found")
NOTES: Mapping[str, str] = {
    "acdc_cardiac_mr": "The voxel size is nominal (1.5 × 1.5 × 10 mm), so the tolerance of NSD is nominal too.",
    "totalsegmentator_examples": "The reference masks are a model's own output: an exercise, no measure of accuracy.",
    "dcmqi_ct_three_slices": "The reference outlines are coarse.",
    "covid_lung_xray": "The reference lungs include the part behind the heart and down to the diaphragm.",
}


@dataclass(frozen=True)
class Group:
    """A figure that the project quotes: the mean over ``structures``, each pooled over ``sources``."""

    title: str
    sources: tuple[str, ...]
    structures: tuple[str, ...]


GROUPS = (
    Group("lungs on X-ray, left and right", ("covid_chest_xray", "covid_lung_xray"), ("left lung", "right lung")),
    Group("left ventricle (Sunnybrook)", ("sunnybrook_cardiac_mr",), ("left ventricle",)),
    Group("liver (BTCV)", ("btcv_abdomen_ct",), ("liver",)),
    Group("liver (CURVAS)", ("curvas_abdomen_ct",), ("liver",)),
    Group("liver (CHAOS)", ("medscribble_chaos_liver_ct",), ("liver",)),
    Group("liver (three-slice CT)", ("dcmqi_ct_three_slices",), ("liver",)),
    Group("liver (TotalSegmentator's examples)", ("totalsegmentator_examples",), ("liver",)),
    Group("spleen, kidneys, aorta (BTCV)", ("btcv_abdomen_ct",), BTCV_FOUR),
    Group("eight organs (BTCV)", ("btcv_abdomen_ct",), BTCV_EIGHT),
    Group("thirteen organs (BTCV)", ("btcv_abdomen_ct",), BTCV_THIRTEEN),
    Group("hippocampus, both parts together", ("msd_hippocampus_mr",), ("hippocampus",)),
    Group("vertebrae together (SPIDER)", ("spider_lumbar_spine_mr",), ("vertebrae",)),
    Group("discs together (SPIDER)", ("spider_lumbar_spine_mr",), ("intervertebral discs",)),
    Group("breast tumor, both kinds together", ("busi_breast_ultrasound",), ("breast tumor",)),
    Group("three heart structures (ACDC)", ("acdc_cardiac_mr",), ACDC_THREE),
    Group("liver, kidney, pancreas (CURVAS)", ("curvas_abdomen_ct",), ("liver", "kidney", "pancreas")),
)


@dataclass(frozen=True)
class RunFacts:
    """What was run: ``weights`` has "name" and "sha256" of each file; ``trained_sources`` is None where not stated."""

    preset: str
    version: str
    split: str
    device: str
    weights: tuple[Mapping[str, str], ...]
    trained_sources: tuple[str, ...] | None


def summary(scores: Sequence[Score], facts: RunFacts, baseline: Sequence[Score] = ()) -> str:
    """The whole report in Markdown."""
    bootstrap = Bootstrap(scores)
    sections = [
        _head(scores, facts),
        _quoted(scores, facts, bootstrap),
        _presence(scores, bootstrap),
        _comparison(scores, baseline),
        *(_source(source, scores, facts, bootstrap) for source in sorted({score.source for score in scores})),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _head(scores: Sequence[Score], facts: RunFacts) -> str:
    patients = {(score.source, score.patient) for score in scores}
    seconds = sum(score.seconds for score in scores)
    weights = ", ".join(f"{record['name']} `{record['sha256'][:12]}`" for record in facts.weights) or "not stated"
    lines = [
        f"# Preset `{facts.preset}` on the split `{facts.split}`",
        "",
        f"Version {facts.version}, {facts.device}; weights (start of SHA-256): {weights}. "
        f"{len({(score.source, score.case) for score in scores})} cases of {len(patients)} patients in "
        f"{seconds / 60:.1f} minutes of segmenting.",
        "",
        "Measures are taken on the image's own grid, in three dimensions for volumes: Dice, IoU and surface Dice "
        "(NSD, within 2 mm, or 2 pixels where the spacing isn't known) as means over the cases in which the structure "
        "is present. *Dice, false finds as 0* also counts each case in which an absent structure was found. Brackets "
        "hold 95 % bootstrap intervals over patients (2,000 resamples). *Found* is the share of present structures "
        "that were found, *false finds* the share of absent ones. *Training* says whether the weights were fitted to "
        "other patients of the source, or whether the source is unseen; neither is zero-shot where another source "
        "taught the structure.",
    ]
    if facts.split == "train":
        lines += ["", "The weights may have been fitted to these very cases: this is no measure of accuracy."]
    return "\n".join(lines)


def _quoted(scores: Sequence[Score], facts: RunFacts, bootstrap: Bootstrap) -> str:
    rows = []
    for group in GROUPS:
        selections = [
            [score for score in scores if score.source in group.sources and score.structure == structure]
            for structure in group.structures
        ]
        there = sum(any(score.present for score in selection) for selection in selections)
        if there:
            count = f"{there}" if there == len(selections) else f"{there} of {len(selections)}"
            sources = {score.source for selection in selections for score in selection}
            rows.append([group.title, count, _training(sources, facts), *_measures(selections, bootstrap)])
    everything = list(cells(score for score in scores if score.kind != "far").values())
    there = sum(any(score.present for score in selection) for selection in everything)
    training = _training({score.source for score in scores}, facts)
    title = "all structures of all sources, wholes included"
    rows.append([title, f"{there}", training, *_measures(everything, bootstrap)])
    return "## Figures\n\n" + _table(["figure", "structures", "training", *MEASURES], rows)


def _presence(scores: Sequence[Score], bootstrap: Bootstrap) -> str:
    near, far = ([score for score in scores if (score.kind == "far") == is_far] for is_far in (False, True))
    absent = figures.falsely_found
    rows = [
        ["found, of structures that are present", *_rate(near, bootstrap, figures.found)],
        ["false finds, of absent structures that other images of the source show", *_rate(near, bootstrap, absent)],
        ["false finds, of structures of other body regions", *_rate(far, bootstrap, absent)],
        ["false finds, all", *_rate(scores, bootstrap, absent)],
    ]
    return "## Presence\n\n" + _table(["rate", "names asked", "share"], rows)


def _comparison(scores: Sequence[Score], baseline: Sequence[Score]) -> str:
    if not baseline:
        return ""
    comparison = compare(scores, baseline)
    difference = comparison.difference
    points = f"{_points(difference.mean)} [{_points(difference.low)}, {_points(difference.high)}]"
    bootstrap = Bootstrap([*scores, *baseline])
    others = cells(baseline)
    title = "**all structures of all sources**"
    rows = [[title, _with_interval(comparison.ours), _with_interval(comparison.other), points]]
    for (source, structure), rows_of_cell in cells(scores).items():
        ours = bootstrap.estimate([rows_of_cell], figures.dice)
        other = bootstrap.estimate([others.get((source, structure), [])], figures.dice)
        if ours.cases and other.cases:
            name = f"{source}: {structure}"
            rows.append([name, _number(ours.mean), _number(other.mean), _points(ours.mean - other.mean)])
    false_finds = [_percent(bootstrap.estimate([list(table)], figures.falsely_found)) for table in (scores, baseline)]
    return (
        "## Against the naive reference\n\n"
        "The reference uses the same weights without this project's stages: the map of the typed name in each slice, "
        "min-max, Otsu's threshold, one box, the decoder's mask. Dice where the structure is present. "
        f"{_wilcoxon(comparison)}"
        f"False finds: {false_finds[0]} against {false_finds[1]}.\n\n"
        + _table(["structure", "ours", "naive", "difference in points"], rows)
    )


def _wilcoxon(comparison: Comparison) -> str:
    if math.isnan(comparison.p):
        return ""
    return f"Paired Wilcoxon test over {comparison.patients} patients: p = {comparison.p:.2g}. "


def _source(source: str, scores: Sequence[Score], facts: RunFacts, bootstrap: Bootstrap) -> str:
    of_source = [score for score in scores if score.source == source]
    patients = len({score.patient for score in of_source})
    modalities = ", ".join(sorted({score.modality for score in of_source}))
    rows = []
    for (_, structure), selection in cells(score for score in of_source if score.kind != "far").items():
        name = f"{structure} (whole)" if selection[0].kind == "whole" else structure
        absent = sum(not score.present for score in selection)
        false_finds = _percent(bootstrap.estimate([selection], figures.falsely_found))
        rows.append([name, *_measures([selection], bootstrap), f"{false_finds} of {absent}" if absent else "-"])
    note = f" {NOTES[source]}" if source in NOTES else ""
    return (
        f"## {source}\n\n{modalities}, {patients} patient{'s' if patients != 1 else ''}: "
        f"{_tier(source, facts)}.{note}\n\n" + _table(["structure", *MEASURES, "false finds"], rows)
    )


def _tier(source: str, facts: RunFacts) -> str:
    if facts.trained_sources is None:
        return "the weights don't state whether they were fitted to this source"
    if source not in facts.trained_sources:
        return "an unseen source, nothing of it was in training"
    if facts.split == "train":
        return "a source of the training, and perhaps these very cases"
    return "trained structures on unseen patients (other patients of this source were in training)"


def _training(sources: Iterable[str], facts: RunFacts) -> str:
    if facts.trained_sources is None:
        return "not stated"
    fitted = {source in facts.trained_sources for source in sources}
    if len(fitted) == 2:
        return "both"
    return ("these patients" if facts.split == "train" else "other patients") if fitted == {True} else "unseen source"


def _measures(selections: Sequence[Sequence[Score]], bootstrap: Bootstrap) -> list[str]:
    """Patients, cases, Dice, Dice with false finds, IoU, NSD, found."""
    dice = bootstrap.estimate(selections, figures.dice)
    with_false = bootstrap.estimate(selections, figures.dice_with_false_finds)
    return [
        str(dice.patients),
        str(dice.cases),
        _with_interval(dice),
        _number(with_false.mean),
        _number(bootstrap.estimate(selections, figures.iou).mean),
        _number(bootstrap.estimate(selections, figures.nsd).mean),
        _percent(bootstrap.estimate(selections, figures.found)),
    ]


def _rate(scores: Sequence[Score], bootstrap: Bootstrap, measure: figures.Measure) -> list[str]:
    estimate = bootstrap.estimate([scores], measure)
    asked = sum(measure(score) is not None for score in scores)
    if not asked:
        return ["0", "-"]
    return [str(asked), f"{100 * estimate.mean:.1f} % [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"]


def _with_interval(estimate: Estimate) -> str:
    """One patient gives no interval."""
    if estimate.patients < 2:
        return _number(estimate.mean)
    return f"{estimate.mean:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _points(difference: float) -> str:
    """A difference in Dice as points; no minus before zero."""
    return f"{round(100 * difference, 1) + 0.0:+.1f}"


def _percent(estimate: Estimate) -> str:
    return "-" if math.isnan(estimate.mean) else f"{100 * estimate.mean:.0f} %"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
