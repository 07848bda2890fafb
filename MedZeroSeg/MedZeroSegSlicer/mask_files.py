"""Masks of a cohort's case from their file into the scene, and corrected ones back into it: .seg.nrrd by Slicer's own
storage, NIfTI label maps with the table beside them. A file is replaced as a whole or not at all."""

from __future__ import annotations

import gzip
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from MedZeroSegLib.errors import InputError, InstallationError
from MedZeroSegLib.extent import crop, mask_extent
from MedZeroSegLib.segment_tags import TERMINOLOGY_TAG, terminology_entry
from MedZeroSegLib.vocabulary import SIDE_CODES, Code, vocabulary
from MedZeroSegLib.writers import TABLE_SUFFIX, replacing

from .segment_io import FILL_OPACITY
from .segment_voxels import write_segment
from .translation import _

SEG_NRRD = ".seg.nrrd"
VALUE_TAG = "MedZeroSeg.LabelValue"  # of a segment in the label map that it came from
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
# https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h: where the fields lie that are needed to find the voxels.
DATATYPE_AT, OFFSET_AT = 70, 108
DATATYPES = {2: "u1", 512: "<u2", 768: "<u4"}


def load_masks(labels: Path, volume_node: Any, name: str) -> Any:
    """The masks of an image as a new segmentation node.

    Raises
    ------
    InputError
        When the file can't be read.
    """
    if labels.name.lower().endswith(SEG_NRRD):
        return _load_seg_nrrd(labels, volume_node, name)
    return _load_label_map(labels, volume_node, name)


def save_masks(segmentation_node: Any, volume_node: Any, labels: Path) -> None:
    """Replace the file of the masks by what the segmentation holds now.

    Raises
    ------
    InputError
        When the file can't take it, as a label map of 8 bits can't take more than 255 segments.
    InstallationError
        When the system refuses the writing.
    """
    if labels.name.lower().endswith(SEG_NRRD):
        _save_seg_nrrd(segmentation_node, labels)
    else:
        _save_label_map(segmentation_node, volume_node, labels)


def remove_node(node: Any) -> None:
    """Take a node out of the scene with what only belongs to it."""
    storage, scene = node.GetStorageNode(), node.GetScene()
    displays = [node.GetNthDisplayNode(number) for number in range(node.GetNumberOfDisplayNodes())]
    for each in (node, storage, *displays):
        if each is not None and each.GetScene() is not None:
            scene.RemoveNode(each)


def _unreadable(labels: Path) -> InputError:
    return InputError(_("'{file}' cannot be read as masks; run the cohort again, or press Next.").format(file=labels))


# .seg.nrrd


def _load_seg_nrrd(labels: Path, volume_node: Any, name: str) -> Any:
    scene = volume_node.GetScene()
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", scene.GetUniqueNameByString(_masks_of(name)))
    node.AddDefaultStorageNode(str(labels))
    if not node.GetStorageNode().ReadData(node):
        remove_node(node)
        raise _unreadable(labels)
    return node


def _save_seg_nrrd(segmentation_node: Any, labels: Path) -> None:
    """Slicer writes by name and not into an open file, so that the new file gets a hidden name first."""
    part = labels.with_name(f".{uuid.uuid4().hex}{SEG_NRRD}")
    storage = segmentation_node.GetStorageNode()
    try:
        storage.SetFileName(str(part))
        if not storage.WriteData(segmentation_node) or not part.is_file():
            text = _("'{file}' cannot be written; see that its folder has room and that you may write to it.")
            raise InstallationError(text.format(file=labels))
        os.replace(part, labels)
    except OSError as error:
        text = _("'{file}' cannot be written ({reason}); see that its folder has room and that you may write to it.")
        reason = (error.strerror or "no reason given").lower()
        raise InstallationError(text.format(file=labels, reason=reason)) from error
    finally:
        storage.SetFileName(str(labels))
        with suppress(OSError):
            part.unlink()


# NIfTI label maps


def _load_label_map(labels: Path, volume_node: Any, name: str) -> Any:
    _header, values = _read_label_map(labels)
    rows = _table(labels)["labels"]
    scene = volume_node.GetScene()
    with _grid(labels) as grid:
        node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", scene.GetUniqueNameByString(_masks_of(name)))
        node.SetSourceRepresentationToBinaryLabelmap()
        node.SetReferenceImageGeometryParameterFromVolumeNode(grid)
        node.CreateDefaultDisplayNodes()
        node.GetDisplayNode().SetOpacity2DFill(FILL_OPACITY)
        values = values.reshape(grid.GetImageData().GetDimensions()[::-1])
        for row in rows:
            _add_segment(node, grid, row, values == row["value"])
    return node


def _add_segment(segmentation_node: Any, grid: Any, row: Mapping[str, Any], mask: np.ndarray) -> None:
    segmentation = segmentation_node.GetSegmentation()
    segment_id = segmentation.AddEmptySegment("", row["name"], [part / 255 for part in row["color"]])
    segment = segmentation.GetSegment(segment_id)
    segment.SetNameAutoGenerated(False)
    segment.SetColorAutoGenerated(False)
    segment.SetTag(VALUE_TAG, str(row["value"]))
    if entry := _terminology_of(row):
        segment.SetTag(TERMINOLOGY_TAG, entry)
    if mask.any():
        box = mask_extent(mask)
        write_segment(segmentation_node, grid, segment_id, crop(mask, box), box)


@contextmanager
def _grid(labels: Path) -> Iterator[Any]:
    """A volume node for a while whose voxels lie as those of the file, in the same order.

    Slicer's own reader turns the slices of a left-handed grid around, so that its indices aren't those of the file.
    """
    import SimpleITK as sitk
    import slicer.util

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(labels))
    try:
        reader.ReadImageInformation()
    except RuntimeError as problem:
        raise _unreadable(labels) from problem
    rank, ijk_to_lps = reader.GetDimension(), np.eye(4)  # a picture's label map is one of two dimensions
    ijk_to_lps[:rank, :rank] = np.reshape(reader.GetDirection(), (rank, rank)) * reader.GetSpacing()
    ijk_to_lps[:rank, 3] = reader.GetOrigin()
    shape = (*reader.GetSize(), 1)[:3][::-1]
    kind = "vtkMRMLLabelMapVolumeNode"
    node = slicer.util.addVolumeFromArray(np.zeros(shape, np.uint8), LPS_TO_RAS @ ijk_to_lps, labels.name, kind)
    try:
        yield node
    finally:
        remove_node(node)


def _save_label_map(segmentation_node: Any, volume_node: Any, labels: Path) -> None:
    """The file's own header stays, byte for byte, and with it the grid; where several overlap, the smallest wins."""
    header, before = _read_label_map(labels)
    rows = {row["value"]: row for row in _table(labels)["labels"]}
    with _grid(labels) as grid:
        masks = list(_masks(segmentation_node, grid, rows))
    values = np.zeros_like(before)
    if masks and max(row["value"] for row, _mask in masks) > np.iinfo(values.dtype).max:
        text = _("'{file}' has no room for so many segments; remove those that you have added.")
        raise InputError(text.format(file=labels))
    for row, mask in sorted(masks, key=lambda pair: (-pair[0]["voxels"], pair[0]["name"])):
        values[mask] = row["value"]
    for row, _mask in masks:
        row["voxels_in_map"] = int(np.count_nonzero(values == row["value"]))
    claims = sum((mask.astype(np.uint16) for _row, mask in masks), np.zeros(before.shape, np.uint16))
    table = _table(labels)
    table["labels"] = [row for row, _mask in masks]
    table["not_found"] = [row["name"] for row, _mask in masks if not row["found"]]
    table["overlap"] = {**table["overlap"], "voxels": int(np.count_nonzero(claims > 1))}
    with replacing(labels) as file:
        content = header + values.tobytes()
        file.write(gzip.compress(content, 6, mtime=0) if labels.name.lower().endswith(".gz") else content)
        file.flush()
        with replacing(_table_file(labels)) as table_file:
            table_file.write((json.dumps(table, ensure_ascii=False, indent=2) + "\n").encode())


def _masks(
    segmentation_node: Any, grid: Any, known: Mapping[int, dict[str, Any]]
) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    """For each segment its row of the table, with what is true now, and its voxels as a bool array [voxels]."""
    import slicer.util
    import vtk

    segmentation = segmentation_node.GetSegmentation()
    free = max(known, default=0) + 1
    for segment_id in segmentation.GetSegmentIDs():
        segment, value = segmentation.GetSegment(segment_id), vtk.reference("")
        number = int(str(value)) if segment.GetTag(VALUE_TAG, value) else 0
        row = known.get(number)
        if row is None:
            number, free = free, free + 1
            row = {"value": number, "typed": segment.GetName(), "code": None, "side": None}
        mask = slicer.util.arrayFromSegmentBinaryLabelmap(segmentation_node, segment_id, grid)
        inside = np.zeros(grid.GetImageData().GetNumberOfPoints(), bool) if mask is None else mask.ravel() > 0
        count = int(np.count_nonzero(inside))
        color = [round(255 * part) for part in segment.GetColor()]
        yield {**row, "name": segment.GetName(), "found": count > 0, "color": color, "voxels": count}, inside


def _read_label_map(labels: Path) -> tuple[bytes, np.ndarray]:
    """Header, byte for byte, and values, flat in the order of the file, of a label map as the engine writes it."""
    try:
        content = labels.read_bytes()
        content = gzip.decompress(content) if labels.name.lower().endswith(".gz") else content
        offset = int(np.frombuffer(content, "<f4", 1, OFFSET_AT)[0])
        dtype = DATATYPES[int(np.frombuffer(content, "<i2", 1, DATATYPE_AT)[0])]
        return content[:offset], np.frombuffer(content, dtype, offset=offset)
    except (OSError, EOFError, ValueError, KeyError) as problem:
        raise _unreadable(labels) from problem


def _table_file(labels: Path) -> Path:
    stem = labels.name.removesuffix(".gz").removesuffix(".nii")
    return labels.with_name(stem + TABLE_SUFFIX)


def _table(labels: Path) -> dict[str, Any]:
    try:
        return json.loads(_table_file(labels).read_bytes())
    except (OSError, ValueError) as problem:
        raise _unreadable(_table_file(labels)) from problem


def _terminology_of(row: Mapping[str, Any]) -> str | None:
    """Serialised entry of a row of the table, which holds no category."""
    structures = vocabulary()
    structure = structures.get(row["name"]) or structures.get(row["name"].partition(" ")[2])
    if row["code"] is None or structure is None:
        return None
    return terminology_entry(structure.category, Code(**row["code"]), SIDE_CODES.get(row["side"] or ""))


def _masks_of(name: str) -> str:
    return _("{name} masks").format(name=name)
