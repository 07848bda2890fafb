"""DICOM files and folders → voxels and geometry, by the positions of the slices.

A folder may hold several series; one is taken when it is clear which, otherwise they are listed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from MedZeroSegLib.dicom_geometry import Plane, Stack, flat_spacing, is_cine, planes_of, stack_planes
from MedZeroSegLib.dicom_pixels import dataset_start, frame_values, open_dataset, quiet_pydicom, refusing_damaged
from MedZeroSegLib.errors import InputError
from MedZeroSegLib.modality import modality_of_dicom
from MedZeroSegLib.reading import COLOUR_WARNING, Reading, choose_frame

NO_IMAGES = ("SEG", "RTSTRUCT", "RTPLAN", "RTDOSE", "SR", "PR", "KO", "REG", "DOC")  # objects about images
VOLUME_SLICES_MIN = 4  # a series of fewer slices beside a longer one is a localizer or a single picture


@dataclass(frozen=True)
class Slice:
    """One frame of one file with what is needed to sort it; pixels stay in the file."""

    path: Path
    frame: int
    plane: Plane | None
    series: str
    series_number: str
    instance: str
    size: tuple[int, int]
    localizer: bool
    modality: str | None
    thickness: float | None
    order: tuple  # sorts the slices that lie at one position: time points, echoes


def is_dicom(path: Path) -> bool:
    """Whether a path is a folder or a DICOM file, with or without preamble."""
    return path.is_dir() or dataset_start(path) is not None


def read_dicom(path: Path, frame: int | None, files: Sequence[Path] | None = None) -> Reading:
    """Read one frame of a DICOM file, or of the series in a folder; ``files`` lists those of the image, if not all.

    Raises
    ------
    InputError
        When there is no image, or not clearly one, or its slices form no regular grid.
    """
    with quiet_pydicom():  # values are parsed when they are asked for, with remarks about each
        slices, warnings = _slices_of_image(path, files)
        if _form_stack(slices):
            return _read_stack(slices, warnings, path, frame)
        return _read_unplaced(slices[0].path, warnings, path, frame)


def grid_slices(path: Path, files: Sequence[Path] | None = None) -> list[list[Slice]]:
    """For each k of the grid that ``read_dicom`` makes of a path, the slices that lie there: one, or one a frame.

    Raises
    ------
    InputError
        As ``read_dicom``.
    """
    with quiet_pydicom():
        slices, _ = _slices_of_image(path, files)
        if _form_stack(slices):
            slices, stack = _stack(slices, path)
            return [[slices[number] for number in group] for group in stack.members]
        if is_cine(open_dataset(slices[0].path, header_only=True)):
            return [slices]
        return [[piece] for piece in slices]


def _slices_of_image(path: Path, files: Sequence[Path] | None) -> tuple[list[Slice], tuple[str, ...]]:
    """The slices of the one image that a path holds, and a warning about what was left out."""
    if path.is_dir() or files is not None:
        slices, warnings = _choose_series(_slices_in_folder(path, files), path)
    else:
        slices, warnings = _slices_of(path), ()
        if not slices:
            raise InputError(_no_image(path))
        if any(piece.plane for piece in slices):
            slices, warnings = _choose_series(slices, path)
    if not _form_stack(slices) and len({piece.path for piece in slices}) > 1:
        raise InputError(
            f"'{path}' holds {len(slices)} images without a position in space, so they form no volume; "
            "give one of its files."
        )
    return slices, warnings


def _form_stack(slices: Sequence[Slice]) -> bool:
    """Whether slices have places in space, and aren't a radiograph."""
    return all(piece.plane is not None for piece in slices) and not _is_radiograph(slices)


def _is_radiograph(slices: Sequence[Slice]) -> bool:
    return len(slices) == 1 and modality_of_dicom(slices[0].modality) == "X-ray"


def _no_image(path: Path) -> str:
    header = open_dataset(path, header_only=True)
    if "DirectoryRecordSequence" in header:
        return f"'{path}' is the index of a DICOM folder; give the folder that holds the images."
    with refusing_damaged(path):
        kind = f" ({header.Modality})" if header.get("Modality") else ""
    return f"'{path}' is a DICOM file without an image{kind}; give the image it belongs to."


def _slices_in_folder(folder: Path, files: Sequence[Path] | None = None) -> list[Slice]:
    """The slices of all DICOM images in a folder and its subfolders, or of those listed, each instance once."""
    if files is None:
        files = sorted(file for file in folder.rglob("*") if file.is_file() and file.stat().st_size)
    slices: dict[tuple[str, int], Slice] = {}
    for file in files:
        if dataset_start(file) is not None:
            for piece in _slices_of(file):
                slices.setdefault((piece.instance or str(file), piece.frame), piece)
    if not slices:
        raise InputError(f"The folder '{folder}' holds no DICOM images; give an image file or another folder.")
    return list(slices.values())


def _slices_of(path: Path) -> list[Slice]:
    """One slice for each frame of a file; none when it holds no image."""
    with refusing_damaged(path):
        header = open_dataset(path, header_only=True)
        if not header.get("Rows") or not header.get("Columns") or header.get("Modality") in NO_IMAGES:
            return []
        return [
            Slice(
                path=path,
                frame=number,
                plane=plane,
                series=str(header.get("SeriesInstanceUID") or ""),
                series_number=str(header.get("SeriesNumber") or "?"),
                instance=str(header.get("SOPInstanceUID") or ""),
                size=(int(header.Rows), int(header.Columns)),
                localizer="LOCALIZER" in [str(word) for word in header.get("ImageType") or ()],
                modality=header.get("Modality") or None,
                thickness=_length(header, "SpacingBetweenSlices") or _length(header, "SliceThickness"),
                order=_order(header, number),
            )
            for number, plane in enumerate(planes_of(header))
        ]


def _length(header: Dataset, keyword: str) -> float | None:
    try:
        return abs(float(header.get(keyword))) or None
    except (TypeError, ValueError):
        return None


def _order(header: Dataset, frame: int) -> tuple:
    numbers = []
    for keyword in ("EchoTime", "TemporalPositionIdentifier", "TriggerTime", "AcquisitionNumber", "InstanceNumber"):
        try:
            numbers.append(float(header.get(keyword)))
        except (TypeError, ValueError):
            numbers.append(0.0)
    return tuple(map(str, header.get("ImageType") or ())), tuple(numbers), frame


def _choose_series(slices: Sequence[Slice], path: Path) -> tuple[list[Slice], tuple[str, ...]]:
    """The slices of the one volume among them, and a warning about what was left out."""
    groups: list[list[Slice]] = []
    for piece in slices:
        group = next((group for group in groups if _belong_together(group[0], piece)), None)
        if group is None:
            groups.append([piece])
        else:
            group.append(piece)
    if len(groups) == 1:
        return groups[0], ()
    volumes = [group for group in groups if len(group) >= VOLUME_SLICES_MIN and not group[0].localizer]
    if len(volumes) == 1:
        others = len(groups) - 1
        left_out = "1 other series was" if others == 1 else f"{others} other series were"
        return volumes[0], (f"The series of {len(volumes[0])} images was taken; {left_out} left out.",)
    listed = "; ".join(
        f"{group[0].modality or 'image'} series {group[0].series_number} with {len(group)} images"
        for group in groups[:8]
    )
    more = f"; and {len(groups) - 8} more" if len(groups) > 8 else ""
    remedy = "give a folder that holds one of them" if path.is_dir() else "export them as separate series"
    raise InputError(f"'{path}' holds several series ({listed}{more}); {remedy}.")


def _belong_together(one: Slice, other: Slice) -> bool:
    if (one.series, one.size, one.modality) != (other.series, other.size, other.modality):
        return False
    if one.plane is None or other.plane is None:
        return one.plane is other.plane
    return one.plane.parallel(other.plane)


def _stack(slices: Sequence[Slice], path: Path) -> tuple[list[Slice], Stack]:
    """Slices in the order of their frames, and the grid that they form."""
    slices = sorted(slices, key=lambda piece: piece.order)
    planes = [piece.plane for piece in slices if piece.plane is not None]
    return slices, stack_planes(planes, slices[0].thickness, str(path))


def _read_stack(slices: Sequence[Slice], warnings: Sequence[str], path: Path, frame: int | None) -> Reading:
    """One frame of slices that all have a place in space."""
    slices, stack = _stack(slices, path)
    counts = [len(group) for group in stack.members]
    doubled = sum(count > 1 for count in counts)
    notes = [*warnings, *stack.warnings]
    if min(counts) == max(counts):
        chosen = choose_frame(counts[0], frame, path)
    elif 2 * doubled > len(counts):
        raise InputError(
            f"'{path}' holds {min(counts)} to {max(counts)} images at each slice position, so time points or echoes "
            "are incomplete; give a folder with one image at each position."
        )
    else:
        chosen = choose_frame(1, frame, path)
        places = "1 slice position has" if doubled == 1 else f"{doubled} slice positions have"
        notes.append(f"{places} more than one image; the first of each was used.")
    voxels, outside, lost_colour = _fill([slices[group[chosen]] for group in stack.members])
    return Reading(
        voxels=voxels,
        ijk_to_lps=stack.ijk_to_lps,
        dimension=3,
        calibrated=True,
        modality=modality_of_dicom(slices[0].modality),
        outside=outside,
        warnings=(*notes, *([COLOUR_WARNING] if lost_colour else [])),
    )


def _fill(slices: Sequence[Slice]) -> tuple[np.ndarray, np.ndarray | None, bool]:
    """Voxels [k, j, i] in a type that holds all slices, padding, and whether colour was lost; each file opened once."""
    shape = (len(slices), *slices[0].size)
    voxels: np.ndarray | None = None
    outside: np.ndarray | None = None
    any_colour = False
    by_path: dict[Path, list[int]] = {}
    for k, piece in enumerate(slices):
        by_path.setdefault(piece.path, []).append(k)
    for path, numbers in by_path.items():
        with refusing_damaged(path):
            dataset = open_dataset(path)
            pixels = frame_values(path, dataset, [slices[k].frame for k in numbers])
            for k, (values, padding, lost_colour) in zip(numbers, pixels, strict=True):
                if voxels is None:
                    voxels = np.zeros(shape, values.dtype.newbyteorder("="))
                elif not np.can_cast(values.dtype, voxels.dtype):
                    voxels = voxels.astype(np.promote_types(voxels.dtype, values.dtype))
                voxels[k] = values
                any_colour = any_colour or lost_colour
                if padding is not None:
                    outside = np.zeros(shape, bool) if outside is None else outside
                    outside[k] = padding
    assert voxels is not None
    return voxels, outside, any_colour


def _read_unplaced(file: Path, warnings: Sequence[str], path: Path, frame: int | None) -> Reading:
    """A picture, one frame of a cine, or a multi-frame volume whose slices have no positions of their own."""
    header = open_dataset(file, header_only=True)
    slices = _slices_of(file)
    with refusing_damaged(file):
        (row, column), calibrated, source = flat_spacing(header)
        modality, cine = modality_of_dicom(header.get("Modality") or None), is_cine(header)
    notes = list(warnings)
    as_volume = len(slices) > 1 and not cine
    step = slices[0].thickness if as_volume else 1.0
    if as_volume:
        calibrated = False
        notes.append(
            f"The file places none of its {len(slices)} slices in space; they are stacked in stored order, "
            f"{step or 1.0:g} mm apart, as if axial."
        )
        choose_frame(1, frame, path)
    else:
        slices = [slices[choose_frame(len(slices), frame, path)]]
        notes += _spacing_note(row, column, calibrated, source)
    voxels, outside, lost_colour = _fill(slices)
    return Reading(
        voxels=voxels,
        ijk_to_lps=np.diag([column, row, step or 1.0, 1.0]),
        dimension=3 if as_volume else 2,
        calibrated=calibrated,
        modality=modality,
        outside=outside,
        warnings=(*notes, *([COLOUR_WARNING] if lost_colour else [])),
    )


def _spacing_note(row: float, column: float, calibrated: bool, source: str) -> list[str]:
    if calibrated:
        return []
    if not source:
        return ["The image states no pixel size, so no volumes or areas are reported."]
    return [
        f"Pixel spacing {row:g} x {column:g} mm ({source}) is not calibrated to the patient, "
        "so no volumes or areas are reported."
    ]
