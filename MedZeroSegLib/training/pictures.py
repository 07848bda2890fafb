"""Labelled cases → training pictures on the model's canvas, with augmentation, encoded once and kept on disk.

One picture is a slice as the pipeline would show it or a varied copy of it; its embedding, its label maps
and what those labels mean are stored side by side, so that training reads no image again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import track
from scipy import ndimage
from torch import Tensor

from MedZeroSegLib.canvas import fit_canvas
from MedZeroSegLib.device import SLAB_SLICES
from MedZeroSegLib.evaluation.manifest import Case, annotated_names, annotation_scheme
from MedZeroSegLib.intensity import SOFT_TISSUE_WINDOW, in_hounsfield_units, percentile_range, picture, tissue_range
from MedZeroSegLib.mask_decoder.lite_medsam import (
    DETAIL_CHANNELS,
    DETAIL_SIZE,
    EMBEDDING_CHANNELS,
    EMBEDDING_SIZE,
    IMAGE_SIZE,
    LiteMedSamModel,
)
from MedZeroSegLib.slices import slice_frame
from MedZeroSegLib.training.stored_arrays import StoredArrays
from MedZeroSegLib.volume import Volume
from MedZeroSegLib.writers import replacing

PICTURES_PER_STRUCTURE = 30  # aimed at for each source, between the two bounds below
PICTURES_MIN, PICTURES_MAX = 360, 450  # pictures a source, copies counted
PICTURES_PER_PATIENT = 30  # at most, times the square root of the source's structures
SLICES_MAX = 30  # of one volume
COPIES_MAX, VOLUME_COPIES_MAX = 10, 4  # of one picture; of one slice of a volume, whose neighbours resemble it
ZOOM_SHARE = 0.3  # of the varied copies that look at a part of the picture from nearby
EMPTY_SHARE = 0.15  # of a volume's slices without any label
CT_WINDOWS = (SOFT_TISSUE_WINDOW, (-600.0, 1500.0), (400.0, 1800.0))  # HU: soft tissue, lung, bone


@dataclass(frozen=True)
class LabelMap:
    """One label map of a picture: its row in the store and the names of its values; what the scheme marks at all."""

    row: int
    scheme: str
    values: dict[int, str]


@dataclass(frozen=True)
class Picture:
    """One encoded picture; ``row`` is its place in the stored embeddings."""

    row: int
    case_id: str
    patient_id: str
    source: str
    modality: str
    any_use: bool
    copy: int
    label_maps: tuple[LabelMap, ...]


class Rows(Protocol):
    """What training reads an array of a store by: its rows."""

    def __getitem__(self, row: int, /) -> np.ndarray: ...

    def __len__(self) -> int: ...


@dataclass(frozen=True)
class PictureStore:
    """Pictures on disk: float16 coarse [n, 256, 64, 64] and detail [n, 128, 128, 128], labels uint8 [m, 256, 256]."""

    pictures: tuple[Picture, ...]
    schemes: dict[str, tuple[str, ...]]
    coarse: Rows
    detail: Rows
    labels: Rows


class _Joined:
    """Rows of one array after those of another, neither copied."""

    def __init__(self, first: Rows, second: Rows) -> None:
        self.first, self.second = first, second

    def __getitem__(self, row: int, /) -> np.ndarray:
        before = len(self.first)
        return self.first[row] if row < before else self.second[row - before]

    def __len__(self) -> int:
        return len(self.first) + len(self.second)


def joined(first: PictureStore, second: PictureStore) -> PictureStore:
    """Both stores' pictures as one; a scheme that both have marks what either does."""
    schemes = {
        scheme: tuple(sorted({*first.schemes.get(scheme, ()), *second.schemes.get(scheme, ())}))
        for scheme in {**first.schemes, **second.schemes}
    }
    moved = [
        replace(
            picture,
            row=picture.row + len(first.coarse),
            label_maps=tuple(replace(one, row=one.row + len(first.labels)) for one in picture.label_maps),
        )
        for picture in second.pictures
    ]
    arrays = (_Joined(getattr(first, name), getattr(second, name)) for name in ("coarse", "detail", "labels"))
    return PictureStore((*first.pictures, *moved), schemes, *arrays)


def encode_pictures(cases: Sequence[Case], model: LiteMedSamModel, folder: Path, seed: int) -> PictureStore:
    """Sample, vary and encode the cases' slices into ``folder``; goes on where an interrupted run stopped.

    A folder that was begun with other cases or another seed is begun anew.
    """
    plan = _plan(cases)
    stored = StoredArrays(folder, _digest(plan, seed))
    total = sum(len(item.slices) * item.copies for item in plan)
    maps = sum(len(item.slices) * item.copies * len(item.cases) for item in plan)
    coarse = stored.array("coarse", np.float16, (total, EMBEDDING_CHANNELS, EMBEDDING_SIZE, EMBEDDING_SIZE))
    detail = stored.array("detail", np.float16, (total, DETAIL_CHANNELS, DETAIL_SIZE, DETAIL_SIZE))
    labels = stored.array("labels", np.uint8, (maps, IMAGE_SIZE, IMAGE_SIZE))
    done = stored.done
    pictures: list[Picture] = []
    map_row = 0
    for position, item in enumerate(track(plan, description="encoding", disable=done == len(plan))):
        made = _describe(item, len(pictures), map_row)
        if position >= done:
            shown, marks = _render(item, np.random.default_rng((seed, position)))
            rows = slice(len(pictures), len(pictures) + len(made))
            for piece in _pieces(rows, SLAB_SLICES):
                embedding = model.embed(shown[piece.start - rows.start : piece.stop - rows.start])
                coarse[piece] = embedding.coarse.half().cpu().numpy()
                detail[piece] = embedding.detail.half().cpu().numpy()
            labels[map_row : map_row + len(marks)] = marks
            stored.mark(position + 1)
        map_row += len(made) * len(item.cases)
        pictures += made
    schemes = {scheme: tuple(sorted(names)) for scheme, names in annotated_names(cases).items()}
    return PictureStore(tuple(pictures), schemes, coarse, detail, labels)


def render_pictures(cases: Sequence[Case], folder: Path, seed: int) -> np.ndarray:
    """The pictures of ``encode_pictures``, uint8 [n, 256, 256], row by row; kept in ``folder`` and read from there."""
    file = folder / "shown.npy"
    plan = _plan(cases)
    total = sum(len(item.slices) * item.copies for item in plan)
    if file.is_file() and len(np.load(file, mmap_mode="r")) == total:
        return np.load(file, mmap_mode="r")
    shown = []
    for position, item in enumerate(track(plan, description="rendering")):
        shown.append((_render(item, np.random.default_rng((seed, position)))[0][:, 0] * 255).round().byte().numpy())
    with replacing(file) as handle:
        np.save(handle, np.concatenate(shown))
    return np.load(file, mmap_mode="r")


@dataclass(frozen=True)
class _Item:
    """One image with all its masks, the slices to take and the copies of each."""

    cases: tuple[Case, ...]
    slices: tuple[int, ...]
    copies: int

    @property
    def shown(self) -> list[tuple[int, int]]:
        """(slice, copy) of each picture. Copy 0 shows the slice as it is; where each slice is shown once, every second
        one is varied."""
        if self.copies == 1:
            return [(index, place % 2) for place, index in enumerate(self.slices)]
        return [(index, copy) for index in self.slices for copy in range(self.copies)]


def _plan(cases: Sequence[Case]) -> list[_Item]:
    """Which slices of which images, any-use sources first; sources with few images get more slices and copies."""
    by_source: dict[str, dict[Path, list[Case]]] = {}
    for case in cases:
        by_source.setdefault(case.source, {}).setdefault(case.image, []).append(case)
    plan: list[_Item] = []
    for images in by_source.values():
        names = {name for masks in images.values() for case in masks for name in case.labels.values()}
        patients = {masks[0].patient_id for masks in images.values()}
        wanted = float(np.clip(PICTURES_PER_STRUCTURE * len(names), PICTURES_MIN, PICTURES_MAX))
        wanted = min(wanted, PICTURES_PER_PATIENT * len(patients) * len(names) ** 0.5)
        slices = {image: _labelled_slices(masks, wanted / len(images)) for image, masks in images.items()}
        copies = int(np.ceil(wanted / sum(map(len, slices.values()))))
        for image, masks in images.items():
            most = COPIES_MAX if len(slices[image]) == 1 else VOLUME_COPIES_MAX
            plan.append(_Item(tuple(masks), slices[image], min(copies, most)))
    return sorted(plan, key=lambda item: not item.cases[0].any_use)


def _digest(plan: Sequence[_Item], seed: int) -> str:
    """Names what a store holds: the same cases, slices, copies and seed give the same pictures."""
    items = [[[c.case_id, c.image.name, c.mask.name] for c in p.cases] + [list(p.slices), p.copies] for p in plan]
    return hashlib.sha256(json.dumps([seed, items], default=int).encode()).hexdigest()


def _labelled_slices(masks: Sequence[Case], wanted: float) -> tuple[int, ...]:
    """Slices spread evenly over those with a label, and a share of those without."""
    volume, labels = masks[0].read()
    if volume.shape[0] == 1:
        return (0,)
    filled = slice_frame(volume).forward(labels).any(axis=(1, 2))
    count = int(np.clip(np.ceil(wanted), 1, SLICES_MAX))
    empty = np.flatnonzero(~filled)
    chosen = _spread(np.flatnonzero(filled), count) | _spread(empty, int(round(count * EMPTY_SHARE)))
    return tuple(sorted(chosen))


def _spread(indices: np.ndarray, count: int) -> set[int]:
    if count >= len(indices):
        return set(indices.tolist())
    return set(indices[((np.arange(count) + 0.5) * len(indices) / count).astype(int)].tolist())


def _describe(item: _Item, row: int, map_row: int) -> list[Picture]:
    described = []
    first = item.cases[0]
    for number, (_, copy) in enumerate(item.shown):
        maps = tuple(
            LabelMap(map_row + number * len(item.cases) + m, annotation_scheme(case), case.labels)
            for m, case in enumerate(item.cases)
        )
        described.append(
            Picture(
                row + number,
                first.case_id,
                first.patient_id,
                first.source,
                first.modality,
                first.any_use,
                copy,
                maps,
            )
        )
    return described


def _render(item: _Item, rng: np.random.Generator) -> tuple[Tensor, np.ndarray]:
    """Pictures float32 [n, 1, 256, 256] and label maps uint8 [n·masks, 256, 256], slice by slice, copy by copy."""
    volume, _ = item.cases[0].read()
    masks = [case.read()[1] for case in item.cases]
    frame = slice_frame(volume)
    plain = frame.forward(picture(volume))
    canvas = fit_canvas(plain.shape[1:], frame.spacing[1:], 2 * IMAGE_SIZE)
    mirrored = _may_be_mirrored(item.cases)
    shown, marks = [], []
    for index, copy in item.shown:
        label_slices = [frame.forward(mask)[index : index + 1] for mask in masks]
        placed_labels = np.concatenate([canvas.place_labels(labels) for labels in label_slices])
        grey = plain[index] if copy == 0 else frame.forward(_vary_window(volume, frame, index, rng))
        placed = canvas.place(grey[None] if grey.ndim == 2 else grey)
        if copy == 0:
            matrix = torch.eye(3)[None, :2]
        else:
            matrix, placed = _random_affine(rng, mirrored, placed_labels), _vary_intensity(placed, rng)
        shown.append(_sample_picture(placed, matrix))
        marks.append(_sample_labels(placed_labels, matrix))
    return torch.cat(shown), np.concatenate(marks)


def _may_be_mirrored(cases: Sequence[Case]) -> bool:
    """Mirror images are fair where no name has a side: one hippocampus, a breast; never organs with a place."""
    return cases[0].source in ("msd_hippocampus_mr", "busi_breast_ultrasound")


def _vary_window(volume: Volume, frame: object, index: int, rng: np.random.Generator) -> np.ndarray:
    """The slice in another plausible window, uint8, as an array [k, j, i] of the slice alone."""
    axis = frame.permutation[0]  # type: ignore[attr-defined]
    position = volume.shape[axis] - 1 - index if frame.flips[0] else index  # type: ignore[attr-defined]
    pick = tuple(slice(position, position + 1) if a == axis else slice(None) for a in range(3))
    values = volume.voxels[pick].astype(np.float32)
    if volume.modality == "CT" and in_hounsfield_units(volume):
        level, width = CT_WINDOWS[rng.choice(3, p=(0.7, 0.15, 0.15))]
        low, high = level - width / 2, level + width / 2
    elif volume.modality == "CT" and rng.random() < 0.8:
        low, high = tissue_range(volume)
    else:
        low, high = percentile_range(volume)
    span = high - low
    low, high = low + span * rng.uniform(-0.25, 0.15), high + span * rng.uniform(-0.2, 0.35)
    return np.rint(np.clip((values - low) / max(high - low, 1e-6), 0, 1) * 255).astype(np.uint8)


def _vary_intensity(pictures: Tensor, rng: np.random.Generator) -> Tensor:
    """Gamma, resolution and noise; [1, 1, s, s] in [0, 1]."""
    varied = pictures.clamp(0, 1) ** float(np.exp(rng.normal(0, 0.25)))
    if rng.random() < 0.4:
        side = pictures.shape[-1]
        coarse = int(side / rng.uniform(2, 6))
        varied = F.interpolate(varied, (coarse, coarse), mode="bilinear", antialias=True, align_corners=False)
        varied = F.interpolate(varied, (side, side), mode="bicubic", align_corners=False).clamp(0, 1)
    if rng.random() < 0.4:
        noise = rng.normal(0, rng.uniform(0.01, 0.06), tuple(pictures.shape[-2:])).astype(np.float32)
        smooth = ndimage.gaussian_filter(noise, 1.0) * 3
        varied = (varied + torch.from_numpy(smooth) * (varied > 0)).clamp(0, 1)
    return varied


def _random_affine(rng: np.random.Generator, mirrored: bool, labels: np.ndarray) -> Tensor:
    """[1, 2, 3] for affine_grid: rotation up to 20°, and either scale 0.7-1.4 and shift up to 10 % of the side, or a
    look from nearby: 1.4-2.4 times as large, around some labelled pixel of ``labels`` [m, s, s]."""
    angle = np.deg2rad(rng.uniform(-20, 20))
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    marked = np.argwhere(labels.any(axis=0))
    if len(marked) and rng.random() < ZOOM_SHARE:
        scale = 1 / np.exp(rng.uniform(np.log(1.4), np.log(2.4)))
        row, column = marked[rng.integers(len(marked))]
        side = labels.shape[-1]
        centre = np.array([[(column + 0.5) * 2 / side - 1], [(row + 0.5) * 2 / side - 1]])
        shift = centre * (1 - scale) + rng.uniform(-0.3, 0.3, (2, 1)) * scale
    else:
        scale = np.exp(rng.uniform(np.log(0.72), np.log(1.4)))
        shift = rng.uniform(-0.2, 0.2, (2, 1))
    rotation *= scale
    if mirrored and rng.random() < 0.5:
        rotation[:, 0] *= -1
    return torch.tensor(np.hstack([rotation, shift]), dtype=torch.float32)[None]


def _sample_picture(placed: Tensor, matrix: Tensor) -> Tensor:
    grid = F.affine_grid(matrix, [1, 1, 2 * IMAGE_SIZE, 2 * IMAGE_SIZE], align_corners=False)
    return F.avg_pool2d(F.grid_sample(placed, grid, mode="bilinear", align_corners=False), 2)


def _sample_labels(placed: np.ndarray, matrix: Tensor) -> np.ndarray:
    """Nearest labels [m, 512, 512] → [m, 256, 256].

    A pixel's centre lies between two pixels of the finer canvas; which one is taken alternates from row to row and
    column to column, so that outlines aren't moved to one side.
    """
    grid = F.affine_grid(matrix, [1, 1, IMAGE_SIZE, IMAGE_SIZE], align_corners=False)
    side = (torch.arange(IMAGE_SIZE) % 2 - 0.5) / IMAGE_SIZE  # a quarter of a pixel, in the grid's units
    grid = grid + torch.stack(torch.broadcast_tensors(side[:, None], side[None, :]), -1)
    grid = grid.expand(len(placed), -1, -1, -1)
    values = torch.from_numpy(placed)[:, None].float()
    return F.grid_sample(values, grid, mode="nearest", align_corners=False)[:, 0].byte().numpy()


def _pieces(rows: slice, size: int) -> Iterator[slice]:
    """Consecutive pieces of ``rows``, of at most ``size``."""
    for start in range(rows.start, rows.stop, size):
        yield slice(start, min(start + size, rows.stop))
