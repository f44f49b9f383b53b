"""Margins that follow the sample, the class or the training: small modules whose state is in the state_dict.

`margin(embeddings, cosine, labels, margin)` gives one margin a sample (B,) of this process from the margin that the
schedule set; `negatives(theta, own, here, shards, rows, scale=, margin=)` gives the logits of the other classes, those
of this process for everyone's samples. State changes in training mode only, and from the batches of all processes, so
that every process has the same.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from wespeaker.losses.margins import curricular_negatives, inter_topk_penalty
from wespeaker.losses.prototypes import ClassSums
from wespeaker.losses.shards import RankRows, Shards, rank, rows_of_all_ranks, sizes_of_all_ranks

PLUS = ("none", "rank", "official")


def norms(embeddings: Tensor) -> Tensor:
    """Return ‖x‖ (B,) in float32 or finer; the gradient at 0 is 0."""
    return torch.linalg.vector_norm(embeddings.to(torch.promote_types(embeddings.dtype, torch.float32)), dim=1)


class NormMargin(nn.Module):
    """AdaFace: m (1 + ẑ), with ẑ = clip(h (‖x‖ - μ) / (σ + 1e-3), -1, 1) as a measure of the sample's quality.

    μ and σ are running mean and (unbiased) standard deviation of the norms, clipped to [1e-3, 100]; the batch
    counts before it is used. No gradient goes through ẑ. Norms that are not finite do not count.

    Args:
        h: concentration, above 0.
        t_alpha: weight of the newest batch in μ and σ, in [0, 1].

    Source: AdaFace (Kim et al., 2022).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, *, h: float, t_alpha: float) -> None:
        super().__init__()
        self.h, self.t_alpha = h, t_alpha
        self.register_buffer("mean", torch.tensor(20.0))  # the start values are the authors'
        self.register_buffer("std", torch.tensor(100.0))

    @torch.no_grad()
    def forward(self, embeddings: Tensor, cosine: Tensor, labels: Tensor, margin: float) -> Tensor:
        """Return the margins (B,)."""
        z = norms(embeddings).clamp(1e-3, 100.0)
        if self.training:
            self._follow(rows_of_all_ranks(z).to(self.mean.dtype))
        quality = (self.h * (z - self.mean) / (self.std + 1e-3)).clamp(-1.0, 1.0)
        return margin * (1.0 + quality)

    def _follow(self, z: Tensor) -> None:
        finite = z.isfinite()
        count = finite.sum()
        mean = torch.where(finite, z, 0.0).sum() / count
        variance = torch.where(finite, z - mean, 0.0).square().sum() / (count - 1)
        weight = self.t_alpha
        self.mean.copy_(torch.where(count > 0, self.mean.lerp(mean, weight), self.mean))
        self.std.copy_(torch.where(count > 1, self.std.lerp(variance.sqrt(), weight), self.std))


class MagnitudeMargin(nn.Module):
    """MagFace: m(a) from l_m at ‖x‖ ≤ l_a to u_m at ‖x‖ ≥ u_a, linear between; and its price for short vectors.

    The gradient goes through the norm. A schedule's margin replaces l_m; u_m follows in proportion.

    Args:
        lower_norm: l_a.
        upper_norm: u_a, above l_a.
        margin: l_m, above 0.
        upper_margin: u_m, at least l_m.
        norm_weight: λ_g of the penalty.

    Source: MagFace (Meng et al., 2021), with the linear m(a) and hyperbolic g(a) of its experiments.
    """

    def __init__(
        self, *, lower_norm: float, upper_norm: float, margin: float, upper_margin: float, norm_weight: float
    ) -> None:
        super().__init__()
        self.lower_norm, self.upper_norm, self.norm_weight = lower_norm, upper_norm, norm_weight
        self.growth = upper_margin / margin - 1.0

    def forward(self, embeddings: Tensor, cosine: Tensor, labels: Tensor, margin: float) -> Tensor:
        """Return the margins (B,)."""
        place = (self._clipped(embeddings) - self.lower_norm) / (self.upper_norm - self.lower_norm)
        return margin * (1.0 + self.growth * place)

    def penalty(self, embeddings: Tensor) -> Tensor:
        """Return λ_g (a / u_a² + 1 / a) (B,), which falls with the norm a up to u_a."""
        a = self._clipped(embeddings)
        return self.norm_weight * (a / self.upper_norm**2 + 1.0 / a)

    def _clipped(self, embeddings: Tensor) -> Tensor:
        return norms(embeddings).clamp(self.lower_norm, self.upper_norm)


class ElasticMargin(nn.Module):
    """ElasticFace: m_i ~ N(m, σ²) for each sample of each step; the mean itself in evaluation mode.

    The generator is the module's own, seeded by torch's seed when the module is made; its state is a buffer. All
    processes draw the same numbers for the batches of all and take their part.

    Args:
        sigma: σ.
        plus: "none"; "rank": the draws are sorted so that the sample with the largest cosine (of this process's
            batch) gets the smallest margin; "official": as the authors' code hands them out, sorted_margins[
            argsort(cosines, descending)], which is the inverse of the permutation that "rank" applies.

    Source: ElasticFace (Boutros et al., 2022).
    """

    generator_state: Tensor

    def __init__(self, *, sigma: float, plus: str) -> None:
        super().__init__()
        self.sigma, self.plus = sigma, plus
        seeded = torch.Generator().manual_seed(torch.initial_seed())
        self.register_buffer("generator_state", seeded.get_state())

    @torch.no_grad()
    def forward(self, embeddings: Tensor, cosine: Tensor, labels: Tensor, margin: float) -> Tensor:
        """Return the margins (B,)."""
        if not self.training:
            return torch.full_like(cosine, margin)
        drawn = margin + self.sigma * self._draw(len(cosine)).to(cosine)
        if self.plus == "none":
            return drawn
        order, drawn = cosine.argsort(descending=True, stable=True), drawn.sort().values
        return torch.empty_like(drawn).scatter_(0, order, drawn) if self.plus == "rank" else drawn[order]

    def _draw(self, count: int) -> Tensor:
        generator = torch.Generator()
        generator.set_state(self.generator_state.cpu())
        sizes = sizes_of_all_ranks(count, self.generator_state.device)
        drawn = torch.randn(sum(sizes), generator=generator, dtype=torch.float64)
        self.generator_state.copy_(generator.get_state())
        return drawn.split(sizes)[rank()]


class KappaMargin(nn.Module):
    """KappaFace: m ψ_c, larger for classes that are spread out and for classes with few samples.

    r̂ = ‖mean unit embedding‖ of the class, κ = r̂ (D - r̂²) / (1 - r̂²) its concentration,
    w_k = 1 - sigmoid(T zscore(κ)), w_s = (cos(π n_c / (1.05 n_max)) + 1) / 2, ψ = γ w_k + (1 - γ) w_s.

    ψ is 1 until the second epoch starts and changes when an epoch starts, from the samples of the epoch before:
    call `start_epoch`. The authors keep an embedding of every sample and move it by 1 - memory at each visit; the
    mean of a class then moves in the same way, so the class means (C, D) are enough. (The authors renormalise
    each sample's memory, the mean cannot: a difference of second order.) r̂ is at most .999: a class of one
    sample has κ = ∞. Classes that were not seen count with κ of the average.

    Args:
        shards: the classes of this process.
        embed_dim: D.
        temperature: T.
        gamma: γ in [0, 1].
        memory: weight of the past in the class means, in [0, 1).

    Source: KappaFace (Oinar et al., 2023).
    """

    SHARDED, PER_CLASS = ("mean",), ("psi", "known")
    psi: Tensor
    mean: Tensor
    known: Tensor
    epoch: Tensor

    def __init__(self, shards: Shards, embed_dim: int, *, temperature: float, gamma: float, memory: float) -> None:
        super().__init__()
        self.temperature, self.gamma, self.memory = temperature, gamma, memory
        self.classes = ClassSums(shards, embed_dim)
        self.register_buffer("psi", torch.ones(shards.num_classes))
        self.register_buffer("mean", torch.zeros(shards.size, embed_dim))
        self.register_buffer("known", torch.zeros(shards.num_classes, dtype=torch.bool))
        self.register_buffer("epoch", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def forward(self, embeddings: Tensor, cosine: Tensor, labels: Tensor, margin: float) -> Tensor:
        """Return the margins (B,)."""
        if self.training:
            self.classes.add(embeddings, labels)
        return margin * self.psi[labels].to(cosine)

    @torch.no_grad()
    def start_epoch(self, epoch: int) -> None:
        """Compute ψ from what was seen in the epoch before. Harmless if repeated."""
        counts = self.classes.counts
        if epoch != int(self.epoch) and bool(counts.any()):
            seen, here = counts > 0, self.classes.here
            newest = self.classes.sums / counts[here].clamp(min=1.0).unsqueeze(1)
            moved = torch.where(self.known[here].unsqueeze(1), newest.lerp(self.mean, self.memory), newest)
            self.mean.copy_(torch.where(seen[here].unsqueeze(1), moved, self.mean))
            self.known |= seen
            self.psi.copy_(self._psi(counts))
            self.classes.clear()
        self.epoch.fill_(epoch)

    def _psi(self, counts: Tensor) -> Tensor:
        r = self.classes.shards.gather(self.mean.norm(dim=1)).clamp(max=0.999)
        kappa = r * (self.mean.shape[1] - r.square()) / (1.0 - r.square())
        kappa = torch.where(self.known, kappa, kappa[self.known].mean())
        std = kappa[self.known].std(correction=0)
        z = (kappa - kappa[self.known].mean()) / torch.where(std > 0.0, std, 1.0)
        w_k = 1.0 - torch.sigmoid(self.temperature * z)
        w_s = 0.5 * (torch.cos(math.pi * counts / (1.05 * counts.max())) + 1.0)
        return self.gamma * w_k + (1.0 - self.gamma) * w_s


class Curriculum(nn.Module):
    """CurricularFace: hard negatives are weakened early in training and strengthened late.

    t is the running mean of the labels' cosines, from 0; the batch counts before it is used.

    Args:
        t_weight: weight of the newest batch in t, in [0, 1].

    Source: CurricularFace (Huang et al., 2020). `angular_margin`'s continuation beyond π - m stands in
    the place of the authors' c - m sin m, which has a jump.
    """

    t: Tensor

    def __init__(self, *, t_weight: float) -> None:
        super().__init__()
        self.t_weight = t_weight
        self.register_buffer("t", torch.zeros(()))

    def forward(
        self, theta: Tensor, own: Tensor, here: Tensor, shards: Shards, rows: RankRows, *, scale: float, margin: float
    ) -> Tensor:
        """Return the logits (B, C) of which the labels' are unchanged."""
        cosines, target = theta / scale, own.detach() / scale
        if self.training:
            of_all = rows_of_all_ranks(target[rows.mine_at]).to(self.t.dtype)
            mean = of_all.nanmean().clamp(-1.0, 1.0)
            self.t.copy_(torch.where(mean.isfinite(), self.t.lerp(mean, self.t_weight), self.t))
        t = self.t.clone().to(theta.dtype)  # a copy: the next batch changes t, maybe before this one's backward
        return scale * curricular_negatives(cosines, target, here, shards, margin=margin, t=t)


class InterTopK(nn.Module):
    """WeSpeaker's inter-top-k penalty; its margin m' grows with the schedule's margin, as WeSpeaker's does.

    Args:
        mp: m' in radians when the schedule's margin is ``margin``.
        k_top: how many of the nearest negatives; 0 for none.
        margin: the final margin; 0 leaves m' constant.
    """

    def __init__(self, *, mp: float, k_top: int, margin: float) -> None:
        super().__init__()
        self.mp, self.k_top, self.final_margin = mp, k_top, margin

    def forward(
        self, theta: Tensor, own: Tensor, here: Tensor, shards: Shards, rows: RankRows, *, scale: float, margin: float
    ) -> Tensor:
        """Return the logits (B, C) of which the labels' are unchanged."""
        mp = self.mp * margin / self.final_margin if self.final_margin else self.mp
        return scale * inter_topk_penalty(theta / scale, here, shards, margin=mp, k_top=self.k_top)
