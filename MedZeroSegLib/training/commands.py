"""The commands `medzeroseg train ...`, and `evaluate retrieval` for what one of them trains; torch comes on a run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Optional

import typer

from MedZeroSegLib.cli_options import DeviceOption, WeightsOption
from MedZeroSegLib.errors import InputError
from MedZeroSegLib.evaluation.commands import evaluate_app

train_app = typer.Typer(no_args_is_help=True, help="Train what the presets use.")

ManifestOption = Annotated[Path, typer.Option(help="manifest.csv; its train split is used.")]
PairsOption = Annotated[
    Path, typer.Option(help="CSV or TSV file with the columns image, caption and, if wanted, split.")
]
ImagesOption = Annotated[Optional[Path], typer.Option(help="Folder of the images; else that of the CSV file.")]  # noqa: UP045
MissingOption = Annotated[bool, typer.Option("--skip-missing", help="Leave out rows whose image is missing.")]
ModelOption = Annotated[
    str, typer.Option(help="biomedclip, a folder or file with a CLIP model, or open_clip's NAME or NAME/TAG.")
]
SeedOption = Annotated[int, typer.Option(help="Random seed.")]
EveryOption = Annotated[int, typer.Option(help="Steps between two checkpoints.")]


@train_app.command("lite")
def train_lite(
    manifest: Annotated[Optional[Path], typer.Option(help="manifest.csv; its train split is used.")] = None,  # noqa: UP045
    examples: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="In place of a manifest: CSV file with the columns image, mask, label and, if wanted, value, slice, "
            "modality, color, code. A few labelled slices of new structures; the shipped names stay as they are."
        ),
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for embeddings, checkpoint and head.")] = Path("runs/lite"),
    steps: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Optimiser steps; 1300 without this option, with examples 120."),
    ] = None,
    all_licences: Annotated[
        bool,
        typer.Option("--all-licences", help="Also sources for non-commercial use; the head is then bound to that."),
    ] = False,
    start: Annotated[Optional[Path], typer.Option(help="Head to go on from.")] = None,  # noqa: UP045
    start_share: Annotated[float, typer.Option(help="Share of that head in the weights that are written.")] = 0.0,
    more: Annotated[
        Optional[list[Path]],  # noqa: UP045
        typer.Option(help="Another manifest whose train split is learnt too; may be given several times."),
    ] = None,
    seed: SeedOption = 0,
    weights_folder: WeightsOption = None,
) -> None:
    """Train the lite head, or add your own structures to the shipped one. Goes on where it was stopped."""
    if (manifest is None) == (examples is None):
        raise InputError("Give either --manifest, to train the head anew, or --examples, to add structures to it.")
    if examples is not None:
        from MedZeroSegLib.training.few_shot import FewShotTraining, train_examples

        settings = FewShotTraining(seed=seed) if steps is None else FewShotTraining(steps=steps, seed=seed)
        typer.echo(str(train_examples(examples, output, settings, weights_folder, _tell)))
        return
    assert manifest is not None
    from MedZeroSegLib.training.lite import train

    manifests = (manifest, *(more or ()))
    file = train(
        manifests, output, 1300 if steps is None else steps, all_licences, start, start_share, seed, weights_folder
    )
    typer.echo(str(file))


@train_app.command("brain-template")
def brain_template(
    folder: Annotated[Path, typer.Argument(help="Where the picture, its mask and manifest.csv are written.")],
) -> None:
    """Write the ICBM 2009 brain, which the package nilearn carries, as a manifest for `train lite --more`."""
    from MedZeroSegLib.training.brain_template import write_template_manifest

    typer.echo(str(write_template_manifest(folder)))


@train_app.command("corrector")
def train_corrector(
    manifest: ManifestOption,
    output: Annotated[Path, typer.Option(help="Folder for embeddings and weights.")] = Path("runs/lite"),
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 800,
    checkpoint_every: EveryOption = 50,
    seed: SeedOption = 0,
    weights_folder: WeightsOption = None,
) -> None:
    """Train the corrector, which turns clicks and strokes into masks, on simulated ones. Goes on where it stopped."""
    from MedZeroSegLib.training.corrector import train

    typer.echo(str(train(manifest, output, steps, seed, weights_folder, checkpoint_every)))


@train_app.command("weak")
def train_weak_command(
    cohort: Annotated[Path, typer.Argument(metavar="DIR", help="Output of `medzeroseg cohort --uncertainty`.")],
    output: Annotated[Path, typer.Option(help="Folder for the student; --preset takes it.")],
    steps: Annotated[int, typer.Option(help="Steps of the optimiser.")] = 600,
    batch: Annotated[int, typer.Option(help="Slices or stacks of one step.")] = 4,
    keep: Annotated[float, typer.Option(help="Share of each structure's masks to learn from, the surest.")] = 0.7,
    dimension: Annotated[int, typer.Option(help="2 or 3; 0 chooses by the spacing.")] = 0,
    checkpoint_every: EveryOption = 50,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
) -> None:
    """Train a student on the masks of a cohort, no others, weighted by how sure they are. Goes on where it stopped."""
    from MedZeroSegLib.training.weak import WeakTraining, train_weak

    settings = WeakTraining(steps=steps, batch=batch, keep=keep, dimension=dimension, seed=seed)
    typer.echo(str(train_weak(cohort, output, settings, checkpoint_every, device, _tell)))


@train_app.command("confidence")
def train_confidence_command(
    manifest: Annotated[Path, typer.Option(help="manifest.csv; a sample of its train split is measured.")],
    preset: Annotated[str, typer.Option(help="lite or lite-research.")] = "lite",
    output: Annotated[Path, typer.Option(help="Folder for what was measured of each image.")] = Path("runs/confidence"),
    weights_folder: WeightsOption = None,
) -> None:
    """Fit presence and expected Dice of a preset, after a change of its head. Goes on where it was stopped."""
    from MedZeroSegLib.training.confidence import train_confidence

    typer.echo(str(train_confidence(manifest, preset, output, weights_folder)))


@train_app.command("names")
def train_names(weights_folder: WeightsOption = None) -> None:
    """Write the shipped text vectors of all names anew, after a change of the vocabulary; takes minutes."""
    from MedZeroSegLib.text_image.minilm import MiniLmTextTower
    from MedZeroSegLib.text_image.text_vectors import SHIPPED, write_table
    from MedZeroSegLib.vocabulary import vocabulary, wordings
    from MedZeroSegLib.weights import weights_store

    tower = MiniLmTextTower(weights_store(weights_folder).locate("minilm"))
    write_table(tower, [wordings(structure) for structure in vocabulary().values()])
    typer.echo(str(SHIPPED))


@train_app.command("clip")
def train_clip(
    pairs: PairsOption,
    output: Annotated[Path, typer.Option(help="Folder for checkpoint, log and model.")],
    model: ModelOption = "biomedclip",
    images: ImagesOption = None,
    skip_missing: MissingOption = False,
    loss: Annotated[str, typer.Option(help="cehnc, cehnc-paper, infonce, dcl, hn-nce or dhn-nce.")] = "cehnc",
    epochs: Annotated[float, typer.Option(help="Times that each pair is shown.")] = 10.0,
    steps: Annotated[Optional[int], typer.Option(help="Steps of the optimiser, in place of epochs.")] = None,  # noqa: UP045
    batch: Annotated[int, typer.Option(help="Pairs of one step, over all processes.")] = 256,
    chunk: Annotated[int, typer.Option(help="Pairs encoded at a time; lower it where memory runs out.")] = 32,
    lora: Annotated[int, typer.Option(help="Rank of low-rank adapters; 0 trains the weights themselves.")] = 0,
    precision: Annotated[str, typer.Option(help="bf16, fp32 or auto: bf16 on NVIDIA's cards.")] = "auto",
    learning_rate: Annotated[
        float, typer.Option(help="Of the towers; projections and adapters have multiples.")
    ] = 1e-6,
    temperature: Annotated[Optional[float], typer.Option(help="Of the loss; its own without it.")] = None,  # noqa: UP045
    threads: Annotated[int, typer.Option(help="Threads that read images.")] = 4,
    checkpoint_every: EveryOption = 50,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    weights_folder: WeightsOption = None,
) -> None:
    """Fine-tune a CLIP model on image-caption pairs. Goes on where it was stopped; on several cards by torchrun."""
    from MedZeroSegLib.training.pairs import read_pairs

    read = read_pairs(pairs, images, skip_missing)
    from MedZeroSegLib.training import clip

    settings = clip.ClipTraining(
        loss=loss,
        steps=steps or 0,
        batch=batch,
        lora=lora,
        precision=precision,
        temperature=temperature,
        learning_rate=learning_rate,
        seed=seed,
    )
    course = clip.Course(chunk, threads, checkpoint_every)
    file = clip.train_clip(
        read, output, model, settings, None if steps else epochs, course, device, weights_folder, _tell
    )
    if os.environ.get("RANK", "0") == "0":  # of the processes that torchrun starts
        typer.echo(str(file))


@train_app.command("dpfem")
def train_dpfem(
    pairs: PairsOption,
    output: Annotated[Path, typer.Option(help="Folder for features, checkpoint and module.")],
    model: Annotated[str, typer.Option(help="biomedclip or fine-tuned-clip: the towers whose features it refines.")] = (
        "biomedclip"
    ),
    images: ImagesOption = None,
    skip_missing: MissingOption = False,
    literal: Annotated[bool, typer.Option("--literal", help="The paper's literal form: gate one half.")] = False,
    steps: Annotated[int, typer.Option(help="Steps of the optimiser.")] = 20_000,
    batch: Annotated[int, typer.Option(help="Pictures of one step.")] = 64,
    checkpoint_every: EveryOption = 100,
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
    weights_folder: WeightsOption = None,
) -> None:
    """Train the dual path on the patch features of `base`, without masks. Goes on where it was stopped."""
    from MedZeroSegLib.training.pairs import read_pairs

    read = read_pairs(pairs, images, skip_missing)
    from MedZeroSegLib.training import dpfem

    settings = dpfem.DpfemTraining(steps=steps, batch=batch, literal=literal, seed=seed)
    file = dpfem.train_dpfem(read, output, model, settings, checkpoint_every, device, weights_folder, _tell)
    typer.echo(str(file))


@evaluate_app.command("retrieval")
def evaluate_retrieval(
    pairs: PairsOption,
    model: ModelOption = "biomedclip",
    images: ImagesOption = None,
    skip_missing: MissingOption = False,
    device: DeviceOption = "auto",
    weights_folder: WeightsOption = None,
) -> None:
    """How often a CLIP model finds a picture's caption and a caption's picture, by the size of the pool."""
    from MedZeroSegLib.training.clip_retrieval import measure_retrieval

    typer.echo(measure_retrieval(pairs, model, images, skip_missing, device, weights_folder))


def _tell(sentence: str) -> None:
    typer.echo(sentence, err=True)
