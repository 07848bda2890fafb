"""One process of a training of CLIP: the gradients of its first batch, for the test that compares numbers of processes.

Run     python clip_rank.py MODEL_FOLDER PAIRS_CSV OUTPUT, with RANK and WORLD_SIZE as torchrun sets them
Writes  OUTPUT/gradients-RANK.pt: the gradients, the loss and the difficulty
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch

from MedZeroSegLib.trained_weights import clip_of_folder
from MedZeroSegLib.training.clip import ClipTrainer, ClipTraining, Course
from MedZeroSegLib.training.pairs import read_pairs
from MedZeroSegLib.training.processes import ALONE, Processes, started_processes

SETTINGS = ClipTraining(steps=4, batch=8, precision="fp32", learning_rate=1e-3)


def first_gradients(
    model: Path, pairs_file: Path, output: Path, loss: str, chunk: int = 2, processes: Processes = ALONE
) -> None:
    pairs = read_pairs(pairs_file)
    clip = clip_of_folder(model, "cpu")
    trainer = ClipTrainer(
        clip, pairs.of("train"), pairs.digest, output, replace(SETTINGS, loss=loss), Course(chunk, 1), processes
    )
    clip.model.train()
    found = trainer.accumulate(next(trainer.batches.after(0, 1)))
    gradients = {name: weight.grad for name, weight in trainer.weights.items()}
    torch.save(
        {"gradients": gradients, "told": found, "lambdas": trainer.difficulty.state_dict()},
        output / f"gradients-{loss}-{processes.rank}.pt",
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    # One group for both losses: of a second one on the same port a process may meet what is left of the first.
    with started_processes("cpu") as (group, _):
        for name in ("cehnc", "dhn-nce"):
            first_gradients(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), name, processes=group)
