"""Cohorts from end to end: real processes of Dask, killed for real; a full disk, files cut short, names in any script.

Where many cases only have to be scheduled, the workers find what is bright instead of loading models."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import SimpleITK as sitk
from phantoms import dicom_series, lps_matrix, write_image
from pydicom.data import get_testdata_file
from threshold_engine import FAILS, KILLS_ITS_PROCESS, KILLS_ITS_PROCESS_ONCE

from MedZeroSegLib.cohort.workers import Crew, hired, plan_crew
from MedZeroSegLib.errors import InputError, InstallationError

ROOT = Path(__file__).parents[2]
ENGINE = Path(__file__).with_name("threshold_engine.py")
RADIOGRAPH = "RG1_UNCR.dcm"
CASES_OF_A_FOLDER = "cases"


def medzeroseg(*arguments: str | Path, log: Path | None, **environment: str) -> subprocess.Popen[str]:
    """The command in a process of its own; with a log, its workers run on the threshold engine, which writes there."""
    stand_in = {"DASK_DISTRIBUTED__WORKER__PRELOAD": str(ENGINE), "THRESHOLD_ENGINE_LOG": str(log)} if log else {}
    return subprocess.Popen(
        [sys.executable, "-c", "from MedZeroSegLib.cli import main; main()", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", **stand_in, **environment},
    )  # fmt: skip


def cohort(source: Path, output: Path, log: Path | None, *options: str, workers: int = 2, **environment: str):
    """A finished run: exit status, what it told, and the state of each case."""
    process = medzeroseg(
        "cohort", source, "--structures", "liver", "--output", output, "--device", "cpu", "--workers", str(workers),
        "--threads", "1", *options, log=log, **environment,
    )  # fmt: skip
    told, errors = finished(process)
    return process.returncode, told + errors, states(output)


def states(output: Path) -> dict[str, tuple[str, str]]:
    import sqlite3

    if not (output / "journal.sqlite").exists():
        return {}
    with sqlite3.connect(output / "journal.sqlite") as journal:
        return {
            name: (state, sentence)
            for name, state, sentence in journal.execute("SELECT name, status, sentence FROM cases")
        }


def computations(log: Path) -> Counter[str]:
    return Counter(log.read_text().splitlines()) if log.exists() else Counter()


def scan(path: Path, first: int = 0) -> Path:
    """A small volume with something bright in it; the first voxel tells the threshold engine what to do."""
    rng = np.random.default_rng(len(path.name))
    voxels = rng.integers(10, 50, (12, 10, 4)).astype(np.int16)
    voxels[3:7, 2:6, 1:3] = 150
    voxels[0, 0, 0] = first
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_image(path, voxels, lps_matrix())


def finished(process: subprocess.Popen[str], seconds: float = 200) -> tuple[str, str]:
    """What a process told, on its output and on its error output; it doesn't outlive the test."""
    try:
        return process.communicate(timeout=seconds)
    finally:
        process.kill()


# One run with everything that can go wrong in it


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Source, output, log, and what came of the run."""
    folder = tmp_path_factory.mktemp("Sättiger 肺 (1)")
    source, output, log = folder / "in", folder / "out", folder / "log"
    for name in ("a", "b", "çt scan"):
        scan(source / f"{name}.nii.gz")
    scan(source / "a.nrrd")
    scan(source / "deadly.nii.gz", KILLS_ITS_PROCESS)
    scan(source / "deadly once.nii.gz", KILLS_ITS_PROCESS_ONCE)
    scan(source / "faulty.nii.gz", FAILS)
    whole = scan(source / "cut short.nii.gz").read_bytes()
    (source / "cut short.nii.gz").write_bytes(whole[: len(whole) // 2])
    (source / "no image.nii.gz").write_bytes(b"neither gzip nor NIfTI")
    dicom_series(source / "study", np.full((5, 9, 7), 120, np.int16), [(0, 0, 2 * k) for k in range(5)])
    odd = [(0, 0, 2 * k) for k in range(5)]
    dicom_series(source / "odd", np.full((5, 9, 7), 120, np.int16), odd, SeriesInstanceUID="1.2.5", StudyTime="1:2:3")
    lost = [(0, 0, z) for z in (0, 2, 4, 8, 10)]
    dicom_series(source / "with a gap", np.full((5, 9, 7), 120, np.int16), lost, SeriesInstanceUID="1.2.4")
    return source, output, log, cohort(source, output, log, "--dicom-seg")


def test_bad_cases_never_stop_the_run_and_make_its_exit_status_1(mixed):
    _, _, _, (status, told, cases) = mixed
    assert status == 1, told
    assert {name for name, (state, _) in cases.items() if state == "done"} == {
        "a", "a-2", "b", "çt scan", "deadly once", "odd", "study",
    }  # fmt: skip
    assert {state for state, _ in cases.values()} == {"done", "failed"}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cut short", "cut short"), ("no image", "no image.nii.gz"), ("faulty", "ZeroDivisionError"),
        ("deadly", "died 3 times"), ("with a gap", "1 slice is missing"),
    ],
)  # fmt: skip
def test_each_failure_has_its_sentence_in_the_journal(mixed, name, words):
    sentence = mixed[3][2][name][1]
    assert words in sentence and "\n" not in sentence and ".work" not in sentence


def test_a_case_whose_process_dies_is_tried_three_times_and_its_neighbours_are_done(mixed):
    counts = computations(mixed[2])
    assert counts["deadly.nii.gz"] == 3
    assert counts["deadly once.nii.gz"] == 2
    assert max(counts[name] for name in ("a.nii.gz", "b.nii.gz", "study")) <= 2  # may have been beside a death


def test_each_case_has_its_files_and_nothing_is_left_over(mixed):
    _, output, _, _ = mixed
    assert not (output / ".work").exists()
    files = {path.name for path in (output / CASES_OF_A_FOLDER / "çt scan").iterdir()}
    assert files == {"case.json", "çt scan.seg.nrrd", "çt scan.json", "çt scan.png", "çt scan.jpg"}
    mask = sitk.GetArrayFromImage(sitk.ReadImage(str(output / CASES_OF_A_FOLDER / "a" / "a.seg.nrrd")))
    assert mask.sum() == 4 * 4 * 2 and mask[1, 2, 3] == 1
    assert (output / CASES_OF_A_FOLDER / "study" / "study.dcm").exists()
    odd = json.loads((output / CASES_OF_A_FOLDER / "odd" / "case.json").read_text())["record"]
    assert "No DICOM SEG: " in odd["warnings"][-1] and "dicom_seg" not in odd["files"]  # and its masks are there
    assert (output / CASES_OF_A_FOLDER / "odd" / "odd.seg.nrrd").exists()
    for file in ("report.html", "review.csv", "statistics.csv"):
        assert (output / file).exists()


def test_status_counts_and_tells_the_failures(mixed):
    process = medzeroseg("status", mixed[1], "--json", log=None)
    told = json.loads(finished(process)[0])
    assert process.returncode == 1
    assert told["counts"] == {"done": 7, "failed": 5} and told["running"] is False
    assert {name for name, _ in told["failures"]} == {"cut short", "no image", "faulty", "deadly", "with a gap"}


def test_a_second_run_computes_what_is_missing_changed_or_damaged_and_nothing_else(mixed):
    source, output, log, (_, _, before) = mixed
    whole = (output / CASES_OF_A_FOLDER / "b" / "b.seg.nrrd").read_bytes()
    (output / CASES_OF_A_FOLDER / "b" / "b.seg.nrrd").write_bytes(whole[:-1] + b"x")
    (output / CASES_OF_A_FOLDER / "çt scan" / "çt scan.png").unlink()
    scan(source / "cut short.nii.gz")
    counted = computations(log)
    status, told, after = cohort(source, output, log, "--dicom-seg", workers=1)
    assert status == 1
    assert "1 image changed" in told and "1 output damaged" in told and "1 output missing" in told
    assert "Failed before and left alone: 4" in told
    assert computations(log) - counted == {"b.nii.gz": 1, "çt scan.nii.gz": 1, "cut short.nii.gz": 1}
    assert {name for name in after if after[name] != before[name]} == {"cut short"}
    assert (output / CASES_OF_A_FOLDER / "b" / "b.seg.nrrd").read_bytes() == whole  # byte for byte


# Beside people


def test_a_correction_that_is_saved_while_the_case_is_computed_anew_stays(tmp_path):
    source, output, log = tmp_path / "in", tmp_path / "out", tmp_path / "log"
    scan(source / "a.nii.gz")
    scan(source / "b.nii.gz")
    cohort(source, output, log, workers=1)
    process = medzeroseg(
        "cohort", source, "--structures", "liver; spleen", "--output", output, "--workers", "1", "--threads", "1",
        log=log, THRESHOLD_ENGINE_SECONDS="1",
    )  # fmt: skip
    assert until(lambda: computations(log)["a.nii.gz"] == 2)  # which takes another second
    masks = output / "cases" / "a" / "a.seg.nrrd"
    persons = masks.read_bytes().replace(b"Segment0_Name:=liver", b"Segment0_Name:=Leber")
    masks.write_bytes(persons)  # and the list says nothing of it: it couldn't be written
    told, errors = finished(process)
    assert process.returncode == 0, told + errors
    assert masks.read_bytes() == persons
    assert b"spleen" in (output / "cases" / "b" / "b.seg.nrrd").read_bytes()
    assert "theirs were kept" in (output / "report.html").read_text()
    status, told, _ = cohort(source, output, log, workers=1)  # asks for the liver alone again
    assert status == 0 and "Masks that a person changed" in told and "To compute: 1 cases" in told, told
    assert masks.read_bytes() == persons and not (output / ".work").exists()


# Killed as a whole


def test_a_run_that_is_killed_again_and_again_ends_complete(tmp_path):
    source, output, log = tmp_path / "in", tmp_path / "out", tmp_path / "log"
    for number in range(24):
        scan(source / f"scan {number:02d}.nii.gz")
    for wait in (0.2, 1.0):
        before = computations(log).total()
        process = medzeroseg(
            "cohort", source, "--structures", "liver", "--output", output, "--workers", "2", "--threads", "1",
            log=log, THRESHOLD_ENGINE_SECONDS="0.2",
        )  # fmt: skip
        until(lambda before=before: computations(log).total() > before)
        time.sleep(wait)
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.communicate()
        assert until(lambda children=children: not any(child.is_running() for child in children)), "workers live on"
        left = json.loads(finished(medzeroseg("status", output, "--json", log=None))[0])
        assert left["running"] is False and "running" not in left["counts"] and left["counts"]["waiting"] > 0
    status, told, cases = cohort(source, output, log)
    assert status == 0, told
    assert len(cases) == 24 and {state for state, _ in cases.values()} == {"done"}
    assert len(list((output / CASES_OF_A_FOLDER).iterdir())) == 24
    assert set(computations(log).values()) <= {1, 2, 3}


def until(met, seconds: float = 60.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if met():
            return True
        time.sleep(0.02)
    return False


# What the machine refuses


@pytest.mark.skipif(os.name == "nt", reason="there are no such limits on Windows")
def test_a_full_disk_fails_the_case_by_name_and_the_next_run_goes_on(tmp_path):
    import resource

    source, output, log = tmp_path / "in", tmp_path / "out", tmp_path / "log"
    noise = np.random.default_rng(0).integers(0, 2, (128, 128, 40)).astype(np.int16) * 200
    source.mkdir()
    write_image(source / "large.nii.gz", noise, lps_matrix())  # its mask doesn't shrink below the limit
    scan(source / "small.nii.gz")
    limited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, limited[1]))  # which SQLite and the workers inherit
    try:
        status, _, cases = cohort(source, output, log, workers=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limited)
    state, sentence = cases["large"]
    assert status == 1 and state == "failed" and "cannot be written" in sentence and ".work" not in sentence
    assert not (output / CASES_OF_A_FOLDER / "large").exists() and not (output / ".work").exists()
    status, told, cases = cohort(source, output, log, "--retry-failed", workers=1)
    assert status == 0 and cases["large"][0] == "done", told


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("--output", "/proc/nothing/here"), 3, "/proc/nothing/here"),
        (("--output", "out", "--workers", "0"), 2, "counted from 1"),
        (("--output", "out", "--scheduler", "tcp://127.0.0.1:9"), 3, "127.0.0.1:9"),
        (("--output", "out", "--format", "stl"), 2, "stl"),
        (("--output", "out", "--preset", "lit"), 2, "'lit'"),
        (("--output", "out", "--preset", "base", "--use-corrections"), 2, "use lite"),
    ],
)
def test_requests_that_can_not_be_met_end_with_one_sentence(tmp_path, arguments, status, words):
    scan(tmp_path / "in" / "a.nii.gz")
    placed = [str(tmp_path / part) if part == "out" else part for part in arguments]
    process = medzeroseg("cohort", tmp_path / "in", "--structures", "liver", *placed, log=tmp_path / "log")
    _, errors = finished(process)
    assert process.returncode == status, errors
    assert words in errors and "Traceback" not in errors


# Workers


def test_workers_listen_to_this_machine_only_compute_with_their_threads_and_are_replaced():
    code = (
        "import os, signal, psutil\n"
        "from MedZeroSegLib.cohort.workers import Crew, hired\n"
        "if __name__ == '__main__':\n"
        "    with hired(Crew('', 2, 3), None) as (client, slots):\n"
        "        client.wait_for_workers(2)\n"
        "        tree = [psutil.Process(), *psutil.Process().children(recursive=True)]\n"
        "        print({c.laddr.ip for p in tree for c in p.net_connections() if c.status == 'LISTEN'}, slots)\n"
        "        print(set(client.run(os.getenv, 'OMP_NUM_THREADS').values()), client.scheduler.address[:3])\n"
        "        first = set(client.run(os.getpid).values())\n"
        "        os.kill(min(first), signal.SIGKILL)\n"
        "        import time\n"
        "        def there(): return set(client.run(os.getpid, on_error='ignore').values())\n"
        "        while len(now := there()) < 2 or min(first) in now: time.sleep(0.1)\n"
        "        print(len(first), len(now))\n"
    )
    script = Path(os.environ.get("TMPDIR", "/tmp")) / f"crew-{os.getpid()}.py"
    script.write_text(code)
    try:
        run = subprocess.run([sys.executable, script], cwd=ROOT, capture_output=True, text=True, timeout=120,
                             env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
    finally:
        script.unlink()
    assert run.stdout.splitlines() == ["{'127.0.0.1'} 4", "{'3'} tls", "2 2"], run.stderr


@pytest.mark.parametrize(("missing", "crew"), [("dask", Crew("", 1, 1)), ("dask_jobqueue", Crew("slurm", 1, 1))])
def test_without_dask_a_sentence_says_what_to_install(tmp_path, monkeypatch, missing, crew):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(InstallationError, match="pip install"), hired(crew, tmp_path):
        pass


def test_the_crew_fits_the_machine_and_the_request():
    assert plan_crew(None, 2, 3, "cpu", "lite") == Crew("", 2, 3)
    assert plan_crew("tcp://there:1", None, None, "auto", "lite") == Crew("tcp://there:1", 0, 0)
    alone = plan_crew(None, None, None, "cpu", "lite")
    assert 1 <= alone.workers * alone.threads <= (os.cpu_count() or 1)
    with pytest.raises(InputError, match="keep their number"):
        plan_crew("tcp://there:1", 2, None, "auto", "lite")


def test_a_scheduler_that_runs_elsewhere_gives_its_workers(tmp_path):
    scan(tmp_path / "in" / "a.nii.gz")
    from distributed.utils import open_port

    port = open_port()
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "DASK_DISTRIBUTED__WORKER__PRELOAD": str(ENGINE),
        "THRESHOLD_ENGINE_LOG": str(tmp_path / "log"),
    }  # fmt: skip
    dask = [
        sys.executable,
        "-m",
        "distributed.cli.dask_scheduler",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--no-dashboard",
    ]
    worker = [
        sys.executable,
        "-m",
        "distributed.cli.dask_worker",
        f"tcp://127.0.0.1:{port}",
        "--nthreads",
        "2",
        "--no-dashboard",
    ]
    started = [
        subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for command in (dask, worker)
    ]
    try:
        process = medzeroseg(
            "cohort", tmp_path / "in", "--structures", "liver", "--output", tmp_path / "out",
            "--scheduler", f"tcp://127.0.0.1:{port}", log=None,
        )  # fmt: skip
        _, errors = finished(process)
    finally:
        for each in started:
            each.send_signal(signal.SIGTERM)
            each.wait()
    assert process.returncode == 0, errors
    assert states(tmp_path / "out")["a"][0] == "done"


def test_slurm_jobs_are_workers(tmp_path):
    pytest.importorskip("dask_jobqueue")
    scan(tmp_path / "in" / "a.nii.gz")
    commands = tmp_path / "commands"  # of a SLURM that starts each job at once, here
    commands.mkdir()
    for name, lines in (
        (
            "sbatch",
            'cp "$1" "$SUBMITTED"; setsid bash "$SUBMITTED" >"$SUBMITTED.log" 2>&1 & echo "Submitted batch job $!"',
        ),
        ("scancel", 'kill -- "-$1"'),
    ):
        (commands / name).write_text(f"#!/usr/bin/env bash\n{lines}\n")
        (commands / name).chmod(0o755)
    process = medzeroseg(
        "cohort", tmp_path / "in", "--structures", "liver", "--output", tmp_path / "out", "--scheduler", "slurm",
        "--threads", "3", log=tmp_path / "log", PATH=f"{commands}{os.pathsep}{os.environ['PATH']}",
        SUBMITTED=str(tmp_path / "job"),
    )  # fmt: skip
    told, errors = finished(process)
    assert process.returncode == 0, told + errors
    assert states(tmp_path / "out")["a"][0] == "done" and computations(tmp_path / "log") == {"a.nii.gz": 1}
    job = (tmp_path / "job").read_text()
    assert "#SBATCH --cpus-per-task=3" in job and "export OMP_NUM_THREADS=3" in job and "tls://" in job


# The plan alone


def test_a_dry_run_tells_plan_memory_and_time_and_writes_nothing(tmp_path):
    scan(tmp_path / "in" / "a.nii.gz")
    dicom_series(tmp_path / "in" / "study", np.zeros((5, 9, 7), np.int16), [(0, 0, 2 * k) for k in range(5)])
    (tmp_path / "in" / "broken.nii.gz").write_bytes(b"broken")
    process = medzeroseg(
        "cohort", tmp_path / "in", "--structures", "liver", "--output", tmp_path / "out", "--dry-run",
        "--workers", "2", "--threads", "1", "--device", "cpu", log=None,
    )  # fmt: skip
    told, errors = finished(process)
    assert process.returncode == 0, errors
    lines = told.splitlines()
    assert lines[0] == "To compute: 3 cases (3 new)."
    assert "2 processes" in lines[1] and "1 compute thread" in lines[1]
    assert "GB for each worker" in lines[2] and "Time: about" in lines[3]
    assert "1 images whose header" in lines[4]
    assert not (tmp_path / "out").exists()


# The real models


@pytest.fixture(scope="module")
def radiographs(tmp_path_factory) -> Path:
    """Three small pictures made of the real radiograph, as it is, mirrored and darker."""
    source = tmp_path_factory.mktemp("radiographs")
    found = get_testdata_file(RADIOGRAPH, download=False)
    if found is None:
        pytest.skip("the package pydicom-data isn't installed")
    pixels = sitk.GetArrayFromImage(sitk.ReadImage(str(found)))[0][::8, ::8].astype(np.float32)
    grey = (255 * (pixels - pixels.min()) / np.ptp(pixels)).astype(np.uint8)
    for name, picture in (("chest", grey), ("mirrored", grey[:, ::-1]), ("darker", grey // 2)):
        sitk.WriteImage(sitk.GetImageFromArray(np.ascontiguousarray(picture)), str(source / f"{name}.png"))
    return source


def masks(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in output.glob("cases/*/*.seg.nrrd")}


def runs(source: Path, *outputs: tuple[Path, int]) -> Iterator[dict[str, bytes]]:
    for output, workers in outputs:
        process = medzeroseg(
            "cohort", source, "--structures", "lungs", "--output", output, "--modality", "X-ray", "--device", "cpu",
            "--workers", str(workers), "--threads", "1", log=None,
        )  # fmt: skip
        _, errors = finished(process)
        assert process.returncode == 0, errors
        yield masks(output)


def test_the_real_models_in_two_processes_give_the_bytes_that_they_give_in_one(radiographs, tmp_path):
    two, one = runs(radiographs, (tmp_path / "two", 2), (tmp_path / "one", 1))
    assert len(two) == 3 and two == one
    record = json.loads((tmp_path / "two" / "cases" / "chest" / "case.json").read_text())["record"]
    assert record["segments"][0]["found"] and record["files"]["labels"] == "cases/chest/chest.seg.nrrd"
