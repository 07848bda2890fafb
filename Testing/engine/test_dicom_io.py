"""DICOM files and folders come in by the positions of their slices, or are refused in one sentence."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import phantoms
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    RLELossless,
    generate_uid,
)

from MedZeroSegLib.errors import InputError
from MedZeroSegLib.intensity import picture
from MedZeroSegLib.volume_io import read_volume


def refusal(path: Path, **options) -> str:
    with pytest.raises(InputError) as error:
        read_volume(path, **options)
    sentence = str(error.value)
    assert sentence.endswith(".") and "\n" not in sentence
    assert str(path) in sentence
    return sentence


def numbered_slices(count: int, dtype: type = np.int16) -> np.ndarray:
    """Slices [n, 6, 5] whose values tell slice, row and column."""
    return np.add.outer(np.arange(count) * 100, np.arange(30).reshape(6, 5)).astype(dtype)


def along_z(*heights: float) -> list[tuple[float, float, float]]:
    return [(-10.0, 5.0, height) for height in heights]


def save(image: Dataset, path: Path, **options) -> Path:
    image.save_as(path, **({"enforce_file_format": True} | options))
    return path


def test_a_sagittal_series_lies_at_the_same_world_positions_as_its_volume(tmp_path):
    array = np.zeros((61, 53, 37), np.int16)  # [i, j, k] of the volume
    array[40:49, 8:15, 29:34] = 1000
    slices = array[:, :, ::-1].transpose(0, 2, 1)  # one file for each x: rows run down, columns to posterior
    positions = [(x * 1.0, -318.0, 36 * 0.999) for x in range(61)]
    folder = phantoms.dicom_series(tmp_path / "series", slices, positions, (0, 1, 0, 0, 0, -1), (0.999, 0.9984375))
    volume = read_volume(folder)
    matrix = phantoms.lps_matrix((1.0, 0.9984375, 0.999), (0.0, -318.0, 0.0))
    assert volume.spacing == (0.9984375, 0.999, 1.0)
    assert (volume.modality, volume.modality_source) == ("CT", "dicom")
    assert np.array_equal(
        phantoms.world_points(volume.voxels.T == 1000, volume.ijk_to_lps),
        phantoms.world_points(array == 1000, matrix),
    )


def test_the_order_of_files_and_instance_numbers_does_not_matter(tmp_path):
    slices = numbered_slices(5)
    order = [3, 0, 4, 1, 2]
    folder = phantoms.dicom_series(tmp_path, slices[order], along_z(*(2.0 * k for k in order)))
    volume = read_volume(folder)
    assert np.array_equal(volume.voxels, slices)
    assert np.allclose(volume.ijk_to_lps, phantoms.lps_matrix((1, 1, 2), (-10, 5, 0)))
    assert volume.warnings == ()


@pytest.mark.parametrize("degrees", [0, 20, 135])
def test_an_oblique_series_gives_the_grid_that_simpleitk_gives(tmp_path, degrees):
    rotation = phantoms.rotation_about((1, -2, 0.5), degrees)
    slices = numbered_slices(4)
    positions = [rotation @ (0, 0, 2.5 * k) + (3, -4, 7) for k in range(4)]
    orientation = [*rotation[:, 0], *rotation[:, 1]]
    folder = phantoms.dicom_series(tmp_path, slices, positions, orientation, (0.7, 0.9))
    volume = read_volume(folder)
    files = [str(folder / f"1.2.3-{k:03d}.dcm") for k in range(4)]
    image = sitk.ReadImage(files)
    assert np.array_equal(volume.voxels, sitk.GetArrayFromImage(image))
    direction = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    assert np.allclose(volume.ijk_to_lps[:3, :3], direction, atol=1e-6)
    assert np.allclose(volume.ijk_to_lps[:3, 3], image.GetOrigin())


def test_lost_slices_are_refused_with_their_position(tmp_path):
    folder = phantoms.dicom_series(tmp_path, numbered_slices(5), along_z(0, 2, 4, 8, 10))
    sentence = refusal(folder)
    assert "1 slice is missing" in sentence and "(-10.0, 5.0, 6.0)" in sentence


def test_several_lost_slices_are_counted(tmp_path):
    folder = phantoms.dicom_series(tmp_path, numbered_slices(6), along_z(0, 2, 8, 10, 12, 14))
    sentence = refusal(folder)
    assert "2 slices are missing" in sentence and "(-10.0, 5.0, 4.0)" in sentence


def test_a_doubled_slice_is_used_once_and_said(tmp_path):
    slices = numbered_slices(4)
    volume = read_volume(phantoms.dicom_series(tmp_path, slices, along_z(0, 2, 2, 4)))
    assert np.array_equal(volume.voxels, slices[[0, 1, 3]])
    assert volume.spacing[2] == 2
    assert any("more than one image" in warning for warning in volume.warnings)


def test_a_copied_file_changes_nothing(tmp_path):
    folder = phantoms.dicom_series(tmp_path, numbered_slices(4), along_z(0, 2, 4, 6))
    shutil.copy(folder / "1.2.3-001.dcm", folder / "copy of 1.2.3-001.dcm")
    volume = read_volume(folder)
    assert volume.shape[0] == 4 and volume.warnings == ()


def test_gantry_tilt_is_refused_with_its_angle(tmp_path):
    tilt = (1, 0, 0, 0, 0.9659, -0.2588)
    folder = phantoms.dicom_series(tmp_path, numbered_slices(4), along_z(0, 2, 4, 6), tilt)
    sentence = refusal(folder)
    assert "tilted by 15.0 degrees" in sentence and "resample" in sentence


def test_jitter_passes_in_silence_and_uneven_distances_do_not(tmp_path):
    silent = phantoms.dicom_series(tmp_path / "a", numbered_slices(5), along_z(0, 2.005, 4, 5.995, 8))
    assert read_volume(silent).warnings == ()
    assert read_volume(silent).spacing[2] == 2
    told = phantoms.dicom_series(tmp_path / "b", numbered_slices(5), along_z(0, 2.1, 4, 6, 8))
    assert any("vary" in warning for warning in read_volume(told).warnings)
    uneven = phantoms.dicom_series(tmp_path / "c", numbered_slices(5), along_z(0, 2, 4, 6.7, 8))
    assert "unevenly" in refusal(uneven)


def test_slices_that_are_shifted_in_their_plane_are_refused(tmp_path):
    positions = [(-10.0 + shift, 5.0, 2.0 * k) for k, shift in enumerate((0, 8, 0, 8))]
    assert "shifted" in refusal(phantoms.dicom_series(tmp_path, numbered_slices(4), positions))


def test_time_points_are_frames_and_never_mixed(tmp_path):
    slices = numbered_slices(6)
    for t in range(3):
        phantoms.dicom_series(
            tmp_path, slices[2 * t : 2 * t + 2], along_z(0, 5), TemporalPositionIdentifier=t + 1, AcquisitionNumber=t
        )
        for file in list(tmp_path.glob("1.2.3-*.dcm")):
            file.rename(tmp_path / f"time{t}-{file.name[-7:]}")
    assert "3 frames" in refusal(tmp_path)
    for t in range(3):
        assert np.array_equal(read_volume(tmp_path, frame=t).voxels, slices[2 * t : 2 * t + 2])
    (tmp_path / "time1-000.dcm").unlink()
    assert "incomplete" in refusal(tmp_path)


def test_the_volume_is_taken_from_a_folder_with_localizers(tmp_path):
    slices = numbered_slices(5)
    phantoms.dicom_series(tmp_path / "b", slices, along_z(0, 2, 4, 6, 8))
    phantoms.dicom_series(
        tmp_path / "a", slices[:2], [(0, 0, 0), (5, 0, 0)], (0, 1, 0, 0, 0, -1), SeriesInstanceUID="1.2.4"
    )
    localizer = phantoms.dicom_image(slices[0], ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], SeriesNumber=1)
    save(localizer, tmp_path / "scout")
    report = Dataset()
    report.file_meta = FileMetaDataset()
    report.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    report.SOPClassUID = report.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.88.11"
    report.SOPInstanceUID = report.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    report.Modality = "SR"
    save(report, tmp_path / "report.dcm")
    (tmp_path / "notes.txt").write_text("nothing")
    volume = read_volume(tmp_path)
    assert np.array_equal(volume.voxels, slices)
    assert any("5 images" in warning and "2 other series" in warning for warning in volume.warnings)
    assert "without an image (SR)" in refusal(tmp_path / "report.dcm")


def test_localizers_in_the_series_itself_are_left_out(tmp_path):
    slices = numbered_slices(7)
    phantoms.dicom_series(tmp_path, slices[:5], along_z(0, 2, 4, 6, 8), SeriesNumber=3)
    for number, orientation in enumerate([(1, 0, 0, 0, 0, -1), (0, 1, 0, 0, 0, -1)]):  # coronal, sagittal; same UID
        scout = phantoms.dicom_image(
            slices[5 + number],
            ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"],
            ImagePositionPatient=[0, 0, 0],
            ImageOrientationPatient=list(orientation),
            PixelSpacing=[1, 1],
            SeriesNumber=3,
        )
        save(scout, tmp_path / f"scout{number}")
    volume = read_volume(tmp_path)
    assert np.array_equal(volume.voxels, slices[:5])
    assert any("2 other series were left out" in warning for warning in volume.warnings)


def test_two_stacks_of_one_series_in_different_planes_are_listed_and_refused(tmp_path):
    phantoms.dicom_series(tmp_path / "a", numbered_slices(5), along_z(0, 2, 4, 6, 8), SeriesNumber=3)
    across = [(2.0 * k, 0.0, 0.0) for k in range(4)]
    phantoms.dicom_series(tmp_path / "b", numbered_slices(4), across, (0, 1, 0, 0, 0, -1), SeriesNumber=3)
    assert "CT series 3 with 5 images; CT series 3 with 4 images" in refusal(tmp_path)


def test_listed_files_are_the_image_whatever_else_lies_in_the_folder(tmp_path):
    for number in (2, 3):
        slices = numbered_slices(4) + np.int16(number)
        phantoms.dicom_series(tmp_path, slices, along_z(0, 1, 2, 3), SeriesInstanceUID=f"1.{number}")
    chosen = sorted(tmp_path.glob("1.3-*"), reverse=True)
    assert np.array_equal(read_volume(tmp_path, files=chosen).voxels, numbered_slices(4) + np.int16(3))


def test_two_full_series_are_listed_and_refused(tmp_path):
    for number in (2, 3):
        phantoms.dicom_series(
            tmp_path, numbered_slices(4), along_z(0, 1, 2, 3), SeriesInstanceUID=f"1.{number}", SeriesNumber=number
        )
    sentence = refusal(tmp_path)
    assert "CT series 2 with 4 images; CT series 3 with 4 images" in sentence


def test_a_single_slice_keeps_its_thickness_and_rank(tmp_path):
    folder = phantoms.dicom_series(tmp_path, numbered_slices(1), along_z(30), SliceThickness=5, RescaleSlope=1)
    for path in (folder, folder / "1.2.3-000.dcm"):
        volume = read_volume(path)
        assert volume.shape == (1, 6, 5) and volume.dimension == 3 and volume.calibrated
        assert volume.spacing == (1, 1, 5)


def test_rescale_and_padding_do_not_overflow(tmp_path):
    slices = np.linspace(0, 4095, 4 * 30).reshape(4, 6, 5).astype(np.uint16)
    slices[:, 0] = 63488
    folder = phantoms.dicom_series(
        tmp_path, slices, along_z(0, 1, 2, 3), RescaleSlope=1, RescaleIntercept=-1024, PixelPaddingValue=63488
    )
    volume = read_volume(folder)
    assert np.array_equal(volume.outside, slices == 63488)
    inside = ~volume.outside
    assert np.array_equal(volume.voxels[inside], slices[inside].astype(int) - 1024)
    assert (volume.voxels[volume.outside] == volume.voxels[inside].min()).all()
    assert (picture(volume)[volume.outside] == 0).all()


@pytest.mark.parametrize("first", [-32768, -2000])
def test_signed_padding_and_ranges_are_outside(tmp_path, first):
    slices = numbered_slices(4)
    slices[:, 0], slices[:, 1] = first, first + 10
    folder = phantoms.dicom_series(
        tmp_path, slices, along_z(0, 1, 2, 3), PixelPaddingValue=first, PixelPaddingRangeLimit=first + 10
    )
    volume = read_volume(folder)
    assert volume.outside[:, :2].all() and not volume.outside[:, 2:].any()
    assert volume.voxels.min() == slices[:, 2:].min()


def test_each_slice_of_a_pet_has_its_own_scale(tmp_path):
    slices = np.full((4, 6, 5), 1000, np.int16)
    for k in range(4):
        phantoms.dicom_series(
            tmp_path / str(k), slices[k : k + 1], along_z(3.0 * k), modality="PT", RescaleSlope=f"{0.5 * (k + 1)}"
        )
    volume = read_volume(tmp_path)
    assert volume.modality == "PET"
    assert volume.voxels.dtype == np.float32
    assert np.array_equal(volume.voxels[:, 0, 0], [500, 1000, 1500, 2000])


def radiograph() -> np.ndarray:
    """Stored 12-bit values [40, 30]: bright where much is absorbed."""
    return np.add.outer(np.arange(40) * 70, np.arange(30) * 40).astype(np.uint16)


def test_inverted_radiographs_give_the_same_picture(tmp_path):
    plain = radiograph()
    spacing = {"ImagerPixelSpacing": [0.139, 0.139], "BitsStored": 12, "HighBit": 11}
    images = {
        "plain": phantoms.dicom_image(plain, "DX", **spacing),
        "monochrome1": phantoms.dicom_image(4095 - plain, "DX", PhotometricInterpretation="MONOCHROME1", **spacing),
        "inverse": phantoms.dicom_image(4095 - plain, "DX", PresentationLUTShape="INVERSE", **spacing),
        "both": phantoms.dicom_image(
            4095 - plain, "DX", PhotometricInterpretation="MONOCHROME1", PresentationLUTShape="INVERSE", **spacing
        ),
    }
    for name, image in images.items():
        volume = read_volume(save(image, tmp_path / f"{name}.dcm"))
        assert np.array_equal(volume.voxels[0], plain), name
    signed = (plain.astype(int) - 2048).astype(np.int16)
    image = phantoms.dicom_image(-1 - signed, "DX", PhotometricInterpretation="MONOCHROME1")
    assert np.array_equal(read_volume(save(image, tmp_path / "signed.dcm")).voxels[0], signed)


def test_a_radiograph_states_its_spacing_as_not_calibrated(tmp_path):
    image = phantoms.dicom_image(radiograph(), "DX", ImagerPixelSpacing=[0.139, 0.2])
    volume = read_volume(save(image, tmp_path / "dx.dcm"))
    assert volume.shape == (1, 40, 30) and volume.dimension == 2
    assert volume.modality == "X-ray" and not volume.calibrated
    assert volume.spacing == (0.2, 0.139, 1)
    assert any("0.139 x 0.2 mm" in warning and "not calibrated" in warning for warning in volume.warnings)
    placed = phantoms.dicom_series(
        tmp_path / "placed", radiograph()[np.newaxis], [(0, 0, 0)], modality="CR", spacing=(0.2, 0.2)
    )
    assert read_volume(placed).dimension == 2
    calibrated = phantoms.dicom_image(radiograph(), "DX", PixelSpacing=[0.1, 0.1], ImagerPixelSpacing=[0.139, 0.139])
    volume = read_volume(save(calibrated, tmp_path / "calibrated.dcm"))
    assert volume.calibrated and volume.spacing == (0.1, 0.1, 1)
    unknown = read_volume(save(phantoms.dicom_image(radiograph(), "CR"), tmp_path / "unknown.dcm"))
    assert not unknown.calibrated and any("no pixel size" in warning for warning in unknown.warnings)


def test_an_ultrasound_region_gives_the_spacing(tmp_path):
    region = Dataset()
    region.RegionSpatialFormat, region.PhysicalUnitsXDirection, region.PhysicalUnitsYDirection = 1, 3, 3
    region.PhysicalDeltaX, region.PhysicalDeltaY = 0.05, 0.04
    colour = np.dstack([radiograph() // 16] * 3).astype(np.uint8)
    image = phantoms.dicom_image(colour, "US", SequenceOfUltrasoundRegions=[region])
    volume = read_volume(save(image, tmp_path / "us.dcm"))
    assert volume.modality == "ultrasound" and volume.calibrated and volume.dimension == 2
    assert volume.spacing == pytest.approx((0.5, 0.4, 1))
    assert volume.warnings == ()
    assert np.array_equal(volume.voxels[0], colour[..., 0])


def test_several_radiographs_in_one_folder_are_refused(tmp_path):
    for name in ("front", "side"):
        save(phantoms.dicom_image(radiograph(), "CR"), tmp_path / f"{name}.dcm")
    assert "2 images without a position" in refusal(tmp_path)


def enhanced(slices: np.ndarray, heights: list[float]) -> Dataset:
    """A multi-frame image whose frames have positions of their own."""
    image = phantoms.dicom_image(slices, "MR")
    shared, orientation, measures = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    measures.PixelSpacing, measures.SliceThickness = [0.7, 0.9], 3
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
    image.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for number, height in enumerate(heights):
        frame, plane, value = Dataset(), Dataset(), Dataset()
        plane.ImagePositionPatient = [0, 0, height]
        value.RescaleSlope, value.RescaleIntercept = 1, -number
        frame.PlanePositionSequence, frame.PixelValueTransformationSequence = [plane], [value]
        frames.append(frame)
    image.PerFrameFunctionalGroupsSequence = frames
    return image


def test_frames_of_a_multi_frame_file_are_sorted_by_position(tmp_path):
    slices = numbered_slices(4)
    heights = [4.0, 0.0, 6.0, 2.0]
    volume = read_volume(save(enhanced(slices, heights), tmp_path / "enhanced.dcm"))
    order = np.argsort(heights)
    assert np.array_equal(volume.voxels, slices[order] - order[:, None, None])
    assert volume.spacing == pytest.approx((0.9, 0.7, 2))


def test_repeated_positions_in_a_multi_frame_file_are_frames(tmp_path):
    slices = numbered_slices(4)
    path = save(enhanced(slices, [0, 2, 0, 2]), tmp_path / "enhanced.dcm")
    assert "2 frames" in refusal(path)
    assert np.array_equal(read_volume(path, frame=1).voxels, slices[2:] - np.array([2, 3])[:, None, None])


def test_multi_frame_slices_without_positions_are_stacked_with_a_warning(tmp_path):
    slices = numbered_slices(4)
    volume = read_volume(save(phantoms.dicom_image(slices, "MR", SpacingBetweenSlices=2.5), tmp_path / "stack.dcm"))
    assert np.array_equal(volume.voxels, slices)
    assert volume.spacing == (1, 1, 2.5) and volume.dimension == 3 and not volume.calibrated
    assert any("2.5 mm apart" in warning for warning in volume.warnings)
    kind = ["ORIGINAL", "PRIMARY", "RECON TOMO", "EMISSION"]
    reconstructed = phantoms.dicom_image(slices, "NM", SpacingBetweenSlices=4, PixelSpacing=[2, 2], ImageType=kind)
    detector = Dataset()
    detector.ImagePositionPatient, detector.ImageOrientationPatient = [1, 2, 3], [1, 0, 0, 0, 1, 0]
    reconstructed.DetectorInformationSequence = [detector]
    volume = read_volume(save(reconstructed, tmp_path / "spect.dcm"))
    assert np.allclose(volume.ijk_to_lps, phantoms.lps_matrix((2, 2, 4), (1, 2, 3)))
    assert volume.modality == "nuclear medicine" and volume.calibrated


def test_a_cine_without_positions_has_frames(tmp_path):
    slices = numbered_slices(4, np.uint8)
    path = save(phantoms.dicom_image(slices, "US", FrameTime=33), tmp_path / "cine.dcm")
    assert "4 frames" in refusal(path)
    volume = read_volume(path, frame=3)
    assert volume.dimension == 2 and np.array_equal(volume.voxels[0], slices[3])


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, RLELossless]
)
def test_transfer_syntaxes_change_nothing(tmp_path, syntax):
    pixels = numbered_slices(1)[0]
    image = phantoms.dicom_image(pixels, "MR")
    if syntax == RLELossless:
        image.compress(RLELossless)
    else:
        if syntax == ExplicitVRBigEndian:
            image.PixelData = pixels.astype(">i2").tobytes()
        image.file_meta.TransferSyntaxUID = syntax
    volume = read_volume(save(image, tmp_path / "image.dcm"))
    assert np.array_equal(volume.voxels[0], pixels)
    assert volume.voxels.dtype.isnative


def write_compressed(path: Path, pixels: np.ndarray, codec: str) -> Path:
    """A DICOM file as GDCM writes it, with a lossless codec; several slices make a multi-frame file."""
    writer = sitk.ImageFileWriter()
    writer.SetFileName(str(path))
    writer.SetImageIO("GDCMImageIO")
    writer.UseCompressionOn()
    writer.SetCompressor(codec)
    image = sitk.GetImageFromArray(pixels)
    image.SetMetaData("0008|0060", "CT")
    writer.Execute(image)
    assert pydicom.dcmread(path).file_meta.TransferSyntaxUID.is_compressed
    return path


@pytest.mark.parametrize("codec", ["JPEG", "JPEG2000"])
def test_compressed_pixels_come_back_as_stored_and_inverted_once(tmp_path, codec):
    pixels = radiograph()
    path = write_compressed(tmp_path / "image.dcm", pixels, codec)
    assert np.array_equal(read_volume(path).voxels[0], pixels)
    image = pydicom.dcmread(path)
    image.PhotometricInterpretation = "MONOCHROME1"
    inverted = read_volume(save(image, tmp_path / "inverted.dcm"))
    assert np.array_equal(inverted.voxels[0], 2 ** int(image.BitsStored) - 1 - pixels.astype(int))
    image.RescaleSlope, image.RescaleIntercept, image.PhotometricInterpretation = 2, -1024, "MONOCHROME2"
    rescaled = read_volume(save(image, tmp_path / "rescaled.dcm"))
    assert np.array_equal(rescaled.voxels[0], pixels.astype(int) * 2 - 1024)


def test_one_frame_of_a_compressed_file_is_decoded(tmp_path):
    slices = numbered_slices(4, np.uint16)
    image = pydicom.dcmread(write_compressed(tmp_path / "frames.dcm", slices, "JPEG"))
    image.FrameTime = 33
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PerFrameFunctionalGroupsSequence"):
        if keyword in image:
            delattr(image, keyword)
    assert np.array_equal(read_volume(save(image, tmp_path / "cine.dcm"), frame=2).voxels[0], slices[2])


def test_palette_colours_become_grey(tmp_path):
    indices = np.tile(np.arange(4, dtype=np.uint8), (3, 1))
    image = phantoms.dicom_image(indices, "US", PhotometricInterpretation="PALETTE COLOR")
    for name, levels in (("Red", (0, 80, 160, 240)), ("Green", (0, 80, 160, 240)), ("Blue", (0, 80, 160, 240))):
        setattr(image, f"{name}PaletteColorLookupTableDescriptor", [4, 0, 16])
        setattr(image, f"{name}PaletteColorLookupTableData", (np.array(levels, "<u2") * 256).tobytes())
    volume = read_volume(save(image, tmp_path / "palette.dcm"))
    assert np.array_equal(volume.voxels[0, 0], np.array((0, 80, 160, 240)) * 256)


@pytest.mark.parametrize(("stray", "implicit"), [(b"", True), (b"", False), (b" ", False)])
def test_files_without_preamble_and_file_meta_are_read(tmp_path, stray, implicit):
    image = phantoms.dicom_image(numbered_slices(1)[0])
    path = tmp_path / "IM0001"
    del image.file_meta
    image.save_as(path, implicit_vr=implicit, little_endian=True)
    path.write_bytes(stray + path.read_bytes())
    volume = read_volume(path)
    assert np.array_equal(volume.voxels, numbered_slices(1)) and volume.modality == "CT"


def test_damaged_files_are_refused_by_name(tmp_path):
    folder = phantoms.dicom_series(tmp_path / "series", numbered_slices(4), along_z(0, 1, 2, 3))
    bad = folder / "1.2.3-002.dcm"
    whole = bad.read_bytes()
    bad.write_bytes(whole[:-20])
    assert "cut short" in refusal(bad)
    with pytest.raises(InputError, match="1.2.3-002.dcm"):
        read_volume(folder)
    image = phantoms.dicom_image(numbered_slices(1)[0])
    del image.PixelData
    assert "missing" in refusal(save(image, tmp_path / "empty.dcm"))
    (tmp_path / "noise.dcm").write_bytes(bytes(128) + b"DICM" + np.random.default_rng(0).bytes(500))
    assert "DICOM" in refusal(tmp_path / "noise.dcm")


def test_random_damage_to_the_header_never_ends_in_another_error(tmp_path):
    image = phantoms.dicom_image(numbered_slices(1)[0], RescaleSlope=1, RescaleIntercept=-5, PixelPaddingValue=3)
    image.ImagePositionPatient, image.ImageOrientationPatient = [0, 0, 0], [1, 0, 0, 0, 1, 0]
    whole = save(image, tmp_path / "whole.dcm").read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(whole)
        for place in rng.integers(140, len(whole) - 60, 3):
            damaged[place] = rng.integers(0, 256)
        (tmp_path / "damaged.dcm").write_bytes(damaged)
        try:
            read_volume(tmp_path / "damaged.dcm")
        except InputError:
            refused += 1
    assert refused > 30


def test_an_image_without_a_modality_is_guessed_and_an_unknown_one_is_other(tmp_path):
    image = phantoms.dicom_image(np.linspace(-1000, 1000, 30).reshape(6, 5).astype(np.int16))
    del image.Modality
    volume = read_volume(save(image, tmp_path / "none.dcm"))
    assert (volume.modality, volume.modality_source) == ("CT", "guess")
    image.Modality = "OT"
    volume = read_volume(save(image, tmp_path / "other.dcm"))
    assert (volume.modality, volume.modality_source) == ("other", "dicom")
    assert read_volume(tmp_path / "other.dcm", modality="MR").modality == "MR"


def test_folders_with_names_in_any_script_are_read(tmp_path):
    folder = tmp_path / "Sättiger 肺 (1) & co"
    phantoms.dicom_series(folder / "Müller", numbered_slices(4), along_z(0, 1, 2, 3))
    assert read_volume(str(folder)).path == folder
    message = refusal(phantoms.dicom_series(folder / "lost", numbered_slices(4), along_z(0, 1, 2, 4)))
    assert "rg" not in message.replace(str(folder), "")  # the patient's name isn't told
