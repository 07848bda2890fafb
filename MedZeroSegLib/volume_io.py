"""Files and DICOM folders → Volume; every check that refuses an input before work starts.

SimpleITK reads NIfTI, NRRD, MetaImage, pictures and other single files here; dicom_io reads DICOM."""

from __future__ import annotations

import gzip
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from MedZeroSegLib import dicom_io
from MedZeroSegLib.errors import InputError
from MedZeroSegLib.reading import COLOUR_WARNING, Reading, choose_frame, to_grey
from MedZeroSegLib.volume import MODALITIES, Volume

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif", ".webp")  # carry no spacing to trust
READABLE = "NIfTI, NRRD, MetaImage, PNG, JPEG or DICOM"
SHEAR_MAX_DEGREES = 0.05  # what rounding in a header can do; SimpleITK itself stops reading NIfTI at about this
CT_AIR_MAX = -500.0  # HU; a volume that reaches below, and above CT_TISSUE_MIN, looks like a CT with air
CT_FAT_MAX = -80.0  # HU; whole numbers from below this to above CT_TISSUE_MIN look like a CT without air
CT_TISSUE_MIN = 100.0  # HU
PADDING_GAP = 10_000  # grey levels that lie free between a padding value at the end of a 16-bit type and the image


def read_volume(path: str | Path, modality: str | None = None, frame: int | None = None) -> Volume:
    """Read an image file, a DICOM file or a folder with one DICOM series.

    Parameters
    ----------
    modality : one of ``MODALITIES``; wins over what the file says and over a guess.
    frame : which frame, from 0, of a file that holds several (time points, echoes, cine).

    Raises
    ------
    InputError
        With one sentence, when the path holds no image that can be segmented as it is.
    """
    path = Path(path)
    if modality is not None and modality not in MODALITIES:
        raise InputError(f"The modality '{modality}' is not known; use one of {', '.join(MODALITIES)}.")
    _check_path(path)
    reading = dicom_io.read_dicom(path, frame) if dicom_io.is_dicom(path) else _read_file(path, frame)
    refuse_shear(reading.ijk_to_lps, path)
    reading = _mark_padding(_clean(reading, path))
    source, warnings = "dicom", reading.warnings
    if modality is not None:
        source = "given"
    elif reading.modality is None:
        modality, source = guess_modality(reading.voxels, reading.dimension), "guess"
        warnings = (*warnings, f"The file does not state its modality; {modality} was guessed from its values, so "
                               "give the modality if that is wrong.")
    else:
        modality = reading.modality
    return Volume(reading.voxels, reading.ijk_to_lps, modality, source, reading.dimension, reading.calibrated,
                  reading.outside, warnings, path)


def _check_path(path: Path) -> None:
    try:
        if path.is_dir():
            if not any(path.iterdir()):
                raise InputError(f"The folder '{path}' is empty; give a folder that holds a DICOM series.")
            return
        if not path.exists():
            raise InputError(f"'{path}' does not exist; check the spelling of the path.")
        with path.open("rb") as file:
            if not file.read(1):
                raise InputError(f"'{path}' is an empty file; copy or export it again.")
    except OSError as error:
        reason = (error.strerror or "cannot be opened").lower()
        raise InputError(f"'{path}' cannot be read ({reason}); check its permissions.") from error


def _read_file(path: Path, frame: int | None) -> Reading:
    """One frame of an image of 2 to 5 dimensions and any number of components."""
    image = _read_image(path)
    if "complex" in image.GetPixelIDTypeAsString():
        raise InputError(f"'{path}' holds complex numbers; save its magnitude as an image and give that.")
    warnings: list[str] = []
    is_picture = path.name.lower().endswith(PICTURE_SUFFIXES)
    if is_picture:
        warnings.append("A picture file has no voxel size in mm, so no volumes or areas are reported.")
    channels = sitk.GetArrayFromImage(image)  # [..., k, j, i] or [..., k, j, i, component]
    if image.GetNumberOfComponentsPerPixel() > 1:
        channels = np.moveaxis(channels, -1, 0)
        if _is_colour(image, is_picture):
            channels, lost = to_grey(channels)
            warnings += [COLOUR_WARNING] if lost else []
    rank = min(image.GetDimension(), 3)
    frames = channels.reshape(-1, *channels.shape[channels.ndim - rank :])
    chosen = np.ascontiguousarray(frames[choose_frame(len(frames), frame, path)])
    return Reading(
        voxels=chosen if rank == 3 else chosen[np.newaxis],
        ijk_to_lps=_matrix(image),
        dimension=rank,
        calibrated=not is_picture,
        warnings=tuple(warnings),
    )


def _read_image(path: Path) -> sitk.Image:
    warned = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)  # ITK's remarks on stderr are for its developers
    try:
        return sitk.ReadImage(str(path))
    except RuntimeError as error:
        reason = str(error)
        if "orthonormal" in reason:
            matrix = _nifti_affine(path)
            if matrix is not None:
                refuse_shear(matrix, path)
            raise InputError(f"'{path}' has a grid whose axes are not at right angles; {SHEAR_REMEDY}.") from error
        if "Unable to determine ImageIO reader" in reason:
            raise InputError(f"'{path}' is not an image in a format that can be read; give {READABLE}.") from error
        raise InputError(
            f"'{path}' could not be read and is probably damaged or cut short; copy or export it again."
        ) from error
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(warned)


SHEAR_REMEDY = "resample it to a rectangular grid first (for example with Slicer's Resample modules)"


def refuse_shear(ijk_to_lps: np.ndarray, path: Path) -> None:
    """Raise InputError with the angle when the axes of a grid aren't at right angles."""
    lengths = np.linalg.norm(ijk_to_lps[:3, :3], axis=0)
    if not np.isfinite(ijk_to_lps).all() or not lengths.all():
        raise InputError(f"'{path}' has no usable geometry (an axis has no length); correct its header.")
    unit = ijk_to_lps[:3, :3] / lengths
    cosines = np.abs(unit.T @ unit - np.eye(3)).max()
    degrees = float(np.degrees(np.arcsin(min(1.0, cosines))))
    if degrees > SHEAR_MAX_DEGREES:
        raise InputError(
            f"'{path}' has a sheared grid, {degrees:.2f} degrees off the right angle, which mask files cannot "
            f"describe; {SHEAR_REMEDY}."
        )


def _nifti_affine(path: Path) -> np.ndarray | None:
    """The sform matrix of a NIfTI-1 or -2 header (RAS; angles are those of LPS), or None for other files."""
    with path.open("rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
    with gzip.open(path) if compressed else path.open("rb") as file:
        header = file.read(540)
    for order in "<>":
        size = struct.unpack_from(order + "i", header)[0] if len(header) == 540 else 0
        if size in (348, 540):
            layout, offset = (order + "12f", 280) if size == 348 else (order + "12d", 400)
            return np.vstack([np.reshape(struct.unpack_from(layout, header, offset), (3, 4)), (0, 0, 0, 1)])
    return None


def _matrix(image: sitk.Image) -> np.ndarray:
    """IJK → LPS of the first three dimensions, as the file states it."""
    size = image.GetDimension()
    rank = min(size, 3)
    matrix = np.eye(4)
    direction = np.reshape(image.GetDirection(), (size, size))[:rank, :rank]
    matrix[:rank, :rank] = direction * np.array(image.GetSpacing())[:rank]
    matrix[:rank, 3] = image.GetOrigin()[:rank]
    return matrix


def _is_colour(image: sitk.Image, picture_file: bool) -> bool:
    """Whether several numbers a voxel are colours; otherwise they are frames (sequences, time points)."""
    kind = image.GetMetaData("NRRD_kinds[pixel]") if image.HasMetaDataKey("NRRD_kinds[pixel]") else ""
    if kind:
        return "color" in kind.lower()
    bytes_a_voxel = "8-bit unsigned" in image.GetPixelIDTypeAsString()
    return picture_file or (bytes_a_voxel and image.GetNumberOfComponentsPerPixel() in (3, 4))


def _clean(reading: Reading, path: Path) -> Reading:
    """The reading without NaN and infinity, float64 as float32; bad voxels are outside and take the smallest value."""
    if reading.voxels.dtype.kind != "f":
        return reading
    limit = np.finfo(np.float32).max
    cleaned = np.empty(reading.voxels.shape, np.float32)
    bad = []  # numbers of the slices with bad voxels
    for k, source in enumerate(reading.voxels):  # slice by slice, for memory
        finite = np.isfinite(source)
        cleaned[k] = np.clip(np.where(finite, source, np.nan), -limit, limit)
        if not finite.all():
            bad.append(k)
    if not bad:
        return replace(reading, voxels=cleaned)
    outside = np.zeros(cleaned.shape, bool) if reading.outside is None else reading.outside.copy()
    count = 0
    for k in bad:
        missing = np.isnan(cleaned[k])
        count += int(np.count_nonzero(missing))
        outside[k] |= missing
    if count == cleaned.size:
        raise InputError(f"'{path}' holds no finite number in any voxel; export the image again.")
    smallest = np.nanmin([np.nanmin(section) for section in cleaned if not np.isnan(section).all()])
    for k in bad:
        np.nan_to_num(cleaned[k], copy=False, nan=float(smallest))
    which = "1 voxel is" if count == 1 else f"{count} voxels are"
    warning = f"{which} NaN or infinite and will be treated as outside the image."
    return replace(reading, voxels=cleaned, outside=outside, warnings=(*reading.warnings, warning))


def _mark_padding(reading: Reading) -> Reading:
    """Take the end of a 16-bit type as padding when no other value lies near it."""
    ends = {np.dtype(np.int16): -32768, np.dtype(np.uint16): 65535}
    end = ends.get(reading.voxels.dtype)
    if end is None or reading.outside is not None:
        return reading
    padding = reading.voxels == end
    if not padding.any() or padding.all():
        return reading
    smallest = int(reading.voxels.min(where=~padding, initial=32767 if end < 0 else 65535))
    largest = int(reading.voxels.max(where=~padding, initial=-32768 if end < 0 else 0))
    if abs((smallest if end < 0 else largest) - end) < PADDING_GAP:
        return reading
    voxels = np.where(padding, reading.voxels.dtype.type(smallest), reading.voxels)
    warning = f"{np.count_nonzero(padding)} voxels with the value {end} were taken as padding outside the image."
    return replace(reading, voxels=voxels, outside=padding, warnings=(*reading.warnings, warning))


def guess_modality(voxels: np.ndarray, dimension: int) -> str:
    """CT for values that look like HU (air or fat below, tissue above), else X-ray for pictures and MR for volumes."""
    smallest, largest = float(voxels.min()), float(voxels.max())
    whole_numbers = voxels.dtype.kind in "iu" or not np.any(voxels[len(voxels) // 2] % 1)
    if largest > CT_TISSUE_MIN and (smallest < CT_AIR_MAX or (smallest < CT_FAT_MAX and whole_numbers)):
        return "CT"
    return "X-ray" if dimension == 2 else "MR"
