"""Processes that work on cases, through Dask: started on this machine, by SLURM, or somewhere else already.

Local ones talk over the loopback address with certificates made for the run, so nobody else on the machine can join."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from MedZeroSegLib.cohort.work import CASES_AT_ONCE
from MedZeroSegLib.errors import InputError, InstallationError
from MedZeroSegLib.protocol import ENVIRONMENT

if TYPE_CHECKING:
    from distributed import Client

LOOPBACK = "127.0.0.1"
MEMORY_SHARE_MAX = 0.95  # of its part of the memory; a worker that takes more is ended before the machine stalls
START_S = 180  # until a worker must have come up, with all its imports
ANSWER_S = 10  # until a scheduler that is said to run must have answered
SLURM, SLURM_MEMORY = "slurm", "8GB"  # of a job, where the configuration of dask-jobqueue names none
TRIM = {"MALLOC_TRIM_THRESHOLD_": "65536"}  # glibc gives memory back after each case
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
MISSING = "Cohorts need Dask, which isn't installed; run `pip install 'medzeroseg[cohort]'`."
SLURM_MISSING = "Starting workers through SLURM needs dask-jobqueue; run `pip install dask-jobqueue`."


@dataclass(frozen=True)
class Crew:
    """How many processes work, and with how many threads each computes.

    Attributes
    ----------
    scheduler
        "" for processes of this machine, "slurm", or the address of a scheduler of Dask that is running.
    workers
        0 at an address: as many as have joined.
    threads
        0 at an address: as its workers were started.
    gpus
        Graphics cards, one for each worker in turn; 0 where they aren't used.
    """

    scheduler: str
    workers: int
    threads: int
    gpus: int = 0

    @property
    def sentence(self) -> str:
        """What works, in words."""
        if self.scheduler not in ("", SLURM):
            return f"Workers: those of the scheduler at {self.scheduler}, with the threads that they were started with."
        several = "es" if self.workers > 1 else ""
        where = f"process{several} in jobs of SLURM" if self.scheduler else f"process{several} on this machine"
        cards = f", one for each of {self.gpus} graphics cards" if self.gpus else ""
        threads = f"{self.threads} compute thread{'s' if self.threads > 1 else ''}"
        return f"Workers: {self.workers} {where}{cards}, each with {threads}."


def plan_crew(scheduler: str | None, workers: int | None, threads: int | None, device: str, preset: str) -> Crew:
    """The crew for what was asked: without numbers as many processes as fit into the memory, at most one a core, and
    the cores shared among them.

    Raises
    ------
    InputError
        For numbers below 1, or threads for workers that run already.
    """
    if any(number is not None and number < 1 for number in (workers, threads)):
        raise InputError("Workers and threads are counted from 1.")
    scheduler = scheduler or ""
    if scheduler not in ("", SLURM):
        if threads or workers:
            raise InputError("Workers that run already keep their number and threads; leave both options out.")
        return Crew(scheduler, 0, 0)
    if scheduler == SLURM:
        return Crew(SLURM, workers or 1, threads or 4)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    gpus = _graphics_cards(device)
    workers = workers or gpus or max(1, min(cores, _fitting(preset)))
    return Crew("", workers, threads or max(1, cores // workers), min(gpus, workers))


def _fitting(preset: str) -> int:
    """How many processes with loaded models fit into the free memory, with a volume of middling size each."""
    from MedZeroSegLib.memory import free_bytes, needed_bytes

    return int(free_bytes() // needed_bytes((200, 512, 512), 5, preset))


def _graphics_cards(device: str) -> int:
    """Number of CUDA cards, where they are to be used; the driver is asked without starting work on a card."""
    if device not in ("auto", "cuda"):
        return 0
    import torch

    return torch.cuda.device_count()


@contextmanager
def hired(crew: Crew, shared: Path) -> Iterator[tuple[Client, int]]:
    """A client of the crew's scheduler, and how many cases may be handed out at once. All ends with the block.

    Parameters
    ----------
    shared
        A folder that jobs of a cluster see too; their certificates lie there meanwhile.

    Raises
    ------
    InstallationError
        When Dask is missing, or no worker comes up.
    """
    try:
        import dask
        from distributed import Client
    except ImportError as problem:
        raise InstallationError(MISSING) from problem
    _silence_dask()
    with ExitStack() as stack:
        stack.enter_context(dask.config.set(_configuration(crew)))
        try:
            if crew.scheduler == SLURM:
                target = stack.enter_context(_slurm_cluster(crew, shared))
            elif crew.scheduler:
                target = crew.scheduler
            else:
                target = stack.enter_context(_local_cluster(crew))
            client = stack.enter_context(Client(target, timeout=ANSWER_S if crew.scheduler else START_S))
            if not crew.scheduler:
                client.wait_for_workers(1, timeout=START_S)
        except (TimeoutError, OSError, ValueError) as problem:
            place = crew.scheduler or "this machine"
            reason = str(problem).partition("\n")[0] or type(problem).__name__
            raise InstallationError(
                f"Nothing that works could be reached at '{place}' ({reason}); check it, or leave --scheduler out."
            ) from problem
        slots = crew.workers * CASES_AT_ONCE or max(1, sum(client.nthreads().values()))
        yield client, slots


def _silence_dask() -> None:
    """Keep Dask's own log off the terminal; what matters comes as a sentence."""
    for name in [name for name in logging.root.manager.loggerDict if name.partition(".")[0] == "distributed"]:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)


def _configuration(crew: Crew) -> dict[str, Any]:
    """Dask's settings: no memory juggling, for workers hand over a few lines only, and no page for the network."""
    return {
        **{f"distributed.{key}": value for key, value in _worker_settings().items()},
        "distributed.scheduler.no-workers-timeout": None if crew.scheduler else f"{START_S}s",
        "distributed.nanny.pre-spawn-environ": {**TRIM, **_thread_variables(crew)},
        "distributed.scheduler.http.routes": [],
    }


def _worker_settings() -> dict[str, Any]:
    return {
        "worker.memory.target": False,
        "worker.memory.spill": False,
        "worker.memory.pause": False,
        "worker.memory.terminate": MEMORY_SHARE_MAX,
        "worker.http.routes": [],
    }


def _local_cluster(crew: Crew) -> Any:
    from distributed import Nanny, Scheduler, SpecCluster
    from distributed.security import Security
    from distributed.system import MEMORY_LIMIT

    try:
        security = Security.temporary()
    except ImportError as problem:
        raise InstallationError(MISSING.replace("Dask", "cryptography")) from problem
    common = {"host": LOOPBACK, "protocol": "tls://", "security": security, "dashboard": False}
    options = {
        **common,
        "nthreads": CASES_AT_ONCE,
        "memory_limit": MEMORY_LIMIT // crew.workers,
        "silence_logs": logging.CRITICAL,
    }
    workers = {
        number: {"cls": Nanny, "options": {**options, "env": _environment(crew, number)}}
        for number in range(crew.workers)
    }
    scheduler = {"cls": Scheduler, "options": {**common, "port": 0, "dashboard_address": f"{LOOPBACK}:0"}}
    return SpecCluster(workers, scheduler, security=security, silence_logs=logging.CRITICAL)


def _environment(crew: Crew, number: int) -> dict[str, str]:
    """Variables of one worker: nothing goes to a network, and only its own card is seen."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    cards = visible if visible[0] else [str(card) for card in range(crew.gpus)]
    card = {"CUDA_VISIBLE_DEVICES": cards[number % crew.gpus]} if crew.gpus else {}
    return {**ENVIRONMENT, **_thread_variables(crew), **card}


def _thread_variables(crew: Crew) -> dict[str, str]:
    return {name: str(crew.threads) for name in THREAD_VARIABLES}


def _slurm_cluster(crew: Crew, shared: Path) -> Any:
    """Jobs of one worker each; queue, account, time and memory as the user's Dask configuration has them."""
    try:
        from dask_jobqueue import SLURMCluster
    except ImportError as problem:
        raise InstallationError(SLURM_MISSING) from problem
    import dask

    # Configuration that is made here reaches jobs as variables only.
    settings = {f"distributed.{key}": value for key, value in _worker_settings().items()}
    variables = {f"DASK_{key.upper().replace('.', '__')}": repr(value) for key, value in settings.items()}
    exports = [f"export {name}={value}" for name, value in {**_environment(crew, 0), **variables}.items()]
    cluster = SLURMCluster(
        cores=CASES_AT_ONCE,
        job_cpu=crew.threads,
        processes=1,
        memory=dask.config.get("jobqueue.slurm.memory", None) or SLURM_MEMORY,
        python=sys.executable,
        job_script_prologue=[*(dask.config.get("jobqueue.slurm.job-script-prologue", None) or []), *exports],
        security=True,
        shared_temp_directory=str(shared),
        scheduler_options={"dashboard": False, "dashboard_address": f"{LOOPBACK}:0"},
        death_timeout=START_S,
        worker_extra_args=["--no-dashboard", "--dashboard-address", f"{LOOPBACK}:0"],
    )
    cluster.scale(jobs=crew.workers)
    return cluster
