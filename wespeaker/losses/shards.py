"""Classes split over processes: which of them a process holds, and all that heads exchange.

Every process holds the prototypes of one range of classes and works on the rows (embeddings and labels) of all
processes. What travels is those embeddings, their gradients and a few numbers a row: nothing that grows with the
classes.

The objective is the mean over the ranks of each one's loss, which is what DistributedDataParallel makes of a backbone's
gradients. Hence three kinds of autograd steps between "my rows" and "everyone's rows":

    spread   my rows to everyone's, of whose gradient every rank finds the part of its classes:   Σ over ranks, times W
    told     my rows to everyone's, of whose gradient every rank finds the whole:                 my rows, times W
    mine     everyone's rows, equal on all ranks, to mine:                                        everyone's, over W

W undoes the averaging to come; what stays on its rank, as the prototypes' gradient, needs none and gets none. With one
process all of them, and all sums and maxima, do nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed


@dataclass(frozen=True)
class Shards:
    """The classes [first, last) that this process holds, of all.

    Sizes differ by at most one. Made alone, `Shards(num_classes)` is the whole on one process, whatever process group
    there is: a head of it is replicated.

    Raises:
        ValueError: there are fewer classes than processes.

    >>> [(Shards(10, rank, 3).first, Shards(10, rank, 3).last) for rank in range(3)]
    [(0, 4), (4, 7), (7, 10)]
    """

    num_classes: int
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.num_classes < self.world_size:
            raise ValueError(f"{self.num_classes} classes cannot be split over {self.world_size} processes")

    @classmethod
    def of_all_ranks(cls, num_classes: int) -> Shards:
        """Split the classes over the default process group; without one, this process holds them all."""
        return cls(num_classes, rank(), world_size())

    @property
    def first(self) -> int:
        """The first class of this process."""
        return self.start(self.rank)

    @property
    def last(self) -> int:
        """The class after its last."""
        return self.start(self.rank + 1)

    @property
    def size(self) -> int:
        """How many classes this process holds."""
        return self.last - self.first

    @property
    def split(self) -> bool:
        """Whether there is more than one process."""
        return self.world_size > 1

    def start(self, rank: int) -> int:
        """Return the first class of a rank."""
        share, rest = divmod(self.num_classes, self.world_size)
        return share * rank + min(rank, rest)

    def here(self, labels: Tensor) -> Tensor:
        """Return where in this process's classes the labels (B,) int64 are, -1 for those of other processes."""
        if not self.split:
            return labels
        return torch.where((labels >= self.first) & (labels < self.last), labels - self.first, -1)

    def before(self, labels: Tensor) -> Tensor:
        """Return how many of this process's classes come before the labels (B,)."""
        return (labels - self.first).clamp(0, self.size)

    def at(self, x: Tensor, here: Tensor) -> Tensor:
        """Return x[i, here[i]] (B,) of x (B, C), 0 where ``here`` is -1."""
        if not self.split:
            return x.gather(1, here.unsqueeze(1)).squeeze(1)
        return x.gather(1, here.clamp(min=0).unsqueeze(1)).squeeze(1).where(here >= 0, 0.0)

    def put(self, x: Tensor, here: Tensor, value: float) -> Tensor:
        """Return x (B, C) with ``value`` at [i, here[i]] where ``here`` is not -1."""
        if not self.split:
            return x.scatter(1, here.unsqueeze(1), value)
        (i,) = (here >= 0).nonzero(as_tuple=True)
        return x.index_put((i, here[i]), x.new_tensor(value))

    def gather(self, x: Tensor) -> Tensor:
        """Return x (C, ...) of all classes from the rows of this process's (C', ...), without gradient."""
        sizes = [self.start(rank + 1) - self.start(rank) for rank in range(self.world_size)]
        return _gathered(x, sizes) if self.split else x

    def beside(self, x: Tensor) -> Tensor:
        """Return x (B, k) of all processes beside each other, (B, W k), without gradient."""
        return _gathered(x.T, [x.shape[1]] * self.world_size).T if self.split else x

    def sum(self, x: Tensor) -> Tensor:
        """Return the sum over all processes of a tensor of the same shape on each, without gradient."""
        return self._reduced(x, distributed.ReduceOp.SUM)

    def max(self, x: Tensor) -> Tensor:
        """Return the largest over all processes of a tensor of the same shape on each, without gradient."""
        return self._reduced(x, distributed.ReduceOp.MAX)

    def any(self, x: Tensor) -> bool:
        """Return whether ``x`` is true anywhere on any process: a decision that all of them take alike."""
        return bool(self.max(x.any().to(torch.uint8)))

    def _reduced(self, x: Tensor, op: Any) -> Tensor:
        if not self.split:
            return x
        x = x.detach().clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(x, op=op)
        return x


@dataclass(frozen=True)
class Sampled(Shards):
    """Some of this process's classes, as if there were no others; see `sample`.

    whole: how the classes are split. chosen: (n,) int64, ascending, where in this process's classes the sampled are.
    """

    whole: Shards = field(kw_only=True)
    chosen: Tensor = field(kw_only=True)

    def here(self, labels: Tensor) -> Tensor:
        """Return where among the sampled classes the labels (B,) are, which must be sampled; -1 as in `Shards`."""
        at = self.whole.here(labels)
        return torch.searchsorted(self.chosen, at).where(at >= 0, -1)

    def before(self, labels: Tensor) -> Tensor:
        """Return how many of this process's sampled classes come before the labels (B,)."""
        return torch.searchsorted(self.chosen, labels - self.whole.first)


def sample(shards: Shards, labels: Tensor, rate: float, *, seed: int, draw: int) -> Sampled:
    """Sample classes: those of everyone's labels (B,), and each other one with probability ``rate``.

    Whether a class is drawn is a function of (seed, draw, class): the same on any number of processes. (PartialFC
    draws a fixed number on each process.)

    Source: An et al., "Partial FC: training 10 million identities on a single machine" (2021).
    """
    chosen = torch.from_numpy(uniforms(shards.first, shards.last, 1, seed=seed, draw=draw)[:, 0] < rate)
    chosen = chosen.to(labels.device)
    here = shards.here(labels)
    chosen[here[here >= 0]] = True
    index = chosen.nonzero().squeeze(1)
    count = int(shards.sum(torch.tensor(len(index), device=labels.device)))
    return Sampled(max(count, shards.world_size), shards.rank, shards.world_size, whole=shards, chosen=index)


def uniforms(first: int, last: int, width: int, *, seed: int, draw: int = 0) -> np.ndarray:
    """Return the rows [first, last) of an endless table (., width) of float64 in [0, 1) that (seed, draw) names."""
    start = first * width
    philox = np.random.Philox(key=[seed % 2**64, draw % 2**64], counter=start // 4)  # four numbers a count
    return np.random.Generator(philox).random(last * width - start // 4 * 4)[start % 4 :].reshape(-1, width)


@dataclass(frozen=True)
class RankRows:
    """Whose rows are where in those of everyone: the batches of all ranks one after another, maybe of unequal sizes."""

    sizes: Sequence[int]
    rank: int

    @classmethod
    def of(cls, shards: Shards, count: int, device: torch.device) -> RankRows:
        """Tell everyone that this process has ``count`` rows; one all-gather of a number."""
        return cls(_sizes(count, device) if shards.split else [count], shards.rank)

    @property
    def split(self) -> bool:
        """Whether there is more than one process."""
        return len(self.sizes) > 1

    def check(self, labels: Tensor, num_classes: int) -> None:
        """Raise ValueError on all processes alike where one of everyone's labels (B,) is not in [0, C)."""
        if self.split and bool(((labels < 0) | (labels >= num_classes)).any()):
            low, high = int(labels.min()), int(labels.max())
            raise ValueError(f"labels must be in [0, {num_classes}); found {low} to {high}")

    @property
    def mine_at(self) -> slice:
        """Which of everyone's rows are mine."""
        start = sum(self.sizes[: self.rank])
        return slice(start, start + self.sizes[self.rank])

    def spread(self, x: Tensor) -> Tensor:
        """Return everyone's rows of ``x`` (b, ...) as (B, ...); see the module."""
        return _Spread.apply(x, self) if self.split else x

    def told(self, x: Tensor) -> Tensor:
        """Return everyone's rows of ``x`` (b, ...) as (B, ...); see the module."""
        return _Told.apply(x, self) if self.split else x

    def mine(self, x: Tensor) -> Tensor:
        """Return my rows of ``x`` (B, ...); see the module."""
        return _Mine.apply(x, self) if self.split else x


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: RankRows) -> Tensor:
        ctx.rows = rows
        return _gathered(x, rows.sizes)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        rows: RankRows = ctx.rows
        grad = grads[0].contiguous()
        total = torch.empty_like(grad[rows.mine_at])
        distributed.reduce_scatter(total, list(grad.split(list(rows.sizes))))
        return total.mul_(len(rows.sizes)), None


class _Told(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: RankRows) -> Tensor:
        ctx.rows = rows
        return _gathered(x, rows.sizes)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0][ctx.rows.mine_at] * len(ctx.rows.sizes), None


class _Mine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: RankRows) -> Tensor:
        ctx.rows = rows
        return x[rows.mine_at].clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _gathered(grads[0], ctx.rows.sizes).div_(len(ctx.rows.sizes)), None


def total(x: Tensor, shards: Shards) -> Tensor:
    """Return the sum of ``x`` over all processes, where each finds the whole gradient of the sum."""
    return _Total.apply(x, shards) if shards.split else x


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shards: Shards) -> Tensor:
        return shards.sum(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def common(x: Tensor, shards: Shards) -> Tensor:
    """Return ``x``, a parameter that all processes have alike and of whose gradient each finds the part of its
    classes."""
    return _Common.apply(x, shards) if shards.split else x


class _Common(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shards: Shards) -> Tensor:
        ctx.shards = shards
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.shards.sum(grads[0]), None


def rows_of_all_ranks(x: Tensor) -> Tensor:
    """Return x (b, ...) of all processes of the default group, (B, ...) in the order of ranks, without gradient."""
    x = x.detach()
    return _gathered(x, sizes_of_all_ranks(len(x), x.device)) if world_size() > 1 else x


def sizes_of_all_ranks(count: int, device: torch.device) -> list[int]:
    """Return a number of every process of the default group, in the order of ranks."""
    return _sizes(count, device) if world_size() > 1 else [count]


def _sizes(count: int, device: torch.device) -> list[int]:
    counts = [torch.empty(1, dtype=torch.int64, device=device) for _ in range(world_size())]
    distributed.all_gather(counts, torch.tensor([count], device=device))
    return torch.cat(counts).tolist()


def _gathered(x: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return x of all processes, padded on the way where their sizes differ."""
    padded = x.detach().contiguous()
    if len(x) < max(sizes):
        padded = torch.cat([padded, padded.new_zeros(max(sizes) - len(x), *x.shape[1:])])
    parts = [torch.empty_like(padded) for _ in sizes]
    distributed.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def world_size() -> int:
    """Return the number of processes W; 1 without a process group."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """Return which of them this is."""
    return distributed.get_rank() if world_size() > 1 else 0
