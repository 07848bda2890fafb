"""Miniature copies of public data sets in the layouts of their downloads, and a segmenter with known errors."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from MedZeroSegLib.evaluation.manifest import Case
from MedZeroSegLib.evaluation.synapse import LABELS as SYNAPSE
from MedZeroSegLib.evaluation.synapse_h5 import H5_LABELS
from MedZeroSegLib.evaluation.target import Target
from MedZeroSegLib.queries import resolve
from MedZeroSegLib.segment import Segment, Segmentation
from MedZeroSegLib.volume import Volume

SHARED = Path(__file__).parents[3] / "shared" / "data"
ABSENT = "the folder shared/data with real images isn't beside the checkout"
Box = tuple[slice, slice, slice]
Pair = Callable[[str], tuple[np.ndarray, np.ndarray]]

# Abdominal phantom [12, 40, 50], radiological: k from inferior to superior, j to the back, i to the patient's left.
ORGANS: Mapping[str, Box] = {
    "liver": np.s_[5:12, 6:24, 3:24],
    "spleen": np.s_[6:11, 18:28, 40:47],
    "stomach": np.s_[5:10, 5:12, 28:40],
    "pancreas": np.s_[4:6, 14:18, 22:32],
    "right kidney": np.s_[1:6, 25:33, 12:18],
    "left kidney": np.s_[1:6, 25:33, 33:39],
    "gallbladder": np.s_[3:5, 8:12, 12:16],
    "aorta": np.s_[0:12, 24:27, 24:27],
    "esophagus": np.s_[10:12, 20:22, 26:28],
    "inferior vena cava": np.s_[0:5, 22:24, 20:22],
}
ABDOMEN = (12, 40, 50)


def write_nifti(path: Path, array: np.ndarray, spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    sitk.WriteImage(image, str(path))


def write_png(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(array, isVector=array.ndim == 3), str(path))


def read_picture(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


# ACDC


def heart(shift: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Short-axis phantom [4, 32, 40]: right ventricle 1, myocardium 2 around left ventricle 3, and its image."""
    j, i = np.mgrid[:32, :40]
    radius = np.hypot(j - 16, i - 24 - shift)
    labels = np.zeros((4, 32, 40), np.uint8)
    labels[:, (np.hypot(j - 16, i - 13 - shift) < 6)] = 1
    labels[:, radius < 9] = 2
    labels[:, radius < 5] = 3
    labels[3, labels[3] == 1] = 0  # the apex has no right ventricle
    image = np.array([30, 180, 70, 200], np.int16)[labels] + (i % 7).astype(np.int16)
    return image, labels


def add_patient(folder: Path, number: int, es: int = 12, pair: Pair | None = None) -> Path:
    """One patient folder of ACDC as the challenge packs it; ``pair`` gives image and labels of "ED" and "ES"."""
    place = folder / f"patient{number:03d}"
    place.mkdir(parents=True)
    (place / "Info.cfg").write_text(f"ED: 1\nES: {es}\nGroup: DCM\nHeight: 184.0\nNbFrame: 30\nWeight: 95.0\n")
    write_nifti(place / f"patient{number:03d}_4d.nii.gz", np.zeros((2, 4, 4), np.int16))
    for phase, frame in (("ED", 1), ("ES", es)):
        image, labels = heart(phase == "ES") if pair is None else pair(phase)
        name = f"patient{number:03d}_frame{frame:02d}"
        write_nifti(place / f"{name}.nii.gz", image, (1.5, 1.4, 10.0))
        write_nifti(place / f"{name}_gt.nii.gz", labels, (1.5, 1.4, 10.0))
    return place


def real_acdc(root: Path, patients: Mapping[int, int]) -> None:
    """Real patients of the shared images as others of the official test: number in the tree → number there."""
    images, masks = (SHARED / "acdc_cardiac_mr_CC-BY-NC-SA" / kind for kind in ("images", "masks"))
    for number, there in patients.items():
        place = add_patient(root / "testing", number)
        for phase, frame in (("ED", 1), ("ES", 12)):
            name = f"patient{number:03d}_frame{frame:02d}"
            shutil.copyfile(images / f"acdc_{there:03d}_{phase}.nii.gz", place / f"{name}.nii.gz")
            shutil.copyfile(masks / f"acdc_{there:03d}_{phase}.nii.gz", place / f"{name}_gt.nii.gz")


# Synapse


def abdomen(numbering: Mapping[int, str]) -> tuple[np.ndarray, np.ndarray]:
    """The phantom in Hounsfield units, and its labels in a data set's numbering."""
    image, labels = np.full(ABDOMEN, -1000, np.int16), np.zeros(ABDOMEN, np.uint8)
    image[:, 3:37, 2:48] = 20
    for value, name in numbering.items():
        if name in ORGANS:
            labels[ORGANS[name]] = value
            image[ORGANS[name]] = 60 + 5 * value
    return image, labels


def add_ct(root: Path, number: int, image: np.ndarray, labels: np.ndarray, spacing=(0.8, 0.8, 3.0)) -> None:
    folder = root / "RawData" / "Training"
    write_nifti(folder / "img" / f"img{number:04d}.nii.gz", image, spacing)
    write_nifti(folder / "label" / f"label{number:04d}.nii.gz", labels, spacing)


def write_h5(path: Path, image: np.ndarray, labels: np.ndarray) -> None:
    """As TransUNet's preprocessing: -125..275 HU become 0..1."""
    import h5py

    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["image"] = (np.clip(image.astype(np.float32), -125, 275) + 125) / 400
        file["label"] = labels.astype(np.float32)


def real_abdomen(patient: str = "btcv_005") -> tuple[np.ndarray, np.ndarray]:
    """Slices of one patient of the shared images, stacked, with the challenge's numbering."""
    rows = [row for row in shared_rows("btcv_abdomen_ct") if row["patient_id"] == patient]
    value_of = {name: value for value, name in SYNAPSE.items()}
    images, masks = [], []
    for row in sorted(rows, key=lambda row: row["case_id"]):
        picture, marked = (read_picture(SHARED / row[kind]) for kind in ("image", "mask"))
        labels = np.zeros_like(marked)
        for pair in row["labels"].split(";"):
            value, name = pair.split("=", 1)
            labels[marked == int(value)] = value_of[name]
        images.append(picture.astype(np.int16) * 4 - 500)
        masks.append(labels)
    return np.stack(images), np.stack(masks)


def shared_rows(source: str) -> list[dict[str, str]]:
    with (SHARED / "manifest.csv").open(newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row["source"] == source]


# COVID-QU-Ex


def chest() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Radiograph [48, 64] with two lungs and an infection: image, lung mask, infection mask."""
    image = np.full((48, 64), 170, np.uint8) + np.arange(64, dtype=np.uint8) // 4
    lungs, infection = np.zeros((48, 64), np.uint8), np.zeros((48, 64), np.uint8)
    lungs[8:40, 8:26] = lungs[8:36, 38:56] = 255
    infection[24:34, 10:22] = 255
    image[lungs > 0], image[infection > 0] = 60, 120
    return image, lungs, infection


def add_radiograph(root: Path, part: str, split: str, group: str, stem: str, arrays: Sequence[np.ndarray]) -> None:
    """A radiograph in "Lung" or "Infection Segmentation Data", with the masks that this part has."""
    image, lungs, infection = arrays
    name = f"{part} Segmentation Data"
    place = root / name / name / split / group
    write_png(place / "images" / f"{stem}.png", image)
    write_png(place / "lung masks" / f"{stem}.png", lungs)
    if part == "Infection":
        write_png(place / "infection masks" / f"{stem}.png", infection)


def real_radiographs(count: int) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Radiographs of the shared images by name, with lungs and findings, of at most 256 pixels."""
    rows = shared_rows("covid_chest_xray")
    of_image: dict[str, dict[str, str]] = {}
    for row in rows:
        kind = Path(row["mask"]).stem.rpartition("_")[2]
        of_image.setdefault(row["image"], {})[kind] = row["mask"]
    found = {}
    for image, masks in of_image.items():
        if {"lungs", "findings"} <= masks.keys() and len(found) < count:
            files = (image, masks["lungs"], masks["findings"])
            arrays = [read_picture(SHARED / file) for file in files]
            step = -(-max(arrays[0].shape) // 256)
            picture, lungs, infection = (array[::step, ::step] for array in arrays)
            masks_255 = [255 * (mask > 0).astype(np.uint8) for mask in (lungs, infection)]
            found[Path(image).stem] = (picture, masks_255[0], masks_255[1])
    return found


# A segmenter


@dataclass
class Oracle:
    """Answers with the reference, spoilt in a known way.

    Attributes
    ----------
    target
        What it has the references of.
    texts
        Structure of each text that isn't its name.
    spoil
        Structure → function of its mask.
    log
        One line for each image asked, where it is given.
    """

    target: Target
    texts: Mapping[str, str] = field(default_factory=dict)
    spoil: Mapping[str, Callable[[np.ndarray], np.ndarray]] = field(default_factory=dict)
    trained_sources: Sequence[str] = ()
    log: Path | None = None
    calls: list[str] = field(default_factory=list)

    def __call__(self, volume: Volume, names: Sequence[str]) -> Segmentation:
        case = next(case for case in self.target.cases if case.image == volume.path)
        self.calls.append(case.case_id)
        if self.log is not None:
            with self.log.open("a") as file:
                file.write(f"{case.case_id}\n")
        labels = case.read()[1]
        return Segmentation(
            volume=volume, segments=tuple(self._segment(case, labels, query) for query in resolve(names)),
            preset="oracle", weights=({"name": "head", "file": "head", "sha256": "5" * 64, "licence": "-"},),
            device="cpu", seconds={}, version="0",
            settings={"trained_sources": list(self.trained_sources), "found_min": 0.5},
        )  # fmt: skip

    def _segment(self, case: Case, labels: np.ndarray, query) -> Segment:  # type: ignore[no-untyped-def]
        name = self.texts.get(query.typed, query.typed)
        mask = np.isin(labels, [value for value, label in case.labels.items() if label == name])
        mask = self.spoil.get(name, lambda kept: kept)(mask)
        return Segment(
            typed=query.typed, name=query.name, found=bool(mask.any()), score=float(mask.any()), mask=mask,
            code=None, category=None, modifier=None, color=(200, 60, 60), slices=1,
        )  # fmt: skip


def half(mask: np.ndarray) -> np.ndarray:
    """The first half of a mask's voxels; Dice 2/3 where they are even in number."""
    places = np.flatnonzero(mask)
    kept = np.zeros(mask.size, bool)
    kept[places[: len(places) // 2]] = True
    return kept.reshape(mask.shape)


def half_dice(count: int) -> float:
    """Dice of ``half`` of so many voxels."""
    return 2 * (count // 2) / (count + count // 2)


def in_h5_numbering(labels: np.ndarray) -> np.ndarray:
    """Labels of the challenge as TransUNet's copy numbers them."""
    value_of = {name: value for value, name in H5_LABELS.items()}
    numbers = np.zeros(max(SYNAPSE) + 1, np.uint8)
    for value, name in SYNAPSE.items():
        numbers[value] = value_of.get(name, 0)
    return numbers[labels]
