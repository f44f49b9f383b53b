"""Batch statistics over all processes: every process computes them from the same rows."""

from __future__ import annotations

import torch
from torch import Tensor, distributed


def rows_of_all_ranks(x: Tensor) -> Tensor:
    """Return x (B, ...) of all processes, in the order of their ranks: (W B, ...), without gradient.

    One all_gather; x itself where there is one process. All processes must hold the same B.
    """
    x = x.detach()
    if world_size() == 1:
        return x
    parts = [torch.empty_like(x) for _ in range(world_size())]
    distributed.all_gather(parts, x.contiguous())
    return torch.cat(parts)


def world_size() -> int:
    """Return the number of processes W; 1 without a process group."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """Return which of them this is."""
    return distributed.get_rank() if world_size() > 1 else 0
