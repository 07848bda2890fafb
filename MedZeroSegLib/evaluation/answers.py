"""The masks that a segmenter gave, kept beside the scores: small, so that pictures and measures can be made later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from MedZeroSegLib.errors import InputError
from MedZeroSegLib.evaluation.manifest import Case
from MedZeroSegLib.extent import crop, mask_extent
from MedZeroSegLib.writers import replacing


def answers_path(folder: Path, image: Sequence[Case]) -> Path:
    """Where an image's masks are kept."""
    return folder / f"{image[0].source}_{image[0].case_id}.npz"


def write_answers(path: Path, masks: Mapping[str, np.ndarray]) -> None:
    """Write masks bool [k, j, i] of one image by name; raises InputError or InstallationError."""
    content: dict[str, np.ndarray] = {"names": np.array(list(masks), np.str_)}
    for number, mask in enumerate(masks.values()):
        extent = mask_extent(mask)
        content[f"extent_{number}"] = np.array(extent, np.int32)
        content[f"voxels_{number}"] = np.packbits(crop(mask, extent))
    with replacing(path) as file:
        np.savez_compressed(file, **content)  # type: ignore[arg-type]


def read_answers(path: Path, shape: tuple[int, int, int]) -> dict[str, np.ndarray]:
    """Masks bool [k, j, i] by name, on a grid of ``shape``.

    Raises
    ------
    InputError
        When the file isn't one of ``write_answers`` for such a grid.
    """
    try:
        with np.load(path) as content:
            masks = {}
            for number, name in enumerate(content["names"]):
                mask = np.zeros(shape, bool)
                inside = crop(mask, tuple(content[f"extent_{number}"].tolist()))
                inside[:] = np.unpackbits(content[f"voxels_{number}"], count=inside.size).reshape(inside.shape)
                masks[str(name)] = mask
    except (OSError, ValueError, KeyError) as problem:
        raise InputError(f"{path} holds no masks of this image; remove the folder and measure anew.") from problem
    return masks
