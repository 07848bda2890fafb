"""DICOM files → series, by SeriesInstanceUID and nothing else: names and folders of the files don't count."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from MedZeroSegLib.dicom_io import NO_IMAGES
from MedZeroSegLib.dicom_pixels import STANDARD, dataset_start, open_dataset, quiet_pydicom
from MedZeroSegLib.errors import InputError


@dataclass(frozen=True)
class Series:
    """The files of one series, in order of their paths."""

    uid: str
    number: str  # SeriesNumber
    files: tuple[Path, ...]

    @property
    def folder(self) -> Path:
        """The deepest folder that holds all files."""
        return Path(os.path.commonpath([file.parent for file in self.files]))


@dataclass(frozen=True)
class DicomFiles:
    """What a number of files holds."""

    series: tuple[Series, ...]
    localizers: int  # series that are nothing else
    damaged: dict[Path, str]  # files whose header can't be read, with the sentence


def find_series(files: Iterable[Path]) -> DicomFiles:
    """Sort the DICOM images among the files into series; other files and other objects are passed over."""
    members: dict[str, list[Path]] = {}
    numbers: dict[str, str] = {}
    proper: set[str] = set()
    damaged: dict[Path, str] = {}
    with quiet_pydicom():
        for file in files:
            start = None
            try:
                start = dataset_start(file)
                if start is None:
                    continue
                header = open_dataset(file, header_only=True)
                uid, modality = str(header.get("SeriesInstanceUID") or ""), header.get("Modality")
                is_image = bool(header.get("Rows") and header.get("Columns")) and modality not in NO_IMAGES
                kinds = [str(word) for word in header.get("ImageType") or ()]
                number = "" if header.get("SeriesNumber") is None else str(header.SeriesNumber)
            except OSError as problem:
                reason = (problem.strerror or "cannot be opened").lower()
                damaged[file] = f"'{file}' cannot be read ({reason}); check its permissions."
                continue
            except Exception as problem:  # values of a damaged header raise nearly anything when they are asked for
                if start == STANDARD:  # what only looks a little like DICOM is no image
                    told = isinstance(problem, InputError)
                    damaged[file] = str(problem) if told else f"'{file}' is a damaged DICOM file; export it again."
                continue
            if is_image:
                key = uid or str(file)
                members.setdefault(key, []).append(file)
                numbers.setdefault(key, number)
                if "LOCALIZER" not in kinds:
                    proper.add(key)
    series = tuple(Series(uid, numbers[uid], tuple(members[uid])) for uid in members if uid in proper)
    return DicomFiles(series, len(members) - len(series), damaged)
