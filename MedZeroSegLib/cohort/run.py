"""The coordinating process: hands cases to workers, puts what comes back in its place, and notes it in the journal.

Dask decides which worker takes a case. A case during which a process dies is tried again at the end, with nothing
beside it in its process, so that the next death is its own fault and no neighbour's."""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from MedZeroSegLib.cohort.by_hand import KEPT, bring_back, put_in_place
from MedZeroSegLib.cohort.case import Case
from MedZeroSegLib.cohort.case_record import CaseRecord, failed_record
from MedZeroSegLib.cohort.journal import Journal, held
from MedZeroSegLib.cohort.plan import Plan, Turn, make_plan, renewed
from MedZeroSegLib.cohort.review import reviewed_cases
from MedZeroSegLib.cohort.settings import EngineMarks, RunSettings
from MedZeroSegLib.cohort.verdicts import forget_taught
from MedZeroSegLib.cohort.work import (
    CASES_FOLDER,
    WORK_FOLDER,
    WorkerLost,
    case_folder,
    read_answer,
    run_case,
    work_place,
)
from MedZeroSegLib.cohort.workers import Crew, hired
from MedZeroSegLib.errors import InstallationError, MedZeroSegError

if TYPE_CHECKING:
    from distributed import Client, Future

    from MedZeroSegLib.cohort.corrections import Learned

RETRIES_MOST = 2  # of a case during which the worker's process has died
LOST = (
    "The process that worked on this case died {times} times, probably for want of memory; run it again with fewer "
    "workers or names, or crop the image."
)

NOBODY_LEFT = "The scheduler or all of its workers have gone; start them anew, and the same command goes on from here."


@dataclass(frozen=True)
class Progress:
    """How far a run is: cases done, failed and to compute in this run, and the case that was finished last."""

    done: int
    failed: int
    total: int
    latest: str


OnProgress = Callable[[Progress], None]


def run_cohort(
    cases: tuple[Case, ...],
    folder: Path,
    settings: RunSettings,
    engine: EngineMarks,
    crew: Crew,
    retry_failed: bool = False,
    on_plan: Callable[[Plan], None] | None = None,
    on_progress: OnProgress | None = None,
) -> dict[str, int]:
    """Compute what is missing, changed or damaged of a cohort.

    Parameters
    ----------
    folder
        For the results; made where it is missing.
    on_plan
        Told what is to be done before it begins.
    on_progress
        Told after each case.

    Returns
    -------
    dict
        Number of the cohort's cases by status.

    Raises
    ------
    InputError
        When another run works on the folder, or its review list can't be read.
    InstallationError
        When no worker comes up, or the folder or the journal can't be written.
    """
    _make_folders(folder)
    with held(folder):
        journal = Journal(folder, make=True)
        try:
            bring_back(folder, folder / WORK_FOLDER)
            reviews = reviewed_cases(folder)
            learned = _learned(cases, folder, settings, engine, crew, reviews)
            plan = make_plan(
                cases, journal.entries(), journal.outputs(), folder, settings, engine, retry_failed, reviews, learned
            )
            if on_plan:
                on_plan(plan)
            run = journal.start_run(crew.workers, crew.threads, asdict(settings))
            _take_over(plan, journal, folder, run)
            _adopt(plan, journal, folder, reviews)
            journal.await_turns((turn.case, turn.reason) for turn in plan.turns)
            if plan.turns:
                work = folder / WORK_FOLDER
                work.mkdir(exist_ok=True)
                with hired(crew, work) as (client, slots):
                    _Dispatch(client, slots, journal, folder, settings, run, plan, on_progress).run()
            shutil.rmtree(folder / WORK_FOLDER, ignore_errors=True)
            names = {case.name for case in cases}
            statuses = [entry.status for name, entry in journal.entries().items() if name in names]
            return {status: statuses.count(status) for status in dict.fromkeys(statuses)}
        finally:
            journal.close()


def _make_folders(folder: Path) -> None:
    try:
        (folder / CASES_FOLDER).mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        reason = (problem.strerror or "the system gives no reason").lower()
        raise InstallationError(
            f"'{folder}' cannot be made ({reason}); give an output folder that you may write to."
        ) from problem


def _learned(
    cases: tuple[Case, ...],
    folder: Path,
    settings: RunSettings,
    engine: EngineMarks,
    crew: Crew,
    reviews: Mapping[str, str],
) -> Learned | None:
    """What accepted and corrected cases teach, where that is wanted; kept in the folder for the report."""
    if not settings.use_corrections:
        forget_taught(folder)
        return None
    from MedZeroSegLib.cohort.corrections import learn, sources_of

    return learn(sources_of(cases, folder, settings, engine, reviews), folder, settings, crew)


def _take_over(plan: Plan, journal: Journal, folder: Path, run: int) -> None:
    """Note results that were ready when an earlier run ended, clear away its rest, and renew what the input says."""
    for case, place, answer in plan.ready:
        if not put_in_place(place, case_folder(folder, case.name)):
            answer = read_answer(case_folder(folder, case.name)) or answer
        record = renewed(CaseRecord.from_json(answer["record"]), case)
        journal.finish({**answer, "record": record.to_json()}, run)
    shutil.rmtree(folder / WORK_FOLDER, ignore_errors=True)
    kept = {case.name: (case, signature) for case, signature in plan.kept}
    records = [record for record in journal.records() if record.case in kept]
    journal.touch([(renewed(record, kept[record.case][0]), kept[record.case][1]) for record in records])


def _adopt(plan: Plan, journal: Journal, folder: Path, reviews: Mapping[str, str]) -> None:
    """Make numbers and pictures of masks that people changed."""
    from MedZeroSegLib.cohort.adoption import adopted

    cases = {case.name: case for case, _signature in plan.kept}
    cases |= {case.name: case for case, _place, _answer in plan.ready}
    changed = {*plan.reviewed, *plan.by_hand}
    for record in [record for record in journal.records() if record.case in changed]:
        new = adopted(cases[record.case], record, folder, reviews.get(record.case, ""))
        if new != record:
            journal.put(new)


@dataclass
class _Dispatch:
    """Cases on their way to the workers and back."""

    client: Client
    slots: int
    journal: Journal
    folder: Path
    settings: RunSettings
    run_number: int
    plan: Plan
    on_progress: OnProgress | None
    done: int = 0
    failed: int = 0
    deaths: dict[str, int] = field(default_factory=dict)

    def run(self) -> None:
        """All cases; those during which a process died come last and alone."""
        turns = self.plan.turns
        possible = [turn for turn in turns if not turn.case.problem]
        for turn in turns:
            if turn.case.problem:
                self._fail(turn, turn.case.problem)
        suspects: deque[Turn] = deque()
        self._drain(deque(possible), suspects, alone=False)
        self._drain(suspects, suspects, alone=True)

    def _drain(self, waiting: deque[Turn], suspects: deque[Turn], alone: bool) -> None:
        """Keep the workers busy until nothing waits and nothing is under way."""
        from distributed import as_completed

        under_way: dict[object, tuple[Turn, int]] = {}
        answers = as_completed([])
        while waiting or under_way:
            while waiting and len(under_way) < self.slots:
                turn = waiting.popleft()
                attempt = self.journal.begin(turn.case.name)
                future = self._submit(turn, attempt, alone)
                under_way[future.key] = (turn, attempt)
                answers.add(future)
            future = next(answers)
            turn, attempt = under_way.pop(future.key)
            self._take(future, turn, attempt, suspects)

    def _submit(self, turn: Turn, attempt: int, alone: bool) -> Future:
        return self.client.submit(
            run_case,
            turn.case,
            self.settings,
            turn.marks,
            self.folder,
            attempt,
            alone,
            self.plan.learned,
            key=f"case-{self.run_number}-{turn.case.name}-{attempt}",
            pure=False,
        )

    def _take(self, future: Future, turn: Turn, attempt: int, suspects: deque[Turn]) -> None:
        """Note what came back of one case."""
        from distributed import KilledWorker
        from distributed.scheduler import NoWorkerError

        place = work_place(self.folder, turn.case.name, attempt)
        try:
            answer = future.result()
        except (WorkerLost, KilledWorker):
            shutil.rmtree(place, ignore_errors=True)
            deaths = self.deaths[turn.case.name] = self.deaths.get(turn.case.name, 0) + 1
            if deaths > RETRIES_MOST:
                self._fail(turn, LOST.format(times=deaths))
            else:
                suspects.append(turn)
            return
        except (CancelledError, NoWorkerError) as problem:
            raise InstallationError(NOBODY_LEFT) from problem
        except Exception as problem:  # a worker that can't take the case at all, as where another version is installed
            reason = str(problem).partition("\n")[0] or type(problem).__name__
            self._fail(turn, f"The worker could not take this case ({reason}); see that it has the same installation.")
            return
        finally:
            future.release()
        self._settle(turn, answer, place)

    def _settle(self, turn: Turn, answer: dict[str, Any], place: Path) -> None:
        record = CaseRecord.from_json(answer["record"])
        if record.status == "failed":
            self.failed += 1
            self.journal.fail(record, answer["signature"], turn.marks, self.run_number)
            self._tell(turn)
            return
        final = case_folder(self.folder, turn.case.name)
        try:
            status = reviewed_cases(self.folder).get(turn.case.name, "") if final.exists() else ""
            if not put_in_place(place, final, status):
                answer = _kept_answer(read_answer(final) or answer, record)
        except MedZeroSegError as problem:
            self._fail(turn, str(problem))
            return
        self.done += 1
        self.journal.finish(answer, self.run_number)
        self._tell(turn)

    def _fail(self, turn: Turn, sentence: str) -> None:
        case = turn.case
        self.failed += 1
        record = failed_record(case.name, str(case.image), sentence, 0.0, case.carried)
        self.journal.fail(record, case.signature(), turn.marks, self.run_number)
        self._tell(turn)

    def _tell(self, turn: Turn) -> None:
        if self.on_progress:
            self.on_progress(Progress(self.done, self.failed, len(self.plan.turns), turn.case.name))


def _kept_answer(answer: dict[str, Any], computed: CaseRecord) -> dict[str, Any]:
    """The answer of masks that a person changed while the case was computed anew, which says so."""
    record = CaseRecord.from_json(answer["record"])
    warnings = tuple(dict.fromkeys((*record.warnings, KEPT)))
    record = replace(record, image=computed.image, carried=computed.carried, warnings=warnings)
    return {**answer, "record": record.to_json()}
