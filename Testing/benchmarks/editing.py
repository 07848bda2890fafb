"""Correcting by hand, measured with a simulated user against other ways to correct.

Run     .venv/bin/python Testing/benchmarks/editing.py MANIFEST [--split val] [--segments 10] [--clicks 10]
Prints  for each source mean Dice after 0, 1, 3, 5 and 10 clicks with n, clicks needed for Dice .90, the least mean
        change of a click; then the experiment with confirmed slices, what clicks gain on segments that start below
        .85, with 95 % bootstrap intervals, and seconds of a click and of a spread.

Protocol. A segment is one structure in one image of the split in which it is marked, taken in the manifest's order, at
most SEGMENTS a source, evenly spread over its images and structures. It starts from the text mask of the preset. Each
round the user clicks once: in the slice with the largest piece of error (missing or surplus pixels that hang together
in the slice), at the pixel of that piece farthest from its outline; "include" in missing, "exclude" in surplus pixels.
Volumes are clicked in their own slices, then the correction is spread. Dice is that of the volume, or of the picture.
"Clicks for .90" is the first round from which on Dice was .90 or more, 10 + 1 where it never was. No click is repeated,
a segment without error is finished.

Others get the same user: `boxes` draws the box of the true outline in the slice with the largest piece of error, with
5 % margin, and LiteMedSAM fills it; `walker` is scikit-image's random walker in the slice, seeded with the clicks, the
mask eroded by 3 pixels and what is farther than 12 pixels from it; `flood` adds or removes what scikit-image floods
from the click with a tolerance of a tenth of the grey levels. `perfect` makes the whole slice right with each click and
no other: what clicks can give at most where the rest of the volume doesn't follow.

Confirmed slices. The user draws the truth in three slices of a heart, at 1/6, 1/2 and 5/6 of the structure's extent, or
in every fifth slice, and confirms them; then the session spreads, from the text mask and from nothing. Dice is of the
remaining slices that hold the structure, together. `interpolation` blends signed distances between them and copies the
outermost two as far as the structure goes, which only the truth knows; `copy` copies the nearest.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from skimage.segmentation import flood, random_walker

from MedZeroSegLib.assembly import shape_between
from MedZeroSegLib.editing import EditingSession
from MedZeroSegLib.editing_slice import off_canvas, on_canvas
from MedZeroSegLib.evaluation.manifest import Case, read_manifest
from MedZeroSegLib.mask_decoder.lite_medsam import IMAGE_SIZE
from MedZeroSegLib.pipeline import segment
from MedZeroSegLib.presets import load_engine
from MedZeroSegLib.prompts import box_around
from MedZeroSegLib.training.simulated_hints import click
from MedZeroSegLib.volume import Volume

SOURCES = ("acdc_cardiac_mr", "msd_hippocampus_mr", "btcv_abdomen_ct", "sunnybrook_cardiac_mr")
PRESETS = {"acdc_cardiac_mr": "lite-research"}  # saw other patients of it; lite, the others', never saw the source
ROUNDS = (0, 1, 3, 5, 10)
GOOD = 0.9
BOOTSTRAPS = 2000
WALKER_ERODED, WALKER_FAR, WALKER_BETA = 3, 12, 300
FLOOD_TOLERANCE = 25


@dataclass
class Task:
    """One segment to be corrected; masks bool [k, j, i]."""

    case: Case
    name: str
    volume: Volume
    truth: np.ndarray
    start: np.ndarray


def dice(first: np.ndarray, second: np.ndarray) -> float:
    total = int(first.sum()) + int(second.sum())
    return 2 * int((first & second).sum()) / total if total else 1.0


def tasks(cases: list[Case], source: str, count: int, preset: str) -> Iterator[Task]:
    """Segments of a source, one structure of each image in turn."""
    chosen = [case for case in cases if case.source == source]
    chosen = [chosen[int(n)] for n in np.linspace(0, len(chosen) - 1, min(count, len(chosen))).round()]
    for number in range(count):
        case = chosen[number % len(chosen)]
        volume, labels = case.read()
        present = [value for value in sorted(case.labels) if (labels == value).any()]
        value = present[(number + number // len(chosen)) % len(present)]
        name = case.labels[value]
        if source == "msd_hippocampus_mr":  # its two parts meet at a plane that no image shows
            name, truth = "hippocampus", labels > 0
        else:
            truth = labels == value
        yield Task(case, name, volume, truth, np.array(segment(volume, [name], preset=preset).segments[0].mask))


class Ours:
    """The session, spread after each click where the image has depth."""

    def __init__(self, task: Task, preset: str, spread: bool = True) -> None:
        self.session = EditingSession(task.volume, load_engine(preset), task.start, name=task.name)
        self.spread = spread and task.volume.dimension == 3 and task.volume.shape[0] > 1
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.sizes: list[int] = []

    def slices(self, mask: np.ndarray) -> np.ndarray:
        return self.session.frame.forward(mask)

    @property
    def mask(self) -> np.ndarray:
        return self.session.drawing.mask

    def click(self, n: int, row: int, column: int, inside: bool) -> None:
        session = self.session
        session.embeddings.at(n)  # cached embeddings: an unseen slice costs its encoding once
        point = point_of(session, n, row, column)
        started = time.perf_counter()
        (session.include if inside else session.exclude)(point)
        self.seconds["click"].append(time.perf_counter() - started)
        if self.spread:
            started = time.perf_counter()
            walked = []
            session.spread(lambda *_, **values: walked.append(values))
            self.seconds["spread"].append(time.perf_counter() - started)
            self.sizes.append(len(walked))


def point_of(session: EditingSession, n: int, row: int, column: int) -> np.ndarray:
    """The position (i, j, k) of a pixel of a canonical slice."""
    box = session.grid.extent(np.array([n, row, column]), np.array([n, row, column]))
    return np.array([[box[0], box[2], box[4]]])


class Slicewise(Ours):
    """Another way to correct, slice by slice, on the same embeddings."""

    def __init__(self, task: Task, preset: str) -> None:
        super().__init__(task, preset, spread=False)
        self.truth = self.slices(task.truth)
        self.clicks: dict[int, list[tuple[int, int, bool]]] = defaultdict(list)

    def click(self, n: int, row: int, column: int, inside: bool) -> None:
        session = self.session
        self.clicks[n].append((row, column, inside))
        before = on_canvas(session.embeddings.canvas, self.mask[n])
        logits = self.answer(n, before)
        self.mask[n] = off_canvas(session.embeddings.canvas, logits.astype(np.float32), before, self.mask[n])

    def spots(self, n: int) -> list[tuple[int, int, bool]]:
        canvas = self.session.embeddings.canvas
        scale = canvas.rows / canvas.height, canvas.columns / canvas.width
        return [(int((r + 0.5) * scale[0]), int((c + 0.5) * scale[1]), inside) for r, c, inside in self.clicks[n]]

    def answer(self, n: int, before: np.ndarray) -> np.ndarray:
        raise NotImplementedError


class Boxes(Slicewise):
    def answer(self, n: int, before: np.ndarray) -> np.ndarray:
        truth = on_canvas(self.session.embeddings.canvas, self.truth[n])
        if not truth.any():
            return np.where(truth, 1.0, -1.0)
        box = torch.tensor([box_around(truth, IMAGE_SIZE)], dtype=torch.float32)
        coarse = torch.from_numpy(self.session.embeddings.at(n).coarse)[None]
        return self.session.decoder.decode(coarse, box, None)[0][0, 0].numpy()


class Walker(Slicewise):
    def answer(self, n: int, before: np.ndarray) -> np.ndarray:
        seeds = np.zeros(before.shape, int)
        seeds[ndimage.binary_erosion(before, iterations=WALKER_ERODED)] = 1
        near = before.copy()
        for row, column, _ in self.spots(n):
            near[row, column] = True
        seeds[ndimage.distance_transform_edt(~near) > WALKER_FAR] = 2
        for row, column, inside in self.spots(n):
            seeds[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2] = 1 if inside else 2
        if not (seeds == 1).any() or not (seeds == 2).any():
            return np.where(before, 1.0, -1.0)
        picture = self.session.embeddings.at(n).picture / 255
        open_rows, open_columns = np.nonzero(seeds != 2)
        part = (
            slice(max(0, open_rows.min() - 2), open_rows.max() + 3),
            slice(max(0, open_columns.min() - 2), open_columns.max() + 3),
        )
        labels = np.full(before.shape, 2)
        labels[part] = random_walker(picture[part], seeds[part], beta=WALKER_BETA, mode="cg_j")
        return np.where(labels == 1, 1.0, -1.0)


class Flood(Slicewise):
    def answer(self, n: int, before: np.ndarray) -> np.ndarray:
        row, column, inside = self.spots(n)[-1]
        picture = self.session.embeddings.at(n).picture.astype(int)
        region = flood(picture, (row, column), tolerance=FLOOD_TOLERANCE)
        return np.where(before | region if inside else before & ~region, 1.0, -1.0)


class Perfect(Slicewise):
    def click(self, n: int, row: int, column: int, inside: bool) -> None:
        self.mask[n] = self.truth[n]


WAYS: dict[str, Callable[[Task, str], Ours]] = {
    "ours": Ours, "boxes": Boxes, "walker": Walker, "flood": Flood, "perfect": Perfect
}  # fmt: skip


def largest_error(mask: np.ndarray, truth: np.ndarray) -> tuple[int, int, int, bool] | None:
    """Slice, row, column and side of the next click; masks bool [n, h, w]."""
    best, place = 0, None
    for n in np.flatnonzero((mask != truth).any(axis=(1, 2))):
        for error in (truth[n] & ~mask[n], mask[n] & ~truth[n]):
            labels, _ = ndimage.label(error)
            size = int(np.bincount(labels.ravel())[1:].max(initial=0))
            if size > best:
                best, place = size, int(n)
    if place is None:
        return None
    found = click(mask[place], truth[place], None)
    return (place, *found) if found else None


def correct(way: Ours, truth: np.ndarray, clicks: int) -> list[float]:
    """Dice before the first click and after each."""
    truth = way.slices(truth)
    scores = [dice(way.mask, truth)]
    for _ in range(clicks):
        place = largest_error(way.mask, truth)
        if place is not None:
            way.click(*place)
        scores.append(dice(way.mask, truth))
    return scores


def clicks_needed(scores: list[float]) -> int:
    """The first round from which on the mask was good; one more than there were where it never was."""
    bad = [round_ for round_, score in enumerate(scores) if score < GOOD]
    return bad[-1] + 1 if bad else 0


def confirmed_slices(task: Task, preset: str, every: int | None, from_nothing: bool) -> dict[str, float] | None:
    """Dice of the slices that were not confirmed, for the session and for what needs no model."""
    start = np.zeros_like(task.start) if from_nothing else task.start
    session = EditingSession(task.volume, load_engine(preset), start, name=task.name)
    truth = session.frame.forward(task.truth)
    holds = np.flatnonzero(truth.any(axis=(1, 2)))
    if len(holds) < 5:
        return None
    places = (1 / 6, 1 / 2, 5 / 6)
    chosen = [int(holds[int(p * len(holds))]) for p in places] if every is None else list(holds[every // 2 :: every])
    for n in map(int, chosen):
        now = session.frame.inverse(session.drawing.mask).copy()
        session.frame.forward(now)[n] = truth[n]
        session.redraw(now)
        session.confirm_slice(session.grid.canonical_slice(n))
    session.spread()
    rest = [int(n) for n in holds if n not in chosen]
    guesses = {"ours": session.drawing.mask, "text mask": session.frame.forward(start)}
    for way in ("interpolation", "copy"):
        guesses[way] = np.zeros_like(truth)
        for n in rest:
            guesses[way][n] = between(truth, chosen, n, way)
    return {way: dice(mask[rest], truth[rest]) for way, mask in guesses.items()}


def between(truth: np.ndarray, chosen: list[int], n: int, way: str) -> np.ndarray:
    low = max((c for c in chosen if c < n), default=None)
    high = min((c for c in chosen if c > n), default=None)
    if way == "copy" or low is None or high is None:
        return truth[min(chosen, key=lambda c: abs(c - n))]
    return shape_between(truth[low], truth[high], (n - low) / (high - low)) >= 0


def row(label: str, scores: list[list[float]], seconds: str = "") -> str:
    values = np.array(scores)
    shown = " ".join(f"{values[:, r].mean():6.3f}" for r in ROUNDS if r < values.shape[1])
    needed = np.mean([clicks_needed(one) for one in scores])
    steps = np.diff(values, axis=1)
    worst = steps.mean(0).min()
    return f"{label:34s} n={len(scores):2d} {shown}   {needed:5.1f}   {worst:+.3f}   {seconds}"


def gains(scores: list[list[float]]) -> str:
    """What one and three clicks gain, with 95 % bootstrap intervals over segments."""
    values, rng = np.array(scores), np.random.default_rng(0)
    drawn = rng.integers(len(values), size=(BOOTSTRAPS, len(values)))
    said = []
    for clicks in (1, 3):
        gained = values[:, min(clicks, values.shape[1] - 1)] - values[:, 0]
        low, high = np.percentile(gained[drawn].mean(1), (2.5, 97.5))
        said.append(f"{clicks} click{'s' if clicks > 1 else ''} {gained.mean():+.3f} [{low:+.3f}, {high:+.3f}]")
    return ", ".join(said)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--split", default="val")
    parser.add_argument("--segments", type=int, default=10)
    parser.add_argument("--clicks", type=int, default=10)
    parser.add_argument("--sources", nargs="+", default=SOURCES)
    parser.add_argument("--ways", nargs="+", default=list(WAYS))
    arguments = parser.parse_args()
    cases = read_manifest(arguments.manifest, arguments.split)
    print(f"{'source, way':34s}      " + " ".join(f"{r:6d}" for r in ROUNDS) + "   for .90  worst mean step")
    everything: list[list[float]] = []
    clicks: list[float] = []
    spreads: list[tuple[int, float]] = []
    for source in arguments.sources:
        preset = PRESETS.get(source, "lite")
        chosen = list(tasks(cases, source, arguments.segments, preset))
        for way in arguments.ways:
            tried = [(task, WAYS[way](task, preset)) for task in chosen]
            scores = [correct(one, task.truth, arguments.clicks) for task, one in tried]
            print(row(f"{source}, {way}", scores), flush=True)
            if way == "ours":
                everything += scores
                for _, one in tried:
                    clicks += one.seconds["click"]
                    spreads += zip(one.sizes, one.seconds["spread"], strict=True)
        if "ours" in arguments.ways and chosen[0].volume.dimension == 3 and chosen[0].volume.shape[0] > 1:
            for every, nothing in ((None, False), (None, True), (5, False), (5, True)):
                results: dict[str, list[dict[str, float]]] = defaultdict(list)
                for task in chosen:
                    if (one := confirmed_slices(task, preset, every, nothing)) is not None:
                        results[task.name].append(one)
                for name, ones in results.items():
                    means = "  ".join(f"{way} {np.mean([one[way] for one in ones]):.3f}" for way in ones[0])
                    slices = "three slices" if every is None else "every fifth"
                    print(f"  {slices}, from {'nothing' if nothing else 'text'}, {name}, n={len(ones)}: {means}")
    if not clicks:
        return
    low = [scores for scores in everything if scores[0] < 0.85]
    print(row("all, ours", everything))
    if low:
        print(row("starting below .85, ours", low))
        print(f"  gained: {gains(low)}")
    print(f"a click: median {np.median(clicks) * 1e3:.0f} ms, 90 % within {np.percentile(clicks, 90) * 1e3:.0f} ms")
    if spreads:
        slowest = max(spreads)
        a_slice = sum(s for _, s in spreads) / max(1, sum(n for n, _ in spreads))
        print(f"a spread: {a_slice * 1e3:.0f} ms a slice and direction, longest {slowest[1]:.2f} s for {slowest[0]}")


if __name__ == "__main__":
    main()
