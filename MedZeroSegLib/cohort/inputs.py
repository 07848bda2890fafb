"""What the user points at → cases: a folder, a glob, a table, or a data set laid out as nnU-Net or BIDS has it.

Cases come in the order of their paths, or of the table's rows, so that a second look gives the same ones."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path

from MedZeroSegLib.cohort.case import Case
from MedZeroSegLib.cohort.case_names import distinct_names
from MedZeroSegLib.cohort.dicom_series import Series, find_series
from MedZeroSegLib.cohort.image_files import (
    IMAGE_SUFFIXES,
    RESULT_MARK,
    Listing,
    image_files,
    list_files,
    may_be_dicom,
    stem_of,
)
from MedZeroSegLib.cohort.layouts import bids_cases, is_bids, is_nnunet, nnunet_cases
from MedZeroSegLib.cohort.table import is_table, table_cases
from MedZeroSegLib.errors import InputError

GLOB_SIGNS = "*?["
NAMES_TOLD_MAX = 5


@dataclass(frozen=True)
class Cohort:
    """All cases, and sentences on what was left out or renamed on the way."""

    cases: tuple[Case, ...]
    notes: tuple[str, ...]


def find_cases(source: str, structures: str = "", modality: str | None = None, frame: int | None = None) -> Cohort:
    """The cases that an input names.

    Parameters
    ----------
    source
        A folder, an image file, a pattern such as "scans/*/t1.nii.gz", or a .csv with the columns path, structures,
        split, case, modality and frame, of which only path is needed.
    structures, modality, frame
        For all cases whose row in the table says nothing else.

    Raises
    ------
    InputError
        When there is no case, or the table makes no sense.
    """
    common = Case(name="", image=Path(), structures=structures, modality=modality, frame=frame)
    path = Path(source).expanduser()
    if path.is_dir():
        cases, notes = _folder_cases(path.absolute(), common)
    elif is_table(path):
        cases, notes = table_cases(path.absolute(), common)
    elif path.exists():
        cases, notes = [replace(common, name=stem_of(path), image=path.absolute())], []
    elif any(sign in source for sign in GLOB_SIGNS):
        cases, notes = _glob_cases(str(path), common)
    else:
        raise InputError(f"'{source}' does not exist; give a folder, a pattern in quotes, or a .csv with paths.")
    if not cases:
        kinds = ", ".join(IMAGE_SUFFIXES)
        raise InputError(f"'{source}' holds no images; give a folder with DICOM series or files that end in {kinds}.")
    return _named(cases, notes)


def _folder_cases(folder: Path, common: Case) -> tuple[list[Case], list[str]]:
    if (folder / RESULT_MARK).exists():
        raise InputError(f"'{folder}' holds a cohort's results; give the folder of the images.")
    if is_nnunet(folder):
        return nnunet_cases(folder, common)
    listing = list_files(folder)
    if is_bids(folder):
        cases, notes = bids_cases(folder, listing.files, common)
        return [*cases, *_refused(listing, folder, common)], notes
    return _listed_cases(listing, folder, common)


def _glob_cases(pattern: str, common: Case) -> tuple[list[Case], list[str]]:
    found = [Path(name).absolute() for name in sorted(glob.glob(pattern, recursive=True))]
    listing = Listing()
    for path in found:
        if path.is_dir():
            under = list_files(path)
            listing.files += under.files
            listing.refused.update(under.refused)
        else:
            listing.files.append(path)
    listing.files = list(dict.fromkeys(listing.files))
    fixed = takewhile(lambda part: not any(sign in part for sign in GLOB_SIGNS), Path(pattern).absolute().parts)
    return _listed_cases(listing, Path(*fixed), common)


def _listed_cases(listing: Listing, root: Path, common: Case) -> tuple[list[Case], list[str]]:
    """Image files one by one and DICOM files by series, in the order of their paths."""
    cases = [replace(common, name=_name_under(root, file), image=file) for file in image_files(listing.files)]
    dicom = find_series(file for file in listing.files if may_be_dicom(file))
    shared, numbered = _shared_folders(dicom.series), _folders_of_several(dicom.series)
    for series in dicom.series:
        if len(series.files) == 1:
            cases.append(replace(common, name=_name_under(root, series.files[0]), image=series.files[0]))
            continue
        name = _name_under(root, series.folder)
        if not name or series.folder in numbered:
            name = "-".join(part for part in (name, f"series-{series.number or series.uid[-6:]}") if part)
        image = series.files[0] if series.folder in shared else series.folder
        cases.append(replace(common, name=name, image=image, files=series.files))
    for file, sentence in dicom.damaged.items():
        cases.append(replace(common, name=_name_under(root, file), image=file, problem=sentence))
    cases += _refused(listing, root, common)
    notes = []
    if dicom.localizers:
        notes.append(f"Series of localizers, left out: {dicom.localizers}.")
    return sorted(cases, key=lambda case: (str(case.image), case.name)), notes


def _folders_of_several(series: Iterable[Series]) -> set[Path]:
    """Folders after which several series of more than one file would be called."""
    counts = Counter(each.folder for each in series if len(each.files) > 1)
    return {folder for folder, count in counts.items() if count > 1}


def _shared_folders(series: Iterable[Series]) -> set[Path]:
    """Folders in or below which files of several series lie, so that they name none of them."""
    counts: Counter[Path] = Counter()
    for each in series:
        holding = {file.parent for file in each.files}
        counts.update({folder for parent in holding for folder in (parent, *parent.parents)})
    return {folder for folder, count in counts.items() if count > 1}


def _refused(listing: Listing, root: Path, common: Case) -> list[Case]:
    """Folders that can't be looked into count as failed cases, so that nobody takes the cohort for complete."""
    return [
        replace(
            common,
            name=f"{_name_under(root, folder) or folder.name}-unreadable",
            image=folder,
            problem=f"The folder '{folder}' cannot be looked into ({reason}); check its permissions.",
        )
        for folder, reason in listing.refused.items()
    ]


def _name_under(root: Path, path: Path) -> str:
    """Where a file or folder lies under the root, in one word, without the format's suffix."""
    try:
        relative = path.relative_to(root)
    except ValueError:
        relative = Path(path.name)
    parts = [*relative.parts[:-1], stem_of(relative) if path.is_file() else relative.name]
    return "-".join(part for part in parts if part)


def _named(cases: list[Case], notes: list[str]) -> Cohort:
    names, doubled = distinct_names([case.name for case in cases])
    if doubled:
        told = ", ".join(doubled[:NAMES_TOLD_MAX]) + (" and others" if len(doubled) > NAMES_TOLD_MAX else "")
        notes = [*notes, f"Several cases are called {told}; the later ones got a number behind their name."]
    named = tuple(replace(case, name=name) for case, name in zip(cases, names, strict=True))
    return Cohort(named, tuple(notes))
