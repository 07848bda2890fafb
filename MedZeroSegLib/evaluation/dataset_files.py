"""What the readers of downloaded data sets share: files wherever they lie under the root, and checks of labels."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import numpy as np

from MedZeroSegLib.errors import InputError
from MedZeroSegLib.evaluation.manifest import Case

NOT_CONTENT = ("__MACOSX",)  # folders that archivers add; their files have the names of images


def files_under(root: Path) -> Iterator[Path]:
    """All files below a folder in the order of their names; hidden ones and what archivers add are left out.

    Raises
    ------
    InputError
        When the folder doesn't exist.
    """
    if not root.is_dir():
        raise InputError(f"{root} is no folder; give the folder into which the data set was unpacked.")
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in NOT_CONTENT and not name.startswith("."))
        yield from (Path(folder) / name for name in sorted(names) if not name.startswith("."))


def chosen_split(splits: Collection[str], split: str, title: str) -> str:
    """The split, when there is such a one; raises InputError."""
    if split not in splits:
        raise InputError(f"{title} has no split {split!r}; use one of {', '.join(splits)}.")
    return split


def listed(numbers: Iterable[object], most: int = 8) -> str:
    """Some of the numbers, for a sentence."""
    numbers = list(numbers)
    return ", ".join(map(str, numbers[:most])) + (f" and {len(numbers) - most} more" if len(numbers) > most else "")


def check_values(labels: np.ndarray, case: Case, title: str) -> None:
    """Refuse a mask with values that the data set doesn't use; raises InputError."""
    known = {0, *case.labels}
    foreign = sorted(set(np.unique(labels).tolist()) - known)
    if foreign:
        values = listed(sorted(known), len(known))
        raise InputError(
            f"{case.mask} holds the value {foreign[0]}, which {title} doesn't use ({values}); "
            "bring the original mask, which may be swapped with the image or with another data set's."
        )
