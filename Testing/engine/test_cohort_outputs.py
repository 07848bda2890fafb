"""What a cohort leaves behind: numbers about segments, tables, records, and the list that people work through."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import cohort_samples as samples
import numpy as np
import phantoms
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from MedZeroSegLib.cohort.adoption import adopted
from MedZeroSegLib.cohort.case import Case
from MedZeroSegLib.cohort.case_record import CaseRecord, done_record, failed_record
from MedZeroSegLib.cohort.masks_file import read_masks
from MedZeroSegLib.cohort.mosaic import write_mosaic, write_thumbnail
from MedZeroSegLib.cohort.outliers import CASES_MIN, outliers_of, robust_z
from MedZeroSegLib.cohort.review import mark, read_review, with_reviews, write_review
from MedZeroSegLib.cohort.statistics import statistics_of, write_statistics
from MedZeroSegLib.cohort.work import ANSWER
from MedZeroSegLib.dicom_seg import write_dicom_seg
from MedZeroSegLib.errors import InputError
from MedZeroSegLib.vocabulary import SIDE_CODES, Code
from MedZeroSegLib.volume import Volume
from MedZeroSegLib.volume_io import read_volume
from MedZeroSegLib.weights_catalogue import sha256_of
from MedZeroSegLib.writers import write_segmentation

SHAPE = (5, 6, 7)  # k, j, i
LIVER = Code("SCT", "10200004", "Liver")


def oblique_volume(degrees: float = 35.0, **changes: object) -> Volume:
    matrix = phantoms.lps_matrix((0.7, 1.3, 2.5), (10.0, -20.0, 30.0), phantoms.rotation_about((1, -2, 0.5), degrees))
    voxels = np.random.default_rng(0).integers(-200, 300, SHAPE).astype(np.int16)
    return Volume(**({"voxels": voxels, "ijk_to_lps": matrix, "modality": "CT"} | changes))


def corner() -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[1, 2, 1:6] = mask[1, 2:5, 1] = mask[1:3, 2, 1] = True
    return mask


# Masks, read back

in_each_format = pytest.mark.parametrize("name", ["m.seg.nrrd", "m.nii.gz", "m.nii"])


@in_each_format
def test_masks_come_back_by_name_on_their_own_grid(tmp_path, name):
    volume, other = oblique_volume(), np.zeros(SHAPE, bool)
    other[1, 2, 1:3] = other[4, 5, 6] = True  # which lies partly on the corner
    segments = [
        samples.segment("Größe 肺", corner()),
        samples.segment("part", other),
        samples.segment("none", other & ~other),
    ]
    write_segmentation(samples.segmentation(volume, *segments), tmp_path / name)
    found = read_masks(tmp_path / name)
    assert [segment.name for segment in found.segments] == ["Größe 肺", "part", "none"]
    covered = other if name != "m.seg.nrrd" else other & False  # a label map leaves it to the smaller one
    assert np.array_equal(found.segments[0].mask, corner() & ~covered)
    assert np.array_equal(found.segments[1].mask, other) and not found.segments[2].mask.any()
    assert np.allclose(found.ijk_to_lps, volume.ijk_to_lps, atol=1e-4)


@in_each_format
def test_masks_that_are_cut_short_damaged_or_missing_are_refused(tmp_path, name):
    file = tmp_path / name
    write_segmentation(samples.segmentation(oblique_volume(), samples.segment("liver", corner())), file)
    whole = file.read_bytes()
    damaged = [whole[: len(whole) * 2 // 3], b"no masks", b""] + ([whole[:-1] + b"x"] if name != "m.nii" else [])
    for content in damaged:
        file.write_bytes(content)
        with pytest.raises(InputError, match=f"'{file}' can't be read as masks"):
            read_masks(file)
    file.unlink()
    with pytest.raises(InputError, match="can't be read as masks"):
        read_masks(file)


# Masks that a person changed


def dicom_case(folder: Path) -> tuple[Case, CaseRecord]:
    """A case from DICOM as the run leaves it, with all its files."""
    grey = np.random.default_rng(0).integers(0, 300, (5, 9, 7)).astype(np.int16)
    image = phantoms.dicom_series(folder / "study", grey, [(0, 0, 2 * k) for k in range(5)])
    volume, place = read_volume(image), folder / "cases" / "a"
    mask = np.zeros(volume.shape, bool)
    mask[2, 3:6, 2:4] = True
    made = samples.segmentation(volume, samples.segment("liver", mask, code=LIVER))
    names = {"labels": "a.seg.nrrd", "mosaic": "a.png", "thumbnail": "a.jpg", "dicom_seg": "a.dcm"}
    write_segmentation(made, place / names["labels"])
    write_mosaic(made, place / names["mosaic"])
    write_thumbnail(made, place / names["thumbnail"])
    write_dicom_seg(made, image, place / names["dicom_seg"])
    files = {kind: f"cases/a/{name}" for kind, name in names.items()}
    record = done_record(made, "a", str(image), 1.0, {}, files)
    outputs = {name: [sha256_of(place / name), 1] for name in names.values()}
    (place / ANSWER).write_text(json.dumps({"record": record.to_json(), "outputs": outputs}))
    return Case(name="a", image=image, structures="liver"), record


def persons_masks(case: Case, file: Path) -> np.ndarray:
    """A larger liver, and a spleen that nobody asked for; returns the liver."""
    volume = read_volume(case.image)
    liver, spleen = np.zeros((2, *volume.shape), bool)
    liver[1:4, 2:7, 1:5] = True
    spleen[4, 0:2, 0:2] = True
    segments = (samples.segment("liver", liver), samples.segment("spleen", spleen))
    write_segmentation(samples.segmentation(volume, *segments), file)
    return liver


def test_numbers_pictures_and_dicom_become_those_of_the_masks_that_a_person_changed(tmp_path):
    case, record = dicom_case(tmp_path)
    assert adopted(case, record, tmp_path, "accepted") is record  # nothing has changed
    before = {kind: (tmp_path / name).read_bytes() for kind, name in record.files.items()}
    liver = persons_masks(case, tmp_path / record.files["labels"])
    saved = (tmp_path / record.files["labels"]).read_bytes()
    new = adopted(case, record, tmp_path, "corrected")
    assert [(row.name, row.voxels) for row in new.segments] == [("liver", liver.sum()), ("spleen", 4)]
    assert new.segments[0].volume_ml / record.segments[0].volume_ml == pytest.approx(liver.sum() / 6)
    assert [row.doubt for row in new.segments] == [0.0, 0.0] and "A person has changed" in new.warnings[0]
    assert new.provenance["masks"] == "changed by a person"
    changed = {kind for kind, name in record.files.items() if (tmp_path / name).read_bytes() != before[kind]}
    assert changed == {"labels", "mosaic", "thumbnail", "dicom_seg"}
    assert (tmp_path / record.files["labels"]).read_bytes() == saved
    stored = pydicom.dcmread(tmp_path / record.files["dicom_seg"])
    assert [item.SegmentLabel for item in stored.SegmentSequence] == ["liver", "spleen"]
    assert {item.SegmentAlgorithmType for item in stored.SegmentSequence} == {"SEMIAUTOMATIC"}
    assert adopted(case, CaseRecord.from_json(json.loads(json.dumps(new.to_json()))), tmp_path, "corrected") == new


def test_masks_whose_image_is_gone_keep_their_numbers_and_that_is_said(tmp_path):
    case, record = dicom_case(tmp_path)
    persons_masks(case, tmp_path / record.files["labels"])
    new = adopted(replace(case, image=tmp_path / "gone"), record, tmp_path, "corrected")
    assert new.segments == record.segments and "does not exist" in new.warnings[-1] and new.masks_sha256 == ""
    again = adopted(case, new, tmp_path, "corrected")
    assert again.segments[0].voxels > record.segments[0].voxels and len(again.warnings) == 1


# Statistics


@settings(max_examples=25, deadline=None)
@given(mask=arrays(bool, SHAPE), degrees=st.floats(0, 360))
def test_places_and_intensities_are_those_of_the_voxels_one_by_one(mask, degrees):
    volume = oblique_volume(degrees)
    (found,) = statistics_of(samples.segmentation(volume, samples.segment("liver", mask)))
    kji = np.argwhere(mask)
    assert found.voxels == len(kji) and found.found == bool(len(kji))
    if not len(kji):
        assert (found.mean, found.box_ijk, found.box_lps, found.centroid_lps) == (None, None, None, None)
        return
    offsets = np.stack(np.meshgrid(*[(-0.5, 0.5)] * 3), axis=-1).reshape(-1, 3)  # corners of a voxel
    corners = volume.ijk_to_world_lps((kji[:, None, ::-1] + offsets).reshape(-1, 3))
    low, high = corners.min(axis=0), corners.max(axis=0)
    assert np.allclose(np.reshape(found.box_lps, (3, 2)), np.stack([low, high], axis=1))
    assert np.allclose(found.centroid_lps, volume.ijk_to_world_lps(kji[:, ::-1]).mean(axis=0))
    assert np.reshape(found.box_ijk, (3, 2)).tolist() == [[kji[:, a].min(), kji[:, a].max()] for a in (2, 1, 0)]
    values = volume.voxels[mask].astype(float)
    assert (found.mean, found.sd) == pytest.approx((values.mean(), values.std())) and found.unit == "HU"
    assert found.volume_ml == pytest.approx(len(kji) * 0.7 * 1.3 * 2.5 / 1000)


def test_padding_counts_for_the_size_and_not_for_the_intensity():
    mask = corner()
    outside = np.zeros(SHAPE, bool)
    outside[1] = True
    (found,) = statistics_of(samples.segmentation(oblique_volume(outside=outside), samples.segment("liver", mask)))
    assert found.voxels == np.count_nonzero(mask)
    assert found.mean == pytest.approx(oblique_volume().voxels[mask & ~outside].mean())


def test_a_picture_has_an_area_and_no_place_in_the_patient():
    volume = Volume(np.zeros((1, 6, 7), np.uint8), np.diag([0.5, 0.8, 1, 1]), "X-ray", dimension=2)
    mask = np.zeros(volume.shape, bool)
    mask[0, 1:3, 2:6] = True
    (found,) = statistics_of(samples.segmentation(volume, samples.segment("left lung", mask)))
    assert (found.area_mm2, found.volume_ml) == (pytest.approx(8 * 0.5 * 0.8), None)
    assert (found.box_ijk, found.box_lps, found.centroid_lps, found.unit) == ((2, 5, 1, 2, 0, 0), None, None, "")
    (unknown,) = statistics_of(samples.segmentation(replace(volume, calibrated=False), samples.segment("lung", mask)))
    assert (unknown.area_mm2, unknown.voxels) == (None, 8)


def test_what_was_missed_with_much_evidence_is_more_doubtful_than_what_is_surely_absent():
    empty = np.zeros(SHAPE, bool)
    made = samples.segmentation(
        oblique_volume(),
        *(samples.segment("liver", corner(), score=score) for score in (1.0, 0.6)),
        *(samples.segment("spleen", empty, score=score) for score in (0.0, 0.4)),
    )
    sure, unsure, absent, missed = (row.doubt for row in statistics_of(made))
    assert (sure, unsure, absent) == pytest.approx((0.0, 0.4, 0.5))
    assert 0.5 < missed < 1.0


def test_a_try_at_an_unknown_name_is_doubtful_whatever_its_score():
    tried = samples.segment("heart", corner(), score=1.0, provenance={"trained": False})
    (row,) = statistics_of(samples.segmentation(oblique_volume(), tried))
    assert row.doubt == 0.5


def test_tables_hold_every_segment_and_what_the_input_carried(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="Parquet needs pyarrow (pip install 'medzeroseg[cohort]')")
    made = samples.segmentation(
        oblique_volume(),
        samples.segment("left kidney", corner(), modifier=SIDE_CODES["left"], code=Code("SCT", "64033007", "Kidney")),
        samples.segment("Milz, groß 肺", np.zeros(SHAPE, bool), warnings=("One.", "Two.")),
    )
    carried = {"split": "val", "score": "7 of 9"}
    records = [
        done_record(made, 'a "b", c', "/scans/ä.nii.gz", 3.0, carried),
        failed_record("broken", "/scans/b.nii.gz", "'b' is cut short."),
    ]
    write_statistics(records, tmp_path / "s.csv", tmp_path / "s.parquet")
    with (tmp_path / "s.csv").open(encoding="utf-8", newline="") as file:
        kidney, spleen = csv.DictReader(file)
    assert (kidney["case"], kidney["side"], kidney["code"]) == ('a "b", c', "left", "SCT 64033007")
    assert (kidney["split"], kidney["input_score"], float(kidney["score"])) == ("val", "7 of 9", 0.75)
    assert (spleen["name"], spleen["found"], spleen["mean"], spleen["warnings"]) == (
        "Milz, groß 肺", "False", "", "One. Two."
    )  # fmt: skip
    table = parquet.read_table(tmp_path / "s.parquet").to_pylist()
    assert [row["name"] for row in table] == ["left kidney", "Milz, groß 肺"]
    assert table[1]["mean"] is None and table[0]["voxels"] == np.count_nonzero(corner())
    assert list(table[0]) == list(kidney)


@settings(max_examples=25, deadline=None)
@given(
    case=st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
    sentence=st.text(st.characters(exclude_categories=["Cs"])),
    carried=st.dictionaries(st.text(), st.text()),
)
def test_records_return_from_json_as_they_were(case, sentence, carried):
    made = samples.segmentation(oblique_volume(warnings=(sentence,)), samples.segment(case, corner()))
    for record in (
        done_record(made, case, "/scans/x.nii", 1.5, carried, {"labels": "x.seg.nrrd"}),
        failed_record(case, "/scans/x.nii", sentence, 0.5, carried),
    ):
        assert CaseRecord.from_json(json.loads(json.dumps(record.to_json()))) == record


# Unusual sizes


def cohort(sizes: list[float | None], name: str = "liver", start: int = 0) -> list[CaseRecord]:
    return [samples.record(f"case {start + n}", {name: size}) for n, size in enumerate(sizes)]


def test_half_and_twice_the_usual_size_stand_out_alike():
    usual = [1000.0 * factor for factor in (0.9, 0.95, 1.0, 1.02, 1.05, 1.1, 0.98, 1.03)]
    found = outliers_of(cohort([*usual, 300.0, 1000 / 0.3]))
    assert set(found) == {("case 8", "liver"), ("case 9", "liver")}
    assert found["case 8", "liver"] == pytest.approx(-found["case 9", "liver"], rel=0.05)


def test_few_sizes_and_nearly_equal_ones_make_nobody_an_outlier():
    assert outliers_of(cohort([1.0] * (CASES_MIN - 2) + [50.0])) == {}
    assert outliers_of(cohort([100.0] * 20 + [101.0])) == {}


@given(st.lists(st.floats(1e-3, 1e6), min_size=CASES_MIN, max_size=40), st.floats(0.01, 100))
def test_robust_scores_do_not_depend_on_the_unit(sizes, factor):
    assert robust_z([size * factor for size in sizes]) == pytest.approx(robust_z(sizes), abs=1e-6)


# Review list


def doubtful_cohort() -> list[CaseRecord]:
    sizes = [1000.0 + 10 * n for n in range(10)]
    return [
        *cohort(sizes),
        samples.record("huge", {"liver": 5000.0}),
        samples.record("missing", {"liver": None}),
        samples.record("faint", {}, segments=(samples.statistics("liver", 1000.0, expected_dice=0.4, doubt=0.6),)),
        samples.failed("broken", "'broken' is cut short."),
    ]


def test_the_list_is_in_order_of_doubt_and_says_why(tmp_path):
    rows = write_review(doubtful_cohort(), tmp_path / "review.csv")
    assert read_review(tmp_path / "review.csv") == rows
    assert [row.case for row in rows[:3]] == ["missing", "huge", "faint"] and len(rows) == 13
    assert "not found, though it was in 92 % of the cases" in rows[0].reason
    assert "unusually large" in rows[1].reason and "expected Dice 0.40" in rows[2].reason
    assert rows[0].structures == ("liver",) and rows[0].labels == "cases/missing.seg.nrrd"
    assert {row.status for row in rows} == {"open"}


def test_marks_survive_a_rerun_that_changes_the_order(tmp_path):
    file = tmp_path / "review.csv"
    records = doubtful_cohort()
    write_review(records[:4], file)
    mark(file, "case 1", "accepted", seconds=30.0)
    mark(file, "case 2", "corrected", seconds=20.0, note="left lobe, Rand ü")
    mark(file, "case 2", "corrected", seconds=25.0)
    write_review(records, file)
    rows = {row.case: row for row in read_review(file)}
    assert (rows["case 1"].status, rows["case 1"].seconds) == ("accepted", 30.0)
    assert (rows["case 2"].status, rows["case 2"].seconds, rows["case 2"].note) == (
        "corrected",
        45.0,
        "left lobe, Rand ü",
    )
    assert rows["huge"].status == "open" and len(rows) == 13
    reviewed = {record.case: record.reviewed for record in with_reviews(records, read_review(file))}
    assert (reviewed["case 1"], reviewed["case 2"], reviewed["broken"]) == ("accepted", "corrected", "open")
    assert {row.case for row in write_review(records[:1], file)} == {"case 0", "case 1", "case 2"}


def test_accepted_masks_that_were_made_anew_want_to_be_accepted_anew(tmp_path):
    file = tmp_path / "review.csv"
    write_review([samples.record("a", {"liver": 10.0}), samples.record("b", {"liver": 10.0})], file)
    mark(file, "a", "accepted")
    mark(file, "b", "corrected")
    rows = write_review([samples.record("a", {"liver": 11.0}), samples.record("b", {"liver": 11.0})], file)
    assert {row.case: row.status for row in rows} == {"a": "open", "b": "corrected"}


def test_no_mark_is_lost_while_the_run_rewrites_the_list(tmp_path):
    file = tmp_path / "review.csv"
    records = [samples.record(f"case {n}", {"liver": 10.0}) for n in range(24)]
    write_review(records, file)
    code = (
        "import sys; from pathlib import Path; from MedZeroSegLib.cohort.review import mark\n"
        "for n in range(int(sys.argv[2]), 24, 2): mark(Path(sys.argv[1]), f'case {n}', 'accepted', 1.0)"
    )
    with ThreadPoolExecutor(1) as pool:
        people = [subprocess.Popen([sys.executable, "-c", code, str(file), str(n)]) for n in range(2)]
        while any(person.poll() is None for person in people):
            pool.submit(write_review, records, file).result()
    assert [person.returncode for person in people] == [0, 0]
    assert {(row.status, row.seconds) for row in read_review(file)} == {("accepted", 1.0)}


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1), note=st.text("ab,;\"'\n=ü肺"))
def test_names_and_notes_of_any_kind_return_from_the_list(tmp_path, case, note):
    file = tmp_path / "review.csv"
    file.unlink(missing_ok=True)
    write_review([samples.record(case, {"liver": 10.0})], file)
    mark(file, case, "accepted", note=note)
    (row,) = read_review(file)
    assert (row.case, row.note, row.image) == (case, note, f"/scans/{case}.nii.gz")


def test_the_frame_of_a_sequence_is_on_the_list_and_older_lists_without_it_are_read(tmp_path):
    file = tmp_path / "review.csv"
    write_review([samples.record("a", {"liver": 1.5}, frame=0), samples.record("b", {"liver": 1.4})], file)
    assert {row.case: row.frame for row in read_review(file)} == {"a": 0, "b": None}
    mark(file, "b", "accepted")
    assert {row.case: row.frame for row in read_review(file)} == {"a": 0, "b": None}
    lines = [line.rpartition(",")[0] for line in file.read_text().splitlines()]
    assert lines[0].endswith(",masks")
    file.write_text("\n".join(lines) + "\n")
    assert {row.case: row.status for row in read_review(file)} == {"a": "open", "b": "accepted"}


def test_a_list_saved_by_a_spreadsheet_is_read(tmp_path):
    file = tmp_path / "review.csv"
    write_review(doubtful_cohort(), file)
    lines = list(csv.reader(file.read_text(encoding="utf-8").splitlines()))
    lines[1][6] = "Accepted"
    with file.open("w", encoding="utf-8-sig", newline="") as target:
        csv.writer(target, delimiter=";").writerows(lines)
    assert read_review(file)[0].status == "accepted"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda text: text.replace(",open,", ",fine,"),
            "line 2 has the status 'fine'; write open, accepted, corrected",
        ),
        (lambda text: text.replace("doubt", "dowbt", 1), "columns are missing"),
        (lambda text: text.replace("0.100", "much"), "no number"),
    ],
)
def test_a_list_that_makes_no_sense_is_refused_and_left_alone(tmp_path, change, sentence):
    file = tmp_path / "review.csv"
    write_review([samples.record("a", {"liver": 10.0})], file)
    file.write_text(change(file.read_text(encoding="utf-8")), encoding="utf-8")
    before = file.read_bytes()
    with pytest.raises(InputError, match=sentence):
        write_review([samples.record("a", {"liver": 10.0})], file)
    assert file.read_bytes() == before


def test_only_known_cases_and_states_can_be_marked(tmp_path):
    file = tmp_path / "review.csv"
    write_review([samples.record("a", {"liver": 10.0})], file)
    with pytest.raises(InputError, match="no case 'b'"):
        mark(file, "b", "accepted")
    with pytest.raises(InputError, match="'good' is no status"):
        mark(file, "a", "good")
    with pytest.raises(InputError, match="no review list"):
        read_review(Path(tmp_path) / "none.csv")
