"""Data sets laid out as nnU-Net's raw folder or as BIDS has it → cases."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from MedZeroSegLib.cohort.case import Case
from MedZeroSegLib.cohort.image_files import image_files, list_files, stem_of
from MedZeroSegLib.errors import InputError

# https://github.com/MIC-DKFZ/nnUNet/blob/master/documentation/dataset_format.md
NNUNET_FOLDERS = {"imagesTr": "train", "imagesTs": "test"}
CHANNEL = re.compile(r"^(.+)_(\d{4})$")
# https://bids-specification.readthedocs.io
BIDS_MARK = "dataset_description.json"
BIDS_SUBJECT = re.compile(r"^sub-[^/\\]+$")
BIDS_TIME_SERIES = ("func", "dwi", "fmap", "perf")  # folders; what lies in them isn't one still image
BIDS_NO_IMAGES = ("_mask", "_dseg", "_probseg", "_defacemask")


def is_nnunet(folder: Path) -> bool:
    """Whether a folder is a raw data set of nnU-Net, or one of its folders of images."""
    return folder.name in NNUNET_FOLDERS or any((folder / name).is_dir() for name in NNUNET_FOLDERS)


def nnunet_cases(folder: Path, common: Case) -> tuple[list[Case], list[str]]:
    """The first channel of each case of imagesTr and imagesTs, with its split; and what to say."""
    places = [folder] if folder.name in NNUNET_FOLDERS else [folder / name for name in NNUNET_FOLDERS]
    cases: list[Case] = []
    further = 0
    for place in places:
        for file in image_files(list_files(place).files):
            parts = CHANNEL.match(stem_of(file))
            if parts is None:
                raise InputError(f"'{file}' has no channel number such as _0000 at its end, as nnU-Net's images have.")
            if int(parts[2]):
                further += 1
                continue
            carried = {**common.carried, "split": NNUNET_FOLDERS[place.name]}
            cases.append(replace(common, name=parts[1], image=file, carried=carried))
    notes = [f"{further} files of further channels were left out; the first channel is segmented."] if further else []
    return cases, notes


def is_bids(folder: Path) -> bool:
    """Whether a folder is a BIDS data set."""
    return (folder / BIDS_MARK).is_file() and any(BIDS_SUBJECT.match(entry.name) for entry in folder.iterdir())


def bids_cases(folder: Path, files: Sequence[Path], common: Case) -> tuple[list[Case], list[str]]:
    """The still images of all subjects, with the subject; and what to say."""
    cases: list[Case] = []
    left_out = 0
    for file in image_files(list(files)):
        subject, *places = file.relative_to(folder).parts
        if not BIDS_SUBJECT.match(subject):
            continue  # derivatives, sourcedata
        if stem_of(file).endswith(BIDS_NO_IMAGES):
            continue
        if any(place in BIDS_TIME_SERIES for place in places[:-1]):
            left_out += 1
            continue
        cases.append(replace(common, name=stem_of(file), image=file, carried={**common.carried, "subject": subject}))
    kinds = ", ".join(BIDS_TIME_SERIES)
    notes = [f"{left_out} images of {kinds} were left out: they are no still images."] if left_out else []
    return cases, notes
