"""What a run hands over: one Segment for each name asked for, and the Segmentation that holds them with
everything needed to tell later how they were made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from .confidence import Confidence
    from .saliency_map import SaliencyMap
    from .vocabulary import Code
    from .volume import Volume


@dataclass(frozen=True, eq=False, kw_only=True)
class Segment:
    """One structure on the volume's own grid.

    Attributes
    ----------
    typed : str
        The text as the user typed it.
    name : str
        Canonical name with side ("left kidney"), or the typed text where it is unknown.
    found : bool
        False means: not found in this image; the mask is empty then.
    score : float
        Evidence for the structure, 0..1.
    mask : numpy.ndarray
        bool [k, j, i], read-only.
    code, category, modifier : Code or None
        SNOMED CT type, category and side, as DICOM and Slicer keep them.
    color : tuple of int
        Red, green, blue, 0..255.
    slices : int
        Number of canonical slices that hold the structure.
    warnings : tuple of str
        Sentences for the user.
    provenance : dict
        How the segment was made; JSON-able.
    confidence : Confidence or None
        How far it can be trusted; None where nothing was found or nothing is known of it.
    saliency : SaliencyMap or None
        What the text alone found; None where a side was asked for, which texts don't tell.

    Raises
    ------
    ValueError
        When the mask is not bool [k, j, i], the score leaves 0..1, or an absent structure has voxels.
    """

    typed: str
    name: str
    found: bool
    score: float
    mask: np.ndarray
    code: Code | None
    category: Code | None
    modifier: Code | None
    color: tuple[int, int, int]
    slices: int
    warnings: tuple[str, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)
    confidence: Confidence | None = None
    saliency: SaliencyMap | None = None

    def __post_init__(self) -> None:
        if self.mask.ndim != 3 or self.mask.dtype != np.bool_:
            raise ValueError(f"the mask of {self.name!r} is {self.mask.dtype} {self.mask.shape}, not bool [k, j, i]")
        if not 0.0 <= self.score <= 1.0:
            raise ValueError(f"the score of {self.name!r} is {self.score}, outside 0..1")
        if not self.found and self.mask.any():
            raise ValueError(f"{self.name!r} is marked as not found and yet has voxels")
        mask = self.mask.view()
        mask.flags.writeable = False
        object.__setattr__(self, "mask", mask)


@dataclass(frozen=True, eq=False, kw_only=True)
class Segmentation:
    """The segments of one volume, in the order in which they were asked for, and how they came about.

    Attributes
    ----------
    weights : tuple of dict
        One for each weight file used: "name", "file", "sha256", "licence".
    seconds : dict
        Seconds spent in each stage.
    settings : dict
        The preset's settings; JSON-able.

    Raises
    ------
    ValueError
        When a mask is not on the volume's grid.
    """

    volume: Volume
    segments: tuple[Segment, ...]
    preset: str
    weights: tuple[dict[str, str], ...]
    device: str
    seconds: dict[str, float]
    settings: dict[str, Any]
    version: str
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for segment in self.segments:
            if segment.mask.shape != self.volume.voxels.shape:
                raise ValueError(
                    f"the mask of {segment.name!r} is {segment.mask.shape}, the volume {self.volume.voxels.shape}"
                )

    def volume_ml(self, segment: Segment) -> float | None:
        """Volume in ml; None where the spacing is not known in mm, or the image is a picture without depth."""
        if not self.volume.calibrated or self.volume.dimension == 2:
            return None
        return float(np.count_nonzero(segment.mask) * np.prod(self.volume.spacing) / 1000.0)

    def area_mm2(self, segment: Segment) -> float | None:
        """Area in mm² in a picture; None where the spacing is not known in mm, or the image has depth."""
        if not self.volume.calibrated or self.volume.dimension == 3:
            return None
        return float(np.count_nonzero(segment.mask) * np.prod(self.volume.spacing[:2]))
