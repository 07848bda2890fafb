"""Segmentation → DICOM SEG by highdicom: codes, the algorithm, and references to the source images by position.

The masks lie on the source's own slices, so geometry is copied from its headers, never computed from the volume."""

from __future__ import annotations

import hashlib
import logging
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import UID, SecondaryCaptureImageStorage
from pydicom.valuerep import format_number_as_ds

from MedZeroSegLib.dicom_geometry import Plane
from MedZeroSegLib.dicom_io import Slice, grid_slices, is_dicom
from MedZeroSegLib.dicom_pixels import frame_values, open_dataset, quiet_pydicom
from MedZeroSegLib.errors import InputError, InstallationError
from MedZeroSegLib.extent import EMPTY_EXTENT, crop, mask_extent, mask_sha256
from MedZeroSegLib.segment import Segment, Segmentation
from MedZeroSegLib.vocabulary import ANATOMICAL_STRUCTURE, CATEGORIES, Code
from MedZeroSegLib.writers import replacing

if TYPE_CHECKING:
    import highdicom
    from highdicom.seg import SegmentDescription

MAKER = "MedZeroSeg"
PRIVATE_SCHEME = "99MEDZEROSEG"  # codes of names that no terminology has a code for: hashes of the names
SERIES_NUMBER = 300
CODE_LENGTH, LABEL_LENGTH, TEXT_LENGTH = 12, 64, 1024  # characters; DICOM's SH has 16, LO 64, ST 1024
PIXELS_OFF_MAX = 0.1  # of a pixel, or of the slice distance; farther off, the source isn't what the volume shows
# Attributes that a SEG must have, and that files of old or careless programs lack; they may be empty.
MAY_BE_EMPTY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber"),
    *("StudyID", "StudyDate", "StudyTime", "ReferringPhysicianName"),
)
GROUPS = ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence")


@dataclass(frozen=True)
class _Source:
    """What a slice of the volume was read from: the file's identity, and the frame in it where it holds several."""

    sop_class: str
    instance: str
    frame: int | None
    header: Dataset  # of a single image at the slice's place, as highdicom wants it


def write_dicom_seg(
    segmentation: Segmentation, source: Path | None, file: Path, files: Sequence[Path] | None = None
) -> Path:
    """Write the segments as one DICOM SEG object (BINARY; segments may overlap).

    Segments are numbered in their order. Those that weren't found stand in the object without frames, and their
    description says so. Where none was found, each has one empty frame, since an object must have frames. UIDs follow
    from the source's and from the masks: the same result has the same UIDs, however often it is written.

    Parameters
    ----------
    source : DICOM file or folder that the volume was read from.
    file : where to write.
    files : the files of the series, when the folder holds more than that; as for ``dicom_io.read_dicom``.

    Returns
    -------
    Path
        ``file``.

    Raises
    ------
    InputError
        When the source isn't DICOM, isn't what the volume was read from, or lacks what the object must refer to.
    InstallationError
        When highdicom is missing, or the file can't be written.
    """
    source = require_dicom(source)
    try:
        import highdicom  # noqa: F401
    except ImportError as problem:
        raise InstallationError(
            "DICOM SEG needs highdicom; install it with `pip install 'medzeroseg[dicom]'`."
        ) from problem
    with quiet_pydicom(), _quiet_highdicom():
        sources = _sources(segmentation, source, files)
        built = _build(segmentation, sources)
        _refer(built, sources)
        with replacing(file) as target:
            built.save_as(target, enforce_file_format=True)
    return file


def require_dicom(source: Path | None) -> Path:
    """The path of an image that a DICOM SEG can refer to; one that doesn't exist is left to whoever reads it.

    Raises
    ------
    InputError
        When it is no DICOM file and no folder.
    """
    if source is None or (source.exists() and not is_dicom(source)):
        name = "The image" if source is None else f"'{source}'"
        raise InputError(f"{name} is no DICOM image, which a DICOM SEG must refer to; write .seg.nrrd or .nii.gz.")
    return source


@contextmanager
def _quiet_highdicom() -> Iterator[None]:
    """Without its remarks about what is meant here, such as empty frames."""
    logger = logging.getLogger("highdicom")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


# Source


def _sources(segmentation: Segmentation, source: Path, files: Sequence[Path] | None) -> list[_Source]:
    """The source of each slice k of the volume, found by position."""
    volume = segmentation.volume
    members = grid_slices(source, files)
    slices = _right_frames(members, segmentation, source)
    for k, piece in enumerate(slices):
        if piece.size != volume.shape[1:] or not _is_at(piece.plane, segmentation, k):
            raise _other_image(source)
    first = open_dataset(slices[0].path, header_only=True)
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID"):
        if not first.get(keyword):
            raise InputError(f"'{slices[0].path}' lacks {keyword}, which a DICOM SEG must refer to; export it again.")
    if len(slices) > 1 and slices[0].plane is None:
        raise InputError(
            f"'{source}' places none of its slices in space, as a DICOM SEG must; write .seg.nrrd or .nii.gz instead."
        )
    template = _template(first, slices[0], segmentation)
    headers = {piece.path: _identity(piece.path) for piece in slices}
    return [_source(piece, k, template, *headers[piece.path]) for k, piece in enumerate(slices)]


def _other_image(source: Path) -> InputError:
    return InputError(f"'{source}' isn't the image that was segmented; give the file or folder that it was read from.")


def _is_at(plane: Plane | None, segmentation: Segmentation, k: int) -> bool:
    """Whether a source plane lies where the volume has its slice ``k``, in position and direction."""
    volume = segmentation.volume
    if plane is None or volume.dimension == 2:
        return True  # a radiograph is taken as a picture, whatever its header says of space
    row, column = plane.pixel_spacing
    corners = np.array([[0, 0], [volume.shape[2] - 1, 0], [0, volume.shape[1] - 1]])
    in_source = plane.position + corners @ np.array([plane.orientation[:3] * column, plane.orientation[3:] * row])
    in_volume = volume.ijk_to_world_lps(np.column_stack([corners, np.full(3, k)]))
    allowed = PIXELS_OFF_MAX * max(volume.spacing)
    return bool(np.linalg.norm(in_source - in_volume, axis=1).max() <= allowed)


def _right_frames(members: Sequence[Sequence[Slice]], segmentation: Segmentation, source: Path) -> list[Slice]:
    """Of the frames at each position (time points, echoes) those that the volume shows."""
    voxels = segmentation.volume.voxels
    if len(members) != len(voxels):
        raise _other_image(source)
    several = min(len(group) for group in members)
    if several == 1:
        return [group[0] for group in members]
    outside = segmentation.volume.outside
    k = len(members) // 2
    kept = np.ones(voxels[k].shape, bool) if outside is None else ~outside[k]
    for number in range(several):
        piece = members[k][number]
        values, _, _ = next(frame_values(piece.path, open_dataset(piece.path), [piece.frame]))
        if values.shape == kept.shape and np.array_equal(values[kept], voxels[k][kept]):
            return [group[number] for group in members]
    raise _other_image(source)


def _identity(path: Path) -> tuple[str, str, bool]:
    """SOP class, SOP instance, and whether the file holds several frames."""
    header = open_dataset(path, header_only=True)
    return str(header.SOPClassUID), str(header.SOPInstanceUID), int(header.get("NumberOfFrames") or 1) > 1


def _template(first: Dataset, piece: Slice, segmentation: Segmentation) -> Dataset:
    """Header of the first slice as a single image: patient, study, series, and the directions that all slices share."""
    template = Dataset()
    for element in first:
        if not element.tag.is_private and element.keyword not in GROUPS and element.keyword != "NumberOfFrames":
            template.add(element)
    for keyword in MAY_BE_EMPTY:
        if keyword not in template:
            setattr(template, keyword, "")
    template.SOPClassUID = SecondaryCaptureImageStorage
    if piece.plane is None:
        _drop(template, "FrameOfReferenceUID", "ImagePositionPatient", "ImageOrientationPatient")
        return template
    if not template.get("FrameOfReferenceUID"):
        template.FrameOfReferenceUID = _uid("frame of reference", first.SeriesInstanceUID)
    if not first.get("ImageOrientationPatient"):
        template.ImageOrientationPatient = _decimals(piece.plane.orientation)
    if not first.get("PixelSpacing"):
        template.PixelSpacing = _decimals(piece.plane.pixel_spacing)
    if segmentation.volume.shape[0] > 1:
        template.SpacingBetweenSlices = format_number_as_ds(segmentation.volume.spacing[2])
    if not template.get("SliceThickness"):
        template.SliceThickness = format_number_as_ds(piece.thickness or segmentation.volume.spacing[2])
    return template


def _source(piece: Slice, k: int, template: Dataset, sop_class: str, instance: str, several: bool) -> _Source:
    header = Dataset()
    header.update(template)
    _drop(header, "SOPInstanceUID", "ImagePositionPatient")  # or all headers would share these elements
    header.SOPInstanceUID = f"2.25.{k + 1}"  # stands for the slice until `_refer` puts the real one
    if piece.plane is not None:
        header.ImagePositionPatient = _decimals(piece.plane.position)
    return _Source(sop_class, instance, piece.frame if several else None, header)


def _drop(header: Dataset, *keywords: str) -> None:
    for keyword in keywords:
        if keyword in header:
            delattr(header, keyword)


def _decimals(numbers: Any) -> list[str]:
    """As decimal strings of at most 16 characters; what came from such strings comes back the same."""
    return [format_number_as_ds(float(number)) for number in numbers]


# Object


def _build(segmentation: Segmentation, sources: Sequence[_Source]) -> highdicom.seg.Segmentation:
    from highdicom.seg import Segmentation as SegObject

    first = sources[0].header
    series = _uid("series", first.SeriesInstanceUID, segmentation.preset, segmentation.version)
    start, pixels = _pixels(segmentation.segments)
    try:
        built = SegObject(
            source_images=[source.header for source in sources[start : start + len(pixels)]],
            pixel_array=pixels,
            segmentation_type="BINARY",
            segment_descriptions=[
                _description(number, segment, segmentation, first)
                for number, segment in enumerate(segmentation.segments, start=1)
            ],
            series_instance_uid=series,
            series_number=SERIES_NUMBER,
            sop_instance_uid=_uid("instance", series, *_prints(segmentation)),
            instance_number=1,
            manufacturer=MAKER,
            manufacturer_model_name=MAKER,
            software_versions=segmentation.version,
            device_serial_number="none",
            content_label="SEGMENTATION",
            content_description="Made by an algorithm, for research; to be reviewed",
            series_description=f"{MAKER} {segmentation.preset}, for research",
            specific_character_set="ISO_IR 192",
        )
    except (AttributeError, KeyError, TypeError, ValueError) as problem:  # highdicom's, about the source's headers
        raise InputError(
            f"'{segmentation.volume.path}' lacks what a DICOM SEG must refer to ({problem}); write .seg.nrrd instead."
        ) from problem
    built.ContentCreatorName = ""  # must be there; nobody drew it
    if any(segment.code is None for segment in segmentation.segments):
        scheme = Dataset()
        scheme.CodingSchemeDesignator = PRIVATE_SCHEME
        scheme.CodingSchemeName = f"Names that {MAKER} has no code for; the value is a hash of the name"
        built.CodingSchemeIdentificationSequence = [scheme]
    return built


def _pixels(segments: Sequence[Segment]) -> tuple[int, np.ndarray]:
    """First slice and pixels of the slices from there on that hold any segment.

    Numbers [k, j, i] where segments are apart, else one plane a segment, [k, j, i, segment]; both uint. One empty
    slice where nothing was found.
    """
    extents = [mask_extent(segment.mask) for segment in segments]
    found = [extent for extent in extents if extent != EMPTY_EXTENT]
    shape = segments[0].mask.shape
    if not found:
        return 0, np.zeros((1, *shape[1:], len(segments)), np.uint8)
    start, end = min(extent[4] for extent in found), max(extent[5] for extent in found)
    slab = slice(start, end + 1)
    numbers = np.zeros((end + 1 - start, *shape[1:]), np.min_scalar_type(len(segments)))
    for number, (segment, extent) in enumerate(zip(segments, extents, strict=True), start=1):
        inside = crop(segment.mask, extent)
        here = crop(numbers, (*extent[:4], extent[4] - start, extent[5] - start))
        if here[inside].any():
            return start, np.stack([segment.mask[slab] for segment in segments], axis=-1).astype(np.uint8)
        here[inside] = number
    return start, numbers


def _description(number: int, segment: Segment, segmentation: Segmentation, first: Dataset) -> SegmentDescription:
    from highdicom.color import CIELabColor
    from highdicom.seg import SegmentDescription
    from highdicom.sr import CodedConcept

    code, category = _codes(segment)
    description = SegmentDescription(
        segment_number=number,
        segment_label=segment.name[:LABEL_LENGTH],
        segmented_property_category=_concept(category),
        segmented_property_type=_concept(code),
        algorithm_type="SEMIAUTOMATIC" if segment.provenance.get("corrected") else "AUTOMATIC",
        algorithm_identification=_algorithm(segmentation),
        tracking_id=segment.name[:LABEL_LENGTH],
        tracking_uid=_uid("tracking", first.SeriesInstanceUID, segment.name),
        display_color=CIELabColor.from_rgb(*segment.color),
    )
    description.SegmentDescription = _told(segment)[:TEXT_LENGTH]
    if segment.modifier is not None:
        modifier = CodedConcept(segment.modifier.value, segment.modifier.scheme, segment.modifier.meaning)
        description.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [modifier]
    return description


def _codes(segment: Segment) -> tuple[Code, Code]:
    """Type and category; of an unknown name a private code, and tissue, which claims least."""
    if segment.code is not None:
        return segment.code, segment.category or ANATOMICAL_STRUCTURE
    value = hashlib.sha256(segment.name.casefold().encode()).hexdigest()[:CODE_LENGTH].upper()
    return Code(PRIVATE_SCHEME, value, segment.name[:LABEL_LENGTH]), segment.category or CATEGORIES["tissue"]


def _concept(code: Code) -> Any:
    from highdicom.sr import CodedConcept

    return CodedConcept(code.value, code.scheme, code.meaning[:LABEL_LENGTH])


def _algorithm(segmentation: Segmentation) -> Any:
    from highdicom import AlgorithmIdentificationSequence
    from pydicom.sr.codedict import codes

    weights = {f"weights {record['name']}": f"sha256:{record['sha256']}" for record in segmentation.weights}
    return AlgorithmIdentificationSequence(
        name=f"{MAKER} {segmentation.preset}",
        family=codes.DCM.ArtificialIntelligence,
        version=segmentation.version,
        source=MAKER,
        parameters={"preset": segmentation.preset, **weights},
    )


def _told(segment: Segment) -> str:
    """What was asked for, whether it was found, and what to mind."""
    state = "found" if segment.found else "not found"
    return " ".join([f"Asked for as '{segment.typed}': {state}, score {segment.score:.2f}.", *segment.warnings])


def _prints(segmentation: Segmentation) -> list[str]:
    """What tells one result from another: the image, and each segment's name, code and mask."""
    prints = [segmentation.volume.fingerprint]
    for segment in segmentation.segments:
        extent = mask_extent(segment.mask)
        prints += [segment.typed, segment.name, mask_sha256(crop(segment.mask, extent), extent)]
    return prints


def _uid(*parts: str) -> UID:
    """A UID under the root for UUIDs that is always the same for the same parts."""
    return UID(f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, chr(0).join((MAKER, *map(str, parts)))).int}")


# References


def _refer(built: Dataset, sources: Sequence[_Source]) -> None:
    """Put real instances and frames where the object names the slices' stand-ins, and list the whole series."""
    by_slice = {source.header.SOPInstanceUID: source for source in sources}
    for group in built.PerFrameFunctionalGroupsSequence:
        for derivation in group.get("DerivationImageSequence") or ():
            for reference in derivation.SourceImageSequence:
                source = by_slice.get(reference.ReferencedSOPInstanceUID)
                if source is None:  # the frames of all segments on a slice share one reference
                    continue
                reference.ReferencedSOPClassUID = source.sop_class
                reference.ReferencedSOPInstanceUID = source.instance
                if source.frame is not None:
                    reference.ReferencedFrameNumber = source.frame + 1
    instances = {source.instance: source.sop_class for source in sources}
    built.SourceImageSequence = [_reference(*pair) for pair in instances.items()]
    built.ReferencedSeriesSequence[0].ReferencedInstanceSequence = [_reference(*pair) for pair in instances.items()]


def _reference(instance: str, sop_class: str) -> Dataset:
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = sop_class, instance
    return reference
