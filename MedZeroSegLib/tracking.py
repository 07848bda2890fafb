"""Objects followed from slice to slice: each is prompted where the saliency shows it, and from its believed neighbours.

An object is a component in 3D, so that it keeps its identity across slices. Where no candidate is believed, the
saliency's own outline stands.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy import ndimage
from scipy.special import expit
from torch import Tensor

from MedZeroSegLib.candidates import candidate_score, soft_dice
from MedZeroSegLib.mask_decoder.decoder import BOX, MASK, POINTS, Prompted
from MedZeroSegLib.point_prompts import needs_points, points_of
from MedZeroSegLib.prompts import LOGIT_MAX, box_around, mask_prompt
from MedZeroSegLib.propagation import Refined
from MedZeroSegLib.saliency import FOUND_SHARE_MIN, LOST_SHARE_MAX, Saliency

OBJECTS_MAX = 8  # of one structure, the largest first
LEAST_PIXELS = 24  # of an object in its largest slice; smaller ones keep the saliency's outline
BELIEVED_MIN = 0.3  # score of a candidate
SEEDS = 3  # best slices of an object, from which it is followed both ways
NEIGHBOUR_DICE_MIN = 0.5  # soft, with the neighbour's mask or with the saliency
REJECTS_MAX = 2  # in a row, then following stops
PROMPTS_A_CALL = 8
CONNECTED = np.ones((3, 3, 3), bool)


@dataclass(frozen=True)
class Attempt:
    """A prompt for one object in one slice."""

    row: int
    box: tuple[float, float, float, float]
    mask: np.ndarray  # logits [s, s]
    share: np.ndarray  # the object's own saliency [s, s], 0 in the background
    area: float  # pixels expected
    points: tuple[np.ndarray, np.ndarray] | None = None


@dataclass(frozen=True)
class Drawn:
    """The best candidate of an attempt."""

    logits: np.ndarray
    score: float

    @property
    def probability(self) -> np.ndarray:
        return expit(np.clip(self.logits, -LOGIT_MAX, LOGIT_MAX))


@dataclass
class Tracker:
    """What is needed to draw one structure's objects.

    Attributes
    ----------
    body_area
        Pixels of the body in each slice, [n].
    """

    saliency: Saliency
    present: np.ndarray
    coarse_of: Callable[[list[int]], Tensor]
    decoder: Prompted
    body_area: np.ndarray
    attempts: int = field(default=0, init=False)

    def follow(self, labels: np.ndarray, label: int) -> dict[int, Drawn]:
        """The believed masks of one object by slice."""
        parts = labels == label
        rows = [int(row) for row in np.flatnonzero(parts.any((1, 2)))]
        own = [self._own(labels, label, row) for row in range(len(labels))]
        self.attempts += len(rows)
        drawn = self._draw([self._from_saliency(row, own[row], parts[row]) for row in rows])
        believed = {row: one for row, one in zip(rows, drawn, strict=True) if one.score >= BELIEVED_MIN}
        seeds = sorted(believed, key=lambda row: -believed[row].score)[:SEEDS]
        for step in (1, -1):
            visited: set[int] = set()
            for seed in seeds:
                self._walk(seed, step, own, parts, believed, visited)
        return believed

    def _walk(
        self,
        seed: int,
        step: int,
        own: list[np.ndarray],
        parts: np.ndarray,
        believed: dict[int, Drawn],
        visited: set[int],
    ) -> None:
        """Follow an object from a believed slice in one direction until it, or the belief, ends."""
        previous, rejects, row = believed[seed], 0, seed + step
        while 0 <= row < len(own) and self.present[row] and row not in visited and rejects < REJECTS_MAX:
            visited.add(row)
            (drawn,) = self._draw([self._from_neighbour(row, own[row], parts[row], previous)])
            near = soft_dice(drawn.probability, previous.probability) >= NEIGHBOUR_DICE_MIN
            agrees = near or soft_dice(drawn.probability, _foreground(own[row])) >= NEIGHBOUR_DICE_MIN
            if agrees and drawn.score >= BELIEVED_MIN:
                rejects = 0
                if row not in believed or drawn.score > believed[row].score:
                    believed[row] = drawn
                previous = believed[row]
            else:
                rejects += 1
            row += step

    def _own(self, labels: np.ndarray, label: int, row: int) -> np.ndarray:
        """The saliency of a slice without what belongs to other objects, float32 [s, s]."""
        others = (labels[row] != label) & (labels[row] > 0)
        return np.where(others, 0, self.saliency.share[row]).astype(np.float32)

    def _from_saliency(self, row: int, own: np.ndarray, part: np.ndarray) -> Attempt:
        box = box_around(part, len(part))
        points = None
        if POINTS in self.decoder.prompts and needs_points(part):
            points = points_of(own, part, self.saliency.lost[row], box)
        return Attempt(row, box, mask_prompt(own, part), _foreground(own), float(part.sum()), points)

    def _from_neighbour(self, row: int, own: np.ndarray, part: np.ndarray, previous: Drawn) -> Attempt:
        """The neighbour's box, and its logits and the saliency's in equal parts as mask."""
        mask = previous.logits > 0
        logits = (np.clip(previous.logits, -LOGIT_MAX, LOGIT_MAX) + mask_prompt(own, part | mask)) / 2
        box = box_around(mask, len(mask))
        return Attempt(row, box, logits.astype(np.float32), _foreground(own), float(mask.sum()))

    def _draw(self, attempts: Sequence[Attempt]) -> list[Drawn]:
        drawn: list[Drawn] = []
        for start in range(0, len(attempts), PROMPTS_A_CALL):
            batch = attempts[start : start + PROMPTS_A_CALL]
            logits, estimates = self._decode(batch)
            for attempt, its, theirs in zip(batch, logits, estimates, strict=True):
                scores = [
                    candidate_score(one, float(estimate), attempt.share, attempt.area, attempt.box,
                                    float(self.body_area[attempt.row]))
                    for one, estimate in zip(its, theirs, strict=True)
                ]  # fmt: skip
                best = int(np.argmax(scores))
                drawn.append(Drawn(its[best], scores[best]))
        return drawn

    def _decode(self, batch: Sequence[Attempt]) -> tuple[np.ndarray, np.ndarray]:
        """Candidates' logits [m, c, s, s] and estimates [m, c]; each decoder gets the prompts that it was made for."""
        boxes = torch.tensor([attempt.box for attempt in batch], dtype=torch.float32)
        masks = None
        if MASK in self.decoder.prompts:
            masks = torch.from_numpy(np.stack([attempt.mask for attempt in batch]))[:, None]
        more = {}
        if any(attempt.points is not None for attempt in batch):
            more["points"] = _padded([attempt.points for attempt in batch])
        coarse = self.coarse_of([attempt.row for attempt in batch])
        logits, estimates = self.decoder.decode(coarse, boxes, masks, **more)
        return logits.float().cpu().numpy(), estimates.float().reshape(len(batch), -1).cpu().numpy()


def track(
    saliency: Saliency,
    present: np.ndarray,
    coarse_of: Callable[[list[int]], Tensor],
    decoder: Prompted,
    body_area: np.ndarray,
) -> Refined:
    """Draw the objects of one structure.

    Parameters
    ----------
    saliency
        On the pixels of the square.
    present
        bool [n]: slices in which the structure is believed to be.
    coarse_of
        Embeddings [m, 256, 64, 64] of a list of slices.
    decoder
        On the slices' canvas; it must take boxes.
    body_area
        Pixels of the body in each slice, [n].
    """
    if BOX not in decoder.prompts:
        raise ValueError("a decoder without boxes can't be followed from slice to slice")
    probability = saliency.share.copy()
    found = (saliency.share >= FOUND_SHARE_MIN) & present[:, None, None]
    labels, count = ndimage.label(found, CONNECTED)
    tracker = Tracker(saliency, present, coarse_of, decoder, body_area)
    decoded = 0
    for label in _largest(labels, count):
        believed = tracker.follow(labels, label)
        decoded += len(believed)
        for row, drawn in believed.items():
            others = (labels[row] != label) & (labels[row] > 0)
            where = ((labels[row] == label) | (drawn.logits > 0)) & ~others
            probability[row][where] = drawn.probability[where]
    probability[saliency.lost] = np.minimum(probability[saliency.lost], np.float16(LOST_SHARE_MAX))
    return Refined(probability, decoded, max(tracker.attempts, decoded))


def _foreground(share: np.ndarray) -> np.ndarray:
    """The share where it is the structure's; the background's many small shares would outweigh it."""
    return np.where(share >= FOUND_SHARE_MIN, share, 0)


def _largest(labels: np.ndarray, count: int) -> list[int]:
    """The objects that are followed: the largest, and none that is hardly seen in any slice."""
    if not count:
        return []
    areas = np.stack([np.bincount(section.ravel(), minlength=count + 1) for section in labels])[:, 1:]
    order = np.argsort(-areas.sum(0), kind="stable")[:OBJECTS_MAX]
    return [int(n) + 1 for n in order if areas[:, n].max() >= LEAST_PIXELS]


def _padded(points: Sequence[tuple[np.ndarray, np.ndarray] | None]) -> tuple[Tensor, Tensor]:
    """Points [m, p, 2] and labels [m, p] of prompts with different numbers of them; −1 marks none."""
    most = max(len(one[1]) for one in points if one is not None)
    places, labels = np.zeros((len(points), most, 2), np.float32), np.full((len(points), most), -1)
    for n, one in enumerate(points):
        if one is not None:
            places[n, : len(one[1])], labels[n, : len(one[1])] = one
    return torch.from_numpy(places), torch.from_numpy(labels)
