"""A cohort's masks in nnU-Net's raw layout: imagesTr, labelsTr with an ignore label, and dataset.json.

https://github.com/MIC-DKFZ/nnUNet/blob/master/documentation/dataset_format.md and ignore_label.md
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from MedZeroSegLib.training.pseudo_labels import PseudoLabels, volumes_of
from MedZeroSegLib.training.variation import IGNORED
from MedZeroSegLib.volume import Volume
from MedZeroSegLib.writers import replacing

DATASET = "Dataset501_MedZeroSeg"


def write_nnunet_raw(labels: PseudoLabels, folder: Path, tell: Callable[[str], None]) -> Path:
    """Write the cases in which all structures have usable masks, for elsewhere nnU-Net would take them for background.

    Doubtful voxels get the ignore label, the highest. Returns the data set's folder.

    Raises
    ------
    InputError, InstallationError
        When the folder can't be written to.
    """
    place, structures = folder / DATASET, labels.structures
    ignore, written, modality = len(structures) + 1, 0, "CT"
    for case, volume, marks in volumes_of(labels, tell):
        if set(case.trust) != set(structures):
            continue
        image = np.ascontiguousarray(volume.voxels)
        _write(place / "imagesTr" / f"{case.name}_0000.nii.gz", image, volume)
        marks[marks == IGNORED] = ignore
        _write(place / "labelsTr" / f"{case.name}.nii.gz", marks, volume)
        written, modality = written + 1, volume.modality
    if written < len(labels.cases):
        tell(f"{len(labels.cases) - written} cases lack a mask of some structure and stay out of {DATASET}.")
    content = {
        "channel_names": {"0": modality},
        "labels": {"background": 0, **{name: number for number, name in enumerate(structures, 1)}, "ignore": ignore},
        "numTraining": written,
        "file_ending": ".nii.gz",
        "description": f"Masks of {labels.teacher['preset']}, unchecked; for research.",
    }
    with replacing(place / "dataset.json") as file:
        file.write((json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode("utf-8"))
    return place


def _write(path: Path, voxels: np.ndarray, volume: Volume) -> None:
    """A NIfTI file on the volume's grid, written atomically."""
    image = sitk.GetImageFromArray(voxels)
    matrix, spacing = volume.ijk_to_lps, volume.spacing
    image.SetSpacing([float(step) for step in spacing])
    image.SetDirection((matrix[:3, :3] / np.array(spacing)).ravel().tolist())
    image.SetOrigin(matrix[:3, 3].tolist())
    part = path.with_name(f".part-{path.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(part), True)
    with replacing(path) as file:
        file.write(part.read_bytes())
    part.unlink()
