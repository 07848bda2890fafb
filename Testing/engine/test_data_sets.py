"""Readers of public data sets as downloaded: the layouts as they are, other nesting and case, and broken copies."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from data_set_trees import (
    ABSENT,
    SHARED,
    abdomen,
    add_ct,
    add_patient,
    add_radiograph,
    chest,
    heart,
    in_h5_numbering,
    real_abdomen,
    real_acdc,
    real_radiographs,
    write_h5,
    write_nifti,
    write_png,
)

from MedZeroSegLib.errors import InputError
from MedZeroSegLib.evaluation.acdc import ENCLOSED_MIN, LABELS, LIST_TEST, LIST_VAL, SPLITS, enclosed_share, read_acdc
from MedZeroSegLib.evaluation.covidqu import read_covidqu
from MedZeroSegLib.evaluation.datasets import DATA_SETS
from MedZeroSegLib.evaluation.synapse import LABELS as SYNAPSE
from MedZeroSegLib.evaluation.synapse import read_synapse
from MedZeroSegLib.evaluation.synapse_h5 import H5_LABELS, patient_axes

with_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=ABSENT)


def refused(read, *arguments) -> str:
    """The one sentence of the refusal."""
    with pytest.raises(InputError) as problem:
        cases = read(*arguments)
        for case in cases:
            case.read()
    text = str(problem.value)
    assert "\n" not in text and text.endswith(".")
    return text


# ACDC


@with_shared
def test_real_acdc_in_the_challenges_layout(tmp_path):
    real_acdc(tmp_path, {101: 1, 150: 88})
    cases = read_acdc(tmp_path, "test")
    assert [case.case_id for case in cases] == [
        "patient101_frame01", "patient101_frame12", "patient150_frame01", "patient150_frame12",
    ]  # fmt: skip
    assert {case.patient_id for case in cases} == {"patient101", "patient150"}
    volume, labels = cases[0].read()
    assert volume.modality == "MR" and volume.shape == labels.shape
    assert set(np.unique(labels)) == {0, 1, 2, 3}


@with_shared
def test_every_real_mask_of_acdc_has_its_cavity_in_a_ring_and_none_with_swapped_ventricles():
    for file in sorted((SHARED / "acdc_cardiac_mr_CC-BY-NC-SA" / "masks").iterdir())[::6]:
        labels = sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
        assert enclosed_share(labels) > 0.95
        assert enclosed_share(np.array([0, 3, 2, 1])[labels]) < ENCLOSED_MIN - 0.1
        assert enclosed_share(np.array([0, 1, 3, 2])[labels]) < ENCLOSED_MIN - 0.1


def test_acdc_of_other_nesting_and_case_unpacked_with_what_archivers_leave(tmp_path):
    place = add_patient(tmp_path / "ACDC" / "Database" / "TRAINING", 7, es=9)
    (place / "Info.cfg").rename(place / "INFO.CFG")
    for file in list(place.glob("*_frame*.nii.gz")):  # as some tools unpack: a folder x.nii with x.nii in it
        array = sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
        file.unlink()
        name = file.name.removesuffix(".gz").replace("patient", "Patient")
        write_nifti(place / name / name, array)
    place.rename(place.with_name("Patient007"))
    junk = tmp_path / "__MACOSX" / "patient007"
    junk.mkdir(parents=True)
    (junk / "._patient007_frame01.nii.gz").write_bytes(b"x")
    (tmp_path / "ACDC" / ".DS_Store").write_bytes(b"x")
    cases = read_acdc(tmp_path, "train")
    assert [case.case_id for case in cases] == ["patient007_frame01", "patient007_frame09"]
    assert cases[1].read()[1].max() == 3
    assert [case.image for case in read_acdc(tmp_path / "ACDC", "list-test")] == [case.image for case in cases]


def test_the_lists_of_semi_supervised_papers_part_the_training_patients():
    assert (len(LIST_TEST), len(LIST_VAL), len(SPLITS["list-train"])) == (20, 10, 70)
    assert SPLITS["list-train"] | {*LIST_TEST, *LIST_VAL} == SPLITS["train"] == set(range(1, 101))
    assert SPLITS["test"] == set(range(101, 151))


def test_acdc_without_a_mask_names_it(tmp_path):
    place = add_patient(tmp_path, 101)
    (place / "patient101_frame12_gt.nii.gz").unlink()
    assert "has no patient101_frame12_gt.nii.gz, the mask of end-systole" in refused(read_acdc, tmp_path)


@pytest.mark.parametrize(
    ("content", "told"), [(None, "has no Info.cfg"), ("ED: 1\nGroup: DCM\n", "ES: 1"), ("ED: one\nES: 2\n", "ED: 1")]
)
def test_acdc_whose_info_lacks_a_frame_says_which(tmp_path, content, told):
    info = add_patient(tmp_path, 101) / "Info.cfg"
    info.unlink() if content is None else info.write_text(content)
    assert told in refused(read_acdc, tmp_path)


@pytest.mark.parametrize("order", [(0, 3, 2, 1), (0, 1, 3, 2)])
def test_acdc_numbered_otherwise_is_refused(tmp_path, order):
    image, labels = heart()
    add_patient(tmp_path, 101, pair=lambda _: (image, np.array(order, np.uint8)[labels]))
    assert "label 2 surrounds only" in refused(read_acdc, tmp_path)


def test_acdc_with_image_and_mask_swapped_is_refused(tmp_path):
    image, labels = heart()
    add_patient(tmp_path, 101, pair=lambda _: (labels, image))
    assert "which may be swapped with the image" in refused(read_acdc, tmp_path)


def test_acdc_with_a_mask_of_another_grid_is_refused(tmp_path):
    image, labels = heart()
    add_patient(tmp_path, 101, pair=lambda _: (image, labels[:3]))
    assert "on the image's own grid" in refused(read_acdc, tmp_path)


def test_acdc_lacking_the_split_says_what_is_there(tmp_path):
    add_patient(tmp_path, 3)
    assert "no patient of ACDC's split 'test', only patients 3" in refused(read_acdc, tmp_path, "test")
    assert "use one of test, train" in refused(read_acdc, tmp_path, "val")


def test_acdc_with_a_patient_twice_names_both(tmp_path):
    shutil.copytree(add_patient(tmp_path / "a", 101), tmp_path / "b" / "patient101")
    assert "patient 101 twice" in refused(read_acdc, tmp_path)


def test_a_folder_without_the_data_set_says_what_to_give(tmp_path):
    for read in (read_acdc, read_synapse, read_covidqu):
        assert "give the folder" in refused(read, tmp_path)
        assert "is no folder" in refused(read, tmp_path / "absent")


# Synapse


def test_synapse_as_downloaded_with_test_images_that_have_no_labels(tmp_path):
    for number in (1, 4, 5):
        add_ct(tmp_path / "Abdomen", number, *abdomen(SYNAPSE))
    write_nifti(tmp_path / "Abdomen" / "RawData" / "Testing" / "img" / "img0061.nii.gz", abdomen(SYNAPSE)[0])
    assert [case.case_id for case in read_synapse(tmp_path, "test")] == ["case0001", "case0004"]
    assert [case.case_id for case in read_synapse(tmp_path, "train")] == ["case0005"]
    (case, *_) = read_synapse(tmp_path / "Abdomen" / "RawData", "all")
    volume, labels = case.read()
    assert volume.modality == "CT" and volume.spacing == pytest.approx((0.8, 0.8, 3.0))
    assert case.labels[int(labels[8, 20, 42])] == "spleen"


def test_synapse_unpacked_and_in_capitals(tmp_path):
    image, labels = abdomen(SYNAPSE)
    write_nifti(tmp_path / "IMG" / "IMG0001.nii", image)
    write_nifti(tmp_path / "LABEL" / "LABEL0001.nii", labels)
    assert len(read_synapse(tmp_path)) == 1


@with_shared
def test_real_ct_slices_stacked_pass_the_checks(tmp_path):
    add_ct(tmp_path, 2, *real_abdomen(), spacing=(0.8, 0.8, 10.0))
    (case,) = read_synapse(tmp_path)
    labels = case.read()[1]
    assert {"liver", "aorta"} <= {SYNAPSE[value] for value in np.unique(labels) if value}


def test_synapse_without_a_label_file_names_it(tmp_path):
    add_ct(tmp_path, 1, *abdomen(SYNAPSE))
    (tmp_path / "RawData" / "Training" / "label" / "label0001.nii.gz").unlink()
    assert "has no label0001.nii.gz" in refused(read_synapse, tmp_path)


def test_synapse_in_the_numbering_of_another_project_is_refused(tmp_path):
    image, labels = abdomen(SYNAPSE)
    remap = np.array([0, 1, 2, 3, 4, 0, 5, 6, 7, 0, 0, 8, 0, 0], np.uint8)  # eight organs in a row
    add_ct(tmp_path, 1, image, remap[labels])
    assert "label 5 is the largest and not the liver" in refused(read_synapse, tmp_path)


def test_synapse_that_is_mirrored_is_refused(tmp_path):
    image, labels = abdomen(SYNAPSE)
    add_ct(tmp_path, 1, image[:, :, ::-1], labels[:, :, ::-1])
    assert "mirrored or the labels are swapped" in refused(read_synapse, tmp_path)


def test_synapse_with_the_averaged_files_or_slices_says_that_they_are_others(tmp_path):
    write_nifti(tmp_path / "averaged-training-images" / "DET0000101_avg.nii.gz", np.zeros((2, 4, 4), np.int16))
    assert "isn't numbered as the 30 cases" in refused(read_synapse, tmp_path)
    (tmp_path / "slices").mkdir()
    np.savez(tmp_path / "slices" / "case0005_slice000.npz", image=np.zeros((4, 4)))
    assert "holds single slices" in refused(read_synapse, tmp_path / "slices")


@pytest.mark.parametrize("turn", range(8))
def test_transunets_volumes_lie_in_the_patient_whatever_way_they_were_turned(tmp_path, turn):
    image, labels = abdomen(H5_LABELS)

    def turned(array: np.ndarray) -> np.ndarray:
        array = np.rot90(array, turn % 4, axes=(1, 2))
        return array[:, ::-1] if turn >= 4 else array

    write_h5(tmp_path / "test_vol_h5" / "case0001.npy.h5", turned(image), turned(labels))
    (case,) = read_synapse(tmp_path)
    volume, read = case.read()
    assert (case.source, volume.calibrated) == ("synapse_h5", False)

    def centre(name: str) -> np.ndarray:
        value = next(value for value, label in case.labels.items() if label == name)
        return volume.ijk_to_world_lps(np.argwhere(read == value)[:, ::-1].mean(0, keepdims=True))[0]

    assert centre("spleen")[0] > centre("liver")[0] and centre("left kidney")[0] > centre("right kidney")[0]
    assert centre("left kidney")[1] > centre("stomach")[1]
    assert centre("liver")[2] > centre("right kidney")[2]
    assert np.array_equal(volume.voxels, np.clip(turned(image), -125, 275))


def test_transunets_volumes_without_organs_are_radiological():
    assert np.array_equal(patient_axes(np.zeros((2, 3, 3))), np.eye(3))


@pytest.mark.parametrize(
    "order",
    [
        ("spleen", "right kidney", "left kidney", "gallbladder", "liver", "pancreas", "stomach", "aorta"),
        ("aorta", "gallbladder", "spleen", "left kidney", "right kidney", "liver", "stomach", "pancreas"),
    ],
)
def test_transunets_volumes_in_numberings_that_other_copies_have_are_refused(tmp_path, order):
    write_h5(tmp_path / "case0001.npy.h5", *abdomen(dict(enumerate(order, start=1))))
    assert "isn't numbered as TransUNet's volumes" in refused(read_synapse, tmp_path)


def test_transunets_volumes_that_are_damaged_or_not_rescaled_are_refused(tmp_path):
    import h5py

    file = tmp_path / "case0001.npy.h5"
    image, labels = abdomen(H5_LABELS)
    with h5py.File(file, "w") as content:
        content["image"], content["label"] = image, labels
    assert "intensities outside 0..1" in refused(read_synapse, tmp_path)
    file.write_bytes(file.read_bytes()[:200])
    assert "holds no array" in refused(read_synapse, tmp_path)


@with_shared
def test_a_real_ct_as_transunets_volume_agrees_with_the_original(tmp_path):
    image, labels = real_abdomen()
    write_h5(tmp_path / "case0001.npy.h5", image, in_h5_numbering(labels))
    (case,) = read_synapse(tmp_path)
    read = case.read()[1]
    for value, name in H5_LABELS.items():
        original = next(number for number, label in SYNAPSE.items() if label == name)
        assert np.array_equal(read == value, labels == original)


# COVID-QU-Ex


def covid_tree(root: Path) -> Path:
    for split in ("Train", "Val", "Test"):
        for number, group in enumerate(("COVID-19", "Non-COVID", "Normal")):
            image, lungs, infection = chest()
            infection = infection if group == "COVID-19" else infection * 0
            for part in ("Lung", "Infection"):
                add_radiograph(root, part, split, group, f"{group} {number}", (image, lungs, infection))
    return root


def test_covidqu_as_downloaded(tmp_path):
    root = covid_tree(tmp_path)
    cases = read_covidqu(root, "test")
    assert len(cases) == 6 and len({case.case_id for case in cases}) == 6
    assert {case.source for case in cases} == {"covidqu_lungs", "covidqu_infection"}
    assert {tuple(case.labels.values()) for case in cases} == {("lung",), ("lung infection",)}
    assert len(read_covidqu(root, "all", "lungs")) == 9
    infected = [case.read()[1].any() for case in read_covidqu(root, "test", "infection")]
    assert infected == [True, False, False]
    assert read_covidqu(root, "val")[0].read()[0].modality == "X-ray"


def test_covidqu_of_other_nesting_and_case(tmp_path):
    covid_tree(tmp_path / "COVID-QU-Ex_Dataset")
    place = tmp_path / "COVID-QU-Ex_Dataset" / "Lung Segmentation Data" / "Lung Segmentation Data" / "Test"
    for group in list(place.iterdir()):
        (group / "images").rename(group / "Images")
        (group / "lung masks").rename(group / "Lung_Masks")
        group.rename(group.with_name(group.name.upper()))
    assert len(read_covidqu(tmp_path, "test", "lungs")) == 3
    assert len(read_covidqu(place, "test", "lungs")) == 3  # the split's folder itself
    assert len(read_covidqu(tmp_path, "train", "lungs")) == 3


@with_shared
def test_real_radiographs_in_the_layout(tmp_path):
    for stem, arrays in real_radiographs(2).items():
        add_radiograph(tmp_path, "Lung", "Test", "COVID-19", stem, arrays)
    cases = read_covidqu(tmp_path)
    volume, labels = cases[0].read()
    assert volume.shape == labels.shape and volume.dimension == 2
    assert set(np.unique(labels)) == {0, 255}


def test_covidqu_masks_saved_as_colours_or_with_soft_edges_are_read(tmp_path):
    image, lungs, infection = chest()
    soft = lungs.copy()
    soft[8, 8:26] = 200
    soft[7, 8:26] = 40
    colours = np.repeat(soft[..., None], 3, axis=2)
    add_radiograph(tmp_path, "Lung", "Test", "Normal", "n", (image, colours, infection))
    (case,) = read_covidqu(tmp_path)
    assert np.array_equal(case.read()[1][0] > 0, lungs > 0)


def test_covidqu_without_a_mask_counts_and_names(tmp_path):
    place = covid_tree(tmp_path) / "Lung Segmentation Data" / "Lung Segmentation Data" / "Test" / "Normal"
    (place / "lung masks" / "Normal 2.png").rename(place / "lung masks" / "Normal_2.png")
    assert "1 images without a file of the same name in 'lung masks', the first Normal 2.png" in refused(
        read_covidqu, tmp_path, "test", "lungs"
    )


def test_covidqu_with_images_and_masks_swapped_is_refused(tmp_path):
    image, lungs, infection = chest()
    add_radiograph(tmp_path, "Lung", "Test", "Normal", "n", (lungs, image, infection))
    assert "image and mask may be swapped" in refused(read_covidqu, tmp_path)


def test_covidqu_with_a_mask_of_another_size_is_refused(tmp_path):
    image, lungs, infection = chest()
    add_radiograph(tmp_path, "Lung", "Test", "Normal", "n", (image, lungs[:-1], infection))
    assert "has (64, 47) pixels, its image (64, 48)" in refused(read_covidqu, tmp_path)


def test_covidqu_lacking_the_split_or_the_task_says_what_is_there(tmp_path):
    add_radiograph(tmp_path, "Lung", "Val", "Normal", "n", chest())
    assert "only of val (lungs)" in refused(read_covidqu, tmp_path, "test")
    assert "masks of infection" in refused(read_covidqu, tmp_path, "val", "infection")
    assert "use one of all, lungs, infection" in refused(read_covidqu, tmp_path, "val", "heart")


# All


def test_what_identifies_a_data_set_changes_with_its_files(tmp_path):
    add_patient(tmp_path, 101)
    before = DATA_SETS["acdc"].target(tmp_path, "test").identity
    assert before == DATA_SETS["acdc"].target(tmp_path, "test").identity
    image, labels = heart()
    add_patient(tmp_path, 102, pair=lambda _: (image, labels))
    assert DATA_SETS["acdc"].target(tmp_path, "test").identity["files"] != before["files"]


def test_structures_of_a_data_set_are_those_of_its_labels():
    for source, labels in (("acdc", LABELS), ("synapse", SYNAPSE), ("synapse_h5", H5_LABELS)):
        (data,) = (data for data in DATA_SETS.values() if source in data.sources)
        assert set(data.structures[source]) == set(labels.values())


def test_a_hidden_picture_is_no_image(tmp_path):
    covid_tree(tmp_path)
    place = tmp_path / "Lung Segmentation Data" / "Lung Segmentation Data" / "Test" / "Normal" / "images"
    write_png(place / "._Normal 2.png", chest()[0])
    assert len(read_covidqu(tmp_path, "test", "lungs")) == 3
