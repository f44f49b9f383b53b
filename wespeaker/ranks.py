"""Processes: one, or several that torchrun starts on one machine or many (gloo on CPU, nccl on GPU); the same code."""

from __future__ import annotations

import heapq
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from wespeaker.errors import InputError
from wespeaker.watch import ARRIVAL_TIMEOUT, watched

T = TypeVar("T")

EXCHANGE_TIMEOUT = timedelta(minutes=30)  # of processes that work in step
WORK_TIMEOUT = timedelta(days=7)  # of processes that wait for the work of others


@dataclass(frozen=True)
class Ranks:
    """This process among those of the run, its device, and how long one exchange between them may take."""

    rank: int
    world_size: int
    device: torch.device
    timeout: timedelta = EXCHANGE_TIMEOUT

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and shows."""
        return self.rank == 0


ALONE = Ranks(0, 1, torch.device("cpu"))  # of what one process does by itself


@contextmanager
def joined_ranks(device: str, *, timeout: timedelta = EXCHANGE_TIMEOUT) -> Iterator[Ranks]:
    """Join the process group that torchrun's environment describes, if there is one; leave it at the end.

    Inside, a process that fails or is not heard of any more ends all others within a minute, with its reason.

    Args:
        device: ``auto`` (a GPU where there is one), ``cpu`` or ``cuda``.
        timeout: of one exchange between the processes; it ends those that wait for each other by a mistake.

    Raises:
        InputError: more processes than GPUs, a GPU is asked for where there is none, or a process did not come.

    """
    rank, world_size, local_rank = (int(os.environ.get(n, d)) for n, d in
                                    (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))  # fmt: skip
    if world_size == 1:
        yield Ranks(0, 1, _own_device(device, local_rank))
        return
    store, _, _ = next(dist.rendezvous("env://", timeout=ARRIVAL_TIMEOUT))
    with watched(store, rank=rank, world_size=world_size):  # the device too: it may be missing on one machine alone
        place = _own_device(device, local_rank)
        use_gpu = place.type == "cuda"
        dist.init_process_group(
            "nccl" if use_gpu else "gloo",
            store=store,
            rank=rank,
            world_size=world_size,
            timeout=timeout,
            device_id=place if use_gpu else None,
        )
        yield Ranks(rank, world_size, place, timeout)
    dist.destroy_process_group()


def _own_device(device: str, local_rank: int) -> torch.device:
    """Return the device of this process, which torch takes for its own from now on."""
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("a GPU is asked for but torch sees none; give --device cpu or install a CUDA build of torch")
    if device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise InputError(
            f"{local_rank + 1} or more processes on this machine but only {torch.cuda.device_count()} GPUs"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def on_first_rank(work: Callable[[], None]) -> None:
    """Call ``work`` in the first process, while the others wait for its end, up to ``WORK_TIMEOUT``."""
    with joined_ranks("cpu", timeout=WORK_TIMEOUT) as ranks:
        if ranks.first:
            work()
        wait_for_all(ranks)


def shares(costs: Sequence[float], world_size: int) -> list[int]:
    """Return the rank that each piece of work goes to: the costliest first, each to whoever has least.

    >>> shares([1.0, 5.0, 2.0, 2.0], 2)
    [1, 0, 1, 1]
    """
    loads = [(0.0, rank) for rank in range(world_size)]  # a heap
    owners = [0] * len(costs)
    for piece in sorted(range(len(costs)), key=lambda i: -costs[i]):
        load, owners[piece] = loads[0]
        heapq.heapreplace(loads, (load + costs[piece], owners[piece]))
    return owners


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
