"""Which cases an input names: folders, patterns, tables, data set layouts, DICOM by series; and how they are called."""

from __future__ import annotations

import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from phantoms import dicom_image, dicom_series, lps_matrix, write_image

from MedZeroSegLib import read_volume
from MedZeroSegLib.cohort.case_names import LONGEST_BYTES, distinct_names
from MedZeroSegLib.cohort.inputs import find_cases
from MedZeroSegLib.cohort.settings import check_structures
from MedZeroSegLib.errors import InputError

ROOT = Path(__file__).parents[2]
VOXELS = np.arange(6 * 5 * 4, dtype=np.int16).reshape(6, 5, 4)


def image(path: Path, voxels: np.ndarray = VOXELS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_image(path, voxels, lps_matrix())


def names(source: Path | str, structures: str = "liver") -> list[str]:
    return [case.name for case in find_cases(str(source), structures).cases]


def sections(count: int, level: int = 0) -> np.ndarray:
    return (np.arange(count * 7 * 5, dtype=np.int16) + level).reshape(count, 7, 5)


def heights(count: int) -> list[tuple[float, float, float]]:
    return [(0.0, 0.0, 2.0 * k) for k in range(count)]


# Folders


def test_a_folder_gives_its_images_in_order_and_nothing_else(tmp_path):
    for name in ("b.nii.gz", "a.nrrd", "deep/er/c.mha"):
        image(tmp_path / name)
    (tmp_path / "x.PNG").write_bytes(b"looked at when its turn comes")
    for name in ("notes.txt", "a.seg.nrrd", ".hidden.nii", "table.csv", "deep/readme.md"):
        (tmp_path / name).write_bytes(b"nothing to read")
    assert names(tmp_path) == ["a", "b", "deep-er-c", "x"]


def test_results_of_a_cohort_that_lie_among_the_images_are_passed_over(tmp_path):
    image(tmp_path / "a.nii.gz")
    image(tmp_path / "results" / "cases" / "a" / "b.nii.gz")
    (tmp_path / "results" / "journal.sqlite").touch()
    assert names(tmp_path) == ["a"]
    with pytest.raises(InputError, match="results"):
        find_cases(str(tmp_path / "results"), "liver")


def test_links_that_lead_in_a_circle_end(tmp_path):
    image(tmp_path / "in" / "a.nii.gz")
    (tmp_path / "in" / "again").symlink_to(tmp_path / "in", target_is_directory=True)
    assert names(tmp_path / "in") == ["a"]


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: (path.mkdir(), (path / "readme.txt").touch())])
def test_a_folder_without_images_is_refused(tmp_path, make):
    make(tmp_path / "empty")
    with pytest.raises(InputError, match="holds no images"):
        find_cases(str(tmp_path / "empty"), "liver")


def test_what_does_not_exist_is_refused():
    with pytest.raises(InputError, match="does not exist"):
        find_cases("/no/such/place", "liver")


def test_a_pattern_takes_files_and_folders(tmp_path):
    for name in ("p1/t1.nii.gz", "p2/t1.nii.gz", "p2/t2.nii.gz"):
        image(tmp_path / name)
    assert names(f"{tmp_path}/*/t1.nii.gz") == ["p1-t1", "p2-t1"]
    assert names(f"{tmp_path}/p?") == ["p1-t1", "p2-t1", "p2-t2"]


def test_names_in_any_script_stay_and_work(tmp_path):
    folder = tmp_path / "Sättiger 肺 (1) & co"
    image(folder / "çt scan.nii.gz")
    found = find_cases(str(folder), "liver").cases[0]
    assert found.name == unicodedata.normalize("NFC", "çt scan")
    assert read_volume(found.image).shape == (4, 5, 6)


def test_equal_names_become_distinct_and_that_is_said(tmp_path):
    for name in ("scan.nii.gz", "scan.nrrd", "SCAN.mha"):
        image(tmp_path / name)
    found = find_cases(str(tmp_path), "liver")
    assert len({case.name.casefold() for case in found.cases}) == 3
    assert any("Several cases are called" in note for note in found.notes)


@given(st.lists(st.text(min_size=0, max_size=300), max_size=12))
def test_whatever_cases_are_called_each_gets_a_folder_of_its_own(wanted):
    made, _ = distinct_names(wanted)
    assert len({unicodedata.normalize("NFC", name.casefold()) for name in made}) == len(wanted)
    for name in made:
        assert name and len(name.encode()) <= LONGEST_BYTES + 4
        assert not set(name) & set('<>:"/\\|?*\0') and name not in (".", "..") and name == name.strip(" .")


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps rights elsewhere")
def test_a_folder_without_rights_is_a_case_that_fails_by_name(tmp_path):
    for folder in tmp_path.parents[:2]:  # of pytest, closed to others
        os.chmod(folder, 0o755)
    os.chmod(tmp_path, 0o755)
    image(tmp_path / "in" / "a.nii.gz")
    image(tmp_path / "in" / "closed" / "b.nii.gz")
    os.chmod(tmp_path / "in" / "closed", 0)
    code = (
        "import os, sys; from MedZeroSegLib.cohort.inputs import find_cases\n"
        "if os.geteuid() == 0: os.seteuid(65534)\n"  # who may do everything has to become somebody else
        "for case in find_cases(sys.argv[1], 'liver').cases: print(case.name, '|', case.problem)"
    )
    try:
        arguments = [sys.executable, "-c", code, str(tmp_path / "in")]
        run = subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT)
    finally:
        os.chmod(tmp_path / "in" / "closed", 0o755)
    assert run.returncode == 0, run.stderr
    first, second = run.stdout.splitlines()
    assert first == "a | "
    assert second.startswith("closed-unreadable | The folder ") and "permission denied" in second


# DICOM


def test_series_are_told_apart_by_their_uid_and_not_by_file_name_or_folder(tmp_path):
    dicom_series(tmp_path / "study", sections(5), heights(5), SeriesInstanceUID="1.2.1", SeriesNumber=4)
    dicom_series(tmp_path / "study", sections(6, 500), heights(6), SeriesInstanceUID="1.2.2", SeriesNumber=7)
    more = tmp_path / "study" / "further"
    dicom_series(more, sections(9, 500)[6:], heights(9)[6:], SeriesInstanceUID="1.2.2", SeriesNumber=7)
    for number, file in enumerate(sorted((tmp_path / "study").rglob("*.dcm"))):
        file.rename(file.with_name(f"IM{97 * number % 31:04d}"))  # no suffix, and no order
    found = find_cases(str(tmp_path / "study"), "liver").cases
    assert [(case.name, len(case.files)) for case in found] == [("series-4", 5), ("series-7", 9)]
    depths = [read_volume(case.image, files=case.files).shape[0] for case in found]
    assert depths == [5, 9]


def test_localizers_and_objects_about_images_are_left_out_and_single_files_are_cases(tmp_path):
    dicom_series(tmp_path / "ct", sections(5), heights(5), SeriesInstanceUID="1.2.1")
    kinds = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    dicom_series(tmp_path / "ct", sections(2), heights(2), SeriesInstanceUID="1.2.9", ImageType=kinds)
    dicom_image(sections(1)[0], "SEG", SeriesInstanceUID="1.2.8").save_as(
        tmp_path / "seg.dcm", enforce_file_format=True
    )
    dicom_image(sections(1)[0], "DX", SeriesInstanceUID="1.2.7").save_as(tmp_path / "chest", enforce_file_format=True)
    found = find_cases(str(tmp_path), "liver")
    assert [(case.name, len(case.files)) for case in found.cases] == [("chest", 0), ("ct", 5)]
    assert any("localizers, left out: 1" in note for note in found.notes)


def test_a_damaged_dicom_file_is_a_case_that_fails_by_name(tmp_path):
    image(tmp_path / "a.nii.gz")
    (tmp_path / "broken").write_bytes(b"\0" * 128 + b"DICM" + b"\x08\x00\x05\x00ZZ\xff\xff" + b"\x01" * 40)
    found = find_cases(str(tmp_path), "liver").cases
    assert [case.name for case in found] == ["a", "broken"]
    assert "damaged" in found[1].problem and "broken" in found[1].problem


def test_no_name_of_a_patient_gets_into_names_of_cases(tmp_path):
    dicom_series(tmp_path / "study", sections(4), heights(4), PatientID="4711", SeriesInstanceUID="1.2.5")
    case = find_cases(str(tmp_path), "liver").cases[0]
    assert case.name == "study" and "Müller" not in str(case) and "4711" not in str(case)


# Tables


def test_a_table_names_paths_structures_and_what_is_carried_through(tmp_path):
    image(tmp_path / "scans" / "a.nii.gz")
    image(tmp_path / "b.nii.gz")
    (tmp_path / "list.csv").write_text(
        "﻿path,structures,split,Age,case,frame,modality\n"
        'scans/a.nii.gz,"liver; spleen",train,41,,,CT\n'
        f"{tmp_path}/b.nii.gz,,test,,second,2,\n\n",
        encoding="utf-8",
    )
    first, second = find_cases(str(tmp_path / "list.csv"), "aorta", "MR").cases
    assert (first.name, first.image, first.structures) == ("a", tmp_path / "scans" / "a.nii.gz", "liver; spleen")
    assert (second.name, second.structures, second.frame) == ("second", "aorta", 2)
    assert (first.modality, second.modality) == ("CT", "MR")
    assert dict(first.carried) == {"split": "train", "Age": "41"}


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_tables_of_spreadsheets_are_read_with_their_delimiter(tmp_path, delimiter):
    image(tmp_path / "a.nii.gz")
    (tmp_path / "list.csv").write_text(delimiter.join(("path", "split")) + "\na.nii.gz" + delimiter + "train\n")
    assert dict(find_cases(str(tmp_path / "list.csv"), "liver").cases[0].carried) == {"split": "train"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("file,split\na.nii,train\n", "no column 'path'"),
        ("path,split\n,train\n", "Line 2"),
        ("path,modality\na.nii,Röntgen\n", "Röntgen"),
        ("path,frame\na.nii,first\n", "first"),
        ("path\n", "holds no images"),
    ],
)
def test_a_table_that_makes_no_sense_is_refused_with_its_line(tmp_path, content, words):
    (tmp_path / "list.csv").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=words):
        find_cases(str(tmp_path / "list.csv"), "liver")


# Layouts


def test_the_raw_folder_of_nnunet_gives_the_first_channel_and_its_split(tmp_path):
    for name in ("imagesTr/la_003_0000", "imagesTr/la_003_0001", "imagesTs/la_001_0000", "labelsTr/la_003"):
        image(tmp_path / "Dataset007_Heart" / f"{name}.nii.gz")
    found = find_cases(str(tmp_path / "Dataset007_Heart"), "liver")
    assert [(case.name, case.carried["split"]) for case in found.cases] == [("la_003", "train"), ("la_001", "test")]
    assert any("1 files of further channels" in note for note in found.notes)
    assert names(tmp_path / "Dataset007_Heart" / "imagesTs") == ["la_001"]


def test_a_bids_data_set_gives_its_still_images(tmp_path):
    (tmp_path / "dataset_description.json").write_text("{}")
    for name in (
        "sub-01/anat/sub-01_T1w", "sub-02/ses-a/anat/sub-02_ses-a_T2w", "sub-01/func/sub-01_task-rest_bold",
        "sub-01/anat/sub-01_label-brain_mask", "derivatives/x/sub-01/anat/sub-01_T1w",
    ):  # fmt: skip
        image(tmp_path / f"{name}.nii.gz")
    found = find_cases(str(tmp_path), "liver")
    assert [(case.name, case.carried["subject"]) for case in found.cases] == [
        ("sub-01_T1w", "sub-01"), ("sub-02_ses-a_T2w", "sub-02"),
    ]  # fmt: skip
    assert any("1 images of func" in note for note in found.notes)


# Names of structures


def test_all_names_are_looked_at_before_anything_runs(tmp_path):
    image(tmp_path / "a.nii.gz")
    (tmp_path / "list.csv").write_text('path,structures\na.nii.gz,liver\na.nii.gz,"spleen; livr"\n')
    cases = find_cases(str(tmp_path / "list.csv")).cases
    with pytest.raises(InputError, match=r"'livr' isn't a known name \(did you mean liver"):
        check_structures(cases, allow_unknown=False)
    check_structures(cases, allow_unknown=True)
    (tmp_path / "bare.csv").write_text("path\na.nii.gz\n")
    with pytest.raises(InputError, match="No structure is named for the case 'a'"):
        check_structures(find_cases(str(tmp_path / "bare.csv")).cases, allow_unknown=True)


# Marks of images


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps rights elsewhere")
def test_an_image_without_rights_is_refused_by_name(tmp_path):
    for folder in (*tmp_path.parents[:2], tmp_path):
        os.chmod(folder, 0o755)
    os.chmod(image(tmp_path / "closed.nii.gz"), 0)
    code = (
        "import os, sys; from MedZeroSegLib.cohort.inputs import find_cases, InputError\n"
        "if os.geteuid() == 0: os.seteuid(65534)\n"
        "try: find_cases(sys.argv[1], 'liver').cases[0].content_sha256()\n"
        "except InputError as problem: print(problem)"
    )
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, cwd=ROOT)
    assert run.stdout.strip() == (
        f"'{tmp_path}/closed.nii.gz' cannot be read (permission denied); check its path and permissions."
    ), run.stderr


def test_an_image_is_known_by_its_content_whatever_its_place(tmp_path):
    image(tmp_path / "one" / "a.nii.gz")
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "b.nii.gz").write_bytes((tmp_path / "one" / "a.nii.gz").read_bytes())
    one, two = (find_cases(str(tmp_path / folder), "liver").cases[0] for folder in ("one", "two"))
    assert one.content_sha256() == two.content_sha256() and one.signature() != two.signature()
    image(tmp_path / "two" / "b.nii.gz", VOXELS + 1)
    assert one.content_sha256() != two.content_sha256()
