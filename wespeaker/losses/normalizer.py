"""Which τ makes the α-softargmax sum to one: the root of eq. 10, by Newton steps from a certified lower bound.

Write b = α - 1, r = 1/b, v_j = b(θ_j - τ), x_j = [1 + v_j]_+, p_j = q_j x_j^r (eq. 9) and G(τ) = Σ_j p_j. Three
facts carry the exactness of everything here, with no tuned number of candidates:

1. *Subsets bound from below.* G_S(τ) = Σ_{j∈S} p_j falls with τ and G_S ≤ G for a subset S of the classes, so
   the root of any subset is a lower bound of the root of all. A single class gives τ ≥ θ_j - (q_j^-b - 1)/b.
2. *Certified zeros.* At any lower bound τ_S, a class with θ_j ≤ τ_S - 1/b has posterior exactly 0 and may be
   forgotten (the paper's Proposition 1 read backwards).
3. *Newton never overshoots.* For α ≤ 2, H = G^b is the r-norm of the non-negative convex functions q_j^b
   x_j(τ), hence convex and falling (Minkowski), so every Newton step on H = 1 from the left stays at the left
   of the root. For α > 2 it is not a norm, and the root is bisected.

The classes fall in two parts: the `rest` with q_j = 1 (or log q_j given for each), a (B, S) matrix, and the
row's `own` class, the target, whose logit and log q are (B,) vectors in float64. No (B, C) reference measure is
ever built.

Where the classes are split over processes, `rest` is of this process's and `own` is known to all. Sums and maxima over
the rest are the only numbers that are exchanged, all processes take the same steps from them, and none can stop alone:
whether a row still moves travels with the sums of the next look, which at the root is the one that is wanted anyway.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from wespeaker.losses.shards import Shards

# Below this b = α - 1, x^(1/b) is a large power of a number near one: it goes through log1p, which keeps the
# digits that rounding 1 + v would lose (float32, b = 1e-3: 7e-5 of p lost to that rounding, 1e-7 with log1p).
LOG1P_BELOW = 0.1
# Below this b the loss differs from KL's by about b w²/2, w = θ_j - τ of the classes that carry the mass: 5e-7
# measured at b = 1e-6, float32's rounding.
KL_BELOW = 1e-6
# Up to this many classes in a row, float64 costs less time than starting the operations.
FLOAT64_UP_TO = 4096
# Classes per block of `candidates`: a maximum over 16 strided columns costs one read of the logits.
BLOCK = 16
ALONE = Shards(1)  # nothing to exchange


class Rows(NamedTuple):
    """One problem a row: the classes of eq. 10, all logits relative to the row's largest.

    ``rest`` (B, S) with ``log_q`` (B, S) or None for q = 1; ``own`` and ``own_log_q`` (B,) float64, where
    own = -inf says that the row has no class apart. ``shards``: how the classes of the rest are split; they have no
    log_q where they are.
    """

    rest: Tensor
    log_q: Tensor | None
    own: Tensor
    own_log_q: Tensor
    shards: Shards = ALONE


class Mass(NamedTuple):
    """What a value of τ makes of the rows: p of the rest (B, S), of the own class (B,), Σ p, Σ p/x, Σ p·v (B,).

    asked: (B,) how many processes asked for this look.
    """

    rest: Tensor
    own: Tensor
    total: Tensor
    slope: Tensor
    moment: Tensor
    asked: Tensor


def excess(theta: Tensor, tau: Tensor, b: float) -> Tensor:
    """Return v = b(θ - τ), not below -1, where the class is inactive (so p·v is 0 there even for θ = -inf)."""
    return torch.sub(theta, tau).mul_(b).clamp_(min=-1.0)


def powers(v: Tensor, log_q: Tensor | None, b: float) -> Tensor:
    """Return p = q (1 + v)^(1/b), eq. 9, for v ≥ -1."""
    if log_q is None and b >= LOG1P_BELOW:
        r = 1.0 / b
        whole = round(r)
        if abs(r - whole) > 1e-12:
            return (1.0 + v).pow_(r)
        if whole == 4:  # torch's pow has fast paths for 1, 2 and 3 only
            return (1.0 + v).square_().square_()
        return (1.0 + v).pow_(whole)
    log_p = torch.log1p(v).div_(b)
    return (log_p if log_q is None else log_p.add_(log_q)).exp_()


def mass(rows: Rows, tau: Tensor, b: float, asked: Tensor | None = None) -> Mass:
    """Evaluate eq. 9 at τ (B,) float64, and the sums that Newton's step and the loss need, (B,) float64.

    One sum of [4, B] over the processes. ``asked`` (B,) bool: which rows this process asks it for; None for all.
    """
    v = excess(rows.rest, tau.to(rows.rest.dtype).unsqueeze(1), b)
    own_v = excess(rows.own, tau, b)
    p, own_p = powers(v, rows.log_q, b), powers(own_v, rows.own_log_q, b)
    total, slope, moment, asked = rows.shards.sum(
        torch.stack(
            [
                p.sum(1).double(),  # torch adds in a tree: the sum is as exact as its terms
                _over(p, v).sum(1).double(),
                torch.mul(p, v).sum(1).double(),
                torch.ones_like(tau) if asked is None else asked.double(),
            ]
        )
    )
    return Mass(p, own_p, total + own_p, slope + _over(own_p, own_v), moment + own_p * own_v, asked)


def _over(p: Tensor, v: Tensor) -> Tensor:
    """Return p/x = q x^(r-1), and 0 (not 0/0) where the class is inactive."""
    return p / (1.0 + v).clamp_(min=torch.finfo(p.dtype).tiny)


def singleton_bound(rows: Rows, b: float) -> Tensor:
    """Return max_j θ_j - (q_j^-b - 1)/b (B,): the best lower bound of τ that single classes give (fact 1)."""
    alone = rows.rest if rows.log_q is None else rows.rest - torch.expm1(-b * rows.log_q) / b
    return torch.maximum(rows.shards.max(alone.amax(1).double()), rows.own - torch.expm1(-b * rows.own_log_q) / b)


def newton(rows: Rows, tau: Tensor, b: float, *, tolerance: float) -> tuple[Tensor, Mass | None]:
    """Step on H = G^b = 1 from a lower bound until no row moves by more than ``tolerance``; for b ≤ 1.

    τ ← τ - G expm1(-b ln G) / (b Σ p/x).  Every iterate is again a lower bound (fact 3).

    The number of steps is bounded: for Newton on a convex f from the left, the product f·|f'| falls at least
    fourfold a step. With f = H - 1 at the singleton bound f·|f'| ≤ b (k Σq)^b, and |f'| ≥ b q_min^b at the
    root, so 4^-n (k Σq)^b q_min^-2b / b bounds the distance to the root after n steps. In practice it takes 3
    to 13.

    Returns:
        τ, and its mass where several processes had to look at it.
    """
    moving = torch.ones_like(tau, dtype=torch.bool)
    for _ in range(_newton_steps(rows, b, tolerance)):
        now = mass(rows, tau, b, moving)
        if rows.shards.split and not bool(now.asked.any()):
            return tau, now
        step = -now.total * torch.expm1(-b * now.total.log()) / (b * now.slope)
        tau = tau + step
        moving = step.abs() > tolerance * (1.0 + tau.abs())  # a NaN row does not ask for more
        if not rows.shards.split and not bool(moving.any()):
            break
    return tau, None


def _newton_steps(rows: Rows, b: float, tolerance: float) -> int:
    spread = rows.own_log_q.abs().amax()
    if rows.log_q is not None:
        finite = rows.log_q.masked_fill(rows.log_q.isinf(), 0.0)
        spread = torch.maximum(spread, finite.abs().amax().double())
    largest = torch.nan_to_num(spread, nan=0.0, posinf=0.0).item()
    classes = max(rows.rest.shape[1] + 1, rows.shards.num_classes)
    log_reduction = 2 * b * math.log(classes) + 3 * b * largest - math.log(b) - math.log(tolerance)
    return math.ceil(log_reduction / math.log(4.0)) + 1


def bisect(rows: Rows, b: float, *, tolerance: float) -> Tensor:
    """Halve [singleton bound, θ_max - f'(1/Σq)] until no row is wider than ``tolerance``; for any b.

    The lower end is returned: like Newton's iterates it is a lower bound. Every step halves, so their number is
    known.
    """
    low = singleton_bound(rows, b)
    if rows.log_q is None:
        total_q = rows.own_log_q.exp() + max(rows.rest.shape[1], rows.shards.num_classes)
    else:
        total_q = rows.own_log_q.exp() + rows.log_q.double().exp().sum(1)
    top = torch.maximum(rows.shards.max(rows.rest.amax(1).double()), rows.own)
    high = top - torch.expm1(-b * total_q.log()) / b
    width = torch.nan_to_num(high - low, nan=0.0, posinf=0.0).amax().clamp(min=tolerance)
    for _ in range(int(rows.shards.max((width / tolerance).log2().ceil()))):
        middle = 0.5 * (low + high)
        above = mass(rows, middle, b).total >= 1.0
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return low


def lower_root(
    rows: Rows, alpha: float, *, start: Tensor | None = None, tolerance: float
) -> tuple[Tensor, Mass | None]:
    """Return τ (B,) float64 of eq. 10 to ``tolerance``, from below, and maybe its mass, see `newton`.

    Args:
        rows: the classes.
        alpha: above 1.
        start: (B,) a known lower bound of τ; where the classes are split, the same on all processes, and not below
            the singleton bound, which is the one without it.
        tolerance: largest distance to the root, in units of logits.
    """
    b = alpha - 1.0
    if alpha > 2.0:
        return bisect(rows, b, tolerance=tolerance), None
    if start is None or not rows.shards.split:
        bound = singleton_bound(rows, b)
        start = bound if start is None else torch.maximum(bound, start)
    return newton(rows, start, b, tolerance=tolerance)


def precision(dtype: torch.dtype) -> float:
    """Return the tolerance on τ that the rounding of x in ``dtype`` leaves meaningful."""
    return 16.0 * torch.finfo(dtype).eps


def candidates(
    theta: Tensor, top: Tensor, own: Tensor, own_log_q: Tensor, labels: Tensor | None, alpha: float
) -> tuple[Tensor | None, Tensor]:
    """Find a certified superset of every row's support: its classes, and the bound that certified it.

    The largest logit of each block of 16 classes is itself a subset of the classes, so solving eq. 10 on those
    few gives a lower bound of τ (fact 1), a tight one since nearly all of the top classes are in it. A block
    whose largest logit is at or below τ - 1/b holds zeros only (fact 2).

    Args:
        theta: (B, C), q = 1 but for the label's.
        top: (B, 1) the largest logit of each row.
        own: (B,) float64, the label's logit relative to ``top``; -inf where there is none.
        own_log_q: (B,) float64.
        labels: (B,) int64, or None.
        alpha: above 1.

    Returns:
        classes (B, S) int64, without repetition, or None where more than a quarter of all classes would be in
        it; and a lower bound of τ - top (B,) float64.
    """
    num_classes = theta.shape[1]
    num_blocks = num_classes // BLOCK
    in_blocks = num_blocks * BLOCK  # block k holds the classes k, k + num_blocks, k + 2 num_blocks, ...
    largest = theta[:, :in_blocks].unflatten(1, (BLOCK, num_blocks)).amax(1)  # (B, C/16)
    if labels is not None:
        block = (labels % num_blocks).unsqueeze(1)
        members = _members(block, num_blocks)
        others = theta.gather(1, members).masked_fill_(members == labels.unsqueeze(1), -math.inf)
        largest.scatter_(1, block, others.amax(1, keepdim=True))
    largest.sub_(top)
    tau, _ = lower_root(Rows(largest, None, own, own_log_q), alpha, tolerance=1e-3)
    window = 1.0 / (alpha - 1.0)
    # Rounding x is the same as moving a logit by as much, and τ moves by no more than the logits do.
    tau = tau - 4.0 * precision(theta.dtype) * (1.0 + window + tau.abs())
    active = largest.double() > (tau - window).unsqueeze(1)
    count = max(1, int(active.sum(1).amax()))
    if 4 * count > num_blocks:
        return None, tau
    blocks = largest.topk(count, dim=1, sorted=False).indices
    tail = torch.arange(in_blocks, num_classes, device=theta.device).expand(theta.shape[0], -1)
    return torch.cat([_members(blocks, num_blocks), tail], dim=1), tau


def _members(blocks: Tensor, num_blocks: int) -> Tensor:
    """Return the classes (B, 16 n) of the blocks (B, n)."""
    offsets = num_blocks * torch.arange(BLOCK, device=blocks.device)
    return (blocks.unsqueeze(1) + offsets.unsqueeze(1)).flatten(1)
