"""A user's labelled slices of structures that aren't among the shipped ones: a CSV file of images, masks and names."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from MedZeroSegLib.errors import InputError
from MedZeroSegLib.queries import Query, resolve
from MedZeroSegLib.reading import silent_libraries
from MedZeroSegLib.slices import SliceFrame, slice_frame
from MedZeroSegLib.volume import MODALITIES, Volume
from MedZeroSegLib.volume_io import read_volume

COLUMNS = ("image", "mask", "label")  # and, if wanted, value, slice, modality, color, code
HOLLOW_MIN = 1.15  # filled over own area from which a structure is a ring


@dataclass(frozen=True)
class Example:
    """One image with a mask.

    Attributes
    ----------
    values
        Value in the mask → name; 0 stands for every value but 0.
    slices
        The slices that are labelled, counted from 0 as the file stores them; None: all that hold a label.
    """

    image: Path
    mask: Path
    modality: str | None
    values: Mapping[int, str]
    slices: frozenset[int] | None

    def read(self) -> tuple[Volume, np.ndarray, SliceFrame]:
        """The image, its labels on the same grid (1.. in the order of ``values``), and the frame of its slices.

        Raises
        ------
        InputError
            When a file can't be read, the grids differ, or a label isn't in the mask.
        """
        volume = read_volume(self.image, modality=self.modality)
        marks = _read_mask(self.mask)
        if marks.shape != volume.shape:
            raise InputError(
                f"'{self.mask}' has {' × '.join(map(str, marks.shape[::-1]))} voxels, its image "
                f"{' × '.join(map(str, volume.shape[::-1]))}; give a mask on the image's own grid."
            )
        labels = np.zeros(volume.shape, np.uint8)
        for number, (value, name) in enumerate(self.values.items(), 1):
            where = marks == value if value else marks != 0
            if not where.any():
                there = ", ".join(str(one) for one in np.unique(marks)[:12])
                raise InputError(
                    f"'{self.mask}' holds no voxel of {name} (value {value or 'other than 0'}; it has {there}); "
                    "correct the row's value or mask."
                )
            labels[where] = number
        return volume, labels, slice_frame(volume)

    def labelled(self, labels: np.ndarray, frame: SliceFrame) -> list[int]:
        """The canonical slices that hold a label, and are to be used; raises InputError where there is none."""
        canonical = frame.forward(labels)
        filled = np.flatnonzero(canonical.any((1, 2)))
        if self.slices is None:
            return filled.tolist()
        count = len(canonical)
        wanted = {count - 1 - index if frame.flips[0] else index for index in self.slices}
        chosen = [int(index) for index in filled if index in wanted]
        if not chosen:
            raise InputError(
                f"'{self.mask}' holds no label in slice {', '.join(map(str, sorted(self.slices)))} of {count}; count "
                "slices from 0, as Slicer's views do."
            )
        return chosen


@dataclass(frozen=True)
class Examples:
    """All rows of a file: examples, names in the order in which they first occur, and a vocabulary row for each."""

    examples: tuple[Example, ...]
    names: tuple[str, ...]
    rows: Mapping[str, dict[str, Any]]


def read_examples(file: Path, shipped: Sequence[str]) -> Examples:
    """Read a CSV file with the columns image, mask and label.

    Further columns: ``value`` of the label in the mask (else all but 0), ``slice`` (else all that hold a label),
    ``modality``, ``color`` (``#rrggbb``), ``code`` (``SCT 12345 Meaning``). Paths are relative to the file.

    Parameters
    ----------
    shipped
        Concepts that the shipped head knows; they can't be taught anew.

    Raises
    ------
    InputError
        When the file, a row or a name is at fault.
    """
    rows = _rows(file)
    spellings: dict[str, Query] = {}
    grouped: dict[tuple[Path, Path], list[tuple[int, dict[str, str], str]]] = {}
    facts: dict[str, dict[str, str]] = {}
    for number, row in rows:
        query = spellings.setdefault(row["label"].strip(), resolve([row["label"]])[0])
        name = _allowed(query, shipped, file, number)
        image, mask = _existing(file, number, row["image"]), _existing(file, number, row["mask"])
        grouped.setdefault((image, mask), []).append((number, row, name))
        facts.setdefault(name, {}).update({key: value for key, value in row.items() if value})
    examples = tuple(_example(file, image, mask, own) for (image, mask), own in grouped.items())
    names = tuple(facts)
    return Examples(examples, names, {name: _vocabulary_row(file, name, facts[name]) for name in names})


def is_hollow(plane: np.ndarray) -> bool:
    """Whether a mask bool [h, w] has a hole of some size."""
    return bool(plane.any() and ndimage.binary_fill_holes(plane).sum() >= HOLLOW_MIN * plane.sum())


def _rows(file: Path) -> list[tuple[int, dict[str, str]]]:
    try:
        with file.open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.DictReader(handle)
            rows = list(enumerate(({k: (v or "").strip() for k, v in row.items() if k} for row in reader), 2))
            columns = reader.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as problem:
        raise InputError(f"'{file}' can't be read; give a CSV file with the columns {', '.join(COLUMNS)}.") from problem
    missing = [column for column in COLUMNS if column not in columns]
    if missing or not rows:
        lacks = f"the column {missing[0]}" if missing else "rows"
        raise InputError(f"'{file}' lacks {lacks}; it needs {', '.join(COLUMNS)} and a row for each labelled image.")
    for number, row in rows:
        empty = next((column for column in COLUMNS if not row[column]), None)
        if empty:
            raise InputError(f"Row {number} of '{file}' has no {empty}; fill it in or take the row out.")
    return rows


def _allowed(query: Query, shipped: Sequence[str], file: Path, number: int) -> str:
    name = query.concept
    if name in shipped:
        raise InputError(
            f"Row {number} of '{file}' labels {name}, which the shipped head knows already and keeps; give yours "
            "another name."
        )
    return name


def _existing(file: Path, number: int, path: str) -> Path:
    found = file.parent / Path(path).expanduser()
    if not found.exists():
        raise InputError(f"Row {number} of '{file}' names '{path}', which does not exist; correct it or bring it.")
    return found


def _example(file: Path, image: Path, mask: Path, own: list[tuple[int, dict[str, str], str]]) -> Example:
    values: dict[int, str] = {}
    slices: set[int] = set()
    whole = False
    for number, row, name in own:
        value = _number(file, number, row, "value")
        if values.setdefault(value or 0, name) != name or (0 in values and len(values) > 1):
            raise InputError(
                f"Row {number} of '{file}' gives two names to one label of '{row['mask']}'; say with the column value "
                "which is which."
            )
        index = _number(file, number, row, "slice")
        whole = whole or index is None
        slices |= set() if index is None else {index}
    modality = next((row["modality"] for _, row, _ in own if row.get("modality")), None)
    return Example(image, mask, modality, values, None if whole else frozenset(slices))


def _number(file: Path, number: int, row: Mapping[str, str], column: str) -> int | None:
    text = row.get(column, "")
    if not text:
        return None
    if not text.isdecimal():
        raise InputError(f"Row {number} of '{file}' has the {column} '{text}'; give a whole number, or leave it empty.")
    return int(text)


def _vocabulary_row(file: Path, name: str, facts: Mapping[str, str]) -> dict[str, Any]:
    """What the vocabulary would hold of a name, as in its file; for names that it knows its own entry counts."""
    color, code = facts.get("color", ""), facts.get("code", "")
    if color and not re.fullmatch(r"#[0-9a-fA-F]{6}", color):
        raise InputError(f"'{file}' gives {name} the color '{color}'; write it as #rrggbb, such as #ff8000.")
    parts = code.split(maxsplit=2)
    if code and len(parts) < 3:
        raise InputError(
            f"'{file}' gives {name} the code '{code}'; write scheme, value and meaning, such as SCT 10200004 Liver."
        )
    query = resolve([name])[0]
    shown = [int(color[place : place + 2], 16) for place in (1, 3, 5)] if color else list(query.color)
    return {
        "name": name,
        "synonyms": [],
        "code": parts or None,
        "category": "structure",
        "color": shown,
        "window": [40, 400],
        "modalities": list(MODALITIES),
        "region": "",
        "kind": "",
        "parts": 0,
        "side": "none",
        "parents": [],
        "encloses": None,
    }


def _read_mask(file: Path) -> np.ndarray:
    """Values [k, j, i] as they are stored."""
    try:
        with silent_libraries():
            values = sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
    except RuntimeError as problem:
        raise InputError(f"'{file}' can't be read as a mask; give a label map, as .nii.gz, .nrrd or .png.") from problem
    values = values[None] if values.ndim == 2 else values
    if values.ndim != 3:
        raise InputError(f"'{file}' has colours or layers; export it as a label map with one number a voxel.")
    return values
