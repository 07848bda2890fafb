"""The work list of a cohort over a real scene and real files: cases in order of doubt, loaded, marked, corrected."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

slicer = pytest.importorskip("slicer", reason="slicer-core has no wheel for this Python")
pytest.importorskip("PySide6", reason="PySide6 shows the panel")

import SimpleITK as sitk  # noqa: E402
from MedZeroSegSlicer.segment_voxels import write_segment  # noqa: E402
from MedZeroSegSlicer.work_list import WorkList  # noqa: E402
from phantoms_of_panel import BODIES, SHAPE, body, grey_levels, oblique_grid  # noqa: E402

from MedZeroSegLib.cohort.by_hand import belongs_to_a_person  # noqa: E402
from MedZeroSegLib.cohort.case_record import CaseRecord  # noqa: E402
from MedZeroSegLib.cohort.masks_file import read_masks  # noqa: E402
from MedZeroSegLib.cohort.review import mark, read_review, write_review  # noqa: E402
from MedZeroSegLib.cohort.statistics import SegmentStatistics  # noqa: E402
from MedZeroSegLib.errors import InputError, InstallationError  # noqa: E402
from MedZeroSegLib.mask_resampling import on_grid_of  # noqa: E402
from MedZeroSegLib.segment import Segment, Segmentation  # noqa: E402
from MedZeroSegLib.segment_tags import PROVENANCE_TAG, TERMINOLOGY_TAG  # noqa: E402
from MedZeroSegLib.vocabulary import ANATOMICAL_STRUCTURE, Code  # noqa: E402
from MedZeroSegLib.volume import Volume  # noqa: E402
from MedZeroSegLib.volume_io import read_volume  # noqa: E402
from MedZeroSegLib.weights_catalogue import sha256_of  # noqa: E402
from MedZeroSegLib.writers import write_segmentation  # noqa: E402

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
GRID = LPS_TO_RAS @ oblique_grid()  # IJK → LPS
CODES = {"liver": Code("SCT", "10200004", "Liver"), "spleen": Code("SCT", "78961009", "Spleen")}
COLORS = {"liver": (221, 130, 101), "spleen": (157, 108, 162), "aorta": (224, 97, 76)}
in_each_format = pytest.mark.parametrize("review", [".seg.nrrd", ".nii.gz"], indirect=True)
DOUBTS = {"calm": 0.1, "doubtful": 0.8, "middling": 0.5}
BOX = (15, 40, 6, 19, 2, 8)  # i, j, k; where a reviewer draws, beside no axis of symmetry


def drawn() -> np.ndarray:
    """What a reviewer draws in BOX, bool [k, j, i]: three arms that meet in a corner."""
    mask = np.zeros((BOX[5] - BOX[4] + 1, BOX[3] - BOX[2] + 1, BOX[1] - BOX[0] + 1), bool)
    mask[1, 1, 1:] = mask[1, 1:, 1] = mask[1:, 1, 1] = True
    return mask


def corrected() -> np.ndarray:
    """The drawn mask on the whole grid."""
    mask = np.zeros(SHAPE, bool)
    mask[BOX[4] : BOX[5] + 1, BOX[2] : BOX[3] + 1, BOX[0] : BOX[1] + 1] = drawn()
    return mask


def write_image(path: Path, grid: np.ndarray = GRID) -> Path:
    image = sitk.GetImageFromArray(grey_levels())
    image.SetSpacing(spacing := np.linalg.norm(grid[:3, :3], axis=0))
    image.SetDirection((grid[:3, :3] / spacing).ravel())
    image.SetOrigin(grid[:3, 3])
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))
    return path


def case(folder: Path, name: str, suffix: str) -> CaseRecord:
    """One case as the run leaves it: image, masks, record."""
    image = write_image(folder / "scans" / f"{name}.nii.gz")
    volume = Volume(voxels=grey_levels(), ijk_to_lps=GRID, modality="CT", dimension=3, path=image)
    labels = f"cases/{name}/{name}{suffix}"
    write_masks(volume, {key: body(key) for key in BODIES}, folder / labels)
    return record(name, image, labels)


def write_masks(volume: Volume, masks: dict[str, np.ndarray], file: Path) -> None:
    """What the engine would write of these masks."""
    segments = tuple(
        Segment(
            typed=key, name=key, found=True, score=0.7, mask=mask, code=CODES.get(key), category=ANATOMICAL_STRUCTURE,
            modifier=None, color=COLORS[key], slices=9,
        )
        for key, mask in masks.items()
    )  # fmt: skip
    result = Segmentation(
        volume=volume, segments=segments, preset="lite", device="cpu", seconds={}, settings={}, weights=(),
        version="1.2.3",
    )  # fmt: skip
    write_segmentation(result, file)


def record(name: str, image: Path, labels: str) -> CaseRecord:
    """What the run notes of a case."""
    numbers = SegmentStatistics(
        typed="liver", name="liver", found=True, side=None, code=None, score=0.7, voxels=1, volume_ml=1.0,
        area_mm2=None, mean=None, sd=None, unit="HU", box_ijk=None, box_lps=None, centroid_ijk=None, centroid_lps=None,
        slices=9, warnings=(), expected_dice=1 - DOUBTS[name], doubt=DOUBTS[name], mask_sha256="0",
    )  # fmt: skip
    return CaseRecord(case=name, image=str(image), status="done", segments=(numbers,), files={"labels": labels})


@pytest.fixture
def review(request, tmp_path: Path) -> Path:
    """The review list of three cases, with masks in the format asked for."""
    suffix = getattr(request, "param", ".seg.nrrd")
    write_review([case(tmp_path, name, suffix) for name in DOUBTS], tmp_path / "review.csv")
    return tmp_path / "review.csv"


@pytest.fixture
def work(module, review) -> WorkList:
    return WorkList(review)


def labels_of(work: WorkList) -> Path:
    return work.file.parent / work.row.labels


def voxels(work: WorkList, name: str) -> np.ndarray:
    """A segment's voxels on the image's grid, bool [k, j, i]."""
    segment_id = work.segmentation.GetSegmentation().GetSegmentIdBySegmentName(name)
    return slicer.util.arrayFromSegmentBinaryLabelmap(work.segmentation, segment_id, work.volume) > 0


def draw(work: WorkList, name: str = "liver") -> None:
    """Replace a segment by what a reviewer draws."""
    segment_id = work.segmentation.GetSegmentation().GetSegmentIdBySegmentName(name)
    write_segment(work.segmentation, work.volume, segment_id, drawn(), BOX)


def status(review: Path) -> dict[str, str]:
    return {row.case: row.status for row in read_review(review)}


def nodes(kind: str) -> list[str]:
    return [node.GetName() for node in slicer.util.getNodesByClass(kind)]


@in_each_format
def test_cases_come_in_order_of_doubt_with_their_image_and_masks(work):
    assert work.state.text == "3 of 3 cases are open." and not work.state.loaded
    for number, name in enumerate(("doubtful", "middling", "calm"), start=1):
        assert work.next() and work.row.case == name
        assert work.state.text == f"{number} of 3, liver: expected Dice {1 - DOUBTS[name]:.2f}."
        assert np.array_equal(slicer.util.arrayFromVolume(work.volume), grey_levels())
        for key in BODIES:
            assert np.array_equal(voxels(work, key), body(key)), key
        work.accept()
    assert not work.next() and set(status(work.file).values()) == {"accepted"}


@in_each_format
def test_masks_bear_names_colors_and_codes_and_belong_to_their_image(work):
    work.next()
    assert_dressed(work)
    role = work.segmentation.GetReferenceImageGeometryReferenceRole()
    assert work.segmentation.GetNodeReference(role) is work.volume


def assert_dressed(work: WorkList) -> None:
    """The segments bear their names, colors and codes."""
    segmentation = work.segmentation.GetSegmentation()
    assert segmentation.GetNumberOfSegments() == len(BODIES)
    for number, key in enumerate(BODIES):
        segment = segmentation.GetNthSegment(number)
        assert segment.GetName() == key
        assert np.allclose(np.multiply(segment.GetColor(), 255), COLORS[key])
        assert key not in CODES or CODES[key].value in tag(segment, TERMINOLOGY_TAG)


def tag(segment, key: str) -> str:
    import vtk

    value = vtk.reference("")
    return str(value) if segment.GetTag(key, value) else ""


def test_the_list_takes_only_out_of_the_scene_what_it_loaded(work, volume):
    work.next()
    work.next()
    assert nodes("vtkMRMLScalarVolumeNode") == ["Abdomen CT", "middling"]
    assert nodes("vtkMRMLSegmentationNode") == ["middling masks"]
    assert len(nodes("vtkMRMLStorageNode")) <= 2  # of the one case


def test_changed_masks_stay_in_the_scene_and_can_not_be_accepted(work):
    work.next()
    draw(work)
    labels, before = labels_of(work), labels_of(work).read_bytes()
    with pytest.raises(InputError, match=r"The masks of doubtful were changed here; press Corrected"):
        work.accept()
    work.next()
    assert nodes("vtkMRMLSegmentationNode") == ["doubtful masks", "middling masks"]
    assert nodes("vtkMRMLScalarVolumeNode") == ["doubtful", "middling"]
    assert set(status(work.file).values()) == {"open"}
    assert labels.read_bytes() == before


@pytest.mark.parametrize("change", ["name", "color", "moved"])
def test_names_colors_and_places_are_changes_too(work, change):
    work.next()
    segment = work.segmentation.GetSegmentation().GetNthSegment(0)
    if change == "name":
        segment.SetName("liver with lesion")
    elif change == "color":
        segment.SetColor(0.1, 0.2, 0.3)
    else:
        shift = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
        work.volume.SetAndObserveTransformNodeID(shift.GetID())
    assert work.is_changed


@in_each_format
def test_looking_is_no_change(work):
    work.next()
    work.segmentation.CreateClosedSurfaceRepresentation()
    work.segmentation.GetDisplayNode().SetSegmentVisibility(
        work.segmentation.GetSegmentation().GetNthSegmentID(1), False
    )
    work.volume.GetDisplayNode().SetAutoWindowLevel(False)
    work.volume.GetDisplayNode().SetWindowLevel(400, 40)
    assert not work.is_changed
    work.accept()


def test_an_image_that_other_segments_belong_to_stays(work):
    work.next()
    own = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "my own")
    own.SetReferenceImageGeometryParameterFromVolumeNode(work.volume)
    work.next()
    assert nodes("vtkMRMLScalarVolumeNode") == ["doubtful", "middling"]
    assert nodes("vtkMRMLSegmentationNode") == ["my own", "middling masks"]


@in_each_format
def test_corrected_masks_replace_the_file_and_come_back_on_the_right_voxels(work):
    work.next()
    draw(work)
    work.correct()
    assert status(work.file) == {"doubtful": "corrected", "middling": "open", "calm": "open"}
    assert not work.is_changed
    files = {path.name for path in labels_of(work).parent.iterdir()}
    assert files - {"doubtful.labels.json"} == {labels_of(work).name}  # nothing is left over
    work.next()
    mark(work.file, "doubtful", "open")
    again = WorkList(work.file)
    again.next()
    assert again.row.case == "doubtful"
    assert np.array_equal(voxels(again, "liver"), corrected())
    for key in ("spleen", "aorta"):
        assert np.array_equal(voxels(again, key), body(key) & ~hidden(work, key)), key
    assert_dressed(again)


def hidden(work: WorkList, key: str) -> np.ndarray:
    """Voxels that a label map leaves to the smaller of two segments."""
    is_map = work.row.labels.endswith(".nii.gz")
    smaller = corrected().sum() < body(key).sum()
    return corrected() if is_map and smaller else np.zeros(SHAPE, bool)


@in_each_format
def test_corrected_file_lies_on_the_image_for_readers_outside_slicer(work):
    work.next()
    draw(work)
    work.correct()
    saved = sitk.ReadImage(str(labels_of(work)))
    image = sitk.ReadImage(work.row.image)
    values = sitk.GetArrayFromImage(saved)
    inside = np.argwhere(values.reshape(values.shape[:3]) == 1 if values.ndim == 3 else values[..., 0] == 1)
    points = [saved.TransformIndexToPhysicalPoint([int(n) for n in index[::-1]]) for index in inside]
    indices = {tuple(round(n) for n in image.TransformPhysicalPointToContinuousIndex(point)) for point in points}
    assert indices == {tuple(int(n) for n in index[::-1]) for index in np.argwhere(corrected())}


def test_provenance_survives_a_correction(work):
    work.next()
    before = tag(work.segmentation.GetSegmentation().GetNthSegment(0), PROVENANCE_TAG)
    draw(work)
    work.correct()
    mark(work.file, "doubtful", "open")
    again = WorkList(work.file)
    again.next()
    assert json.loads(before)["name"] == "liver"
    assert tag(again.segmentation.GetSegmentation().GetNthSegment(0), PROVENANCE_TAG) == before


@pytest.mark.parametrize("review", [".nii.gz"], indirect=True)
def test_label_map_keeps_its_header_and_its_table_tells_what_is_true_now(work):
    import gzip

    work.next()
    header = gzip.decompress(labels_of(work).read_bytes())[:352]
    segmentation = work.segmentation.GetSegmentation()
    draw(work)
    segmentation.GetNthSegment(1).SetName("spleen, whole")
    segment_id = segmentation.AddEmptySegment("", "lesion", (0, 1, 0))
    write_segment(work.segmentation, work.volume, segment_id, np.ones((1, 2, 3), bool), (50, 52, 10, 11, 20, 20))
    work.correct()
    assert gzip.decompress(labels_of(work).read_bytes())[:352] == header
    rows = json.loads(labels_of(work).with_name("doubtful.labels.json").read_text())["labels"]
    assert [(row["value"], row["name"]) for row in rows] == [
        (1, "liver"), (2, "spleen, whole"), (3, "aorta"), (4, "lesion"),
    ]  # fmt: skip
    assert rows[0]["voxels"] == corrected().sum() and rows[0]["code"]["value"] == CODES["liver"].value
    assert rows[3] | {"voxels": 6, "color": [0, 255, 0], "found": True} == rows[3]
    values = sitk.GetArrayFromImage(sitk.ReadImage(str(labels_of(work))))
    assert np.argwhere(values == 4).tolist() == [[20, j, i] for j in (10, 11) for i in (50, 51, 52)]


@in_each_format
def test_saved_masks_are_known_as_a_persons_where_the_mark_could_not_be_written(work):
    work.next()
    labels, volume = labels_of(work), read_volume(work.row.image)
    computed = {file.name: (sha256_of(file), file.stat().st_size) for file in labels.parent.iterdir()}
    assert not belongs_to_a_person(labels.parent, computed, "open")
    draw(work)
    work.file.unlink()
    with pytest.raises(InputError):
        work.correct()
    assert belongs_to_a_person(labels.parent, computed, "open")
    stored = read_masks(labels)
    masks = {one.name: on_grid_of(volume, one.mask, stored.ijk_to_lps)[0] for one in stored.segments}
    assert np.array_equal(masks["liver"], corrected())
    assert set(masks) == set(BODIES)
    labels.write_bytes(labels.read_bytes()[:-20])
    assert not belongs_to_a_person(labels.parent, computed, "open")  # nobody draws a damaged file


def test_time_spent_is_added_to_the_case(work):
    work.next()
    time.sleep(0.3)
    work.accept()
    seconds = {row.case: row.seconds for row in read_review(work.file)}
    assert 0.2 <= seconds["doubtful"] < 30 and seconds["calm"] is None


def test_cases_that_others_marked_meanwhile_are_passed_over(work):
    work.next()
    mark(work.file, "middling", "accepted")
    work.next()
    assert work.row.case == "calm"
    work.next()
    assert work.row.case == "doubtful"  # which is still open


@pytest.mark.parametrize(("lost", "word"), [("image", "image"), ("labels", "masks")])
def test_a_missing_file_is_named_in_one_sentence_and_the_next_case_can_be_had(work, lost, word):
    name = getattr(read_review(work.file)[0], lost)
    (work.file.parent / name).unlink()
    with pytest.raises(InputError, match=f"The {word} '.*doubtful.*' of doubtful (is|are) missing") as told:
        work.next()
    assert name in str(told.value) and "\n" not in str(told.value)
    assert not work.state.loaded and nodes("vtkMRMLScalarVolumeNode") == []
    with pytest.raises(InputError, match="No case is loaded"):
        work.accept()
    assert work.next() and work.row.case == "middling"


@in_each_format
def test_a_damaged_masks_file_is_named_and_leaves_nothing_in_the_scene(work):
    labels = work.file.parent / read_review(work.file)[0].labels
    labels.write_bytes(b"no masks")
    with pytest.raises(InputError, match="cannot be read as masks"):
        work.next()
    assert nodes("vtkMRMLScalarVolumeNode") == nodes("vtkMRMLSegmentationNode") == []


@in_each_format
def test_another_image_under_the_name_is_refused(work):
    image = Path(read_review(work.file)[0].image)
    other = sitk.ReadImage(str(image))
    other.SetOrigin([value + 2 for value in other.GetOrigin()])
    sitk.WriteImage(other, str(image))
    with pytest.raises(InputError, match="lies elsewhere than its masks"):
        work.next()
    assert nodes("vtkMRMLScalarVolumeNode") == nodes("vtkMRMLSegmentationNode") == []


@in_each_format
def test_a_folder_that_refuses_leaves_the_old_masks_and_the_case_open(work, monkeypatch):
    work.next()
    draw(work)
    before = labels_of(work).read_bytes()

    def refuse(*_paths):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(InstallationError, match="no space left on device"):
        work.correct()
    monkeypatch.undo()
    assert labels_of(work).read_bytes() == before and status(work.file)["doubtful"] == "open"
    assert work.is_changed
    work.correct()
    assert status(work.file)["doubtful"] == "corrected"


def test_a_scene_that_was_closed_is_no_hindrance(work):
    work.next()
    slicer.mrmlScene.Clear()
    assert not work.state.loaded
    assert work.next() and work.row.case == "middling"


def test_a_file_that_is_no_list_is_told(tmp_path, module):
    (tmp_path / "review.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="is no review list"):
        WorkList(tmp_path / "review.csv")


@in_each_format
@pytest.mark.parametrize("step", [2.5, -2.5])
def test_dicom_series_in_either_order_of_slices_has_its_masks_in_place(module, tmp_path, review, step):
    sys.path.append(str(Path(__file__).parents[1] / "engine"))
    from phantoms import dicom_series

    from MedZeroSegLib.volume_io import read_volume

    series = dicom_series(tmp_path / "series", grey_levels()[:9], [(3, -7, step * k) for k in range(9)])
    volume = read_volume(series)
    mask = volume.voxels == BODIES["spleen"][0]
    row = read_review(review)[0]
    write_masks(volume, {"spleen": mask}, review.parent / row.labels)
    (listed,) = write_review([record(row.case, series, row.labels)], tmp_path / "series.csv")
    work = WorkList(tmp_path / "series.csv")
    assert work.next() and work.row == listed
    scan = slicer.util.arrayFromVolume(work.volume)
    assert scan.shape == (9, *SHAPE[1:]) and mask.any()
    assert np.array_equal(voxels(work, "spleen"), scan == BODIES["spleen"][0])


def test_of_several_dicom_series_in_one_folder_the_right_one_is_loaded(module, tmp_path, review):
    sys.path.append(str(Path(__file__).parents[1] / "engine"))
    from phantoms import dicom_series

    from MedZeroSegLib.cohort.inputs import find_cases
    from MedZeroSegLib.volume_io import read_volume

    study = tmp_path / "study"
    for number, (first, prefix) in enumerate(((0, "b"), (9, "a"))):
        series = dicom_series(
            tmp_path / prefix, grey_levels()[first : first + 9], [(3, -7, 2.5 * k) for k in range(9)],
            SeriesInstanceUID=f"1.2.{number + 3}", SeriesNumber=str(number),
        )  # fmt: skip
        study.mkdir(exist_ok=True)
        for file in series.iterdir():
            file.rename(study / f"{prefix}{file.name}")
    cases = find_cases(str(study), "spleen").cases
    assert [case.name for case in cases] == ["series-1", "series-0"]
    for case in cases:
        volume = read_volume(case.image, files=case.files)
        row = read_review(review)[0]
        write_masks(volume, {"spleen": volume.voxels == BODIES["spleen"][0]}, review.parent / row.labels)
        write_review([record(row.case, case.image, row.labels)], tmp_path / "several.csv")
        work = WorkList(tmp_path / "several.csv")
        work.next()
        assert np.array_equal(slicer.util.arrayFromVolume(work.volume), volume.voxels)
        (tmp_path / "several.csv").unlink()


@in_each_format
def test_masks_of_a_left_handed_grid_lie_in_place_before_and_after_a_correction(module, review):
    from MedZeroSegLib.volume_io import read_volume

    row = read_review(review)[0]
    image = write_image(review.parent / "left-handed.nii.gz", GRID @ np.diag([1.0, 1.0, -1.0, 1.0]))
    volume = read_volume(image)
    write_masks(volume, {key: volume.voxels == BODIES[key][0] for key in BODIES}, review.parent / row.labels)
    write_review([record(row.case, image, row.labels)], review.parent / "left-handed.csv")
    work = WorkList(review.parent / "left-handed.csv")
    work.next()
    scan = slicer.util.arrayFromVolume(work.volume)
    assert np.array_equal(scan, volume.voxels[::-1])  # Slicer turns the slices around
    for key in BODIES:
        assert np.array_equal(voxels(work, key), scan == BODIES[key][0]), key
    draw(work)
    work.correct()
    mark(work.file, row.case, "open")
    again = WorkList(work.file)
    again.next()
    assert np.array_equal(voxels(again, "liver"), corrected())
    values = sitk.GetArrayFromImage(sitk.ReadImage(str(labels_of(work))))  # in the order of the file
    if row.labels.endswith(".nii.gz"):
        assert np.array_equal(values == 1, corrected()[::-1])


@in_each_format
def test_the_frame_of_a_time_sequence_is_the_one_whose_masks_are_shown(module, review):
    from MedZeroSegLib.volume_io import read_volume

    row = read_review(review)[0]
    still = sitk.ReadImage(str(write_image(review.parent / "still.nii.gz")))
    sequence = sitk.JoinSeries([still, still + 100, still + 200])
    sitk.WriteImage(sequence, str(review.parent / "sequence.nii.gz"))
    image = review.parent / "sequence.nii.gz"
    volume = read_volume(image, frame=1)
    write_masks(volume, {key: body(key) for key in BODIES}, review.parent / row.labels)
    write_review([replace(record(row.case, image, row.labels), frame=1)], review.parent / "sequence.csv")
    work = WorkList(review.parent / "sequence.csv")
    assert work.next() and work.row.frame == 1 and ", frame 1" in work.state.tooltip
    assert np.array_equal(slicer.util.arrayFromVolume(work.volume), grey_levels() + 100)
    assert work.volume.GetDisplayNode() is not None
    for key in BODIES:
        assert np.array_equal(voxels(work, key), body(key)), key
    draw(work)
    work.correct()
    mark(work.file, row.case, "open")
    again = WorkList(work.file)
    again.next()
    assert np.array_equal(voxels(again, "liver"), corrected())


def test_a_frame_that_the_image_lacks_is_told(module, review):
    row = read_review(review)[0]
    write_review([replace(record(row.case, Path(row.image), row.labels), frame=4)], review.parent / "frames.csv")
    with pytest.raises(InputError, match="has no frame 4"):
        WorkList(review.parent / "frames.csv").next()
    assert nodes("vtkMRMLScalarVolumeNode") == []


# In the panel


@pytest.fixture
def listed(panel, review, monkeypatch):
    """The panel with the list opened by its button, and its section unfolded."""
    import qt

    monkeypatch.setattr(qt.QFileDialog, "getOpenFileName", lambda *_arguments: str(review))
    panel.ui.workListSection.collapsed = False
    panel.click("openListButton")
    return panel


def test_section_is_folded_and_asks_for_a_list(panel):
    assert panel.ui.workListSection.collapsed
    assert panel.ui.openListButton.enabled
    for name in ("nextCaseButton", "acceptCaseButton", "correctedCaseButton"):
        button = getattr(panel.ui, name)
        assert not button.enabled and button.toolTip == "Open the review.csv of a cohort first."


def test_opened_list_shows_its_first_case_as_the_image_and_the_result(listed):
    work, parameters = listed.widget.workListPanel.work, listed.widget.parameters
    assert listed.ui.workListLabel.text == "1 of 3, liver: expected Dice 0.20."
    assert parameters.inputVolume is work.volume and parameters.segmentation is work.segmentation
    assert listed.segments == list(BODIES)
    selection = slicer.app.applicationLogic().GetSelectionNode()
    assert selection.GetActiveVolumeID() == work.volume.GetID()
    listed.picture("work-list", height=900)


def test_accept_and_corrected_go_on_to_the_next_case_until_all_are_reviewed(listed, review):
    work = listed.widget.workListPanel.work
    listed.click("acceptCaseButton")
    assert work.row.case == "middling" and listed.widget.parameters.inputVolume is work.volume
    draw(work)
    listed.click("acceptCaseButton")
    assert "The masks of middling were changed here" in listed.ui.workListLabel.text
    listed.click("correctedCaseButton")
    assert listed.ui.workListLabel.text == "3 of 3, liver: expected Dice 0.90."
    listed.click("acceptCaseButton")
    assert listed.ui.workListLabel.text.endswith("All cases of this list are reviewed.")
    assert status(review) == {"doubtful": "accepted", "middling": "corrected", "calm": "accepted"}
    assert not listed.ui.nextCaseButton.enabled


def test_keys_work_while_the_section_is_open(listed, review):
    from PySide6 import QtCore, QtTest

    work = listed.widget.workListPanel.work

    def press(key, until) -> None:
        listed.parent.activateWindow()
        listed.qapp.processEvents()
        QtTest.QTest.keyClick(listed.ui.workListLabel, key, QtCore.Qt.AltModifier)
        listed.spin(until)  # Qt shows the button pressed for a moment

    press(QtCore.Qt.Key_N, lambda: work.row.case == "middling")
    press(QtCore.Qt.Key_A, lambda: work.row.case == "calm")
    draw(work)
    press(QtCore.Qt.Key_C, lambda: work.row.case == "doubtful")
    assert status(review) == {"doubtful": "open", "middling": "accepted", "calm": "corrected"}


def test_next_leaves_changed_masks_in_the_scene_and_says_so(listed):
    draw(listed.widget.workListPanel.work)
    listed.click("nextCaseButton")
    assert listed.ui.workListLabel.text.endswith("The changed masks of doubtful stay in the scene; they are not saved.")


def test_missing_file_is_told_in_the_section(listed, review):
    Path(read_review(review)[1].image).unlink()
    listed.click("nextCaseButton")
    assert "The image '" in listed.ui.workListLabel.text and "middling.nii.gz" in listed.ui.workListLabel.text
    assert not listed.ui.acceptCaseButton.enabled and listed.ui.nextCaseButton.enabled
    listed.click("nextCaseButton")
    assert listed.widget.workListPanel.work.row.case == "calm"


def test_list_rests_while_the_engine_is_at_work(listed):
    listed.start("liver", seconds_loading=20)
    for name in ("openListButton", "nextCaseButton", "acceptCaseButton", "correctedCaseButton"):
        assert not getattr(listed.ui, name).enabled
    listed.click("cancelButton")
    listed.finish()
    assert listed.ui.nextCaseButton.enabled
