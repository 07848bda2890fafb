"""The commands `medzeroseg evaluate ...` and `medzeroseg reproduce`. Exit status 1: a figure wasn't reproduced."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from MedZeroSegLib.cli_options import DeviceOption, PresetOption, WeightsOption

if TYPE_CHECKING:
    from MedZeroSegLib.evaluation.target import Target
    from MedZeroSegLib.segment import Segmentation
    from MedZeroSegLib.volume import Volume

NOT_REPRODUCED = 1  # exit status

evaluate_app = typer.Typer(no_args_is_help=True, help="Measure a preset on images with reference masks.")

OutputOption = Annotated[Path, typer.Option(help="Folder for scores, masks and report; the same one goes on.")]
PromptsOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="JSON, TOML or YAML file with the texts to type, or a shipped set: P0, P1, P2 or P3."),
]
BaselineOption = Annotated[bool, typer.Option("--baseline", help="Also run the naive reference on the same weights.")]
OverlaysOption = Annotated[Optional[Path], typer.Option(help="Folder for a picture of every image.")]  # noqa: UP045
LimitOption = Annotated[Optional[int], typer.Option(help="At most this many images of each source.")]  # noqa: UP045
RootArgument = Annotated[Path, typer.Argument(help="Folder into which the data set was unpacked.")]


@dataclass(frozen=True)
class _Request:
    """What all evaluations may be asked."""

    output: Path
    preset: str
    device: str = "auto"
    prompts: str | None = None
    baseline: bool = False
    overlays: Path | None = None
    limit: int | None = None
    weights_folder: Path | None = None


@evaluate_app.command("manifest")
def evaluate_manifest(
    manifest: Annotated[Path, typer.Argument(help="manifest.csv with one row per image and mask.")],
    output: OutputOption,
    split: Annotated[str, typer.Option(help="The manifest's split to measure.")] = "val",
    preset: PresetOption = "lite",
    device: DeviceOption = "auto",
    prompts: PromptsOption = None,
    baseline: BaselineOption = False,
    overlays: OverlaysOption = None,
    limit: LimitOption = None,
    variant: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Variant of the preset base, or dense for all dense ones; may be given several times."),
    ] = None,
    weights_folder: WeightsOption = None,
) -> None:
    """Dice, IoU, surface distances, found and false-find rates on a manifest's images."""
    from MedZeroSegLib.evaluation.ablation import chosen_presets, evaluate_variants
    from MedZeroSegLib.evaluation.target import manifest_target

    def measure(name: str, folder: Path) -> str:
        request = _Request(folder, name, device, prompts, baseline, overlays, limit, weights_folder)
        return _measure(lambda: manifest_target(manifest, split), "manifest", request)

    if variant:
        typer.echo(evaluate_variants(chosen_presets(preset, variant), measure, output))
    else:
        _tell(measure(preset, output), output)


@evaluate_app.command("acdc")
def evaluate_acdc(
    root: RootArgument,
    output: OutputOption,
    split: Annotated[
        str, typer.Option(help="test (patients 101-150), train, all, or list-test, list-val, list-train of 70/10/20.")
    ] = "test",
    preset: PresetOption = "lite",
    device: DeviceOption = "auto",
    prompts: PromptsOption = None,
    baseline: BaselineOption = False,
    overlays: OverlaysOption = None,
    limit: LimitOption = None,
    weights_folder: WeightsOption = None,
) -> None:
    """The same on ACDC as downloaded: patientNNN folders with Info.cfg."""
    request = _Request(output, preset, device, prompts, baseline, overlays, limit, weights_folder)
    _tell(_measure_data_set("acdc", root, split, "all", request), output)


@evaluate_app.command("synapse")
def evaluate_synapse(
    root: RootArgument,
    output: OutputOption,
    split: Annotated[str, typer.Option(help="test (TransUNet's 12 cases), train (18) or all.")] = "test",
    preset: PresetOption = "lite",
    device: DeviceOption = "auto",
    prompts: PromptsOption = None,
    baseline: BaselineOption = False,
    overlays: OverlaysOption = None,
    limit: LimitOption = None,
    weights_folder: WeightsOption = None,
) -> None:
    """The same on Synapse (BTCV) as downloaded: img and label folders, or TransUNet's caseNNNN.npy.h5."""
    request = _Request(output, preset, device, prompts, baseline, overlays, limit, weights_folder)
    _tell(_measure_data_set("synapse", root, split, "all", request), output)


@evaluate_app.command("covidqu")
def evaluate_covidqu(
    root: RootArgument,
    output: OutputOption,
    split: Annotated[str, typer.Option(help="test, val, train or all.")] = "test",
    task: Annotated[str, typer.Option(help="lungs, infection or all.")] = "all",
    preset: PresetOption = "lite",
    device: DeviceOption = "auto",
    prompts: PromptsOption = None,
    baseline: BaselineOption = False,
    overlays: OverlaysOption = None,
    limit: LimitOption = None,
    weights_folder: WeightsOption = None,
) -> None:
    """The same on COVID-QU-Ex as downloaded: radiographs with masks of lungs and of infection."""
    request = _Request(output, preset, device, prompts, baseline, overlays, limit, weights_folder)
    _tell(_measure_data_set("covidqu", root, split, task, request), output)


@evaluate_app.command("compare")
def evaluate_compare(
    first: Annotated[Path, typer.Argument(help="Output folder of one evaluation.")],
    second: Annotated[Path, typer.Argument(help="Output folder of another one on the same images.")],
    output: Annotated[Optional[Path], typer.Option(help="Markdown file for the comparison.")] = None,  # noqa: UP045
) -> None:
    """Paired t-test and Wilcoxon test between two evaluations."""
    from MedZeroSegLib.evaluation.comparison import compare_folders
    from MedZeroSegLib.writers import replacing

    text = compare_folders(first, second)
    if output is not None:
        with replacing(output) as file:
            file.write(text.encode("utf-8"))
    typer.echo(text)


def reproduce(
    recipe: Annotated[Path, typer.Argument(help="A file of Testing/benchmarks/reproduce.")],
    images: Annotated[Path, typer.Argument(help="The manifest.csv or data set that the figures were measured on.")],
    output: OutputOption,
    device: DeviceOption = "auto",
    weights_folder: WeightsOption = None,
) -> None:
    """Measure figures that are printed somewhere once more, and say whether they come out."""
    from MedZeroSegLib.evaluation.reproduce import judge, read_recipe
    from MedZeroSegLib.evaluation.target import manifest_target

    wanted = read_recipe(recipe)
    request = _Request(output, wanted.preset, device, wanted.prompts or None, weights_folder=weights_folder)
    if wanted.data == "manifest":
        _measure(lambda: manifest_target(images, wanted.split), "manifest", request)
    else:
        _measure_data_set(wanted.data, images, wanted.split, "all", request)
    verdict = judge(wanted, output)
    typer.echo(verdict.text)
    if not verdict.reproduced:
        raise typer.Exit(NOT_REPRODUCED)


def _measure_data_set(name: str, root: Path, split: str, task: str, request: _Request) -> str:
    from MedZeroSegLib.evaluation.datasets import DATA_SETS

    return _measure(lambda: DATA_SETS[name].target(root, split, task), name, request)


def _measure(find: Callable[[], Target], data: str, request: _Request) -> str:
    """Find the images, load the models and measure; returns the report in Markdown."""
    from MedZeroSegLib.evaluation.prompt_sets import read_prompts

    target = find()  # before PyTorch is loaded: wrong paths and texts are told at once
    prompts = None if request.prompts is None else read_prompts(request.prompts, data)
    from MedZeroSegLib.evaluation.baseline import naive_segment
    from MedZeroSegLib.evaluation.closed_presets import segment_known
    from MedZeroSegLib.evaluation.run import evaluate
    from MedZeroSegLib.pipeline import segment
    from MedZeroSegLib.presets import load_engine

    engine = load_engine(request.preset, request.device, request.weights_folder)

    def ask(volume: Volume, asked: Sequence[str]) -> Segmentation:
        return segment(volume, asked, request.preset, request.device, request.weights_folder)

    return evaluate(
        target,
        lambda volume, asked: segment_known(engine, volume, asked, ask),
        request.output,
        request.preset,
        prompts=prompts,
        baseline=(lambda volume, asked: naive_segment(engine, volume, asked)) if request.baseline else None,
        overlays=request.overlays,
        limit=request.limit,
        page=True,
    )


def _tell(text: str, output: Path) -> None:
    typer.echo(text)
    typer.echo(str(output / "report.html"))
