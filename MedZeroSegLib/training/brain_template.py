"""The ICBM 2009 brain as a training case: T1 picture with grey and white matter, as the package nilearn ships it.

Fonov et al., "Unbiased average age-appropriate atlases for pediatric studies", NeuroImage 54, 2011; the average of 152
adults, so one "patient" whose outlines are smoother than anyone's.
"""

from __future__ import annotations

import csv
import importlib.util
import io
from pathlib import Path

import SimpleITK as sitk

from MedZeroSegLib.errors import InputError
from MedZeroSegLib.evaluation.manifest import COLUMNS
from MedZeroSegLib.writers import replacing

SOURCE = "icbm_2009_template"
LICENCE = "ICBM 2009 (any use with its copyright notice)"
FILE = "mni_icbm152_{}_tal_nlin_sym_09a_converted.nii.gz"
SURE = 128  # of 255: a voxel is a tissue's where the tissue's map says at least this, and more than the other's


def write_template_manifest(folder: Path) -> Path:
    """Write picture, mask and manifest.csv into ``folder``; returns the manifest.

    Raises
    ------
    InputError
        Where nilearn isn't installed, or lacks the template.
    """
    template, gray, white = (_read(part) for part in ("t1", "gm", "wm"))
    labels = sitk.Cast((gray >= SURE) & (gray > white), sitk.sitkUInt8)
    labels += sitk.Cast((white >= SURE) & (white >= gray), sitk.sitkUInt8) * 2
    folder.mkdir(parents=True, exist_ok=True)
    for name, image in (("t1", template), ("tissue", labels)):
        sitk.WriteImage(image, str(folder / f"{name}.nii.gz"), useCompression=True)
    row = {
        "case_id": SOURCE, "patient_id": SOURCE, "source": SOURCE, "modality": "MR", "image": "t1.nii.gz",
        "mask": "tissue.nii.gz", "labels": "1=gray matter;2=white matter", "licence": LICENCE, "split": "train",
    }  # fmt: skip
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerow(row)
    manifest = folder / "manifest.csv"
    with replacing(manifest) as stream:
        stream.write(text.getvalue().encode())
    return manifest


def _read(part: str) -> sitk.Image:
    found = importlib.util.find_spec("nilearn")
    places = list(found.submodule_search_locations or ()) if found else []
    for place in places:
        file = Path(place) / "datasets" / "data" / FILE.format(part)
        if file.is_file():
            return sitk.ReadImage(str(file))
    raise InputError(
        "The package nilearn, which carries the ICBM template, isn't there or is of another version; "
        "run pip install --no-deps nilearn."
    )
