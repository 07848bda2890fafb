"""How fast a training step moves the weights, and the running mean of the weights, which is what is kept of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor


def rate_share(step: int, steps: int, warm_up: int, floor: float = 0.0) -> float:
    """Share of the full learning rate in step ``step`` from 0: a linear rise, then half a cosine down to ``floor``."""
    if step < warm_up:
        return (step + 1) / warm_up
    done = (step - warm_up) / max(1, steps - warm_up)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give all parameters the same learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


@torch.no_grad()
def follow(mean: Mapping[str, Tensor], weights: Mapping[str, Tensor], memory: float, step: int) -> None:
    """Move the running mean towards the weights after ``step`` steps, in place; its memory is shorter at first."""
    share = 1 - min(memory, step / (step + 10))
    for name, value in weights.items():
        mean[name].lerp_(value.detach(), share)
