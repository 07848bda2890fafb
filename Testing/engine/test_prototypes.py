"""What accepted and corrected images teach: a structure is found again by its features, also where no text helps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from MedZeroSegLib.assembly import KeySlices
from MedZeroSegLib.canvas import fit_canvas
from MedZeroSegLib.concepts import Concept
from MedZeroSegLib.embeddings import EncodedVolume
from MedZeroSegLib.prototypes import Moments, Prototype, adjusting, moments_of, prototype_of
from MedZeroSegLib.saliency import Saliency, evidence_of
from MedZeroSegLib.slices import slice_frame
from MedZeroSegLib.text_image.model import Scene
from MedZeroSegLib.volume import Volume

CHANNELS, CELLS, SLICES, SIDE = 12, 32, 3, 128
LUNG_WINDOW = (-600.0, 1500.0)
rng = np.random.default_rng(0)
SURROUNDINGS, LIVER, SPLEEN = rng.normal(size=(3, CHANNELS))  # mean features
NUISANCE = rng.normal(size=CHANNELS)  # along which cells differ most, and which tells nothing


def concept(name: str, window: tuple[float, float] | None = None) -> Concept:
    return Concept(
        name=name, wordings=(name,), rivals=(), trained=True, calibrated=True, window=window, ring=False, parts=1,
        scene=Scene("CT", "axial", ""), kind="organ",
    )  # fmt: skip


def masks(seed: int) -> dict[str, np.ndarray]:
    """A liver and a smaller spleen, bool [n, h, w], somewhere, in two of three slices."""
    place = np.random.default_rng(seed).integers(8, 40, 2)
    liver, spleen = np.zeros((2, SLICES, SIDE, SIDE), bool)
    liver[:2, place[0] : place[0] + 40, place[1] : place[1] + 36] = True
    spleen[1:, place[0] + 48 : place[0] + 64, place[1] + 50 : place[1] + 78] = True
    return {"liver": liver, "spleen": spleen}


def encoded(seed: int) -> EncodedVolume:
    """An image whose cells have the mean features of what they show, and a nuisance larger than these differ."""
    frame = slice_frame(Volume(np.zeros((SLICES, SIDE, SIDE), np.uint8), np.diag([1, 1, 9, 1.0]), "CT", dimension=3))
    shown, noise = masks(seed), np.random.default_rng(seed)
    coarse = np.broadcast_to(SURROUNDINGS, (SLICES, CELLS, CELLS, CHANNELS)).copy()
    for name, mean in (("liver", LIVER), ("spleen", SPLEEN)):
        coarse[shown[name].reshape(SLICES, CELLS, 4, CELLS, 4).mean((2, 4)) > 0.5] = mean
    coarse += 2 * noise.normal(size=(SLICES, CELLS, CELLS, 1)) * NUISANCE + 0.4 * noise.normal(size=coarse.shape)
    return EncodedVolume(
        frame=frame,
        canvas=fit_canvas((SIDE, SIDE), (1.0, 1.0), SIDE),
        keys=KeySlices(np.arange(SLICES), SLICES),
        shown=np.zeros((SLICES, SIDE, SIDE), np.uint8),
        body=np.ones((SLICES, 64, 64), bool),
        body_mask=np.ones((SLICES, SIDE, SIDE), bool),
        within=None,
        filled=np.ones(SLICES, bool),
        coarse=coarse.transpose(0, 3, 1, 2).astype(np.float16),
        pixels=np.zeros((SLICES, 1, 64, 64), np.float16),
        summary=np.zeros((SLICES, 0), np.float32),
    )


def silent() -> Saliency:
    """A text that finds nothing anywhere, and gives the cells of the left half to a rival."""
    share = np.full((SLICES, 64, 64), 0.01, np.float16)
    lost = np.zeros(share.shape, bool)
    lost[..., :32] = True
    return Saliency(share, lost, evidence_of(share))


def learned(name: str, seeds: range, weight: float = 1.0) -> Prototype:
    found = prototype_of([moments_of(encoded(seed), masks(seed)[name]) for seed in seeds], weight)
    assert found is not None
    return found


def dice(saliency: Saliency, mask: np.ndarray) -> float:
    drawn = (saliency.share >= 0.5).repeat(2, 1).repeat(2, 2)
    return 2 * float((drawn & mask).sum()) / float(drawn.sum() + mask.sum())


def adjusted(prototypes: dict[str, Prototype], seed: int, *names: str) -> list[Saliency]:
    return adjusting(prototypes)(encoded(seed), [concept(name) for name in names], [silent() for _ in names])


def test_a_structure_is_found_where_the_text_found_nothing_and_a_rival_had_won():
    (found,) = adjusted({"liver": learned("liver", range(3))}, 7, "liver")
    assert dice(silent(), masks(7)["liver"]) == 0
    assert dice(found, masks(7)["liver"]) > 0.8
    assert found.evidence[0] > 0.8 > 0.5 > found.evidence[2]
    assert not (found.lost & (found.share >= 0.5)).any()


def test_structures_that_exclude_each_other_share_no_cell_whatever_is_asked_for():
    both = {name: replace(learned(name, range(3)), offset=9.0) for name in ("liver", "spleen")}  # each would take all
    liver, spleen = adjusted(both, 7, "liver", "spleen")
    assert not ((liver.share >= 0.5) & (spleen.share >= 0.5)).any()
    (alone,) = adjusted(both, 7, "spleen")
    assert np.array_equal(alone.share, spleen.share)


def test_the_weight_lies_between_the_text_and_the_prototype():
    prototype = learned("liver", range(3))
    shares = [
        adjusted({"liver": replace(prototype, weight=weight)}, 7, "liver")[0].share[0].max()
        for weight in (0.0, 0.3, 1.0)
    ]
    assert shares[0] == pytest.approx(0.01, abs=1e-3) and shares[0] < shares[1] < shares[2]


def test_what_has_no_prototype_or_was_seen_in_another_window_stays_as_it_is():
    text, prototype = silent(), learned("liver", range(3))
    unchanged = adjusting({"spleen": prototype})(encoded(7), [concept("liver")], [text])
    otherwise = adjusting({"liver": replace(prototype, window=LUNG_WINDOW)})(encoded(7), [concept("liver")], [text])
    assert unchanged[0] is text and otherwise[0] is text


def test_images_without_the_structure_count_as_surroundings():
    with_it, empty = moments_of(encoded(0), masks(0)["liver"]), np.zeros((SLICES, SIDE, SIDE), bool)
    without = moments_of(encoded(1), empty)
    assert without.inside is None and without.outside is not None and without.outside.count == SLICES * CELLS**2
    assert prototype_of([without]) is None and prototype_of([]) is None
    only, more = prototype_of([with_it]), prototype_of([with_it, without])
    assert only is not None and more is not None and not np.allclose(only.direction, more.direction)


def test_ignored_places_are_neither_inside_nor_outside():
    whole = moments_of(encoded(0), masks(0)["liver"])
    less = moments_of(encoded(0), masks(0)["liver"], masks(0)["spleen"])
    assert whole.outside is not None and less.outside is not None and whole.inside is not None
    assert less.inside is not None and less.inside.count == whole.inside.count
    assert 0 < whole.outside.count - less.outside.count < 300


def test_each_image_counts_alike_however_much_it_shows():
    one, other = (moments_of(encoded(seed), masks(seed)["liver"]) for seed in (0, 1))
    assert one.inside is not None and other.inside is not None
    many = replace(one, inside=replace(one.inside, count=100 * one.inside.count))
    plain, weighed = prototype_of([one, other]), prototype_of([many, other])
    assert plain is not None and weighed is not None and np.array_equal(plain.direction, weighed.direction)
    assert isinstance(one, Moments)
