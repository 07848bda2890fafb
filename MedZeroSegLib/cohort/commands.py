"""The commands `medzeroseg cohort` and `medzeroseg status`. Exit status 1: at least one case failed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from MedZeroSegLib.cli_options import RESEARCH_NOTE, DeviceOption, PresetOption, WeightsOption

if TYPE_CHECKING:
    from MedZeroSegLib.cohort.estimate import Estimate
    from MedZeroSegLib.cohort.journal import Journal
    from MedZeroSegLib.cohort.plan import Plan
    from MedZeroSegLib.cohort.workers import Crew

SOME_FAILED = 1  # exit status
FAILURES_TOLD_MAX = 20
NAMES_TOLD_MAX = 5


def cohort(
    source: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            help="Folder (files, DICOM series, nnU-Net raw, BIDS), pattern in quotes, or .csv with the column path.",
        ),
    ],
    output: Annotated[Path, typer.Option(help="Folder for the results; the same one goes on where a run stopped.")],
    structures: Annotated[str, typer.Option(help="Names for all cases whose row in the table has none.")] = "",
    preset: PresetOption = "lite",
    device: DeviceOption = "auto",
    workers: Annotated[Optional[int], typer.Option(help="Processes; else what cores and memory allow.")] = None,  # noqa: UP045
    threads: Annotated[Optional[int], typer.Option(help="Compute threads of each; else the cores shared.")] = None,  # noqa: UP045
    scheduler: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="slurm, or the address of a Dask scheduler; else processes on this machine."),
    ] = None,
    format: Annotated[str, typer.Option(help="seg.nrrd, nii.gz or nii.")] = "seg.nrrd",
    dicom_seg: Annotated[bool, typer.Option("--dicom-seg", help="Also a DICOM SEG for cases from DICOM.")] = False,
    uncertainty: Annotated[
        bool, typer.Option("--uncertainty", help="Also a map of doubtful voxels; training on the masks needs it.")
    ] = False,
    use_corrections: Annotated[
        bool, typer.Option("--use-corrections", help="Learn from accepted and corrected cases, where that helps.")
    ] = False,
    modality: Annotated[str | None, typer.Option(help="CT, MR, X-ray, ultrasound, PET; else read or guessed.")] = None,
    frame: Annotated[Optional[int], typer.Option(help="Frame of time series, from 0.")] = None,  # noqa: UP045
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Also cases that failed before.")] = False,
    allow_unknown: Annotated[
        bool, typer.Option("--allow-unknown", help="Also names that aren't known, as they are.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell what would be done, and how long it takes.")] = False,
    weights_folder: WeightsOption = None,
) -> None:
    """Segment many images; resumable. Only what is missing, changed or damaged is computed."""
    from MedZeroSegLib.cohort.inputs import find_cases
    from MedZeroSegLib.cohort.settings import RunSettings, check_structures, engine_marks
    from MedZeroSegLib.cohort.workers import plan_crew
    from MedZeroSegLib.presets import own_structures

    folder = output.expanduser().absolute()
    settings = RunSettings(
        preset=preset,
        device=device,
        weights_folder=weights_folder,
        format=format,
        dicom_seg=dicom_seg,
        uncertainty=uncertainty,
        use_corrections=use_corrections,
    )
    found = find_cases(source, structures, modality, frame)
    for sentence in (*found.notes, *check_structures(found.cases, allow_unknown, own_structures(preset))):
        typer.echo(sentence, err=True)
    crew = plan_crew(scheduler, workers, threads, device, preset)
    engine = engine_marks(settings)
    if dry_run:
        _tell_dry_run(found.cases, folder, settings, engine, crew, retry_failed)
        return
    counts = _run(found.cases, folder, settings, engine, crew, retry_failed)
    _write_summaries(folder)
    typer.echo(RESEARCH_NOTE, err=True)
    if counts.get("failed"):
        raise typer.Exit(SOME_FAILED)


def status(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder named with --output.")],
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    failures: Annotated[int, typer.Option(help="How many failures to tell.")] = FAILURES_TOLD_MAX,
) -> None:
    """How far a cohort is: counts, failures and the time that is left. Exit status 1 where a case failed."""
    from MedZeroSegLib.cohort.journal import Journal, is_running

    journal = Journal(folder)
    counts, running = journal.counts(), is_running(folder)
    if not running and "running" in counts:  # it was stopped in the middle of them
        counts["waiting"] = counts.get("waiting", 0) + counts.pop("running")
    each = journal.seconds_a_case()
    open_cases = counts.get("waiting", 0) + counts.get("running", 0)
    left = each * open_cases if running and each is not None else None
    told = journal.failures(failures)
    if as_json:
        typer.echo(json.dumps({"counts": counts, "running": running, "seconds_left": left, "failures": told}))
    else:
        typer.echo(_counted(counts))
        if running and open_cases:
            typer.echo("Running, " + (f"about {duration(left)} left." if left is not None else "no case finished yet."))
        elif open_cases:
            typer.echo(f"Not running, {open_cases} cases are still to be done; the same command goes on.")
        for name, sentence in told:
            typer.echo(f"{name}: {sentence}")
        if counts.get("failed", 0) > len(told):
            typer.echo(f"... and {counts['failed'] - len(told)} further failures.")
    if counts.get("failed"):
        raise typer.Exit(SOME_FAILED)


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 5400:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h"


def _run(cases: Any, folder: Path, settings: Any, engine: Any, crew: Crew, retry_failed: bool) -> dict[str, int]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    from MedZeroSegLib.cohort.run import Progress, run_cohort

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task("cases", total=None)

        def show_plan(plan: Plan) -> None:
            for line in _plan_lines(plan, crew):
                console.print(line, highlight=False, markup=False, soft_wrap=True)
            bar.update(task, total=len(plan.turns))

        def show(progress: Progress) -> None:
            failed = f", {progress.failed} failed" if progress.failed else ""
            bar.update(task, completed=progress.done + progress.failed, description=f"cases{failed}")

        try:
            counts = run_cohort(cases, folder, settings, engine, crew, retry_failed, show_plan, show)
        except KeyboardInterrupt:
            typer.echo("Stopped; the same command goes on from here.", err=True)
            raise
    typer.echo(_counted(counts))
    return counts


def _write_summaries(folder: Path) -> None:
    """Report, review list and statistics of all cases that the journal knows."""
    from importlib.util import find_spec

    from MedZeroSegLib.cohort.journal import Journal
    from MedZeroSegLib.cohort.report import write_cohort_report
    from MedZeroSegLib.cohort.review import REVIEW_FILE, with_reviews, write_review
    from MedZeroSegLib.cohort.statistics import write_statistics

    journal = Journal(folder)
    records = list(journal.records())
    journal.close()
    parquet = folder / "statistics.parquet" if find_spec("pyarrow") else None
    write_statistics(records, folder / "statistics.csv", parquet)
    listed = write_review(records, folder / REVIEW_FILE)
    report = write_cohort_report(with_reviews(records, listed), folder)
    for file in (report, folder / REVIEW_FILE):
        typer.echo(str(file))


def _tell_dry_run(cases: Any, folder: Path, settings: Any, engine: Any, crew: Crew, retry_failed: bool) -> None:
    from MedZeroSegLib.cohort.estimate import estimate
    from MedZeroSegLib.cohort.journal import FILE, Journal
    from MedZeroSegLib.cohort.plan import make_plan
    from MedZeroSegLib.cohort.review import reviewed_cases

    journal = Journal(folder) if (folder / FILE).is_file() else None
    entries, outputs = (journal.entries(), journal.outputs()) if journal else ({}, {})
    reviews, learned = reviewed_cases(folder), None
    if settings.use_corrections:
        from MedZeroSegLib.cohort.corrections import learned_before, sources_of

        sources = sources_of(cases, folder, settings, engine, reviews)
        learned = learned_before(sources, folder, settings)
        if learned is None:
            typer.echo(f"To learn from: {len(sources)} accepted or corrected cases; the plan is made without them.")
    plan = make_plan(cases, entries, outputs, folder, settings, engine, retry_failed, reviews, learned)
    expected = estimate(
        [turn.case for turn in plan.turns], settings.preset, settings.device, crew, _measured_seconds(journal)
    )
    for line in (*_plan_lines(plan, crew), *_estimate_lines(expected, crew)):
        typer.echo(line)


def _measured_seconds(journal: Journal | None) -> float | None:
    return journal.mean_seconds() if journal else None


def _plan_lines(plan: Plan, crew: Crew) -> list[str]:
    whole = len(plan.kept) + len(plan.ready) - len(plan.reviewed) - len(plan.by_hand)
    learned = plan.learned.taught.lines() if plan.learned else []
    reasons = ", ".join(f"{count} {reason}" for reason, count in plan.reasons.items())
    lines = [*learned, f"To compute: {len(plan.turns)} cases" + (f" ({reasons})." if reasons else ".")]
    if whole:
        lines.append(f"Whole already: {whole} cases.")
    if plan.reviewed:
        lines.append(f"Accepted or corrected by people and left as they are: {len(plan.reviewed)} cases.")
    if plan.by_hand:
        told = ", ".join(plan.by_hand[:NAMES_TOLD_MAX]) + (" and others" if len(plan.by_hand) > NAMES_TOLD_MAX else "")
        lines.append(
            f"Masks that a person changed, though no mark says so, left as they are: {told}; delete a file, and its "
            "case is computed anew."
        )
    if plan.failed:
        lines.append(f"Failed before and left alone: {len(plan.failed)} cases; --retry-failed tries them again.")
    if plan.turns:
        lines.append(crew.sentence)
    return lines


def _estimate_lines(expected: Estimate, crew: Crew) -> list[str]:
    from MedZeroSegLib.memory import free_bytes

    lines = [f"Memory: at most about {expected.bytes_a_worker / 1e9:.1f} GB for each worker."]
    if not crew.scheduler:
        needed = expected.bytes_a_worker * crew.workers
        fits = "which is free" if needed < free_bytes() else f"and only {free_bytes() / 1e9:.1f} GB are free"
        lines[0] = f"{lines[0][:-1]}, {needed / 1e9:.1f} GB together, {fits}."
    basis = "from speeds measured on this machine" if expected.measured else "roughly: nothing was measured here yet"
    lines.append(f"Time: about {duration(expected.seconds)} ({basis}).")
    if expected.unreadable:
        lines.append(f"Left out of both: {expected.unreadable} images whose header can't be read.")
    return lines


def _counted(counts: dict[str, int]) -> str:
    listed = ", ".join(
        f"{counts[status]} {status}" for status in ("done", "failed", "running", "waiting") if status in counts
    )
    return f"Cases: {listed or 'none'}."
