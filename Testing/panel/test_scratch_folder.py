"""What is left in the temporary folder when Slicer is killed, and who removes it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from MedZeroSegSlicer import scratch_folder
from MedZeroSegSlicer.scratch_folder import ScratchFolder

OWNER = """
import sys, time
sys.path.insert(0, sys.argv[1])
from MedZeroSegSlicer.scratch_folder import ScratchFolder
folder = ScratchFolder()
(folder.path / "volume-1.npy").write_bytes(b"voxels of a patient")
print(folder.path, flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(scratch_folder, "YOUNGEST_S", -1.0)
    yield
    tempfile.tempdir = None


@pytest.fixture
def owner():
    """Another process with its folder."""
    module_folder = str(Path(scratch_folder.__file__).parents[1])
    process = subprocess.Popen([sys.executable, "-c", OWNER, module_folder], stdout=subprocess.PIPE, text=True)
    yield process, Path(process.stdout.readline().strip())
    process.kill()
    process.wait()


def test_folder_of_a_killed_process_is_removed_by_the_next(owner):
    process, left = owner
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert (left / "volume-1.npy").is_file(), "the crash left patient data"
    mine = ScratchFolder()
    assert not left.exists() and mine.path.is_dir()
    mine.close()
    assert not mine.path.exists()


def test_folder_of_a_living_process_stays(owner):
    ScratchFolder().close()
    assert (owner[1] / "volume-1.npy").is_file()


def test_nothing_of_others_is_touched(tmp_path, monkeypatch):
    foreign = tmp_path / "medzeroseg-notes"
    unlocked = tmp_path / f"{scratch_folder.PREFIX}without-lock"
    elsewhere = tmp_path / "elsewhere"
    for folder in (foreign, unlocked, elsewhere):
        folder.mkdir()
        (folder / "mine.txt").write_text("keep")
    (elsewhere / scratch_folder.LOCK_FILE).touch()
    (tmp_path / f"{scratch_folder.PREFIX}link").symlink_to(elsewhere)
    ScratchFolder().close()
    assert all((folder / "mine.txt").is_file() for folder in (foreign, unlocked, elsewhere))


def test_folder_that_has_just_been_made_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(scratch_folder, "YOUNGEST_S", 60.0)
    fresh = tmp_path / f"{scratch_folder.PREFIX}fresh"
    fresh.mkdir()
    (fresh / scratch_folder.LOCK_FILE).touch()
    ScratchFolder().close()
    assert fresh.is_dir()
    old = time.time() - 120
    os.utime(fresh, (old, old))
    ScratchFolder().close()
    assert not fresh.exists()
