"""Margins: what the label's cosine c = cos(angle) becomes before the divergence; pure functions on (B,)
tensors.

A geometric margin changes the label's logit; the probabilistic one of Q-Margin leaves the logits alone and
lowers the label's reference measure. Neither touches the other classes, so neither makes a (B, C) tensor. The
two functions at the end are those of the losses that do change the other classes.

A margin is one number or one for each sample; where the latter come from is in `adaptive`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from wespeaker.losses.shards import RankRows, Shards

GRADIENTS = ("exact", "straight_through")

# From the label's cosine (B,) to its logit, None for s times the cosine, and the log of its reference measure, None
# for 0: where a margin is put, as the forms that make no logits matrix are told it.
Place = Callable[[Tensor], tuple[Tensor | None, Tensor | None]]


def placed(place: Place, own: Tensor, scale: float, rows: RankRows) -> tuple[Tensor, Tensor]:
    """Return everyone's labels' logits and the logs of their reference measures (B,), from the logits without margin.

    Every process places the margins of its own rows, and tells.

    Args:
        place: on this process's rows.
        own: (B,) of everyone's rows.
        scale: s.
        rows: whose rows are where.
    """
    mine = rows.mine(own)
    target, log_q = place(mine / scale)
    both = mine if target is None else target, torch.zeros_like(mine) if log_q is None else log_q
    if not rows.split:
        return both
    target, log_q = rows.told(torch.stack(both, dim=1)).unbind(1)
    return target, log_q


def cosine_margin(cosine: Tensor, *, margin: float | Tensor) -> Tensor:
    """Subtract the margin: c - m.

    Source: CosFace (Wang et al., 2018), eq. 4; WeSpeaker's `add_margin`.
    """
    return cosine - margin


def angular_margin(
    cosine: Tensor, *, margin: float | Tensor, easy_margin: bool = False, gradient: str = "exact"
) -> Tensor:
    """Add the margin to the angle: cos(angle + m), continued where angle + m would exceed π.

    φ(c) = c cos m - sqrt(1 - c²) sin m  where c > cos(π - m), else c - (1 - cos m), which meets it without a
    jump; with `easy_margin` only where c > 0, else c.

    At |c| = 1 the sine's derivative is infinite; it is taken as 0 there, so that φ'(±1) is finite. (WeSpeaker's
    unguarded root gives NaN there.)

    Args:
        cosine: (B,) cosines of the labels' classes; rounding beyond ±1 is harmless.
        margin: m in radians, in [0, π); one number or (B,).
        easy_margin: leave angles above π/2 as they are.
        gradient: "exact", or "straight_through" for dφ/dc = 1, as in training code that takes the cosine's arc
            without recording it (InsightFace's; its published ArcFace baselines are of that kind).

    Returns:
        φ (B,), of the dtype of `cosine`.

    Source: ArcFace (Deng et al., 2019), eq. 3; the continuation is WeSpeaker's `arc_margin`.

    >>> angular_margin(torch.tensor([1.0, 0.0, -1.0]), margin=math.pi / 3)
    tensor([ 0.5000, -0.8660, -1.5000])
    """
    cos_m, sin_m = _cos_sin(margin)
    phi = cosine * cos_m - _sine(cosine) * sin_m
    if easy_margin:
        phi = torch.where(cosine > 0.0, phi, cosine)
    else:
        phi = torch.where(cosine > -cos_m, phi, cosine - (1.0 - cos_m))
    return phi if gradient == "exact" else _straight_through(cosine, phi)


def _cos_sin(margin: float | Tensor) -> tuple[float | Tensor, float | Tensor]:
    if isinstance(margin, Tensor):
        return margin.cos(), margin.sin()
    return math.cos(margin), math.sin(margin)


def _sine(cosine: Tensor) -> Tensor:
    """Return sin(angle), with derivative 0 at the poles."""
    squared = (1.0 - cosine) * (1.0 + cosine)  # 1 - c² would lose the digits of angles near 0
    inside = squared > 0.0
    root = torch.where(inside, torch.where(inside, squared, 1.0).sqrt(), 0.0)
    return root + 0.0 * cosine.detach()  # NaN stays NaN


def _straight_through(cosine: Tensor, phi: Tensor) -> Tensor:
    """Return φ with the gradient of the cosine."""
    return cosine + (phi - cosine).detach()


def multiplicative_margin(cosine: Tensor, *, margin: float, gradient: str = "straight_through") -> Tensor:
    """Multiply the angle: ψ = (-1)^k cos(m angle) - 2k with k = ⌊m angle / π⌋, which falls all the way to π.

    Args:
        cosine: (B,) cosines of the labels' classes.
        margin: m, a factor of at least 1; 1 leaves the cosine as it is.
        gradient: "straight_through" takes dψ/dc = 1 (the characteristic gradient detachment of the authors'
            later code, without which training needs an annealed mixture with softmax); "exact" differentiates,
            with derivative 0 within 1e-7 of the poles, where the arc's is infinite.

    Returns:
        ψ (B,).

    Source: SphereFace (Liu et al., 2017); detachment: SphereFace revived (Liu et al., 2022).

    >>> multiplicative_margin(torch.tensor([1.0, 0.0, -1.0]), margin=2.0)
    tensor([ 1., -1., -3.])
    """
    turned = margin * (cosine.detach() if gradient == "straight_through" else _inside(cosine)).clamp(-1.0, 1.0).acos()
    k = (turned.detach() / math.pi).floor()
    psi = (1.0 - 2.0 * k.remainder(2.0)) * turned.cos() - 2.0 * k
    return psi if gradient == "exact" else _straight_through(cosine, psi)


def _inside(cosine: Tensor) -> Tensor:
    return cosine.clamp(-1.0 + 1e-7, 1.0 - 1e-7)


def adaface_margin(cosine: Tensor, *, margin: float, additive: Tensor) -> Tensor:
    """Return cos(angle - m ẑ) - m (1 + ẑ): CosFace-like for ẑ = 0, for ẑ = -1 ArcFace's with angle + m.

    The cosine is clamped to ±(1 - 1e-3) and the new angle to [1e-4, π - 1e-4] as the authors do; beyond either
    the gradient is 0.

    Args:
        cosine: (B,) cosines of the labels' classes.
        margin: m.
        additive: (B,) m (1 + ẑ) with the image quality ẑ in [-1, 1], see `adaptive.NormMargin`.

    Source: AdaFace (Kim et al., 2022).
    """
    angle = cosine.clamp(-1.0 + 1e-3, 1.0 - 1e-3).acos() - (additive - margin)
    return angle.clamp(1e-4, math.pi - 1e-4).cos() - additive


def log_prior_margin(cosine: Tensor, *, scale: float, margin: float | Tensor) -> Tensor:
    """Return log q_y = -s m (B,), the log of the label's reference measure: a margin in the prior.

    Source: Q-Margin paper, eq. 7.
    """
    return torch.zeros_like(cosine) - scale * margin


def zero_loss_gap(alpha: float, scale: float, margin: float) -> float:
    """Return the cosine gap M = e^{(α-1)sm} / ((α-1)s) from which the Q-Margin loss is exactly zero.

    The posterior is e_y exactly where τ = θ_y - (q_y^{1-α} - 1)/(α-1) (the label alone has mass 1) leaves no
    other class above τ - 1/(α-1). With θ = s c and log q_y = -s m the two together say: loss 0 and gradient 0
    if and only if c_y - max_{j≠y} c_j ≥ M. A gap above 2 cannot be reached (above 1 hardly): the loss then
    never rests. For α = 1 it never does.

    Args:
        alpha: at least 1.
        scale: s, above 0.
        margin: m, at least 0.

    Returns:
        M, a difference of cosines; inf for α = 1.

    Source: derived here from eqs. 7-10 of the Q-Margin paper.

    >>> round(zero_loss_gap(1.5, 10.0, 0.1), 2), zero_loss_gap(1.0, 32.0, 0.2)
    (0.33, inf)
    """
    b = alpha - 1.0
    return math.inf if b == 0.0 else math.exp(b * scale * margin) / (b * scale)


def zero_loss_margin(alpha: float, scale: float, gap: float) -> float:
    """Return the margin m = ln((α-1) s M) / ((α-1) s) whose `zero_loss_gap` is M.

    Args:
        alpha: above 1.
        scale: s, above 0.
        gap: M, a difference of cosines; at least the 1 / ((α-1) s) of margin 0.

    Returns:
        m, at least 0.

    Raises:
        ValueError: no margin has this gap.

    Source: `zero_loss_gap`, solved for m.

    >>> round(zero_loss_margin(1.5, 10.0, 1.0), 3), zero_loss_margin(1.5, 10.0, 0.2)
    (0.322, 0.0)
    """
    if alpha <= 1.0:
        raise ValueError("with alpha 1 no sample's loss is ever zero, whatever the margin")
    least = zero_loss_gap(alpha, scale, 0.0)
    if gap < least:
        raise ValueError(f"a gap of {gap:g} is below the {least:.3g} that alpha {alpha:g} and scale {scale:g} ask for")
    return math.log(gap / least) * least


def curricular_negatives(
    cosines: Tensor, target: Tensor, here: Tensor, shards: Shards, *, margin: float, t: Tensor
) -> Tensor:
    """Return the cosines with c_j (t + c_j) for the hard negatives, those with c_j > cos(angle_y + m).

    Args:
        cosines: (B, C) of the classes of this process.
        target: (B,) cosines of the labels.
        here: (B,) int64, where among the classes the labels are, -1 for another process's; their cosines stay.
        shards: how the classes are split.
        margin: m in radians.
        t: the curriculum's parameter, a scalar tensor; no gradient goes through it.

    Source: CurricularFace (Huang et al., 2020).
    """
    target = target.detach().unsqueeze(1)
    cos_m, sin_m = _cos_sin(margin)
    hard = shards.put(cosines > target * cos_m - _sine(target) * sin_m, here, False)
    return torch.where(hard, cosines * (t + cosines), cosines)


def inter_topk_penalty(cosines: Tensor, here: Tensor, shards: Shards, *, margin: float, k_top: int) -> Tensor:
    """Return the cosines with cos(angle_j - m') for the k negatives that are nearest to the sample.

    cos(angle - m') = -cos((π - angle) + m'), so the penalty is the angular margin seen from the other pole, with
    the same continuation where angle < m'.

    Args:
        cosines: (B, C) of the classes of this process.
        here: (B,) int64, where among the classes the labels are, -1 for another process's; their cosines stay.
        shards: how the classes are split; the nearest are those of all processes.
        margin: m' in radians.
        k_top: k, at most C - 1 are taken.

    Source: Zhao et al., "Multi-query multi-head attention pooling and inter-topK penalty for speaker
    verification" (2022); WeSpeaker's `arc_margin_intertopk_subcenter`.
    """
    k = min(k_top, shards.num_classes - 1)
    rivals = shards.put(cosines.detach(), here, -math.inf)
    near, which = rivals.topk(min(k, rivals.shape[1]), dim=1, sorted=False)
    if k and shards.split:  # too many by as much as there are processes: the k-th of all decides
        short = near.new_full((len(near), k - near.shape[1]), -math.inf)
        last = shards.beside(torch.cat([near, short], dim=1)).topk(k, dim=1).values[:, -1:]
        is_near = (near >= last) & (near > -math.inf)
    else:
        is_near = torch.ones_like(near, dtype=torch.bool)
    own = cosines.gather(1, which)
    return cosines.scatter(1, which, torch.where(is_near, -angular_margin(-own, margin=margin), own))
