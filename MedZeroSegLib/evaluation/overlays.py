"""Overlay pictures: one slice of an image with its segments, beside the plain picture or the reference outlines."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from MedZeroSegLib.errors import InstallationError
from MedZeroSegLib.intensity import picture
from MedZeroSegLib.segment import Segmentation
from MedZeroSegLib.slices import slice_frame
from MedZeroSegLib.volume import Volume
from MedZeroSegLib.writers import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL_INCHES = 6.0
DOTS_PER_INCH = 100
FILL = 0.35  # opacity of a mask
REFERENCE_COLOR = "white"
HUE_STEP = 0.618034  # of the circle: the golden ratio keeps any number of hues apart

Color = tuple[float, float, float]


@dataclass(frozen=True)
class Layer:
    """One structure to draw.

    Attributes
    ----------
    label
        Its line in the legend.
    predicted, reference
        bool [k, j, i]; reference None where there is none.
    filled
        False for a whole whose parts are drawn as well: a line around the mask, and no reference.
    """

    label: str
    predicted: np.ndarray
    reference: np.ndarray | None = None
    filled: bool = True


def write_overlay(segmentation: Segmentation, path: str | Path, slice_index: int | None = None) -> Path:
    """PNG of one canonical slice with a segmentation's segments, the plain slice beside it.

    Parameters
    ----------
    slice_index
        Canonical slice; default: the one in which the segments are largest.

    Raises
    ------
    InputError, InstallationError
        When the picture can't be written, or matplotlib is missing.
    """
    layers = [
        Layer(
            f"{segment.name}, score {segment.score:.2f}" if segment.found else f"{segment.name}: not found",
            segment.mask,
        )
        for segment in segmentation.segments
    ]
    return write_layers(segmentation.volume, layers, path, f"preset {segmentation.preset}", slice_index)


def write_layers(
    volume: Volume, layers: Sequence[Layer], path: str | Path, title: str, slice_index: int | None = None
) -> Path:
    """PNG of one canonical slice: at the left the slice with the reference outlines, at the right the masks, filled,
    with the reference in dashed lines. Parameters and errors as ``write_overlay``."""
    try:
        from matplotlib.figure import Figure
    except ImportError as problem:
        raise InstallationError("Pictures need matplotlib; install it with `pip install matplotlib`.") from problem
    path = Path(path)
    frame = slice_frame(volume)
    index = _largest_slice(volume, layers) if slice_index is None else slice_index
    shown = frame.forward(picture(volume))[index]
    colors = [_contrasting_color(number) for number in range(len(layers))]
    figure = Figure(figsize=(2 * PANEL_INCHES, PANEL_INCHES + 0.6), dpi=DOTS_PER_INCH, layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes in (left, right):
        axes.imshow(shown, cmap="gray", vmin=0, vmax=255, aspect=frame.spacing[1] / frame.spacing[2])
        axes.axis("off")
    for layer, color in zip(layers, colors, strict=True):
        predicted = frame.forward(layer.predicted)[index]
        if layer.reference is not None and layer.filled:
            reference = frame.forward(layer.reference)[index]
            outline(left, reference, color, "solid")
            outline(right, reference, REFERENCE_COLOR, "dashed")
        if layer.filled:
            fill(right, predicted, color)
        outline(right, predicted, color, "solid")
    _legend(figure, [layer.label for layer in layers], colors)
    place = f", slice {index + 1} of {frame.forward(volume.voxels).shape[0]}" if volume.dimension == 3 else ""
    figure.suptitle(title + place)
    with replacing(path) as file:
        figure.savefig(file, format="png")
    return path


def _contrasting_color(number: int) -> Color:
    """Color of the n-th of any number of structures; anatomical colors are often alike."""
    return colorsys.hsv_to_rgb(number * HUE_STEP % 1, 0.8 - 0.25 * (number % 2), 0.95)


def _largest_slice(volume: Volume, layers: Sequence[Layer]) -> int:
    """The slice with the most reference, or where there is none the most mask; else the middle one."""
    frame = slice_frame(volume)
    count = frame.forward(volume.voxels).shape[0]
    references = [layer.reference for layer in layers if layer.reference is not None and layer.reference.any()]
    masks = references or [layer.predicted for layer in layers if layer.predicted.any()]
    if not masks:
        return count // 2
    return int(np.argmax(sum(frame.forward(mask).sum(axis=(1, 2)) for mask in masks)))


def fill(axes: Axes, mask: np.ndarray, color: Color) -> None:
    tint = np.zeros((*mask.shape, 4))
    tint[mask] = (*color, FILL)
    axes.imshow(tint, aspect=axes.get_aspect(), interpolation="nearest")


def outline(axes: Axes, mask: np.ndarray, color: Color | str, style: str) -> None:
    """Along the pixels' middle; padded, so that a mask at the border is closed."""
    if mask.any():
        height, width = mask.shape
        axes.contour(
            np.arange(-1, width + 1),
            np.arange(-1, height + 1),
            np.pad(mask.astype(float), 1),
            levels=[0.5],
            colors=[color],
            linewidths=1.2,
            linestyles=style,
        )
        axes.set_xlim(-0.5, width - 0.5)
        axes.set_ylim(height - 0.5, -0.5)


def _legend(figure: Figure, labels: Sequence[str], colors: Sequence[Color]) -> None:
    from matplotlib.patches import Patch

    if labels:
        patches = [Patch(color=color, label=label) for label, color in zip(labels, colors, strict=True)]
        figure.legend(handles=patches, loc="outside lower center", ncols=min(4, len(patches)), fontsize="small")
