"""A user's own names beside the shipped ones: learnt from a few slices, and the shipped names answer as before."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from killed_training import kill_after_checkpoint, one_thread
from safetensors.torch import load_file, save
from torch import Tensor

from MedZeroSegLib import read_volume, segment
from MedZeroSegLib.canvas import fit_canvas
from MedZeroSegLib.errors import InputError
from MedZeroSegLib.mask_decoder.decoder import Embedding
from MedZeroSegLib.presets import EXTENDED_FROM, head_file, load_engine, own_structures
from MedZeroSegLib.queries import resolve
from MedZeroSegLib.text_image.dpfem import RegionTextHead
from MedZeroSegLib.text_image.lite import LiteTextImage, read_head
from MedZeroSegLib.text_image.model import HeadCard, Scene
from MedZeroSegLib.text_image.own_names import ExtendedTextImage, OwnNamesAdapter
from MedZeroSegLib.trained_preset import CARD, EXTENDED, WEIGHTS, write_trained_preset
from MedZeroSegLib.training import few_shot
from MedZeroSegLib.training.examples import Example, Examples, is_hollow, read_examples
from MedZeroSegLib.training.few_shot import FewShotTraining, own_losses, train_own_names
from MedZeroSegLib.training.variation import IGNORED
from MedZeroSegLib.weights_catalogue import sha256_of

ROOT = Path(__file__).parents[2]
SCENE = Scene("MR", "axial")
SETTINGS = FewShotTraining(steps=40, batch=3, warm_up=2, learning_rate=1e-2, average=0.7)


class LikeGrey:
    """An encoder that works by arithmetic: some channels are the grey level, the others noise that never changes."""

    def embed(self, pictures: Tensor) -> Embedding:
        generator = torch.Generator().manual_seed(0)
        coarse, detail = torch.randn(256, 64, 64, generator=generator), torch.randn(128, 128, 128, generator=generator)
        coarse, detail = (0.1 * part.expand(len(pictures), -1, -1, -1).clone() for part in (coarse, detail))
        coarse[:, :16] += 4 * torch.nn.functional.avg_pool2d(pictures, 4)
        detail[:, :16] += 4 * torch.nn.functional.avg_pool2d(pictures, 2)
        return Embedding(coarse, detail)


def labelled_volume(folder: Path, name: str = "scan") -> tuple[Path, Path]:
    """Four slices with a bright ring (value 3) in two of them, left of the middle, and a brighter square (value 5)."""
    j, i = np.mgrid[:64, :80]
    distance = np.hypot(j - 25, i - 24)
    labels = np.zeros((4, 64, 80), np.uint8)
    labels[1:3, (distance < 16) & (distance >= 9)] = 3
    labels[2, 40:56, 50:66] = 5
    voxels = np.choose(np.searchsorted([0, 3, 5], labels), (20, 120, 220)).astype(np.int16)
    voxels += np.random.default_rng(0).integers(0, 8, voxels.shape).astype(np.int16)
    folder.mkdir(parents=True, exist_ok=True)
    for part, values in (("image", voxels), ("mask", labels)):
        stored = sitk.GetImageFromArray(values)
        stored.SetSpacing((1.0, 1.0, 6.0))
        sitk.WriteImage(stored, str(folder / f"{name}_{part}.nii.gz"))
    return folder / f"{name}_image.nii.gz", folder / f"{name}_mask.nii.gz"


def table(folder: Path, *rows: str, columns: str = "image,mask,label,value,color,code,modality") -> Path:
    labelled_volume(folder)
    file = folder / "examples.csv"
    file.write_text("\n".join([columns, *rows]) + "\n", encoding="utf-8")
    return file


def two_names(folder: Path) -> Examples:
    rows = (
        "scan_image.nii.gz,scan_mask.nii.gz,Ring of mine,3,#10a0ff,99TEST 7 Ring,MR",
        "scan_image.nii.gz,scan_mask.nii.gz,square thing,5,,,MR",
    )
    return read_examples(table(folder, *rows), ("liver",))


def small_head() -> RegionTextHead:
    torch.manual_seed(0)
    return RegionTextHead()


def train(folder: Path, examples: Examples, **changes: object) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(few_shot, "COPIES_MAX", 3)
        settings = replace(SETTINGS, **changes)
        return train_own_names(examples, folder, settings, LikeGrey(), small_head(), "ab" * 32, lambda _: None)


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    return train(folder / "Meine Namen", two_names(folder))


# Examples


def test_rows_of_one_mask_are_one_example_and_names_keep_their_colour_and_code(tmp_path):
    examples = two_names(tmp_path)
    assert examples.names == ("Ring of mine", "square thing") and len(examples.examples) == 1
    assert dict(examples.examples[0].values) == {3: "Ring of mine", 5: "square thing"}
    assert examples.rows["Ring of mine"]["color"] == [16, 160, 255]
    assert examples.rows["Ring of mine"]["code"] == ["99TEST", "7", "Ring"]
    volume, labels, frame = examples.examples[0].read()
    assert volume.modality == "MR" and set(np.unique(labels)) == {0, 1, 2}
    assert examples.examples[0].labelled(labels, frame) == [1, 2]


def test_slices_are_counted_as_the_file_stores_them_whichever_way_they_run(tmp_path):
    image, mask = labelled_volume(tmp_path)
    for flipped in (False, True):
        for file in (image, mask):
            stored = sitk.ReadImage(str(file))
            stored.SetDirection((1, 0, 0, 0, 1, 0, 0, 0, -1.0 if flipped else 1.0))
            sitk.WriteImage(stored, str(file))
        example = Example(image, mask, "MR", {0: "thing"}, frozenset({2}))
        _, labels, frame = example.read()
        (chosen,) = example.labelled(labels, frame)
        assert np.count_nonzero(frame.forward(labels)[chosen]) == np.count_nonzero(labels[2])
        assert chosen == (1 if frame.flips[0] else 2)


def test_a_ring_is_known_by_its_hole():
    disc = np.hypot(*np.mgrid[-20:20, -20:20]) < 12
    ring = disc & (np.hypot(*np.mgrid[-20:20, -20:20]) > 7)
    assert is_hollow(ring) and not is_hollow(disc) and not is_hollow(np.zeros_like(disc))


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (["gone.nii.gz,scan_mask.nii.gz,thing,3,,,"], "Row 2 of .*gone.nii.gz.*does not exist"),
        (["scan_image.nii.gz,scan_mask.nii.gz,thing,4,,,"], r"no voxel of thing \(value 4; it has 0, 3, 5\)"),
        (["scan_image.nii.gz,scan_mask.nii.gz,thing,x,,,"], "value 'x'; give a whole number"),
        (["scan_image.nii.gz,scan_mask.nii.gz,,3,,,"], "Row 2 of .* has no label"),
        (["scan_image.nii.gz,scan_mask.nii.gz,Leber,3,,,"], "labels liver, which the shipped head knows"),
        (["scan_image.nii.gz,scan_mask.nii.gz,thing,3,blue,,"], "write it as #rrggbb"),
        (["scan_image.nii.gz,scan_mask.nii.gz,thing,3,,SCT,"], "write scheme, value and meaning"),
        (["scan_image.nii.gz,scan_mask.nii.gz,a,3,,,", "scan_image.nii.gz,scan_mask.nii.gz,b,3,,,"], "two names"),
        (["scan_image.nii.gz,examples.csv,thing,3,,,"], "can't be read as a mask"),
        (["scan_image.nii.gz,small.nii.gz,thing,3,,,"], "8 × 8 × 8 voxels, its image 80 × 64 × 4"),
        ([], "lacks rows"),
    ],
)
def test_rows_at_fault_are_refused_in_one_sentence_with_the_remedy(tmp_path, rows, words):
    sitk.WriteImage(sitk.GetImageFromArray(np.ones((8, 8, 8), np.uint8)), str(tmp_path / "small.nii.gz"))
    with pytest.raises(InputError, match=words) as caught:
        for example in read_examples(table(tmp_path, *rows), ("liver",)).examples:
            example.read()
    assert "\n" not in str(caught.value)


def test_a_file_without_the_columns_and_slices_without_label_are_refused(tmp_path):
    with pytest.raises(InputError, match="lacks the column label"):
        read_examples(table(tmp_path, "a,b", columns="image,mask"), ())
    with pytest.raises(InputError, match="can't be read"):
        read_examples(tmp_path / "nowhere.csv", ())
    row = "scan_image.nii.gz,scan_mask.nii.gz,thing,3,0"
    example = read_examples(table(tmp_path, row, columns="image,mask,label,value,slice"), ()).examples[0]
    _, labels, frame = example.read()
    with pytest.raises(InputError, match="holds no label in slice 0 of 4"):
        example.labelled(labels, frame)


# Learning


def test_names_that_a_picture_does_not_mark_are_not_looked_at():
    logits = torch.zeros(1, 2, 128, 128)
    labels = torch.zeros(1, 256, 256, dtype=torch.uint8)
    labels[0, :100] = 1
    labels[0, 200:] = IGNORED
    marked = torch.tensor([[True, False]])
    other = logits.clone()
    other[:, 1] = 9
    one, two = own_losses(logits, labels, marked), own_losses(other, labels, marked)
    assert torch.equal(one[0], two[0]) and torch.equal(one[1], two[1])
    ignored = logits.clone()
    ignored[:, 0, 101:] = 9
    two = own_losses(ignored, labels, marked)
    assert torch.allclose(one[0], two[0]) and torch.allclose(one[1], two[1])


def test_the_adapter_learns_the_names_and_its_card_says_what_they_are(learnt):
    card = json.loads((learnt / CARD).read_text())
    ring, square = card["structures"]
    assert ring["name"] == "Ring of mine" and ring["encloses"] and not square["encloses"]
    assert card["competitors"] == {"Ring of mine": ["square thing"], "square thing": ["Ring of mine"]}
    assert card["slices"] == 2 and not (learnt / "pictures").exists()
    adapter = OwnNamesAdapter(2)
    adapter.load_state_dict(load_file(learnt / WEIGHTS))
    volume, labels, frame = two_names(learnt.parent).examples[0].read()
    from MedZeroSegLib.intensity import picture

    shown = frame.forward(picture(volume))[2:3]
    canvas = fit_canvas(shown.shape[1:], (1.0, 1.0), 256)
    embedding = LikeGrey().embed(canvas.place(shown))
    pixels = small_head().eval().encode_pixels(*map(torch.Tensor.float, (embedding.coarse, embedding.detail)))
    logits = adapter.eval()(embedding.coarse, embedding.detail, pixels.half().float())[0].detach()
    found = torch.cat((torch.zeros_like(logits[:1]), logits)).argmax(0).numpy()
    marks = canvas.at(128).place_labels(frame.forward(labels)[2:3])[0]
    for value in (1, 2):
        overlap = 2 * ((found == value) & (marks == value)).sum() / ((found == value).sum() + (marks == value).sum())
        assert overlap > 0.8, (value, overlap)


@one_thread()
def test_a_run_that_was_killed_ends_with_the_same_log_and_weights(tmp_path):
    examples = two_names(tmp_path)
    through = train(tmp_path / "through", examples, steps=60)
    stopped = tmp_path / "stopped"
    code = f"""
from pathlib import Path
import test_own_names as t
t.train(Path({str(stopped)!r}), t.two_names(Path({str(tmp_path)!r})), steps=60)
"""
    kill_after_checkpoint(code, stopped)
    assert not (stopped / CARD).exists()
    train(stopped, examples, steps=60)

    def losses(folder: Path) -> list[list[str]]:
        return [row.split(",")[:3] for row in (folder / "log.csv").read_text().splitlines()]

    assert losses(stopped) == losses(through) and len(losses(through)) == 4
    one, two = load_file(through / WEIGHTS), load_file(stopped / WEIGHTS)
    assert all(torch.equal(value, two[name]) for name, value in one.items())


# Beside the shipped names


class Vectors:
    """A text tower of fixed vectors."""

    def encode_ensemble(self, wordings: tuple[str, ...]) -> Tensor:
        generator = torch.Generator().manual_seed(sum(map(ord, wordings[0])))
        return torch.nn.functional.normalize(torch.randn(384, generator=generator), dim=-1)


def test_shipped_names_score_bit_for_bit_as_without_the_own_ones_whatever_stands_beside_them(learnt):
    card = HeadCard(("liver", "spleen"), {"liver": ("spleen",), "spleen": ("liver",)}, {})
    shipped = LiteTextImage(small_head(), Vectors(), card)  # type: ignore[arg-type]
    adapter = OwnNamesAdapter(2)
    adapter.load_state_dict(load_file(learnt / WEIGHTS))
    own_names = ("Ring of mine", "square thing")
    extended = ExtendedTextImage(shipped, adapter, own_names, {"Ring of mine": ("square thing",)})
    assert extended.card.concepts == card.concepts and extended.card.own == own_names
    slices = np.random.default_rng(0).integers(0, 256, (3, 60, 90), np.uint8)
    canvas = fit_canvas(slices.shape[1:], (1.0, 1.0), 256)
    embedding = LikeGrey().embed(canvas.place(slices))
    plain, more = (one.encode_slices(slices, canvas, embedding).pixels.half() for one in (shipped, extended))
    assert torch.equal(plain, more[:, :64])
    names = (("liver",), ("spleen",), ("anything at all",))
    texts = torch.stack([shipped.encode_text(name, SCENE) for name in names])
    longer = torch.stack([extended.encode_text(name, SCENE) for name in names])
    assert torch.equal(shipped.score(plain, texts), extended.score(more, longer))
    own = extended.encode_text(("square thing",), SCENE)
    mixed = extended.score(more, torch.cat((longer, own[None])))
    assert torch.equal(mixed[:, :3], shipped.score(plain, texts)) and torch.equal(mixed[:, 3], more[:, 65].float())


@pytest.fixture(scope="module")
def beside_lite(tmp_path_factory):
    """A preset that adds a name to the head that ships, with weights by chance."""
    torch.manual_seed(3)
    adapter = OwnNamesAdapter(1)
    torch.nn.init.constant_(adapter.names.bias, 0.5)
    _, card = read_head(head_file())
    folder = tmp_path_factory.mktemp("beside") / "mine"
    examples = read_examples(
        table(folder.parent, "scan_image.nii.gz,scan_mask.nii.gz,bright patch,3,#00ff10,99TEST 9 Patch,"), card.concepts
    )
    content = {
        "note": "One name of a user.", "licence": "none", "head_sha256": sha256_of(head_file()), "competitors": {
            "bright patch": []}, "structures": [examples.rows["bright patch"]],
    }  # fmt: skip
    return write_trained_preset(folder, EXTENDED, save(adapter.state_dict()), content)


@pytest.fixture(scope="module")
def radiograph():
    from pydicom.data import get_testdata_file

    return read_volume(Path(str(get_testdata_file("RG1_UNCR.dcm", download=False))))


def test_the_whole_line_draws_shipped_names_bit_for_bit_as_the_shipped_preset(beside_lite, radiograph):
    names = ["left lung", "heart and mediastinum", "some unheard-of thing"]
    shipped = segment(radiograph, names, EXTENDED_FROM, "cpu")
    extended = segment(radiograph, [names[0], "bright patch", *names[1:]], str(beside_lite), "cpu")
    mine = extended.segments[1]
    others = [one for one in extended.segments if one is not mine]
    for before, after in zip(shipped.segments, others, strict=True):
        assert np.array_equal(before.mask, after.mask) and before.score == after.score and before.found == after.found
        assert before.warnings == after.warnings and before.color == after.color
        assert (before.confidence is None) == (after.confidence is None)
        if before.confidence is not None:
            assert before.confidence.expected_dice == after.confidence.expected_dice
            assert np.array_equal(before.confidence.uncertainty, after.confidence.uncertainty)
    assert shipped.segments[0].found
    assert mine.name == "bright patch" and mine.color == (0, 255, 16) and mine.code.meaning == "Patch"
    assert mine.provenance["trained"] and mine.confidence is None
    assert not any("isn't a known name" in warning or "seldom" in warning for warning in mine.warnings)
    assert "One name of a user." in extended.warnings
    added = {record["sha256"] for record in extended.weights} - {record["sha256"] for record in shipped.weights}
    assert added == {sha256_of(beside_lite / WEIGHTS), sha256_of(beside_lite / CARD)}
    assert {record["sha256"] for record in shipped.weights} <= {record["sha256"] for record in extended.weights}


def test_the_own_name_is_known_where_the_preset_is_given_and_nowhere_else(beside_lite):
    own = own_structures(str(beside_lite))
    assert resolve(["Bright  patch"], own)[0].status == "known" and resolve(["bright patch"])[0].status == "unknown"
    assert own_structures(EXTENDED_FROM) == ()
    assert resolve(["liver"], own)[0].structure.name == "liver"


def test_a_folder_for_another_head_or_with_other_weights_is_refused(beside_lite, tmp_path):
    card = json.loads((beside_lite / CARD).read_text())
    weights = (beside_lite / WEIGHTS).read_bytes()
    other = write_trained_preset(tmp_path / "head", EXTENDED, weights, {**card, "head_sha256": "0"})
    wide = write_trained_preset(tmp_path / "wide", EXTENDED, save(OwnNamesAdapter(2).state_dict()), card)
    for folder, words in ((other, "another head than the one"), (wide, "another architecture")):
        with pytest.raises(InputError, match=words):
            load_engine(str(folder), "cpu")


def test_the_command_asks_for_either_a_manifest_or_examples(tmp_path):
    code = "from MedZeroSegLib.cli import main; main()"
    for options in ((), ("--manifest", "a.csv", "--examples", "b.csv")):
        command = [sys.executable, "-c", code, "train", "lite", *options]
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert run.returncode == 2 and "either --manifest" in run.stderr
