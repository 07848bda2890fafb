"""A cohort of real and synthetic cases killed again and again, the gain of a second process, memory, and the journal.

Run     .venv/bin/python Testing/benchmarks/cohort.py all|kills|throughput|memory|journal [--cases 200] [--kills 20]
        [--data FOLDER with manifest.csv] [--folder FOLDER for what is made]
Prints  one line for each figure. The models are the real ones of `lite`, but for the I/O-bound part of throughput, in
        which reading is slowed down on purpose and nothing is computed. kills ends with the undisturbed run's masks
        compared byte for byte, for which it runs the cohort a second time; memory is that run's.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import median

import numpy as np
import SimpleITK as sitk

ROOT = Path(__file__).parents[2]
PRELOAD = Path(__file__).with_name("counted_engine.py")
STRUCTURES = "left ventricle"
SLICES_OF = ("sunnybrook_cardiac_mr", "medscribble_chaos_liver_ct")  # small pictures
LATER_S = 3.0  # at most, from the computation that was waited for to the kill
FEW = 40  # cases for throughput
WARM_UP = 0.2  # share of the cases after which memory has to stay the same


def make_cohort(folder: Path, cases: int, data: Path | None) -> Path:
    """Half real pictures, where the data are at hand, half synthetic ones; one file cut short, one with a name in
    another script."""
    folder.mkdir(parents=True)
    real: list[Path] = []
    if data is not None:
        with (data / "manifest.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        real = [data / row["image"] for row in rows if row["source"].startswith(SLICES_OF)][: cases // 2]
    for number, image in enumerate(real):
        suffix = ".nii.gz" if image.name.endswith(".nii.gz") else image.suffix
        shutil.copy(image, folder / f"real {number:03d}{suffix}")
    rng = np.random.default_rng(0)
    for number in range(cases - len(real) - 2):
        sitk.WriteImage(sitk.GetImageFromArray(picture(rng)), str(folder / f"synthetic {number:03d}.png"))
    sitk.WriteImage(sitk.GetImageFromArray(picture(rng)), str(folder / "Sättiger 肺.png"))
    whole = folder / "whole.nii.gz"
    sitk.WriteImage(sitk.GetImageFromArray(np.stack([picture(rng)] * 3)), str(whole))
    (folder / "cut short.nii.gz").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    whole.unlink()
    return folder


def picture(rng: np.random.Generator) -> np.ndarray:
    """A bright ellipse in a dark body with noise; uint8 [256, 256]."""
    row, column = np.mgrid[0:256, 0:256]
    x, y = rng.uniform(90, 160, 2)
    section = np.where(((column - 128) / 100) ** 2 + ((row - 128) / 80) ** 2 < 1, 60.0, 5.0)
    section[((column - x) / 25) ** 2 + ((row - y) / 20) ** 2 < 1] = 160
    return np.clip(section + rng.normal(0, 6, section.shape), 0, 255).astype(np.uint8)


def command(source: Path, output: Path, workers: int, threads: int) -> list[str]:
    return [
        sys.executable, "-c", "from MedZeroSegLib.cli import main; main()", "cohort", str(source),
        "--structures", STRUCTURES, "--output", str(output), "--modality", "MR", "--device", "cpu",
        "--workers", str(workers), "--threads", str(threads),
    ]  # fmt: skip


def environment(log: Path, **more: str) -> dict[str, str]:
    preload = {"DASK_DISTRIBUTED__WORKER__PRELOAD": str(PRELOAD), "COUNTED_LOG": str(log)}
    path = os.pathsep.join([str(ROOT), str(ROOT / "Testing" / "engine")])
    return {**os.environ, "PYTHONPATH": path, **preload, **more}


def run(source: Path, output: Path, log: Path, workers: int, threads: int, **more: str) -> float:
    """Seconds that a whole run takes, from the start of its workers to the last case."""
    with (output.parent / f"{output.name}.txt").open("w") as told:
        subprocess.run(
            command(source, output, workers, threads), env=environment(log, **more), stderr=told, stdout=told
        )
    with sqlite3.connect(output / "journal.sqlite") as journal:
        return float(journal.execute("SELECT latest - started FROM runs ORDER BY run DESC LIMIT 1").fetchone()[0])


def kills(folder: Path, cases: int, times: int, data: Path | None) -> None:
    source, output, log = make_cohort(folder / "in", cases, data), folder / "killed", folder / "killed.log"
    chance = random.Random(1)
    done_before = 0
    for number in range(times):
        process = subprocess.Popen(
            command(source, output, 2, 1), env=environment(log), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        wait_until_computed(log, process, done_before + chance.randint(0, 2 * cases // (times + 1)))
        time.sleep(chance.uniform(0, LATER_S))
        process.kill()
        process.wait()
        done = log_counts(log)[1].total()
        print(f"kill {number + 1}: after {done - done_before} computations", flush=True)
        done_before = done
    seconds = run(source, output, log, 2, 1)
    begun, ended = log_counts(log)
    print(f"the rest took {seconds:.0f} s")
    check_whole(source, output)
    print(f"computations ended: {ended.total()} for {len(ended)} images, at most {max(ended.values())} of one image")
    print(f"computations begun: {begun.total()}, at most {max(begun.values())} of one image")


def wait_until_computed(log: Path, process: subprocess.Popen, computations: int) -> None:
    """Until so many computations have ended and a further one has begun, or the run is over."""
    while process.poll() is None:
        begun, ended = log_counts(log)
        if ended.total() >= computations and begun.total() > ended.total():
            return
        time.sleep(0.05)


def log_counts(log: Path) -> tuple[Counter[str], Counter[str]]:
    """How often each image's computation began and ended."""
    lines = log.read_text().splitlines() if log.exists() else []
    begun = Counter(line.removeprefix("begin ") for line in lines if line.startswith("begin "))
    ended = Counter(line.removeprefix("end ").rsplit(" ", 3)[0] for line in lines if line.startswith("end "))
    return begun, ended


def check_whole(source: Path, output: Path) -> None:
    """Every image has its case, every file its hash, and nothing else lies there."""
    with sqlite3.connect(output / "journal.sqlite") as journal:
        states = dict(journal.execute("SELECT name, status FROM cases"))
        files = list(journal.execute("SELECT name, file, sha256 FROM outputs"))
    images = len(list(source.iterdir()))
    damaged = [
        name for name, file, sha256 in files
        if hashlib.sha256((output / "cases" / name / file).read_bytes()).hexdigest() != sha256
    ]  # fmt: skip
    folders = {path.name for path in (output / "cases").iterdir()}
    done = {name for name, state in states.items() if state == "done"}
    listed = {(name, file) for name, file, _ in files} | {(name, "case.json") for name in done}
    there = {(path.parent.name, path.name) for path in (output / "cases").rglob("*") if path.is_file()}
    print(
        f"images {images}, cases {len(states)} ({dict(Counter(states.values()))}), damaged {len(damaged)}, "
        f"missing {len(listed - there)}, doubled or left over {len(folders - done) + len(there - listed)}, "
        f"temporary folders {len(list(output.glob('.work/*')))}"
    )


def memory(folder: Path, cases: int, data: Path | None) -> None:
    """One process, all cases: its resident memory; and the masks beside those of the run that was killed."""
    source, output, log = folder / "in", folder / "whole", folder / "whole.log"
    if not source.exists():
        make_cohort(source, cases, data)
    seconds = run(source, output, log, 1, 1)
    lines = [line.rsplit(" ", 3) for line in log.read_text().splitlines() if line.startswith("end ")]
    resident = [int(line[1]) / 1e6 for line in lines]
    warm = int(len(resident) * WARM_UP)
    early, late = median(resident[warm : 2 * warm]), median(resident[-warm:])
    print(f"undisturbed run: {len(resident)} cases in {seconds:.0f} s, {len({line[2] for line in lines})} process")
    print(f"resident memory: {early:.0f} MB early, {late:.0f} MB late, {100 * (late / early - 1):+.1f} %")
    if (folder / "killed").exists():
        masks = sorted((folder / "killed" / "cases").glob("*/*.seg.nrrd"))
        same = [mask.read_bytes() == (output / "cases" / mask.parent.name / mask.name).read_bytes() for mask in masks]
        print(f"masks equal byte for byte to those of the killed run: {sum(same)} of {len(same)}")


def throughput(folder: Path, data: Path | None) -> None:
    """Two processes against one: reading that waits, and computing that fills both cores."""
    source = make_cohort(folder / "few", FEW, data)
    waiting = {"SLOW_READING_S": "1", "QUICK_ENGINE": "1"}
    for kind, crews, more in (
        ("I/O-bound", ((1, 1), (2, 1)), waiting),
        ("compute-bound", ((1, 2), (2, 1), (1, 1)), {}),
    ):
        seconds = []
        for workers, threads in crews:
            output = folder / f"{kind.replace('/', '')}-{workers}-{threads}"
            log = output.with_suffix(".log")
            run(source, output, log, workers, threads, **more)
            ends = sorted(float(line.rsplit(" ", 1)[1]) for line in log.read_text().splitlines() if line[:4] == "end ")
            seconds.append((ends[-1] - ends[workers]) / (len(ends) - 1 - workers))  # models are loaded by then
            gain = f", {seconds[0] / seconds[-1]:.2f} times the first" if len(seconds) > 1 else ""
            print(f"{kind}, {workers} process(es) of {threads} thread(s): {seconds[-1]:.2f} s a case{gain}", flush=True)


def journal(folder: Path, entries: int = 100_000) -> None:
    """How long `status` takes with many entries."""
    sys.path.insert(0, str(ROOT))
    from MedZeroSegLib.cohort.journal import Journal

    place = folder / "large"
    place.mkdir()
    large = Journal(place, make=True)
    run_number = large.start_run(2, 1, {})
    large.close()
    with sqlite3.connect(place / "journal.sqlite") as database:
        states = ("done", "done", "done", "failed", "waiting")
        record = json.dumps({"filling": "x" * 1500})
        rows = (
            (f"case-{n}", f"/images/{n}", states[n % 5], "a sentence", 1, 1.5, run_number, record)
            for n in range(entries)
        )
        columns = "name, image, status, sentence, attempts, seconds, run, record"
        database.executemany(f"INSERT INTO cases ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
        outputs = (
            (f"case-{n}", file, "0" * 64, 1000) for n in range(entries) for file in ("a.seg.nrrd", "a.json", "a.png")
        )
        database.executemany("INSERT INTO outputs VALUES (?,?,?,?)", outputs)
    status = [sys.executable, "-c", "from MedZeroSegLib.cli import main; main()", "status", str(place)]
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        subprocess.run(status, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - started)
    size = (place / "journal.sqlite").stat().st_size / 1e6
    started = time.perf_counter()
    large = Journal(place)
    large.counts(), large.seconds_a_case(), large.failures(20)
    asked = time.perf_counter() - started
    print(
        f"status with {entries:,} entries ({size:.0f} MB): the command {median(seconds):.2f} s with Python's start, "
        f"its questions to the journal {asked:.3f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=["all", "kills", "throughput", "memory", "journal"])
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--data", type=Path, help="folder with manifest.csv; without it all cases are synthetic")
    parser.add_argument("--folder", type=Path, help="for what is made; else a temporary one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if arguments.part in ("all", "journal"):
            journal(folder)
        if arguments.part in ("all", "throughput"):
            throughput(folder, arguments.data)
        if arguments.part in ("all", "kills"):
            kills(folder, arguments.cases, arguments.kills, arguments.data)
        if arguments.part in ("all", "memory"):
            memory(folder, arguments.cases, arguments.data)


if __name__ == "__main__":
    main()
