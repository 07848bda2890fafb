"""Image-caption pairs from a CSV file as ROCO, MedPix and the like come: found, checked, counted, split.

Columns are known by their names, whatever their case; further ones are left alone.
"""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from MedZeroSegLib.errors import InputError
from MedZeroSegLib.training.captions import context_of, same_words

IMAGE_COLUMNS = ("image", "image_path", "filename", "file_name", "file", "path", "filepath", "name", "image_id", "id")
CAPTION_COLUMNS = ("caption", "captions", "text", "description")
SPLIT_COLUMNS = ("split", "subset", "fold")
SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
          "test": "test", "testing": "test"}  # fmt: skip
VAL_SHARE = 0.15  # of images where the file has no split, as in MedCLIP-SAM
SUFFIXES = ("", ".png", ".jpg", ".jpeg", ".dcm")  # tried in this order where a name has none
SUBFOLDERS = ("", "images", "train", "valid", "test")
FIELD_MAX = 1 << 24  # characters of one field


@dataclass(frozen=True)
class Pair:
    """One picture with its caption.

    Attributes
    ----------
    image_number, caption_number
        Alike in pairs that show the same file, or say the same: these are no negatives of each other.
    context
        Modality and region that the caption speaks of, "" where it doesn't say.
    """

    image: Path
    caption: str
    split: str
    image_number: int
    caption_number: int
    context: tuple[str, str]


@dataclass(frozen=True)
class Pairs:
    """All pairs of a file, and sentences on what was left out of it."""

    all: tuple[Pair, ...]
    remarks: tuple[str, ...]

    def of(self, split: str) -> tuple[Pair, ...]:
        return tuple(pair for pair in self.all if pair.split == split)

    @property
    def digest(self) -> str:
        """Names the pairs: the same images, captions and splits give the same, wherever the files lie."""
        rows = "\n".join(f"{pair.image.name}\t{pair.split}\t{pair.caption}" for pair in self.all)
        return hashlib.sha256(rows.encode()).hexdigest()[:16]


def read_pairs(file: Path, images: Path | None = None, skip_missing: bool = False) -> Pairs:
    """Read a CSV (or tab-separated .tsv, .txt) file of pairs.

    Parameters
    ----------
    images
        Folder that image names are relative to; the file's own folder without it.
    skip_missing
        Leave out, and count, rows whose image isn't there.

    Raises
    ------
    InputError
        When the file can't be read, lacks a column, or names images that are missing.
    """
    rows, columns = _rows(file)
    folder = images or file.parent
    if not folder.is_dir():
        raise InputError(f"The folder of images '{folder}' is not there; give the one that '{file}' speaks of.")
    pairs: list[Pair] = []
    numbers: tuple[dict[str, int], dict[str, int]] = ({}, {})
    left_out: Counter[str] = Counter()
    missing: list[str] = []
    for row in rows:
        name, caption = (row[columns[kind]].strip() for kind in ("image", "caption"))
        image = _image_file(folder, name)
        if not caption:
            left_out["an empty caption"] += 1
        elif image is None:
            missing.append(name)
        else:
            pairs.append(_pair(image, caption, row[columns["split"]] if "split" in columns else None, numbers, file))
    if missing and not skip_missing:
        raise InputError(
            f"{len(missing)} of the images that '{file}' names are missing, the first is '{missing[0]}' (looked for "
            f"in '{folder}'); give their folder with --images, or leave such rows out with --skip-missing."
        )
    if missing:
        left_out["a missing image"] = len(missing)
    if not pairs:
        raise InputError(f"'{file}' holds no pair of an image that is there and a caption; give another file.")
    remarks = [f"{count} rows with {reason} were left out." for reason, count in left_out.items()]
    repeated = len(pairs) - len(numbers[1])
    if repeated:
        remarks.append(f"{repeated} captions repeat another; such pairs are no negatives of each other.")
    return Pairs(tuple(pairs), tuple(remarks))


def twins_of(pairs: Sequence[Pair]) -> np.ndarray:
    """bool [n, n]: which pairs show the same image or say the same; True on the diagonal."""
    image = np.array([pair.image_number for pair in pairs])
    caption = np.array([pair.caption_number for pair in pairs])
    return (image[:, None] == image[None]) | (caption[:, None] == caption[None])


def same_context(pairs: Sequence[Pair]) -> np.ndarray:
    """bool [n, n]: which pairs speak of the same modality and the same region, both of them named."""
    known: dict[tuple[str, str], int] = {}
    named = [known.setdefault(pair.context, len(known)) if all(pair.context) else -1 for pair in pairs]
    number = np.array(named)
    return (number[:, None] == number[None]) & (number >= 0)[:, None]


def _rows(file: Path) -> tuple[list[dict[str, str]], dict[str, str]]:
    """The rows, and the file's own name of each column that is used."""
    csv.field_size_limit(FIELD_MAX)
    separator = "\t" if file.suffix.lower() in (".tsv", ".txt") else ","
    try:
        with file.open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.DictReader(handle, delimiter=separator, restval="")
            names = {name.strip().lower(): name for name in reader.fieldnames or () if name}
            rows = list(reader)
    except OSError as problem:
        reason = (problem.strerror or "no reason given").lower()
        raise InputError(f"'{file}' can't be read ({reason}); give a CSV file of images and captions.") from problem
    except (UnicodeDecodeError, csv.Error) as problem:
        raise InputError(f"'{file}' is no CSV file in UTF-8; save it as one.") from problem
    columns = {}
    for kind, known in (("image", IMAGE_COLUMNS), ("caption", CAPTION_COLUMNS), ("split", SPLIT_COLUMNS)):
        found = next((names[name] for name in known if name in names), None)
        if found is not None:
            columns[kind] = found
        elif kind != "split":
            raise InputError(
                f"'{file}' has no column '{kind}' (it has {', '.join(names) or 'none'}); its first line must name the "
                f"columns, such as image,caption,split."
            )
    return rows, columns


def _image_file(folder: Path, name: str) -> Path | None:
    """The file of a name in the folder or in the folders that data sets keep their images in."""
    if not name:
        return None
    suffixes = SUFFIXES[:1] if Path(name).suffix.lower() in SUFFIXES[1:] else SUFFIXES
    candidates = (folder / part / f"{name}{suffix}" for part in SUBFOLDERS for suffix in suffixes)
    try:
        return next((file for file in candidates if file.is_file()), None)
    except (OSError, ValueError):  # a name that no file can have
        return None


def _pair(
    image: Path, caption: str, split: str | None, numbers: tuple[dict[str, int], dict[str, int]], file: Path
) -> Pair:
    known = None if split is None else SPLITS.get(split.strip().lower())
    if split is not None and known is None:
        raise InputError(f"'{file}' has the split '{split}'; use train, val or test.")
    image_number = numbers[0].setdefault(str(image), len(numbers[0]))
    caption_number = numbers[1].setdefault(same_words(caption), len(numbers[1]))
    chosen = known or _split_of(image.name)
    return Pair(image, caption, chosen, image_number, caption_number, context_of(caption))


def _split_of(name: str) -> str:
    """Train or val by the image's name alone, so that all captions of an image fall on one side."""
    share = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
    return "val" if share < VAL_SHARE else "train"
