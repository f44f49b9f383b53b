"""The α-divergence head where many classes are active: one (C, B) buffer, written once, and three matrix products.

The autograd form keeps logits, cosines, posterior and their gradients, a (B, C) tensor each. Here one class-major
buffer holds the logits, and whatever needs the posterior makes it tile by tile in the cache. The radial part of a
gradient is read off the gradient itself, along the prototype.

τ is found while the logits are written. For α ≤ 2 what a chunk of classes adds to eq. 10's G is convex in τ and lies
above its tangent at any τ_i. So the sum of the chunks' tangents, each at the estimate of its time, lies below G, and
its root is a lower bound of τ. As an estimate from n classes is off by about 1/√n, and a tangent by the square of
that, few Newton steps of `normalizer`'s fact 3 are left; the last look finds Σ p = 1. Where few entries are active,
those that the bound leaves are packed first, and the steps look at nothing else.

Where the classes are split over processes each has a buffer of its own, and the sums go over all of them.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from wespeaker.losses import normalizer
from wespeaker.losses.collect import CHUNK_CLASSES, columns
from wespeaker.losses.cosines import inverse_norms, scaled_directions, working_dtype
from wespeaker.losses.margins import Place, placed
from wespeaker.losses.screening import nonzero
from wespeaker.losses.shards import RankRows, Shards, total

# Classes of a tile: what is made of one tile's logits stays in the cache (0.5 MB each at B = 128).
TILE_CLASSES = 1024
# |ln Σ p| at which the estimate from the first tile stops, which is as near as a sample comes, and below which the
# next look is expected to be the last: steps shrink quadratically.
LOOSE, NEAR = 0.1, 3e-3
MOST_STEPS = 60  # 2 to 5 are taken
# Packing pays where less than this share of the entries is active: with powers by logarithm, and with fast ones.
PACK_BELOW = (0.1, 0.01)
PACK_CLASSES = 8192  # packed at once, which bounds what their indices take


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
    place: Place,
    *,
    alpha: float,
    scale: float,
    shards: Shards | None = None,
    rows: RankRows | None = None,
) -> Buffered:
    """Compute the α-divergence loss of scaled cosines for 1 ≤ α ≤ 2; arguments as in `stream_divergence`.

    Below 1 + 1e-6 it is KL's, cross-entropy, as in `alpha_divergence`.
    """
    if not 1.0 <= alpha <= 2.0:
        raise ValueError(f"the buffered form needs alpha in [1, 2]; found {alpha}")
    # Once, so that the two parts of the gradient are added before they are rounded.
    embeddings = embeddings.to(working_dtype(embeddings, prototypes))
    shards = shards or Shards(len(prototypes))
    own, prototypes = _Own.apply(embeddings, prototypes, shards.here(labels), scale)
    target, log_q = placed(place, total(own, shards), scale, rows or RankRows([len(labels)], 0))
    b = alpha - 1.0 if alpha - 1.0 >= normalizer.KL_BELOW else 0.0
    return Buffered(*_Loss.apply(embeddings, prototypes, target, log_q, labels, b, scale, shards))


class _Own(torch.autograd.Function):
    """(embeddings, prototypes) to the label's logit (B,), 0 where the label is -1, and the prototypes for `_Loss`.

    The prototypes pass through so that their gradient from `_Loss`, (C, D), passes through on its way back and the
    label's part can be added to it in place: autograd would add the two in a third tensor of that size.
    """

    @staticmethod
    def forward(
        ctx: Any, embeddings: Tensor, prototypes: Tensor, labels: Tensor, scale: float
    ) -> tuple[Tensor, Tensor]:
        directions, inverse_e = scaled_directions(embeddings, scale)
        ours = prototypes.index_select(0, labels.clamp(min=0)).to(directions.dtype)
        inverse_w = inverse_norms(ours).where(labels >= 0, 0.0)
        own = torch.linalg.vecdot(directions, ours) * inverse_w
        through = prototypes.view_as(prototypes)
        ctx.save_for_backward(labels, directions, ours * inverse_w.unsqueeze(1), inverse_e, inverse_w, own)
        ctx.scale = scale
        ctx.set_materialize_grads(False)
        if not ctx.needs_input_grad[1]:
            ctx.mark_non_differentiable(through)
        return own, through

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        labels, directions, unit, inverse_e, inverse_w, own = ctx.saved_tensors
        grad_own, of_prototypes = grads
        grad = (torch.zeros_like(own) if grad_own is None else grad_own).unsqueeze(1)
        along = (own / ctx.scale).unsqueeze(1)
        of_embeddings = grad * (ctx.scale * unit - along * directions) * inverse_e.unsqueeze(1)
        if of_prototypes is not None:
            of_ours = grad * (directions - own.unsqueeze(1) * unit) * inverse_w.unsqueeze(1)
            mine = nonzero(labels >= 0)
            of_prototypes.index_add_(0, labels[mine], of_ours[mine].to(of_prototypes.dtype))
        return of_embeddings, of_prototypes, None, None


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
        b: float,
        scale: float,
        shards: Shards,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        directions, inverse_e = scaled_directions(embeddings, scale)
        own = _OwnClass(target.double(), log_q.double(), b)
        tiles = _Tiles(directions.new_empty(len(prototypes), len(labels)), b)
        inverse_w, correct, tau = _write(tiles, prototypes, directions, labels, own, shards)
        tau, sums = _root(tiles, tau, own, shards)
        p_y = own.sums(tau).total / sums.total
        loss = tau - own.theta + (sums.moment - 1.0 + own.cost) / (1.0 + b)  # stationary in τ, as in `divergence`
        loss = torch.where(p_y == 1.0, 0.0, loss.clamp(min=0.0)).to(directions.dtype)  # exactly 0 where p = e_y
        support = sums.support.nan_to_num().long() if b > 0.0 else torch.full_like(labels, shards.num_classes)

        p_y = p_y.to(target.dtype)
        ctx.save_for_backward(prototypes, directions, inverse_e, inverse_w, tiles.buffer, tau, sums.total, p_y, log_q)
        ctx.b, ctx.scale = b, scale
        ctx.mark_non_differentiable(support, correct, p_y)
        return loss, support, correct, p_y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        prototypes, directions, inverse_e, inverse_w, buffer, tau, total, p_y, log_q = ctx.saved_tensors
        tiles = _Tiles(buffer, ctx.b)
        factor = (grads[0] / total).to(buffer.dtype).unsqueeze(1)
        weighted = directions * factor
        towards = torch.zeros_like(directions)
        of_prototypes = torch.empty_like(prototypes)
        scratch = directions.new_empty(2, min(TILE_CLASSES, len(buffer)), directions.shape[1])
        for first, last in tiles.spans(0, len(buffer)):
            chunk, inverse = prototypes[first:last].to(buffer.dtype), inverse_w[first:last].unsqueeze(1)
            g = tiles.posterior(first, last, tau).mul_(inverse)
            towards.addmm_(g.T, chunk)
            raw, product = scratch[:, : last - first]
            if of_prototypes.dtype == raw.dtype:
                raw = of_prototypes[first:last]
            torch.mm(g, weighted, out=raw)
            along = torch.mul(raw, chunk, out=product).sum(1, keepdim=True).mul_(inverse).mul_(inverse)
            raw.addcmul_(chunk, along, value=-1.0)
            if of_prototypes.dtype != raw.dtype:
                of_prototypes[first:last] = raw
        unit = directions / ctx.scale
        towards *= factor
        towards -= unit * torch.linalg.vecdot(towards, unit).unsqueeze(1)
        of_embeddings = ctx.scale * towards * inverse_e.unsqueeze(1)
        of_log_q = (p_y.pow(1.0 + ctx.b) - 1.0) * torch.exp(-ctx.b * log_q) / (1.0 + ctx.b) * grads[0]
        return of_embeddings, of_prototypes, (p_y - 1.0) * grads[0], of_log_q, None, None, None, None


class _Sums(NamedTuple):
    """Σ p, Σ p/x and, where asked for, Σ p x and the number of classes with x > 0, (B,) float64.

    The derivative of Σ p by τ is -Σ p/x.
    """

    total: Tensor
    slope: Tensor
    moment: Tensor
    support: Tensor


class _OwnClass:
    """The label's class, kept apart: logit ``theta`` and ``log_q`` (B,) float64, ``cost`` (q^-b - 1)/b (B,)."""

    def __init__(self, theta: Tensor, log_q: Tensor, b: float) -> None:
        self.theta, self.log_q, self.b = theta, log_q, b
        self.cost = torch.expm1(-b * log_q) / b if b > 0.0 else -log_q

    def sums(self, tau: Tensor) -> _Sums:
        """Return what this class adds to the sums at τ."""
        if self.b == 0.0:
            p = (self.theta - tau + self.log_q).exp()
            return _Sums(p, p, p, torch.ones_like(p))
        v = (self.b * (self.theta - tau)).clamp(min=-1.0)
        p, x = (torch.log1p(v) / self.b + self.log_q).exp(), 1.0 + v
        return _Sums(p, torch.where(x > 0.0, p / x, 0.0), p * x, x.sign())


class _Tiles:
    """The logits of the other classes, (C, B) in units of 1/b (of ln 2 for KL), and what is summed over tiles of them.

    With u = (θ - τ) in these units, x = [1 + u]_+ and p = x^r, r = 1/b; exp2(u) for KL, where x stands for 1. Near KL
    1 + u would lose digits that log1p keeps; elsewhere it is θ - z, z = τ - 1/b, which keeps those of a small x.
    """

    def __init__(self, buffer: Tensor, b: float) -> None:
        self.buffer, self.b = buffer, b
        self.unit = b if b > 0.0 else math.log2(math.e)
        self.near_kl = 0.0 < b < normalizer.LOG1P_BELOW
        self.window = 0.0 if b < normalizer.LOG1P_BELOW else 1.0 / b
        self.scratch = buffer.new_empty(2, min(TILE_CLASSES, len(buffer)), buffer.shape[1])

    def spans(self, first: int, last: int) -> list[tuple[int, int]]:
        """Return the first classes of the tiles from ``first`` to ``last``, and those after their last."""
        return [(at, min(at + TILE_CLASSES, last)) for at in range(first, last, TILE_CLASSES)]

    def origin(self, tau: Tensor) -> Tensor:
        """Return z, or τ near KL, in the units and the dtype of the buffer (B,)."""
        return (self.unit * (tau - self.window)).to(self.buffer.dtype)

    def _powers(self, first: int, last: int, origin: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return p/x and x (None for 1), (n, B) in the scratch; they may be the same tensor."""
        x, power = self.scratch[:, : last - first]
        torch.sub(self.buffer[first:last], origin, out=x)
        if self.b == 0.0:
            return torch.exp2(x, out=power), None
        if self.near_kl:
            torch.log1p(x.clamp_(min=-1.0), out=power).mul_(math.log2(math.e) * (1.0 / self.b - 1.0)).exp2_()
            return power, x.add_(1.0)
        return _power(x.clamp_(min=0.0), 1.0 / self.b - 1.0, out=power), x

    def posterior(self, first: int, last: int, tau: Tensor) -> Tensor:
        """Return p (n, B), in the scratch."""
        power, x = self._powers(first, last, self.origin(tau))
        return power if x is None else torch.mul(power, x, out=self.scratch[1, : last - first])

    def sums(self, tau: Tensor, first: int, last: int, *, moments: bool = False) -> _Sums:
        """Sum over the classes from ``first`` to ``last``."""
        origin = self.origin(tau)
        total, slope, moment, support = torch.zeros(4, len(tau), dtype=tau.dtype, device=tau.device)
        for at, end in self.spans(first, last):
            power, x = self._powers(at, end, origin)
            slope += power.sum(0)
            if x is None:
                continue
            p = torch.mul(power, x, out=self.scratch[1, : end - at])
            total += p.sum(0)
            if moments:
                moment += p.mul_(x).sum(0)
                support += x.sign_().sum(0)
        if self.b == 0.0:
            return _Sums(slope, slope, slope, support)
        return _Sums(total, slope, moment, support)

    def few_active(self, tau: Tensor) -> bool:
        """Whether, by the first tile, packing what is active at τ costs less than the looks at what is not."""
        if self.b < normalizer.LOG1P_BELOW:
            return False
        above = self.buffer[:TILE_CLASSES] > self.origin(tau)
        return int(above.count_nonzero()) < PACK_BELOW[_is_fast(1.0 / self.b - 1.0)] * above.numel()

    def packed(self, tau: Tensor) -> _Tiles:
        """Return the tiles of what is active at a lower bound of τ, each row's entries moved up; -inf fills up."""
        # Rounding x is the same as moving a logit by as much, and τ moves by no more than the logits do.
        slack = 4.0 * normalizer.precision(self.buffer.dtype) * (1.0 + self.window + tau.abs())
        origin, parts = self.origin(tau - slack), []
        for part in self.buffer.split(PACK_CLASSES):
            index = nonzero(part > origin)
            rows = index.remainder(len(tau))
            column, width = columns(rows, len(tau))
            parts.append(part.new_full((width, len(tau)), -math.inf))
            parts[-1][column, rows] = part.flatten().index_select(0, index)
        return _Tiles(torch.cat(parts), self.b)


def _is_fast(exponent: float) -> bool:
    """Whether x^exponent takes a product or two."""
    return exponent < 3.5 and abs(exponent - round(exponent)) < 1e-12


def _power(x: Tensor, exponent: float, *, out: Tensor) -> Tensor:
    """Return x^exponent for x ≥ 0; for x = 0, which is an inactive class, 0 even at exponent 0, or next to it."""
    if not _is_fast(exponent):
        # 0.6 times pow's time, right to 4 units in the last place; the logarithm of 0 takes eight times as long.
        return torch.clamp(x, min=torch.finfo(x.dtype).tiny, out=out).log2_().mul_(exponent).exp2_()
    if round(exponent) == 1:
        return x
    return torch.sign(x, out=out) if round(exponent) == 0 else torch.pow(x, round(exponent), out=out)


def _together(others: _Sums, own: _Sums, *, times: float = 1.0) -> _Sums:
    """Return the sums over all classes, each of ``others`` standing for ``times`` of them."""
    return _Sums(*(times * a + b for a, b in zip(others, own, strict=True)))


def _step(sums: _Sums, b: float) -> Tensor:
    """Return Newton's step of τ on H = (Σ p)^b = 1, on ln Σ p = 0 for KL (B,)."""
    log_total = sums.total.log()
    return log_total if b == 0.0 else -sums.total * torch.expm1(-b * log_total) / (b * sums.slope)


def _write(
    tiles: _Tiles, prototypes: Tensor, directions: Tensor, labels: Tensor, own: _OwnClass, shards: Shards
) -> tuple[Tensor, Tensor, Tensor]:
    """Write the logits, -inf for the label's; return 1/‖w‖ (C,), whether the label's logit is the largest (B,), and
    a lower bound of τ (B,) float64."""
    buffer, batch = tiles.buffer, len(labels)
    transposed = (directions * tiles.unit).T.contiguous()
    inverse = directions.new_empty(len(buffer))
    label_logit = torch.zeros_like(own.theta)  # 0 where it is another process's
    best = directions.new_full((batch,), -math.inf)
    tau = own.theta - own.cost  # the bound that the label's class gives alone
    height, slope = torch.zeros_like(tau), torch.zeros_like(tau)  # of the tangents: height - slope τ
    here = shards.here(labels)
    by_label = here.argsort(stable=True)
    firsts = range(0, len(buffer), CHUNK_CLASSES)
    starts = torch.searchsorted(here[by_label], here.new_tensor([*firsts, len(buffer)])).tolist()
    for first, start, end in zip(firsts, starts, starts[1:], strict=False):
        last = min(first + CHUNK_CLASSES, len(buffer))
        block, chunk = buffer[first:last], prototypes[first:last].to(buffer.dtype)
        inverse[first:last] = norms = inverse_norms(chunk)
        torch.mm(chunk, transposed, out=block).mul_(norms.unsqueeze(1))
        mine = by_label[start:end]  # the rows whose label is in this chunk
        at = (here[mine] - first, mine)
        label_logit[mine] = block[at].double()
        block[at] = -math.inf
        top = block.amax(0)
        best = torch.maximum(best, top)
        if first == 0:
            tau = _estimate(tiles, tau, own, shards.num_classes)
        tau = torch.maximum(tau, top.double() / tiles.unit)  # a bound, at which some p is 1 and none overflows
        sums, label, times = tiles.sums(tau, first, last), own.sums(tau), shards.num_classes / last
        height += sums.total + sums.slope * tau
        slope += sums.slope
        tau = (times * height + label.total + label.slope * tau - 1.0) / (times * slope + label.slope)
    if shards.split:  # the tangents of all, and the label's at what all expect
        height, slope, label_logit, tau = shards.sum(torch.stack([height, slope, label_logit, tau / shards.world_size]))
        label = own.sums(tau)
        tau = (height + label.total + label.slope * tau - 1.0) / (slope + label.slope)
    overall = shards.max(best)
    tau = torch.maximum(tau, torch.maximum(own.theta - own.cost, overall.double() / tiles.unit))
    label_logit = label_logit.to(best.dtype)
    return inverse, _correct(buffer, label_logit, overall, labels, shards), tau


def _estimate(tiles: _Tiles, tau: Tensor, own: _OwnClass, num_classes: int) -> Tensor:
    """Return τ (B,) as it would be if all classes were as those of the first tile, from the bound of own."""
    size = min(TILE_CLASSES, len(tiles.buffer))
    tau = torch.maximum(tau, tiles.buffer[:size].amax(0).double() / tiles.unit)
    for _ in range(MOST_STEPS):
        sums = _together(tiles.sums(tau, 0, size), own.sums(tau), times=num_classes / size)
        tau = tau + _step(sums, tiles.b)
        if not bool((sums.total.log().abs() > LOOSE).any()):
            break
    return tau


def _correct(logits: Tensor, own: Tensor, best: Tensor, labels: Tensor, shards: Shards) -> Tensor:
    """Return whether the label's logit is above the best of the others' or the first of equals (B,)."""
    beaten = torch.zeros_like(own)  # by an equal one before it
    for row in (own == best).nonzero().flatten().tolist():
        beaten[row] = (logits[: int(shards.before(labels[row])), row] == own[row]).any()
    return (own >= best) & (shards.max(beaten) == 0.0)


def _root(tiles: _Tiles, tau: Tensor, own: _OwnClass, shards: Shards) -> tuple[Tensor, _Sums]:
    """Return τ (B,) float64 of eq. 10, from a lower bound of it, and all sums at τ."""
    eps = torch.finfo(tiles.buffer.dtype).eps
    if tiles.few_active(tau):
        tiles = tiles.packed(tau)
    off = math.inf
    for left in reversed(range(MOST_STEPS)):
        last_look = off < NEAR or left == 0
        others = tiles.sums(tau, 0, len(tiles.buffer), moments=last_look)
        if shards.split:
            others = _Sums(*shards.sum(torch.stack(others)))
        sums = _together(others, own.sums(tau))
        distance = sums.total.log().abs()
        step = _step(sums, tiles.b)
        # τ is rounded where it meets the logits, so Σ p need not come nearer; a NaN row does not ask for more.
        is_open = (distance > 16.0 * eps) & (step.abs() > 2.0 * eps * (tau - tiles.window).abs())
        if last_look and not shards.any(is_open):
            break
        off = distance.nan_to_num().amax().item()
        tau = tau + step
    return tau, sums
