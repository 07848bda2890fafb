"""ACDC as downloaded: patientNNN folders with Info.cfg, the frames of end-diastole and end-systole, and their masks.

Bernard et al., IEEE TMI 37(11), 2018. Folders are found at any depth and in any case, packed or unpacked."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from MedZeroSegLib.errors import InputError
from MedZeroSegLib.evaluation.dataset_files import check_values, chosen_split, files_under, listed
from MedZeroSegLib.evaluation.manifest import Case
from MedZeroSegLib.volume import Volume

TITLE = "ACDC"
LABELS = {1: "right ventricle", 2: "left ventricular myocardium", 3: "left ventricle"}
MYOCARDIUM, CAVITY = 2, 3
# Share of the cavity's border within slices that is myocardium. On 66 masks of ACDC at least .99; with right and left
# ventricle swapped at most .42, with cavity and myocardium swapped at most .45.
ENCLOSED_MIN = 0.7

FIRST_TEST_PATIENT, PATIENTS = 101, 150
# The lists of HiLab-git/SSL4MIS, data/ACDC, that semi-supervised papers quote; all of the official training patients.
LIST_TEST = (1, 7, 8, 11, 13, 22, 24, 33, 52, 59, 64, 65, 66, 68, 75, 80, 81, 83, 84, 93)
LIST_VAL = (2, 19, 28, 30, 39, 45, 78, 82, 85, 87)
SPLITS: Mapping[str, frozenset[int]] = {
    "test": frozenset(range(FIRST_TEST_PATIENT, PATIENTS + 1)),
    "train": frozenset(range(1, FIRST_TEST_PATIENT)),
    "list-test": frozenset(LIST_TEST),
    "list-val": frozenset(LIST_VAL),
    "list-train": frozenset(range(1, FIRST_TEST_PATIENT)) - {*LIST_TEST, *LIST_VAL},
    "all": frozenset(range(1, PATIENTS + 1)),
}

PATIENT = re.compile(r"patient(\d{3})", re.IGNORECASE)
FRAME = re.compile(r"patient(\d{3})_frame(\d{1,2})(_gt)?\.nii(\.gz)?", re.IGNORECASE)
PHASES = {"ED": "end-diastole", "ES": "end-systole"}


@dataclass(frozen=True)
class AcdcCase(Case):
    """A frame whose mask is checked to number its structures as ACDC does."""

    def read_labels(self, volume: Volume) -> np.ndarray:
        labels = super().read_labels(volume)
        check_values(labels, self, TITLE)
        share = enclosed_share(labels)
        if share < ENCLOSED_MIN:
            raise InputError(
                f"{self.mask} isn't numbered as ACDC's masks are (1 right ventricle, 2 myocardium, 3 left ventricle): "
                f"label 2 surrounds only {100 * share:.0f} % of label 3; bring the original file or swap its labels."
            )
        return labels


def read_acdc(root: Path, split: str = "test") -> list[Case]:
    """End-diastole and end-systole of each patient of a split.

    Raises
    ------
    InputError
        When the folder holds no patients, none of the split, or a patient lacks a file or its Info.cfg an entry.
    """
    wanted = SPLITS[chosen_split(SPLITS, split, TITLE)]
    patients = _patients(root)
    if not patients:
        raise InputError(f"{root} holds no folder patientNNN; give the folder into which ACDC was unpacked.")
    chosen = [number for number in sorted(patients) if number in wanted]
    if not chosen:
        raise InputError(
            f"{root} holds no patient of ACDC's split {split!r}, only patients {listed(sorted(patients))}; "
            "bring the others or choose another split."
        )
    return [case for number in chosen for case in _cases(patients[number], number, split)]


def enclosed_share(labels: np.ndarray) -> float:
    """Share of the cavity's border voxels, within slices [k, j, i] of k, that are myocardium; 1 without a cavity."""
    cross = ndimage.generate_binary_structure(2, 1)[None]
    cavity = labels == CAVITY
    border = ndimage.binary_dilation(cavity, cross) & ~cavity
    return float(np.mean(labels[border] == MYOCARDIUM)) if border.any() else 1.0


@dataclass(frozen=True)
class _Patient:
    folder: Path
    files: tuple[Path, ...]


def _patients(root: Path) -> dict[int, _Patient]:
    """Files of each patient by number; raises InputError when a patient is there twice."""
    folders: dict[Path, list[Path]] = {}
    for file in files_under(root):
        folder = next((parent for parent in file.parents if PATIENT.fullmatch(parent.name)), None)
        if folder is not None:
            folders.setdefault(folder, []).append(file)
    patients: dict[int, _Patient] = {}
    for folder, files in folders.items():
        number = int(folder.name[-3:])
        if number in patients:
            other = patients[number].folder
            raise InputError(f"{root} holds patient {number} twice, as {other} and {folder}; keep one.")
        patients[number] = _Patient(folder, tuple(files))
    return patients


def _cases(patient: _Patient, number: int, split: str) -> list[Case]:
    info = _info(patient)
    frames: dict[tuple[int, bool], Path] = {}
    for file in patient.files:
        match = FRAME.fullmatch(file.name)
        if match and int(match[1]) == number:
            frames[int(match[2]), bool(match[3])] = file
    cases: list[Case] = []
    for phase, words in PHASES.items():
        frame = _frame_number(info, patient, phase)
        name = f"patient{number:03d}_frame{frame:02d}"
        for is_mask in (False, True):
            if (frame, is_mask) not in frames:
                raise InputError(
                    f"{patient.folder} has no {name}{'_gt' if is_mask else ''}.nii.gz, the "
                    f"{'mask' if is_mask else 'image'} of {words} by its Info.cfg; bring the file."
                )
        cases.append(
            AcdcCase(
                name, f"patient{number:03d}", "acdc", "MR", frames[frame, False], frames[frame, True], LABELS,
                "as ACDC states it", split,
            )  # fmt: skip
        )
    return cases


def _info(patient: _Patient) -> dict[str, str]:
    """Entries of Info.cfg, "ED: 1" a line."""
    file = next((file for file in patient.files if file.name.lower() == "info.cfg"), None)
    if file is None:
        raise InputError(f"{patient.folder} has no Info.cfg, which names the frames; bring the file.")
    lines: Iterable[str] = file.read_text(encoding="utf-8", errors="replace").splitlines()
    pairs = (line.split(":", 1) for line in lines if ":" in line)
    return {key.strip().upper(): value.strip() for key, value in pairs}


def _frame_number(info: Mapping[str, str], patient: _Patient, phase: str) -> int:
    value = info.get(phase, "")
    if not value.isdecimal():
        raise InputError(f"Info.cfg in {patient.folder} has no frame number; it should have a line '{phase}: 1'.")
    return int(value)
