"""Files and DICOM folders → Volume; every check that refuses an input before work starts.

SimpleITK reads NIfTI, NRRD, MetaImage, pictures and other single files here; dicom_io reads DICOM."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from MedZeroSegLib import dicom_io
from MedZeroSegLib.errors import InputError
from MedZeroSegLib.modality import PICTURE_SUFFIXES, guess_modality, holds_whole_numbers
from MedZeroSegLib.nifti import NiftiHeader, read_nifti_header, read_nifti_voxels
from MedZeroSegLib.outside import mark_outside
from MedZeroSegLib.reading import COLOUR_WARNING, Reading, choose_frame, silent_libraries, to_grey
from MedZeroSegLib.volume import MODALITIES, SHEAR_MAX_DEGREES, Volume, shear_degrees

READABLE = "NIfTI, NRRD, MetaImage, PNG, JPEG or DICOM"
SHEAR_REMEDY = "resample it to right angles first (for example with a Resample module of Slicer)"


def read_volume(
    path: str | Path, modality: str | None = None, frame: int | None = None, files: Sequence[Path] | None = None
) -> Volume:
    """Read an image file, a DICOM file or a folder with one DICOM series.

    Parameters
    ----------
    modality : one of ``MODALITIES``; wins over what the file says and over a guess.
    frame : which frame, from 0, of a file that holds several (time points, echoes, cine).
    files : those DICOM files in the folder that belong to the image; all of them where none are given.

    Raises
    ------
    InputError
        With one sentence, when the path holds no image that can be segmented as it is.
    """
    path = Path(path)
    if modality is not None and modality not in MODALITIES:
        raise InputError(f"The modality '{modality}' is not known; use one of {', '.join(MODALITIES)}.")
    _check_path(path)
    if dicom_io.is_dicom(path):
        reading = dicom_io.read_dicom(path, frame, files)
    else:
        header = read_nifti_header(path)
        reading = _read_file(path, frame) if header is None else _read_nifti(path, header, frame)
    refuse_shear(reading.ijk_to_lps, path)
    reading = mark_outside(reading, path)
    stated, notes = reading.modality, reading.warnings
    if modality is None and stated is None:
        voxels = reading.voxels
        guess = guess_modality(voxels.min(), voxels.max(), holds_whole_numbers(voxels), reading.dimension)
        notes += (f"The file does not state its modality; {guess} was guessed, so give the modality if that is wrong.",)
    else:
        guess = ""
    return Volume(
        voxels=reading.voxels,
        ijk_to_lps=reading.ijk_to_lps,
        modality=modality or stated or guess,
        modality_source="given" if modality else "dicom" if stated else "guess",
        dimension=reading.dimension,
        calibrated=reading.calibrated,
        outside=reading.outside,
        warnings=notes,
        path=path,
    )


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


def _read_nifti(path: Path, header: NiftiHeader, frame: int | None) -> Reading:
    try:
        information = _image_information(path)
    except InputError:
        refuse_shear(header.sform, path)  # says why, if that is why
        raise
    voxels = read_nifti_voxels(path, header, choose_frame(header.frames, frame, path))
    warnings: tuple[str, ...] = ()
    if voxels.ndim > len(header.shape):
        voxels, lost_colour = to_grey(np.moveaxis(voxels, -1, 0))
        warnings = (COLOUR_WARNING,) if lost_colour else ()
    return Reading(
        voxels=voxels if voxels.ndim == 3 else voxels[np.newaxis],
        ijk_to_lps=_matrix(information),
        dimension=voxels.ndim,
        calibrated=True,
        warnings=warnings,
    )


def _read_file(path: Path, frame: int | None) -> Reading:
    """One frame of an image of 2 to 5 dimensions and any number of components; only that frame is held in memory."""
    is_picture = path.name.lower().endswith(PICTURE_SUFFIXES)
    if is_picture:
        _refuse_cut_jpeg(path)
    reader = _image_information(path)
    if "complex" in sitk.GetPixelIDValueAsString(reader.GetPixelID()):
        raise InputError(f"'{path}' holds complex numbers; save its magnitude as an image and give that.")
    colours = reader.GetNumberOfComponents() > 1 and _is_colour(reader, is_picture)
    components = 1 if colours else reader.GetNumberOfComponents()
    size = reader.GetSize()
    chosen = choose_frame(int(np.prod(size[3:])) * components, frame, path)
    if len(size) > 3:
        reader.SetExtractSize([*size[:3], *[0] * (len(size) - 3)])
        reader.SetExtractIndex([0, 0, 0, *map(int, np.unravel_index(chosen // components, size[3:], order="F"))])
    with _refusing_unreadable(path):
        image = reader.Execute()
    voxels = sitk.GetArrayFromImage(image)  # [k, j, i], [j, i] for pictures, with components last
    warnings = ["A picture file has no voxel size in mm, so no volumes or areas are reported."] if is_picture else []
    if colours:
        voxels, lost_colour = to_grey(np.moveaxis(voxels, -1, 0))
        warnings += [COLOUR_WARNING] if lost_colour else []
    elif components > 1:
        voxels = voxels[..., chosen % components]
    return Reading(
        voxels=np.ascontiguousarray(voxels if voxels.ndim == 3 else voxels[np.newaxis]),
        ijk_to_lps=_matrix(image),
        dimension=image.GetDimension(),
        calibrated=not is_picture,
        warnings=tuple(warnings),
    )


def _refuse_cut_jpeg(path: Path) -> None:
    """Refuse a JPEG whose last scan has no end; the decoder would fill what is missing with grey."""
    content = path.read_bytes() if path.name.lower().endswith((".jpg", ".jpeg")) else b""
    if content[:2] == b"\xff\xd8" and content.rfind(b"\xff\xd9") < content.rfind(b"\xff\xda"):
        raise InputError(f"'{path}' is cut short; copy or export it again.")


def _image_information(path: Path) -> sitk.ImageFileReader:
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    with _refusing_unreadable(path):
        reader.ReadImageInformation()
    return reader


@contextmanager
def _refusing_unreadable(path: Path) -> Iterator[None]:
    """Turn SimpleITK's errors into sentences."""
    try:
        with silent_libraries():
            yield
    except RuntimeError as error:
        if "PixelType" in str(error):
            raise InputError(f"'{path}' has a pixel type that is not read; save it as grey or RGB levels.") from error
        if "ImageIO reader" in str(error):
            raise InputError(f"'{path}' {_foreign_format(path)}.") from error
        raise InputError(f"'{path}' could not be read and is probably damaged; copy or export it again.") from error


def _foreign_format(path: Path) -> str:
    """What to say of a file in a format that SimpleITK doesn't know."""
    if path.name.upper().endswith((".HEAD", ".BRIK", ".BRIK.GZ")):
        return "is an AFNI file, which is not read; convert it to NIfTI (3dAFNItoNIFTI)"
    return f"is not an image in a format that is read; give {READABLE}"


def refuse_shear(ijk_to_lps: np.ndarray, path: Path) -> None:
    """Raise InputError with the angle when the axes of a grid aren't at right angles."""
    lengths = np.linalg.norm(ijk_to_lps[:3, :3], axis=0)
    if not np.isfinite(ijk_to_lps).all() or not lengths.all():
        raise InputError(f"'{path}' has no usable geometry (an axis has no length); correct its header.")
    degrees = shear_degrees(ijk_to_lps)
    if degrees > SHEAR_MAX_DEGREES:
        raise InputError(
            f"'{path}' has a sheared grid, {degrees:.2f} degrees off the right angle, which mask files cannot "
            f"describe; {SHEAR_REMEDY}."
        )


def _matrix(image: sitk.Image | sitk.ImageFileReader) -> np.ndarray:
    """IJK → LPS of the first three dimensions, as the file states it."""
    size = image.GetDimension()
    rank = min(size, 3)
    matrix = np.eye(4)
    direction = np.reshape(image.GetDirection(), (size, size))[:rank, :rank]
    matrix[:rank, :rank] = direction * np.array(image.GetSpacing())[:rank]
    matrix[:rank, 3] = image.GetOrigin()[:rank]
    return matrix


def _is_colour(reader: sitk.ImageFileReader, is_picture: bool) -> bool:
    """Whether several numbers a voxel are colours; otherwise they are frames (sequences, time points)."""
    kind = reader.GetMetaData("NRRD_kinds[pixel]") if reader.HasMetaDataKey("NRRD_kinds[pixel]") else ""
    if kind == "list" or "color" in kind.lower():
        return kind != "list"
    is_bytes = "8-bit unsigned" in sitk.GetPixelIDValueAsString(reader.GetPixelID())
    return is_picture or (is_bytes and reader.GetNumberOfComponents() in (3, 4))
