"""Two result folders side by side: Dice on their common cases, and whether the difference is more than chance."""

from __future__ import annotations

import json
from pathlib import Path

from MedZeroSegLib.errors import InputError
from MedZeroSegLib.evaluation import figures
from MedZeroSegLib.evaluation.figures import Bootstrap, Comparison, cells, compare, holm
from MedZeroSegLib.evaluation.scores import Score, read_scores
from MedZeroSegLib.evaluation.tables import percent, points, probability, table, with_interval

HEAD = (
    "structure", "n (patients)", "first", "second", "difference in points", "p, paired t-test", "p, Wilcoxon",
    "p, Wilcoxon, Holm",
)  # fmt: skip


def compare_folders(first: Path, second: Path) -> str:
    """Markdown: the second folder's Dice against the first's, where the structures are present.

    A patient's value is the mean over its cases and structures; both tests are two-sided and paired over patients.

    Raises
    ------
    InputError
        When a folder holds no scores, or the two share no case in which a structure is present.
    """
    ours, others = _rows(second), _rows(first)
    keys = [{(row.source, row.case, row.structure) for row in rows} for rows in (ours, others)]
    common = keys[0] & keys[1]
    mine, theirs = (
        [row for row in rows if (row.source, row.case, row.structure) in common] for rows in (ours, others)
    )
    if not any(row.present for row in mine):
        raise InputError(f"{first} and {second} share no case with a structure; compare two runs on the same images.")
    pairs: dict[str, Comparison] = {"**all structures**": compare(mine, theirs)}
    for (source, structure), rows in cells(row for row in mine if row.present).items():
        pairs[f"{source}: {structure}"] = compare(rows, theirs)
    adjusted = holm([comparison.p for comparison in list(pairs.values())[1:]])
    lines = [
        _line(name, comparison, probability(p) if p is not None else "-")
        for (name, comparison), p in zip(pairs.items(), [None, *adjusted], strict=True)
    ]
    left_out = len(keys[0] | keys[1]) - len(common)
    return (
        "# Two runs on the same images\n\n"
        f"First: {_described(first)}. Second: {_described(second)}. {len(common)} questions are common"
        f"{f', {left_out} are in one of them only and left out' if left_out else ''}. Dice where the structure is "
        "present, a missed one counts 0; brackets hold 95 % bootstrap intervals over patients; tests are two-sided and "
        "paired over patients (each patient's mean), Holm's adjustment is over the structures listed.\n\n"
        + table(HEAD, lines)
        + f"\n\nFalse finds: first {_false_finds(theirs)}, second {_false_finds(mine)}.\n"
    )


def _rows(folder: Path) -> list[Score]:
    file = folder / "cases.csv"
    if not file.is_file():
        raise InputError(f"{folder} holds no cases.csv; give the output folder of an evaluation.")
    return [row for row in read_scores(file) if row.kind != "whole"]


def _line(name: str, comparison: Comparison, adjusted: str) -> list[str]:
    change = comparison.difference
    interval = f" [{points(change.low)}, {points(change.high)}]" if change.patients > 1 else ""
    return [
        name, str(comparison.patients), with_interval(comparison.other), with_interval(comparison.ours),
        f"{points(change.mean)}{interval}", probability(comparison.p_t), probability(comparison.p), adjusted,
    ]  # fmt: skip


def _described(folder: Path) -> str:
    try:
        content = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        prompts = content.get("prompts")
        return f"`{content['preset']}`" + (f" with prompts *{prompts['name']}*" if prompts else "")
    except (OSError, ValueError, KeyError):
        return f"`{folder.name}`"


def _false_finds(rows: list[Score]) -> str:
    return percent(Bootstrap(rows).estimate([rows], figures.falsely_found))
