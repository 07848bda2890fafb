"""Fine-tuning of CLIP: it learns, a killed run ends with the same losses and weights, the preset finds the result."""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import torch
from clip_training_samples import bert_folder, native_folder, picture_pairs, write_pairs
from killed_training import kill_after_checkpoint
from safetensors.torch import load_file

from MedZeroSegLib.base_preset import VARIANTS, clip_record, load_clip
from MedZeroSegLib.errors import InputError, InstallationError
from MedZeroSegLib.trained_weights import clip_of_file, clip_of_folder, read_card
from MedZeroSegLib.training.cehnc import LOSSES
from MedZeroSegLib.training.clip import ClipTrainer, ClipTraining, Course, train_clip
from MedZeroSegLib.training.clip_retrieval import measure_retrieval
from MedZeroSegLib.training.clip_weights import open_clip_model, optimiser_of
from MedZeroSegLib.training.pairs import read_pairs
from MedZeroSegLib.training.run import LOG
from MedZeroSegLib.weights import WeightsStore

ROOT = Path(__file__).parents[2]
SETTINGS = ClipTraining(steps=4, batch=4, precision="fp32", learning_rate=1e-3, warm_up=0)
COURSE = Course(chunk=4, threads=1, every=2)
MODEL = "fine-tuned-clip.safetensors"


@pytest.fixture(autouse=True)
def one_thread():
    """As in the processes that the tests start, so that sums are taken in one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def native(tmp_path_factory) -> Path:
    return native_folder(tmp_path_factory.mktemp("Modell 肺") / "native")


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    return bert_folder(tmp_path_factory.mktemp("Modell") / "bert")


@pytest.fixture(scope="module")
def pairs_file(tmp_path_factory) -> Path:
    return picture_pairs(tmp_path_factory.mktemp("Paare (1)"), 16, 4)


def train(pairs_file: Path, output: Path, model: Path | str, course: Course = COURSE, **settings) -> Path:
    return train_clip(
        read_pairs(pairs_file),
        output,
        str(model),
        replace(SETTINGS, **settings),
        None,
        course,
        "cpu",
        None,
        said.append,
    )


said: list[str] = []


def losses(folder: Path) -> list[tuple[str, ...]]:
    with (folder / LOG).open(newline="") as handle:
        return [tuple(row[:-1]) for row in csv.reader(handle)]  # without the seconds


def trainer(folder: Path, model: Path, pairs_file: Path, course: Course = COURSE, **settings) -> ClipTrainer:
    pairs = read_pairs(pairs_file)
    folder.mkdir(exist_ok=True)
    clip = clip_of_folder(model)
    return ClipTrainer(clip, pairs.of("train"), pairs.digest, folder, replace(SETTINGS, **settings), course)


# Learning


def test_it_learns_which_caption_belongs_to_which_picture(native, pairs_file, tmp_path):
    run = trainer(tmp_path, native, pairs_file, steps=60, batch=8, learning_rate=3e-4, loss="infonce")
    found = [run.train_step() for _ in range(60)]
    assert found[-1]["loss"] < 0.9 * found[0]["loss"]
    assert found[-1]["positive"] - found[-1]["negative"] > 0.03 + found[0]["positive"] - found[0]["negative"]


def test_what_the_towers_begin_with_stays_as_it_was(bert, native, pairs_file, tmp_path):
    for model, kept, learnt in (
        (bert, ("visual.trunk.blocks.2.", "visual.trunk.pos_embed", "word_embeddings", "logit_scale"), "blocks.3.mlp"),
        (
            native,
            ("visual.transformer.resblocks.0.", "visual.conv1", "token_embedding", "logit_scale"),
            "resblocks.1.mlp",
        ),
    ):
        run = trainer(tmp_path / model.name, model, pairs_file)
        before = {name: value.clone() for name, value in run.clip.model.state_dict().items()}
        run.train_step()
        for name, value in run.clip.model.state_dict().items():
            if any(part in name for part in kept):
                assert torch.equal(value, before[name]), name
            if learnt in name or name in ("visual.proj", "text_projection", "visual.head.proj.weight"):
                assert not torch.equal(value, before[name]), name


def test_no_optimiser_holds_the_hardness_or_decays_norms(bert):
    clip = clip_of_folder(bert)
    clip.model.requires_grad_(True)
    groups = optimiser_of(clip.model, 1e-6, 0.05).param_groups
    assert sorted({group["lr"] for group in groups}) == pytest.approx([1e-6, 1e-5])  # towers and projections
    for group in groups:
        assert all((parameter.ndim > 1) == (group["weight_decay"] > 0) for parameter in group["params"])
    assert sum(len(group["params"]) for group in groups) == len(list(clip.model.parameters()))


@pytest.mark.parametrize("loss", LOSSES)
def test_pieces_of_any_size_give_the_same_gradients(loss, native, pairs_file, tmp_path):
    gradients = []
    for chunk in (2, 8):
        run = trainer(tmp_path, native, pairs_file, Course(chunk, 1, 2), batch=8, loss=loss)
        run.accumulate(next(run.batches.after(0, 1)))
        gradients.append({name: weight.grad for name, weight in run.weights.items()})
    assert max(gradient.abs().max() for gradient in gradients[0].values()) > 1e-3
    for name, gradient in gradients[0].items():
        assert (gradient - gradients[1][name]).abs().max() <= 1e-4 * gradient.abs().max() + 1e-6, name


def test_reduced_precision_gives_about_the_same_loss(native, pairs_file, tmp_path):
    found = {}
    for precision in ("fp32", "bf16"):
        run = trainer(tmp_path, native, pairs_file, precision=precision, loss="infonce")
        found[precision] = run.accumulate(next(run.batches.after(0, 1)))["loss"]
        assert all(weight.grad.dtype == torch.float32 for weight in run.weights.values())
    assert found["bf16"] == pytest.approx(found["fp32"], rel=0.05) and found["bf16"] != found["fp32"]


# Going on


def test_a_run_that_was_killed_ends_with_the_same_loss_curve_and_weights(bert, pairs_file, tmp_path):
    """A real process, killed without a warning once it has written a checkpoint; dropout is part of the model."""
    course, settings = Course(4, 1, 5), {"steps": 60, "lora": 2, "warm_up": 0}
    through = train(pairs_file, tmp_path / "through", bert, course, **settings)
    stopped = tmp_path / "stopped"
    code = f"""
from pathlib import Path
import test_clip_training as t
t.train(Path({str(pairs_file)!r}), Path({str(stopped)!r}), Path({str(bert)!r}), t.Course(4, 1, 5), **{settings!r})
"""
    kill_after_checkpoint(code, stopped)
    assert not (stopped / MODEL).exists()
    begun = losses(stopped)
    assert 2 <= len(begun) < len(losses(tmp_path / "through"))
    with (stopped / LOG).open("a") as log:
        log.write("999,0.1,0.1")  # a row that was being written
    ended = train(pairs_file, stopped, bert, course, **settings)
    assert losses(stopped) == losses(tmp_path / "through") and len(losses(stopped)) == 13
    one, two = load_file(through), load_file(ended)
    assert set(one) == set(two) and all(torch.equal(value, two[name]) for name, value in one.items())
    assert not list(stopped.glob("*.part"))


def test_checkpoints_of_another_architecture_or_other_settings_are_refused(native, pairs_file, tmp_path):
    train(pairs_file, tmp_path / "run", native)
    narrow = native_folder(tmp_path / "narrow", width=32)
    other_pairs = picture_pairs(tmp_path / "other", 12, 4)
    for changes, words in (
        ({"model": narrow}, "architecture"),
        ({"model": native_folder(tmp_path / "start", seed=1)}, "start"),
        ({"loss": "dcl"}, "loss cehnc and not dcl"),
        ({"steps": 8}, "steps 4 and not 8"),
        ({"pairs_file": other_pairs}, "pairs"),
    ):
        settings = {"pairs_file": pairs_file, "output": tmp_path / "run", "model": native, **changes}
        with pytest.raises(InputError, match=words) as caught:
            train(**settings)
        assert "checkpoint.pt" in str(caught.value) and "\n" not in str(caught.value)
    (tmp_path / "run" / "checkpoint.pt").write_bytes(b"PK damaged")
    with pytest.raises(InputError, match="damaged"):
        train(pairs_file, tmp_path / "run", native)


def test_a_loss_that_is_no_number_stops_the_run_with_a_sentence(native, pairs_file, tmp_path):
    with pytest.raises(InputError, match="learning rate"):
        train(pairs_file, tmp_path / "run", native, steps=6, learning_rate=1e30)


# The result


@pytest.mark.parametrize("lora", [0, 2])
@pytest.mark.parametrize("family", ["native", "bert"])
def test_the_preset_finds_the_result_in_its_weights_folder(family, lora, native, bert, pairs_file, tmp_path):
    model = {"native": native, "bert": bert}[family]
    file = train(pairs_file, tmp_path, model, lora=lora, steps=3)
    store = WeightsStore(tmp_path / "store", folder=tmp_path)
    settings = VARIANTS["fine-tuned"]
    loaded, start = load_clip(settings.clip, store, "cpu"), clip_of_folder(model)
    record = clip_record(settings.clip, store)
    assert record["file"] == MODEL and re.fullmatch("[0-9a-f]{64}", record["sha256"])
    assert set(loaded.model.state_dict()) == set(start.model.state_dict())
    texts, shown = ["CT image of the liver"], torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert not torch.allclose(loaded.encode(texts), start.encode(texts), atol=1e-4)
    assert not torch.allclose(loaded.model.encode_image(shown), start.model.encode_image(shown), atol=1e-4)
    assert loaded.mean.flatten().tolist() == pytest.approx([0.4, 0.5, 0.6])
    card = read_card(file)
    assert card["training"]["lora"] == lora and card["pairs"] == {
        "digest": card["pairs"]["digest"],
        "train": 12,
        "val": 4,
    }
    text = (tmp_path / "fine-tuned-clip.md").read_text(encoding="utf-8")
    assert "base/fine-tuned" in text and "| fine-tuned | image to text | 4 | 4 |" in text and "research" in text
    assert said[-1] == card["retrieval"]


def test_the_vectors_of_the_file_are_those_of_the_averaged_adapters(native, pairs_file, tmp_path):
    """Merging the adapters into the weights changes no vector."""
    run = trainer(tmp_path, native, pairs_file, lora=2, steps=3, learning_rate=1e-2)
    for _ in range(3):
        run.train_step()
    with torch.no_grad():
        for name, value in run.weights.items():
            value.copy_(run.mean[name])
    model, ids = run.clip.model.eval(), run.clip.tokenizer.batch(["the liver", "a disc"])
    shown = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = model.encode_image(shown), model.encode_text(ids)
        run.take_mean()
        after = model.encode_image(shown), model.encode_text(ids)
    for one, other in zip(before, after, strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    assert not any("lora" in name for name in model.state_dict())


def test_a_fine_tuned_model_can_be_measured_and_tuned_further(native, pairs_file, tmp_path):
    file = train(pairs_file, tmp_path / "first", native)
    text = measure_retrieval(pairs_file, str(file), None, False, "cpu", None)
    assert "4 pairs of the split val" in text and f"| {MODEL} | text to image | 4 | 4 |" in text
    assert train(pairs_file, tmp_path / "second", file).is_file()


def test_what_the_user_should_know_is_said(native, tmp_path):
    file = picture_pairs(tmp_path / "p", 8, 2)
    rows = [(f"{n:03}.png", ("liver " * 40 if n < 3 else f"text {n}"), "train") for n in range(8)]
    said.clear()
    train(write_pairs(tmp_path / "p" / "long.csv", rows), tmp_path / "run", native)
    assert "3 of 8 captions are longer than the 20 tokens that the model reads; their ends are cut." in said
    assert any("2 captions repeat another" in sentence for sentence in said)
    assert said[-1].startswith("Retrieval was not measured")
    assert file.is_file()


# The command


def command(*arguments: str | Path):
    from typer.testing import CliRunner

    from MedZeroSegLib.cli import app

    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_says_where_the_model_lies_and_retrieval_with_its_pool(native, pairs_file, tmp_path):
    options = ("--pairs", pairs_file, "--model", native, "--device", "cpu")
    course = ("--steps", "2", "--batch", "4", "--chunk", "2", "--precision", "fp32", "--threads", "1", "--lora", "2")
    run = command("train", "clip", *options, *course, "--output", tmp_path)
    assert run.exit_code == 0 and str(tmp_path / MODEL) in run.output, run.output
    assert "| fine-tuned | text to image | 4 | 4 |" in run.output
    run = command("evaluate", "retrieval", "--pairs", pairs_file, "--model", tmp_path / MODEL, "--device", "cpu")
    assert run.exit_code == 0 and "| text to image | 4 | 4 |" in run.output, run.output


def test_the_commands_refuse_in_a_sentence_before_models_are_loaded(native, tmp_path):
    for words in (("train", "clip"), ("train", "dpfem")):
        run = command(*words, "--pairs", tmp_path / "none.csv", "--output", tmp_path)
        assert isinstance(run.exception, InputError) and "none.csv" in str(run.exception)
    file = picture_pairs(tmp_path / "p", 4, 0)
    run = command("train", "dpfem", "--pairs", file, "--output", tmp_path, "--model", native)
    assert isinstance(run.exception, InputError) and "biomedclip" in str(run.exception)


def test_the_command_line_itself_needs_no_torch():
    code = "import MedZeroSegLib.cli, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


# Bad input


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"loss": "clip"}, "dhn-nce"),
        ({"batch": 100}, "12 pairs"),
        ({"batch": 1}, "2 or more"),
        ({"precision": "fp8"}, "auto, bf16, fp32"),
        ({"model": "ViT-Z"}, "biomedclip"),
        ({"model": "ViT-B-16/nobody"}, "openai"),
    ],
)
def test_wrong_requests_are_refused_before_anything_is_trained(settings, words, native, pairs_file, tmp_path):
    with pytest.raises(InputError, match=words) as caught:
        train(**{"pairs_file": pairs_file, "output": tmp_path / "run", "model": native, **settings})
    assert "\n" not in str(caught.value) and not (tmp_path / "run" / "checkpoint.pt").exists()


def test_folders_without_a_whole_model_are_refused_with_what_is_missing(native, bert, tmp_path):
    def sentence(folder: Path) -> str:
        with pytest.raises(InstallationError) as caught:
            open_clip_model(str(folder), WeightsStore(tmp_path / "store"), "cpu")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "holds no weights" in sentence(tmp_path)
    for name, model in (("open_clip_config.json", native), ("vocab.txt", bert)):
        folder = shutil.copytree(model, tmp_path / f"without {name}")
        (folder / name).unlink()
        assert f"'{name}' is missing" in sentence(folder)
    mixed = shutil.copytree(native, tmp_path / "mixed")
    shutil.copy(bert / "open_clip_model.safetensors", mixed)
    assert "aren't those of the architecture" in sentence(mixed)
    resnet = shutil.copytree(native, tmp_path / "resnet")
    config = (
        (native / "open_clip_config.json")
        .read_text()
        .replace('"layers": 2, "width": 64', '"layers": [1, 1, 1, 1], "width": 16', 1)
    )
    (resnet / "open_clip_config.json").write_text(config)
    assert sentence(resnet)


def test_other_files_are_no_clip_models(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / MODEL)
    with pytest.raises(InstallationError, match="medzeroseg train"):
        clip_of_file(tmp_path / MODEL)
    with pytest.raises(InstallationError, match="train clip"):
        load_clip("fine-tuned-clip", WeightsStore(tmp_path / "store"), "cpu")


def test_open_clip_itself_opens_the_tensors(native, pairs_file, tmp_path):
    file = train(pairs_file, tmp_path / "run", native)
    folder = shutil.copytree(native, tmp_path / "theirs")
    shutil.copy(file, folder / "open_clip_model.safetensors")
    theirs = open_clip.create_model(f"local-dir:{folder}")
    shown = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = clip_of_file(file).model.encode_image(shown)
        assert torch.allclose(theirs.eval().encode_image(shown), expected, atol=1e-6)
