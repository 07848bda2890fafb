"""The journal of a cohort, and the plan that it leads to: what is computed again, and what is left as it lies there."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cohort_samples import segment, segmentation
from phantoms import write_image
from test_cohort_inputs import VOXELS, lps_matrix

from MedZeroSegLib.cohort.by_hand import SET_ASIDE, bring_back, put_in_place
from MedZeroSegLib.cohort.case import Case
from MedZeroSegLib.cohort.case_record import CaseRecord, failed_record
from MedZeroSegLib.cohort.journal import Journal, held, is_running
from MedZeroSegLib.cohort.plan import Plan, make_plan
from MedZeroSegLib.cohort.review import REVIEW_FILE, mark, reviewed_cases, write_review
from MedZeroSegLib.cohort.settings import CaseMarks, EngineMarks, RunSettings, case_marks
from MedZeroSegLib.cohort.work import ANSWER, case_folder, work_place
from MedZeroSegLib.errors import InputError, InstallationError
from MedZeroSegLib.volume import Volume
from MedZeroSegLib.writers import write_segmentation

ROOT = Path(__file__).parents[2]
ENGINE, SETTINGS = EngineMarks("a preset", "its weights"), RunSettings()
MASKS = "mask.seg.nrrd"


class Folder:
    """A results' folder whose cases were computed by nobody: the masks are slabs, as thick as the names are long."""

    def __init__(self, root: Path) -> None:
        self.root, self.results = root, root / "out"
        (self.results / "cases").mkdir(parents=True)
        self.journal = Journal(self.results, make=True)
        self.run = self.journal.start_run(1, 1, {})

    def case(self, name: str, **options) -> Case:
        image = self.root / f"{name}.nii.gz"
        if not image.exists():
            write_image(image, VOXELS, lps_matrix())
        return Case(name=name, image=image, structures=options.pop("structures", "liver"), **options)

    def answer(self, case: Case, place: Path) -> dict:
        place.mkdir(parents=True)
        masks = write_masks(place / MASKS, len(case.name))
        marks = case_marks(case, SETTINGS, ENGINE)
        record = CaseRecord(case=case.name, image=str(case.image), status="done", carried=dict(case.carried))
        answer = {
            "record": record.to_json(), "signature": case.signature(), "image_sha256": case.content_sha256(),
            "settings": marks.settings, "weights": marks.weights,
            "outputs": {MASKS: [hashlib.sha256(masks).hexdigest(), len(masks)]},
        }  # fmt: skip
        (place / ANSWER).write_text(json.dumps(answer))
        return answer

    def done(self, name: str, **options) -> Case:
        case = self.case(name, **options)
        self.journal.await_turns([(case, "new")])
        self.journal.begin(name)
        self.journal.finish(self.answer(case, case_folder(self.results, name)), self.run)
        return case

    def failed(self, name: str) -> Case:
        case = self.case(name)
        self.journal.await_turns([(case, "new")])
        self.journal.begin(name)
        record = failed_record(name, str(case.image), "It can't be read.")
        self.journal.fail(record, case.signature(), case_marks(case, SETTINGS, ENGINE), self.run)
        return case

    def plan(self, *cases: Case, settings: RunSettings = SETTINGS, engine: EngineMarks = ENGINE, retry=False) -> Plan:
        entries, outputs = self.journal.entries(), self.journal.outputs()
        reviews = reviewed_cases(self.results)
        return make_plan(cases, entries, outputs, self.results, settings, engine, retry, reviews)

    def review(self, name: str, status: str) -> None:
        """List a case, and mark it."""
        masks = case_folder(self.results, name) / MASKS
        record = CaseRecord(
            case=name, image="", status="done", files={"labels": masks.relative_to(self.results).as_posix()}
        )
        write_review([record], self.results / REVIEW_FILE)
        mark(self.results / REVIEW_FILE, name, status)

    def correct(self, name: str) -> bytes:
        """A person's masks in place of the computed ones."""
        return write_masks(case_folder(self.results, name) / MASKS, 12)


def write_masks(file: Path, rows: int) -> bytes:
    """A liver of so many rows in Slicer's format; what the file holds now."""
    mask = np.zeros((3, 20, 5), bool)
    mask[1, :rows] = True
    volume = Volume(mask.astype(np.int16), lps_matrix(), "CT", dimension=3)
    write_segmentation(segmentation(volume, segment("liver", mask)), file)
    return file.read_bytes()


@pytest.fixture
def folder(tmp_path) -> Folder:
    return Folder(tmp_path)


def test_what_is_whole_is_kept_and_what_is_new_is_computed(folder):
    whole, new = folder.done("whole"), folder.case("new")
    plan = folder.plan(whole, new)
    assert [case.name for case, _ in plan.kept] == ["whole"]
    assert plan.reasons == {"new": 1}


def damage(folder: Folder) -> None:
    (case_folder(folder.results, "a") / MASKS).write_bytes(
        (case_folder(folder.results, "a") / MASKS).read_bytes()[:-1] + b"x"
    )


def lose(folder: Folder) -> None:
    (case_folder(folder.results, "a") / MASKS).unlink()


def change_image(folder: Folder) -> None:
    write_image(folder.root / "a.nii.gz", VOXELS + 1, lps_matrix())


@pytest.mark.parametrize(
    ("event", "reason"), [(damage, "output damaged"), (lose, "output missing"), (change_image, "image changed")]
)
def test_what_was_damaged_lost_or_changed_is_computed_again(folder, event, reason):
    case = folder.done("a")
    event(folder)
    assert folder.plan(case).reasons == {reason: 1}


def test_masks_that_people_corrected_are_never_computed_anew_while_they_lie_there(folder):
    case = folder.done("a")
    folder.correct("a")
    folder.review("a", "corrected")
    image = case.image.read_bytes()
    case.image.write_bytes(image + b"changed")
    for plan in (folder.plan(case), folder.plan(case, settings=RunSettings(format="nii.gz"))):
        assert plan.turns == () and [kept.name for kept, _ in plan.kept] == ["a"] and plan.reviewed == ("a",)
    ((_, signature),) = folder.plan(case).kept
    assert signature == folder.journal.entries()["a"].signature != case.signature()
    lose(folder)
    case.image.write_bytes(image)
    assert folder.plan(case).reasons == {"output missing": 1}


def test_accepted_masks_stay_whatever_the_settings_until_they_are_damaged_or_open_again(folder):
    case, other = folder.done("a"), RunSettings(format="nii.gz")
    folder.review("a", "accepted")
    assert folder.plan(case, settings=other).reasons == {} and folder.plan(case, settings=other).reviewed == ("a",)
    mark(folder.results / REVIEW_FILE, "a", "open")
    assert folder.plan(case, settings=other).reasons == {"settings changed": 1}
    mark(folder.results / REVIEW_FILE, "a", "accepted")
    damage(folder)
    assert folder.plan(case).reasons == {"output damaged": 1}


@pytest.mark.parametrize("status", ["open", "accepted"])
def test_masks_that_a_person_changed_without_a_mark_are_kept_and_told(folder, status):
    case = folder.done("a")
    folder.review("a", status)
    folder.correct("a")
    for settings in (SETTINGS, RunSettings(format="nii.gz")):
        plan = folder.plan(case, settings=settings)
        assert plan.turns == () and [kept.name for kept, _ in plan.kept] == ["a"]
        assert plan.by_hand + plan.reviewed == ("a",)


def test_a_persons_masks_outlive_the_journal(folder):
    case = folder.done("a")
    folder.correct("a")
    folder.journal.close()
    (folder.results / "journal.sqlite").unlink()
    folder.journal = Journal(folder.results, make=True)
    plan = folder.plan(case, folder.case("b"))
    assert [ready.name for ready, _, _ in plan.ready] == ["a"] and plan.by_hand == ("a",)
    assert plan.reasons == {"new": 1}


@pytest.mark.parametrize("saved", ["before", "never"])
def test_a_result_that_comes_after_a_correction_does_not_take_its_place(folder, saved):
    folder.done("a")
    final, place = case_folder(folder.results, "a"), work_place(folder.results, "a", 2)
    masks = folder.correct("a") if saved == "before" else b""
    anew = write_masks(place / MASKS, 4)
    assert put_in_place(place, final) is (saved == "never")
    assert (final / MASKS).read_bytes() == (masks or anew)
    assert not place.exists() and not list(place.parent.iterdir())


def test_a_folder_that_was_set_aside_when_a_run_was_killed_comes_back(folder):
    folder.done("a.1")
    masks, place = folder.correct("a.1"), work_place(folder.results, "a.1", 2)
    place.mkdir(parents=True)
    os.replace(case_folder(folder.results, "a.1"), place.with_name(place.name + SET_ASIDE))
    bring_back(folder.results, place.parent)
    assert (case_folder(folder.results, "a.1") / MASKS).read_bytes() == masks


def test_other_names_settings_or_weights_are_computed_again_and_a_touched_image_is_not(folder):
    case = folder.done("a")
    assert folder.plan(replace(case, structures="spleen")).reasons == {"settings changed": 1}
    assert folder.plan(case, settings=RunSettings(format="nii.gz")).reasons == {"settings changed": 1}
    assert folder.plan(case, engine=EngineMarks("a preset", "others")).reasons == {"weights changed": 1}
    assert folder.plan(case, settings=RunSettings(device="cuda")).reasons == {}
    os.utime(case.image, (1, 1))
    assert folder.plan(case).reasons == {}


def test_names_written_otherwise_but_equal_change_nothing(folder):
    case = folder.done("a", structures="liver; spleen")
    assert folder.plan(replace(case, structures="liver,spleen")).reasons == {}


def test_a_failed_case_is_left_alone_until_it_is_asked_for_or_its_image_changes(folder):
    case = folder.failed("a")
    assert [left.name for left in folder.plan(case).failed] == ["a"]
    assert folder.plan(case, retry=True).reasons == {"failed before": 1}
    change_image(folder)
    assert folder.plan(case).reasons == {"image changed": 1}


@pytest.mark.parametrize("where", [case_folder, lambda results, name: work_place(results, name, 1)])
def test_a_result_that_was_ready_when_the_run_ended_is_not_computed_again(folder, where):
    case = folder.case("a")
    folder.journal.await_turns([(case, "new")])
    folder.journal.begin("a")
    folder.answer(case, where(folder.results, "a"))
    plan = folder.plan(case)
    assert plan.reasons == {} and plan.ready[0][1] == where(folder.results, "a")
    (where(folder.results, "a") / MASKS).write_bytes(b"b")
    assert folder.plan(case).reasons == {"interrupted": 1}


def test_a_case_in_the_middle_of_which_a_run_ended_comes_after_the_others(folder):
    first, second = folder.case("a"), folder.case("b")
    folder.journal.await_turns([(first, "new"), (second, "new")])
    folder.journal.begin("a")
    for _ in range(2):  # it stays last until its turn comes
        plan = folder.plan(first, second)
        assert [(turn.case.name, turn.reason) for turn in plan.turns] == [("b", "new"), ("a", "interrupted")]
        folder.journal.start_run(1, 1, {})
        folder.journal.await_turns((turn.case, turn.reason) for turn in plan.turns)


def test_attempts_are_counted_over_all_runs(folder):
    folder.journal.await_turns([(folder.case("a"), "new")])
    assert [folder.journal.begin("a"), folder.journal.begin("a")] == [1, 2]
    folder.journal.start_run(1, 1, {})
    assert folder.journal.entries()["a"].status == "waiting"
    assert folder.journal.begin("a") == 3


def test_a_record_comes_back_as_it_was(folder):
    folder.done("Sättiger 肺", carried={"Alter": "41"})
    record = next(folder.journal.records())
    assert (record.case, dict(record.carried), record.status) == ("Sättiger 肺", {"Alter": "41"}, "done")


def test_only_one_run_at_a_time_holds_a_folder_and_a_killed_one_frees_it(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from MedZeroSegLib.cohort.journal import held\n"
        "with held(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None and other.stdout.readline() == "held\n"
    assert is_running(tmp_path)
    with pytest.raises(InputError, match="Another run is working"), held(tmp_path):
        pass
    other.kill()
    other.wait()
    assert not is_running(tmp_path)
    with held(tmp_path):
        assert is_running(tmp_path)


def test_a_folder_without_a_journal_and_a_file_that_is_none_are_refused(tmp_path):
    with pytest.raises(InputError, match="holds no journal"):
        Journal(tmp_path)
    (tmp_path / "journal.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(InstallationError, match="can't be used"):
        Journal(tmp_path)


def test_a_reader_sees_the_counts_while_a_run_writes(folder):
    folder.done("a")
    folder.failed("b")
    code = "import sys; from MedZeroSegLib.cli import main; sys.argv[0] = 'medzeroseg'; main()"
    with held(folder.results):
        run = subprocess.run(
            [sys.executable, "-c", code, "status", str(folder.results)], cwd=ROOT, capture_output=True, text=True
        )
    assert run.returncode == 1, run.stderr
    assert run.stdout.splitlines() == ["Cases: 1 done, 1 failed.", "b: It can't be read."]


def test_a_hundred_thousand_cases_are_counted_in_a_moment(folder):
    with sqlite3.connect(folder.results / "journal.sqlite") as database:
        rows = ((f"case-{n}", "image", ("done", "failed")[n % 7 == 0], "x" * 50, "y" * 300) for n in range(100_000))
        database.executemany("INSERT INTO cases (name, image, status, sentence, record) VALUES (?, ?, ?, ?, ?)", rows)
    started = time.perf_counter()
    journal = Journal(folder.results)
    assert journal.counts() == {"done": 85714, "failed": 14286}
    assert len(journal.failures(20)) == 20
    assert time.perf_counter() - started < 1


def test_a_mark_depends_on_each_thing_that_the_result_depends_on(folder):
    case = folder.case("a")
    marks = {
        case_marks(case, SETTINGS, ENGINE), case_marks(replace(case, frame=1), SETTINGS, ENGINE),
        case_marks(replace(case, modality="MR"), SETTINGS, ENGINE),
        case_marks(case, RunSettings(dicom_seg=True), ENGINE), case_marks(case, SETTINGS, EngineMarks("b", "c")),
    }  # fmt: skip
    assert len(marks) == 5 and all(isinstance(mark, CaseMarks) for mark in marks)
