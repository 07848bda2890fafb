"""Which parts of the body a scan cannot show, from cheap evidence: the outline of the body across the patient's length,
lungs in CT, and what DICOM says. Only what is certain in usual scans is told; the rest of the body may be there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from MedZeroSegLib.vocabulary import Structure

SECTIONS_MOST, PIXELS_MOST = 32, 128  # cross-sections that are looked at, and pixels along each side of one
OBLIQUE_MAX_DEGREES = 30.0  # of the section's normal from the patient's length; further off, outlines say little
CT_BODY_MIN, CT_LUNG = -300.0, (-950.0, -600.0)  # HU; gas in the bowel lies below the lungs' range
MR_BODY_SHARE = 0.1  # of the 99th percentile
SMALLEST_BODY_MM = 60.0  # width of a cross-section that tells anything
HEAD_WIDEST_MM = 260.0  # of a cross-section; no head is as wide
# A head in its largest cross-section: clear of the image's edges, longer from front to back than wide. Trunks are wider
# than deep at any age, and a circular field of view is round.
HEAD_WIDTH_MM, HEAD_LENGTH_MM, HEAD_RATIO_MIN, HEAD_MARGIN = (100.0, 195.0), (130.0, 250.0), 1.08, 0.01
HEAD_ONLY_MM = 200.0  # along the patient; a longer scan of a head may reach the chest's first structures
LUNG_SHARE, NO_LUNG_SHARE = 0.08, 0.01  # of the body's cross-section
LUNGS_TO_PELVIS_MM = 60.0  # from the lowest clear section of the lungs to where a pelvis may begin, at the least

HEAD_OR_LIMB, TOO_WIDE, ENDS_AT_LUNGS, NO_LUNGS, BODY_PART = "head-or-limb", "too-wide", "at-lungs", "no-lungs", "dicom"
LUNG = "lung"
TRUNK = ("heart", "abdomen", "pelvis", "breast")
# Body parts as DICOM names them (PS3.16 annex L) whose scans end where the part does. Volumes of chest and abdomen
# often show more than the name says.
LIMBS = ("KNEE", "HAND", "FOOT", "ANKLE", "WRIST", "ELBOW", "LEG", "ARM", "EXTREMITY", "FOREARM", "FINGER", "TOE")
HEADS = ("HEAD", "BRAIN", "SKULL")
OF_HEAD = (*TRUNK, "limb")
OF_LIMB = (*TRUNK, "head", "neck", "chest", "spine")
OF_CHEST_PICTURE = ("head", "pelvis")


@dataclass(frozen=True)
class FieldOfView:
    """What lies outside a scan: regions of `vocabulary.REGIONS`, and "lung", each with one of the reasons above."""

    outside: tuple[tuple[str, str], ...] = ()

    def reason(self, structure: Structure) -> str:
        """Why a structure cannot be in the scan; empty where it may be."""
        names = [structure.region]
        if LUNG in (structure.name, *structure.parents):
            names.append(LUNG)
        return next((reason for name, reason in self.outside if name in names), "")


def field_of_view(
    voxels: np.ndarray,
    ijk_to_lps: np.ndarray,
    modality: str | None,
    dimension: int,
    calibrated: bool,
    body_part: str = "",
) -> FieldOfView:
    """Look at an image.

    Parameters
    ----------
    voxels : [k, j, i].
    ijk_to_lps : [4, 4], mm.
    body_part : as DICOM's Body Part Examined (0018,0015) says.
    """
    outside = _outside_of_part(body_part.strip().upper(), dimension)
    if dimension == 3 and calibrated and modality in ("CT", "MR") and min(voxels.shape) > 1:
        outside |= _outside_of_outline(voxels, np.asarray(ijk_to_lps), modality)
    return FieldOfView(tuple(sorted(outside.items())))


def _outside_of_part(part: str, dimension: int) -> dict[str, str]:
    if part in HEADS:
        regions: tuple[str, ...] = OF_HEAD
    elif part in LIMBS:
        regions = OF_LIMB
    else:
        regions = OF_CHEST_PICTURE if part in ("CHEST", "THORAX") and dimension == 2 else ()
    return dict.fromkeys(regions, BODY_PART)


@dataclass(frozen=True)
class _Section:
    """The largest connected piece of the body across the patient's length: widths in mm, whether it is clear of the
    edges, whether the slice holds air in HU, the share that looks like lung, and where it lies along the patient (mm,
    grows upwards)."""

    across: float
    front_to_back: float
    area: float
    clear: bool
    air: bool
    lung: float
    height: float


def _outside_of_outline(voxels: np.ndarray, matrix: np.ndarray, modality: str) -> dict[str, str]:
    sections = _sections(voxels, matrix, modality)
    if not sections:
        return {}
    outside: dict[str, str] = {}
    length = max(s.height for s in sections) - min(s.height for s in sections)
    if all(section.across >= HEAD_WIDEST_MM for section in sections):
        outside["head"] = TOO_WIDE
    if _is_head(sections):
        regions = (*TRUNK, LUNG) if length > HEAD_ONLY_MM else (*TRUNK, LUNG, "chest")
        outside |= dict.fromkeys(regions, HEAD_OR_LIMB)
    if modality == "CT" and any(section.air for section in sections):
        outside |= _outside_of_lungs(sections)
    return outside


def _is_head(sections: list[_Section]) -> bool:
    largest = max(sections, key=lambda section: section.area)
    narrow = all(section.across < HEAD_WIDEST_MM for section in sections)
    width, depth = largest.across, largest.front_to_back
    of_size = HEAD_WIDTH_MM[0] <= width <= HEAD_WIDTH_MM[1] and HEAD_LENGTH_MM[0] <= depth <= HEAD_LENGTH_MM[1]
    return narrow and largest.clear and of_size and depth >= HEAD_RATIO_MIN * width


def _outside_of_lungs(sections: list[_Section]) -> dict[str, str]:
    lungs = [section.height for section in sections if section.lung >= LUNG_SHARE]
    if lungs and min(lungs) - min(section.height for section in sections) < LUNGS_TO_PELVIS_MM:
        return {"pelvis": ENDS_AT_LUNGS}
    if all(section.lung < NO_LUNG_SHARE for section in sections):
        return {LUNG: NO_LUNGS, "heart": NO_LUNGS}
    return {}


def _sections(voxels: np.ndarray, matrix: np.ndarray, modality: str) -> list[_Section]:
    """Sections across the patient's length in which there is a body; none where the grid lies too obliquely."""
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    directions = matrix[:3, :3] / spacing  # columns are i, j, k in LPS
    axes = [int(np.argmax(np.abs(directions[row]))) for row in range(3)]  # index axis along L, P, S
    steepest = np.degrees(np.arccos(np.clip(np.abs(directions[[0, 1, 2], axes]), 0, 1))).max()
    if sorted(axes) != [0, 1, 2] or steepest > OBLIQUE_MAX_DEGREES:
        return []
    stack = np.transpose(voxels, [2 - axes[2], 2 - axes[1], 2 - axes[0]])  # [S, P, L]
    mm = spacing[[axes[2], axes[1], axes[0]]]
    rows = np.unique(np.linspace(0, len(stack) - 1, SECTIONS_MOST).round().astype(int))
    steps = [max(1, -(-size // PIXELS_MOST)) for size in stack.shape[1:]]
    stack = stack[:, :: steps[0], :: steps[1]]
    pixel = (mm[1] * steps[0], mm[2] * steps[1])
    upwards = mm[0] * np.sign(directions[2, axes[2]])
    body_min = CT_BODY_MIN if modality == "CT" else MR_BODY_SHARE * float(np.percentile(stack[rows], 99))
    found = (_section(stack[row], body_min, pixel, float(row * upwards)) for row in rows)
    return [section for section in found if section is not None]


def _section(grey: np.ndarray, body_min: float, pixel: tuple[float, float], height: float) -> _Section | None:
    from scipy import ndimage

    labels, count = ndimage.label(grey > body_min)
    if not count:
        return None
    body = ndimage.binary_fill_holes(labels == 1 + np.argmax(np.bincount(labels.ravel())[1:]))
    down, along = np.flatnonzero(body.any(1)), np.flatnonzero(body.any(0))
    depth, across = (last - first + 1 for first, last in ((down[0], down[-1]), (along[0], along[-1])))
    if across * pixel[1] < SMALLEST_BODY_MM:
        return None
    margins = (down[0], grey.shape[0] - 1 - down[-1], along[0], grey.shape[1] - 1 - along[-1])
    inside = ndimage.binary_erosion(body, iterations=2)
    lung = (grey > CT_LUNG[0]) & (grey < CT_LUNG[1]) & inside
    return _Section(
        across=float(across * pixel[1]),
        front_to_back=float(depth * pixel[0]),
        area=float(body.sum()),
        clear=min(margins) >= max(1, HEAD_MARGIN * max(grey.shape)),
        air=bool(grey.min() < CT_LUNG[0]),
        lung=float(lung.sum() / max(1, body.sum())),
        height=height,
    )
