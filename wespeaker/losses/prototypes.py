"""Prototypes: where they start, running sums of their class's embeddings, and re-initialisation from those."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wespeaker.losses.shards import Shards, rows_of_all_ranks, uniforms

# Numbers that are drawn at once, which bounds what they take: 32 MB.
DRAWN = 1 << 22


@torch.no_grad()
def init_prototypes(weight: Tensor, shards: Shards) -> None:
    """Fill this process's prototypes (C', D) with Glorot's uniform numbers in ±sqrt(6 / (C + D)), C of all processes.

    Those of a class are a function of torch's seed and the class, whatever process it is on. (Where every process
    seeds its generator alike and fills its own part from the start, all parts are equal.)
    """
    size, width = len(weight) // shards.size, weight.shape[1]  # prototypes a class
    bound = math.sqrt(6.0 / (shards.num_classes * size + width))
    step = max(1, DRAWN // (size * width))
    for first in range(shards.first, shards.last, step):
        last = min(first + step, shards.last)
        drawn = torch.from_numpy(uniforms(first, last, size * width, seed=torch.initial_seed()))
        rows = weight[(first - shards.first) * size : (last - shards.first) * size]
        rows.copy_(drawn.mul_(2.0 * bound).sub_(bound).view_as(rows))


class ClassSums(nn.Module):
    """Sums of unit embeddings (C', D) of this process's classes and their number (C,), over the batches of all ranks.

    Embeddings that are zero or not finite are passed over.
    """

    SHARDED, PER_CLASS = ("sums",), ("counts",)
    sums: Tensor
    counts: Tensor

    def __init__(self, shards: Shards, embed_dim: int) -> None:
        super().__init__()
        self.shards = shards
        self.register_buffer("sums", torch.zeros(shards.size, embed_dim))
        self.register_buffer("counts", torch.zeros(shards.num_classes))

    @torch.no_grad()
    def add(self, embeddings: Tensor, labels: Tensor) -> None:
        """Add a batch: embeddings (B, D), labels (B,)."""
        units = F.normalize(rows_of_all_ranks(embeddings).to(self.sums.dtype))
        seen = units.isfinite().all(1) & units.any(1)
        labels = rows_of_all_ranks(labels)
        here = self.shards.here(labels)
        mine = here >= 0
        self.sums.index_add_(0, here[mine], torch.where(seen.unsqueeze(1), units, 0.0)[mine])
        self.counts.index_add_(0, labels, seen.to(self.counts.dtype))

    @property
    def here(self) -> slice:
        """Where in the counts the classes of this process are."""
        return slice(self.shards.first, self.shards.last)

    def clear(self) -> None:
        """Forget what was added."""
        self.sums.zero_()
        self.counts.zero_()


class PrototypeReinit(nn.Module):
    """Once, at the start of an epoch: W_j ← ‖W_j‖ · Σ ê / ‖Σ ê‖ over class j's embeddings of the epoch before.

    A prototype whose class was rarely given any posterior is turned to where its embeddings are; its length,
    which the loss does not see, stays. `start_epoch` must be called at the start of every epoch; without it
    nothing ever happens.

    Args:
        shards: the classes of this process.
        embed_dim: D.
        epoch: when, counted from 1; at least 2, or 0 for never.
        zero_share: only classes of which at least this share of the samples had posterior p_y = 0; 0 for all.

    Source: the published abstract of A3M-I (arXiv 2511.13621 v1-v3) names a mid-training re-initialisation that
    realigns prototypes and embeddings, not its rule; this rule is this project's.
    """

    PER_CLASS = ("zeros",)
    zeros: Tensor
    epoch: Tensor

    def __init__(self, shards: Shards, embed_dim: int, *, epoch: int, zero_share: float) -> None:
        super().__init__()
        self.at_epoch, self.zero_share = epoch, zero_share
        self.classes = ClassSums(shards, embed_dim)
        self.register_buffer("zeros", torch.zeros(shards.num_classes))
        self.register_buffer("epoch", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def observe(self, embeddings: Tensor, labels: Tensor, target_posterior: Tensor) -> None:
        """Take note of a training batch; only in the epoch before the re-initialisation."""
        if int(self.epoch) != self.at_epoch - 1 or self.at_epoch == 0:
            return
        self.classes.add(embeddings, labels)
        without = rows_of_all_ranks((target_posterior == 0.0).to(self.zeros.dtype))
        self.zeros.index_add_(0, rows_of_all_ranks(labels), without)

    @torch.no_grad()
    def start_epoch(self, epoch: int, weight: Tensor) -> Tensor:
        """Re-initialise rows of ``weight`` (C', D) if it is time; return which (n,) int64. Harmless if repeated."""
        due = epoch == self.at_epoch != int(self.epoch)
        self.epoch.fill_(epoch)
        counts, zeros, sums = self.classes.counts[self.classes.here], self.zeros[self.classes.here], self.classes.sums
        turned = (counts > 0) & sums.any(1) & (zeros >= self.zero_share * counts)
        rows = turned.nonzero().squeeze(1)
        if not due:
            return rows[:0]
        length = weight[rows].norm(dim=1, keepdim=True)
        weight[rows] = length * F.normalize(sums[rows]).to(weight.dtype)
        self.classes.clear()
        self.zeros.zero_()
        return rows


def forget_momentum(optimizer: torch.optim.Optimizer, parameter: Tensor, rows: Tensor) -> None:
    """Zero the rows of a parameter's momentum: the gradients in it were taken elsewhere.

    SGD's ``momentum_buffer`` and Adam's ``exp_avg``. Adam's second moment stays: it is the step's size, not its
    direction.

    Args:
        optimizer: any of torch's with these names.
        parameter: (C, D), one that it optimises.
        rows: (n,) int64.
    """
    state = optimizer.state.get(parameter, {})
    for name in ("momentum_buffer", "exp_avg"):
        if isinstance(state.get(name), Tensor):
            state[name][rows] = 0.0
