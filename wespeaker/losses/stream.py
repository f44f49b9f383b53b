"""The exact α-divergence head in time and memory of its active classes: no (B, C) matrix in either direction.

`collect` finds every class that can be active in one pass over the prototypes. On these few the loss is the dense
one of `divergence`, in float64, with the same gradient g = p - e_y, which is exactly 0 elsewhere. With
θ_ij = s <e_i, w_j> / (‖e_i‖ ‖w_j‖) the chain rule needs the rows of active classes only:

    ∂ℓ/∂w_j = Σ_i g_ij s e_i/(‖e_i‖‖w_j‖) - (Σ_i g_ij θ_ij) w_j/‖w_j‖²,      ∂ℓ/∂e_i likewise

which are two segmented gathers.

Where the classes are split over processes each does this for its own, and eq. 10 is solved by all together.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from wespeaker.losses.collect import Candidates, by_row, collect, columns, merging_order
from wespeaker.losses.cosines import inverse_norms, scaled_directions, working_dtype
from wespeaker.losses.divergence import alpha_divergence
from wespeaker.losses.margins import Place, placed
from wespeaker.losses.screening import SCREENS, fast_bfloat16, nonzero
from wespeaker.losses.shards import RankRows, Shards, total

# Rows of the prototype gradient that get their second term at once: 8 MB at D = 512.
BLOCK = 4096
# A bag adds its rows one by one, which float32 bears for so many.
BAG = 64


class Streamed(NamedTuple):
    """Loss (B,), support (B,) int64, correct (B,) bool, the label's posterior (B,) without gradient; entries above
    the threshold of their time, classes screened."""

    loss: Tensor
    support: Tensor
    correct: Tensor
    target_posterior: Tensor
    scanned: int
    screened: int


def stream_divergence(
    embeddings: Tensor,
    prototypes: Tensor,
    labels: Tensor,
    place: Place,
    *,
    alpha: float,
    scale: float,
    screen: str = "auto",
    weight_grad: str = "dense",
    max_share: float = 1.0,
    shards: Shards | None = None,
    rows: RankRows | None = None,
) -> Streamed | None:
    """Compute the α-divergence loss of scaled cosines, with the margin put in by ``place``.

    Equal to `alpha_divergence` on `scaled_cosines` but for float rounding. Differentiable once. In float32 at
    least; gradients come back in the dtypes of their tensors.

    Args:
        embeddings: (B, D), everyone's.
        prototypes: (C, D), of the classes of this process.
        labels: (B,) int64 in [0, C) of all classes.
        place: from the label's cosine (B,) to the label's logit (None: s times the cosine), which may not exceed
            that, and log of its reference measure (None: 0), both (B,), of this process's rows. Called twice: without
            gradients for the threshold, then as part of the graph.
        alpha: above 1.
        scale: s.
        screen: "none", "bf16", or "auto" for what `fast_bfloat16` says; see `screening`.
        weight_grad: "dense", or "sparse": a sparse tensor with the rows of the active classes, ascending
            and unique (coalesced; autograd's accumulation drops the flag, not the order).
        max_share: return None where the classes turn out denser than this, see `collect`.
        shards: how the classes are split over processes; None: not at all.
        rows: whose rows are where; None: all are mine.

    Raises:
        ValueError: for alpha not above 1 and for labels or options that do not fit.
    """
    if not alpha > 1.0:
        raise ValueError(f"the streaming form needs alpha above 1, where posteriors are sparse; found {alpha}")
    if screen not in SCREENS or weight_grad not in ("dense", "sparse"):
        known = ", ".join(SCREENS)
        raise ValueError(f"screen is one of {known}, weight_grad dense or sparse; found {screen} and {weight_grad}")
    if screen == "auto":
        screen = "bf16" if fast_bfloat16(embeddings.device) else "none"
    dtype, batch = working_dtype(embeddings, prototypes), len(labels)
    shards = shards or Shards(len(prototypes))
    rows = rows or RankRows([batch], 0)
    with torch.no_grad():
        directions, inverse = scaled_directions(embeddings.to(dtype), scale)
        here = shards.here(labels)
        ours = prototypes[here.clamp(min=0)].to(dtype)
        own = (directions * ours).sum(1) * inverse_norms(ours)
        own = shards.sum(own.where(here >= 0, 0.0))
        target, log_q = placed(place, own, scale, rows)
        found = collect(
            directions, prototypes, here, own,
            target=target, log_q=log_q, alpha=alpha, screen=screen, max_share=max_share, shards=shards,
        )  # fmt: skip
        if found is None:
            return None
        if not bool(found.inverse_norm.isfinite().all()):  # a prototype with NaN, which no comparison would show
            found = found._replace(own=torch.full_like(own, torch.nan))
    own, theta = _Logits.apply(embeddings, prototypes, here, directions, inverse, found, scale, weight_grad)
    own = total(own, shards)
    target, log_q = placed(place, own, scale, rows)
    row = found.flat.remainder(batch)
    column, width = columns(row, batch)
    matrix = own.new_full((batch, width), -torch.inf, dtype=torch.float64)
    matrix = matrix.index_put((row, column), theta.double())
    solved = alpha_divergence(matrix, None, log_q.double(), alpha=alpha, target=target.double(), shards=shards)
    p_y = solved.target_posterior.detach().to(dtype)
    correct = _correct(found, row, own.detach(), labels, shards)
    return Streamed(solved.loss.to(dtype), solved.support, correct, p_y, found.scanned, found.screened)


def _correct(found: Candidates, row: Tensor, own: Tensor, labels: Tensor, shards: Shards) -> Tensor:
    """Return whether the label's logit is the largest, the first of equals (B,); NaN is not.

    The candidates decide it: a class above the label's is one, unless the label lies at or below the threshold
    itself, and then some other class is active, hence a candidate and above.
    """
    classes = found.flat.div(len(labels), rounding_mode="floor")
    beats = (found.theta > own[row]) | ((found.theta == own[row]) & (classes < shards.before(labels)[row]))
    return ~own.isnan() & (shards.sum(torch.bincount(row[beats], minlength=len(labels))) == 0)


class _Logits(torch.autograd.Function):
    """(embeddings, prototypes) to the label's logit (B,) and the candidates' logits (S,), which are known already.

    Of the classes of this process: a label of another, which is -1, has logit 0 and no gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        embeddings: Tensor,
        prototypes: Tensor,
        labels: Tensor,
        directions: Tensor,
        inverse: Tensor,
        found: Candidates,
        scale: float,
        weight_grad: str,
    ) -> tuple[Tensor, Tensor]:
        own, theta = found.own.clone(), found.theta.clone()
        ctx.save_for_backward(prototypes, labels, directions, inverse, found.flat, found.inverse_norm, own, theta)
        ctx.scale, ctx.weight_grad, ctx.dtype = scale, weight_grad, embeddings.dtype
        return own, theta

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        prototypes, labels, directions, inverse, index, inverse_norm, own, theta = ctx.saved_tensors
        batch = len(labels)
        grad_own, grad_theta = grads
        kept = nonzero(grad_theta != 0.0)
        mine = nonzero(labels >= 0)
        index = torch.cat([index.index_select(0, kept), labels[mine] * batch + mine])
        order = merging_order(index)
        index = index.index_select(0, order)
        grad = torch.cat([grad_theta.index_select(0, kept), grad_own[mine]]).index_select(0, order)
        theta = torch.cat([theta.index_select(0, kept), own[mine]]).index_select(0, order)
        pull = grad.double() * theta  # its sums are made one by one, so in float64
        classes, rows = index.div(batch, rounding_mode="floor"), index.remainder(batch)
        weights = grad * inverse_norm.index_select(0, classes)
        active, local, count = classes.unique_consecutive(return_inverse=True, return_counts=True)

        grad_embeddings, grad_prototypes = None, None
        if ctx.needs_input_grad[0]:
            order, start = by_row(rows, batch)
            if prototypes.dtype == directions.dtype:
                table, entries = prototypes, classes
            else:
                table, entries = prototypes.index_select(0, active).to(directions.dtype), local
            towards = _sum_rows(table, entries.index_select(0, order), weights.index_select(0, order), start)
            along = pull.new_zeros(batch).index_add_(0, rows, pull).to(own.dtype) / ctx.scale
            grad_embeddings = towards.mul_(ctx.scale).sub_(directions * along.unsqueeze(1))
            grad_embeddings = grad_embeddings.mul_(inverse.unsqueeze(1)).to(ctx.dtype)
        if ctx.needs_input_grad[1]:
            bags = _sum_rows(directions, rows, weights, count.cumsum(0) - count)
            along = pull.new_zeros(len(active)).index_add_(0, local, pull).to(own.dtype)
            along = along.mul_(inverse_norm[active]).mul_(inverse_norm[active]).neg_().unsqueeze(1)
            for bag, which, a in zip(bags.split(BLOCK), active.split(BLOCK), along.split(BLOCK), strict=True):
                # index_select, for prototypes[which] takes six times as long
                bag.addcmul_(prototypes.index_select(0, which).to(bag.dtype), a)
            bags = bags.to(prototypes.dtype)
            if ctx.weight_grad == "sparse":
                grad_prototypes = torch.sparse_coo_tensor(
                    active.unsqueeze(0), bags, prototypes.shape, is_coalesced=True, check_invariants=False
                )
            else:
                grad_prototypes = torch.zeros_like(prototypes).index_copy_(0, active, bags)
        return grad_embeddings, grad_prototypes, *(None,) * 6


def _sum_rows(table: Tensor, entries: Tensor, weights: Tensor, start: Tensor) -> Tensor:
    """Return Σ weights_k table[entries_k] over the k from each start to the next, (len(start), D)."""
    if not len(entries):
        return table.new_zeros(len(start), table.shape[1])
    ends = torch.cat([start[1:], start.new_tensor([len(entries)])])
    parts = (ends - start + BAG - 1).div(BAG, rounding_mode="floor")  # how many bags a sum is split into
    if int(parts.amax()) <= 1:
        return F.embedding_bag(entries, table, start, mode="sum", per_sample_weights=weights)
    which = torch.repeat_interleave(parts)
    within = torch.arange(len(which), device=which.device) - (parts.cumsum(0) - parts)[which]
    bags = F.embedding_bag(entries, table, start[which] + BAG * within, mode="sum", per_sample_weights=weights)
    total = bags.new_zeros((len(start), table.shape[1]), dtype=torch.float64)
    return total.index_add_(0, which, bags.double()).to(table.dtype)
