"""The review list of a cohort as a work list: its cases in order of doubt, each loaded into the scene, looked at, and
marked as accepted or corrected. No widgets; `mask_files` reads and writes the masks. Slicer's main thread only."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from MedZeroSegLib.cohort.review import ACCEPTED, CORRECTED, OPEN, ReviewRow, mark, read_review
from MedZeroSegLib.errors import InputError

from .mask_files import LPS_TO_RAS, load_masks, remove_node, save_masks
from .scene_choice import belongs_to
from .translation import _
from .volumes import volume_stamp

GRID_TOLERANCE = 0.05  # of a voxel, between the corners of the image and those of the masks


@dataclass(frozen=True)
class WorkState:
    """What the panel says of the list.

    Attributes
    ----------
    text : such as "3 of 120, liver: expected Dice 0.52."
    tooltip : the case's name and the list's file.
    left : cases that are open.
    loaded : a case is in the scene and waits to be marked.
    """

    text: str
    tooltip: str
    left: int
    loaded: bool


class WorkList:
    """The cases of a `review.csv`, of which one is in the scene.

    >>> work = WorkList(Path("results/review.csv"))
    >>> work.next()
    True
    >>> work.accept()

    Attributes
    ----------
    row : the present case; None before the first.
    volume, segmentation : its nodes; None while it isn't loaded.

    Raises
    ------
    InputError
        When there is no such list, or it makes no sense.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.row: ReviewRow | None = None
        self.volume: Any = None
        self.segmentation: Any = None
        self._rows = read_review(file)
        self._loaded_as: tuple[Any, ...] = ()
        self._since = 0.0

    @property
    def state(self) -> WorkState:
        """Where the user is in the list, as it was last read."""
        left = sum(row.status == OPEN for row in self._rows)
        if self.row is None:
            text = _("{left} of {total} cases are open.").format(left=left, total=len(self._rows))
            return WorkState(text, str(self.file), left, False)
        number = next((number for number, row in enumerate(self._rows, 1) if row.case == self.row.case), 0)
        text = _("{number} of {total}, {reason}")
        values = {"number": number, "total": len(self._rows), "reason": self.row.reason or self.row.case}
        frame = "" if self.row.frame is None else _(", frame {frame}").format(frame=self.row.frame)
        return WorkState(text.format(**values), f"{self.row.case}{frame}\n{self.file}", left, self.is_loaded)

    @property
    def is_loaded(self) -> bool:
        """Whether the present case's image and masks are in the scene."""
        nodes = (self.volume, self.segmentation)
        return all(node is not None and node.GetScene() is not None for node in nodes)

    @property
    def is_changed(self) -> bool:
        """Whether somebody has changed image or masks since they were loaded or saved."""
        return self.is_loaded and self._stamp() != self._loaded_as

    def next(self) -> bool:
        """Go to the next open case, from the present one on and then from the top, and load it.

        What the list itself loaded before leaves the scene, if nobody has changed it and nothing else needs it.

        Returns
        -------
        Whether there was an open case.

        Raises
        ------
        InputError
            With one sentence that names the file, when image or masks are missing or can't be read. The case is then
            the present one, without nodes, and ``next`` goes on behind it.
        """
        self._rows = read_review(self.file)
        place = next((n for n, row in enumerate(self._rows) if self.row and row.case == self.row.case), -1)
        behind = [*self._rows[place + 1 :], *self._rows[: place + 1]]
        row = next((row for row in behind if row.status == OPEN), None)
        if row is None:
            return False
        self._clear()
        self.row = row
        self._load(row)
        return True

    def accept(self) -> None:
        """Note that the present case's masks are right as they are in their file.

        Raises
        ------
        InputError
            When no case is loaded, or its masks were changed in the scene, which would be lost.
        InstallationError
            When the list can't be written.
        """
        self._require_loaded()
        if self.is_changed:
            text = _("The masks of {case} were changed here; press Corrected to save them, or undo the changes.")
            raise InputError(text.format(case=self._present().case))
        self._mark(ACCEPTED)

    def correct(self) -> None:
        """Save the present case's masks as they are in the scene over their file, whole or not at all, and note it.

        Raises
        ------
        InputError
            When no case is loaded, its image was changed, or the masks don't fit into their file.
        InstallationError
            When masks or list can't be written.
        """
        self._require_loaded()
        save_masks(self.segmentation, self.volume, self._labels_of(self._present()))
        self._loaded_as = self._stamp()
        self._mark(CORRECTED)

    def _present(self) -> ReviewRow:
        if self.row is None:
            raise InputError(_("No case is loaded; press Next."))
        return self.row

    def _require_loaded(self) -> None:
        if not self.is_loaded:
            raise InputError(_("No case is loaded; press Next."))

    def _mark(self, status: str) -> None:
        now = time.monotonic()
        self.row = mark(self.file, self._present().case, status, now - self._since)
        self._since = now  # what comes now is no longer counted twice
        self._rows = read_review(self.file)

    # Into the scene and out of it

    def _load(self, row: ReviewRow) -> None:
        image, labels = self._image_of(row), self._labels_of(row)
        volume = _load_image(image, row.case) if row.frame is None else _load_frame(image, row.case, row.frame)
        try:
            segmentation = load_masks(labels, volume, row.case)
        except BaseException:
            remove_node(volume)
            raise
        if not _same_grid(segmentation, volume):
            for node in (segmentation, volume):
                remove_node(node)
            text = _(
                "'{image}' lies elsewhere than its masks '{labels}': it was replaced, or Slicer reads it otherwise; "
                "look at it by hand, or press Next."
            )
            raise InputError(text.format(image=image, labels=labels))
        segmentation.SetReferenceImageGeometryParameterFromVolumeNode(volume)
        segmentation.CreateDefaultDisplayNodes()
        self.volume, self.segmentation = volume, segmentation
        self._loaded_as, self._since = self._stamp(), time.monotonic()

    def _image_of(self, row: ReviewRow) -> Path:
        image = self.file.parent / row.image  # absolute, but for lists that were moved by hand
        if not row.image or not image.exists():
            text = _("The image '{file}' of {case} is missing or was moved; put it back, or press Next.")
            raise InputError(text.format(file=row.image, case=row.case))
        return image

    def _labels_of(self, row: ReviewRow) -> Path:
        labels = self.file.parent / row.labels
        if not row.labels or not labels.is_file():
            text = _("The masks '{file}' of {case} are missing or were moved; run the cohort again, or press Next.")
            raise InputError(text.format(file=row.labels, case=row.case))
        return labels

    def _clear(self) -> None:
        """Take out of the scene what this list loaded, unless that would lose anything."""
        if self.is_loaded and not self.is_changed:
            volume, segmentation = self.volume, self.segmentation
            scene = volume.GetScene()
            remove_node(segmentation)
            count = scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode")
            others = (scene.GetNthNodeByClass(number, "vtkMRMLSegmentationNode") for number in range(count))
            if not any(belongs_to(other, volume) for other in others):
                remove_node(volume)
        self.volume = self.segmentation = None

    def _stamp(self) -> tuple[Any, ...]:
        """Another one means that voxels, names, colors or tags have changed, or that something was moved."""
        segmentation = self.segmentation.GetSegmentation()
        segments = tuple(_segment_stamp(self.segmentation, name) for name in segmentation.GetSegmentIDs())
        transforms = tuple(node.GetTransformNodeID() for node in (self.volume, self.segmentation))
        return volume_stamp(self.volume), _ijk_to_ras(self.volume).tobytes(), transforms, segments


def _segment_stamp(segmentation_node: Any, segment_id: str) -> tuple[Any, ...]:
    import vtk

    segment = segmentation_node.GetSegmentation().GetSegment(segment_id)
    labelmap = segmentation_node.GetBinaryLabelmapInternalRepresentation(segment_id)
    scalars = labelmap.GetPointData().GetScalars() if labelmap is not None else None
    tags = vtk.reference("")
    terminology = str(tags) if segment.GetTag(segment.GetTerminologyEntryTagName(), tags) else ""
    voxels = scalars.GetMTime() if scalars is not None else 0
    return segment_id, segment.GetName(), segment.GetColor(), segment.GetLabelValue(), terminology, voxels


def _load_image(image: Path, name: str) -> Any:
    """The image as a new volume node, shown as Slicer shows what it loads."""
    import slicer
    import vtk

    names = vtk.vtkStringArray()
    files = _files_of(image)
    for file in files:
        names.InsertNextValue(str(file))
    logic = slicer.modules.volumes.logic()
    listed = (names,) if len(files) > 1 else ()
    volume = logic.AddArchetypeVolume(str(files[0]), name, 0, *listed)
    if volume is None or volume.GetImageData() is None:
        raise InputError(
            _("'{image}' cannot be read as an image; replace the file, or press Next.").format(image=image)
        )
    return volume


def _load_frame(image: Path, name: str, frame: int) -> Any:
    """One frame of an image that holds several as a new volume node, read as the engine has read it."""
    import slicer.util

    from MedZeroSegLib.volume_io import read_volume

    files = _files_of(image)
    read = read_volume(image, frame=frame, files=files if image.is_dir() or len(files) > 1 else None)
    return slicer.util.addVolumeFromArray(read.voxels, LPS_TO_RAS @ read.ijk_to_lps, name)


def _files_of(image: Path) -> list[Path]:
    """The files of an image: those of the DICOM series in a folder, or of which one file is given, or that file."""
    from MedZeroSegLib.cohort.dicom_series import find_series
    from MedZeroSegLib.cohort.image_files import list_files, may_be_dicom

    if not image.is_dir() and not may_be_dicom(image):
        return [image]
    around = list_files(image if image.is_dir() else image.parent).files
    series = find_series(file for file in around if may_be_dicom(file)).series
    if image.is_dir() and len(series) != 1:
        text = _("'{folder}' holds {count} DICOM series and not one; load the right one by hand, or press Next.")
        raise InputError(text.format(folder=image, count=len(series)))
    own = [each for each in series if image.is_dir() or image in each.files]
    return list(own[0].files) if own else [image]


def _same_grid(segmentation_node: Any, volume_node: Any) -> bool:
    """Whether the masks' reference geometry has the corners of the image; their axes may run another way."""
    import slicer
    import slicer.util
    import vtk

    parameter = slicer.vtkSegmentationConverter.GetReferenceImageGeometryParameterName()
    text = segmentation_node.GetSegmentation().GetConversionParameter(parameter)
    if not text:
        return True  # nobody says otherwise
    geometry, matrix = slicer.vtkOrientedImageData(), vtk.vtkMatrix4x4()
    slicer.vtkSegmentationConverter.DeserializeImageGeometry(text, geometry, False)
    geometry.GetImageToWorldMatrix(matrix)
    image = _corners(volume_node.GetImageData().GetDimensions())
    masks = np.linalg.solve(_ijk_to_ras(volume_node), slicer.util.arrayFromVTKMatrix(matrix)) @ _corners(
        geometry.GetDimensions()
    )
    apart = np.abs(image[:3, :, None] - masks[:3, None, :]).max(axis=0)  # voxels, between any two corners
    return bool(max(apart.min(axis=0).max(), apart.min(axis=1).max()) <= GRID_TOLERANCE)


def _corners(size: tuple[int, int, int]) -> np.ndarray:
    """Homogeneous IJK of the eight outermost voxels [4, 8]."""
    return np.array([[*np.multiply(np.subtract(size, 1), corner), 1.0] for corner in np.ndindex(2, 2, 2)]).T


def _ijk_to_ras(volume_node: Any) -> np.ndarray:
    import slicer.util
    import vtk

    matrix = vtk.vtkMatrix4x4()
    volume_node.GetIJKToRASMatrix(matrix)
    return slicer.util.arrayFromVTKMatrix(matrix)
