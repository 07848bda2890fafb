"""A table of images (.csv) → cases; columns that mean nothing here are carried through to the results."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from MedZeroSegLib.cohort.case import Case
from MedZeroSegLib.cohort.image_files import stem_of
from MedZeroSegLib.errors import InputError
from MedZeroSegLib.volume import MODALITIES

PATH, STRUCTURES, CASE, MODALITY, FRAME = "path", "structures", "case", "modality", "frame"
ALIASES = {"image": PATH, "case_id": CASE}
DELIMITERS = ",;\t"


def is_table(path: Path) -> bool:
    """Whether a path is a table of images."""
    return path.suffix.lower() in (".csv", ".tsv") and path.is_file()


def table_cases(file: Path, common: Case) -> tuple[list[Case], list[str]]:
    """One case for each row; relative paths start at the table's folder.

    Raises
    ------
    InputError
        When the column path is missing, a row has no path, or a modality or frame makes no sense.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as problem:
        raise InputError(f"'{file}' can't be read as a table; save it as CSV in UTF-8.") from problem
    header = text.partition("\n")[0]
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(DELIMITERS, key=header.count))
    meaning = {column: _meaning(column) for column in reader.fieldnames or ()}
    if PATH not in meaning.values():
        raise InputError(f"'{file}' has no column 'path'; its first line has to name the columns.")
    cases = []
    for number, row in enumerate(reader, start=2):
        values = {column: (value or "").strip() for column, value in row.items() if isinstance(column, str)}
        if any(values.values()):
            cases.append(_case(values, meaning, common, file, number))
    return cases, []


def _meaning(column: str) -> str:
    """The column's meaning here; "" for one that is carried through."""
    name = column.strip().lower()
    name = ALIASES.get(name, name)
    return name if name in (PATH, STRUCTURES, CASE, MODALITY, FRAME) else ""


def _case(values: Mapping[str, str], meaning: Mapping[str, str], common: Case, file: Path, number: int) -> Case:
    known = {meaning[column]: value for column, value in values.items() if meaning[column] and value}
    carried = {column.strip(): value for column, value in values.items() if not meaning[column]}
    if PATH not in known:
        raise InputError(f"Line {number} of '{file}' names no path; fill it in or delete the line.")
    modality, frame = known.get(MODALITY, common.modality), known.get(FRAME)
    if modality is not None and modality not in MODALITIES:
        raise InputError(
            f"Line {number} of '{file}' has the modality '{modality}', which is not known; use one of "
            f"{', '.join(MODALITIES)}."
        )
    if frame is not None and not frame.isdecimal():
        raise InputError(f"Line {number} of '{file}' has the frame '{frame}'; give a number from 0.")
    image = file.parent / Path(known[PATH]).expanduser()
    return replace(
        common,
        name=known.get(CASE) or stem_of(image),
        image=image,
        structures=known.get(STRUCTURES, common.structures),
        modality=modality,
        frame=common.frame if frame is None else int(frame),
        carried=carried,
    )
