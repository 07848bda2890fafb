"""The manifest of images with reference masks: one row per image and mask pair, masks with named label values."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from MedZeroSegLib.errors import InputError
from MedZeroSegLib.volume import Volume
from MedZeroSegLib.volume_io import read_volume

PARTLY_ANNOTATED = ("sammed2d_demo_slices", "totalsegmentator_examples")  # each image marks its own choice of names
COLUMNS = ("case_id", "patient_id", "source", "modality", "image", "mask", "labels", "licence", "split")


@dataclass(frozen=True)
class Case:
    """One row of the manifest; ``labels`` maps mask values to names as the manifest writes them."""

    case_id: str
    patient_id: str
    source: str
    modality: str
    image: Path
    mask: Path
    labels: dict[int, str]
    licence: str
    split: str

    @property
    def any_use(self) -> bool:
        """Whether the licence allows any use, so that weights trained on the case may ship without restriction."""
        return "NC" not in self.licence

    def read(self) -> tuple[Volume, np.ndarray]:
        """The image and its label values, uint16 [k, j, i] on the image's grid; raises InputError."""
        volume = read_volume(self.image, modality=self.modality)
        labels = sitk.GetArrayFromImage(sitk.ReadImage(str(self.mask)))
        labels = labels[None] if labels.ndim == 2 else labels
        if labels.shape != volume.shape:
            raise InputError(
                f"{self.mask} has {labels.shape[::-1]} voxels, its image {volume.shape[::-1]}; "
                "give a mask on the image's own grid."
            )
        return volume, labels.astype(np.uint16)


def read_manifest(path: Path | str, split: str | None = None) -> list[Case]:
    """Rows with a mask, of one split or of all.

    Raises
    ------
    InputError
        When the file is missing, lacks a column, or names an image or mask that doesn't exist.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist; give the path of a manifest.csv.")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    missing = [column for column in COLUMNS if not rows or column not in rows[0]]
    if missing:
        raise InputError(f"{path} has no rows with the column {missing[0]}; a manifest needs {', '.join(COLUMNS)}.")
    cases = [_case(path, row) for row in rows if row["mask"] and split in (None, row["split"])]
    if not cases:
        splits = ", ".join(sorted({row["split"] for row in rows}))
        raise InputError(f"{path} has no case with a mask in the split {split!r}; its splits are {splits}.")
    return cases


def annotated_names(cases: Iterable[Case]) -> dict[str, set[str]]:
    """For each annotation scheme, all names that it marks wherever they occur.

    A name that the scheme marks and that a mask lacks is absent from that image; a name outside the scheme is unknown.
    """
    schemes: dict[str, set[str]] = {}
    for case in cases:
        schemes.setdefault(annotation_scheme(case), set()).update(case.labels.values())
    return schemes


def annotation_scheme(case: Case) -> str:
    """What was marked together: the source, and the kind of mask where one image has several mask files."""
    if case.source in PARTLY_ANNOTATED:
        return f"{case.source}:{case.case_id}"
    image, mask = case.image.name.split(".")[0], case.mask.name.split(".")[0]
    kind = mask.removeprefix(image + "_")
    return f"{case.source}:{kind}" if kind != mask else case.source


def _case(manifest: Path, row: dict[str, str]) -> Case:
    image, mask = manifest.parent / row["image"], manifest.parent / row["mask"]
    for file in (image, mask):
        if not file.exists():
            raise InputError(f"{manifest} names {file}, which does not exist; correct the row or bring the file.")
    labels = {int(value): name.strip() for value, name in (pair.split("=", 1) for pair in row["labels"].split(";"))}
    return Case(
        row["case_id"],
        row["patient_id"],
        row["source"],
        row["modality"],
        image,
        mask,
        labels,
        row["licence"],
        row["split"],
    )
