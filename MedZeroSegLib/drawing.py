"""The state of one segment under correction: its mask, what a person drew and confirmed, and its revisions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from MedZeroSegLib.errors import SessionLost

FREE, INSIDE, OUTSIDE = 0, 1, 2  # of a voxel: the model's, or a person's
REVISIONS_KEPT = 50


@dataclass(frozen=True)
class Hints:
    """What was clicked and painted in a slice, on the canvas: bool [256, 256] inside and outside."""

    include: np.ndarray
    exclude: np.ndarray


@dataclass
class Drawing:
    """A segment on the canonical slices of its volume.

    Attributes
    ----------
    mask
        bool [n, h, w].
    drawn
        uint8 [n, h, w]: ``FREE``, ``INSIDE`` or ``OUTSIDE``; what a person drew, voxel by voxel.
    hints
        The same on the canvas, by slice.
    confirmed, absent
        Slices that a person called right, and those of them that the structure isn't in.
    before
        Packed masks of slices as they were before a person first said something of them.
    pending
        Slices of which a person said something that hasn't been carried to others yet, with their packed masks before.
    """

    mask: np.ndarray
    drawn: np.ndarray = field(init=False)
    hints: dict[int, Hints] = field(default_factory=dict)
    confirmed: frozenset[int] = frozenset()
    absent: frozenset[int] = frozenset()
    before: dict[int, np.ndarray] = field(default_factory=dict)
    pending: dict[int, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.drawn = np.zeros(self.mask.shape, np.uint8)

    def obey(self, index: int, mask: np.ndarray) -> np.ndarray:
        """A slice's mask as a person allows it: theirs where they drew, all theirs where they confirmed."""
        if index in self.confirmed:
            return self.mask[index]
        drawn = self.drawn[index]
        return (mask & (drawn != OUTSIDE)) | (drawn == INSIDE)

    def remember(self, index: int) -> None:
        """To be called before a person's word changes a slice."""
        packed = _packed(self.mask[index])
        self.before.setdefault(index, packed)
        self.pending.setdefault(index, packed)

    def mask_before(self, index: int, since_carried: bool = False) -> np.ndarray:
        """The slice's mask before a person first said something of it, bool [h, w]; or first since that was carried."""
        packed = (self.pending if since_carried else self.before).get(index)
        return self.mask[index] if packed is None else _unpacked(packed, self.mask.shape[1:])


@dataclass(frozen=True)
class _Marks:
    """All but the voxels."""

    hints: dict[int, Hints]
    confirmed: frozenset[int]
    absent: frozenset[int]
    before: dict[int, np.ndarray]
    pending: dict[int, np.ndarray]

    @staticmethod
    def of(drawing: Drawing) -> _Marks:
        return _Marks(
            dict(drawing.hints), drawing.confirmed, drawing.absent, dict(drawing.before), dict(drawing.pending)
        )

    def put(self, drawing: Drawing) -> None:
        drawing.hints, drawing.before = dict(self.hints), dict(self.before)
        drawing.confirmed, drawing.absent, drawing.pending = self.confirmed, self.absent, dict(self.pending)


@dataclass(frozen=True)
class _Page:
    """One slice: its mask, packed, and the places that a person drew."""

    mask: np.ndarray
    places: np.ndarray
    drawn: np.ndarray


@dataclass(frozen=True)
class _Step:
    """One revision: the slices that it changed, before and after."""

    pages: dict[int, tuple[_Page, _Page]]
    marks_before: _Marks
    marks_after: _Marks


class Revisions:
    """The way back and forth between the revisions of a drawing; a new one after going back replaces those ahead."""

    def __init__(self, drawing: Drawing) -> None:
        self.drawing = drawing
        self.now = 0
        self._steps: dict[int, _Step] = {}  # by the revision that each leads to; the one before it is one less
        self._open: dict[int, _Page] | None = None
        self._highest = 0
        self._parent: dict[int, int] = {}

    def touch(self, index: int) -> None:
        """To be called within a change before a slice is written."""
        assert self._open is not None, "slices change within revisions"
        if index not in self._open:
            self._open[index] = self._page(index)

    @contextmanager
    def change(self) -> Iterator[None]:
        """One revision; an error within leaves the drawing as it was before."""
        self._open, marks = {}, _Marks.of(self.drawing)
        try:
            yield
        except BaseException:
            for index, page in self._open.items():
                self._write(index, page)
            marks.put(self.drawing)
            self._open = None
            raise
        pages = {index: (before, self._page(index)) for index, before in self._open.items()}
        self._open = None
        self._forget_ahead()
        self._highest += 1
        self._parent[self._highest], self.now = self.now, self._highest
        self._steps[self.now] = _Step(pages, marks, _Marks.of(self.drawing))
        while len(self._steps) > REVISIONS_KEPT:
            del self._steps[min(self._steps)]

    def go_to(self, revision: int) -> None:
        """Make the drawing what it was at a revision; raises SessionLost where that isn't known any more."""
        line = self._line()
        if revision == self.now:
            return
        if revision not in line:
            raise SessionLost("This step of the correction isn't kept any more; start correcting again from the mask.")
        place, wanted = line.index(self.now), line.index(revision)
        for step in range(place, wanted, -1):
            taken = self._steps[line[step]]
            for index, (page, _) in taken.pages.items():
                self._write(index, page)
            taken.marks_before.put(self.drawing)
        for step in range(place + 1, wanted + 1):
            taken = self._steps[line[step]]
            for index, (_, page) in taken.pages.items():
                self._write(index, page)
            taken.marks_after.put(self.drawing)
        self.now = revision

    def changed_slices(self, revision: int) -> dict[int, np.ndarray]:
        """The slices that a revision changed, with their masks before it, bool [h, w]."""
        shape = self.drawing.mask.shape[1:]
        return {index: _unpacked(page.mask, shape) for index, (page, _) in self._steps[revision].pages.items()}

    def _line(self) -> list[int]:
        """The revisions that can be reached, oldest first."""
        if not self._steps:
            return [self.now]
        return [self._parent[min(self._steps)], *sorted(self._steps)]

    def _forget_ahead(self) -> None:
        for revision in [revision for revision in self._steps if revision > self.now]:
            del self._steps[revision]

    def _page(self, index: int) -> _Page:
        drawn = self.drawing.drawn[index].ravel()
        places = np.flatnonzero(drawn)
        return _Page(_packed(self.drawing.mask[index]), places, drawn[places])

    def _write(self, index: int, page: _Page) -> None:
        self.drawing.mask[index] = _unpacked(page.mask, self.drawing.mask.shape[1:])
        drawn = np.zeros(self.drawing.mask[index].size, np.uint8)
        drawn[page.places] = page.drawn
        self.drawing.drawn[index] = drawn.reshape(self.drawing.mask.shape[1:])


def _packed(mask: np.ndarray) -> np.ndarray:
    return np.packbits(mask)


def _unpacked(packed: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return np.unpackbits(packed, count=shape[0] * shape[1]).reshape(shape).astype(bool)
