"""Processes: one, or several started by torchrun (gloo on CPU, nccl on GPU); the same code for both."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from wespeaker.errors import InputError

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run, and its device."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and shows."""
        return self.rank == 0


@contextmanager
def joined_ranks(device: str) -> Iterator[Ranks]:
    """Join the process group that torchrun's environment describes, if there is one; leave it at the end.

    Args:
        device: ``auto`` (a GPU where there is one), ``cpu`` or ``cuda``.

    Raises:
        InputError: more processes than GPUs, or a GPU is asked for where there is none.

    """
    rank, world_size, local_rank = (int(os.environ.get(n, d)) for n, d in
                                    (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))  # fmt: skip
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("a GPU is asked for but torch sees none; give --device cpu or install a CUDA build of torch")
    use_gpu = device != "cpu" and torch.cuda.is_available()
    if use_gpu and local_rank >= torch.cuda.device_count():
        raise InputError(
            f"{local_rank + 1} or more processes on this machine but only {torch.cuda.device_count()} GPUs"
        )
    place = torch.device("cuda", local_rank) if use_gpu else torch.device("cpu")
    if use_gpu:
        torch.cuda.set_device(place)
    if world_size == 1:
        yield Ranks(0, 1, place)
        return
    dist.init_process_group("nccl" if use_gpu else "gloo", device_id=place if use_gpu else None)
    try:
        yield Ranks(rank, world_size, place)
    finally:
        dist.destroy_process_group()


def sum_over_ranks(values: torch.Tensor, ranks: Ranks) -> torch.Tensor:
    """Return the sum of a tensor over all processes; one all-reduce of its size."""
    if ranks.world_size > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def max_over_ranks(value: torch.Tensor, ranks: Ranks) -> torch.Tensor:
    """Return the largest value of a tensor over all processes; one all-reduce of its size."""
    if ranks.world_size > 1:
        value = value.clone()
        dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return value


def gathered(value: T, ranks: Ranks) -> list[T]:
    """Return a value of every process, in the order of their ranks; for small objects and rare calls."""
    if ranks.world_size == 1:
        return [value]
    values: list[Any] = [None] * ranks.world_size
    dist.all_gather_object(values, value)
    return values


def wait_for_all(ranks: Ranks) -> None:
    """Wait until every process is here."""
    if ranks.world_size > 1:
        dist.barrier()
