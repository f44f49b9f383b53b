"""Margins: what the label's cosine c = cos(angle) becomes before the divergence; pure functions on (B,)
tensors.

A geometric margin changes the label's logit; the probabilistic one of Q-Margin leaves the logits alone and
lowers the label's reference measure. None touches the other classes, so none makes a (B, C) tensor.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def cosine_margin(cosine: Tensor, *, margin: float) -> Tensor:
    """Subtract the margin: c - m.

    Source: CosFace (Wang et al., 2018), eq. 4; WeSpeaker's `add_margin`.
    """
    return cosine - margin


def angular_margin(cosine: Tensor, *, margin: float, easy_margin: bool = False) -> Tensor:
    """Add the margin to the angle: cos(angle + m), continued where angle + m would exceed π.

    φ(c) = c cos m - sqrt(1 - c²) sin m  where c > cos(π - m), else c - (1 - cos m), which meets it without a
    jump; with `easy_margin` only where c > 0, else c.

    At |c| = 1 the sine's derivative is infinite; it is taken as 0 there, so that φ'(±1) is finite. (WeSpeaker's
    unguarded root gives NaN there.)

    Args:
        cosine: (B,) cosines of the labels' classes; rounding beyond ±1 is harmless.
        margin: m in radians, in [0, π).
        easy_margin: leave angles above π/2 as they are.

    Returns:
        φ (B,), of the dtype of `cosine`.

    Source: ArcFace (Deng et al., 2019), eq. 3; the continuation is WeSpeaker's `arc_margin`.

    >>> angular_margin(torch.tensor([1.0, 0.0, -1.0]), margin=math.pi / 3)
    tensor([ 0.5000, -0.8660, -1.5000])
    """
    squared = (1.0 - cosine) * (1.0 + cosine)  # 1 - c² would lose the digits of angles near 0
    inside = squared > 0.0
    sine = torch.where(inside, torch.where(inside, squared, 1.0).sqrt(), 0.0)
    phi = cosine * math.cos(margin) - sine * math.sin(margin)
    if easy_margin:
        return torch.where(cosine > 0.0, phi, cosine)
    return torch.where(cosine > -math.cos(margin), phi, cosine - (1.0 - math.cos(margin)))


def log_prior_margin(cosine: Tensor, *, scale: float, margin: float) -> Tensor:
    """Return log q_y = -s m (B,), the log of the label's reference measure: a margin in the prior.

    Source: Q-Margin paper, eq. 7.
    """
    return torch.full_like(cosine, -scale * margin)


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
