"""The classification heads: a margin × a divergence on the cosines of embeddings and class prototypes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wespeaker.losses.adaptive import ElasticMargin, KappaMargin, MagnitudeMargin
from wespeaker.losses.binary import sphereface2_bias, sphereface2_loss, uniface_bias, uniface_loss
from wespeaker.losses.buffered import Buffered, buffered_divergence
from wespeaker.losses.cosines import scaled_cosines
from wespeaker.losses.divergence import alpha_divergence, at_label
from wespeaker.losses.margins import (
    adaface_margin,
    angular_margin,
    cosine_margin,
    log_prior_margin,
    multiplicative_margin,
    zero_loss_gap,
)
from wespeaker.losses.prototypes import PrototypeReinit
from wespeaker.losses.registry import PROJECT_TYPES, Args, bad_margin, validate_projection_args
from wespeaker.losses.stream import Streamed, stream_divergence

# Up to so many classes the operations' start costs more than they do: the autograd form, which has the fewest.
FEW_CLASSES = 4096
# `auto` streams for alpha of at least this: below, nearly all classes are active.
STREAM_ALPHA = 1.06
# ... as long as no more than this share of the first two chunks are candidates: times C/18,000 to the power 0.6,
# for the share falls as more classes raise the threshold. At 18,000 classes (D 256) and 100,000 (D 512) the
# streaming and the dense form were measured to cost the same at shares of 0.12 to 0.2, and of 0.35.
STREAM_SHARE, LARGEST_SHARE = 0.12, 0.5


@dataclass(frozen=True)
class HeadOutput:
    """What a head says about a batch.

    loss: scalar, the mean of per_sample. per_sample: (B,). correct: (B,) bool, the label has the largest
    cosine, with no margin. support: (B,) int64, classes with non-zero posterior, which is C for α = 1.
    target_posterior: (B,) p_y, without gradient; for α > 1 it is often exactly 0 early in training.
    path: the form that was taken, "dense" or "stream". scanned: candidates collected for the whole batch before
    later thresholds dropped most; B·C for "dense".
    """

    loss: Tensor
    per_sample: Tensor
    correct: Tensor
    support: Tensor
    target_posterior: Tensor
    path: str
    scanned: int


class Head(nn.Module):
    """What every head has for a training loop: `weight`, `margin` and the calls of schedule and epoch."""

    weight: nn.Parameter
    place: str  # where the margin acts, see `MarginHead`
    margin = 0.0

    def update(self, margin: float) -> None:
        """Set the margin; ValueError where `validate_projection_args` would refuse it."""
        if problem := bad_margin(margin, self.place):
            raise ValueError(problem)
        self.margin = float(margin)

    def zero_loss_gap(self, margin: float | None = None) -> float:
        """Return the gap of cosines from which a sample's loss is exactly 0, at a margin (None: the present one).

        inf, which is the default, for a loss that is never exactly 0.
        """
        return math.inf

    def start_epoch(self, epoch: int) -> Tensor:
        """Do what is done once an epoch: call it before the first batch of every epoch, counted from 1.

        Returns:
            The rows of `weight` that were re-initialised (n,) int64, mostly none; the optimiser's momentum of these
            rows is stale, see `forget_momentum`.
        """
        return torch.empty(0, dtype=torch.int64, device=self.weight.device)


class MarginHead(Head):
    """A margin on the label's cosine × an α-divergence over the classes; `weight` (C, D) holds the prototypes.

    Computes in float32 or finer, also under autocast. `update` sets the margin, as a schedule does in training.

    Args:
        embed_dim: D.
        num_classes: C.
        place: "cosine", "angle", "factor" (on the angle), "adaface" or "log_prior".
        alpha: at least 1.
        scale: s.
        margin: m; radians for "angle" and "adaface".
        easy_margin: see `angular_margin`.
        gradient: of "angle" and "factor", see `angular_margin` and `multiplicative_margin`.
        adapt: gives a margin for each sample, see `adaptive`; None: m for all.
        negatives: changes the other classes' logits, see `adaptive`; None: leaves them.
        reinit: turns prototypes at the start of an epoch.
        sub_centers: K; with more than one, `weight` is (C K, D), the K rows of a class one after another, and the
            class's cosine is the largest of the K (WeSpeaker's layout).
        form: "dense" makes the logits, in one buffer where C is large; "stream" never does and needs alpha above 1;
            "auto" streams where this very batch turns out sparse enough for it to be the faster one (on a CPU; on
            other devices it is "dense", since nothing was timed there). All give the same numbers; with few classes
            "dense" can be differentiated any number of times, otherwise once.
        screen: of the streaming form, see `screening`.
        weight_grad: "sparse" makes weight.grad of a streamed batch a sparse tensor of the active classes' rows.
    """

    def __init__(
        self,
        embed_dim: int,
        num_classes: int,
        *,
        place: str,
        alpha: float,
        scale: float,
        margin: float,
        easy_margin: bool = False,
        gradient: str = "exact",
        adapt: nn.Module | None = None,
        negatives: nn.Module | None = None,
        reinit: PrototypeReinit | None = None,
        sub_centers: int = 1,
        form: str = "auto",
        screen: str = "auto",
        weight_grad: str = "dense",
    ) -> None:
        super().__init__()
        self.place, self.alpha, self.scale = place, alpha, scale
        self.easy_margin, self.gradient = easy_margin, gradient
        self.num_classes, self.sub_centers = num_classes, sub_centers
        self.form, self.screen, self.weight_grad = form, screen, weight_grad
        self.update(margin)
        self.weight = nn.Parameter(torch.empty(num_classes * sub_centers, embed_dim))
        nn.init.xavier_uniform_(self.weight)
        self.adapt, self.negatives, self.reinit = adapt, negatives, reinit
        self.streamable = not (sub_centers > 1 or _only_dense(place, adapt, negatives))
        if form == "stream" and not self.streamable:
            raise ValueError("form 'stream' is not for margins that change other classes or lift the target's logit")

    def zero_loss_gap(self, margin: float | None = None) -> float:
        """Return the gap of cosines from which a sample's loss is exactly 0, at a margin (None: the present one).

        The gap is between the label's cosine and the largest other; where the margin is not in the reference
        measure, it is the label's cosine with its margin that counts. inf for α = 1.
        """
        in_prior = self.place == "log_prior"
        return zero_loss_gap(self.alpha, self.scale, (self.margin if margin is None else margin) if in_prior else 0.0)

    def start_epoch(self, epoch: int) -> Tensor:
        """Renew the margins of classes (KappaFace) and turn prototypes (A3M) where they are due; see `Head`."""
        if isinstance(self.adapt, KappaMargin):
            self.adapt.start_epoch(epoch)
        if self.reinit is not None:
            return self.reinit.start_epoch(epoch, self.weight)
        return super().start_epoch(epoch)

    def forward(self, embeddings: Tensor, labels: Tensor) -> HeadOutput:
        """Compute the loss of embeddings (B, D) with labels (B,) int64 in [0, C)."""
        _check_batch(embeddings, self.weight)
        with torch.autocast(embeddings.device.type, enabled=False):
            margin = self._margin(embeddings, labels)
            if self._may_stream(embeddings) and (streamed := self._stream(embeddings, labels, margin)) is not None:
                return self._finish(streamed, embeddings, labels)
            if self.streamable and self.alpha <= 2.0 and self._chooses_by_size(embeddings):
                return self._finish(self._buffered(embeddings, labels, margin), embeddings, labels)
            theta = self._logits(embeddings)  # (B, C)
            target, log_q = self._place_margin(at_label(theta, labels) / self.scale, margin)
            logits = theta
            if self.negatives is not None:
                logits = self.negatives(theta, labels, scale=self.scale, margin=self.margin)
            found = alpha_divergence(logits, labels, log_q, alpha=self.alpha, target=target)
            out = _output(found.loss, theta, labels, found.support, at_label(found.posterior, labels))
            return self._finish(out, embeddings, labels)

    def _chooses_by_size(self, embeddings: Tensor) -> bool:
        """Whether there are classes enough for the other forms; they were timed on CPUs and nowhere else."""
        return embeddings.device.type == "cpu" and len(self.weight) >= FEW_CLASSES

    def _may_stream(self, embeddings: Tensor) -> bool:
        if not self.streamable:
            return False
        if self.form == "auto":
            return self._chooses_by_size(embeddings) and self.alpha >= STREAM_ALPHA
        return self.form == "stream"

    def _stream(self, embeddings: Tensor, labels: Tensor, margin: float | Tensor) -> HeadOutput | None:
        share = min(LARGEST_SHARE, STREAM_SHARE * (len(self.weight) / 18_000) ** 0.6)
        found = stream_divergence(
            embeddings,
            self.weight,
            labels,
            partial(self._place_margin, margin=margin),
            alpha=self.alpha,
            scale=self.scale,
            screen=self.screen,
            weight_grad=self.weight_grad,
            max_share=share if self.form == "auto" else 1.0,
        )
        if found is None:
            return None
        return _output_of(found, path="stream", scanned=found.scanned)

    def _buffered(self, embeddings: Tensor, labels: Tensor, margin: float | Tensor) -> HeadOutput:
        place = partial(self._place_margin, margin=margin)
        found = buffered_divergence(embeddings, self.weight, labels, place, alpha=self.alpha, scale=self.scale)
        return _output_of(found, path="dense", scanned=len(labels) * len(self.weight))

    def _logits(self, embeddings: Tensor) -> Tensor:
        theta = scaled_cosines(embeddings, self.weight, self.scale)
        if self.sub_centers > 1:
            return theta.unflatten(1, (self.num_classes, self.sub_centers)).max(2).values
        return theta

    def _margin(self, embeddings: Tensor, labels: Tensor) -> float | Tensor:
        """Return the margin of all samples or of each (B,). Once a batch: it may change what a module remembers."""
        if self.adapt is None:
            return self.margin
        with torch.no_grad():
            prototypes = self.weight[labels].to(torch.promote_types(embeddings.dtype, torch.float32))
            cosine = F.cosine_similarity(embeddings.to(prototypes.dtype), prototypes)
        return self.adapt(embeddings, cosine, labels, self.margin)

    def _place_margin(
        self, cosine: Tensor, margin: float | Tensor | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the label's logit or None for its cosine's own, and log q of the label or None for 0; (B,)."""
        margin = self.margin if margin is None else margin
        if self.place == "log_prior":
            return None, log_prior_margin(cosine.detach(), scale=self.scale, margin=margin)
        return self.scale * self._geometric(cosine, margin), None

    def _geometric(self, cosine: Tensor, margin: float | Tensor) -> Tensor:
        if self.place == "cosine":
            return cosine_margin(cosine, margin=margin)
        if self.place == "adaface":
            assert isinstance(margin, Tensor)
            return adaface_margin(cosine, margin=self.margin, additive=margin)
        if self.place == "factor":
            return multiplicative_margin(cosine, margin=self.margin, gradient=self.gradient)
        return angular_margin(cosine, margin=margin, easy_margin=self.easy_margin, gradient=self.gradient)

    def _finish(self, out: HeadOutput, embeddings: Tensor, labels: Tensor) -> HeadOutput:
        """Do what comes after the divergence: A3M takes note of the batch, MagFace has a price for short vectors."""
        if self.reinit is not None and self.training:
            self.reinit.observe(embeddings, labels, out.target_posterior)
        if not isinstance(self.adapt, MagnitudeMargin):
            return out
        per_sample = out.per_sample + self.adapt.penalty(embeddings)
        return replace(out, loss=per_sample.mean(), per_sample=per_sample)

    def extra_repr(self) -> str:
        """Return what `print` shows."""
        return (
            f"{self.weight.shape[1]}, {self.num_classes}, place={self.place!r}, alpha={self.alpha:g}, "
            f"scale={self.scale:g}, margin={self.margin:g}"
        )


class BinaryHead(Head):
    """A yes-or-no question for each class: SphereFace2 or UniFace; `weight` (C, D) and one learnable `bias` ().

    `support` is C: no class's share is ever 0. `target_posterior` is the probability of yes for the label.

    Args:
        embed_dim: D.
        num_classes: C.
        args: complete `projection_args` of "sphereface2" or "uniface".
    """

    place = "binary"

    def __init__(self, embed_dim: int, num_classes: int, args: Args) -> None:
        super().__init__()
        self.sphereface2 = args["project_type"] == "sphereface2"
        self.scale = args["scale"]
        names = ("t", "positive_weight", "loss_weight") if self.sphereface2 else ("negative_weight",)
        self.keys = {name: args[name] for name in names}
        self.update(args["margin"])
        self.weight = nn.Parameter(torch.empty(num_classes, embed_dim))
        nn.init.xavier_uniform_(self.weight)
        bias = uniface_bias(num_classes)
        if self.sphereface2:
            shape = {name: self.keys[name] for name in ("t", "positive_weight")}
            bias = sphereface2_bias(num_classes, scale=self.scale, margin=self.margin, **shape)
        self.bias = nn.Parameter(torch.tensor(bias))

    def forward(self, embeddings: Tensor, labels: Tensor) -> HeadOutput:
        """Compute the loss of embeddings (B, D) with labels (B,) int64 in [0, C)."""
        _check_batch(embeddings, self.weight)
        with torch.autocast(embeddings.device.type, enabled=False):
            cosines = scaled_cosines(embeddings, self.weight, 1.0)  # (B, C)
            binary_loss = sphereface2_loss if self.sphereface2 else uniface_loss
            per_sample, p_y = binary_loss(cosines, labels, self.bias, scale=self.scale, margin=self.margin, **self.keys)
            return _output(per_sample, cosines, labels, torch.full_like(labels, len(self.weight)), p_y)

    def extra_repr(self) -> str:
        """Return what `print` shows."""
        num_classes, embed_dim = self.weight.shape
        name = "sphereface2" if self.sphereface2 else "uniface"
        return f"{embed_dim}, {num_classes}, {name}, scale={self.scale:g}, margin={self.margin:g}"


class SoftmaxHead(Head):
    """Plain cross-entropy on W x + b: no cosines, no scale and no margin; `weight` (C, D) and `bias` (C,).

    WeSpeaker's softmax projection puts batch normalisation and ReLU before the linear layer, a second
    non-linearity that belongs to the backbone's choices; here the embedding meets the linear layer as
    extraction will see it.
    """

    place = "none"

    def __init__(self, embed_dim: int, num_classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_classes, embed_dim))
        self.bias = nn.Parameter(torch.zeros(num_classes))
        nn.init.xavier_uniform_(self.weight)

    def update(self, margin: float) -> None:
        """Accept the schedule's call; there is no margin to set."""

    def forward(self, embeddings: Tensor, labels: Tensor) -> HeadOutput:
        """Compute the loss of embeddings (B, D) and labels (B,) int64 in [0, C); `correct` is of the logits."""
        _check_batch(embeddings, self.weight)
        with torch.autocast(embeddings.device.type, enabled=False):
            dtype = torch.promote_types(embeddings.dtype, self.weight.dtype)
            logits = F.linear(embeddings.to(dtype), self.weight.to(dtype), self.bias.to(dtype))
            found = alpha_divergence(logits, labels, alpha=1.0)
            return _output(found.loss, logits, labels, found.support, at_label(found.posterior, labels))


def _only_dense(place: str, adapt: nn.Module | None, negatives: nn.Module | None) -> bool:
    """Return whether a margin changes the other classes, or may lift the target's logit, which streaming excludes."""
    return negatives is not None or place == "adaface" or isinstance(adapt, ElasticMargin)


def _check_batch(embeddings: Tensor, weight: Tensor) -> None:
    if embeddings.ndim != 2 or embeddings.shape[1] != weight.shape[1]:
        raise ValueError(f"embeddings must be (B, {weight.shape[1]}); found {tuple(embeddings.shape)}")


def _output(
    per_sample: Tensor, logits: Tensor, labels: Tensor, support: Tensor, target_posterior: Tensor
) -> HeadOutput:
    correct = logits.detach().argmax(1) == labels
    return HeadOutput(
        loss=per_sample.mean(),
        per_sample=per_sample,
        correct=correct,
        support=support,
        target_posterior=target_posterior.detach(),
        path="dense",
        scanned=logits.numel(),
    )


def _output_of(found: Streamed | Buffered, *, path: str, scanned: int) -> HeadOutput:
    """Return what a form that never shows its logits has found."""
    mean = found.loss.mean()
    return HeadOutput(mean, found.loss, found.correct, found.support, found.target_posterior, path, scanned)


def build_head(projection_args: Mapping[str, Any], *, embed_dim: int, num_classes: int) -> Head:
    """Build the head that `projection_args` of a config names.

    Args:
        projection_args: see `validate_projection_args`; `PROJECT_TYPES` lists the types with keys and defaults.
        embed_dim: D.
        num_classes: C.

    Raises:
        ValueError: for what `validate_projection_args` refuses, and for sizes below 1.

    >>> build_head({"project_type": "q_margin", "alpha": 1.75, "scale": 5}, embed_dim=256, num_classes=5994)
    MarginHead(256, 5994, place='log_prior', alpha=1.75, scale=5, margin=0.1)
    """
    args = validate_projection_args(projection_args)
    if embed_dim < 1 or num_classes < 1:
        raise ValueError(f"a head needs embed_dim and num_classes of at least 1; found {embed_dim} and {num_classes}")
    kind = PROJECT_TYPES[args["project_type"]]
    if kind.place == "none":
        return SoftmaxHead(embed_dim, num_classes)
    if kind.place == "binary":
        return BinaryHead(embed_dim, num_classes, args)
    shared = {"easy_margin", "gradient"} & set(args)
    return MarginHead(
        embed_dim,
        num_classes,
        place="log_prior" if args.get("place") == "log_q" else kind.place,
        alpha=args["alpha"] if kind.alpha is None else kind.alpha,
        scale=args["scale"],
        margin=args["margin"],
        form=args["form"],
        screen=args.get("screen", "auto"),
        weight_grad=args.get("weight_grad", "dense"),
        **{key: args[key] for key in shared},
        **kind.parts(args, num_classes, embed_dim),
    )
