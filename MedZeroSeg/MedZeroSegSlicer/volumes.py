"""What a volume node is, whether it can be segmented and if not what to do, and its voxels as the engine takes them.
The engine gets the array [k, j, i] and the IJK → LPS matrix of the volume itself, without any parent transform."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from MedZeroSegLib.errors import InputError
from MedZeroSegLib.field_of_view import FieldOfView
from MedZeroSegLib.modality import PICTURE_SUFFIXES, modality_of_dicom
from MedZeroSegLib.queries import resolve
from MedZeroSegLib.volume import SHEAR_MAX_DEGREES, shear_degrees

from .frames import frame_of
from .translation import _
from .voxel_look import GreyLevels, Question, grey_levels, look

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # its own inverse
DICOM_MODALITY_TAG, DICOM_BODY_PART_TAG = "0008,0060", "0018,0015"
SLICED_MODALITIES = ("CT", "MR", "PET", "nuclear medicine")  # one slice of these has its place in the patient
SPACING_MIN_MM = 0.01  # below it, a file in another unit (metres, cm) is likelier than such an image of a patient
EXPORTS_KEPT = 2  # files; the one before the newest may still be read


@dataclass(frozen=True)
class VolumeState:
    """What the panel says of a volume.

    Attributes
    ----------
    usable : whether it can be segmented.
    sentence : if not, why, and what to do; else empty.
    looking : whether it is still looked at, so that nothing is known yet.
    modality, modality_source : members of ``MODALITIES`` and ``MODALITY_SOURCES`` of MedZeroSegLib.volume.
    size_line : such as "512 x 512 x 100 voxels, 0.70 x 0.70 x 5.00 mm", along i, j, k.
    warnings : sentences to show once.
    dimension : 2 for pictures, radiographs and single slices of unknown kind, else 3.
    calibrated : whether the spacing is in mm.
    frames : of the sequence that it shows; 1 where it shows none.
    field_of_view : which parts of the body it cannot show.
    """

    usable: bool
    sentence: str
    modality: str | None = None
    modality_source: str | None = None
    size_line: str = ""
    warnings: tuple[str, ...] = ()
    dimension: int = 3
    calibrated: bool = True
    frames: int = 1
    field_of_view: FieldOfView = FieldOfView()
    looking: bool = False


@dataclass(frozen=True)
class VolumeExport:
    """A volume on its way to the engine: the message's "volume" entry, and the voxels that belong into its file.

    ``write`` touches no MRML, so that it may run in a thread while the window stays alive; colors become grey there.
    """

    message: dict[str, Any]
    voxels: np.ndarray

    def write(self) -> None:
        """Write the .npy of this state of the volume unless it is there; of older ones keep ``EXPORTS_KEPT``."""
        path = Path(self.message["voxels"])
        if not path.exists():
            part = path.with_suffix(".part")
            try:
                grey, _lost_colour = grey_levels(self.voxels)
                with part.open("wb") as file:
                    np.save(file, grey, allow_pickle=False)
                os.replace(part, path)
            except OSError:
                part.unlink(missing_ok=True)  # the disk may be full
                raise
        others = sorted(set(path.parent.glob("volume-*.npy")) - {path}, key=lambda other: other.stat().st_mtime)
        for other in others[: max(0, len(others) + 1 - EXPORTS_KEPT)]:
            with suppress(OSError):  # Windows deletes no file that is still mapped
                other.unlink()


def load_ahead() -> threading.Thread:
    """Load what the first volume and the first name will need in a thread, for which the window needn't wait."""

    def load() -> None:
        import_module("scipy.ndimage")
        import_module("mmap")  # of the first result
        resolve("livr")  # makes the indexes of names, also those for slips of the pen

    thread = threading.Thread(target=load, daemon=True)
    thread.start()
    return thread


def describe_volume(volume_node: Any, given: str | None = None, wait: bool = True) -> VolumeState:
    """State of a node of the volume selector, or of None.

    Parameters
    ----------
    given : modality that the user chose; wins over DICOM and over the guess.
    wait : until all voxels have been looked at; else the state says that they still are, to be asked again.
    """
    sentence = _not_an_image(volume_node) or _not_a_grid(volume_node)
    if sentence:
        return VolumeState(usable=False, sentence=sentence)
    stated = given or _modality_in_dicom(volume_node)
    question = _question(volume_node, stated)
    seen, frames = look(question, wait), (frame_of(volume_node) or (0, 1))[1]
    if seen is None or seen.levels.empty:
        text = (
            _("Looking at {name}...") if seen is None
            else _("{name} holds nothing but padding, NaN or infinity; load the image again.")
        )  # fmt: skip
        sentence = text.format(name=volume_node.GetName())
        return VolumeState(usable=False, sentence=sentence, frames=frames, looking=seen is None)
    return VolumeState(
        usable=True,
        sentence="",
        modality=seen.modality,
        modality_source="given" if given else "dicom" if stated else "guess",
        size_line=_size_line(volume_node, question.dimension, question.calibrated),
        warnings=tuple(_warnings(volume_node, seen.levels)),
        dimension=question.dimension,
        calibrated=question.calibrated,
        frames=frames,
        field_of_view=seen.field_of_view,
    )


def _question(node: Any, stated: str | None) -> Question:
    """What its voxels are to tell. The part of the body is looked at for the first frame seen of a sequence."""
    import slicer.util

    dimension, stamp = _dimension(node, stated), volume_stamp(node)
    return Question(
        stamp=stamp,
        place=(node.GetID(), node.GetImageData().GetDimensions() if frame_of(node) else stamp),
        voxels=slicer.util.arrayFromVolume(node),
        matrix=ijk_to_lps(node),
        stated=stated,
        dimension=dimension,
        calibrated=_is_calibrated(node, dimension),
        body_part=_value_in_database(node, DICOM_BODY_PART_TAG),
    )


def export_volume(volume_node: Any, folder: str | Path, given: str | None = None) -> dict[str, Any]:
    """Write the voxels [k, j, i] into a folder as .npy, ready for memory mapping.

    Returns
    -------
    The "volume" entry of the engine's "segment" message.

    Raises
    ------
    InputError
        When the volume cannot be segmented.
    """
    export = prepare_export(volume_node, folder, given)
    export.write()
    return export.message


def prepare_export(
    volume_node: Any, folder: str | Path, given: str | None = None, frame_node: Any = None
) -> VolumeExport:
    """All of ``export_volume`` but the writing. The voxels are those of the node, not copied.

    ``frame_node`` is what a sequence holds for one of its frames: voxels and grid are its, all else the volume's.
    """
    import slicer.util

    state = describe_volume(volume_node, given)
    if not state.usable:
        raise InputError(state.sentence)
    grid_node = volume_node if frame_node is None else frame_node
    stamp = volume_stamp(grid_node)
    if stamp is None:
        text = _("A frame of {name} has no voxels; load the sequence again.")
        raise InputError(text.format(name=volume_node.GetName()))
    message = {
        "voxels": str(Path(folder) / f"volume-{stamp[1]}.npy"),
        "ijk_to_lps": ijk_to_lps(grid_node).tolist(),
        "modality": state.modality,
        "modality_source": state.modality_source,
        "dimension": state.dimension,
        "calibrated": state.calibrated,
    }
    return VolumeExport(message, slicer.util.arrayFromVolume(grid_node))


def volume_stamp(volume_node: Any) -> tuple[str, int] | None:
    """Names the voxels that a node holds now; another stamp means other voxels. None when it has none or has gone."""
    if volume_node is None or volume_node.GetScene() is None or not _has_voxels(volume_node):
        return None
    return volume_node.GetID(), volume_node.GetImageData().GetPointData().GetScalars().GetMTime()


def ijk_to_lps(volume_node: Any) -> np.ndarray:
    """IJK → LPS mm [4, 4] of the volume itself, without its parent transform."""
    import slicer.util
    import vtk

    matrix = vtk.vtkMatrix4x4()
    volume_node.GetIJKToRASMatrix(matrix)
    return LPS_TO_RAS @ slicer.util.arrayFromVTKMatrix(matrix)


def under_nonlinear_transform(volume_node: Any) -> bool:
    """Whether a transform that is more than a matrix, such as a warp, lies between the volume and the world."""
    parent = volume_node.GetParentTransformNode()
    return parent is not None and not parent.IsTransformToWorldLinear()


# Whether it can be segmented


def _not_an_image(node: Any) -> str:
    """Why a node is no image, and what to do; empty when it is one."""
    if node is None:
        return _("Load an image first (drag a DICOM folder or a file here).")
    name = node.GetName()
    if node.IsA("vtkMRMLSequenceNode"):
        text = _("{name} is a sequence; choose the volume that shows its current frame.")
    elif node.IsA("vtkMRMLLabelMapVolumeNode"):
        text = _("{name} is a label map and not an image; choose the image that it was drawn on.")
    elif not node.IsA("vtkMRMLScalarVolumeNode"):
        text = _("{name} is not an image; choose a volume.")
    elif not _has_voxels(node):
        text = _("{name} has no voxels yet; wait until it is loaded, or load it again.")
    elif node.GetImageData().GetNumberOfScalarComponents() > 1 and not _is_colour(node):
        text = _(
            "{name} holds several numbers a voxel; extract one of them as a scalar volume "
            "(module Vector to Scalar Volume) and choose that."
        )
    else:
        text = ""
    return text.format(name=name)


def _not_a_grid(node: Any) -> str:
    matrix = ijk_to_lps(node)
    lengths = np.linalg.norm(matrix[:3, :3], axis=0)
    if not np.isfinite(matrix).all() or not lengths.all():
        text = _("{name} has an axis without length; correct its spacing in the Volumes module.")
    elif abs(np.linalg.det(matrix[:3, :3] / lengths)) < 1e-3:  # the engine's limit
        text = _("Two axes of {name} have the same direction; correct its geometry or load the image again.")
    elif (degrees := shear_degrees(matrix)) > SHEAR_MAX_DEGREES:
        text = _("{name} has a sheared grid, {degrees} degrees off the right angle; resample it first.")
        return text.format(name=node.GetName(), degrees=f"{degrees:.2f}")
    else:
        text = ""
    return text.format(name=node.GetName())


def _has_voxels(node: Any) -> bool:
    image = node.GetImageData()
    return image is not None and image.GetPointData().GetScalars() is not None and image.GetNumberOfPoints() > 0


def _is_colour(node: Any) -> bool:
    """Whether several numbers a voxel are colours, by the engine's rule for files: three or four bytes."""
    image = node.GetImageData()
    return image.GetNumberOfScalarComponents() in (3, 4) and image.GetScalarTypeAsString() == "unsigned char"


# What kind of image


def _modality_in_dicom(node: Any) -> str | None:
    """Modality that DICOM states: in the subject hierarchy, else in Slicer's DICOM database."""
    name = _modality_in_hierarchy(node) or _value_in_database(node, DICOM_MODALITY_TAG)
    return modality_of_dicom(name or None)


def _modality_in_hierarchy(node: Any) -> str:
    import slicer

    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(node.GetScene())
    if hierarchy is None:
        return ""
    key = slicer.vtkMRMLSubjectHierarchyConstants.GetDICOMSeriesModalityAttributeName()
    item, root = hierarchy.GetItemByDataNode(node), hierarchy.GetSceneItemID()
    while item and item != root:  # a volume made from several files lies below its series
        if name := hierarchy.GetItemAttribute(item, key):
            return str(name)
        item = hierarchy.GetItemParent(item)
    return ""


def _value_in_database(node: Any, tag: str) -> str:
    """What Slicer's DICOM database holds of a volume's first file; empty where it doesn't know it."""
    import slicer

    instances = (node.GetAttribute("DICOM.instanceUIDs") or "").split()
    database = getattr(slicer, "dicomDatabase", None)
    if not instances or database is None:
        return ""
    return str(database.instanceValue(instances[0], tag) or "")


def _dimension(node: Any, stated: str | None) -> int:
    """2 for a picture file and for one slice without a place of its own; Slicer itself keeps everything in 3D."""
    is_slice = node.GetImageData().GetDimensions()[2] == 1
    return 2 if is_slice and (_is_picture_file(node) or stated not in SLICED_MODALITIES) else 3


def _is_picture_file(node: Any) -> bool:
    storage = node.GetStorageNode()
    return bool(storage) and (storage.GetFileName() or "").lower().endswith(PICTURE_SUFFIXES)


def _is_calibrated(node: Any, dimension: int) -> bool:
    """Picture files carry no size in mm, and Slicer gives spacing 1 to what has none."""
    return not _is_picture_file(node) and not (dimension == 2 and tuple(node.GetSpacing()[:2]) == (1.0, 1.0))


def _size_line(node: Any, dimension: int, calibrated: bool) -> str:
    size = " x ".join(map(str, node.GetImageData().GetDimensions()[:dimension]))
    spacing = " x ".join(f"{mm:.2f}" if mm >= 0.1 else f"{mm:.2g}" for mm in node.GetSpacing()[:dimension])
    if not calibrated:
        return _("{size} pixels, size in mm unknown").format(size=size)
    text = _("{size} pixels, {spacing} mm") if dimension == 2 else _("{size} voxels, {spacing} mm")
    return text.format(size=size, spacing=spacing)


def _warnings(node: Any, levels: GreyLevels) -> list[str]:
    warnings = []
    if frame := frame_of(node):
        text = _("Frame {number} of {count} of a sequence.")
        warnings.append(text.format(number=frame[0] + 1, count=frame[1]))
    if under_nonlinear_transform(node):
        warnings.append(
            _(
                "{name} lies under a non-linear transform: it is segmented on its own grid, and the segments "
                "get the same transform."
            ).format(name=node.GetName())
        )
    if levels.lost_colour:
        warnings.append(_("The colors of the image are turned into grey levels."))
    if levels.not_finite:
        text = _("{count} voxels are NaN or infinite and are treated as outside the image.")
        warnings.append(text.format(count=levels.not_finite))
    if min(node.GetSpacing()) < SPACING_MIN_MM:
        text = _("A voxel of {size} mm is very small; if the file is not in mm, correct its spacing.")
        warnings.append(text.format(size=f"{min(node.GetSpacing()):.2g}"))
    return warnings
