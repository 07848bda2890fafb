"""One picture a case to judge its masks by: slices over the whole extent and the most doubtful ones, with outlines.

Slices are shown as radiologists look at them, in their true proportions, with letters that say which side is which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from MedZeroSegLib.errors import InstallationError
from MedZeroSegLib.evaluation.overlays import Color, fill, outline
from MedZeroSegLib.intensity import picture
from MedZeroSegLib.queries import resolve
from MedZeroSegLib.segment import Segment, Segmentation
from MedZeroSegLib.slices import SliceFrame, slice_frame
from MedZeroSegLib.volume import Volume
from MedZeroSegLib.writers import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Style = Literal["solid", "dashed", "dotted"]

EVEN_TILES, DOUBTFUL_TILES = 8, 4
DOUBTFUL_MIN = 0.3  # doubt of a slice that is worth a tile of its own
DOUBTFUL_APART = 16  # doubtful tiles lie at least the extent's 16th part apart
MARGIN = 0.2  # of the segments' height and width, shown around them
SHOWN_MIN = 0.4  # of the image's height and width; a closer look would lose the surroundings
WIDTH_TO_HEIGHT = 1.5  # of the whole mosaic, about
MOSAIC_INCHES, DOTS_PER_INCH = 12.0, 100  # width
THUMBNAIL_DOTS = 128  # of the longer side
GAP = 0.04  # inches between tiles
LINE_INCHES = 0.24  # height of a line of text
LEGEND_LINES, LEGEND_COLUMNS = 4, 3  # more segments than lines are told of in columns
SECOND_LETTER_MIN = 0.35  # direction cosine from which an oblique edge has a second letter
ALIKE = 60.0  # distance in RGB below which two colours need different lines
STYLES: tuple[Style, ...] = ("solid", "dashed", "dotted")
INK, PAPER, DOUBT_COLOR, LETTER_COLOR = "white", "black", "orange", "gold"
LETTERS = (("R", "L"), ("A", "P"), ("I", "S"))  # against and along each axis of LPS


@dataclass(frozen=True)
class Tile:
    """A canonical slice, and its doubt where it was chosen for that."""

    index: int
    doubt: float | None


@dataclass(frozen=True)
class _View:
    """What all tiles of a case share: the picture and the masks as canonical slices, cut to what is worth seeing."""

    shown: np.ndarray  # uint8 [n, h, w]
    masks: tuple[np.ndarray, ...]  # bool [n, h, w], of the segments found
    colors: tuple[Color, ...]
    styles: tuple[Style, ...]
    aspect: float  # of a pixel, height to width
    letters: tuple[str, str, str, str]  # at the left, right, top and bottom edge; empty where unknown

    @property
    def proportion(self) -> float:
        """Height to width of a tile."""
        return self.shown.shape[1] * self.aspect / self.shown.shape[2]


def write_mosaic(segmentation: Segmentation, file: Path) -> Path:
    """PNG of slices in radiological orientation with the segments' outlines, side letters and a legend.

    Slices are spread evenly over the segments' extent, or the image's where nothing was found; to them come those
    that the segments' confidence doubts most, in an orange frame.

    Raises
    ------
    InputError, InstallationError
        When the picture can't be written, or matplotlib is missing.
    """
    frame = slice_frame(segmentation.volume)
    view, tiles = _view(segmentation, frame), tiles_of(segmentation, frame)
    columns = int(np.clip(round(np.sqrt(len(tiles) * view.proportion * WIDTH_TO_HEIGHT)), 1, len(tiles)))
    rows = -(-len(tiles) // columns)
    width = (MOSAIC_INCHES - GAP * (columns - 1)) / columns
    height = width * view.proportion
    _, lines = _legend_grid(len(segmentation.segments))
    total = rows * (height + GAP) + LINE_INCHES * (lines + 1.5)
    figure = _figure(MOSAIC_INCHES, total)
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        left, bottom = column * (width + GAP), total - (row + 1) * height - row * GAP
        axes = figure.add_axes(
            (left / MOSAIC_INCHES, bottom / total, width / MOSAIC_INCHES, height / total), frameon=False
        )
        _draw(axes, view, tile.index)
        _annotate(axes, view, tile, frame, segmentation.volume)
    _write_legend(figure, segmentation, view, total)
    with replacing(file) as target:
        figure.savefig(target, format="png", facecolor=PAPER)
    return file


def write_thumbnail(segmentation: Segmentation, file: Path) -> Path:
    """Small JPEG of the slice in which the segments are largest, for the cohort's page. Errors as ``write_mosaic``."""
    view = _view(segmentation, slice_frame(segmentation.volume))
    areas = sum((mask.sum(axis=(1, 2)) for mask in view.masks), np.zeros(len(view.shown)))
    index = int(np.argmax(areas)) if view.masks else len(view.shown) // 2
    longer = THUMBNAIL_DOTS / DOTS_PER_INCH
    width, height = (longer / view.proportion, longer) if view.proportion > 1 else (longer, longer * view.proportion)
    figure = _figure(width, height)
    _draw(figure.add_axes((0, 0, 1, 1), frameon=False), view, index, filled=True)
    with replacing(file) as target:
        figure.savefig(target, format="jpeg", facecolor=PAPER, pil_kwargs={"quality": 75})
    return file


def _figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as problem:
        raise InstallationError("Pictures need matplotlib; install it with `pip install matplotlib`.") from problem
    return Figure(figsize=(width, height), dpi=DOTS_PER_INCH)


# What to show


def _view(segmentation: Segmentation, frame: SliceFrame) -> _View:
    volume = segmentation.volume
    found = [segment for segment in segmentation.segments if segment.found]
    masks = [frame.forward(segment.mask) for segment in found]
    rows, columns = _worth_seeing(masks, frame.forward(volume.voxels).shape[1:])
    return _View(
        shown=frame.forward(picture(volume, _window(found)))[:, rows, columns],
        masks=tuple(mask[:, rows, columns] for mask in masks),
        colors=tuple(_color(segment) for segment in found),
        styles=_styles(found),
        aspect=frame.spacing[1] / frame.spacing[2],
        letters=edge_letters(volume, frame),
    )


def _color(segment: Segment) -> Color:
    red, green, blue = segment.color
    return red / 255, green / 255, blue / 255


def _styles(segments: Sequence[Segment]) -> tuple[Style, ...]:
    """A line for each segment; those whose colours are alike, such as of two sides, have different ones."""
    colors = np.array([segment.color for segment in segments], float).reshape(-1, 3)
    alike = np.linalg.norm(colors[:, None] - colors[None], axis=2) < ALIKE
    return tuple(STYLES[int(alike[n, :n].sum()) % len(STYLES)] for n in range(len(segments)))


def _window(segments: Sequence[Segment]) -> tuple[float, float] | None:
    """The CT window of most of the structures."""
    known = [query.structure.window for segment in segments for query in resolve([segment.name]) if query.structure]
    return Counter(known).most_common(1)[0][0] if known else None


def _worth_seeing(masks: Sequence[np.ndarray], size: tuple[int, ...]) -> tuple[slice, slice]:
    """Rows and columns that hold the masks, with a margin; all where there are none."""
    ranges = []
    for axis, count in enumerate(size):
        hits = [np.flatnonzero(mask.any(axis=(0, 2 - axis))) for mask in masks if mask.any()]
        if not hits:
            ranges.append(slice(0, count))
            continue
        first, last = min(int(hit[0]) for hit in hits), max(int(hit[-1]) for hit in hits)
        wanted = max((last + 1 - first) * (1 + 2 * MARGIN), SHOWN_MIN * count)
        middle = (first + last + 1) / 2
        start = int(np.clip(round(middle - wanted / 2), 0, count))
        ranges.append(slice(start, int(np.clip(round(middle + wanted / 2), start + 1, count))))
    return ranges[0], ranges[1]


def tiles_of(segmentation: Segmentation, frame: SliceFrame) -> list[Tile]:
    """The slices to show, in their order."""
    count = frame.forward(segmentation.volume.voxels).shape[0]
    held = np.zeros(count, bool)
    for segment in segmentation.segments:
        held |= frame.forward(segment.mask).any(axis=(1, 2))
    places = np.flatnonzero(held) if held.any() else np.arange(count)
    first, last = int(places[0]), int(places[-1])
    doubtful = _doubtful(slice_doubts(segmentation, frame), max(1, (last - first) // DOUBTFUL_APART))
    even = np.linspace(first, last, EVEN_TILES + DOUBTFUL_TILES - len(doubtful)).round().astype(int).tolist()
    return [Tile(index, doubtful.get(index)) for index in sorted({*even, *doubtful})]


def slice_doubts(segmentation: Segmentation, frame: SliceFrame) -> np.ndarray:
    """The greatest doubt of any segment in each canonical slice, float [n]; 0 where none is known."""
    doubts = np.zeros(frame.forward(segmentation.volume.voxels).shape[0])
    for segment in segmentation.segments:
        confidence = segment.confidence
        if confidence is not None and confidence.slice_axis == frame.permutation[0]:
            along = confidence.slice_doubt[::-1] if frame.flips[0] else confidence.slice_doubt
            doubts = np.maximum(doubts, along)
    return doubts


def _doubtful(doubts: np.ndarray, apart: int) -> dict[int, float]:
    """Index → doubt of the most doubtful slices that aren't each other's neighbours."""
    chosen: dict[int, float] = {}
    for index in np.argsort(-doubts, kind="stable").tolist():
        if len(chosen) == DOUBTFUL_TILES or doubts[index] < DOUBTFUL_MIN:
            break
        if all(abs(index - other) > apart for other in chosen):
            chosen[index] = float(doubts[index])
    return chosen


def edge_letters(volume: Volume, frame: SliceFrame) -> tuple[str, str, str, str]:
    """What lies beyond the left, right, top and bottom edge of a canonical slice: R or L, A or P, I or S.

    Oblique edges have a second letter. Pictures, which have no place in the patient, have none.
    """
    if volume.dimension == 2:
        return "", "", "", ""
    directions = volume.ijk_to_lps[:3, :3] / np.array(volume.spacing)
    down, right = (directions[:, 2 - frame.permutation[axis]] * (-1 if frame.flips[axis] else 1) for axis in (1, 2))
    return _letters(-right), _letters(right), _letters(-down), _letters(down)


def _letters(direction: np.ndarray) -> str:
    strongest = np.argsort(-np.abs(direction), kind="stable")[:2]
    kept = [axis for n, axis in enumerate(strongest) if n == 0 or abs(direction[axis]) >= SECOND_LETTER_MIN]
    return "".join(LETTERS[axis][int(direction[axis] > 0)] for axis in kept)


# Drawing


def _draw(axes: Axes, view: _View, index: int, filled: bool = False) -> None:
    """One slice with the segments, which fill the axes whose size already has the slice's proportions."""
    axes.imshow(view.shown[index], cmap="gray", vmin=0, vmax=255, aspect="auto")
    for mask, color, style in zip(view.masks, view.colors, view.styles, strict=True):
        if filled:
            fill(axes, mask[index], color)
        outline(axes, mask[index], color, style)
    axes.set_xticks([])
    axes.set_yticks([])


def _annotate(axes: Axes, view: _View, tile: Tile, frame: SliceFrame, volume: Volume) -> None:
    """Number, doubt and side letters of a slice."""
    if volume.dimension == 3:
        doubt = "" if tile.doubt is None else f"\ndoubt {tile.doubt:.2f}"  # clear of the letter in the middle
        color = INK if tile.doubt is None else DOUBT_COLOR
        count = frame.forward(volume.voxels).shape[0]
        text = f"{frame.plane} {tile.index + 1} of {count}{doubt}"
        _write(axes, 0.015, 0.985, text, color, "left", "top")
    if tile.doubt is not None:
        for spine in axes.spines.values():
            spine.set(color=DOUBT_COLOR, linewidth=3)
        axes.set_frame_on(True)
    left, right, top, bottom = view.letters
    _write(axes, 0.015, 0.5, left, LETTER_COLOR, "left", "center")
    _write(axes, 0.985, 0.5, right, LETTER_COLOR, "right", "center")
    _write(axes, 0.5, 0.985, top, LETTER_COLOR, "center", "top")
    _write(axes, 0.5, 0.015, bottom, LETTER_COLOR, "center", "bottom")


def _write(axes: Axes, x: float, y: float, text: str, color: str, across: str, along: str) -> None:
    """Text at a place in the axes, with a dark rim that keeps it readable on bright images."""
    from matplotlib.patheffects import withStroke

    written = axes.text(
        x, y, text, color=color, ha=across, va=along, transform=axes.transAxes, fontsize=8, fontweight="bold"
    )
    written.set_path_effects([withStroke(linewidth=2, foreground=PAPER)])


def _write_legend(figure: Figure, segmentation: Segmentation, view: _View, total: float) -> None:
    """Names and numbers of the segments below the tiles, and a line that says what the picture is."""
    from matplotlib.lines import Line2D

    columns, lines = _legend_grid(len(segmentation.segments))
    looks = iter(zip(view.colors, view.styles, strict=True))
    for number, segment in enumerate(segmentation.segments):
        column, line = divmod(number, lines)
        x, y = column / columns, (lines - line + 0.75) * LINE_INCHES / total
        if segment.found:
            color, style = next(looks)
            figure.add_artist(Line2D([x + 0.01, x + 0.04], [y, y], color=color, linestyle=style, linewidth=3))
        figure.text(
            x + 0.05,
            y,
            _label(segment, segmentation),
            color=INK if segment.found else "silver",
            va="center",
            fontsize=9,
            parse_math=False,
        )
    made = f"{segmentation.volume.modality}, preset {segmentation.preset}, version {segmentation.version}"
    note = f"{made}. For research; to be reviewed."
    figure.text(0.01, 0.6 * LINE_INCHES / total, note, color="silver", va="center", fontsize=8)


def _legend_grid(count: int) -> tuple[int, int]:
    """Columns and lines of the legend."""
    columns = 1 if count <= LEGEND_LINES else LEGEND_COLUMNS
    return columns, -(-count // columns)


def _label(segment: Segment, segmentation: Segmentation) -> str:
    if not segment.found:
        return f"{segment.name}: not found, score {segment.score:.2f}"
    volume, area = segmentation.volume_ml(segment), segmentation.area_mm2(segment)
    size = f", {volume:.1f} ml" if volume is not None else f", {area:.0f} mm²" if area is not None else ""
    sure = "" if segment.confidence is None else f", expected Dice {segment.confidence.expected_dice:.2f}"
    return f"{segment.name}{size}, score {segment.score:.2f}{sure}"
