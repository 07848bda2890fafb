"""Commands of `medzeroseg train` and `evaluate` for the towers of the preset `base`; torch comes when one runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Optional

import typer

PairsOption = Annotated[
    Path, typer.Option(help="CSV or TSV file with the columns image, caption and, if wanted, split.")
]
ImagesOption = Annotated[Optional[Path], typer.Option(help="Folder of the images; else that of the CSV file.")]  # noqa: UP045
MissingOption = Annotated[bool, typer.Option("--skip-missing", help="Leave out rows whose image is missing.")]
ModelOption = Annotated[
    str, typer.Option(help="biomedclip, a folder or file with a CLIP model, or open_clip's NAME or NAME/TAG.")
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
WeightsOption = Annotated[Optional[Path], typer.Option(help="Folder in which weights are looked for first.")]  # noqa: UP045
SeedOption = Annotated[int, typer.Option(help="Random seed.")]
EveryOption = Annotated[int, typer.Option(help="Steps between two checkpoints.")]


def add_commands(train: typer.Typer, evaluate: typer.Typer) -> None:
    """Add the commands of this file to the groups that they belong to."""
    train.command("clip")(train_clip)
    train.command("dpfem")(train_dpfem)
    evaluate.command("retrieval")(evaluate_retrieval)


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
