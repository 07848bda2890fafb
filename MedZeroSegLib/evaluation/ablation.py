"""Variants of a preset measured on the same images, each in a folder of its own, and the table that compares them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from MedZeroSegLib.base_preset import DENSE_VARIANTS
from MedZeroSegLib.evaluation import figures
from MedZeroSegLib.evaluation.figures import Bootstrap, Estimate, cells, compare
from MedZeroSegLib.evaluation.scores import Score, read_scores
from MedZeroSegLib.presets import preset_named
from MedZeroSegLib.writers import replacing

DENSE = "dense"  # stands for the preset itself and all its dense variants
HEAD = ("variant", "Dice", "difference to the first", "p", "found", "false finds", "seconds a case")


def chosen_presets(preset: str, variants: Sequence[str]) -> list[str]:
    """Names of presets, such as "base" and "base/naclip", each once, in the order given.

    Raises
    ------
    InputError
        For an unknown preset or variant.
    """
    chosen: list[str] = []
    for variant in variants:
        names = (preset, *(f"{preset}/{name}" for name in DENSE_VARIANTS)) if variant == DENSE else ()
        chosen += names or (f"{preset}/{variant}",)
    for name in chosen:
        preset_named(name)
    return list(dict.fromkeys(chosen))


def evaluate_variants(presets: Sequence[str], measure: Callable[[str, Path], str], output: Path) -> str:
    """Measure each preset into ``output``/NAME and write ``output``/variants.md; returns its text.

    Parameters
    ----------
    measure
        Measures a preset by name into a folder, which then holds ``cases.csv``.
    """
    tables = {}
    for preset in presets:
        folder = output / preset.replace("/", "-")
        measure(preset, folder)
        tables[preset] = read_scores(folder / "cases.csv")
        text = comparison_table(tables)
        with replacing(output / "variants.md") as file:  # after each, so that a stopped run leaves what it has
            file.write(text.encode("utf-8"))
    return text


def comparison_table(tables: Mapping[str, Sequence[Score]]) -> str:
    """One line for each preset, compared with the first on the structures that are present."""
    first = next(iter(tables.values()))
    lines = [" | ".join(HEAD), " | ".join("---" for _ in HEAD)]
    for name, scores in tables.items():
        bootstrap, structures = Bootstrap(scores), list(cells(scores).values())
        paired = compare(scores, first)
        lines.append(
            " | ".join((
                name,
                _number(bootstrap.estimate(structures, figures.dice)),
                "" if scores is first else _number(paired.difference),
                "" if scores is first else f"{paired.p:.3f}",
                _number(bootstrap.estimate(structures, figures.found)),
                _number(bootstrap.estimate(structures, figures.falsely_found)),
                f"{sum(score.seconds for score in scores) / max(1, len({score.case for score in scores})):.1f}",
            ))
        )  # fmt: skip
    return "".join(f"| {line} |\n" for line in lines)


def _number(estimate: Estimate) -> str:
    return f"{estimate.mean:.3f} ({estimate.low:.3f} to {estimate.high:.3f})" if estimate.cases else "-"
