"""Published figures of this project as files: what was run, with which weights, and what came out; and the check."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from MedZeroSegLib.errors import InputError
from MedZeroSegLib.evaluation import figures
from MedZeroSegLib.evaluation.figures import Bootstrap
from MedZeroSegLib.evaluation.prompt_sets import parse_toml
from MedZeroSegLib.evaluation.report import quoted
from MedZeroSegLib.evaluation.scores import Score, read_scores
from MedZeroSegLib.evaluation.tables import number, table

RATES: Mapping[str, Callable[[Score], float | None]] = {
    "found": lambda score: figures.found(score) if score.kind != "far" else None,
    "false finds": figures.falsely_found,
}


@dataclass(frozen=True)
class Expected:
    """One figure, a mean Dice or one of ``RATES``, over so many cases, and how far from it other machines may come."""

    title: str
    value: float
    tolerance: float
    cases: int


@dataclass(frozen=True)
class Recipe:
    """A file of figures.

    Attributes
    ----------
    printed
        Where they are printed.
    data
        "manifest", or the name of a data set.
    identity
        What ``run.json`` must hold: split, preset, hash of the images' list, ...
    weights
        SHA-256 by name.
    settings
        Of the preset, as the segmenter states them.
    """

    printed: str
    data: str
    split: str
    preset: str
    prompts: str
    identity: Mapping[str, Any]
    weights: Mapping[str, str]
    settings: Mapping[str, Any]
    expected: tuple[Expected, ...]


def read_recipe(path: Path) -> Recipe:
    """Raises InputError when the file isn't a whole recipe."""
    try:
        content = parse_toml(path.read_text(encoding="utf-8"))
        run = content["run"]
        identity = {key: run[key] for key in ("manifest", "files") if key in run}
        return Recipe(
            content["printed"], run["data"], run["split"], run["preset"], run.get("prompts", ""), identity,
            content["weights"], content["settings"], tuple(Expected(**figure) for figure in content["figure"]),
        )  # fmt: skip
    except OSError as problem:
        raise InputError(f"{path} can't be read; give a file of Testing/benchmarks/reproduce.") from problem
    except (ValueError, KeyError, TypeError) as problem:
        raise InputError(f"{path} isn't a file of figures ({problem}); compare it with those that ship.") from problem


@dataclass(frozen=True)
class Verdict:
    """``text`` in Markdown, and whether every figure came out within its tolerance from the same weights and images."""

    reproduced: bool
    text: str


def judge(recipe: Recipe, folder: Path) -> Verdict:
    """Compare the scores of an evaluation's folder with what is expected; raises InputError without scores."""
    try:
        run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise InputError(f"{folder} holds no evaluation; run it first.") from problem
    differing = _differing(recipe, run)
    scores = read_scores(folder / "cases.csv")
    selections, bootstrap = quoted(scores), Bootstrap(scores)
    lines, right = [], not differing
    for expected in recipe.expected:
        rate = RATES.get(expected.title)
        rows = selections.get(expected.title, []) if rate is None else [scores]
        estimate = bootstrap.estimate(rows, rate or figures.dice)
        close = not math.isnan(estimate.mean) and abs(estimate.mean - expected.value) <= expected.tolerance + 1e-9
        same = close and estimate.cases == expected.cases
        right &= same
        wanted = f"{expected.value:.3f} ± {expected.tolerance:.3f} ({expected.cases} cases)"
        found = f"{number(estimate.mean)} ({estimate.cases} cases)"
        lines.append([expected.title, wanted, found, "reproduced" if same else "**not reproduced**"])
    head = f"# {recipe.printed}: {'reproduced' if right else 'not reproduced'}\n\n"
    text = "".join(f"{sentence}\n\n" for sentence in differing)
    return Verdict(right, head + text + table(["figure", "expected", "measured", ""], lines) + "\n")


def _differing(recipe: Recipe, run: Mapping[str, Any]) -> Sequence[str]:
    """Sentences on what was not run as the recipe says."""
    sentences = []
    for key, value in {"split": recipe.split, "preset": recipe.preset, **recipe.identity}.items():
        if run.get(key) != value:
            sentences.append(f"The run's {key} is {run.get(key)}, the figures' is {value}.")
    there = {record["name"]: record["sha256"] for record in run.get("weights", ())}
    for name, sha256 in recipe.weights.items():
        if there.get(name) != sha256:
            found = there.get(name, "none")[:12]
            sentences.append(f"The weights {name} are {found}, those of the figures were {sha256[:12]}.")
    settings = run.get("settings", {})
    for key, value in recipe.settings.items():
        if settings.get(key) != value:
            sentences.append(f"The preset's {key} is {settings.get(key)}, that of the figures was {value}.")
    return sentences
