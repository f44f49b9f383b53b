"""The classification heads: a margin × a divergence on the cosines of embeddings and class prototypes.

A head holds the prototypes of all classes, or those of this process where the classes are split over processes (see
`shards`): the same code for both, for one process and many.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wespeaker.losses.adaptive import ElasticMargin, KappaMargin, MagnitudeMargin
from wespeaker.losses.binary import sphereface2_bias, sphereface2_loss, uniface_bias, uniface_loss
from wespeaker.losses.buffered import buffered_divergence
from wespeaker.losses.cosines import scaled_cosines, working_dtype
from wespeaker.losses.divergence import alpha_divergence
from wespeaker.losses.margins import (
    Place,
    adaface_margin,
    angular_margin,
    cosine_margin,
    log_prior_margin,
    multiplicative_margin,
    placed,
    zero_loss_gap,
)
from wespeaker.losses.prototypes import PrototypeReinit, init_prototypes
from wespeaker.losses.registry import PROJECT_TYPES, Args, bad_margin, validate_projection_args
from wespeaker.losses.shards import RankRows, Sampled, Shards, sample, total
from wespeaker.losses.stream import stream_divergence

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
    """What a head says about a batch, the rows of this process.

    loss: scalar, the mean of per_sample. per_sample: (B,). correct: (B,) bool, the label has the largest
    cosine, with no margin. support: (B,) int64, classes with non-zero posterior, which is C for α = 1.
    target_posterior: (B,) p_y, without gradient; for α > 1 it is often exactly 0 early in training.
    path: the form that was taken, "dense" or "stream". scanned: candidates that this process collected among its
    classes for everyone's rows, before later thresholds dropped most; B·C for "dense".
    """

    loss: Tensor
    per_sample: Tensor
    correct: Tensor
    support: Tensor
    target_posterior: Tensor
    path: str
    scanned: int


class Batch(NamedTuple):
    """A batch as a head works on it, everyone's rows: embeddings (B, D) in the working dtype and labels (B,).

    weight: (C', D), the prototypes that take part. shards: whose classes they are. here: (B,) int64, where among them
    the labels are, -1 for another process's. rows: whose rows are where.
    """

    embeddings: Tensor
    labels: Tensor
    weight: Tensor
    shards: Shards
    here: Tensor
    rows: RankRows


class Head(nn.Module):
    """What every head has for a training loop: `weight`, `margin` and the calls of schedule and epoch.

    shards: the classes that this process holds. Where they are split over processes, the gradients of a head are those
    of the mean of all processes' losses, and need no averaging any more; those of the embeddings do, with the rest of
    the network's (DistributedDataParallel).

    Args:
        shards: the classes.
        embed_dim: D.
        sub_centers: prototypes a class.
    """

    SHARDED: tuple[str, ...] = ("weight",)
    place: str  # where the margin acts, see `MarginHead`
    margin = 0.0
    draws: Tensor

    def __init__(self, shards: Shards, embed_dim: int, *, sub_centers: int = 1, sample_rate: float = 1.0) -> None:
        super().__init__()
        self.shards, self.sample_rate = shards, sample_rate
        self.weight = nn.Parameter(torch.empty(shards.size * sub_centers, embed_dim))
        init_prototypes(self.weight, shards)
        if sample_rate < 1.0:
            self.register_buffer("draws", torch.tensor([torch.initial_seed() % 2**62, 0]))  # the seed, and how many

    @property
    def sharded_names(self) -> frozenset[str]:
        """The keys of the state_dict whose rows are those of this process's classes; the others' are equal on all."""
        return self._names("SHARDED")

    @property
    def per_class_names(self) -> frozenset[str]:
        """Those of the others that have a number for each class of all processes."""
        return self._names("PER_CLASS")

    def _names(self, kind: str) -> frozenset[str]:
        return frozenset(
            f"{prefix}.{name}" if prefix else name
            for prefix, module in self.named_modules()
            for name in getattr(module, kind, ())
        )

    def _batch(self, embeddings: Tensor, labels: Tensor) -> Batch:
        """Bring everyone's rows together, and draw the classes that take part.

        Raises:
            ValueError: shapes do not fit, or, on all processes alike where there are several, a label is no class.
        """
        if embeddings.ndim != 2 or embeddings.shape[1] != self.weight.shape[1]:
            raise ValueError(f"embeddings must be (B, {self.weight.shape[1]}); found {tuple(embeddings.shape)}")
        embeddings = embeddings.to(working_dtype(embeddings, self.weight))
        rows = RankRows.of(self.shards, len(embeddings), embeddings.device)
        embeddings, labels = rows.spread(embeddings), rows.told(labels)
        rows.check(labels, self.shards.num_classes)
        shards, weight = self.shards, cast(Tensor, self.weight)
        if self.training and self.sample_rate < 1.0:
            seed, draw = self.draws.tolist()
            shards = sampled = sample(shards, labels, self.sample_rate, seed=seed, draw=draw + 1)
            weight = weight.index_select(0, sampled.chosen)
            self.draws[1] += 1
        return Batch(embeddings, labels, weight, shards, shards.here(labels), rows)

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
        shards: the C classes, those that this process holds.
        embed_dim: D.
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
        sample_rate: below 1, a step of training sees the labels' classes and this share of the others, see
            `shards.sample`; for alpha 1, whose posteriors are not sparse.
        form: "dense" makes the logits, in one buffer where C is large; "stream" never does and needs alpha above 1;
            "auto" streams where this very batch turns out sparse enough for it to be the faster one (on a CPU; on
            other devices it is "dense", since nothing was timed there). All give the same numbers; with few classes
            "dense" can be differentiated any number of times, otherwise once.
        screen: of the streaming form, see `screening`.
        weight_grad: "sparse" makes weight.grad of a streamed batch a sparse tensor of the active classes' rows.
    """

    def __init__(
        self,
        shards: Shards,
        embed_dim: int,
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
        sample_rate: float = 1.0,
        form: str = "auto",
        screen: str = "auto",
        weight_grad: str = "dense",
    ) -> None:
        super().__init__(shards, embed_dim, sub_centers=sub_centers, sample_rate=sample_rate)
        self.place, self.alpha, self.scale = place, alpha, scale
        self.easy_margin, self.gradient = easy_margin, gradient
        self.sub_centers = sub_centers
        self.form, self.screen, self.weight_grad = form, screen, weight_grad
        self.update(margin)
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
        """Compute the loss of this process's embeddings (B, D) with labels (B,) int64 in [0, C)."""
        with torch.autocast(embeddings.device.type, enabled=False):
            batch = self._batch(embeddings, labels)
            place = partial(self._place_margin, margin=self._margin(embeddings, labels, batch))
            out = self._stream(batch, place) if self._may_stream(embeddings) else None
            if out is None and self.streamable and self.alpha <= 2.0 and self._chooses_by_size(embeddings):
                out = self._buffered(batch, place)
            return self._finish(out or self._dense(batch, place), embeddings, labels)

    def _chooses_by_size(self, embeddings: Tensor) -> bool:
        """Whether there are classes enough for the other forms, on all processes or none.

        They were timed on CPUs and nowhere else.
        """
        a_process = self.shards.num_classes // self.shards.world_size * self.sub_centers
        return embeddings.device.type == "cpu" and a_process >= FEW_CLASSES

    def _may_stream(self, embeddings: Tensor) -> bool:
        if not self.streamable:
            return False
        if self.form == "auto":
            return self._chooses_by_size(embeddings) and self.alpha >= STREAM_ALPHA
        return self.form == "stream"

    def _stream(self, batch: Batch, place: Place) -> HeadOutput | None:
        share = min(LARGEST_SHARE, STREAM_SHARE * (batch.shards.num_classes / 18_000) ** 0.6)
        found = stream_divergence(
            batch.embeddings,
            batch.weight,
            batch.labels,
            place,
            alpha=self.alpha,
            scale=self.scale,
            screen=self.screen,
            weight_grad=self.weight_grad,
            max_share=share if self.form == "auto" else 1.0,
            shards=batch.shards,
            rows=batch.rows,
        )
        if found is None:
            return None
        return _output(*found[:4], batch.rows, path="stream", scanned=found.scanned)

    def _buffered(self, batch: Batch, place: Place) -> HeadOutput:
        found = buffered_divergence(
            batch.embeddings,
            batch.weight,
            batch.labels,
            place,
            alpha=self.alpha,
            scale=self.scale,
            shards=batch.shards,
            rows=batch.rows,
        )
        return _output(*found, batch.rows, path="dense", scanned=len(batch.labels) * len(batch.weight))

    def _dense(self, batch: Batch, place: Place) -> HeadOutput:
        _, _, _, shards, here, rows = batch
        theta = scaled_cosines(batch.embeddings, batch.weight, self.scale)  # (B, C')
        if self.sub_centers > 1:
            theta = theta.unflatten(1, (-1, self.sub_centers)).max(2).values
        own = total(shards.at(theta, here), shards)
        target, log_q = placed(place, own, self.scale, rows)
        logits = theta
        if self.negatives is not None:
            logits = self.negatives(theta, own, here, shards, rows, scale=self.scale, margin=self.margin)
        return _divergence(batch, theta, own, logits, target, log_q, alpha=self.alpha)

    def _margin(self, embeddings: Tensor, labels: Tensor, batch: Batch) -> float | Tensor:
        """Return the margin of all samples or of each (B,). Once a batch: it may change what a module remembers."""
        if self.adapt is None:
            return self.margin
        with torch.no_grad():
            ours = batch.weight[batch.here.clamp(min=0) * self.sub_centers].to(batch.embeddings.dtype)
            cosine = F.cosine_similarity(batch.embeddings, ours).where(batch.here >= 0, 0.0)
            cosine = self.shards.sum(cosine)[batch.rows.mine_at]
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
            f"{self.weight.shape[1]}, {self.shards.num_classes}, place={self.place!r}, alpha={self.alpha:g}, "
            f"scale={self.scale:g}, margin={self.margin:g}"
        )


class BinaryHead(Head):
    """A yes-or-no question for each class: SphereFace2 or UniFace; `weight` (C, D) and one learnable `bias` ().

    `support` is C: no class's share is ever 0. `target_posterior` is the probability of yes for the label.

    Args:
        shards: the C classes, those that this process holds.
        embed_dim: D.
        args: complete `projection_args` of "sphereface2" or "uniface".
    """

    place = "binary"

    def __init__(self, shards: Shards, embed_dim: int, args: Args) -> None:
        super().__init__(shards, embed_dim)
        self.sphereface2 = args["project_type"] == "sphereface2"
        self.scale = args["scale"]
        names = ("t", "positive_weight", "loss_weight") if self.sphereface2 else ("negative_weight",)
        self.keys = {name: args[name] for name in names}
        self.update(args["margin"])
        bias = uniface_bias(shards.num_classes)
        if self.sphereface2:
            shape = {name: self.keys[name] for name in ("t", "positive_weight")}
            bias = sphereface2_bias(shards.num_classes, scale=self.scale, margin=self.margin, **shape)
        self.bias = nn.Parameter(torch.tensor(bias))

    def forward(self, embeddings: Tensor, labels: Tensor) -> HeadOutput:
        """Compute the loss of embeddings (B, D) with labels (B,) int64 in [0, C)."""
        with torch.autocast(embeddings.device.type, enabled=False):
            batch = self._batch(embeddings, labels)
            cosines = scaled_cosines(batch.embeddings, batch.weight, 1.0)  # (B, C')
            own = total(batch.shards.at(cosines, batch.here), batch.shards)
            binary_loss = sphereface2_loss if self.sphereface2 else uniface_loss
            per_sample, p_y = binary_loss(
                cosines, own, batch.here, self.bias, batch.shards, scale=self.scale, margin=self.margin, **self.keys
            )
            support = torch.full_like(batch.labels, batch.shards.num_classes)
            correct = _largest(batch, cosines, own)
            return _output(per_sample, support, correct, p_y, batch.rows, path="dense", scanned=cosines.numel())

    def extra_repr(self) -> str:
        """Return what `print` shows."""
        name = "sphereface2" if self.sphereface2 else "uniface"
        return (
            f"{self.weight.shape[1]}, {self.shards.num_classes}, {name}, scale={self.scale:g}, margin={self.margin:g}"
        )


class SoftmaxHead(Head):
    """Plain cross-entropy on W x + b: no cosines, no scale and no margin; `weight` (C, D) and `bias` (C,).

    WeSpeaker's softmax projection puts batch normalisation and ReLU before the linear layer, a second
    non-linearity that belongs to the backbone's choices; here the embedding meets the linear layer as
    extraction will see it.
    """

    SHARDED = ("weight", "bias")
    place = "none"

    def __init__(self, shards: Shards, embed_dim: int, *, sample_rate: float = 1.0) -> None:
        super().__init__(shards, embed_dim, sample_rate=sample_rate)
        self.bias = nn.Parameter(torch.zeros(shards.size))

    def update(self, margin: float) -> None:
        """Accept the schedule's call; there is no margin to set."""

    def forward(self, embeddings: Tensor, labels: Tensor) -> HeadOutput:
        """Compute the loss of embeddings (B, D) and labels (B,) int64 in [0, C); `correct` is of the logits."""
        with torch.autocast(embeddings.device.type, enabled=False):
            batch = self._batch(embeddings, labels)
            bias = self.bias[batch.shards.chosen] if isinstance(batch.shards, Sampled) else self.bias
            dtype = batch.embeddings.dtype
            logits = F.linear(batch.embeddings, batch.weight.to(dtype), bias.to(dtype))
            own = total(batch.shards.at(logits, batch.here), batch.shards)
            return _divergence(batch, logits, own, logits, own, None, alpha=1.0)


def _only_dense(place: str, adapt: nn.Module | None, negatives: nn.Module | None) -> bool:
    """Return whether a margin changes the other classes, or may lift the target's logit, which streaming excludes."""
    return negatives is not None or place == "adaface" or isinstance(adapt, ElasticMargin)


def _divergence(
    batch: Batch, theta: Tensor, own: Tensor, logits: Tensor, target: Tensor, log_q: Tensor | None, *, alpha: float
) -> HeadOutput:
    """Compute the divergence from a matrix of logits (B, C') and the labels' (B,), `theta` and `own` before margins."""
    if batch.shards.split:
        others = batch.shards.put(logits, batch.here, -math.inf)
        found = alpha_divergence(others, None, log_q, alpha=alpha, target=target, shards=batch.shards)
    else:
        found = alpha_divergence(logits, batch.here, log_q, alpha=alpha, target=target)
    correct = _largest(batch, theta, own)
    return _output(
        found.loss, found.support, correct, found.target_posterior, batch.rows, path="dense", scanned=theta.numel()
    )


def _largest(batch: Batch, theta: Tensor, own: Tensor) -> Tensor:
    """Return whether the label's logit (B,) is the largest, the first of equals (B,)."""
    theta, own = theta.detach(), own.detach()
    if not batch.shards.split:
        return theta.argmax(1) == batch.here
    before = torch.arange(theta.shape[1], device=theta.device) < batch.shards.before(batch.labels).unsqueeze(1)
    beats = (theta > own.unsqueeze(1)) | ((theta == own.unsqueeze(1)) & before)
    return ~own.isnan() & (batch.shards.max(beats.any(1).to(torch.uint8)) == 0)


def _output(
    per_sample: Tensor,
    support: Tensor,
    correct: Tensor,
    target_posterior: Tensor,
    rows: RankRows,
    *,
    path: str,
    scanned: int,
) -> HeadOutput:
    """Take this process's rows of what was found for everyone's."""
    per_sample = rows.mine(per_sample)
    at = rows.mine_at
    p_y = target_posterior.detach()[at]
    return HeadOutput(per_sample.mean(), per_sample, correct[at], support[at], p_y, path, scanned)


def build_head(
    projection_args: Mapping[str, Any], *, embed_dim: int, num_classes: int, shards: Shards | None = None
) -> Head:
    """Build the head that `projection_args` of a config names.

    Args:
        projection_args: see `validate_projection_args`; `PROJECT_TYPES` lists the types with keys and defaults.
        embed_dim: D.
        num_classes: C.
        shards: how the C classes are split over processes; None: all are here, on every process.

    Raises:
        ValueError: for what `validate_projection_args` refuses, and for sizes below 1.

    >>> build_head({"project_type": "q_margin", "alpha": 1.75, "scale": 5}, embed_dim=256, num_classes=5994)
    MarginHead(256, 5994, place='log_prior', alpha=1.75, scale=5, margin=0.1)
    """
    args = validate_projection_args(projection_args)
    if embed_dim < 1 or num_classes < 1:
        raise ValueError(f"a head needs embed_dim and num_classes of at least 1; found {embed_dim} and {num_classes}")
    kind, shards = PROJECT_TYPES[args["project_type"]], shards or Shards(num_classes)
    if shards.num_classes != num_classes:
        raise ValueError(f"shards are of {shards.num_classes} classes, the head is to have {num_classes}")
    if kind.place == "none":
        return SoftmaxHead(shards, embed_dim, sample_rate=args["sample_rate"])
    if kind.place == "binary":
        return BinaryHead(shards, embed_dim, args)
    shared = {"easy_margin", "gradient", "sample_rate", "screen", "weight_grad"} & set(args)
    return MarginHead(
        shards,
        embed_dim,
        place="log_prior" if args.get("place") == "log_q" else kind.place,
        alpha=args["alpha"] if kind.alpha is None else kind.alpha,
        scale=args["scale"],
        margin=args["margin"],
        form=args["form"],
        **{key: args[key] for key in shared},
        **kind.parts(args, shards, embed_dim),
    )
