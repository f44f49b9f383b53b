"""Batch statistics over all processes: every process computes them from the same rows."""

from __future__ import annotations

import torch
from torch import Tensor, distributed


def rows_of_all_ranks(x: Tensor) -> Tensor:
    """Return x (B, ...) of all processes, in the order of their ranks: (sum of their B, ...), without gradient.

    Two all_gathers, the first of the sizes, which may differ at the end of an epoch; x itself where there is one
    process.
    """
    x = x.detach()
    if world_size() == 1:
        return x
    counts = [torch.empty(1, dtype=torch.int64, device=x.device) for _ in range(world_size())]
    distributed.all_gather(counts, torch.tensor([len(x)], device=x.device))
    sizes = torch.cat(counts).tolist()
    padded = x.new_zeros(max(sizes), *x.shape[1:])
    padded[: len(x)] = x
    parts = [torch.empty_like(padded) for _ in sizes]
    distributed.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def world_size() -> int:
    """Return the number of processes W; 1 without a process group."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """Return which of them this is."""
    return distributed.get_rank() if world_size() > 1 else 0
