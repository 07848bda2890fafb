"""A person's masks among the results: how they are told from computed and from damaged ones. They are never
overwritten, whatever the review list says, since a mark may not have been written yet."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from MedZeroSegLib.cohort.masks_file import is_masks, read_masks
from MedZeroSegLib.cohort.review import ACCEPTED, CORRECTED
from MedZeroSegLib.cohort.work import ANSWER, CASES_FOLDER, read_answer
from MedZeroSegLib.errors import InputError, InstallationError
from MedZeroSegLib.weights_catalogue import sha256_of
from MedZeroSegLib.writers import TABLE_SUFFIX

Outputs = Mapping[str, tuple[str, int]]  # name of a file → its SHA-256 and size when it was computed

KEPT = "The masks were changed by a person while the case was computed anew; theirs were kept."
SET_ASIDE = ".old"  # behind the name of a case's folder, while a new one takes its place


def belongs_to_a_person(place: Path, noted: Outputs, status: str) -> bool:
    """Whether the masks in a case's folder are a person's work.

    They are when the list calls them corrected, when it calls them accepted and they are whole, and when they can be
    read and yet aren't those that were computed.

    Parameters
    ----------
    noted
        What the journal has of the case's files, for a folder that doesn't say it itself.
    status
        As in the review list.
    """
    labels = labels_in(place)
    if labels is None:
        return False
    if status == CORRECTED:
        return True
    answer = read_answer(place)
    computed: Outputs = answer["outputs"] if answer is not None else noted
    files = {name: mark for name, (mark, _size) in computed.items() if is_masks(name) or name.endswith(TABLE_SUFFIX)}
    if all(_has_hash(place / name, mark) for name, mark in files.items()):
        return status == ACCEPTED
    try:
        read_masks(labels)
    except InputError:
        return False
    return bool(files)


def labels_in(place: Path) -> Path | None:
    """The masks' file in a case's folder."""
    found: Iterable[Path] = sorted(place.iterdir()) if place.is_dir() else ()
    return next((file for file in found if is_masks(file.name)), None)


def _has_hash(file: Path, mark: str) -> bool:
    try:
        return sha256_of(file) == mark
    except OSError:
        return False


def put_in_place(place: Path, final: Path, status: str = "") -> bool:
    """Rename a case's folder, whole, over an older one; False where the older one holds a person's masks, and stays.

    The older one is moved away before it is looked at, so that nobody changes it in between.

    Raises
    ------
    InstallationError
        When the system refuses.
    """
    if place == final:
        return True
    old = place.with_name(place.name + SET_ASIDE)
    try:
        final.parent.mkdir(exist_ok=True)
        if final.exists():
            os.replace(final, old)
            if belongs_to_a_person(old, {}, status):
                os.replace(old, final)
                shutil.rmtree(place, ignore_errors=True)
                return False
        os.replace(place, final)
    except OSError as problem:
        reason = (problem.strerror or "the system gives no reason").lower()
        raise InstallationError(f"'{final}' cannot be written ({reason}).") from problem
    shutil.rmtree(old, ignore_errors=True)
    return True


def bring_back(folder: Path, work: Path) -> None:
    """Put folders back that were set aside when an earlier run was killed, before their place was taken."""
    for old in work.glob(f"*{SET_ASIDE}"):
        name = old.name.removesuffix(SET_ASIDE).rpartition(".")[0]
        final = folder / CASES_FOLDER / name
        if (old / ANSWER).exists() and not final.exists():
            os.replace(old, final)
