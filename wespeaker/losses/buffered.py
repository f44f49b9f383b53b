"""The α-divergence head where many classes are active: one (C, B) buffer, written twice, and three matrix products.

The autograd form keeps logits, cosines, posterior and their gradients, a (B, C) tensor each. Here one class-major
buffer holds first the logits, then the posterior. All passes go tile by tile through the cache, and the radial
part of a gradient is read off the gradient itself, along the prototype, so that the logits are not needed again.

τ starts at the root for a sample of the classes counted C/n times, which is no bound but near. Newton on the convex
H of `normalizer`'s fact 3 does not mind: a step from the right of the root lands at its left, from where no step
overshoots.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from wespeaker.losses.collect import CHUNK_CLASSES
from wespeaker.losses.cosines import inverse_norms

SAMPLE_CLASSES = 1024
# Steps shrink quadratically: after one of 3e-4 windows the distance to the root is near 1e-7 of them.
LAST_STEP = 3e-4
MOST_STEPS = 60  # 3 to 8 are taken


class Buffered(NamedTuple):
    """Loss (B,), support (B,) int64, correct (B,) bool and, without gradient, p_y (B,)."""

    loss: Tensor
    support: Tensor
    correct: Tensor
    target_posterior: Tensor


def buffered_divergence(
    embeddings: Tensor,
    prototypes: Tensor,
    labels: Tensor,
    place: Callable[[Tensor], tuple[Tensor | None, Tensor | None]],
    *,
    alpha: float,
    scale: float,
) -> Buffered:
    """Compute the α-divergence loss of scaled cosines for 1.1 ≤ α ≤ 2; arguments as in `stream_divergence`."""
    if not 1.1 <= alpha <= 2.0:
        raise ValueError(f"the buffered form needs alpha in [1.1, 2]; found {alpha}")
    own = _Own.apply(embeddings, prototypes, labels, scale)
    target, log_q = place(own / scale)
    target = own if target is None else target
    log_q = torch.zeros_like(own) if log_q is None else log_q
    return Buffered(*_Loss.apply(embeddings, prototypes, target, log_q, labels, alpha, scale))


def _directions(embeddings: Tensor, prototypes: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Return s e/‖e‖ (B, D) in float32 at least, and 1/‖e‖ (B,)."""
    dtype = torch.promote_types(torch.promote_types(embeddings.dtype, prototypes.dtype), torch.float32)
    inverse = inverse_norms(embeddings.to(dtype))
    return embeddings.to(dtype) * (scale * inverse).unsqueeze(1), inverse


class _Own(torch.autograd.Function):
    """The label's logit (B,); its gradient for the prototypes is sparse, which adds to a dense one in place."""

    @staticmethod
    def forward(ctx: Any, embeddings: Tensor, prototypes: Tensor, labels: Tensor, scale: float) -> Tensor:
        directions, inverse_e = _directions(embeddings, prototypes, scale)
        ours = prototypes.index_select(0, labels).to(directions.dtype)
        inverse_w = inverse_norms(ours)
        own = torch.linalg.vecdot(directions, ours) * inverse_w
        ctx.save_for_backward(embeddings, prototypes, labels, directions, inverse_e, inverse_w, own)
        ctx.scale = scale
        return own

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        embeddings, prototypes, labels, directions, inverse_e, inverse_w, own = ctx.saved_tensors
        unit = prototypes.index_select(0, labels).to(own.dtype) * inverse_w.unsqueeze(1)
        along = (own / ctx.scale).unsqueeze(1)
        grad = grads[0].unsqueeze(1)
        of_embeddings = grad * (ctx.scale * unit - along * directions) * inverse_e.unsqueeze(1)
        of_prototypes = grad * (directions - own.unsqueeze(1) * unit) * inverse_w.unsqueeze(1)
        sparse = torch.sparse_coo_tensor(
            labels.unsqueeze(0), of_prototypes.to(prototypes.dtype), prototypes.shape, check_invariants=False
        )
        return of_embeddings.to(embeddings.dtype), sparse, None, None


class _Loss(torch.autograd.Function):
    """(embeddings, prototypes, target, log_q) to (loss, support, correct, p_y) of each row."""

    @staticmethod
    def forward(
        ctx: Any,
        embeddings: Tensor,
        prototypes: Tensor,
        target: Tensor,
        log_q: Tensor,
        labels: Tensor,
        alpha: float,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        b = alpha - 1.0
        directions, inverse_e = _directions(embeddings, prototypes, scale)
        buffer = directions.new_empty(len(prototypes), len(labels))
        inverse_w, best = _logits(prototypes, directions, out=buffer)
        rows = torch.arange(len(labels), device=labels.device)
        own_theta = buffer[labels, rows]
        correct = _correct(buffer, own_theta, best, labels)
        buffer[labels, rows] = -math.inf

        own, prior = target.double(), log_q.double()
        tau = _root(buffer, own, prior, b)
        total, moment, support = _posterior(buffer, tau, b)
        own_v = (b * (own - tau)).clamp(min=-1.0)
        own_p = (torch.log1p(own_v) / b + prior).exp()
        total += own_p
        # Stationary in τ, as in `divergence`; and exactly 0 where p = e_y.
        moment += torch.where(own_p > 0.0, own_p * own_v, 0.0) + total - 1.0
        p_y = own_p / total
        loss = tau - own + (moment + torch.expm1(-b * prior) / b) / alpha
        loss = torch.where(p_y == 1.0, 0.0, loss.clamp(min=0.0)).to(directions.dtype)
        support += (own_p > 0.0).long()

        ctx.save_for_backward(
            embeddings, prototypes, directions, inverse_e, inverse_w, buffer, total, p_y.to(target.dtype), log_q
        )
        p_y = p_y.to(target.dtype)
        ctx.alpha, ctx.scale = alpha, scale
        ctx.mark_non_differentiable(support, correct, p_y)
        return loss, support, correct, p_y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        embeddings, prototypes, directions, inverse_e, inverse_w, p, total, p_y, log_q = ctx.saved_tensors
        grad = grads[0]
        factor = (grad / total).to(p.dtype)
        scratch = p.new_empty(min(CHUNK_CLASSES, len(p)), p.shape[1])
        towards = torch.zeros_like(directions)
        of_prototypes = torch.empty_like(prototypes)
        for first in range(0, len(p), CHUNK_CLASSES):
            last = min(first + CHUNK_CLASSES, len(p))
            chunk, inverse = prototypes[first:last].to(p.dtype), inverse_w[first:last].unsqueeze(1)
            g = torch.mul(p[first:last], factor, out=scratch[: last - first]).mul_(inverse)
            towards.addmm_(g.T, chunk)
            raw = g @ directions
            along = torch.linalg.vecdot(raw, chunk).unsqueeze(1).mul_(inverse).mul_(inverse)
            of_prototypes[first:last] = raw.addcmul_(chunk, along, value=-1.0)
        unit = directions / ctx.scale
        towards -= unit * torch.linalg.vecdot(towards, unit).unsqueeze(1)
        of_embeddings = (ctx.scale * towards * inverse_e.unsqueeze(1)).to(embeddings.dtype)
        of_log_q = (p_y.pow(ctx.alpha) - 1.0) * torch.exp((1.0 - ctx.alpha) * log_q) / ctx.alpha * grad
        return of_embeddings, of_prototypes, (p_y - 1.0) * grad, of_log_q, None, None, None


def _logits(prototypes: Tensor, directions: Tensor, *, out: Tensor) -> tuple[Tensor, Tensor]:
    """Write the logits (C, B); return the prototypes' inverse norms (C,) and the largest logits (B,)."""
    transposed = directions.T.contiguous()
    inverse = directions.new_empty(len(out))
    best = directions.new_full((out.shape[1],), -math.inf)
    for first in range(0, len(out), CHUNK_CLASSES):
        tile = out[first : first + CHUNK_CLASSES]
        chunk = prototypes[first : first + CHUNK_CLASSES].to(out.dtype)
        inverse[first : first + CHUNK_CLASSES] = norms = inverse_norms(chunk)
        torch.mm(chunk, transposed, out=tile).mul_(norms.unsqueeze(1))
        best = torch.maximum(best, tile.amax(0))
    return inverse, best


def _correct(logits: Tensor, own: Tensor, best: Tensor, labels: Tensor) -> Tensor:
    """Return whether the label's logit is the largest, the first of equals (B,)."""
    correct = own >= best
    for row in (own == best).nonzero().flatten().tolist():
        correct[row] = not bool((logits[: labels[row], row] == own[row]).any())
    return correct


def _root(logits: Tensor, own: Tensor, prior: Tensor, b: float) -> Tensor:
    """Return τ (B,) float64 of eq. 10 for the classes (C, B) and the label's own."""
    sample = logits[: min(SAMPLE_CLASSES, len(logits))]
    tau = torch.maximum(own - torch.expm1(-b * prior) / b, sample.amax(0).double())
    if len(sample) < len(logits):
        tau = _newton(sample, len(logits) / len(sample), tau, own, prior, b)
    return _newton(logits, 1.0, tau, own, prior, b)


def _newton(logits: Tensor, times: float, tau: Tensor, own: Tensor, prior: Tensor, b: float) -> Tensor:
    scratch = logits.new_empty(2, min(CHUNK_CLASSES, len(logits)), logits.shape[1])
    for _ in range(MOST_STEPS):
        total, slope = _sums(logits, tau, b, scratch)
        own_x = (1.0 + b * (own - tau)).clamp(min=0.0)
        own_p = own_x.pow(1.0 / b) * prior.exp()
        total = times * total + own_p
        slope = times * slope + torch.where(own_x > 0.0, own_p / own_x, 0.0)
        step = -total * torch.expm1(-b * total.log()) / (b * slope)
        tau = tau + step
        if not bool((step.abs() > LAST_STEP / b).any()):  # a NaN row does not ask for more
            break
    return tau


def _sums(logits: Tensor, tau: Tensor, b: float, scratch: Tensor) -> tuple[Tensor, Tensor]:
    """Return Σ x^r and Σ x^(r-1) over the classes, (B,) float64, with x = b (θ - z)_+ and r = 1/b."""
    total, slope = torch.zeros_like(tau), torch.zeros_like(tau)
    z = (tau - 1.0 / b).to(logits.dtype)
    for tile in logits.split(CHUNK_CLASSES):
        x, power = scratch[0, : len(tile)], scratch[1, : len(tile)]
        torch.sub(tile, z, out=x).clamp_(min=0.0).mul_(b)
        _power(x, 1.0 / b - 1.0, out=power)
        slope += power.sum(0)
        total += power.mul_(x).sum(0)
    return total, slope


def _power(x: Tensor, exponent: float, *, out: Tensor) -> Tensor:
    """Write x^exponent for x ≥ 0, and 0 for x = 0 even at exponent 0: such a class is inactive."""
    if abs(exponent) < 1e-12:
        return torch.sign(x, out=out)
    if abs(exponent - 3.0) < 1e-12:  # torch's pow is fast for 1/2, 1 and 2
        return torch.mul(x, x, out=out).mul_(x)
    return torch.pow(x, round(exponent, 12), out=out)


def _posterior(logits: Tensor, tau: Tensor, b: float) -> tuple[Tensor, Tensor, Tensor]:
    """Overwrite the logits by p at τ; return Σ p, Σ p v (B,) float64 and the number of non-zero p (B,) int64."""
    scratch = logits.new_empty(2, min(CHUNK_CLASSES, len(logits)), logits.shape[1])
    total, moment, support = (torch.zeros_like(tau) for _ in range(3))
    z = (tau - 1.0 / b).to(logits.dtype)
    for tile in logits.split(CHUNK_CLASSES):
        x, power = scratch[0, : len(tile)], scratch[1, : len(tile)]
        torch.sub(tile, z, out=x).clamp_(min=0.0).mul_(b)
        p = torch.mul(_power(x, 1.0 / b - 1.0, out=power), x, out=tile)
        total += p.sum(0)
        support += p.sign().sum(0)
        moment += torch.mul(p, x.sub_(1.0), out=power).sum(0)
    return total, moment, support.nan_to_num().long()
