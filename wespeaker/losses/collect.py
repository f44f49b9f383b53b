"""Which classes may have a non-zero posterior: one pass over the prototypes in chunks, no (B, C) matrix, no top-K.

With z = τ - 1/b, class j is active if and only if θ_j > z. The threshold of any subset of the classes is a lower
bound of the threshold of all (fact 1 of `normalizer`), so

    solve eq. 10 on the classes seen so far, which raises z;  forget for good what lies at or below z

loses nothing: what was dropped has posterior exactly 0 in the full problem. An adversarial order of the classes
costs time (more are collected before z has risen), never correctness. The label's class is never dropped: it is
kept apart, as in `normalizer.Rows`, since a margin may have changed its logit or its prior.

Where the classes are split over processes each collects from its own, and the largest threshold of all is shared after
the first chunk and before the last pruning: a subset's bound, whoever found it.

The tiles are class-major, (chunk, B): W_chunk Eᵀ was measured 30 % faster than E W_chunkᵀ, and the candidates come
out sorted by class, the order in which the gradient of the prototypes wants them.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from wespeaker.losses import normalizer
from wespeaker.losses.cosines import inverse_norms
from wespeaker.losses.normalizer import Rows
from wespeaker.losses.screening import Screen, nonzero
from wespeaker.losses.shards import Shards

# The first chunk only has to give a good threshold; the rest are as large as fits the cache (1 MB at B = 128).
SEED_CLASSES = 1024
CHUNK_CLASSES = 2048
# Solve again when this share of the candidates has come since the last solve.
GROWTH = 1.0
# Last Newton step at which the interim solves stop, in windows 1/b: they are bounds, and steps shrink quadratically.
LOOSE = 0.02


class Candidates(NamedTuple):
    """A certified superset of every row's support, the label's class kept apart.

    flat: (S,) int64, class · B + row, ascending. theta: (S,) their logits. own: (B,) the label's logit, without
    margin, 0 for labels of other processes. inverse_norm: (C,) of the prototypes, 0 for a prototype shorter than
    1e-12. scanned: how many entries were above the threshold of their time, before later thresholds dropped most.
    screened: how many classes went through the low-precision screen.
    """

    flat: Tensor
    theta: Tensor
    own: Tensor
    inverse_norm: Tensor
    scanned: int
    screened: int


class _Pool:
    """The candidates so far, and the threshold z (B,) float64 that they certify."""

    def __init__(self, target: Tensor, log_q: Tensor, alpha: float, dtype: torch.dtype, shards: Shards) -> None:
        self.target, self.log_q, self.alpha, self.shards = target, log_q, alpha, shards
        self.dtype = torch.float64 if alpha > 2.0 else dtype
        # Rounding x is the same as moving a logit by as much, and τ moves by no more than the logits do.
        self.slack = 4.0 * normalizer.precision(dtype)
        self.index: list[Tensor] = []
        self.theta: list[Tensor] = []
        self.kept, self.pending, self.scanned = 0, 0, 0
        self.tau = target - torch.expm1((1.0 - alpha) * log_q) / (alpha - 1.0)
        self.z = self._threshold()

    def _threshold(self) -> Tensor:
        window = 1.0 / (self.alpha - 1.0)
        return self.tau - window - self.slack * (1.0 + window + self.tau.abs())

    def raise_by(self, rest: Tensor) -> None:
        """Raise the threshold to that of the logits ``rest`` (B, n) of some classes; the label's not among them."""
        rows = Rows(rest.to(self.dtype), None, self.target, self.log_q)
        # Of what is left here after pruning with another process's threshold, that one is no lower bound.
        start = self.tau if self.alpha <= 2.0 and not self.shards.split else None
        root, _ = normalizer.lower_root(rows, self.alpha, start=start, tolerance=LOOSE / (self.alpha - 1.0))
        self.tau = torch.maximum(self.tau, root)
        self.z = self._threshold()

    def share(self) -> None:
        """Raise the threshold to the largest of all processes."""
        self.tau = self.shards.max(self.tau)
        self.z = self._threshold()

    def add(self, index: Tensor, theta: Tensor) -> None:
        self.index.append(index)
        self.theta.append(theta)
        self.pending += len(index)
        self.scanned += len(index)
        if self.pending > GROWTH * self.kept + len(self.target):
            self.prune()

    def prune(self) -> None:
        """Solve on all candidates and drop those that the new threshold excludes."""
        index, theta = torch.cat(self.index), torch.cat(self.theta)
        rows = index.remainder(len(self.target))
        column, width = columns(rows, len(self.target))
        matrix = theta.new_full((len(self.target), width), -math.inf)
        matrix[rows, column] = theta
        self.raise_by(matrix)
        kept = nonzero(theta > self.z.to(theta.dtype).index_select(0, rows))
        self.index, self.theta = [index.index_select(0, kept)], [theta.index_select(0, kept)]
        self.kept, self.pending = len(kept), 0


def collect(
    directions: Tensor,
    prototypes: Tensor,
    labels: Tensor,
    own: Tensor,
    *,
    target: Tensor,
    log_q: Tensor,
    alpha: float,
    screen: str = "none",
    max_share: float = 1.0,
    shards: Shards = normalizer.ALONE,
) -> Candidates | None:
    """Find all classes of this process that eq. 10 can give a posterior above 0.

    Args:
        directions: (B, D) s e/‖e‖, float32 or float64.
        prototypes: (C, D), any float dtype; converted chunk by chunk.
        labels: (B,) int64, -1 where the label is another process's.
        own: (B,) the label's logit without its margin.
        target: (B,) the label's logit as the divergence sees it, not above ``own``.
        log_q: (B,) log of the label's reference measure.
        alpha: above 1.
        screen: "none", or "bf16": find the survivors in bfloat16 with a certified error bound.
        max_share: give up where, after the second chunk, more than this share of what was seen is a candidate, or
            twice as much after the first; of what all processes have seen together.
        shards: how the classes are split.

    Returns:
        The candidates, or None if given up, which all processes do or none.
    """
    batch, num_classes = len(labels), len(prototypes)
    pool = _Pool(target.double(), log_q.double(), alpha, directions.dtype, shards)
    screener = Screen(directions) if screen == "bf16" else None
    inverse_norm = directions.new_empty(num_classes)
    transposed = directions.T.contiguous()  # (D, B)
    buffer = directions.new_empty(min(CHUNK_CLASSES, num_classes), batch)
    seed = min(SEED_CLASSES, num_classes)
    edges = [0, seed, *range(seed + CHUNK_CLASSES, num_classes, CHUNK_CLASSES), num_classes]  # the second may be empty
    by_label = labels.argsort(stable=True)
    own, ends = own.where(labels >= 0, 0.0), torch.searchsorted(labels[by_label], labels.new_tensor(edges)).tolist()
    screened, retry = 0, edges[1]  # the first chunk gives the threshold to screen with

    for i in range(len(edges) - 1):
        first, last = edges[i], edges[i + 1]
        chunk = prototypes[first:last].to(directions.dtype)
        inverse = inverse_norms(chunk)
        inverse_norm[first:last] = inverse
        mine = by_label[ends[i] : ends[i + 1]]  # the rows whose label is in this chunk
        at = (labels[mine] - first, mine)
        survivors = None
        if screener is not None and first >= retry:
            survivors = screener.survivors(chunk, inverse, pool.z, at)
            if survivors is None:  # the threshold rises with the classes seen: try again at twice as many
                retry = 2 * last
        if survivors is not None:
            index, theta = survivors
            screened += last - first
        else:
            tile = torch.mm(chunk, transposed, out=buffer[: last - first]).mul_(inverse.unsqueeze(1))
            own[mine] = tile[at]  # as the other classes' logits were computed, so that equal prototypes tie
            tile[at] = -math.inf
            if i == 0:
                pool.raise_by(_block_maxima(tile))
                pool.share()
            index = nonzero(tile > pool.z.to(tile.dtype))
            theta = tile.view(-1).index_select(0, index)
        # Of the first chunk, twice as much: its threshold is of the block maxima only.
        if i == 0 and max_share < 1.0 and _share(len(index), last * batch, shards) > 2.0 * max_share:
            return None
        pool.add(index + first * batch, theta)
        if i == 1 and max_share < 1.0:
            pool.prune()
            if _share(pool.kept, last * batch, shards) > max_share:
                return None
    pool.share()
    pool.prune()
    return Candidates(pool.index[0], pool.theta[0], own, inverse_norm, pool.scanned, screened)


def _share(count: int, seen: int, shards: Shards) -> float:
    """Return the share of the entries that all processes have seen which are candidates."""
    kept, of = shards.sum(torch.tensor([count, seen], dtype=torch.float64)).tolist() if shards.split else (count, seen)
    return kept / of


def _block_maxima(tile: Tensor) -> Tensor:
    """Return the maxima over eighths of the classes of a tile (n, B) as (B, n/8): few, and nearly all of the top."""
    n, batch = tile.shape
    if n < 64:
        return tile.T.contiguous()
    return tile[: n // 8 * 8].view(8, n // 8, batch).amax(0).T.contiguous()


def by_row(rows: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    """Return the stable order (S,) that sorts ``rows`` (S,), and where each of the rows starts in it (B,)."""
    if rows.device.type == "cpu" and batch <= 1 << 16:  # numpy sorts 16-bit integers by radix
        order = torch.from_numpy(np.argsort(rows.numpy().astype(np.uint16), kind="stable"))
    else:
        order = rows.argsort(stable=True)
    count = torch.bincount(rows, minlength=batch)
    return order, count.cumsum(0) - count


def merging_order(flat: Tensor) -> Tensor:
    """Return the order (S,) that sorts ``flat`` (S,), two ascending runs, which numpy's stable sort merges."""
    if flat.device.type == "cpu":
        return torch.from_numpy(np.argsort(flat.numpy(), kind="stable"))
    return flat.argsort(stable=True)


def columns(rows: Tensor, batch: int) -> tuple[Tensor, int]:
    """Number the candidates of each row: their columns (S,) in a matrix, and its width, at least 1."""
    order, start = by_row(rows, batch)
    within = torch.arange(len(rows), device=rows.device) - start.index_select(0, rows.index_select(0, order))
    column = torch.empty_like(rows).index_copy_(0, order, within)
    return column, int(column.amax()) + 1 if len(rows) else 1
