"""Result files: read back with SimpleITK and nibabel, on the grid of the scan they belong to."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from scipy.spatial.transform import Rotation

from MedZeroSegLib.errors import InputError, InstallationError
from MedZeroSegLib.segment import Segment, Segmentation
from MedZeroSegLib.vocabulary import ANATOMICAL_STRUCTURE, SIDE_CODES, Code
from MedZeroSegLib.volume import Volume
from MedZeroSegLib.volume_io import read_volume
from MedZeroSegLib.writers import check_output, report, write_report, write_segmentation

LUNG = Code("SCT", "39607008", "Lung")
SHAPE = (4, 5, 6)  # k, j, i


def segment(name: str, mask: np.ndarray, **changes: object) -> Segment:
    fields: dict = {
        "typed": name, "name": name, "found": bool(mask.any()), "score": 0.75, "mask": mask, "code": None,
        "category": None, "modifier": None, "color": (10, 200, 99), "slices": int(mask.any(axis=(1, 2)).sum()),
    }  # fmt: skip
    return Segment(**(fields | changes))


def segmentation(*segments: Segment, volume: Volume | None = None) -> Segmentation:
    if volume is None:
        volume = Volume(np.zeros(segments[0].mask.shape, np.int16), np.diag([0.5, 0.8, 2.5, 1.0]), "CT")
    return Segmentation(
        volume=volume, segments=segments, preset="lite", device="cpu", seconds={"decode": 1.23456}, version="1.2.3",
        settings={"threshold": 0.5}, warnings=("The liver is cut by the image.",),
        weights=({"name": "head", "file": "head.safetensors", "sha256": "ab" * 32, "licence": "Apache-2.0"},),
    )  # fmt: skip


def voxel(*index: int, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[index] = True
    return mask


def block(k: slice, j: slice, i: slice, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[k, j, i] = True
    return mask


def array_of(path: Path) -> np.ndarray:
    """Label values [k, j, i], or [j, i] for a picture."""
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def table_of(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


# The grid


def save_nifti(path: Path, array: np.ndarray, affine: np.ndarray, sform: int = 2, qform: int = 1) -> Path:
    image = nibabel.Nifti1Image(array, affine)
    image.set_sform(affine, code=sform)
    image.set_qform(affine, code=qform)
    image.header.set_xyzt_units("mm", "sec")
    nibabel.save(image, path)
    return path


def turned_affine(seed: int, handedness: int) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.random(random_state=seed).as_matrix() * (0.7123, 1.1 / 3, 2.5 * handedness)
    affine[:3, 3] = (-101.3 / 3, 57.25, 1234.56789)
    return affine


def lesson_scan(path: Path) -> Path:
    """Identity direction, uneven spacing, one block that must return where it was."""
    array = np.zeros((61, 53, 37), np.int16)
    array[40:49, 8:15, 29:34] = 1000
    affine = np.diag([-1.0, -0.9984375, 0.999, 1.0])
    affine[1, 3] = 318.0
    return save_nifti(path, array, affine, sform=1)


def assert_same_grid(mask_path: Path, scan_path: Path) -> None:
    """Every number that a reader can ask for is the same, to the last digit."""
    mask, scan = nibabel.load(mask_path), nibabel.load(scan_path)
    assert mask.shape == scan.shape[:3]
    assert np.array_equal(mask.affine, scan.affine)
    for field in ("sform_code", "qform_code", "srow_x", "srow_y", "srow_z", "quatern_b", "quatern_c", "quatern_d"):
        assert mask.header[field] == pytest.approx(scan.header[field], abs=0), field
    assert np.array_equal(mask.header["pixdim"][:4], scan.header["pixdim"][:4])
    assert mask.header.get_xyzt_units()[0] == scan.header.get_xyzt_units()[0]
    mask, scan = sitk.ReadImage(str(mask_path)), sitk.ReadImage(str(scan_path))
    rank = mask.GetDimension()
    assert mask.GetSize() == scan.GetSize()[:rank]
    assert mask.GetSpacing() == scan.GetSpacing()[:rank]
    assert mask.GetOrigin() == scan.GetOrigin()[:rank]
    if rank == scan.GetDimension():
        assert mask.GetDirection() == scan.GetDirection()


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti_mask_lies_on_the_grid_of_its_nifti_scan(tmp_path, suffix):
    scan = lesson_scan(tmp_path / f"scan{suffix}")
    volume = read_volume(scan)
    output = tmp_path / f"mask{suffix}"
    write_segmentation(segmentation(segment("block", volume.voxels == 1000), volume=volume), output)
    assert_same_grid(output, scan)
    indices = np.argwhere(np.asarray(nibabel.load(output).dataobj))
    assert indices.min(axis=0).tolist() == [40, 8, 29]
    assert indices.max(axis=0).tolist() == [48, 14, 33]
    assert len(indices) == 9 * 7 * 5


@pytest.mark.parametrize("handedness", [1, -1])
@pytest.mark.parametrize("codes", [(2, 1), (4, 0), (0, 1)])
def test_turned_grids_and_their_codes_are_copied(tmp_path, handedness, codes):
    array = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
    for seed in range(5):
        scan = save_nifti(tmp_path / f"{seed}.nii", array, turned_affine(seed, handedness), *codes)
        volume = read_volume(scan)
        output = tmp_path / f"{seed}-mask.nii"
        write_segmentation(segmentation(segment("x", volume.voxels > 60), volume=volume), output)
        assert_same_grid(output, scan)
        assert np.array_equal(np.asarray(nibabel.load(output).dataobj) == 1, array > 60)


def test_big_endian_scan_gives_a_mask_on_its_grid(tmp_path):
    image = nibabel.Nifti1Image(np.arange(120, dtype=">i2").reshape(4, 5, 6), turned_affine(1, 1))
    swapped = nibabel.Nifti1Image(image.dataobj, image.affine, image.header.as_byteswapped(">"))
    nibabel.save(swapped, tmp_path / "scan.nii")
    assert nibabel.load(tmp_path / "scan.nii").header.endianness == ">"
    volume = read_volume(tmp_path / "scan.nii")
    write_segmentation(segmentation(segment("x", volume.voxels > 60), volume=volume), tmp_path / "mask.nii")
    assert_same_grid(tmp_path / "mask.nii", tmp_path / "scan.nii")
    assert np.array_equal(np.asarray(nibabel.load(tmp_path / "mask.nii").dataobj) == 1, np.asarray(image.dataobj) > 60)


def test_mask_of_one_frame_lies_on_the_grid_of_the_series(tmp_path):
    scan = save_nifti(tmp_path / "cine.nii.gz", np.zeros((6, 5, 4, 3), np.int16), turned_affine(3, 1))
    volume = read_volume(scan, frame=1)
    write_segmentation(segmentation(segment("x", voxel(1, 2, 3)), volume=volume), tmp_path / "mask.nii.gz")
    assert_same_grid(tmp_path / "mask.nii.gz", scan)


def test_grid_is_the_volumes_own_when_the_file_has_another(tmp_path):
    scan = save_nifti(tmp_path / "scan.nii", np.zeros((6, 5, 4), np.int16), turned_affine(0, 1))
    moved = Volume(np.zeros(SHAPE, np.int16), np.diag([0.5, 0.8, 2.5, 1.0]), "CT", path=scan)
    write_segmentation(segmentation(segment("x", voxel(1, 2, 3)), volume=moved), tmp_path / "mask.nii")
    assert np.array_equal(nibabel.load(tmp_path / "mask.nii").affine, np.diag([-0.5, -0.8, 2.5, 1]).astype(np.float32))


@pytest.mark.parametrize("handedness", [1, -1])
def test_both_forms_of_a_new_grid_say_the_same_in_float32(tmp_path, handedness):
    for seed in range(10):
        ijk_to_lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ turned_affine(seed, handedness)
        volume = Volume(np.zeros(SHAPE, np.int16), ijk_to_lps, "MR")
        write_segmentation(segmentation(segment("x", voxel(1, 2, 3)), volume=volume), tmp_path / "mask.nii")
        mask = nibabel.load(tmp_path / "mask.nii")
        assert np.array_equal(mask.get_sform(), turned_affine(seed, handedness).astype(np.float32))
        assert np.allclose(mask.get_qform(), mask.get_sform(), atol=1e-4)
        assert np.allclose(mask.header.get_zooms(), volume.spacing, rtol=1e-7)


def sagittal_series(folder: Path) -> Path:
    """The voxels of `lesson_scan` as 61 sagittal CT files: 1.0 mm apart in x, 37 rows, 53 columns."""
    folder.mkdir()
    array = np.zeros((61, 53, 37), np.int16)
    array[40:49, 8:15, 29:34] = 1000
    study, series, frame_of_reference = generate_uid(), generate_uid(), generate_uid()
    for number, section in enumerate(array):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        image.SOPClassUID, image.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        image.StudyInstanceUID, image.SeriesInstanceUID = study, series
        image.FrameOfReferenceUID, image.Modality, image.InstanceNumber = frame_of_reference, "CT", number + 1
        image.PatientID, image.PatientName = "phantom", "Phantom"
        image.ImagePositionPatient = [float(number), -318.0, 36 * 0.999]
        image.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
        image.PixelSpacing, image.SliceThickness = [0.999, 0.9984375], 1.0
        image.Rows, image.Columns, image.SamplesPerPixel, image.PhotometricInterpretation = 37, 53, 1, "MONOCHROME2"
        image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 1
        image.RescaleSlope, image.RescaleIntercept = 1, 0
        image.PixelData = np.ascontiguousarray(section.T[::-1]).tobytes()
        pydicom.dcmwrite(folder / f"{number:03}.dcm", image, enforce_file_format=True)
    return folder


@pytest.mark.parametrize("name", ["mask.nii.gz", "mask.seg.nrrd"])
def test_block_of_a_dicom_series_returns_at_its_world_positions(tmp_path, name):
    volume = read_volume(sagittal_series(tmp_path / "series"))
    write_segmentation(segmentation(segment("block", volume.voxels == 1000), volume=volume), tmp_path / name)
    mask = sitk.ReadImage(str(tmp_path / name))
    indices = np.argwhere(sitk.GetArrayFromImage(mask))[:, ::-1]
    points = np.array([mask.TransformIndexToPhysicalPoint(index.tolist()) for index in indices])
    grid = np.stack(np.meshgrid(range(40, 49), range(8, 15), range(29, 34), indexing="ij"), -1).reshape(-1, 3)
    expected = grid * (1.0, 0.9984375, 0.999) + (0, -318, 0)
    order, expected_order = np.lexsort(points.round(2).T), np.lexsort(expected.round(2).T)
    assert np.allclose(points[order], expected[expected_order], atol=1e-4)
    assert mask.GetSize() == volume.voxels.shape[::-1]


def test_seg_nrrd_states_the_grid_in_full_precision(tmp_path):
    volume = Volume(np.zeros(SHAPE, np.int16), turned_affine(5, -1), "MR")
    write_segmentation(segmentation(segment("x", voxel(1, 2, 3)), volume=volume), tmp_path / "mask.seg.nrrd")
    header = (tmp_path / "mask.seg.nrrd").read_bytes().split(b"\n\n", 1)[0].decode()
    fields = dict(line.split(": ", 1) for line in header.splitlines() if ": " in line and ":=" not in line)
    origin, *columns = (
        [float(number) for number in vector.strip("()").split(",")]
        for vector in (fields["space origin"] + " " + fields["space directions"]).split()
    )
    assert np.array_equal(np.array(columns).T, volume.ijk_to_lps[:3, :3])
    assert np.array_equal(origin, volume.ijk_to_lps[:3, 3])
    assert np.array_equal(array_of(tmp_path / "mask.seg.nrrd"), voxel(1, 2, 3))


@pytest.mark.parametrize("shape", [(64, 48), (64, 48, 1), (64, 1, 48), (1, 64, 48)])
def test_mask_has_the_rank_of_its_scan(tmp_path, shape):
    array = np.zeros(shape, np.int16)
    array.reshape(-1)[100:140] = 7
    scan = save_nifti(tmp_path / "scan.nii.gz", array, np.diag([0.8, 0.8, 5.0, 1.0]))
    volume = read_volume(scan)
    write_segmentation(segmentation(segment("x", volume.voxels == 7), volume=volume), tmp_path / "mask.nii.gz")
    assert_same_grid(tmp_path / "mask.nii.gz", scan)
    assert np.array_equal(np.asarray(nibabel.load(tmp_path / "mask.nii.gz").dataobj), array == 7)


def test_mask_of_a_picture_is_two_dimensional(tmp_path):
    pixels = np.zeros((48, 64), np.uint8)
    pixels[10:20, 30:50] = 200
    sitk.WriteImage(sitk.GetImageFromArray(pixels), str(tmp_path / "scan.png"))
    volume = read_volume(tmp_path / "scan.png")
    write_segmentation(segmentation(segment("x", volume.voxels == 200), volume=volume), tmp_path / "mask.nii.gz")
    assert np.array_equal(array_of(tmp_path / "mask.nii.gz") == 1, pixels == 200)


# Labels


@pytest.mark.parametrize(("count", "dtype"), [(1, np.uint8), (255, np.uint8), (256, np.uint16), (300, np.uint16)])
def test_label_type_is_the_smallest_that_holds_every_label(tmp_path, count, dtype):
    shape = (5, 8, 9)
    masks = [voxel(*np.unravel_index(number, shape), shape=shape) for number in range(count)]
    result = segmentation(*(segment(f"lesion {number}", mask) for number, mask in enumerate(masks)))
    output, table_path = write_segmentation(result, tmp_path / "mask.nii.gz")
    image = nibabel.load(output)
    assert image.get_data_dtype() == dtype
    assert (image.dataobj.slope, image.dataobj.inter) == (1, 0)
    labels = array_of(output)
    assert labels.dtype == dtype
    assert labels.ravel()[:count].tolist() == list(range(1, count + 1))
    names = {row["value"]: row["name"] for row in table_of(table_path)["labels"]}
    assert names == {number + 1: f"lesion {number}" for number in range(count)}


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_disjoint_segments_come_back_voxel_for_voxel(data):
    shape = tuple(data.draw(st.tuples(*[st.integers(1, 5)] * 3)))
    count = data.draw(st.sampled_from([1, 2, 7, 255, 256, 300]))
    owners = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1))).integers(0, count + 1, shape)
    result = segmentation(*(segment(f"s{value}", owners == value) for value in range(1, count + 1)))
    with tempfile.TemporaryDirectory() as folder:
        for name in ("mask.nii", "mask.nii.gz", "mask.seg.nrrd"):
            write_segmentation(result, Path(folder) / name)
            labels = array_of(Path(folder) / name)
            assert np.array_equal(labels, owners), name


@pytest.mark.parametrize("order", [("lung", "tumor"), ("tumor", "lung")])
def test_part_within_a_whole_stays_visible_in_either_order(tmp_path, order):
    shape = (10, 24, 24)
    masks = {
        "lung": block(slice(1, 9), slice(2, 22), slice(2, 22), shape),
        "tumor": block(slice(3, 7), slice(5, 10), slice(5, 10), shape),
    }
    result = segmentation(*(segment(name, masks[name]) for name in order))
    output, table_path = write_segmentation(result, tmp_path / "mask.nii.gz")
    labels, table = array_of(output), table_of(table_path)
    assert np.array_equal(labels == order.index("tumor") + 1, masks["tumor"])
    assert np.array_equal(labels == order.index("lung") + 1, masks["lung"] & ~masks["tumor"])
    assert table["overlap"]["voxels"] == 4 * 5 * 5
    rows = {row["name"]: row for row in table["labels"]}
    assert (rows["lung"]["voxels"], rows["lung"]["voxels_in_map"]) == (3200, 3100)
    assert (rows["tumor"]["voxels"], rows["tumor"]["voxels_in_map"]) == (100, 100)


def test_equals_that_overlap_are_told_apart_by_name_not_by_order(tmp_path):
    a, b = block(slice(1, 2), slice(1, 2), slice(0, 3)), block(slice(1, 2), slice(1, 2), slice(2, 5))
    for names in (("a", "b"), ("b", "a")):
        result = segmentation(*(segment(name, {"a": a, "b": b}[name]) for name in names))
        labels = array_of(write_segmentation(result, tmp_path / "mask.nii")[0])
        assert labels[1, 1, 2] == names.index("a") + 1


def test_what_was_not_found_is_listed_and_keeps_its_number(tmp_path):
    result = segmentation(segment("spleen", np.zeros(SHAPE, bool)), segment("liver", voxel(1, 1, 1)))
    output, table_path = write_segmentation(result, tmp_path / "mask.nii.gz")
    table = table_of(table_path)
    assert table["not_found"] == ["spleen"]
    assert [(row["value"], row["name"], row["found"]) for row in table["labels"]] == [
        (1, "spleen", False), (2, "liver", True),
    ]  # fmt: skip
    assert array_of(output)[1, 1, 1] == 2


def test_nothing_found_gives_files_all_the_same(tmp_path):
    result = segmentation(segment("spleen", np.zeros(SHAPE, bool)))
    for name in ("mask.nii.gz", "mask.seg.nrrd"):
        output = write_segmentation(result, tmp_path / name)[0]
        assert array_of(output).shape == SHAPE
        assert not array_of(output).any()


NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=60).filter(str.strip)


@settings(max_examples=60, deadline=None)
@given(NAMES, st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_text_survives_in_the_header(name, typed):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mask.seg.nrrd"
        write_segmentation(segmentation(segment(name.strip(), voxel(0, 0, 0), typed=typed)), path)
        image = sitk.ReadImage(str(path))
        assert image.GetMetaData("Segment0_Name") == name.strip()
        tags = dict(part.split(":", 1) for part in image.GetMetaData("Segment0_Tags").split("|") if part)
        assert json.loads(tags["MedZeroSeg.Provenance"])["typed"] == typed


def test_paths_in_any_script_and_new_folders_work(tmp_path):
    folder = tmp_path / "Sättiger 肺 (1) & co" / "new"
    result = segmentation(segment("左心房", voxel(1, 1, 1)))
    paths = write_segmentation(result, folder / "çt mask.nii.gz")
    assert [path.name for path in paths] == ["çt mask.nii.gz", "çt mask.labels.json"]
    assert table_of(paths[1])["labels"][0]["name"] == "左心房"
    assert array_of(paths[0])[1, 1, 1] == 1


# What cannot be written


@pytest.mark.parametrize("name", ["mask.png", "mask.nrrd", "mask", "mask.nii.zip", ".seg"])
def test_unknown_format_is_refused_with_those_that_are_known(tmp_path, name):
    with pytest.raises(InputError, match=r"\.seg\.nrrd, \.nii\.gz, \.nii") as refusal:
        write_segmentation(segmentation(segment("x", voxel(1, 1, 1))), tmp_path / "new" / name)
    assert refusal.value.exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_suffix_may_be_in_capitals(tmp_path):
    assert check_output(tmp_path / "MASK.NII.GZ") == ".nii.gz"
    assert check_output(tmp_path / "Mask.Seg.Nrrd") == ".seg.nrrd"


def test_image_itself_is_never_overwritten(tmp_path):
    scan = lesson_scan(tmp_path / "scan.nii.gz")
    before, volume = scan.read_bytes(), read_volume(scan)
    with pytest.raises(InputError, match="the image itself"):
        write_segmentation(segmentation(segment("x", volume.voxels > 0), volume=volume), tmp_path / "." / "scan.nii.gz")
    assert scan.read_bytes() == before


def test_folder_as_output_is_refused(tmp_path):
    (tmp_path / "mask.nii").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        write_segmentation(segmentation(segment("x", voxel(1, 1, 1))), tmp_path / "mask.nii")


@pytest.mark.parametrize("name", ["file/mask.nii", "x" * 300 + ".nii"])
def test_impossible_path_is_the_requests_fault(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="give another path"):
        write_segmentation(segmentation(segment("x", voxel(1, 1, 1))), tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("name", ["mask.seg.nrrd", "mask.nii", "mask.nii.gz"])
def test_full_disk_leaves_the_former_result_and_nothing_else(tmp_path, name):
    resource = pytest.importorskip("resource", reason="file size limits exist on Unix only")
    former = write_segmentation(segmentation(segment("x", voxel(1, 1, 1))), tmp_path / name)
    contents = {path: path.read_bytes() for path in former}
    noise = np.random.default_rng(0).random((40, 60, 60)) > 0.5  # does not compress below the limit
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))
    try:
        with pytest.raises(InstallationError, match="cannot be written") as refusal:
            write_segmentation(segmentation(segment("y", noise)), tmp_path / name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(tmp_path / name) in str(refusal.value)
    assert refusal.value.exit_code == 3
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == contents


# The report


def test_report_tells_what_was_understood_and_found(tmp_path):
    lung = segment(
        "left lung", block(slice(0, 2), slice(0, 2), slice(0, 2)), typed="Lt lung", code=LUNG, score=0.87654321,
        category=ANATOMICAL_STRUCTURE, modifier=SIDE_CODES["left"], warnings=("It touches the border.",),
    )  # fmt: skip
    result = segmentation(lung, segment("heart", np.zeros(SHAPE, bool), score=0.1))
    content = table_of(write_report(result, tmp_path / "new" / "report.json"))
    assert content["structures"][0] == {
        "typed": "Lt lung", "understood_as": "left lung", "side": "left",
        "code": {"scheme": "SCT", "value": "39607008", "meaning": "Lung"},
        "found": True, "score": 0.8765, "volume_ml": 0.008, "slices": 2, "warnings": ["It touches the border."],
        "expected_dice": None, "doubtful_slices": [],
    }  # fmt: skip
    assert content["structures"][1]["found"] is False
    assert content["structures"][1]["volume_ml"] == 0
    assert content["preset"] == "lite"
    assert content["device"] == "cpu"
    assert content["version"] == "1.2.3"
    assert content["seconds"] == {"decode": 1.235}
    assert content["weights"][0]["sha256"] == "ab" * 32
    assert content["settings"] == {"threshold": 0.5}
    assert content["warnings"] == ["The liver is cut by the image."]
    assert content["input"]["fingerprint"] == result.volume.fingerprint
    assert "research use" in content["notice"]


def test_report_names_the_input_as_the_user_did(tmp_path):
    volume = read_volume(lesson_scan(tmp_path / "scan.nii"))
    content = report(segmentation(segment("x", volume.voxels > 0), volume=volume))
    assert content["input"]["path"] == str(tmp_path / "scan.nii")
    assert content["input"]["size_ijk"] == [61, 53, 37]
    assert [*volume.warnings, "The liver is cut by the image."] == content["warnings"]


@pytest.mark.parametrize(
    ("dimension", "calibrated", "measure"),
    [
        (3, True, {"volume_ml": 0.004}),
        (3, False, {"volume_ml": "uncalibrated"}),
        (2, True, {"area_mm2": 1.6}),
        (2, False, {"area_mm2": "uncalibrated"}),
    ],
)
def test_measure_is_ml_in_volumes_mm2_in_pictures_and_nothing_uncalibrated(dimension, calibrated, measure):
    volume = Volume(
        np.zeros((1, 5, 6), np.int16), np.diag([0.5, 0.8, 2.5, 1]), "X-ray", dimension=dimension, calibrated=calibrated
    )
    mask = block(slice(0, 1), slice(1, 3), slice(1, 3), (1, 5, 6))
    structure = report(segmentation(segment("x", mask), volume=volume))["structures"][0]
    assert {name: structure[name] for name in structure if name in ("volume_ml", "area_mm2")} == measure


# The values themselves


def test_segment_refuses_what_cannot_be():
    with pytest.raises(ValueError, match="not bool"):
        segment("x", np.zeros(SHAPE, np.uint8))
    with pytest.raises(ValueError, match="outside 0..1"):
        segment("x", voxel(0, 0, 0), score=float("nan"))
    with pytest.raises(ValueError, match="not found and yet"):
        segment("x", voxel(0, 0, 0), found=False)
    with pytest.raises(ValueError, match="the volume"):
        segmentation(segment("x", voxel(0, 0, 0)), segment("y", np.zeros((1, 2, 3), bool)))


def test_mask_of_a_segment_is_read_only_and_the_callers_array_is_not():
    mask = voxel(0, 0, 0)
    with pytest.raises(ValueError, match="read-only"):
        segment("x", mask).mask[0, 0, 0] = False
    mask[0, 0, 1] = True
