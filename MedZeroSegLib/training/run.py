"""What every training run shares: the loop, its checkpoint and its log.

A run that was killed at any moment goes on from its last checkpoint to the same weights and the same log.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import math
import pickle
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.console import Console
from rich.progress import Progress

from MedZeroSegLib.errors import InputError
from MedZeroSegLib.writers import replacing

CHECKPOINT, LOG = "checkpoint.pt", "log.csv"


class Trainer(Protocol):
    """What `run_training` drives.

    Attributes
    ----------
    step, steps
        Steps done, and in all.
    measured
        Names of the numbers that a step returns.
    made_with
        All that the result depends on; a checkpoint that was begun with something else is refused.
    """

    step: int
    steps: int

    @property
    def measured(self) -> tuple[str, ...]: ...

    @property
    def made_with(self) -> Mapping[str, Any]: ...

    def train_step(self) -> dict[str, float]:
        """One step of the optimiser; advances ``step``."""

    def state_dict(self) -> dict[str, Any]:
        """All that changes from step to step: tensors, numbers, texts."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Back to where `state_dict` was taken."""


def run_training(trainer: Trainer, folder: Path, every: int, leading: bool = True) -> None:
    """Train to the last step, with a line of the log and a checkpoint every so many steps.

    ``leading`` is False in the other processes of a run that has several: they write nothing.

    Raises
    ------
    InputError
        When the checkpoint in the folder isn't this run's, or the loss is no number any more.
    """
    resume(trainer, folder)
    log = TrainingLog(folder, ("step", *trainer.measured, "seconds"), trainer.step) if leading else None
    sums: dict[str, float] = dict.fromkeys(trainer.measured, 0.0)
    counted, started = 0, time.monotonic()
    with Progress(console=Console(stderr=True), disable=not leading) as progress:
        task = progress.add_task("training", total=trainer.steps, completed=trainer.step)
        while trainer.step < trainer.steps:
            found = trainer.train_step()
            _require_numbers(found, trainer.step)
            sums = {name: sums[name] + found[name] for name in sums}
            counted += 1
            progress.update(task, completed=trainer.step)
            if log is not None and (trainer.step % every == 0 or trainer.step == trainer.steps):
                means = {name: sums[name] / counted for name in trainer.measured}
                log.add({"step": trainer.step, **means, "seconds": time.monotonic() - started})
                save_checkpoint(trainer, folder)
                sums = dict.fromkeys(sums, 0.0)
                counted, started = 0, time.monotonic()


def save_checkpoint(trainer: Trainer, folder: Path) -> None:
    """The whole state of a run, written atomically."""
    state = {"made_with": _plain(trainer.made_with), "step": trainer.step, "state": trainer.state_dict()}
    with replacing(folder / CHECKPOINT) as handle:
        torch.save(state, handle)


def resume(trainer: Trainer, folder: Path) -> None:
    """Go on from the checkpoint in ``folder``, if there is one.

    Raises
    ------
    InputError
        When it is damaged, of another architecture, or was begun with other settings.
    """
    file = folder / CHECKPOINT
    if not file.is_file():
        return
    otherwise = "give another output folder, or delete it to begin anew"
    try:
        stored = torch.load(file, map_location="cpu", weights_only=True)
        begun, step, state = stored["made_with"], stored["step"], stored["state"]
    except (pickle.UnpicklingError, OSError, RuntimeError, EOFError, ValueError, KeyError, TypeError) as problem:
        raise InputError(f"'{file}' is damaged or no checkpoint of this training; {otherwise}.") from problem
    wanted = _plain(trainer.made_with)
    for name in sorted({*begun, *wanted}):
        if begun.get(name) != wanted.get(name):
            raise InputError(
                f"'{file}' was begun with {name.replace('_', ' ')} {begun.get(name)} and not {wanted.get(name)}; "
                f"{otherwise}."
            )
    try:
        trainer.load_state_dict(state)
    except (RuntimeError, ValueError, KeyError) as problem:
        raise InputError(f"'{file}' is of another architecture; {otherwise}.") from problem
    trainer.step = step


class TrainingLog:
    """A CSV file with a row every so many steps, and TensorBoard's events beside it where that is installed.

    Parameters
    ----------
    step
        Steps done; rows of later ones, which the checkpoint doesn't hold, are dropped and will be written again.
    """

    def __init__(self, folder: Path, columns: Sequence[str], step: int) -> None:
        self.file, self.columns = folder / LOG, tuple(columns)
        kept = [row for row in self._rows() if int(row[0]) <= step] if step else []
        with replacing(self.file) as handle:
            text = "".join(",".join(row) + "\n" for row in [list(self.columns), *kept])
            handle.write(text.encode())
        self.board: Any = None
        if importlib.util.find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(folder), purge_step=step + 1)

    def add(self, values: Mapping[str, float]) -> None:
        """One row."""
        with self.file.open("a", newline="", encoding="utf-8") as handle:
            csv.writer(handle, lineterminator="\n").writerow([f"{values[name]:.6g}" for name in self.columns])
        if self.board is not None:
            for name in self.columns[1:]:
                self.board.add_scalar(name, values[name], int(values["step"]))
            self.board.flush()

    def _rows(self) -> list[list[str]]:
        """Rows written before, without a last one that was cut off."""
        if not self.file.is_file():
            return []
        with self.file.open(newline="", encoding="utf-8") as handle:
            rows = list(csv.reader(handle))[1:]
        return [row for row in rows if len(row) == len(self.columns) and row[0].isdigit()]


def _require_numbers(found: Mapping[str, float], step: int) -> None:
    for name, value in found.items():
        if not math.isfinite(value):
            raise InputError(
                f"The {name} of step {step} is no number any more; give a lower learning rate or --precision fp32."
            )


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON would bring it back, so that what is compared was stored alike."""
    return json.loads(json.dumps(dict(settings), default=str))
