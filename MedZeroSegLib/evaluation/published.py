"""Figures that others published on the data sets, each with its source, beside those of a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from MedZeroSegLib.evaluation import figures
from MedZeroSegLib.evaluation.datasets import data_set_of
from MedZeroSegLib.evaluation.figures import Bootstrap
from MedZeroSegLib.evaluation.scores import Score
from MedZeroSegLib.evaluation.tables import number, table
from MedZeroSegLib.evaluation.tiers import TIERS, Tier

FILE = Path(__file__).with_name("published.json")
SAME_AS = {"synapse_h5": "synapse"}  # copies of one data set
HEAD = ("system", "tier", "Dice %", "IoU %", "other", "source")


@dataclass(frozen=True)
class Published:
    """One figure in per cent; ``source`` is a key of ``published_sources``."""

    data: str
    system: str
    tier: str
    dice: float
    source: str
    sd: float | None = None
    iou: float | None = None
    nsd: float | None = None
    auc: float | None = None


@cache
def _content() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return content


def published_figures(source: str) -> list[Published]:
    """What others published on a source of a data set."""
    data = SAME_AS.get(source, source)
    return [Published(**row) for row in _content()["figures"] if row["data"] == data]


def published_sources() -> dict[str, str]:
    """Where figures were taken from, by key."""
    return dict(_content()["sources"])


def published_section(
    source: str, selections: Sequence[Sequence[Score]], tier: Tier, preset: str, bootstrap: Bootstrap
) -> str:
    """Markdown: this run's mean over structures beside published figures; "" where there are none.

    Parameters
    ----------
    selections
        Rows of each structure that the published figures are means over.
    """
    rows, data = published_figures(source), data_set_of(source)
    if not rows or data is None:
        return ""
    dice, flat = (bootstrap.estimate(selections, measure) for measure in (figures.dice, figures.slice_dice))
    iou = bootstrap.estimate(selections, figures.iou)
    ours = [
        f"**this run, `{preset}`**", tier.letter, f"**{number(100 * dice.mean, 1)}**", number(100 * iou.mean, 1),
        f"mean over slices {number(100 * flat.mean, 1)}; n = {dice.cases} ({dice.patients} patients)", "-",
    ]  # fmt: skip
    keys = list(dict.fromkeys(row.source for row in rows))
    lines = [ours, *(_line(row, keys.index(row.source) + 1) for row in rows)]
    sources = "\n".join(f"{n}. {published_sources()[key]}." for n, key in enumerate(keys, start=1))
    letters = dict.fromkeys([tier.letter, *(row.tier for row in rows)])
    legend = "; ".join(f"{letter}, {TIERS[letter]}" for letter in letters)
    return (
        f"## {data.sources[source]}: against published figures\n\n"
        "Printed as their sources give them, most for other patients and by other rules than this run: an order of "
        "magnitude, no ranking. The mean over slices counts only slices that hold the structure, as papers on "
        f"two-dimensional methods do. Tiers: {legend}.\n\n" + table(HEAD, lines) + "\n\n" + sources
    )


def _line(row: Published, place: int) -> list[str]:
    dice = f"{row.dice:.2f}" + (f" ± {row.sd:.2f}" if row.sd is not None else "")
    other = [f"{name} {value:.2f}" for name, value in (("NSD", row.nsd), ("AUC", row.auc)) if value is not None]
    return [row.system, row.tier, dice, number(row.iou, 2), ", ".join(other) or "-", str(place)]
