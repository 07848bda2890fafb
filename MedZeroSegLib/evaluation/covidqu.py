"""COVID-QU-Ex as downloaded: {Train,Val,Test}/{COVID-19,Non-COVID,Normal}/{images,lung masks,infection masks}/*.png.

Tahir et al., Comput. Biol. Med. 139, 2021 (Kaggle anasmohammedtahir/covidqu). Folders are known by their names,
whatever their case and depth; an image and its mask have one file name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from MedZeroSegLib.errors import InputError
from MedZeroSegLib.evaluation.dataset_files import chosen_split, files_under, listed
from MedZeroSegLib.evaluation.manifest import Case
from MedZeroSegLib.volume import Volume

TITLE = "COVID-QU-Ex"
FULL = 255  # value of a mask
BETWEEN_MAX = 0.02  # share of pixels that may lie between 0 and the full value, as smoothed edges do
SPLITS = ("test", "val", "train", "all")
CLASSES = ("covid-19", "non-covid", "normal")
TASKS: Mapping[str, tuple[str, str]] = {  # folder of masks, and the structure that they mark
    "lungs": ("lung masks", "lung"),
    "infection": ("infection masks", "lung infection"),
}
SUFFIXES = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class CovidCase(Case):
    """A radiograph whose mask is one grey value on black."""

    def read_labels(self, volume: Volume) -> np.ndarray:
        try:
            values = sitk.GetArrayFromImage(sitk.ReadImage(str(self.mask)))
        except RuntimeError as problem:
            raise InputError(f"{self.mask} can't be read as a mask; bring the file again.") from problem
        values = values[..., 0] if values.ndim == 3 else values  # grey saved as colours
        if values.shape != volume.shape[1:]:
            raise InputError(
                f"{self.mask} has {values.shape[::-1]} pixels, its image {volume.shape[:0:-1]}; bring the pair again."
            )
        full = int(values.max())
        between = float(np.mean((values > 0) & (values < full)))
        if between > BETWEEN_MAX:
            raise InputError(
                f"{self.mask} has grey values in {100 * between:.0f} % of its pixels, so it is no mask; "
                "bring the pair again, in which image and mask may be swapped."
            )
        return (np.where(values > full / 2, FULL, 0) if full else np.zeros(values.shape)).astype(np.uint16)[None]


def read_covidqu(root: Path, split: str = "test", task: str = "all") -> list[Case]:
    """Radiographs of a split; lungs and infection are two sources, each in its own part of the data set.

    Raises
    ------
    InputError
        When the folder holds no image of the split and task, or an image lacks its mask.
    """
    chosen_split(SPLITS, split, TITLE)
    chosen_split(("all", *TASKS), task, f"{TITLE}'s tasks")
    folders = _folders(root)
    tasks = tuple(TASKS) if task == "all" else (task,)
    cases = [
        case
        for folder in folders
        if folder.task in tasks and split in (folder.split, "all")
        for case in _cases(folder)
    ]
    if not cases:
        there = sorted({f"{folder.split} ({folder.task})" for folder in folders if folder.images})
        raise InputError(
            f"{root} holds no images of COVID-QU-Ex's split {split!r} with masks of {' or '.join(tasks)}"
            + (f", only of {listed(there)}." if there else "; give the folder with Lung Segmentation Data.")
        )
    return cases


@dataclass(frozen=True)
class _Folder:
    """One class of one split with its images and masks by stem."""

    place: Path
    split: str
    group: str
    task: str
    images: Mapping[str, Path]
    masks: Mapping[str, Path]


def _folders(root: Path) -> list[_Folder]:
    """Folders with images and the masks of their task: infection where there are such masks, else lungs."""
    files: dict[tuple[Path, str], dict[str, Path]] = {}
    for file in files_under(root):
        if file.suffix.lower() in SUFFIXES:
            files.setdefault((file.parent.parent, _plain(file.parent.name)), {})[file.stem] = file
    found = []
    for (place, kind), images in files.items():
        parts = [_plain(part) for part in place.relative_to(root.parent).parts] if kind == "images" else []
        split = next((part for part in reversed(parts) if part in SPLITS[:3]), None)
        if split is None:
            continue
        infection = any("infection" in part for part in parts) or (place, "infection masks") in files
        task = "infection" if infection else "lungs"
        group = parts[-1] if parts[-1] in CLASSES else ""
        found.append(_Folder(place, split, group, task, images, files.get((place, TASKS[task][0]), {})))
    return found


def _cases(folder: _Folder) -> list[Case]:
    kind, structure = TASKS[folder.task]
    missing = [stem for stem in folder.images if stem not in folder.masks]
    if missing:
        raise InputError(
            f"{folder.place} has {len(missing)} images without a file of the same name in '{kind}', the first "
            f"{folder.images[missing[0]].name}; bring the masks."
        )
    return [
        CovidCase(
            "_".join(part for part in (folder.task, folder.split, folder.group, stem) if part), stem,
            f"covidqu_{folder.task}", "X-ray", image, folder.masks[stem], {FULL: structure}, "as Kaggle states it",
            folder.split,
        )  # fmt: skip
        for stem, image in folder.images.items()
    ]


def _plain(name: str) -> str:
    """Lower case, with single blanks for other separators."""
    return re.sub(r"[\s_]+", " ", name).strip().lower()
