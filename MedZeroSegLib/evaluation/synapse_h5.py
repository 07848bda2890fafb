"""Synapse CTs as TransUNet preprocessed them: caseNNNN.npy.h5 with ``image`` and ``label`` [D, H, W].

Their numbering isn't the challenge's, differs between copies, and spacing and orientation are lost: all is checked,
and the patient's axes are told by the places of the organs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from MedZeroSegLib.errors import InputError, InstallationError
from MedZeroSegLib.evaluation.dataset_files import check_values
from MedZeroSegLib.evaluation.manifest import Case
from MedZeroSegLib.volume import Volume

TITLE = "TransUNet's copy of Synapse"
H5_FILE = re.compile(r"case(\d{4})(?:\.npy)?\.h5", re.IGNORECASE)
H5_LABELS = {
    1: "aorta", 2: "gallbladder", 3: "left kidney", 4: "right kidney", 5: "liver", 6: "pancreas", 7: "spleen",
    8: "stomach",
}  # fmt: skip
GALLBLADDER, LEFT_KIDNEY, RIGHT_KIDNEY, LIVER, PANCREAS, SPLEEN, STOMACH = 2, 3, 4, 5, 6, 7, 8
HU_LOW, HU_HIGH = -125.0, 275.0  # what the intensities 0 and 1 were [TransUNet, datasets/README.md]
RESCALE_TOLERANCE = 0.01  # of intensities beyond 0..1


@dataclass(frozen=True)
class H5Case(Case):
    """One h5 volume; image and mask are the same file."""

    def read(self) -> tuple[Volume, np.ndarray]:
        image, labels = (_array(self.image, name) for name in ("image", "label"))
        if image.shape != labels.shape or image.ndim != 3:
            raise InputError(f"{self.image} has an image {image.shape} and labels {labels.shape}; both are D, H, W.")
        if image.min() < -RESCALE_TOLERANCE or image.max() > 1 + RESCALE_TOLERANCE:
            raise InputError(f"{self.image} has intensities outside 0..1; bring TransUNet's own file.")
        labels = labels.astype(np.uint16)
        check_values(labels, self, TITLE)
        _check_numbering(labels, self.image)
        voxels = (image.astype(np.float32) * (HU_HIGH - HU_LOW) + HU_LOW).round().astype(np.int16)
        matrix = np.eye(4)
        matrix[:3, :3] = patient_axes(labels)
        return Volume(voxels, matrix, "CT", calibrated=False, path=self.image), labels

    def read_labels(self, volume: Volume) -> np.ndarray:
        return _array(self.mask, "label").astype(np.uint16)


def patient_axes(labels: np.ndarray) -> np.ndarray:
    """Columns: the directions of i, j and k in LPS, each along an axis of the patient, told by the organs.

    The spleen lies to the left of the liver, the kidneys behind liver, stomach and pancreas and below liver and
    spleen; where organs are missing, as in radiological slices from inferior to superior.
    """
    spleen, liver, front, kidneys, above = (
        _centre(labels, values)
        for values in (
            (SPLEEN,), (LIVER,), (LIVER, STOMACH, PANCREAS), (LEFT_KIDNEY, RIGHT_KIDNEY), (LIVER, SPLEEN),
        )
    )  # fmt: skip
    left = spleen - liver if spleen is not None and liver is not None else np.array([0.0, 0.0, 1.0])
    back = kidneys - front if kidneys is not None and front is not None else np.array([0.0, 1.0, 0.0])
    up = above - kidneys if kidneys is not None and above is not None else np.array([1.0, 0.0, 0.0])
    across = 1 if abs(left[1]) > abs(left[2]) else 2  # array axis of left and right; slices lie along 0
    deep = 3 - across
    columns = np.zeros((3, 3))
    columns[0, 2 - across] = np.sign(left[across]) or 1.0
    columns[1, 2 - deep] = np.sign(back[deep]) or 1.0
    columns[2, 2] = np.sign(up[0]) or 1.0
    return columns


def _check_numbering(labels: np.ndarray, path: Path) -> None:
    sizes = np.bincount(labels.ravel(), minlength=max(H5_LABELS) + 1)
    if not sizes[1:].any():
        return
    kidneys = [sizes[value] for value in (LEFT_KIDNEY, RIGHT_KIDNEY) if sizes[value]]
    if int(np.argmax(sizes[1:])) + 1 != LIVER or (kidneys and sizes[GALLBLADDER] > min(kidneys)):
        raise InputError(
            f"{path} isn't numbered as TransUNet's volumes are (1 aorta, 2 gallbladder, 3 left kidney, 4 right kidney, "
            "5 liver, 6 pancreas, 7 spleen, 8 stomach): the sizes don't fit; use the original RawData instead."
        )


def _centre(labels: np.ndarray, values: tuple[int, ...]) -> np.ndarray | None:
    mask = np.isin(labels, values)
    return np.array(ndimage.center_of_mass(mask)) if mask.any() else None


def _array(path: Path, name: str) -> np.ndarray:
    try:
        import h5py
    except ImportError as problem:
        raise InstallationError("h5 volumes need the package h5py; install it with `pip install h5py`.") from problem
    try:
        with h5py.File(path, "r") as file:
            return np.asarray(file[name][:])
    except (OSError, KeyError) as problem:
        raise InputError(f"{path} holds no array {name!r}; bring TransUNet's caseNNNN.npy.h5.") from problem
