"""Binary losses: every class is its own question, does this embedding belong to it, with one learnable bias."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional as F

from wespeaker.losses.shards import Shards, common, total


def softplus(x: Tensor) -> Tensor:
    """Return ln(1 + e^x), exact for large x and 0 for -inf (torch's own is linear above 20)."""
    return -F.logsigmoid(-x)


def sphereface2_loss(
    cosines: Tensor,
    own: Tensor,
    here: Tensor,
    bias: Tensor,
    shards: Shards,
    *,
    scale: float,
    margin: float,
    t: float,
    positive_weight: float,
    loss_weight: float,
) -> tuple[Tensor, Tensor]:
    """Compute (w / r) [λ ln(1 + e^{-f_y}) + (1 - λ) Σ_{j≠y} ln(1 + e^{f_j})] and the sigmoid of f_y, each (B,).

    f_y = r (g(c_y) - m) + b and f_j = r (g(c_j) + m) + b, where g(c) = 2 ((c + 1) / 2)^t - 1 spreads the cosines
    that crowd around 0. (The authors take the mean over classes of terms weighted with w C / r, which is the
    same.) The gradient is exact.

    Args:
        cosines: (B, C) of the classes of this process.
        own: (B,) of the labels.
        here: (B,) int64, where among the classes the labels are, -1 for another process's.
        bias: b, a scalar tensor; gets a gradient.
        shards: how the classes are split.
        scale: r.
        margin: m.
        t: the exponent, at least 1.
        positive_weight: λ in (0, 1).
        loss_weight: w.

    Source: SphereFace2 (Wen et al., 2022), the form with margins C.
    """

    def similarity(cosines: Tensor) -> Tensor:
        return 2.0 * (0.5 * (cosines + 1.0)).clamp(min=0.0).pow(t) - 1.0

    yes = scale * (similarity(own) - margin) + bias
    no = softplus(shards.put(scale * (similarity(cosines) + margin) + common(bias, shards), here, -math.inf))
    loss = positive_weight * softplus(-yes) + (1.0 - positive_weight) * total(no.sum(1), shards)
    return loss_weight / scale * loss, yes.sigmoid()


def sphereface2_bias(num_classes: int, *, scale: float, margin: float, t: float, positive_weight: float) -> float:
    """Return the b that minimises the loss when all cosines are 0.

    With a = r (g(0) - m), n = r (g(0) + m) and z = λ / ((1 - λ)(C - 1)) the derivative vanishes where
    z / (1 + e^{a+b}) = e^{n+b} / (1 + e^{n+b}); x = e^{n+b} solves e^{a-n} x² + (1 - z) x - z = 0.
    """
    own, other = scale * (2.0 * 0.5**t - 1.0 - margin), scale * (2.0 * 0.5**t - 1.0 + margin)
    z = positive_weight / ((1.0 - positive_weight) * max(1, num_classes - 1))
    root = math.sqrt((1.0 - z) ** 2 + 4.0 * z * math.exp(own - other))
    if z <= 1.0:  # of the two forms of the positive root, the one without a difference of near numbers
        return math.log(2.0 * z) - math.log(1.0 - z + root) - other
    return math.log(z - 1.0 + root) - math.log(2.0) - own


def uniface_loss(
    cosines: Tensor,
    own: Tensor,
    here: Tensor,
    bias: Tensor,
    shards: Shards,
    *,
    scale: float,
    margin: float,
    negative_weight: float,
) -> tuple[Tensor, Tensor]:
    """Compute ln(1 + e^{-f_y}) + λ Σ_{j≠y} ln(1 + e^{f_j}) and the sigmoid of f_y, each (B,).

    f_y = s (c_y - m) - b and f_j = s c_j - b, clamped to ±s as the authors do; beyond it the gradient is 0.

    Args:
        cosines: (B, C) of the classes of this process.
        own: (B,) of the labels.
        here: (B,) int64, where among the classes the labels are, -1 for another process's.
        bias: b, a scalar tensor; gets a gradient.
        shards: how the classes are split.
        scale: s.
        margin: m.
        negative_weight: λ.

    Source: UniFace (Zhou et al., 2023), the unified cross-entropy loss with margin.
    """
    yes = (scale * (own - margin) - bias).clamp(-scale, scale)
    no = softplus(shards.put((scale * cosines - common(bias, shards)).clamp(-scale, scale), here, -math.inf))
    return softplus(-yes) + negative_weight * total(no.sum(1), shards), yes.sigmoid()


def uniface_bias(num_classes: int) -> float:
    """Return ln(10 C), the authors' start value: nearly all questions have the answer no."""
    return math.log(10.0 * num_classes)
