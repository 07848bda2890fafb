"""Backward through a loss over a whole batch whose vectors are computed piece by piece, exactly as if at once.

Gao, Zhang, Han, Callan, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", RepL4NLP 2021.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Vectors = tuple[Tensor, Tensor]


def cached_backward(
    encode: Callable[[int], Vectors], pieces: int, loss_of: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Add the gradients of the loss to the parameters behind ``encode``; memory follows one piece, not the batch.

    Parameters
    ----------
    encode
        Vectors [c, d] of the pictures and of the texts of piece n; the same each time, dropout included.
    loss_of
        Scalar loss of all pieces' vectors, in order.

    Returns
    -------
    The loss, detached.
    """
    if pieces == 1:
        kept = encode(0)
        leaves = [part.detach().requires_grad_() for part in kept]
        loss = loss_of(*leaves)
        torch.autograd.backward(kept, torch.autograd.grad(loss, leaves))
        return loss.detach()
    with torch.no_grad():
        seen = [encode(n) for n in range(pieces)]
    leaves = [torch.cat(parts).requires_grad_() for parts in zip(*seen, strict=True)]
    loss = loss_of(*leaves)
    gradients = torch.autograd.grad(loss, leaves)
    start = 0
    for n, (images, _) in enumerate(seen):
        rows = slice(start, start := start + len(images))
        torch.autograd.backward(encode(n), [part[rows] for part in gradients])
    return loss.detach()
