"""The network of a student: MONAI's DynUNet on slices or on stacks of slices, as its card describes it.

Isensee et al., "nnU-Net", Nature Methods 18:203, 2021, has the rules: as many halvings as the patch allows, and none
across slices, nor kernels that look there, while these lie further apart than the pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from MedZeroSegLib.errors import InstallationError

FILTERS = (16, 32, 64, 128, 160)  # channels of each level
PLANE_PATCH, STACK_PATCH = (160, 160), (16, 128, 128)  # pixels of the canvas; slices × pixels
PLANE_RATIO = 3.0  # slice distance over pixel spacing from which slices are looked at one by one, as in nnU-Net
ALIKE_RATIO = 2.0  # up to which directions are treated alike


@dataclass(frozen=True)
class Architecture:
    """What a network is built from; all of it stands in the card.

    Attributes
    ----------
    dimension
        2: slices one by one; 3: stacks of slices.
    classes
        Structures, without the background.
    strides
        Of each level, the first 1, for each axis.
    filters
        Channels of each level.
    patch
        What it is shown at a time, when it learns and when it is used: its norms depend on how much that is.
    """

    dimension: int
    classes: int
    strides: tuple[tuple[int, ...], ...]
    filters: tuple[int, ...]
    patch: tuple[int, ...]

    @property
    def kernels(self) -> tuple[tuple[int, ...], ...]:
        """1 along an axis that isn't halved yet and won't be on the next level, else 3."""
        sizes = []
        for level in range(len(self.strides)):
            later = self.strides[level + 1] if level + 1 < len(self.strides) else self.strides[level]
            reached = [max(stride[axis] for stride in self.strides[: level + 1]) for axis in range(self.dimension)]
            sizes.append(tuple(3 if max(r, n) > 1 else 1 for r, n in zip(reached, later, strict=True)))
        return tuple(sizes)


def architecture_for(classes: int, dimension: int, distance_ratio: float) -> Architecture:
    """The architecture for slices that lie ``distance_ratio`` times as far apart as pixels."""
    if dimension == 2:
        return Architecture(2, classes, ((1, 1), *[(2, 2)] * (len(FILTERS) - 1)), FILTERS, PLANE_PATCH)
    strides, ratio = [(1, 1, 1)], distance_ratio
    for _ in FILTERS[1:]:
        across = 2 if ratio < ALIKE_RATIO and sum(stride[0] == 2 for stride in strides) < 3 else 1
        ratio *= across / 2
        strides.append((across, 2, 2))
    return Architecture(3, classes, tuple(strides), FILTERS, STACK_PATCH)


def architecture_of(card: Mapping[str, Any]) -> Architecture:
    """Back from JSON; raises TypeError or KeyError for something else."""
    strides = tuple(tuple(int(factor) for factor in stride) for stride in card["strides"])
    filters, patch = (tuple(int(number) for number in card[key]) for key in ("filters", "patch"))
    return Architecture(int(card["dimension"]), int(card["classes"]), strides, filters, patch)


def build_network(architecture: Architecture) -> nn.Module:
    """The network with random weights: [n, 1, (d,) h, w] → logits [n, 1 + classes, (d,) h, w], the background first.

    Raises
    ------
    InstallationError
        Without MONAI.
    """
    try:
        from monai.networks.nets import DynUNet
    except ImportError as problem:
        raise InstallationError("A student needs MONAI; install it with `pip install 'medzeroseg[weak]'`.") from problem
    return DynUNet(
        spatial_dims=architecture.dimension,
        in_channels=1,
        out_channels=1 + architecture.classes,
        kernel_size=architecture.kernels,
        strides=architecture.strides,
        upsample_kernel_size=architecture.strides[1:],
        filters=architecture.filters,
    )


def normalized(pictures: Tensor) -> Tensor:
    """Grey levels 0..1 on the scale that the network was trained on."""
    return (pictures - 0.25) / 0.25
