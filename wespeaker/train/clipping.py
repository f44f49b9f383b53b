"""Clipping by the norm of all gradients together, where each rank has the gradients of its own classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from wespeaker.losses import grad_norm
from wespeaker.train.distributed import Ranks, sum_over_ranks


@torch.no_grad()
def clip_grad_norm_over_ranks(
    replicated: Sequence[nn.Parameter], sharded: Sequence[nn.Parameter], max_norm: float, ranks: Ranks
) -> torch.Tensor:
    """Scale all gradients in place by min(1, max_norm / (norm + 1e-6)), the same factor on all ranks.

    One all-reduce of one number. A norm that is not finite makes the gradients NaN or zero, as torch's does.

    Args:
        replicated: parameters whose gradients are equal on all ranks.
        sharded: parameters of which each rank has other rows; their gradients may be row-sparse.
        max_norm: largest norm to leave, above 0.
        ranks: this process among those of the run.

    Returns:
        The norm before clipping, 0-dimensional: of the gradients that one process would have.

    """
    squares = sum_over_ranks(grad_norm(sharded).to(ranks.device).square(), ranks)
    norm = (grad_norm(replicated).to(ranks.device).square() + squares).sqrt()
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for param in (*replicated, *sharded):
        if param.grad is not None:
            param.grad.mul_(factor)
    return norm
