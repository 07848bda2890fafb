"""Pixel data of DICOM files → values (HU, counts): decoding, rescale, inversion, padding, colour.

pydicom decodes; SimpleITK's GDCM steps in where pydicom has no decoder for a compressed transfer syntax."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels import apply_color_lut, apply_modality_lut, iter_pixels
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from MedZeroSegLib.errors import InputError
from MedZeroSegLib.reading import rescale, silent_libraries, to_grey

PREAMBLE = 128  # bytes before "DICM"
STANDARD = -1
FIRST_VRS = (b"UL", b"CS", b"DA", b"TM", b"UI", b"SH", b"LO", b"OB")  # of the elements that can open a dataset
IMPLICIT_LENGTH_MAX = 1024  # bytes; the first elements of a file hold short texts
PIXEL_ATTRIBUTES = (
    *("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *("SamplesPerPixel", "PlanarConfiguration", "NumberOfFrames", "PixelData"),
)


def open_dataset(path: Path, header_only: bool = False) -> Dataset:
    """The dataset of a DICOM file, also of one without preamble and file meta information.

    Raises
    ------
    InputError
        When the file can't be parsed.
    """
    start = dataset_start(path)
    with refusing_damaged(path):
        source = path if start == STANDARD else BytesIO(path.read_bytes()[start or 0 :])
        dataset = pydicom.dcmread(source, stop_before_pixels=header_only, force=start != STANDARD)
        _state_syntax(dataset)
        return dataset


@contextmanager
def refusing_damaged(path: Path) -> Iterator[None]:
    """Turn what pydicom raises on damaged files, which can be nearly any kind of error, into a sentence."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:
        raise InputError(f"'{path}' is a damaged DICOM file; copy or export it again.") from error


def dataset_start(path: Path) -> int | None:
    """Where a dataset starts: ``STANDARD`` after the preamble, its offset without a preamble, None for other files.

    Some programs put a stray byte or two before a dataset without preamble, so the first elements are looked for.
    """
    with path.open("rb") as file:
        head = file.read(PREAMBLE + 4 + 8)
    if head[PREAMBLE : PREAMBLE + 4] == b"DICM":
        return STANDARD
    for start in range(min(PREAMBLE, len(head) - 8)):
        tag, vr = head[start : start + 4], head[start + 4 : start + 6]
        if tag[:2] not in (b"\x08\x00", b"\x02\x00") or tag[2] > 0x70 or tag[3] != 0:
            continue
        implicit_length = int.from_bytes(head[start + 4 : start + 8], "little")
        if vr in FIRST_VRS or (start == 0 and tag[0] == 8 and 0 < implicit_length <= IMPLICIT_LENGTH_MAX):
            return start
    return None


@contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Without pydicom's remarks about headers that break the standard."""
    level = pydicom.config.logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pydicom.config.logger.setLevel("ERROR")
        try:
            yield
        finally:
            pydicom.config.logger.setLevel(level)


def _state_syntax(dataset: Dataset) -> None:
    """Give a dataset without file meta information the transfer syntax by which it was read."""
    if not hasattr(dataset, "file_meta"):
        dataset.file_meta = FileMetaDataset()
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit


def frame_values(
    path: Path, dataset: Dataset, frames: Sequence[int]
) -> Iterator[tuple[np.ndarray, np.ndarray | None, bool]]:
    """Values of the wanted frames, one after the other.

    Yields
    ------
    values : array [j, i], rescaled (HU for CT), bright where much is absorbed; the smallest integer type that holds
        them, or float32.
    padding : bool array [j, i], or None.
    lost_colour : whether colours were turned into grey.

    Raises
    ------
    InputError
        When pixel data are cut short or no decoder is at hand.
    """
    for frame, stored in zip(frames, _stored_frames(path, dataset, frames), strict=True):
        if stored.ndim == 3:
            grey, lost = to_grey(np.moveaxis(stored, -1, 0))
            yield grey, None, lost
            continue
        padding = _padding(dataset, stored)
        if dataset.get("PhotometricInterpretation") == "PALETTE COLOR":
            grey, lost = to_grey(np.moveaxis(apply_color_lut(stored, dataset), -1, 0))
            yield grey, None, lost
            continue
        if is_inverted(dataset):
            stored = _inverted(stored, int(dataset.get("BitsStored") or dataset.BitsAllocated))
        yield _rescaled(dataset, stored, frame), padding, False


def is_inverted(dataset: Dataset) -> bool:
    """Whether low stored values are to be shown bright. MONOCHROME1 and the LUT shape INVERSE state the same thing."""
    return dataset.get("PhotometricInterpretation") == "MONOCHROME1" or dataset.get("PresentationLUTShape") == "INVERSE"


def _inverted(stored: np.ndarray, bits: int) -> np.ndarray:
    if stored.dtype.kind == "f":
        return -stored
    if stored.dtype.kind == "i":
        return np.invert(stored)  # -1 - v, within the type
    return stored.dtype.type(2**bits - 1) - np.minimum(stored, 2**bits - 1).astype(stored.dtype)


def _padding(dataset: Dataset, stored: np.ndarray) -> np.ndarray | None:
    first, last = dataset.get("PixelPaddingValue"), dataset.get("PixelPaddingRangeLimit")
    if not isinstance(first, int):
        return None
    low, high = sorted((first, last if isinstance(last, int) else first))
    padding = (stored >= low) & (stored <= high)
    return padding if padding.any() else None


def _rescaled(dataset: Dataset, stored: np.ndarray, frame: int) -> np.ndarray:
    """Modality values by the frame's own rescale, the file's rescale or its modality lookup table."""
    place = _rescale_place(dataset, frame)
    if "RescaleSlope" in place:
        return rescale(stored, float(place.RescaleSlope) or 1.0, float(place.get("RescaleIntercept") or 0))
    if dataset.get("ModalityLUTSequence"):
        return np.asarray(apply_modality_lut(stored, dataset))
    return stored


def _rescale_place(dataset: Dataset, frame: int) -> Dataset:
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    for group in [*per_frame[frame : frame + 1], *shared]:
        if group.get("PixelValueTransformationSequence"):
            return group.PixelValueTransformationSequence[0]
    return dataset


def _stored_frames(path: Path, dataset: Dataset, frames: Sequence[int]) -> Iterator[np.ndarray]:
    """Stored values [j, i], or colours [j, i, 3], of the wanted frames."""
    decoded = 0
    try:
        for stored in iter_pixels(dataset, indices=list(frames), raw=False):
            yield stored
            decoded += 1
        return
    except GeneratorExit:
        raise
    except Exception as error:  # decoders raise nearly any kind
        reason: Any = error
    if not dataset.file_meta.TransferSyntaxUID.is_compressed or "PixelData" not in dataset:
        raise InputError(f"The pixel data of '{path}' are missing or cut short; copy or export it again.") from reason
    yield from _gdcm_frames(path, dataset)[list(frames[decoded:])]


def _gdcm_frames(path: Path, dataset: Dataset) -> np.ndarray:
    """All frames [n, j, i] or [n, j, i, 3] decoded by GDCM from a copy without rescale or inversion, so as stored."""
    copy = Dataset()
    for keyword in PIXEL_ATTRIBUTES:
        if keyword in dataset:
            copy[keyword] = dataset[keyword]
    grey = dataset.get("SamplesPerPixel") == 1
    copy.PhotometricInterpretation = "MONOCHROME2" if grey else dataset.PhotometricInterpretation
    several = int(dataset.get("NumberOfFrames") or 1) > 1
    copy.SOPClassUID = MultiFrameGrayscaleWordSecondaryCaptureImageStorage if several else SecondaryCaptureImageStorage
    copy.SOPInstanceUID = generate_uid()
    copy.file_meta = FileMetaDataset()
    copy.file_meta.TransferSyntaxUID = dataset.file_meta.TransferSyntaxUID
    try:
        with tempfile.TemporaryDirectory() as folder, silent_libraries():
            name = str(Path(folder) / "image.dcm")
            copy.save_as(name, enforce_file_format=True)
            image = sitk.ReadImage(name, imageIO="GDCMImageIO")
    except Exception as error:
        raise InputError(
            f"The compressed pixel data of '{path}' cannot be decoded ({dataset.file_meta.TransferSyntaxUID.name}); "
            "they are damaged, or need the packages pylibjpeg and pyjpegls (pip install 'medzeroseg[dicom]')."
        ) from error
    frames = sitk.GetArrayFromImage(image)
    return frames.reshape(-1, dataset.Rows, dataset.Columns, *([] if grey else [frames.shape[-1]]))
