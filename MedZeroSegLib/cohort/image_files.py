"""Which files under a folder are images, and what of their names is the case's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

IMAGE_SUFFIXES = (
    ".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp",
)  # fmt: skip
MASK_SUFFIXES = (".seg.nrrd",)  # results, which are no images to segment
# Without a look inside: neither images nor DICOM.
OTHER_SUFFIXES = (
    ".json", ".csv", ".tsv", ".txt", ".md", ".html", ".xml", ".pdf", ".zip", ".gz", ".py", ".sqlite", ".raw", ".bval",
    ".bvec", ".log", ".yaml", ".yml",
)  # fmt: skip
RESULT_MARK = "journal.sqlite"  # lies in the folder of a cohort's results


@dataclass
class Listing:
    """Files under a folder, in order; and the folders that could not be looked into, with the system's reason."""

    files: list[Path] = field(default_factory=list)
    refused: dict[Path, str] = field(default_factory=dict)


def list_files(folder: Path) -> Listing:
    """All files under a folder but hidden ones; results of cohorts that lie in it are passed over."""
    listing = Listing()

    def refuse(error: OSError) -> None:
        listing.refused[Path(error.filename)] = (error.strerror or "cannot be opened").lower()

    seen: set[Path] = set()
    for place, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        where = Path(place).resolve()
        if RESULT_MARK in names or where in seen:  # links may lead in a circle
            folders.clear()
            continue
        seen.add(where)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        listing.files += [Path(place, name) for name in sorted(names) if not name.startswith(".")]
    return listing


def suffix_of(path: Path) -> str:
    """The suffix by which a file is known as an image; "" for others."""
    name = path.name.lower()
    if name.endswith(MASK_SUFFIXES):
        return ""
    return next((suffix for suffix in IMAGE_SUFFIXES if name.endswith(suffix)), "")


def stem_of(path: Path) -> str:
    """The file's name without the suffix of its format."""
    suffix = suffix_of(path)
    return path.name[: -len(suffix)] if suffix else path.stem


def may_be_dicom(path: Path) -> bool:
    """Whether it is worth looking into a file for DICOM; names of DICOM files mean nothing."""
    return not suffix_of(path) and not path.name.lower().endswith((*MASK_SUFFIXES, *OTHER_SUFFIXES))


def image_files(files: list[Path]) -> Iterator[Path]:
    """The image files that are not DICOM."""
    return (file for file in files if suffix_of(file))
