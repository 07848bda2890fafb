"""Scores → `summary.md`: the figures that the project quotes, presence, comparisons, and every structure by source.

Each source says whether the weights were fitted to it, so that a figure can't pass for more than it is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from MedZeroSegLib.evaluation import figures
from MedZeroSegLib.evaluation.datasets import DATA_SETS, data_set_of
from MedZeroSegLib.evaluation.figures import Bootstrap, Comparison, cells, compare
from MedZeroSegLib.evaluation.published import published_section
from MedZeroSegLib.evaluation.scores import Score
from MedZeroSegLib.evaluation.tables import number, percent, points, probability, table, with_interval
from MedZeroSegLib.evaluation.tiers import TIERS, Tier, tier_of, untouched

BTCV_FOUR = ("spleen", "left kidney", "right kidney", "aorta")
BTCV_EIGHT = (*BTCV_FOUR, "gallbladder", "liver", "stomach", "pancreas")
BTCV_THIRTEEN = (
    *BTCV_EIGHT, "esophagus", "inferior vena cava", "portal vein and splenic vein", "left adrenal gland",
    "right adrenal gland",
)  # fmt: skip
ACDC_THREE = ("left ventricle", "left ventricular myocardium", "right ventricle")
MEASURES = (
    "patients", "cases", "Dice", "Dice, false finds as 0", "IoU", "NSD", "HD95", "Dice, mean over slices", "AUC",
    "found",
)  # fmt: skip
PATIENTS_LISTED = 60  # more are in patients.csv only
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
    # Data sets as downloaded, one line each: what published figures are means over.
    Group("three heart structures (ACDC as downloaded)", ("acdc",), ACDC_THREE),
    Group("eight organs (Synapse as downloaded)", ("synapse",), BTCV_EIGHT),
    Group("thirteen organs (Synapse as downloaded)", ("synapse",), BTCV_THIRTEEN),
    Group("eight organs (Synapse, TransUNet's volumes)", ("synapse_h5",), BTCV_EIGHT),
    Group("lungs (COVID-QU-Ex as downloaded)", ("covidqu_lungs",), ("lung",)),
    Group("infection (COVID-QU-Ex as downloaded)", ("covidqu_infection",), ("lung infection",)),
)
EVERYTHING = "all structures of all sources, wholes included"


@dataclass(frozen=True)
class RunFacts:
    """What was run: ``weights`` has "name" and "sha256" of each file; ``trained_sources`` is None where not stated.

    ``data`` is the name of a data set, "" for a manifest; ``prompts`` name and SHA-256 of the texts typed, None where
    the names themselves were.
    """

    preset: str
    version: str
    split: str
    device: str
    weights: tuple[Mapping[str, str], ...]
    trained_sources: tuple[str, ...] | None
    data: str = ""
    prompts: Mapping[str, str] | None = None


def summary(
    scores: Sequence[Score], facts: RunFacts, baseline: Sequence[Score] = (), plot: str = "", pictures: str = ""
) -> str:
    """The whole report in Markdown; ``plot`` and ``pictures`` are sections that show what was drawn."""
    bootstrap = Bootstrap(scores)
    sources = sorted({score.source for score in scores})
    sections = [
        _head(scores, facts),
        _quoted(scores, facts, bootstrap),
        plot,
        *(_published(source, scores, facts, bootstrap) for source in sources),
        _presence(scores, bootstrap),
        _comparison(scores, baseline),
        *(_source(source, scores, facts, bootstrap) for source in sources),
        pictures,
        _patients(scores, facts),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _head(scores: Sequence[Score], facts: RunFacts) -> str:
    patients = {(score.source, score.patient) for score in scores}
    seconds = sum(score.seconds for score in scores)
    weights = ", ".join(f"{record['name']} `{record['sha256'][:12]}`" for record in facts.weights) or "not stated"
    data = DATA_SETS.get(facts.data)
    lines = [
        f"# Preset `{facts.preset}` on {f'{data.title}, ' if data else ''}the split `{facts.split}`",
        "",
        f"Version {facts.version}, {facts.device}; weights (start of SHA-256): {weights}. "
        f"{len({(score.source, score.case) for score in scores})} cases of {len(patients)} patients in "
        f"{seconds / 60:.1f} minutes of segmenting.",
        "",
        "Measures are taken on the image's own grid, in three dimensions for volumes: Dice, IoU and surface Dice "
        "(NSD, within 2 mm, or 2 pixels where the spacing isn't known) as means over the cases in which the structure "
        "is present. HD95 is the 95th percentile of the surfaces' distance in mm, or pixels; the image's diagonal "
        "where a structure was missed. *Mean over slices* counts the slices that hold the structure, each on its own. "
        "*AUC* is the area under the ROC of the saliency on the cells of the slices that were looked at, for names "
        "without a side. *Dice, false finds as 0* also counts each case in which an absent structure was found. "
        "Brackets hold 95 % bootstrap intervals over patients (2,000 resamples). *Found* is the share of present "
        "structures that were found, *false finds* the share of absent ones. *Training* says whether the weights were "
        "fitted to other patients of the source, or whether the source is unseen; neither is zero-shot where another "
        "source taught the structure.",
    ]
    if facts.prompts is not None:
        lines += [
            "",
            f"Texts typed: the set *{facts.prompts['name']}*, SHA-256 `{facts.prompts['sha256']}`; which of a "
            "structure's texts an image gets depends on the image's name alone. What the set lacks is typed by name.",
        ]
    if data is not None:
        patients_of = [score.patient for score in scores]
        tier = tier_of(data, facts.trained_sources, patients_of)
        lines += ["", f"**Tier {tier.letter}: {TIERS[tier.letter]}.** {' '.join((*tier.remarks, *data.notes))}"]
    elif facts.split == "train":
        lines += ["", "The weights may have been fitted to these very cases: this is no measure of accuracy."]
    return "\n".join(lines)


def quoted(scores: Sequence[Score]) -> dict[str, list[list[Score]]]:
    """Rows of each structure of each figure that the project quotes, by the figure's title; those that have any."""
    selections = {
        group.title: [
            [score for score in scores if score.source in group.sources and score.structure == structure]
            for structure in group.structures
        ]
        for group in GROUPS
    }
    selections[EVERYTHING] = list(cells(score for score in scores if score.kind != "far").values())
    return {title: rows for title, rows in selections.items() if any(score.present for row in rows for score in row)}


def _quoted(scores: Sequence[Score], facts: RunFacts, bootstrap: Bootstrap) -> str:
    rows = []
    for title, selections in quoted(scores).items():
        there = sum(any(score.present for score in selection) for selection in selections)
        count = f"{there}" if there == len(selections) else f"{there} of {len(selections)}"
        rows.append([title, count, _training(selections, facts), *_measures(selections, bootstrap)])
        kept = [untouched(selection, facts.trained_sources) for selection in selections]
        if any(kept) and sum(map(len, kept)) < sum(map(len, selections)):
            name = "the same, patients that neither training nor settings saw"
            rows.append([name, count, _training(kept, facts), *_measures(kept, bootstrap)])
    return "## Figures\n\n" + table(["figure", "structures", "training", *MEASURES], rows)


def _published(source: str, scores: Sequence[Score], facts: RunFacts, bootstrap: Bootstrap) -> str:
    """Beside what others published on the source, over the structures that their figures are means over."""
    data = data_set_of(source)
    if data is None:
        return ""
    structures = next(group.structures for group in GROUPS if source in group.sources)
    rows = [score for score in scores if score.source == source]
    selections = [[score for score in rows if score.structure == structure] for structure in structures]
    tier = tier_of(data, facts.trained_sources, [score.patient for score in rows])
    return published_section(source, selections, tier, facts.preset, bootstrap)


def _presence(scores: Sequence[Score], bootstrap: Bootstrap) -> str:
    near, far = ([score for score in scores if (score.kind == "far") == is_far] for is_far in (False, True))
    absent = figures.falsely_found
    rows = [
        ["found, of structures that are present", *_rate(near, bootstrap, figures.found)],
        ["false finds, of absent structures that other images of the source show", *_rate(near, bootstrap, absent)],
        ["false finds, of structures of other body regions", *_rate(far, bootstrap, absent)],
        ["false finds, all", *_rate(scores, bootstrap, absent)],
    ]
    return "## Presence\n\n" + table(["rate", "names asked", "share"], rows)


def _comparison(scores: Sequence[Score], baseline: Sequence[Score]) -> str:
    if not baseline:
        return ""
    comparison = compare(scores, baseline)
    difference = comparison.difference
    change = f"{points(difference.mean)} [{points(difference.low)}, {points(difference.high)}]"
    bootstrap = Bootstrap([*scores, *baseline])
    others = cells(baseline)
    title = "**all structures of all sources**"
    rows = [[title, with_interval(comparison.ours), with_interval(comparison.other), change]]
    for (source, structure), rows_of_cell in cells(scores).items():
        ours = bootstrap.estimate([rows_of_cell], figures.dice)
        other = bootstrap.estimate([others.get((source, structure), [])], figures.dice)
        if ours.cases and other.cases:
            name = f"{source}: {structure}"
            rows.append([name, number(ours.mean), number(other.mean), points(ours.mean - other.mean)])
    false_finds = [percent(bootstrap.estimate([list(table)], figures.falsely_found)) for table in (scores, baseline)]
    return (
        "## Against the naive reference\n\n"
        "The reference uses the same weights without this project's stages: the map of the typed name in each slice, "
        "min-max, Otsu's threshold, one box, the decoder's mask. Dice where the structure is present. "
        f"{_wilcoxon(comparison)}"
        f"False finds: {false_finds[0]} against {false_finds[1]}.\n\n"
        + table(["structure", "ours", "naive", "difference in points"], rows)
    )


def _wilcoxon(comparison: Comparison) -> str:
    if math.isnan(comparison.p):
        return ""
    return (
        f"Over {comparison.patients} patients, paired, two-sided: Wilcoxon test p = {probability(comparison.p)}, "
        f"t-test p = {probability(comparison.p_t)}. "
    )


def _source(source: str, scores: Sequence[Score], facts: RunFacts, bootstrap: Bootstrap) -> str:
    of_source = [score for score in scores if score.source == source]
    names = {score.patient for score in of_source}
    patients = len(names)
    modalities = ", ".join(sorted({score.modality for score in of_source}))
    rows = []
    for (_, structure), selection in cells(score for score in of_source if score.kind != "far").items():
        name = f"{structure} (whole)" if selection[0].kind == "whole" else structure
        absent = sum(not score.present for score in selection)
        false_finds = percent(bootstrap.estimate([selection], figures.falsely_found))
        rows.append([name, *_measures([selection], bootstrap), f"{false_finds} of {absent}" if absent else "-"])
    note = f" {NOTES[source]}" if source in NOTES else ""
    return (
        f"## {_heading(source)}\n\n{modalities}, {patients} patient{'s' if patients != 1 else ''}: "
        f"{_tier(source, facts, names)}.{note}\n\n" + table(["structure", *MEASURES, "false finds"], rows)
    )


def _heading(source: str) -> str:
    data = data_set_of(source)
    return data.sources[source] if data else source


def _tier(source: str, facts: RunFacts, patients: Iterable[str]) -> str:
    data = data_set_of(source)
    if data is not None:
        tier: Tier = tier_of(data, facts.trained_sources, patients)
        return f"tier {tier.letter}, {TIERS[tier.letter]}"
    if facts.trained_sources is None:
        return "the weights don't state whether they were fitted to this source"
    if source not in facts.trained_sources:
        return "an unseen source, nothing of it was in training"
    if facts.split == "train":
        return "a source of the training, and perhaps these very cases"
    return "trained structures on unseen patients (other patients of this source were in training)"


def _training(selections: Iterable[Sequence[Score]], facts: RunFacts) -> str:
    if facts.trained_sources is None:
        return "not stated"
    rows = [score for selection in selections for score in selection]
    sources = {score.source for score in rows}
    tiers = {_letter(source, rows, facts) for source in sources}
    if None not in tiers:
        return ", ".join(f"tier {letter}" for letter in sorted(filter(None, tiers)))
    fitted = {source in facts.trained_sources for source in sources}
    if len(fitted) == 2:
        return "both"
    return ("these patients" if facts.split == "train" else "other patients") if fitted == {True} else "unseen source"


def _letter(source: str, rows: Sequence[Score], facts: RunFacts) -> str | None:
    """The tier on a data set; None for sources of a manifest."""
    data = data_set_of(source)
    patients = [score.patient for score in rows if score.source == source]
    return tier_of(data, facts.trained_sources, patients).letter if data else None


def _measures(selections: Sequence[Sequence[Score]], bootstrap: Bootstrap) -> list[str]:
    """What ``MEASURES`` names."""
    dice = bootstrap.estimate(selections, figures.dice)
    with_false = bootstrap.estimate(selections, figures.dice_with_false_finds)
    return [
        str(dice.patients),
        str(dice.cases),
        with_interval(dice),
        number(with_false.mean),
        number(bootstrap.estimate(selections, figures.iou).mean),
        number(bootstrap.estimate(selections, figures.nsd).mean),
        number(bootstrap.estimate(selections, figures.hd95).mean, 1),
        number(bootstrap.estimate(selections, figures.slice_dice).mean),
        number(bootstrap.estimate(selections, figures.auc).mean),
        percent(bootstrap.estimate(selections, figures.found)),
    ]


def _rate(scores: Sequence[Score], bootstrap: Bootstrap, measure: figures.Measure) -> list[str]:
    estimate = bootstrap.estimate([scores], measure)
    asked = sum(measure(score) is not None for score in scores)
    if not asked:
        return ["0", "-"]
    return [str(asked), f"{100 * estimate.mean:.1f} % [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"]


def patient_rows(scores: Sequence[Score]) -> list[dict[str, str]]:
    """One row for each patient and structure: means over its cases, where the structure is present."""
    grouped: dict[tuple[str, str, str], list[Score]] = {}
    for score in scores:
        if score.kind != "far":
            grouped.setdefault((score.source, score.patient, score.structure), []).append(score)
    rows = []
    for (source, patient, structure), cases in sorted(grouped.items()):
        present = [score for score in cases if score.present]
        row = {"source": source, "patient": patient, "structure": structure, "cases": str(len(cases))}
        row |= {"present": str(len(present)), "found": str(sum(score.found for score in present))}
        row |= {"false_finds": str(sum(score.found for score in cases if not score.present))}
        for name, digits in (("dice", 4), ("iou", 4), ("nsd", 4), ("hd95", 2), ("slice_dice", 4), ("auc", 4)):
            values = [value for score in present if (value := getattr(score, name)) is not None]
            row[name] = number(sum(values) / len(values), digits) if values else ""
        rows.append(row)
    return rows


def _patients(scores: Sequence[Score], facts: RunFacts) -> str:
    """Dice of each patient, for data sets; every measure is in patients.csv."""
    if not facts.data:
        return ""
    rows = patient_rows(scores)
    structures = list(dict.fromkeys(row["structure"] for row in rows))
    by_patient: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        by_patient.setdefault((row["source"], row["patient"]), {})[row["structure"]] = row["dice"]
    text = "## Patients\n\nDice of each patient, a mean over its cases where the structure is present; "
    if len(by_patient) > PATIENTS_LISTED:
        return text + f"the {len(by_patient)} patients are listed in `patients.csv`, with all measures."
    lines = [[patient, *(dice.get(name) or "-" for name in structures)] for (_, patient), dice in by_patient.items()]
    return text + "all measures are in `patients.csv`.\n\n" + table(["patient", *structures], lines)
