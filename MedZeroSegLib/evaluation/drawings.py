"""What a report shows: how Dice is spread over structures, and the worst, the median and the best image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from MedZeroSegLib.errors import InstallationError
from MedZeroSegLib.evaluation.figures import cells
from MedZeroSegLib.evaluation.overlays import Layer
from MedZeroSegLib.evaluation.scores import Score
from MedZeroSegLib.writers import replacing

ROWS_MOST = 40  # structures in one plot; of more, the sources are shown
ROW_INCHES, WIDTH_INCHES, DOTS_PER_INCH = 0.32, 9.0, 110
BLUE, GREY = "#1f6fb4", "#8a8a8a"
SPREAD = 0.28  # of the points around their row


def write_spread(scores: Sequence[Score], path: Path) -> Path:
    """PNG of Dice where a structure is present: one row a structure with every case, quartiles and the mean.

    Raises
    ------
    InputError, InstallationError
        When the picture can't be written, or matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as problem:
        raise InstallationError("Pictures need matplotlib; install it with `pip install matplotlib`.") from problem
    rows = _spread_rows(scores)
    figure = Figure(figsize=(WIDTH_INCHES, 1.0 + ROW_INCHES * len(rows)), dpi=DOTS_PER_INCH, layout="constrained")
    axes = figure.subplots()
    rng = np.random.default_rng(0)
    for place, values in enumerate(reversed(rows.values())):
        heights = place + rng.uniform(-SPREAD, SPREAD, len(values))
        axes.scatter(values, heights, s=12, color=BLUE, alpha=0.45, linewidths=0)
        axes.boxplot(
            values, positions=[place], orientation="horizontal", widths=0.55, showfliers=False, showmeans=True,
            medianprops={"color": "black"}, boxprops={"color": GREY}, whiskerprops={"color": GREY},
            capprops={"color": GREY},
            meanprops={"marker": "D", "markerfacecolor": "white", "markeredgecolor": "black", "markersize": 5},
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), [f"{label}  (n = {len(values)})" for label, values in reversed(rows.items())])
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel("Dice of each case in which the structure is present; line: median, diamond: mean")
    axes.grid(axis="x", color="#e3e3e3")
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)
    with replacing(path) as file:
        figure.savefig(file, format="png")
    return path


def _spread_rows(scores: Sequence[Score]) -> dict[str, list[float]]:
    present = [score for score in scores if score.present and score.kind != "far"]
    grouped = cells(present)
    several = len({source for source, _ in grouped}) > 1
    if len(grouped) > ROWS_MOST:
        return {source: [row.dice or 0.0 for row in present if row.source == source] for source, _ in grouped}
    return {
        f"{source}: {structure}" if several else structure: [row.dice or 0.0 for row in rows]
        for (source, structure), rows in grouped.items()
    }


def telling_images(scores: Sequence[Score], images: Mapping[str, str]) -> dict[str, str]:
    """The images with the worst, the median and the best mean Dice over the structures present.

    Parameters
    ----------
    images
        Image of each case.

    Returns
    -------
    dict
        "worst", "median" and "best" → image; as many as there are images.
    """
    dice: dict[str, list[float]] = {}
    for score in scores:
        if score.present and score.kind == "marked" and score.case in images:
            dice.setdefault(images[score.case], []).append(score.dice or 0.0)
    ranked = sorted(dice, key=lambda image: (np.mean(dice[image]), image))
    if not ranked:
        return {}
    places = {"worst": 0, "median": len(ranked) // 2, "best": len(ranked) - 1}
    chosen: dict[str, str] = {}
    for word, place in places.items():
        if ranked[place] not in chosen.values():
            chosen[word] = ranked[place]
    return chosen


def layers_of(
    scores: Sequence[Score], masks: Mapping[str, np.ndarray], references: Mapping[str, np.ndarray]
) -> list[Layer]:
    """What an overlay of one image shows: the structures that are present or were found."""
    layers = []
    for row in scores:
        if row.present or row.found:
            verdict = f"Dice {row.dice:.2f}" if row.present and row.found else "missed" if row.present else "false find"
            label, filled = f"{row.structure}: {verdict}", row.kind != "whole"
            layers.append(Layer(label, masks[row.structure], references[row.structure], filled))
    return layers
