"""Synapse multi-organ CT (BTCV abdomen, syn3193805) as downloaded: img/imgNNNN.nii.gz and label/labelNNNN.nii.gz.

TransUNet's preprocessed volumes (caseNNNN.npy.h5) are read by ``synapse_h5``; the two number organs differently."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from MedZeroSegLib.errors import InputError
from MedZeroSegLib.evaluation.dataset_files import check_values, chosen_split, files_under, listed
from MedZeroSegLib.evaluation.manifest import Case
from MedZeroSegLib.evaluation.synapse_h5 import H5_FILE, H5_LABELS, H5Case
from MedZeroSegLib.volume import Volume

TITLE = "Synapse (BTCV)"
LABELS = {
    1: "spleen", 2: "right kidney", 3: "left kidney", 4: "gallbladder", 5: "esophagus", 6: "liver", 7: "stomach",
    8: "aorta", 9: "inferior vena cava", 10: "portal vein and splenic vein", 11: "pancreas", 12: "right adrenal gland",
    13: "left adrenal gland",
}  # fmt: skip
RIGHT_KIDNEY, LEFT_KIDNEY, LIVER = 2, 3, 6
TEST = (1, 2, 3, 4, 8, 22, 25, 29, 32, 35, 36, 38)  # TransUNet's lists/lists_Synapse/test_vol.txt
LABELLED = frozenset((*range(1, 11), *range(21, 41)))
SPLITS: Mapping[str, frozenset[int]] = {"test": frozenset(TEST), "train": LABELLED - {*TEST}, "all": LABELLED}

IMAGE = re.compile(r"img(\d{4})\.nii(\.gz)?", re.IGNORECASE)
MASK = re.compile(r"label(\d{4})\.nii(\.gz)?", re.IGNORECASE)
AVERAGED = re.compile(r"DET\d{7}_avg(_seg)?\.nii(\.gz)?", re.IGNORECASE)
SLICE = re.compile(r"case\d{4}_slice\d+\.npz", re.IGNORECASE)


@dataclass(frozen=True)
class SynapseCase(Case):
    """A CT whose mask is checked to number its organs as the challenge does."""

    def read_labels(self, volume: Volume) -> np.ndarray:
        labels = super().read_labels(volume)
        check_values(labels, self, TITLE)
        sizes = np.bincount(labels.ravel(), minlength=max(LABELS) + 1)[1:]
        if sizes.any() and int(np.argmax(sizes)) + 1 != LIVER:
            largest = int(np.argmax(sizes)) + 1
            raise InputError(
                f"{self.mask} isn't numbered as the challenge's masks are: label {largest} is the largest and not the "
                "liver, 6; bring the original file."
            )
        if sizes[RIGHT_KIDNEY - 1] and sizes[LEFT_KIDNEY - 1]:
            right, left = (_leftness(labels == value, volume) for value in (RIGHT_KIDNEY, LEFT_KIDNEY))
            if right >= left:
                raise InputError(
                    f"{self.mask} has its right kidney (2) on the patient's left of the left one (3); the image is "
                    "mirrored or the labels are swapped, so bring the original file."
                )
        return labels


def read_synapse(root: Path, split: str = "test") -> list[Case]:
    """The CTs of a split, one case each; TransUNet's volumes where the original ones aren't there.

    Raises
    ------
    InputError
        When the folder holds no case of the split, or an image of it lacks its label file or the other way round.
    """
    wanted = SPLITS[chosen_split(SPLITS, split, TITLE)]
    images, masks, volumes, others = _numbered(root)
    if not images and not masks and volumes:
        return _of_split(volumes, wanted, root, split, lambda number, file: _h5_case(number, file, split))
    if not images and not masks:
        raise InputError(f"{root} holds no {_expected(others)}")
    for number in sorted((images.keys() | masks.keys()) & wanted):
        missing = "image" if number not in images else "label" if number not in masks else ""
        if missing:
            name = f"{'img' if missing == 'image' else missing}{number:04d}.nii.gz"
            raise InputError(f"{root} has no {name}, the {missing} file of case {number}; bring the file.")
    return _of_split(images, wanted, root, split, lambda number, file: _case(number, file, masks[number], split))


def _numbered(root: Path) -> tuple[dict[int, Path], dict[int, Path], dict[int, Path], list[str]]:
    """Images, label files and h5 volumes by case number, and names of other known layouts."""
    found: tuple[dict[int, Path], dict[int, Path], dict[int, Path]] = ({}, {}, {})
    others: list[str] = []
    for file in files_under(root):
        for pattern, files in zip((IMAGE, MASK, H5_FILE), found, strict=True):
            if match := pattern.fullmatch(file.name):
                number = int(match[1])
                if number in files:
                    raise InputError(f"{root} holds {file.name} twice, as {files[number]} and {file}; keep one.")
                files[number] = file
        if AVERAGED.fullmatch(file.name) or SLICE.fullmatch(file.name):
            others.append(file.name)
    return (*found, others)


def _expected(others: list[str]) -> str:
    wanted = "img0001.nii.gz and label0001.nii.gz; give the folder with RawData/Training of Synapse syn3193805"
    if not others:
        return f"{wanted}."
    why = "holds single slices" if SLICE.fullmatch(others[0]) else "isn't numbered as the 30 cases of the splits"
    return f"{wanted} ({others[0]} {why})."


def _of_split(
    files: Mapping[int, Path], wanted: frozenset[int], root: Path, split: str, make: Callable[[int, Path], Case]
) -> list[Case]:
    chosen = [number for number in sorted(files) if number in wanted]
    if not chosen:
        raise InputError(
            f"{root} holds no case of Synapse's split {split!r}, only cases {listed(sorted(files))}; "
            "bring the others or choose another split."
        )
    return [make(number, files[number]) for number in chosen]


def _case(number: int, image: Path, mask: Path, split: str) -> Case:
    name = f"case{number:04d}"
    return SynapseCase(name, name, "synapse", "CT", image, mask, LABELS, "as Synapse states it", split)


def _h5_case(number: int, file: Path, split: str) -> Case:
    name = f"case{number:04d}"
    return H5Case(name, name, "synapse_h5", "CT", file, file, H5_LABELS, "as Synapse states it", split)


def _leftness(mask: np.ndarray, volume: Volume) -> float:
    """LPS x in mm of a mask's centre; grows to the patient's left."""
    k, j, i = ndimage.center_of_mass(mask)
    return float(volume.ijk_to_world_lps(np.array([[i, j, k]]))[0, 0])
