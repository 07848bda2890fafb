"""The command line. Exit status 0: done, also when a structure was not found; 2: the input or the request is wrong;
3: the machine or the installation is at fault. Errors are one sentence on stderr."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from MedZeroSegLib.cli_options import RESEARCH_NOTE, DeviceOption, PresetOption, WeightsOption
from MedZeroSegLib.cohort.commands import cohort, status
from MedZeroSegLib.errors import InstallationError, MedZeroSegError
from MedZeroSegLib.evaluation.commands import evaluate_app, reproduce
from MedZeroSegLib.training.commands import train_app

if TYPE_CHECKING:
    from MedZeroSegLib.segment import Segmentation
    from MedZeroSegLib.volume import Volume
    from MedZeroSegLib.weights import WeightRow

DEMO_FILE = "RG1_UNCR.dcm"
DEMO_NAMES = "left lung; right lung"

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # whose packages take longer to import than the help to read
    help="Text-prompted segmentation of medical images.",
)
weights_app = typer.Typer(no_args_is_help=True, help="List, fetch, import and verify model weights.")
app.add_typer(weights_app, name="weights")
app.add_typer(evaluate_app, name="evaluate")
app.add_typer(train_app, name="train")
app.command()(cohort)
app.command()(status)
app.command()(reproduce)


@app.command()
def segment(
    image: Annotated[Path, typer.Argument(help="NIfTI, NRRD, MetaImage, PNG, JPEG, a DICOM file or a DICOM folder.")],
    structures: Annotated[str, typer.Option(help='Names separated by ";" or ",", such as "liver; left kidney".')],
    output: Annotated[Path, typer.Option(help=".seg.nrrd, .nii, .nii.gz, or .dcm for a DICOM image.")],
    preset: PresetOption = "lite",
    device: DeviceOption = "auto",
    report: Annotated[Optional[Path], typer.Option(help="JSON file that says how the result was made.")] = None,  # noqa: UP045
    modality: Annotated[str | None, typer.Option(help="CT, MR, X-ray, ultrasound, PET; else read or guessed.")] = None,
    frame: Annotated[Optional[int], typer.Option(help="Frame of a time series, from 0.")] = None,  # noqa: UP045
    sensitivity: Annotated[float, typer.Option(help="0 to 1: the higher, the less evidence is enough.")] = 0.5,
    cache: Annotated[bool, typer.Option(help="Keep the image's embeddings on this machine for the next run.")] = True,
    weights_folder: WeightsOption = None,
) -> None:
    """Segment named structures in one image."""
    from MedZeroSegLib.sensitivity import check_sensitivity
    from MedZeroSegLib.volume_io import read_volume
    from MedZeroSegLib.writers import check_output, write_report, write_segmentation

    check_output(output, image)
    check_sensitivity(sensitivity)
    volume = read_volume(image, modality=modality, frame=frame)
    result = _run(volume, structures, preset, device, weights_folder, sensitivity, cache)
    written = write_segmentation(result, output)
    if report is not None:
        write_report(result, report)
        written = (*written, report)
    _tell(result)
    for file in written:
        typer.echo(str(file))
    typer.echo(RESEARCH_NOTE, err=True)


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for the mask, the report and the overlay picture.")] = Path(
        "demo-output"
    ),
    device: DeviceOption = "auto",
    weights_folder: WeightsOption = None,
) -> None:
    """Segment the lungs of a real chest radiograph that the package pydicom-data brings."""
    from MedZeroSegLib.evaluation.overlays import write_overlay
    from MedZeroSegLib.volume_io import read_volume
    from MedZeroSegLib.writers import write_report, write_segmentation

    result = _run(read_volume(_demo_image()), DEMO_NAMES, "lite", device, weights_folder)
    written = [*write_segmentation(result, output / "lungs.seg.nrrd")]
    write_report(result, output / "lungs.json")
    write_overlay(result, output / "lungs.png")
    _tell(result)
    for file in (*written, output / "lungs.json", output / "lungs.png"):
        typer.echo(str(file.resolve()))
    typer.echo(RESEARCH_NOTE, err=True)


@app.command()
def names(text: Annotated[str, typer.Argument(help='Names as typed, such as "lt kidney; livr".')]) -> None:
    """Show what typed names would be understood as."""
    from rich.console import Console
    from rich.table import Table

    from MedZeroSegLib.queries import resolve

    table = Table("typed", "understood as", "side", "code", "status", "did you mean", "remarks")
    for query in resolve(text):
        code = f"{query.code.scheme} {query.code.value} {query.code.meaning}" if query.code else "-"
        known = query.name if query.structure else "- (passed on as typed)"
        known += f" ({query.language})" if query.language else ""
        suggestions = ", ".join(query.suggestions) or "-"
        table.add_row(
            query.typed, known, query.side or "-", code, query.status, suggestions, " ".join(query.warnings) or "-"
        )
    Console().print(table)


@weights_app.command("list")
def weights_list(weights_folder: WeightsOption = None) -> None:
    """The catalogue: files, sizes, licences, and where each lies."""
    from MedZeroSegLib.weights import weights_store

    _show_weights(weights_store(weights_folder).rows())


@weights_app.command("verify")
def weights_verify(
    names: Annotated[Optional[list[str]], typer.Argument(help="Models or presets; all without names.")] = None,  # noqa: UP045
    weights_folder: WeightsOption = None,
) -> None:
    """Hash every weight file that is here."""
    from MedZeroSegLib.weights import weights_store

    rows = weights_store(weights_folder).verify(*(names or ()))
    _show_weights(rows)
    if any(row.ok is False for row in rows):
        raise InstallationError("A weight file isn't the one that the catalogue lists; the table above names it.")


@weights_app.command("fetch")
def weights_fetch(
    names: Annotated[list[str], typer.Argument(help="Models or presets, such as base.")],
    ca_file: Annotated[Optional[Path], typer.Option(help="Certificates to trust beside the usual ones.")] = None,  # noqa: UP045
) -> None:
    """Download weights; an interrupted download goes on where it stopped."""
    from rich.console import Console
    from rich.progress import Progress as Bar

    from MedZeroSegLib.weights import weights_store

    store = weights_store(ca_file=ca_file)
    with Bar(console=Console(stderr=True)) as bar:
        task = bar.add_task("downloading", total=None)
        store.fetch(*names, progress=lambda done, total: bar.update(task, completed=done, total=total))
    _show_weights(store.rows(*names))


@weights_app.command("import")
def weights_import(
    folder: Annotated[Path, typer.Argument(help="Folder with files carried here by hand.")],
) -> None:
    """Take weight files from a folder, whatever their names; they are known by their hash."""
    from MedZeroSegLib.weights import weights_store
    from MedZeroSegLib.weights_import import import_folder

    _show_weights(import_folder(weights_store(), folder))


def _show_weights(rows: Sequence[WeightRow]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("name", "file", "MB", "licence", "where", "hash", "remarks")
    for row in rows:
        size = f"{row.size / 1e6:.1f}" if row.size else "?"
        state = {True: "right", False: "WRONG", None: "-"}[row.ok]
        table.add_row(row.weights, row.file, size, row.licence, row.place or "missing", state, row.note)
    Console().print(table)


def main() -> None:
    """Entry point: runs the command and turns errors into a sentence and an exit status."""
    try:
        app(standalone_mode=True)
    except MedZeroSegError as problem:
        typer.echo(str(problem), err=True)
        sys.exit(problem.exit_code)
    except MemoryError:
        typer.echo("There is not enough memory; close other programs or crop the image.", err=True)
        sys.exit(InstallationError.exit_code)


def _run(
    volume: Volume,
    structures: str,
    preset: str,
    device: str,
    weights_folder: Path | None,
    sensitivity: float = 0.5,
    cache: bool = False,
) -> Segmentation:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    from MedZeroSegLib.memory import require_memory
    from MedZeroSegLib.queries import resolve

    # Before torch, whose import alone may fail for want of memory.
    require_memory(volume, len(resolve(structures)), preset=preset)
    from MedZeroSegLib.embedding_store import embedding_store
    from MedZeroSegLib.pipeline import segment as segment_volume

    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("loading", total=1.0)

        def show(stage: str, share: float, /, **_values: str | int) -> None:
            bar.update(task, description=stage, completed=share)

        store = embedding_store() if cache else None
        where = (preset, device, weights_folder)
        return segment_volume(volume, structures, *where, show, sensitivity=sensitivity, store=store)


def _tell(result: Segmentation) -> None:
    for warning in result.warnings:
        typer.echo(warning, err=True)
    for item in result.segments:
        size = result.volume_ml(item)
        amount = f", {size:.1f} ml" if size is not None else ""
        sure = f", expected Dice {item.confidence.expected_dice:.2f}" if item.confidence else ""
        state = f"found, score {item.score:.2f}{sure}{amount}" if item.found else f"not found, score {item.score:.2f}"
        typer.echo(f"{item.name}: {state}")
        for warning in item.warnings:
            typer.echo(f"  {warning}", err=True)


def _demo_image() -> Path:
    from pydicom.data import get_testdata_file

    found = get_testdata_file(DEMO_FILE, download=False)
    if found is None:
        raise InstallationError("The demonstration image is missing; install it with `pip install pydicom-data`.")
    return Path(str(found))
