"""The command line as a user runs it: real processes, the real radiograph, real weights, real exit statuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from phantoms import write_image
from pydicom.data import get_testdata_file

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"


def medzeroseg(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from MedZeroSegLib.cli import main; main()", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", **environment},
    )


def refused(run: subprocess.CompletedProcess[str], status: int, *words: str) -> None:
    assert run.returncode == status, run.stderr
    assert "Traceback" not in run.stderr and "╭" not in run.stderr
    assert len(run.stderr.strip().splitlines()) == 1, run.stderr
    for word in words:
        assert word in run.stderr


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("Vorhof 肺 (1)")
    return folder, medzeroseg("demo", "--output", folder)


def test_demo_says_where_its_three_files_lie(demo):
    folder, run = demo
    assert run.returncode == 0, run.stderr
    for name in ("lungs.seg.nrrd", "lungs.json", "lungs.png"):
        assert (folder / name).is_file() and str(folder / name) in run.stdout
    assert "research" in run.stderr


def test_demo_finds_both_lungs_on_their_sides(demo):
    folder, _ = demo
    report = json.loads((folder / "lungs.json").read_text())
    assert [item["found"] for item in report["structures"]] == [True, True]
    layers = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "lungs.seg.nrrd")))
    assert layers.shape == (1, 1955, 1841)
    column = np.arange(1841)
    left, right = ((layers[0] == value).sum(0) for value in (1, 2))
    centres = [(mass * column).sum() / mass.sum() for mass in (left, right)]
    assert 0.55 * 1841 < centres[0] < 0.85 * 1841  # the patient's left lung is at the right of the picture
    assert 0.15 * 1841 < centres[1] < 0.45 * 1841
    for mass in (left, right):
        assert 0.06 < mass.sum() / layers[0].size < 0.30


def test_report_tells_how_the_result_was_made(demo):
    folder, _ = demo
    report = json.loads((folder / "lungs.json").read_text())
    assert report["preset"] == "lite" and report["device"] in ("cpu", "cuda", "mps")
    assert all(len(weights["sha256"]) == 64 and weights["licence"] for weights in report["weights"])
    assert "research" in report["notice"] and report["seconds"]
    assert report["structures"][0]["understood_as"] == "left lung"


def test_absent_structure_is_an_answer_not_an_error(tmp_path):
    image = get_testdata_file("RG1_UNCR.dcm", download=False)
    run = medzeroseg("segment", image, "--structures", "hippocampus", "--output", tmp_path / "x.nii.gz")
    assert run.returncode == 0, run.stderr
    assert "not found" in run.stdout
    assert sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "x.nii.gz"))).max() == 0


def test_constant_volume_holds_nothing(tmp_path):
    write_image(tmp_path / "flat.nii.gz", np.full((10, 24, 24), 40, np.int16), np.eye(4))
    run = medzeroseg(
        "segment", tmp_path / "flat.nii.gz", "--structures", "liver; spleen", "--output", tmp_path / "x.seg.nrrd",
        "--modality", "CT",
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("not found") == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("missing.nii.gz", "--structures", "liver", "--output", "x.seg.nrrd"), ("missing.nii.gz",)),
        (("{image}", "--structures", " ;, ", "--output", "x.seg.nrrd"), ()),
        (("{image}", "--structures", "liver", "--output", "x.tiff"), ("x.tiff", ".seg.nrrd")),
        (("{image}", "--structures", "liver", "--output", "x.seg.nrrd", "--preset", "huge"), ("huge", "lite")),
        (("{image}", "--structures", "liver", "--output", "x.seg.nrrd", "--modality", "Kodak"), ("Kodak",)),
        (("{image}", "--structures", "liver", "--output", "x.seg.nrrd", "--device", "tpu"), ("tpu",)),
        (("{cut}", "--structures", "liver", "--output", "x.seg.nrrd"), ("cut.nii.gz",)),
    ],
)
def test_wrong_request_is_one_sentence_and_status_2(tmp_path, arguments, words):
    image, cut = tmp_path / "scan.nii.gz", tmp_path / "cut.nii.gz"
    write_image(image, np.random.default_rng(0).normal(0, 20, (6, 24, 24)).astype(np.float32), np.eye(4))
    cut.write_bytes(image.read_bytes()[: image.stat().st_size // 2])
    filled = [a.format(image=image, cut=cut) if a.startswith("{") else a for a in arguments]
    filled = [str(tmp_path / a) if a.startswith(("x.", "missing")) else a for a in filled]
    refused(medzeroseg("segment", *filled), 2, *words)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["cut.nii.gz", "scan.nii.gz"]


def test_wrong_weights_are_status_3_with_the_remedy(tmp_path):
    write_image(tmp_path / "scan.nii.gz", np.random.default_rng(0).normal(0, 20, (6, 24, 24)), np.eye(4))
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "lite_medsam.pth").write_bytes(b"not weights")
    run = medzeroseg(
        "segment", tmp_path / "scan.nii.gz", "--structures", "liver", "--output", tmp_path / "x.seg.nrrd",
        "--weights-folder", folder,
    )  # fmt: skip
    refused(run, 3, "lite_medsam.pth")
    assert not (tmp_path / "x.seg.nrrd").exists()


def test_names_shows_what_was_understood():
    run = medzeroseg("names", "lt kidney; livr")
    assert run.returncode == 0, run.stderr
    assert "left kidney" in run.stdout and "64033007" in run.stdout
    assert "liver" in run.stdout and "unknown" in run.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="address space can't be limited on Windows")
def test_a_volume_that_does_not_fit_is_refused_before_the_run_starts(tmp_path):
    import resource

    image = tmp_path / "large.nrrd"
    header = "NRRD0004\ntype: uint8\ndimension: 3\nspace: left-posterior-superior\nsizes: 640 640 400\n"
    header += "space directions: (0.7,0,0) (0,0.7,0) (0,0,1)\nspace origin: (0,0,0)\nencoding: raw\n\n"
    voxels = np.zeros((400, 640, 640), np.uint8)
    voxels[100:200, 200:400, 100:300] = 90
    image.write_bytes(header.encode() + voxels.tobytes())
    limit = 1_500_000_000
    run = subprocess.run(
        [sys.executable, "-c", "from MedZeroSegLib.cli import main; main()", "segment", str(image)]
        + ["--structures", "liver; spleen; aorta", "--output", str(tmp_path / "out.seg.nrrd")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    refused(run, 3, "GB", "crop")
    assert not (tmp_path / "out.seg.nrrd").exists()
