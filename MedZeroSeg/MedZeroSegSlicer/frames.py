"""All frames of a time sequence: where their voxels are, and the sequence of segmentations beside them in the same
browser, so that image and segments change together when the user goes through the frames."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from MedZeroSegLib.errors import InputError

from .segment_io import add_result, create_segmentation
from .translation import _


def browser_of(node: Any) -> Any:
    """The sequence browser whose current frame a node shows; None when it shows none."""
    scene = node.GetScene()
    for number in range(scene.GetNumberOfNodesByClass("vtkMRMLSequenceBrowserNode")):
        browser = scene.GetNthNodeByClass(number, "vtkMRMLSequenceBrowserNode")
        if browser.GetSequenceNode(node) is not None:
            return browser
    return None


def frame_of(node: Any) -> tuple[int, int] | None:
    """Which frame, from 0, of how many a volume shows of a sequence; None when it isn't the proxy of one."""
    browser = browser_of(node)
    return None if browser is None else (browser.GetSelectedItemNumber(), browser.GetNumberOfItems())


class FrameResults:
    """Results for all frames of the sequence that a volume shows.

    They go into the segmentation sequence of the chosen segmentation if that is one of the same browser, else into a
    new one. One step of undo: everything that one object of this class has written.

    Raises
    ------
    InputError
        When the volume shows no sequence.
    """

    def __init__(self, volume: Any, segmentation: Any = None) -> None:
        self._volume, self._browser = volume, browser_of(volume)
        if self._browser is None:
            text = _("{name} is no sequence of frames any more; choose it again.")
            raise InputError(text.format(name=volume.GetName()))
        self._images = self._browser.GetSequenceNode(volume)
        self._values = self._index_values()
        self._sequence = self._browser.GetSequenceNode(segmentation) if segmentation is not None else None
        self.segmentation = segmentation if self._sequence is not None else None
        self._is_new = self._sequence is None
        self._before: dict[int, Any] = {}  # vtkSegmentation of each changed frame, as it was
        self._observers: list[tuple[Any, int]] = []
        self._own_change = False

    def _index_values(self) -> list[str]:
        master = self._browser.GetMasterSequenceNode()
        return [master.GetNthIndexValue(number) for number in range(master.GetNumberOfDataNodes())] if master else []

    @property
    def count(self) -> int:
        """Number of frames."""
        return len(self._values)

    @property
    def is_there(self) -> bool:
        """Whether the sequence is still in the scene."""
        nodes = (self._volume, self._browser, self._images)
        return all(node.GetScene() is not None for node in nodes)

    @property
    def is_same(self) -> bool:
        """Whether the sequence, which is there, still shows the volume and has the frames that it had."""
        return self._browser.GetSequenceNode(self._volume) is self._images and self._index_values() == self._values

    def image(self, frame: int) -> Any:
        """The volume node that the sequence holds for a frame, from 0."""
        return self._images.GetDataNodeAtValue(self._values[frame], False)

    def add(self, frame: int, event: Mapping[str, Any], stay_out: bool) -> bool:
        """Put the structure of a "segment" event into a frame, as ``add_result``; True when it had to make the node."""
        nodes = (self.segmentation, self._sequence)
        made = any(node is None or node.GetScene() is None for node in nodes)
        if made:
            self._make()
        with self.change():
            self._remember(frame)
            add_result(self._segments(frame), self.image(frame), event, stay_out)
        return made

    def _make(self) -> None:
        """A segmentation that shows the current frame's segments, and a sequence with an empty one for every frame."""
        scene = self._volume.GetScene()
        self.forget()
        self._is_new = True
        self.segmentation = create_segmentation(self._volume)
        self._sequence = scene.AddNewNodeByClass("vtkMRMLSequenceNode", self.segmentation.GetName())
        for copied in ("IndexName", "IndexUnit", "IndexType"):
            getattr(self._sequence, f"Set{copied}")(getattr(self._images, f"Get{copied}")())
        for frame, value in enumerate(self._values):  # a frame without one would show that of another frame
            made = self._sequence.SetDataNodeAtValue(self.segmentation, value)
            _set_grid(made, self.image(frame))
        self._browser.AddProxyNode(self.segmentation, self._sequence, False)
        self._browser.SetSaveChanges(self._sequence, True)  # what the user corrects stays in its frame

    def _segments(self, frame: int) -> Any:
        """The segmentation node that the sequence holds for a frame; one that came later than the sequence is made."""
        value = self._values[frame]
        found = self._sequence.GetDataNodeAtValue(value, True)
        if found is None:
            import slicer

            empty = slicer.vtkMRMLSegmentationNode()
            empty.SetSourceRepresentationToBinaryLabelmap()
            found = self._sequence.SetDataNodeAtValue(empty, value)
            _set_grid(found, self.image(frame))
        return found

    # Undo

    def begin_step(self) -> None:
        """There is but one step."""

    @contextmanager
    def change(self) -> Iterator[None]:
        """Surrounds writes of the module."""
        self._own_change = True
        try:
            yield
        finally:
            self._own_change = False

    @property
    def can_undo(self) -> bool:
        """Whether something was written that nobody has changed since."""
        return bool(self._before) and self._sequence.GetScene() is not None

    def undo(self) -> None:
        """Take back what was written into all frames; a sequence that was made for it goes."""
        if not self.can_undo:
            return
        before = dict(self._before)
        self.forget()
        if self._is_new:
            scene = self._sequence.GetScene()
            self._browser.RemoveSynchronizedSequenceNode(self._sequence.GetID())
            for node in (self._sequence, self.segmentation):
                if node.GetScene() is not None:
                    scene.RemoveNode(node)
            return
        for frame, segments in before.items():
            self._segments(frame).GetSegmentation().DeepCopy(segments)

    def forget(self) -> None:
        """The history ends."""
        for segments, tag in self._observers:
            segments.RemoveObserver(tag)
        self._observers, self._before = [], {}

    close = forget

    def _remember(self, frame: int) -> None:
        import slicer

        if frame in self._before:
            return
        segments, events = self._segments(frame).GetSegmentation(), slicer.vtkSegmentation
        self._before[frame] = slicer.vtkSegmentation()
        self._before[frame].DeepCopy(segments)
        self._observers += [
            (segments, segments.AddObserver(event, self._on_change))
            for event in (events.SourceRepresentationModified, events.SegmentAdded, events.SegmentRemoved)
        ]

    def _on_change(self, _caller: Any, _event: str) -> None:
        if not self._own_change:
            self.forget()  # undo never takes away what the user drew since


def _set_grid(segmentation_node: Any, image_node: Any) -> None:
    """The reference geometry of a frame, without the reference to a node, which would be one of another scene."""
    import slicer
    import vtk

    matrix = vtk.vtkMatrix4x4()
    image_node.GetIJKToRASMatrix(matrix)
    converter = slicer.vtkSegmentationConverter
    text = converter.SerializeImageGeometry(matrix, image_node.GetImageData())
    segmentation_node.GetSegmentation().SetConversionParameter(converter.GetReferenceImageGeometryParameterName(), text)
