"""Image files come in on their own grid with their own rank, or are refused in one sentence."""

from __future__ import annotations

import csv
import gzip
import mmap
import resource
import subprocess
import sys
import unicodedata
from pathlib import Path

import nibabel
import numpy as np
import phantoms
import pytest
import SimpleITK as sitk
from PIL import Image

from MedZeroSegLib.errors import InputError
from MedZeroSegLib.volume import Volume
from MedZeroSegLib.volume_io import read_volume

SHARED = Path(__file__).parents[3] / "shared" / "data"


def write_nifti(path: Path, array: np.ndarray, affine: np.ndarray) -> Path:
    """NIfTI-1 with sform code 1 and qform code 0, through nibabel; ``array`` is [i, j, k], ``affine`` RAS."""
    image = nibabel.Nifti1Image(array, affine)
    image.set_sform(affine, 1)
    image.header["qform_code"] = 0
    nibabel.save(image, path)
    return path


def refusal(path: Path, **options) -> str:
    """The sentence with which a path is refused."""
    with pytest.raises(InputError) as error:
        read_volume(path, **options)
    sentence = str(error.value)
    assert sentence.endswith(".") and "\n" not in sentence
    assert str(path) in sentence
    return sentence


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha", ".mhd"])
def test_the_grid_is_copied_from_the_file(tmp_path, suffix):
    array = np.zeros((61, 53, 37), np.int16)
    array[40:49, 8:15, 29:34] = 1000
    matrix = phantoms.lps_matrix((1.0, 0.9984375, 0.999), (0.0, -318.0, 0.0))
    volume = read_volume(phantoms.write_image(tmp_path / f"scan{suffix}", array, matrix))
    assert np.array_equal(volume.voxels, array.T)
    assert volume.shape == (37, 53, 61)
    assert np.allclose(volume.ijk_to_lps, matrix, rtol=1e-7, atol=0)  # NIfTI keeps 32-bit numbers
    assert volume.dimension == 3 and volume.calibrated


@pytest.mark.parametrize("storage", list(phantoms.storages())[::5], ids=str)
@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_every_axis_order_keeps_its_voxels_and_handedness(tmp_path, storage, suffix):
    canonical, matrix = phantoms.l_phantom(), phantoms.lps_matrix()
    stored_matrix = storage.matrix(canonical.shape, matrix)
    volume = read_volume(phantoms.write_image(tmp_path / f"scan{suffix}", storage.store(canonical), stored_matrix))
    assert np.array_equal(volume.voxels, storage.store(canonical).T)
    assert np.allclose(volume.ijk_to_lps, stored_matrix, atol=1e-5)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
def test_nifti_numbers_of_every_type_and_byte_order_are_read(tmp_path, dtype, order):
    array = np.arange(60).reshape(3, 4, 5).astype(order + dtype)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4), nibabel.Nifti1Header(endianness=order)), tmp_path / "scan.nii")
    volume = read_volume(tmp_path / "scan.nii")
    assert volume.voxels.dtype.isnative
    assert np.array_equal(volume.voxels, array.T)


@pytest.mark.parametrize(
    ("slope", "intercept", "dtype"), [(1, -1024, np.int16), (2, -1024, np.float32), (0, 7, np.uint16)]
)
def test_nifti_scaling_is_applied_without_overflow(tmp_path, slope, intercept, dtype):
    stored = np.arange(0, 4080, 17, dtype=np.uint16).reshape(5, 6, 8)
    image = nibabel.Nifti1Image(stored, np.eye(4))
    nibabel.save(image, tmp_path / "scan.nii")
    content = bytearray((tmp_path / "scan.nii").read_bytes())
    content[112:120] = np.array([slope, intercept], "<f4").tobytes()
    (tmp_path / "scan.nii").write_bytes(content)
    voxels = read_volume(tmp_path / "scan.nii").voxels
    assert voxels.dtype == dtype
    assert np.array_equal(voxels, (stored.astype(int) * slope + intercept if slope else stored).T)


def test_huge_frames_stay_on_disk(tmp_path, monkeypatch):
    frames = moving_block()
    path = write_nifti(tmp_path / "cine.nii", frames, np.eye(4))
    monkeypatch.setattr("MedZeroSegLib.nifti.MAPPED_SIZE_MIN", 1)
    volume = read_volume(path, frame=2)
    owner = volume.voxels
    while isinstance(owner, np.ndarray):
        owner = owner.base
    assert isinstance(owner, mmap.mmap)
    assert np.array_equal(volume.voxels, frames[..., 2].T)


def test_points_go_to_the_world_and_back():
    rotation = phantoms.rotation_about((1, 2, 3), 40)
    volume = Volume(np.zeros((3, 4, 5)), phantoms.lps_matrix((0.5, 2, 3), rotation=rotation), "MR")
    points = np.array([[0, 0, 0], [4, 3, 2], [1.5, 0.25, 1]])
    world = volume.ijk_to_world_lps(points)
    assert np.allclose(world[0], volume.ijk_to_lps[:3, 3])
    assert np.allclose(volume.lps_to_ijk(world), points)
    assert volume.spacing == pytest.approx((0.5, 2, 3))


def test_a_tiny_shear_and_a_left_handed_grid_load(tmp_path):
    array = np.arange(120, dtype=np.int16).reshape(6, 5, 4)
    affine = np.diag([0.8, 0.8, 2.5, 1])
    affine[0, 2] = 1e-5
    assert np.array_equal(read_volume(write_nifti(tmp_path / "tiny.nii", array, affine)).voxels, array.T)
    left_handed = read_volume(write_nifti(tmp_path / "left.nii", array, np.diag([-1.0, 1, 2, 1])))
    assert np.linalg.det(left_handed.ijk_to_lps) < 0
    assert np.allclose(left_handed.ijk_to_lps, np.diag([1.0, -1, 2, 1]))


@pytest.mark.parametrize("name", ["shear.nii", "shear.nii.gz"])
def test_a_large_shear_is_refused_with_its_angle(tmp_path, name):
    affine = np.diag([0.8, 0.8, 2.5, 1])
    affine[0, 2] = 0.1
    sentence = refusal(write_nifti(tmp_path / name, np.zeros((4, 4, 4), np.int16), affine))
    assert "2.29 degrees" in sentence and "resample" in sentence


def write_nrrd(path: Path, fields: str, voxels: np.ndarray) -> Path:
    header = f"NRRD0004\ntype: short\nencoding: raw\nendian: little\nspace: left-posterior-superior\n{fields}\n\n"
    path.write_bytes(header.encode() + voxels.astype("<i2").tobytes(order="F"))
    return path


def test_nrrd_with_a_flipped_axis_keeps_its_direction(tmp_path):
    voxels = np.arange(60).reshape(3, 4, 5)
    fields = "dimension: 3\nsizes: 3 4 5\nspace directions: (1,0,0) (0,-1,0) (0,0,2)\nspace origin: (0,0,0)"
    volume = read_volume(write_nrrd(tmp_path / "flipped.nrrd", fields, voxels))
    assert np.array_equal(volume.ijk_to_lps, np.diag([1.0, -1, 2, 1]))
    assert np.array_equal(volume.voxels, voxels.T)


def test_a_sheared_nrrd_is_refused_like_a_sheared_nifti(tmp_path):
    fields = "dimension: 3\nsizes: 3 4 5\nspace directions: (1,0,0) (0.3,1,0) (0,0,2)\nspace origin: (0,0,0)"
    assert "16.70 degrees" in refusal(write_nrrd(tmp_path / "sheared.nrrd", fields, np.zeros((3, 4, 5))))


def test_negative_spacing_in_metaimage_is_a_flipped_direction(tmp_path):
    path = tmp_path / "negative.mha"
    header = (
        "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\n"
        "TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 0 0 0\nElementSpacing = 1 -1 2\nDimSize = 3 4 5\n"
        "ElementType = MET_SHORT\nElementDataFile = LOCAL\n"
    )
    path.write_bytes(header.encode() + np.arange(60, dtype="<i2").tobytes())
    volume = read_volume(path)
    assert np.array_equal(volume.ijk_to_lps, np.diag([1.0, -1, 2, 1]))
    assert np.array_equal(volume.voxels.ravel(), np.arange(60))


def moving_block() -> np.ndarray:
    frames = np.zeros((24, 20, 9, 4), np.int16)
    for t in range(4):
        frames[5 + t : 9 + t, 6:12, 2:6, t] = 50
    return frames


def test_four_frames_are_refused_with_their_count_and_each_can_be_chosen(tmp_path):
    frames = moving_block()
    path = write_nifti(tmp_path / "cine.nii.gz", frames, np.diag([2.0, 2, 3, 1]))
    assert "4 frames" in refusal(path)
    for t in range(4):
        volume = read_volume(path, frame=t)
        assert np.array_equal(volume.voxels, frames[..., t].T)
        assert volume.spacing == (2, 2, 3)
    assert "no frame 4" in refusal(path, frame=4)
    assert "no frame -1" in refusal(path, frame=-1)


def test_a_trailing_dimension_of_one_is_three_dimensional(tmp_path):
    array = np.arange(24 * 20 * 9, dtype=np.int16).reshape(24, 20, 9, 1)
    path = write_nifti(tmp_path / "single.nii.gz", array, np.eye(4))
    assert np.array_equal(read_volume(path).voxels, array[..., 0].T)
    assert read_volume(path, frame=0).shape == (9, 20, 24)
    assert "one frame" in refusal(path, frame=1)


@pytest.mark.parametrize("first", [True, False])
def test_a_nrrd_list_axis_holds_frames(tmp_path, first):
    frames = np.moveaxis(moving_block(), -1, 0) if first else moving_block()
    sizes, kinds = " ".join(map(str, frames.shape)), "list domain domain domain"
    directions = "none (1,0,0) (0,1,0) (0,0,2)"
    if not first:
        kinds, directions = "domain domain domain list", "(1,0,0) (0,1,0) (0,0,2) none"
    fields = f"dimension: 4\nsizes: {sizes}\nspace directions: {directions}\nkinds: {kinds}\nspace origin: (0,0,0)"
    path = write_nrrd(tmp_path / "sequence.seq.nrrd", fields, frames)
    assert "4 frames" in refusal(path)
    assert np.array_equal(read_volume(path, frame=2).voxels, moving_block()[..., 2].T)


@pytest.mark.parametrize("shape", [(64, 48), (64, 48, 1), (64, 1, 48), (1, 64, 48)])
def test_a_single_slice_keeps_its_rank_and_thickness(tmp_path, shape):
    array = np.arange(64 * 48, dtype=np.int16).reshape(shape)
    volume = read_volume(write_nifti(tmp_path / "slice.nii.gz", array, np.diag([0.8, 0.8, 5, 1])))
    assert volume.dimension == len(shape)
    assert volume.shape == (shape if len(shape) == 3 else (*shape, 1))[::-1]
    assert np.array_equal(volume.voxels.ravel(), array.T.ravel())
    assert volume.spacing == pytest.approx((0.8, 0.8, 5) if len(shape) == 3 else (0.8, 0.8, 1))
    assert volume.calibrated


@pytest.mark.parametrize("name", ["radiograph.png", "radiograph.JPG", "radiograph.tif", "radiograph.bmp"])
def test_a_picture_is_two_dimensional_uncalibrated_and_guessed_x_ray(tmp_path, name):
    grey = (np.add.outer(np.arange(40), np.arange(30)) * 3).astype(np.uint8)
    Image.fromarray(grey).save(tmp_path / name)
    volume = read_volume(tmp_path / name)
    assert volume.shape == (1, 40, 30) and volume.dimension == 2 and not volume.calibrated
    assert np.abs(volume.voxels[0].astype(int) - grey).max() <= 3  # JPEG is lossy
    assert (volume.modality, volume.modality_source) == ("X-ray", "guess")
    assert any("guessed" in warning for warning in volume.warnings)
    assert any("voxel size" in warning for warning in volume.warnings)


def test_pictures_of_every_kind_become_grey(tmp_path):
    grey = np.tile(np.arange(0, 240, 8, dtype=np.uint8), (20, 1))
    colour = np.stack([grey, grey // 2, grey // 3], axis=-1)
    luma = np.rint(colour.astype(np.float32) @ np.float32([0.299, 0.587, 0.114])).astype(np.uint8)
    Image.fromarray(grey.astype(np.uint16) * 200).save(tmp_path / "deep.png")
    assert np.array_equal(read_volume(tmp_path / "deep.png").voxels[0], grey.astype(np.uint16) * 200)
    opaque = np.full_like(grey, 255)
    for name, pixels, expected in (
        ("colour.png", colour, luma),
        ("alpha.png", np.dstack([colour, opaque]), luma),
        ("grey_as_colour.png", np.dstack([grey] * 3), grey),
    ):
        Image.fromarray(pixels).save(tmp_path / name)
        volume = read_volume(tmp_path / name)
        assert np.array_equal(volume.voxels[0], expected), name
        assert any("colours" in warning for warning in volume.warnings) == (expected is luma), name
    Image.fromarray(np.dstack([grey, opaque])).save(tmp_path / "grey_alpha.png")
    assert "save it as grey" in refusal(tmp_path / "grey_alpha.png")
    Image.fromarray(colour).quantize(16).save(tmp_path / "palette.png")
    assert read_volume(tmp_path / "palette.png").shape == (1, 20, 30)


def test_colour_volumes_become_grey_with_a_warning(tmp_path):
    colour = np.zeros((4, 5, 6, 3), np.uint8)
    colour[..., 1] = 100
    image = sitk.GetImageFromArray(colour, isVector=True)
    pixels = np.zeros((6, 5, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    pixels["G"] = 100
    nibabel.save(nibabel.Nifti1Image(pixels, np.eye(4)), tmp_path / "rgb24.nii.gz")
    for name in ("colour.nii.gz", "colour.mha", "colour.nrrd"):
        sitk.WriteImage(image, str(tmp_path / name))
    for name in ("colour.nii.gz", "colour.mha", "colour.nrrd", "rgb24.nii.gz"):
        volume = read_volume(tmp_path / name)
        assert volume.shape == (4, 5, 6) and (volume.voxels == 59).all()
        assert any("colours" in warning for warning in volume.warnings)


def noisy() -> np.ndarray:
    return np.random.default_rng(0).normal(100, 20, (40, 36, 12))


def test_bad_voxels_are_outside_and_counted(tmp_path):
    array = noisy()
    bad = np.zeros(array.shape, bool)
    bad[3:8, 4, 5] = bad[20, 20, 2] = bad[21, 20, 2] = bad[:, :, 9] = True
    smallest = array[~bad].min()
    array[bad] = np.nan
    array[20, 20, 2], array[21, 20, 2] = np.inf, -np.inf
    volume = read_volume(write_nifti(tmp_path / "bad.nii", array, np.eye(4)))
    assert np.array_equal(volume.outside, bad.T)
    assert volume.voxels.dtype == np.float32
    assert np.all(volume.voxels[bad.T] == np.float32(smallest))
    assert np.array_equal(volume.voxels[~bad.T], array.T[~bad.T].astype(np.float32))
    assert any(str(bad.sum()) in warning for warning in volume.warnings)


def test_nothing_but_nan_is_refused(tmp_path):
    array = np.full((4, 5, 6), np.nan, np.float32)
    assert "nothing but" in refusal(write_nifti(tmp_path / "nan.nii", array, np.eye(4)))


def test_huge_numbers_do_not_overflow(tmp_path):
    array = noisy()
    array[0, 0, 0], array[1, 0, 0] = 1e38, -1e300
    volume = read_volume(write_nifti(tmp_path / "huge.nii", array, np.eye(4)))
    assert np.isfinite(volume.voxels).all() and volume.outside is None


@pytest.mark.parametrize(("dtype", "padding"), [(np.int16, -32768), (np.uint16, 65535)])
def test_the_end_of_a_16_bit_type_is_padding_when_it_stands_alone(tmp_path, dtype, padding):
    array = noisy().astype(dtype)
    array[0] = padding
    volume = read_volume(write_nifti(tmp_path / "padded.nii", array, np.eye(4)))
    assert np.array_equal(volume.outside, (array == padding).T)
    assert volume.voxels.min() == array[1:].min() and volume.voxels.max() == array[1:].max()
    assert any("padding" in warning for warning in volume.warnings)
    flat = read_volume(write_nifti(tmp_path / "flat.nii", array[:, :, 0], np.eye(4)))
    assert flat.outside is None  # in a picture it is white
    ramp = np.linspace(np.iinfo(dtype).min, np.iinfo(dtype).max, array.size).reshape(array.shape).astype(dtype)
    assert read_volume(write_nifti(tmp_path / "ramp.nii", ramp, np.eye(4))).outside is None


@pytest.mark.parametrize(
    ("low", "high", "dtype", "modality"),
    [
        (-1000, 1200, np.int16, "CT"),
        (-150, 400, np.int16, "CT"),
        (-1000, 1200, np.float32, "CT"),
        (0, 900, np.uint16, "MR"),
        (-2, 3, np.float32, "MR"),
    ],
)
def test_the_modality_is_guessed_from_values_and_said_to_be_a_guess(tmp_path, low, high, dtype, modality):
    array = np.linspace(low, high, 6 * 7 * 8).reshape(6, 7, 8).astype(dtype)
    path = write_nifti(tmp_path / "scan.nii", array, np.eye(4))
    volume = read_volume(path)
    assert (volume.modality, volume.modality_source) == (modality, "guess")
    assert any(f"{modality} was guessed" in warning for warning in volume.warnings)
    given = read_volume(path, modality="PET")
    assert (given.modality, given.modality_source, given.warnings) == ("PET", "given", ())
    with pytest.raises(InputError, match="MR, X-ray"):
        read_volume(path, modality="MRI")


def test_complex_numbers_are_refused(tmp_path):
    array = np.ones((3, 4, 5), np.complex64)
    assert "magnitude" in refusal(write_nifti(tmp_path / "complex.nii", array, np.eye(4)))


def test_paths_in_any_script_work(tmp_path):
    for form in ("NFC", "NFD"):
        folder = tmp_path / unicodedata.normalize(form, "Sättiger 肺 (1) & co") / form
        folder.mkdir(parents=True)
        for name in ("çt scan.nii.gz", "左心房.nrrd", "ç.png"):
            path = folder / name
            if name.endswith(".png"):
                Image.fromarray(np.eye(8, dtype=np.uint8)).save(path)
            else:
                sitk.WriteImage(sitk.Image([4, 5, 6], sitk.sitkInt16) + 7, str(path))
            assert read_volume(str(path)).path == path


def test_what_cannot_be_read_is_refused_in_one_sentence(tmp_path, capfd):
    assert "does not exist" in refusal(tmp_path / "no scan.nii")
    assert "empty" in refusal(tmp_path)
    (tmp_path / "empty.nii").touch()
    assert "empty file" in refusal(tmp_path / "empty.nii")
    (tmp_path / "text.nii.gz").write_text("not an image")
    assert "not an image" in refusal(tmp_path / "text.nii.gz")
    (tmp_path / "notes.txt").write_text("not an image")
    assert "give NIfTI" in refusal(tmp_path / "notes.txt")
    whole = write_nifti(tmp_path / "whole.nii.gz", noisy(), np.eye(4)).read_bytes()
    (tmp_path / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    assert "damaged" in refusal(tmp_path / "cut.nii.gz")
    (tmp_path / "cut.nii").write_bytes(gzip.decompress(whole)[:5000])
    assert "shorter" in refusal(tmp_path / "cut.nii")
    for name in ("cut.nrrd", "cut.mha", "cut.png", "cut.jpg"):
        plain = sitk.GetImageFromArray(np.random.default_rng(1).integers(0, 255, (3, 64, 64)).astype(np.uint8))
        sitk.WriteImage(plain[:, :, 1] if name.endswith("g") else plain, str(tmp_path / name))
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-2000])
        assert "again" in refusal(tmp_path / name)
    nibabel.save(nibabel.Nifti2Image(noisy(), np.eye(4)), tmp_path / "second.nii")
    assert "NIfTI-2" in refusal(tmp_path / "second.nii")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").write_text("no image")
    assert "no DICOM" in refusal(tmp_path / "folder")
    assert capfd.readouterr().err == ""


def test_the_fingerprint_changes_with_voxels_and_grid():
    voxels = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    one = Volume(voxels, np.eye(4), "MR")
    assert one.fingerprint == Volume(voxels[::-1][::-1], np.eye(4), "CT").fingerprint
    assert one.fingerprint != Volume(voxels + 1, np.eye(4), "MR").fingerprint
    assert one.fingerprint != Volume(voxels, np.diag([1, 1, 2, 1]), "MR").fingerprint
    assert one.fingerprint != Volume(voxels.reshape(5, 4, 3), np.eye(4), "MR").fingerprint


@pytest.mark.parametrize(
    "arguments",
    [
        {"voxels": np.zeros((3, 4))},
        {"voxels": np.zeros((3, 0, 4))},
        {"voxels": np.full((2, 2, 2), np.nan)},
        {"voxels": np.zeros((2, 2, 2), complex)},
        {"ijk_to_lps": np.zeros((4, 4))},
        {"ijk_to_lps": np.diag([1, 1, np.nan, 1])},
        {"ijk_to_lps": np.diag([1, 1, 0, 1])},
        {"modality": "MRI"},
        {"modality_source": "rumour"},
        {"dimension": 2},
        {"outside": np.zeros((2, 2, 3), bool)},
        {"outside": np.zeros((2, 2, 2), np.uint8)},
    ],
)
def test_a_volume_refuses_nonsense_when_it_is_built(arguments):
    good = {"voxels": np.zeros((2, 2, 2)), "ijk_to_lps": np.eye(4), "modality": "MR"}
    Volume(**good)
    with pytest.raises(ValueError):
        Volume(**(good | arguments))


def test_voxels_are_read_only_without_freezing_the_callers_array():
    voxels = np.zeros((2, 2, 2))
    volume = Volume(voxels, np.eye(4), "MR")
    with pytest.raises(ValueError):
        volume.voxels[0] = 1
    voxels[0] = 1


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_AS"), reason="needs an address-space limit")
def test_a_large_volume_is_read_and_shown_within_limited_memory(tmp_path):
    path = tmp_path / "large.nii"
    ramp = np.broadcast_to(np.arange(640, dtype=np.uint8) // 4, (400, 640, 640))
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape((640, 640, 400))
    with path.open("wb") as file:
        header["vox_offset"] = 352
        header["magic"] = b"n+1"
        file.write(header.binaryblock + bytes(4))
        for section in ramp:
            file.write(section.tobytes())
    script = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1_500_000_000,) * 2)\n"
        "from MedZeroSegLib.volume_io import read_volume\n"
        "from MedZeroSegLib.intensity import body_mask, picture\n"
        "volume = read_volume(sys.argv[1], modality='MR')\n"
        "print(picture(volume).shape, body_mask(volume).shape)\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script, str(path)], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("(400, 640, 640)") == 2


def awkward_files() -> list[Path]:
    folder = SHARED / "awkward_files"
    return sorted(folder.iterdir()) if folder.is_dir() else []


REFUSED = {
    "ct_gantry_tilt_missing_slice": "18.5 degrees",
    "mr_truncated.dcm": "cut short",
    "us_cine_ybr_jpeg.dcm": "30 frames",
    "fmri_4d_oblique.nii.gz": "2 frames",
    "fmri_4d_nifti2.nii.gz": "NIfTI-2",
    "mr_afni.HEAD": "AFNI",
    "mr_afni.BRIK.gz": "AFNI",
    "mr_minc2_4d.mnc": "2 frames",
    "not_a_nifti.nii": "not an image",
}


@pytest.mark.skipif(
    not awkward_files(), reason="the folder shared/data with real awkward files isn't beside the checkout"
)
def test_every_awkward_real_file_loads_or_is_refused_in_one_sentence():
    with (SHARED / "manifest.csv").open(newline="", encoding="utf-8") as table:
        modalities = {Path(row["image"]).name: row["modality"] for row in csv.DictReader(table)}
    for path in awkward_files():
        if path.name in REFUSED:
            assert REFUSED[path.name] in refusal(path)
            if "frames" in REFUSED[path.name]:
                assert read_volume(path, frame=1).shape[1] > 1
            continue
        volume = read_volume(path)
        assert volume.voxels.max() > volume.voxels.min()
        if path.suffix == ".dcm":
            assert (volume.modality, volume.modality_source) == (modalities[path.name], "dicom")
