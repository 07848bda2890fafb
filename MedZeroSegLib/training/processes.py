"""Several processes that train one model, one for each graphics card, as torchrun starts them.

Every process computes the loss over the vectors of all and takes the gradient of its own: what it then lacks of a
weight's gradient the others have, so the sum over the processes is the gradient of one process with the whole batch.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

WAIT_MAX = timedelta(hours=12)  # for a process that encodes captions or measures while the others wait


@dataclass(frozen=True)
class Processes:
    """This process's number and how many there are."""

    rank: int = 0
    count: int = 1

    @property
    def leading(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0

    def joined(self, own: Tensor) -> Tensor:
        """The rows of all processes, in their order; gradients flow to this process's own."""
        if self.count == 1:
            return own
        rows = [torch.empty_like(own) for _ in range(self.count)]
        dist.all_gather(rows, own.detach().contiguous())
        rows[self.rank] = own
        return torch.cat(rows)

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Each gradient becomes the sum over the processes."""
        if self.count > 1:
            for parameter in parameters:
                if parameter.grad is not None:
                    dist.all_reduce(parameter.grad)

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            dist.barrier()


ALONE = Processes()


@contextmanager
def started_processes(device: str) -> Iterator[tuple[Processes, str]]:
    """The processes that torchrun started, and this one's device; a single process without torchrun."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield ALONE, device
        return
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo", timeout=WAIT_MAX)
    try:
        yield Processes(dist.get_rank(), count), device
    finally:
        dist.destroy_process_group()
