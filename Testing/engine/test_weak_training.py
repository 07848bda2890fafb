"""Weak supervision: which masks of a cohort are learnt from and how, and the student as a preset like any other."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from killed_training import kill_after_checkpoint, one_thread
from safetensors.torch import load_file, save_file
from weak_samples import MATRIX, SHAPE, VENTRICLE, heart, make_cohort, small_students

from MedZeroSegLib import encoding, read_volume, segment, worker
from MedZeroSegLib.cohort.journal import Journal
from MedZeroSegLib.cohort.settings import RunSettings, engine_marks
from MedZeroSegLib.errors import InputError
from MedZeroSegLib.evaluation.closed_presets import segment_known
from MedZeroSegLib.evaluation.datasets import DATA_SETS
from MedZeroSegLib.evaluation.tiers import tier_of
from MedZeroSegLib.presets import load_engine, preset_named
from MedZeroSegLib.protocol import decode_event
from MedZeroSegLib.request_loop import Channel, Report
from MedZeroSegLib.text_image.student_network import architecture_for, build_network
from MedZeroSegLib.trained_preset import CARD, WEIGHTS, read_trained_preset
from MedZeroSegLib.training.pseudo_labels import read_pseudo_labels, store_cases, volumes_of
from MedZeroSegLib.training.variation import IGNORED, vary
from MedZeroSegLib.training.weak import WeakTraining, train_weak, weak_losses

ROOT = Path(__file__).parents[2]
LEARNT = WeakTraining(steps=60, batch=4, keep=1.0, learning_rate=6e-3, warm_up=5, average=0.8)


def told_nothing(_sentence: str) -> None: ...


@pytest.fixture(scope="module")
def patched():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def cohort(tmp_path_factory, patched):
    """Eight volumes with their teacher's masks; the teacher has gone when it is made."""
    with pytest.MonkeyPatch.context() as patch:
        return make_cohort(tmp_path_factory.mktemp("weak"), 8, patch)


@pytest.fixture(scope="module")
def student(cohort, patched):
    small_students(patched)
    sentences: list[str] = []
    folder = train_weak(cohort, cohort.parent / "Schüler 1", LEARNT, 30, "cpu", sentences.append)
    return folder, sentences


def unseen(tmp_path: Path, number: int = 99) -> tuple[Path, np.ndarray]:
    """An image that no student saw, on an oblique grid, and its ventricle."""
    voxels, labels = heart(number)
    file = tmp_path / f"unseen_{number}.nii.gz"
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing(np.linalg.norm(MATRIX[:3, :3], axis=0).tolist())
    image.SetDirection((MATRIX[:3, :3] / np.linalg.norm(MATRIX[:3, :3], axis=0)).ravel().tolist())
    sitk.WriteImage(image, str(file))
    return file, labels == 1


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * np.count_nonzero(one & other) / (np.count_nonzero(one) + np.count_nonzero(other))


# What is learnt from


def test_masks_that_are_expected_to_be_wrong_are_not_learnt_and_their_voxels_are_ignored(cohort):
    sentences: list[str] = []
    labels = read_pseudo_labels(cohort, 1.0, sentences.append)
    assert labels.structures == ("left ventricle",) and len(labels.cases) == 8
    assert any("left ventricular myocardium has 0 usable masks" in sentence for sentence in sentences)
    for case, volume, marks in volumes_of(labels, told_nothing):
        number = int(case.name.split("_")[1])
        truth = heart(number)[1]
        assert marks.shape == volume.shape == SHAPE
        assert set(np.unique(marks)) == {0, 1, IGNORED}
        wall = truth == 2
        assert (marks[wall] == IGNORED).mean() == (1.0 if number % 3 == 0 else pytest.approx(0.0, abs=0.1))


def test_voxels_in_doubt_are_ignored_and_the_surest_share_is_kept(cohort):
    labels = read_pseudo_labels(cohort, 0.5, told_nothing)
    assert len(labels.cases) == 8  # all are equally sure, so none is surer than another
    _, _, marks = next(volumes_of(labels, told_nothing))
    k, j, _ = np.nonzero(heart(0)[1] == 1)
    assert (marks[k.min() : k.max() + 1, j.min()][heart(0)[1][k.min() : k.max() + 1, j.min()] == 1] == IGNORED).all()


def test_slices_are_stored_as_the_line_shows_them_and_with_their_doubt(cohort, tmp_path):
    labels = read_pseudo_labels(cohort, 1.0, told_nothing)
    case = store_cases(labels, tmp_path / "cases", told_nothing)[0]
    shown, marks = case.rows("pictures", 0, len(case)), case.rows("labels", 0, len(case))
    assert shown.shape == marks.shape == (5, 256, 256)
    assert shown[marks == 1].min() > 1.5 * np.median(shown[(marks == 0)])  # the ventricle is what is bright
    assert (marks[:, 192:] == IGNORED).all() and not (marks[:, :190] == IGNORED).all((1, 2)).any()  # 48 of 64 rows
    assert case.rows("doubt", 0, 5).tolist() == pytest.approx([0, 0.1, 0.8, 0.2, 0])
    before = case.file.stat().st_mtime_ns
    assert store_cases(labels, tmp_path / "cases", told_nothing)[0].file.stat().st_mtime_ns == before


def test_a_reviewed_mask_counts_fully(cohort, tmp_path):
    import shutil

    shutil.copytree(cohort, tmp_path / "reviewed")
    journal = Journal(tmp_path / "reviewed")
    records = list(journal.records())
    journal.close()
    from MedZeroSegLib.cohort.review import REVIEW_FILE, read_review, write_review

    file = tmp_path / "reviewed" / REVIEW_FILE
    write_review([replace(record, reviewed="accepted") for record in records], file)
    assert {row.status for row in read_review(file)} == {"accepted"}
    labels = read_pseudo_labels(tmp_path / "reviewed", 1.0, told_nothing)
    assert {case.trust["left ventricle"] for case in labels.cases} == {1.0}


# How


def test_an_unknown_structure_may_lie_in_the_background():
    labels = torch.zeros(1, 4, 4, dtype=torch.long)
    labels[0, 0] = 1
    known, weights = torch.tensor([[True, False]]), torch.ones(1)
    logits = torch.zeros(1, 3, 4, 4)
    logits[:, 1, 0] = 5
    as_background, as_unknown = logits.clone(), logits.clone()
    as_background[:, 0, 1:], as_unknown[:, 2, 1:] = 6, 6
    one, other = weak_losses(as_background, labels, known, weights), weak_losses(as_unknown, labels, known, weights)
    assert torch.allclose(one[0], other[0]) and torch.allclose(one[1], other[1])
    both = torch.tensor([[True, True]])
    assert weak_losses(as_unknown, labels, both, weights)[0] > one[0] + 1


def test_ignored_voxels_and_worthless_slices_teach_nothing():
    logits = torch.randn(2, 2, 6, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels = torch.ones(2, 6, 6, dtype=torch.long)
    labels[0, :3] = IGNORED
    known = torch.ones(2, 1, dtype=torch.bool)
    sum(weak_losses(logits, labels, known, torch.tensor([1.0, 0.0]))).backward()
    assert not logits.grad[0, :, :3].any() and not logits.grad[1].any()
    assert logits.grad[0, :, 3:].all()


def test_a_varied_copy_keeps_picture_and_labels_together():
    labels = torch.zeros(2, 256, 256, dtype=torch.uint8)
    labels[0, 40:120, 60:90], labels[1, 150:170, 30:110] = 1, 2
    shown = (labels > 0).float() * 0.9
    for seed in range(12):
        picture, marks = vary(shown, labels, (128, 128), np.random.default_rng(seed))
        inside, outside = (marks == 1) | (marks == 2), marks == 0
        if inside.sum() > 200:
            assert picture[inside].mean() > picture[outside].mean() + 0.3
            wrong = ((picture > 0.5 * picture[inside].mean()) != inside)[marks != IGNORED].float().mean()
            assert wrong < 0.03, seed


def test_slices_far_apart_are_looked_at_one_by_one_and_others_in_stacks():
    flat = architecture_for(2, 2, 6.0)
    assert flat.dimension == 2 and all(kernel == (3, 3) for kernel in flat.kernels)
    far, near = architecture_for(1, 3, 4.0), architecture_for(1, 3, 1.0)
    assert far.strides[1] == (1, 2, 2) and far.kernels[0] == (1, 3, 3)
    assert near.strides[1] == (2, 2, 2) and near.kernels[0] == (3, 3, 3)
    assert build_network(far)(torch.zeros(1, 1, 16, 32, 32)).shape == (1, 2, 16, 32, 32)


# The student as a preset


def test_the_student_learns_its_teachers_masks_and_draws_them_on_the_images_own_grid(student, tmp_path):
    file, ventricle = unseen(tmp_path)
    volume = read_volume(file, modality="MR")
    result = segment(volume, ["LV"], str(student[0]), "cpu")
    one = result.segments[0]
    assert one.found and one.name == "left ventricle" and dice(one.mask, ventricle) > 0.8
    assert not one.mask[0].any() and not one.mask[-1].any()
    assert any("learnt from masks that arithmetic drew" in warning for warning in result.warnings)
    hashes = {record["file"]: record["sha256"] for record in result.weights}
    trained = read_trained_preset(student[0])
    assert hashes == {WEIGHTS: trained.weights_sha256, CARD: trained.card_sha256}
    assert trained.weights_sha256[:4] in result.preset and one.provenance["preset"] == result.preset


def test_the_real_command_line_takes_the_students_folder(student, tmp_path):
    file, ventricle = unseen(tmp_path, 77)
    output, report = tmp_path / "out.nii.gz", tmp_path / "out.json"
    command = [sys.executable, "-c", "from MedZeroSegLib.cli import main; main()", "segment", str(file)]
    command += ["--structures", "left ventricle", "--modality", "MR", "--preset", str(student[0])]
    command += ["--output", str(output), "--report", str(report), "--device", "cpu"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert dice(sitk.GetArrayFromImage(sitk.ReadImage(str(output))) > 0, ventricle) > 0.8
    told = json.loads(report.read_text())
    assert told["structures"][0]["found"] and told["settings"]["trained"]["kind"] == "student"


def test_the_windows_engine_takes_the_students_folder(student, tmp_path, monkeypatch):
    monkeypatch.setattr("MedZeroSegLib.forecast.rates_file", lambda: tmp_path / "seconds.json")
    volume = read_volume(unseen(tmp_path)[0], modality="MR")
    np.save(tmp_path / "volume.npy", volume.voxels)
    (tmp_path / "masks").mkdir()
    message = {
        "id": 1, "cmd": "segment", "names": ["LV"], "preset": str(student[0]), "device": "cpu",
        "folder": str(tmp_path / "masks"), "volume": {
            "voxels": str(tmp_path / "volume.npy"), "ijk_to_lps": volume.ijk_to_lps.tolist(), "modality": "MR",
            "modality_source": "given", "dimension": 3, "calibrated": True},
    }  # fmt: skip
    stream = io.BytesIO()
    for handler, request in (
        (worker.check_engine, {**message, "cmd": "check"}), (worker.fetch_weights, message),
        (worker.segment_volume, message),
    ):  # fmt: skip
        handler(request, Report(1, Channel(stream)))
    events = [event for line in stream.getvalue().splitlines() if (event := decode_event(line))]
    (found,) = [event for event in events if event["event"] == "segment"]
    assert found["found"] and found["provenance"]["preset"] == preset_named(str(student[0])).name


def test_a_cohort_is_computed_anew_with_a_student_that_learnt_more(student, tmp_path):
    import shutil

    copied = tmp_path / "copied"
    copied.mkdir()
    for name in (CARD, WEIGHTS):
        shutil.copy(student[0] / name, copied / name)
    settings = RunSettings(preset=str(copied))
    before = engine_marks(settings)
    assert before == engine_marks(settings)
    card = json.loads((copied / CARD).read_text())
    (copied / CARD).write_text(json.dumps({**card, "note": "Another."}))
    assert engine_marks(settings) != before


def test_a_name_that_the_student_does_not_know_is_refused_with_those_that_it_knows(student, tmp_path):
    volume = read_volume(unseen(tmp_path)[0], modality="MR")
    with pytest.raises(InputError, match="trained on left ventricle alone, not on liver"):
        segment(volume, ["left ventricle", "liver"], str(student[0]), "cpu")


def test_an_evaluation_counts_names_that_the_student_does_not_know_as_not_found(student, tmp_path):
    volume = read_volume(unseen(tmp_path)[0], modality="MR")
    engine = load_engine(str(student[0]), "cpu")
    texts = ["liver", "left ventricle", "brain"]
    result = segment_known(engine, volume, texts, lambda v, asked: segment(v, asked, str(student[0]), "cpu"))
    assert [one.typed for one in result.segments] == texts
    assert [one.found for one in result.segments] == [False, True, False]
    nothing = segment_known(engine, volume, ["liver"], lambda *_: pytest.fail("asked"))
    assert not nothing.segments[0].found and nothing.preset == result.preset


def test_a_stack_is_looked_at_whole(cohort, patched, tmp_path):
    small_students(patched)
    settings = replace(LEARNT, steps=2, batch=1, dimension=3)
    folder = train_weak(cohort, tmp_path / "stacks", settings, 1, "cpu", told_nothing)
    volume = read_volume(unseen(tmp_path)[0], modality="MR")
    encoding.forget_volumes()
    assert segment(volume, ["left ventricle"], str(folder), "cpu").segments[0].mask.shape == SHAPE


def test_a_retrained_student_is_loaded_anew(student, tmp_path):
    import shutil

    folder = tmp_path / "moved"
    folder.mkdir()
    for name in (CARD, WEIGHTS):
        shutil.copy(student[0] / name, folder / name)
    first = load_engine(str(folder), "cpu")
    weights = {name: value * 0.5 for name, value in load_file(folder / WEIGHTS).items()}
    save_file(weights, folder / WEIGHTS)
    with pytest.raises(InputError, match="isn't the file that its card names"):
        load_engine(str(folder), "cpu")
    from MedZeroSegLib.weights_catalogue import sha256_of

    card = json.loads((folder / CARD).read_text())
    (folder / CARD).write_text(json.dumps({**card, "weights_sha256": sha256_of(folder / WEIGHTS)}))
    second = load_engine(str(folder), "cpu")
    assert second.preset.name != first.preset.name and second.weights != first.weights


def test_figures_of_a_student_are_of_the_weak_tier_unless_its_teacher_saw_masks_of_the_data_set(student):
    sources = tuple(load_engine(str(student[0]), "cpu").settings["trained_sources"])
    assert sources == ("masks of arithmetic",)
    assert tier_of(DATA_SETS["acdc"], sources, ["patient101"]).letter == "W"
    assert tier_of(DATA_SETS["acdc"], (*sources, "acdc_cardiac_mr"), ["patient101"]).letter == "S"


# For nnU-Net


def test_the_masks_lie_in_nnunets_raw_layout_with_doubt_as_its_ignore_label(student):
    place = student[0] / "nnUNet_raw" / "Dataset501_MedZeroSeg"
    described = json.loads((place / "dataset.json").read_text())
    assert described["labels"] == {"background": 0, "left ventricle": 1, "ignore": 2}
    assert described["numTraining"] == 8 and described["file_ending"] == ".nii.gz"
    images, labels = sorted((place / "imagesTr").iterdir()), sorted((place / "labelsTr").iterdir())
    assert [file.name for file in images] == [f"heart_{n}_0000.nii.gz" for n in range(8)]
    assert [file.name for file in labels] == [f"heart_{n}.nii.gz" for n in range(8)]
    for image_file, label_file in zip(images, labels, strict=True):
        image, label = sitk.ReadImage(str(image_file)), sitk.ReadImage(str(label_file))
        assert label.GetSize() == image.GetSize() and np.allclose(label.GetDirection(), image.GetDirection())
        assert np.allclose(np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing(), MATRIX[:3, :3], atol=1e-4)
        values, grey = sitk.GetArrayFromImage(label), sitk.GetArrayFromImage(image)
        assert set(np.unique(values)) == {0, 1, 2} and (grey[values == 1] > VENTRICLE - 40).all()


# Going on


@one_thread()
def test_a_run_that_was_killed_ends_with_the_same_log_and_weights(cohort, patched, tmp_path):
    small_students(patched)
    settings = replace(LEARNT, steps=30, batch=2)
    through = train_weak(cohort, tmp_path / "through", settings, 3, "cpu", told_nothing)
    stopped = tmp_path / "stopped"
    code = f"""
from pathlib import Path
import weak_samples
from MedZeroSegLib.training.weak import WeakTraining, train_weak
weak_samples.small_students()
train_weak(Path({str(cohort)!r}), Path({str(stopped)!r}), {settings!r}, 3, "cpu", print)
"""
    kill_after_checkpoint(code, stopped)
    assert not (stopped / CARD).exists()
    train_weak(cohort, stopped, settings, 3, "cpu", told_nothing)

    def losses(folder: Path) -> list[list[str]]:
        return [row.split(",")[:3] for row in (folder / "log.csv").read_text().splitlines()]

    assert losses(stopped) == losses(through) and len(losses(through)) == 11
    one, two = load_file(through / WEIGHTS), load_file(stopped / WEIGHTS)
    assert all(torch.equal(value, two[name]) for name, value in one.items())


# Refused


def test_what_cannot_be_learnt_from_is_refused_with_the_remedy(cohort, tmp_path, monkeypatch):
    few = make_cohort(tmp_path / "few", 3, monkeypatch)
    bad = make_cohort(tmp_path / "bad", 6, monkeypatch, expected=0.3)
    empty = tmp_path / "empty"
    empty.mkdir()
    Journal(empty, make=True).close()
    for folder, keep, words in (
        (tmp_path, 0.7, "holds no journal"),
        (empty, 0.7, "holds no finished case"),
        (few, 0.7, "no structure with 5 usable masks"),
        (bad, 0.7, "no structure with 5 usable masks"),
        (cohort, 0.0, "give a number above 0"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            read_pseudo_labels(folder, keep, told_nothing)
        assert "\n" not in str(caught.value)


def test_another_run_in_the_folder_is_refused(student, cohort, patched):
    small_students(patched)
    for changes, words in (({"steps": 61}, "steps 60 and not 61"), ({"dimension": 3}, "architecture|dimension")):
        with pytest.raises(InputError, match=words):
            train_weak(cohort, student[0], replace(LEARNT, **changes), 30, "cpu", told_nothing)
    for changes in ({"steps": 0}, {"batch": 0}, {"dimension": 4}):
        with pytest.raises(InputError):
            train_weak(cohort, student[0], replace(LEARNT, **changes), 30, "cpu", told_nothing)


def test_a_folder_that_is_no_preset_is_refused_with_the_remedy(student, tmp_path):
    import shutil

    half, other, foreign = tmp_path / "half", tmp_path / "other", tmp_path / "foreign"
    for folder in (half, other, foreign):
        folder.mkdir()
    shutil.copy(student[0] / WEIGHTS, half / WEIGHTS)
    shutil.copy(student[0] / WEIGHTS, foreign / WEIGHTS)
    (foreign / CARD).write_text("{}")
    card = json.loads((student[0] / CARD).read_text())
    save_file({"weight": torch.zeros(3)}, other / WEIGHTS)
    from MedZeroSegLib.weights_catalogue import sha256_of

    (other / CARD).write_text(json.dumps({**card, "weights_sha256": sha256_of(other / WEIGHTS)}))
    for name, words in (
        (str(tmp_path / "nowhere"), "is no folder"),
        ("lyte", "unknown; use one of lite"),
        (str(tmp_path), "lacks preset.json"),
        (str(half), "lacks preset.json"),
        (str(foreign), "no card of a preset"),
        (str(other), "weights of another architecture"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            load_engine(name, "cpu")
        assert "\n" not in str(caught.value)
    assert preset_named("base/naclip").trained is None
