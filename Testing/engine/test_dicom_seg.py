"""DICOM SEG objects, read back by plain pydicom frame by frame and by dcmqi: every voxel where the source has it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import phantoms
import pydicom
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, EnhancedMRImageStorage, generate_uid

from MedZeroSegLib.dicom_seg import write_dicom_seg
from MedZeroSegLib.errors import InputError
from MedZeroSegLib.segment import Segment, Segmentation
from MedZeroSegLib.vocabulary import ANATOMICAL_STRUCTURE, SIDE_CODES, Code
from MedZeroSegLib.volume import Volume
from MedZeroSegLib.volume_io import read_volume
from MedZeroSegLib.writers import check_output, write_segmentation

pytest.importorskip("highdicom", reason="DICOM SEG needs highdicom (pip install 'medzeroseg[dicom]')")

KIDNEY = Code("SCT", "64033007", "Kidney")
SHAPE = (5, 7, 9)  # k, j, i: all different, none a multiple of 8, so that bits run over the frames' ends


def segment(name: str, mask: np.ndarray, **changes: object) -> Segment:
    fields: dict = {
        "typed": name, "name": name, "found": bool(mask.any()), "score": 0.75, "mask": mask, "code": KIDNEY,
        "category": ANATOMICAL_STRUCTURE, "modifier": None, "color": (200, 100, 30),
        "slices": int(mask.any(axis=(1, 2)).sum()),
    }  # fmt: skip
    return Segment(**(fields | changes))


def segmentation(volume: Volume, *segments: Segment) -> Segmentation:
    return Segmentation(
        volume=volume, segments=segments, preset="lite", device="cpu", seconds={}, version="1.2.3", settings={},
        weights=({"name": "head", "file": "head.safetensors", "sha256": "ab" * 32, "licence": "Apache-2.0"},),
    )  # fmt: skip


def corner(shape: tuple[int, ...]) -> np.ndarray:
    """Three arms of different length that meet in a corner, in an array [k, j, i]."""
    mask = np.zeros(shape, bool)
    mask[1, 2, 3:8] = mask[1, 2:6, 3] = mask[1:3, 2, 3] = True
    return mask


def slices(shape: tuple[int, ...] = SHAPE, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1000, 1000, shape).astype(np.int16)


def series(folder: Path, order: list[int], rotation: np.ndarray | None = None, step: float = 2.5) -> Path:
    """A CT series of uneven spacing, oblique, whose files come in an order of their own."""
    rotation = np.eye(3) if rotation is None else rotation
    positions = [rotation @ (0.0, 0.0, step * k) + (31.5, -17.25, 104.0) for k in order]
    orientation = (*rotation[:, 0], *rotation[:, 1])
    return phantoms.dicom_series(
        folder, slices()[order], positions, orientation, (1.3, 0.7), FrameOfReferenceUID="1.2.3.4"
    )


# A reader that shares nothing with the writer


def frames_of(file: Path) -> list[tuple[int, np.ndarray, np.ndarray, Dataset]]:
    """(segment number, mask [j, i], index → LPS matrix [4, 3] of (i, j, 1), group) of each frame."""
    dataset = pydicom.dcmread(file)
    count, rows, columns = int(dataset.NumberOfFrames), dataset.Rows, dataset.Columns
    bits = np.unpackbits(np.frombuffer(dataset.PixelData, np.uint8), bitorder="little")
    masks = bits[: count * rows * columns].reshape(count, rows, columns).astype(bool)
    shared = dataset.SharedFunctionalGroupsSequence[0]
    orientation = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    row, column = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
    frames = []
    for mask, group in zip(masks, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        position = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        matrix = np.stack([orientation[:3] * column, orientation[3:] * row, position], axis=1)
        number = (group.get("SegmentIdentificationSequence") or shared.SegmentIdentificationSequence)[0]
        frames.append((int(number.ReferencedSegmentNumber), mask, matrix, group))
    return frames


def points_in(file: Path, number: int) -> np.ndarray:
    """LPS positions of a segment's voxels, sorted, rounded to 1e-3 mm."""
    found = []
    for segment_number, mask, matrix, _ in frames_of(file):
        if segment_number == number:
            j, i = np.nonzero(mask)
            found.append(np.stack([i, j, np.ones_like(i)], axis=1) @ matrix.T)
    points = np.round(np.concatenate(found), 3) + 0.0
    return points[np.lexsort(points.T)]


def expected_points(mask: np.ndarray, volume: Volume) -> np.ndarray:
    return phantoms.world_points(mask.transpose(2, 1, 0), volume.ijk_to_lps)


def assert_each_frame_refers_to_the_instance_at_its_place(file: Path, folder: Path) -> None:
    positions = {}
    for path in folder.iterdir():
        source = pydicom.dcmread(path, stop_before_pixels=True)
        positions[source.SOPInstanceUID] = list(source.ImagePositionPatient)
    for _, _, _, group in frames_of(file):
        reference = group.DerivationImageSequence[0].SourceImageSequence[0]
        place = group.PlanePositionSequence[0]
        assert list(place.ImagePositionPatient) == positions[reference.ReferencedSOPInstanceUID]


# Geometry


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    order=st.permutations(range(SHAPE[0])),
    axis=st.sampled_from([(1.0, -2.0, 0.5), (0.0, 1.0, 0.0), (3.0, 1.0, 1.0)]),
    degrees=st.sampled_from([0, 20, 90, 135, 200]),
)
def test_voxels_of_an_oblique_series_return_at_their_world_positions(tmp_path, order, axis, degrees):
    folder = tmp_path / f"{order}{axis}{degrees}"
    series(folder, order, phantoms.rotation_about(axis, degrees))
    volume = read_volume(folder)
    mask = corner(SHAPE)
    file = write_dicom_seg(segmentation(volume, segment("left kidney", mask)), folder, tmp_path / "seg.dcm")
    assert np.allclose(points_in(file, 1), expected_points(mask, volume), atol=2e-3)
    assert_each_frame_refers_to_the_instance_at_its_place(file, folder)


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]])
def test_one_voxel_of_the_lowest_slice_refers_to_the_instance_there_whatever_the_order(tmp_path, order):
    positions = [(0.0, 0.0, 2.0 * k) for k in order]
    folder = phantoms.dicom_series(tmp_path / "series", slices((4, 7, 9))[order], positions)
    volume = read_volume(folder)
    mask = np.zeros(volume.shape, bool)
    mask[0, 4, 2] = True
    file = write_dicom_seg(segmentation(volume, segment("lesion", mask)), folder, tmp_path / "seg.dcm")
    ((number, frame, _, group),) = frames_of(file)
    assert number == 1 and np.argwhere(frame).tolist() == [[4, 2]]
    assert list(group.PlanePositionSequence[0].ImagePositionPatient) == [0, 0, 0]
    assert_each_frame_refers_to_the_instance_at_its_place(file, folder)


def test_position_and_direction_are_the_sources_to_the_last_digit(tmp_path):
    folder = series(tmp_path / "series", [0, 1, 2, 3, 4], phantoms.rotation_about((1, -2, 0.5), 33.3))
    volume = read_volume(folder)
    file = write_dicom_seg(segmentation(volume, segment("all", np.ones(SHAPE, bool))), folder, tmp_path / "seg.dcm")
    dataset = pydicom.dcmread(file)
    first = pydicom.dcmread(sorted(folder.iterdir())[0])
    shared = dataset.SharedFunctionalGroupsSequence[0]
    assert list(shared.PlaneOrientationSequence[0].ImageOrientationPatient) == list(first.ImageOrientationPatient)
    assert list(shared.PixelMeasuresSequence[0].PixelSpacing) == list(first.PixelSpacing)
    assert float(shared.PixelMeasuresSequence[0].SpacingBetweenSlices) == pytest.approx(2.5)
    assert dataset.FrameOfReferenceUID == first.FrameOfReferenceUID


def multi_frame(path: Path, order: list[int], times: int = 1) -> Path:
    """An enhanced MR with directions in each frame and positions that don't follow the frames' order."""
    rotation = phantoms.rotation_about((1, 1, 0), 25)
    pixels = slices((times * len(order), *SHAPE[1:]), seed=3)
    image = phantoms.dicom_image(
        pixels, "MR", SOPClassUID=EnhancedMRImageStorage, FrameOfReferenceUID="1.2.3.4", InstanceNumber=1
    )
    image.file_meta.MediaStorageSOPClassUID = EnhancedMRImageStorage
    groups = []
    for number in range(len(pixels)):
        position = rotation @ (0.0, 0.0, 3.0 * order[number % len(order)])
        group, place, plane, measures = Dataset(), Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = [f"{value:.8g}" for value in position]
        plane.ImageOrientationPatient = [f"{value:.8g}" for value in (*rotation[:, 0], *rotation[:, 1])]
        measures.PixelSpacing, measures.SliceThickness = ["1.3", "0.7"], "3"
        group.PlanePositionSequence, group.PlaneOrientationSequence = [place], [plane]
        group.PixelMeasuresSequence = [measures]
        groups.append(group)
    image.PerFrameFunctionalGroupsSequence, image.SharedFunctionalGroupsSequence = groups, [Dataset()]
    image.save_as(path, enforce_file_format=True)
    return path


@pytest.mark.parametrize(("times", "chosen"), [(1, None), (3, 2)])
def test_frames_of_a_multi_frame_source_are_referred_to_by_position_and_time(tmp_path, times, chosen):
    order = [3, 0, 4, 1, 2]
    source = multi_frame(tmp_path / "mr.dcm", order, times)
    volume = read_volume(source, frame=chosen)
    mask = corner(SHAPE)
    file = write_dicom_seg(segmentation(volume, segment("kidney", mask)), source, tmp_path / "seg.dcm")
    assert np.allclose(points_in(file, 1), expected_points(mask, volume), atol=2e-3)
    header = pydicom.dcmread(source, stop_before_pixels=True)
    for _, _, _, group in frames_of(file):
        reference = group.DerivationImageSequence[0].SourceImageSequence[0]
        assert reference.ReferencedSOPClassUID == EnhancedMRImageStorage
        assert reference.ReferencedSOPInstanceUID == header.SOPInstanceUID
        number = int(reference.ReferencedFrameNumber) - 1
        assert number // len(order) == (chosen or 0)
        place = header.PerFrameFunctionalGroupsSequence[number].PlanePositionSequence[0]
        assert np.allclose(place.ImagePositionPatient, group.PlanePositionSequence[0].ImagePositionPatient)
    assert len(pydicom.dcmread(file).ReferencedSeriesSequence[0].ReferencedInstanceSequence) == 1


def test_a_radiograph_without_a_place_in_space_gets_a_mask_of_its_own_pixels(tmp_path):
    pixels = slices((60, 50), seed=1).astype(np.uint16)
    source = tmp_path / "thorax.dcm"
    image = phantoms.dicom_image(pixels, "DX", SOPClassUID=DigitalXRayImageStorageForPresentation)
    image.file_meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    image.ImagerPixelSpacing = ["0.139", "0.139"]
    image.save_as(source, enforce_file_format=True)
    volume = read_volume(source)
    assert volume.dimension == 2
    mask = np.zeros(volume.shape, bool)
    mask[0, 5:20, 30:34] = True
    file = write_dicom_seg(segmentation(volume, segment("left lung", mask)), source, tmp_path / "seg.dcm")
    dataset = pydicom.dcmread(file)
    assert np.array_equal(np.squeeze(dataset.pixel_array).astype(bool), mask[0])
    assert "FrameOfReferenceUID" not in dataset
    reference = dataset.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0].SourceImageSequence[0]
    assert reference.ReferencedSOPInstanceUID == image.SOPInstanceUID


# Segments


def test_overlapping_segments_are_kept_in_full(tmp_path):
    folder = series(tmp_path / "series", [4, 3, 2, 1, 0])
    volume = read_volume(folder)
    lung, tumour = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    lung[1:5, 1:6, 2:9], tumour[2:4, 3:5, 4:6] = True, True
    result = segmentation(volume, segment("tumour", tumour), segment("lung", lung))
    file = write_dicom_seg(result, folder, tmp_path / "seg.dcm")
    assert pydicom.dcmread(file).SegmentsOverlap == "YES"
    for number, mask in enumerate((tumour, lung), start=1):
        assert np.allclose(points_in(file, number), expected_points(mask, volume), atol=2e-3)


def test_what_was_not_found_stands_in_the_object_without_frames(tmp_path):
    folder = series(tmp_path / "series", [0, 1, 2, 3, 4])
    empty = segment("spleen", np.zeros(SHAPE, bool), score=0.1)
    result = segmentation(read_volume(folder), segment("kidney", corner(SHAPE)), empty)
    file = write_dicom_seg(result, folder, tmp_path / "seg.dcm")
    described = pydicom.dcmread(file).SegmentSequence
    assert [item.SegmentLabel for item in described] == ["kidney", "spleen"]
    assert "not found, score 0.10" in described[1].SegmentDescription
    assert {number for number, *_ in frames_of(file)} == {1}


def test_where_nothing_was_found_each_segment_has_one_empty_frame(tmp_path):
    folder = series(tmp_path / "series", [0, 1, 2, 3, 4])
    absent = [segment(name, np.zeros(SHAPE, bool)) for name in ("liver", "spleen")]
    file = write_dicom_seg(segmentation(read_volume(folder), *absent), folder, tmp_path / "seg.dcm")
    assert [(number, mask.any()) for number, mask, _, _ in frames_of(file)] == [(1, False), (2, False)]


def test_codes_side_algorithm_and_names_of_any_script_are_in_the_object(tmp_path):
    folder = series(tmp_path / "series", [0, 1, 2, 3, 4])
    long_name = "a large organ in the upper right abdomen " * 4
    result = segmentation(
        read_volume(folder),
        segment("left kidney", corner(SHAPE), modifier=SIDE_CODES["left"]),
        segment("Vorhof (Ö) 左心房", corner(SHAPE)[:, :, ::-1], code=None, category=None, warnings=("Look closely.",)),
        segment(long_name, corner(SHAPE)[:, ::-1], code=None, category=None),
    )
    file = write_dicom_seg(result, folder, tmp_path / "肺 (1).dcm")
    dataset = pydicom.dcmread(file)
    assert dataset.SpecificCharacterSet == "ISO_IR 192"
    assert str(dataset.PatientName) == "Müller^Jörg"
    kidney, atrium, organ = dataset.SegmentSequence
    kind = kidney.SegmentedPropertyTypeCodeSequence[0]
    assert (kind.CodingSchemeDesignator, kind.CodeValue) == ("SCT", "64033007")
    assert kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeValue == SIDE_CODES["left"].value
    assert kidney.SegmentAlgorithmType == "AUTOMATIC"
    algorithm = kidney.SegmentationAlgorithmIdentificationSequence[0]
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("MedZeroSeg lite", "1.2.3")
    assert "sha256:" + "ab" * 32 in str(algorithm.AlgorithmParameters)
    assert atrium.SegmentLabel == "Vorhof (Ö) 左心房" and "Look closely." in atrium.SegmentDescription
    private = atrium.SegmentedPropertyTypeCodeSequence[0]
    assert private.CodingSchemeDesignator == dataset.CodingSchemeIdentificationSequence[0].CodingSchemeDesignator
    assert len(private.CodeValue) <= 16 and private.CodeMeaning == "Vorhof (Ö) 左心房"
    assert len(organ.SegmentLabel) == 64 and long_name.strip() in organ.SegmentDescription
    assert private.CodeValue != organ.SegmentedPropertyTypeCodeSequence[0].CodeValue
    assert len({item.TrackingUID for item in dataset.SegmentSequence}) == 3


def test_uids_follow_from_the_result(tmp_path):
    folder = series(tmp_path / "series", [0, 1, 2, 3, 4])
    volume = read_volume(folder)
    first, again, other = (
        pydicom.dcmread(write_dicom_seg(segmentation(volume, segment("kidney", mask)), folder, tmp_path / "seg.dcm"))
        for mask in (corner(SHAPE), corner(SHAPE), corner(SHAPE)[::-1])
    )
    assert first.SOPInstanceUID == again.SOPInstanceUID == first.file_meta.MediaStorageSOPInstanceUID
    assert first.SOPInstanceUID != other.SOPInstanceUID and first.SeriesInstanceUID == other.SeriesInstanceUID
    assert first.SegmentSequence[0].TrackingUID == other.SegmentSequence[0].TrackingUID
    assert first.PixelData == again.PixelData != other.PixelData


# Refusals


def test_an_image_that_is_not_dicom_is_refused(tmp_path):
    scan = phantoms.write_image(tmp_path / "scan.nii.gz", slices().T, phantoms.lps_matrix())
    result = segmentation(read_volume(scan), segment("kidney", corner(SHAPE)))
    with pytest.raises(InputError, match="no DICOM image.*write .seg.nrrd"):
        write_dicom_seg(result, scan, tmp_path / "seg.dcm")
    with pytest.raises(InputError, match="no DICOM image"):
        check_output(tmp_path / "seg.dcm", scan)
    assert [path.name for path in tmp_path.iterdir()] == ["scan.nii.gz"]


@pytest.mark.parametrize("change", ["moved", "mirrored", "shorter"])
def test_masks_of_another_image_are_refused(tmp_path, change):
    folder = series(tmp_path / "series", [0, 1, 2, 3, 4])
    volume = read_volume(folder)
    matrix = volume.ijk_to_lps.copy()
    if change == "moved":
        matrix[:3, 3] += (0.0, 0.0, 2.5)
    if change == "mirrored":
        matrix[:, 3] += (SHAPE[2] - 1) * matrix[:, 0]
        matrix[:3, 0] *= -1
    count = 4 if change == "shorter" else 5
    other = replace(volume, ijk_to_lps=matrix, voxels=volume.voxels[:count])
    mask = corner(SHAPE)[:count]
    with pytest.raises(InputError, match="isn't the image that was segmented"):
        write_dicom_seg(segmentation(other, segment("kidney", mask)), folder, tmp_path / "seg.dcm")


# Second readers and the command line's door


def dcmqi(file: Path, folder: Path) -> dict[int, tuple[dict, sitk.Image]]:
    """Segment number → dcmqi's description and image."""
    program = shutil.which("segimage2itkimage", path=str(Path(sys.executable).parent)) or shutil.which(
        "segimage2itkimage"
    )
    if program is None:
        pytest.skip("dcmqi, the second reader, is not installed (pip install dcmqi)")
    folder.mkdir()
    command = [program, "--inputDICOM", str(file), "--outputDirectory", str(folder), "--outputType", "nrrd"]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    assert re.findall(r"^[WE]: .*", run.stdout + run.stderr, re.MULTILINE) == []
    described = json.loads((folder / "meta.json").read_text(encoding="utf-8"))["segmentAttributes"]
    return {
        item["labelID"]: (item, sitk.ReadImage(str(folder / f"{number}.nrrd")))
        for number, group in enumerate(described, start=1)
        for item in group
    }


@pytest.mark.parametrize("degrees", [0, 40])
def test_dcmqi_reads_the_same_voxels_at_the_same_places(tmp_path, degrees):
    folder = series(tmp_path / "series", [1, 4, 0, 3, 2], phantoms.rotation_about((1, 2, -0.5), degrees))
    volume = read_volume(folder)
    masks = corner(SHAPE), corner(SHAPE)[::-1, :, ::-1]
    result = segmentation(volume, *(segment(f"part {n}", mask) for n, mask in enumerate(masks)))
    (file,) = write_segmentation(result, tmp_path / "seg.dcm")
    read = dcmqi(file, tmp_path / "dcmqi")
    for number, mask in enumerate(masks, start=1):
        described, image = read[number]
        assert described["SegmentLabel"] == f"part {number - 1}"
        assert described["SegmentedPropertyTypeCodeSequence"]["CodeValue"] == KIDNEY.value
        matrix = np.eye(4)
        matrix[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
        matrix[:3, 3] = image.GetOrigin()
        found = phantoms.world_points(sitk.GetArrayFromImage(image).T > 0, matrix)
        assert np.allclose(found, expected_points(mask, volume), atol=2e-3)


def test_series_whose_files_are_listed_is_found_among_others(tmp_path):
    folder = series(tmp_path / "study", [0, 1, 2, 3, 4])
    files = sorted(folder.iterdir())
    volume = read_volume(folder)
    positions = [(0.0, 0.0, 2.0 * k) for k in range(6)]
    phantoms.dicom_series(folder, slices((6, 4, 4)), positions, SeriesInstanceUID=generate_uid())
    result = segmentation(volume, segment("kidney", corner(SHAPE)))
    with pytest.raises(InputError, match="several series"):
        write_dicom_seg(result, folder, tmp_path / "seg.dcm")
    file = write_dicom_seg(result, folder, tmp_path / "seg.dcm", files)
    assert np.allclose(points_in(file, 1), expected_points(corner(SHAPE), volume), atol=2e-3)
