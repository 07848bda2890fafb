"""Labelled cases become training pictures whose labels lie on what they name, and questions that are fair to ask."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import phantoms
import pytest
import torch
import torch.nn.functional as F
from analytic import ellipsoid
from scipy import ndimage

from MedZeroSegLib.canvas import fit_canvas
from MedZeroSegLib.evaluation.manifest import COLUMNS, Case, read_manifest
from MedZeroSegLib.intensity import picture
from MedZeroSegLib.mask_decoder.lite_medsam import Embedding
from MedZeroSegLib.slices import slice_frame
from MedZeroSegLib.training import pictures
from MedZeroSegLib.training.pictures import LabelMap, Picture, PictureStore, encode_pictures
from MedZeroSegLib.training.targets import TARGET_SIZE, ConceptTable, Targets, concept_of, targets_of
from MedZeroSegLib.vocabulary import REGIONS, vocabulary
from MedZeroSegLib.volume_io import read_volume

ABDOMEN = ("left kidney", "right kidney", "liver", "spleen")
HEART = ("left ventricle", "right ventricle", "left ventricular myocardium")
SPINE = ("vertebra L1", "vertebra L2", "intervertebral disc L1-L2", "spinal canal")
HEAD = ("white matter", "skull")
SCHEMES = {"abdomen": ABDOMEN, "heart": HEART, "spider_lumbar_spine_mr": SPINE, "head": HEAD}


def store_of(schemes: dict[str, Sequence[str]]) -> tuple[PictureStore, list[Picture]]:
    """A store without arrays: one picture of each scheme, label value n + 1 for its n-th name."""
    described = [
        Picture(
            n, f"case {n}", f"patient {n}", scheme, "CT", True, 0, (LabelMap(n, scheme, dict(enumerate(names, 1))),)
        )
        for n, (scheme, names) in enumerate(schemes.items())
    ]
    nothing = np.zeros(0)
    store = PictureStore(
        tuple(described), {s: tuple(sorted(names)) for s, names in schemes.items()}, nothing, nothing, nothing
    )
    return store, described


def ask(scheme: str, labels: np.ndarray, schemes=SCHEMES, seed: int = 0) -> tuple[Targets, ConceptTable]:
    store, described = store_of(schemes)
    table = ConceptTable(store, described)
    (shown,) = [p for p in described if p.source == scheme]
    return targets_of(shown, shown.label_maps[0], labels, table, np.random.default_rng(seed)), table


def label_blocks(*blocks: tuple[int, int, int, int, int]) -> np.ndarray:
    """Labels uint8 [256, 256] with blocks (value, top, bottom, left, right)."""
    labels = np.zeros((256, 256), np.uint8)
    for value, top, bottom, left, right in blocks:
        labels[top:bottom, left:right] = value
    return labels


def mask_named(targets: Targets, name: str) -> torch.Tensor:
    if name in targets.competing:
        return targets.competing_masks[targets.competing.index(name)]
    return targets.single_masks[targets.single.index(name)]


@pytest.mark.parametrize(
    ("written", "concept"),
    [
        ("left kidney", "kidney"),
        ("kidney, right", "kidney"),
        ("left lung", "lung"),
        ("left ventricle", "left ventricle"),
        ("right ventricle", "right ventricle"),
        ("left atrium", "left atrium"),
        ("frobnicle of Kruppe", "frobnicle of Kruppe"),
    ],
)
def test_sides_are_positions_except_in_the_heart(written, concept):
    assert concept_of(written) == concept


def test_two_sides_make_one_mask():
    labels = label_blocks((1, 10, 30, 10, 40), (2, 10, 30, 100, 120))
    targets, table = ask("abdomen", labels)
    assert "kidney" in targets.competing and not {"left kidney", "right kidney"} & set(targets.competing)
    assert torch.equal(
        mask_named(targets, "kidney") > 0, F.max_pool2d(torch.tensor(labels > 0)[None].float(), 2)[0] > 0
    )
    assert table.concept("left kidney") == table.concept("right kidney") == "kidney"


def test_chambers_of_the_heart_stay_apart():
    targets, _ = ask("heart", label_blocks((1, 10, 30, 10, 40), (2, 10, 30, 100, 120)))
    left, right = mask_named(targets, "left ventricle"), mask_named(targets, "right ventricle")
    assert left.sum() == 10 * 15 and right.sum() == 10 * 10
    assert not (left * right).any()


def test_masks_are_the_labels_at_half_their_size():
    labels = label_blocks((3, 21, 40, 50, 61))
    targets, _ = ask("abdomen", labels)
    mask = mask_named(targets, "liver")
    assert mask.shape == (TARGET_SIZE, TARGET_SIZE)
    assert mask.sum().item() * 4 == 19 * 11
    assert mask[10, 25] == 0.5 and mask[10, 30] == 0.25 and mask[11, 25] == 1  # edges at odd rows and columns
    assert mask[:10].sum() == mask[20:].sum() == mask[:, :25].sum() == mask[:, 31:].sum() == 0


def test_competing_masks_never_add_up_to_more_than_one():
    labels = np.random.default_rng(0).integers(0, 5, (256, 256)).astype(np.uint8)
    targets, _ = ask("abdomen", labels)
    assert set(targets.competing) == {"kidney", "liver", "spleen"}
    assert targets.competing_masks.sum(0).max() <= 1
    assert targets.competing_masks.shape == (3, TARGET_SIZE, TARGET_SIZE)


def test_what_the_scheme_marks_and_the_picture_lacks_is_asked_with_an_empty_mask():
    targets, _ = ask("abdomen", label_blocks((3, 20, 40, 50, 60)))
    assert set(targets.competing) == {"kidney", "liver", "spleen"}
    for name in ("kidney", "spleen"):
        assert not mask_named(targets, name).any()


def test_the_whole_is_the_union_of_its_parts_where_a_source_marks_all_of_them():
    targets, table = ask("spider_lumbar_spine_mr", label_blocks((1, 10, 30, 10, 40), (2, 40, 60, 10, 40)))
    assert {"vertebrae", "intervertebral discs"} <= set(targets.single)
    assert "vertebrae" not in targets.competing
    union = mask_named(targets, "vertebra L1") + mask_named(targets, "vertebra L2")
    assert torch.equal(mask_named(targets, "vertebrae"), union) and union.sum() == 2 * 10 * 15
    assert not mask_named(targets, "intervertebral discs").any()
    assert table.wholes["abdomen"] == ()
    assert "vertebrae" in table.all


def test_parts_make_no_whole_in_a_source_that_marks_only_some_of_them():
    targets, table = ask("somewhere", label_blocks((1, 10, 30, 10, 40)), {"somewhere": SPINE, "head": HEAD})
    assert "vertebrae" not in targets.single and table.wholes["somewhere"] == ()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_far_concepts_never_come_from_where_the_picture_is(scheme):
    bodies = {
        "abdomen": {"abdomen", "pelvis", "spine", "chest"},
        "heart": {"heart", "chest", "spine", "abdomen"},
        "spider_lumbar_spine_mr": {"spine", "abdomen", "pelvis"},
        "head": {"head", "neck", "spine"},
    }
    met = set()
    for seed in range(12):
        targets, table = ask(scheme, label_blocks((1, 10, 30, 10, 40)), seed=seed)
        marked = set(table.by_scheme[scheme]) | set(table.wholes[scheme])
        far = [name for name in targets.single if name not in table.wholes[scheme]]
        met |= set(far)
        assert not set(far) & marked
        assert not {vocabulary()[name].region for name in far} & bodies[scheme]
        assert all(not mask_named(targets, name).any() for name in far)
    assert met  # there is something far in each case


def test_a_scheme_that_may_lie_anywhere_has_no_far_concepts():
    for names in (("tumor",), ("frobnicle of Kruppe",)):
        targets, _ = ask("anywhere", label_blocks((1, 10, 30, 10, 40)), {**SCHEMES, "anywhere": names})
        assert targets.single == ()
        assert targets.single_masks.shape == (0, TARGET_SIZE, TARGET_SIZE)
    assert vocabulary()["tumor"].region == "whole" and "whole" in REGIONS


def test_rivals_are_what_was_marked_together_and_excludes_one_another():
    store, described = store_of({**SCHEMES, "lungs": ("lung", "lung nodule"), "limb": ("kidney", "femur")})
    table = ConceptTable(store, described)
    rivals = table.competitors
    assert rivals["liver"] == ["kidney", "spleen"]
    assert rivals["kidney"] == ["femur", "liver", "spleen"]  # of two schemes
    assert "lung" not in rivals["lung nodule"]  # a nodule lies in the lung
    assert rivals["left ventricle"] == ["left ventricular myocardium", "right ventricle"]
    assert rivals["vertebrae"] == []
    for name, others in rivals.items():
        assert name not in others
        assert all(name in rivals[other] for other in others)


def test_only_pictures_in_use_count():
    store, described = store_of(SCHEMES)
    table = ConceptTable(store, described[:1])
    assert set(table.all) == {"kidney", "liver", "spleen"}


# --- pictures ---------------------------------------------------------------------------------------------------------

SIDE = 64
SHAPE = (40, 32, 6)  # canonical [i, j, k]


class AveragingModel:
    """Embeds a picture as its averages; counts pictures, and breaks after a number of them."""

    def __init__(self, breaks_after: float = float("inf")) -> None:
        self.embedded = 0
        self.largest_batch = 0
        self.breaks_after = breaks_after

    def embed(self, shown: torch.Tensor) -> Embedding:
        assert shown.shape[1:] == (1, SIDE, SIDE)
        if self.embedded + len(shown) > self.breaks_after:
            raise KeyboardInterrupt
        self.embedded += len(shown)
        self.largest_batch = max(self.largest_batch, len(shown))
        return Embedding(F.adaptive_avg_pool2d(shown, 4), F.adaptive_avg_pool2d(shown, 32))


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch):
    for name, value in {
        "IMAGE_SIZE": SIDE,
        "EMBEDDING_CHANNELS": 1,
        "EMBEDDING_SIZE": 4,
        "DETAIL_CHANNELS": 1,
        "DETAIL_SIZE": 32,
        "PICTURES_MIN": 8,
        "PICTURES_PER_STRUCTURE": 4,
    }.items():
        monkeypatch.setattr(pictures, name, value)


def write_case(folder: Path, name: str, seed: int, storage: phantoms.Storage, masks: Sequence[str] = ("",)) -> None:
    """A grey body with a bright block that moves from slice to slice; the block is label 1, or 2 in a second mask."""
    canonical = np.zeros(SHAPE, np.int16)
    body = ellipsoid(SHAPE, (19.5, 15.5, 2.5), (19, 15, 6))
    canonical[body] = (50 + np.indices(SHAPE)[0])[body]
    block = np.zeros(SHAPE, np.uint8)
    for k in range(1, SHAPE[2] - 1):
        block[6 + 3 * k : 16 + 3 * k, 8 + seed : 18 + seed - k, k] = 1
    canonical[block > 0] = 250
    matrix = storage.matrix(SHAPE, phantoms.lps_matrix((1.0, 1.5, 6.0)))
    phantoms.write_image(folder / f"{name}.nrrd", storage.store(canonical), matrix)
    for value, kind in enumerate(masks, 1):
        mask = (block * value).astype(np.uint8)
        phantoms.write_image(folder / f"{name}{kind and '_'}{kind or '.mask'}.nrrd", storage.store(mask), matrix)


def write_manifest(folder: Path, cases: Sequence[tuple[str, str, str, dict[str, str]]]) -> list[Case]:
    """Rows (case, source, licence, labels of each kind of mask) → the cases as they are read."""
    storages = list(phantoms.storages())
    rows = []
    for n, (name, source, licence, labels) in enumerate(cases):
        write_case(folder, name, n % 4, storages[7 * n % 48], list(labels))
        for kind, text in labels.items():
            mask = f"{name}{kind and '_'}{kind or '.mask'}.nrrd"
            rows.append([name, name, source, "MR", f"{name}.nrrd", mask, text, licence, "train"])
    with (folder / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    return read_manifest(folder / "manifest.csv", "train")


PLAIN = {"": "1=liver;2=spleen"}
THREE = [
    ("restricted", "second_source", "CC BY-NC 4.0", PLAIN),
    ("a", "first_source", "CC BY 4.0", PLAIN),
    ("b", "first_source", "CC BY 4.0", PLAIN),
]


def same(one: PictureStore, other: PictureStore) -> bool:
    return one.pictures == other.pictures and all(
        np.array_equal(getattr(one, name), getattr(other, name)) for name in ("coarse", "detail", "labels")
    )


def test_an_interrupted_run_goes_on_to_the_same_arrays(tmp_path):
    cases = write_manifest(tmp_path, THREE)
    whole = encode_pictures(cases, AveragingModel(), tmp_path / "whole", seed=3)
    first = AveragingModel(breaks_after=len(whole.pictures) // 2)
    with pytest.raises(KeyboardInterrupt):
        encode_pictures(cases, first, tmp_path / "resumed", seed=3)
    second = AveragingModel()
    resumed = encode_pictures(cases, second, tmp_path / "resumed", seed=3)
    assert same(resumed, whole)
    assert 0 < first.embedded < len(whole.pictures)
    assert first.embedded + second.embedded == len(whole.pictures)
    third = AveragingModel()
    assert same(encode_pictures(cases, third, tmp_path / "resumed", seed=3), whole)
    assert third.embedded == 0


@pytest.mark.parametrize("later", ["fewer", "others", "another seed"])
def test_a_folder_begun_with_other_cases_is_begun_anew(tmp_path, later):
    cases = write_manifest(tmp_path, THREE)
    encode_pictures(cases, AveragingModel(), tmp_path / "used", seed=0)
    asked = {"fewer": cases[:2], "others": [cases[0], cases[2], cases[1]], "another seed": cases}[later]
    seed = 1 if later == "another seed" else 0
    fresh = encode_pictures(asked, AveragingModel(), tmp_path / "fresh", seed)
    assert same(encode_pictures(asked, AveragingModel(), tmp_path / "used", seed), fresh)
    assert fresh.coarse.reshape(len(fresh.pictures), -1).any(axis=1).all()


def test_pictures_that_anyone_may_use_come_first_and_rows_are_counted_through(tmp_path):
    store = encode_pictures(write_manifest(tmp_path, THREE), AveragingModel(), tmp_path / "store", seed=0)
    assert [p.row for p in store.pictures] == list(range(len(store.pictures)))
    free = [p.any_use for p in store.pictures]
    assert free == sorted(free, reverse=True) and not all(free)
    assert [m.row for p in store.pictures for m in p.label_maps] == list(range(len(store.labels)))
    assert store.schemes == {"first_source": ("liver", "spleen"), "second_source": ("liver", "spleen")}


def test_sources_with_few_images_get_more_slices_and_copies(tmp_path):
    store = encode_pictures(write_manifest(tmp_path, THREE), AveragingModel(), tmp_path / "store", seed=0)
    of_source = {s: [p for p in store.pictures if p.source == s] for s in ("first_source", "second_source")}
    for chosen in of_source.values():
        assert len(chosen) >= 8
    restricted = {p.copy for p in of_source["second_source"]}
    assert restricted == {0, 1}  # four slices hold a label, eight pictures are wanted
    once = [p.copy for p in of_source["first_source"]]  # each slice once, every second one varied
    assert set(once) == {0, 1} and once.count(0) >= once.count(1)


def test_no_more_pictures_are_embedded_at_once_than_fit(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "SLAB_SLICES", 3)
    cases = write_manifest(tmp_path, THREE)
    model = AveragingModel()
    pieces = encode_pictures(cases, model, tmp_path / "pieces", seed=0)
    assert model.largest_batch == 3
    monkeypatch.setattr(pictures, "SLAB_SLICES", 100)
    assert same(encode_pictures(cases, AveragingModel(), tmp_path / "whole", seed=0), pieces)


def test_the_first_copy_is_the_picture_that_the_pipeline_shows(tmp_path):
    cases = write_manifest(tmp_path, THREE)
    store = encode_pictures(cases, AveragingModel(), tmp_path / "store", seed=0)
    for case in cases:
        volume = read_volume(case.image, modality="MR")
        frame = slice_frame(volume)
        shown = frame.forward(picture(volume))
        placed = fit_canvas(shown.shape[1:], frame.spacing[1:], SIDE).place(shown)
        expected = F.adaptive_avg_pool2d(placed, 32)[:, 0].numpy()
        plain = [p for p in store.pictures if p.case_id == case.case_id and p.copy == 0]
        assert plain
        for p in plain:
            nearest = np.abs(expected - store.detail[p.row, 0].astype(float)).mean(axis=(1, 2)).min()
            assert nearest < 0.01


def test_labels_lie_on_what_they_name_in_every_copy(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "PICTURES_MIN", 20)
    cases = write_manifest(tmp_path, THREE)
    store = encode_pictures(cases, AveragingModel(), tmp_path / "store", seed=0)
    assert max(p.copy for p in store.pictures) >= 3
    looked_at = 0
    for p in store.pictures:
        label = F.adaptive_avg_pool2d(torch.from_numpy(store.labels[p.label_maps[0].row] > 0)[None].float(), 32)[0]
        grey = store.detail[p.row, 0].astype(float)
        inside, outside = label.numpy() > 0.99, label.numpy() == 0
        if inside.sum() < 4:
            continue
        looked_at += 1
        # In a varied window the block may be as white as its surroundings, but never darker.
        assert grey[inside].mean() > grey[outside & (grey > 0.02)].mean()
        if p.copy == 0:
            assert grey[inside].min() > 0.7 > 0.5 > grey[outside].mean()
    assert looked_at > 0.6 * len(store.pictures) > 20


@pytest.mark.parametrize("size", [37, 64, 90, 128])
def test_outlines_of_labels_are_not_moved_to_one_side(size):
    """Mean over discs at many places: the labels' centroid is the picture's, to a tenth of a pixel."""
    offsets = []
    for n in range(12):
        disc = ellipsoid(
            (size, size), (size * (0.35 + 0.021 * n), size * (0.6 - 0.017 * n)), (0.14 * size, 0.11 * size)
        )
        canvas = fit_canvas(disc.shape, (1.0, 1.0), 2 * SIDE)
        shown = pictures._sample_picture(canvas.place(255 * disc[None].astype(np.uint8)), torch.eye(3)[None, :2])[0, 0]
        marks = pictures._sample_labels(canvas.place_labels(disc[None].astype(np.uint16)), torch.eye(3)[None, :2])[0]
        offsets.append(ndimage.center_of_mass(marks) - np.array(ndimage.center_of_mass(shown.numpy())))
    assert np.abs(np.mean(offsets, axis=0)).max() < 0.1


def test_several_masks_of_one_image_are_asked_one_by_one(tmp_path):
    masks = {"organs": "1=liver", "findings": "2=spleen"}
    cases = write_manifest(tmp_path, [("a", "source", "CC0", masks)])
    store = encode_pictures(cases, AveragingModel(), tmp_path / "store", seed=0)
    assert store.schemes == {"source:organs": ("liver",), "source:findings": ("spleen",)}
    for p in store.pictures:
        assert [m.scheme for m in p.label_maps] == ["source:organs", "source:findings"]
        organs, findings = (store.labels[m.row] for m in p.label_maps)
        assert set(np.unique(organs)) <= {0, 1} and set(np.unique(findings)) <= {0, 2}
        assert np.array_equal(organs > 0, findings > 0)
    assert len(store.labels) == 2 * len(store.pictures)


def test_copies_are_turned_and_scaled_but_mirrored_only_where_that_is_fair():
    rng, nothing = np.random.default_rng(0), np.zeros((1, 64, 64), np.uint8)
    kept = [pictures._random_affine(rng, False, nothing)[0].numpy() for _ in range(200)]
    either = [pictures._random_affine(rng, True, nothing)[0].numpy() for _ in range(200)]
    turned = [np.linalg.det(matrix[:, :2]) for matrix in kept]
    assert min(turned) > 0.7**2 and max(turned) < 1.45**2
    assert np.ptp([matrix[:, 2] for matrix in kept]) > 0.1
    mirrored = [np.linalg.det(matrix[:, :2]) < 0 for matrix in either]
    assert 60 < sum(mirrored) < 140


def test_some_copies_look_from_nearby_at_what_is_labelled():
    rng, labels = np.random.default_rng(0), np.zeros((2, 64, 64), np.uint8)
    labels[1, 50, 10] = 3
    place = np.array([(10 + 0.5) * 2 / 64 - 1, (50 + 0.5) * 2 / 64 - 1])  # x, y in the canvas's units
    matrices = [pictures._random_affine(rng, False, labels)[0].numpy().astype(float) for _ in range(300)]
    near = [matrix for matrix in matrices if np.linalg.det(matrix[:, :2]) < 0.7**2]
    assert 50 < len(near) < 130
    seen = [np.linalg.solve(matrix[:, :2], place - matrix[:, 2]) for matrix in near]
    assert np.mean([np.abs(where).max() < 1 for where in seen]) > 0.8


@pytest.mark.parametrize("name", ["left kidney", "liver", "left ventricle"])
def test_organs_with_a_place_are_not_mirrored(tmp_path, name):
    (case,) = write_manifest(tmp_path, [("a", "source", "CC0", {"": f"1={name}"})])
    assert not pictures._may_be_mirrored([case])
