"""The manifest of images with reference masks: one row per image and mask pair, masks with named label values."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from MedZeroSegLib.errors import InputError
from MedZeroSegLib.volume import Volume
from MedZeroSegLib.volume_io import read_volume

PARTLY_ANNOTATED = ("sammed2d_demo_slices", "totalsegmentator_examples")  # each image marks its own choice of names
# Wholes whose parts a source, or one annotation scheme of it, marks completely: the union of the parts is the whole.
COMPLETE_WHOLES: Mapping[str, tuple[str, ...]] = {
    "spider_lumbar_spine_mr": ("vertebrae", "intervertebral discs"),
    "msd_hippocampus_mr": ("hippocampus",),
    "busi_breast_ultrasound": ("breast tumor",),
    "brats2015_brain_tumor_mr": ("brain tumor",),
    "totalsegmentator_examples": ("lung",),
    "covid_chest_xray:lungs": ("lung",),
    "covid_lung_xray": ("lung",),
}
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
        return volume, self.read_labels(volume)

    def read_labels(self, volume: Volume) -> np.ndarray:
        """The label values, uint16 [k, j, i] on the grid of the case's image; raises InputError."""
        try:
            labels = sitk.GetArrayFromImage(sitk.ReadImage(str(self.mask)))
        except RuntimeError as problem:
            raise InputError(f"{self.mask} can't be read as a mask; replace the file or take its row out.") from problem
        labels = labels[None] if labels.ndim == 2 else labels
        if labels.shape != volume.shape:
            raise InputError(
                f"{self.mask} has {labels.shape[::-1]} voxels, its image {volume.shape[::-1]}; "
                "give a mask on the image's own grid."
            )
        return labels.astype(np.uint16)


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


def complete_wholes(scheme: str) -> tuple[str, ...]:
    """Names of wholes that are the union of parts which the annotation scheme marks."""
    return COMPLETE_WHOLES.get(scheme, COMPLETE_WHOLES.get(scheme.split(":")[0], ()))


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
    return Case(
        row["case_id"],
        row["patient_id"],
        row["source"],
        row["modality"],
        image,
        mask,
        _labels(manifest, row),
        row["licence"],
        row["split"],
    )


def _labels(manifest: Path, row: dict[str, str]) -> dict[int, str]:
    try:
        pairs = (pair.split("=", 1) for pair in row["labels"].split(";"))
        return {int(value): name.strip() for value, name in pairs}
    except ValueError as problem:
        raise InputError(
            f"{manifest} has the labels {row['labels']!r} for {row['case_id']}; write them as 1=liver;2=spleen."
        ) from problem
