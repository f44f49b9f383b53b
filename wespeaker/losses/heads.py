"""The classification heads: a margin × a divergence on the cosines of embeddings and class prototypes."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wespeaker.losses.buffered import buffered_divergence
from wespeaker.losses.divergence import alpha_divergence, at_label
from wespeaker.losses.margins import angular_margin, cosine_margin, log_prior_margin
from wespeaker.losses.stream import stream_divergence

# Keys whose value is a name, and the names.
CHOICES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"form": ("auto", "dense", "stream"), "screen": ("none", "bf16"), "weight_grad": ("dense", "sparse")}
)
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
    path: the form that was taken, "dense" or "stream". scanned: candidates collected for the whole batch before
    later thresholds dropped most; B·C for "dense".
    """

    loss: Tensor
    per_sample: Tensor
    correct: Tensor
    support: Tensor
    path: str
    scanned: int


@dataclass(frozen=True)
class ProjectType:
    """A named margin × divergence: where the margin acts, α where the name fixes it, its keys with defaults."""

    place: str
    alpha: float | None
    defaults: Mapping[str, Any]


def _type(place: str, fixed_alpha: float | None, **defaults: Any) -> ProjectType:
    sparse = {} if fixed_alpha == 1.0 else {"screen": "none", "weight_grad": "dense"}
    return ProjectType(place, fixed_alpha, MappingProxyType({**defaults, "form": "auto", **sparse}))


PROJECT_TYPES: Mapping[str, ProjectType] = MappingProxyType(
    {
        "softmax": _type("none", 1.0),
        "add_margin": _type("cosine", 1.0, scale=32.0, margin=0.2),
        "arc_margin": _type("angle", 1.0, scale=32.0, margin=0.2, easy_margin=False),
        "q_margin": _type("log_prior", None, alpha=1.5, scale=10.0, margin=0.1),
        "entmax": _type("angle", None, alpha=1.75, scale=5.0, margin=0.1, easy_margin=False),
        "sparsemax": _type("angle", 2.0, scale=5.0, margin=0.1, easy_margin=False),
    }
)


def validate_projection_args(args: Mapping[str, Any]) -> dict[str, Any]:
    """Check `projection_args` and complete it with its type's defaults; no tensor is made.

    Args:
        args: `project_type` and any of the keys that its type has.

    Returns:
        A new dict with every key of the type.

    Raises:
        ValueError: one sentence with all that is wrong, what was found, and the nearest valid names.

    >>> validate_projection_args({"project_type": "add_margin", "scale": 30})
    {'project_type': 'add_margin', 'scale': 30.0, 'margin': 0.2, 'form': 'auto'}
    """
    name = args.get("project_type")
    if not isinstance(name, str) or name not in PROJECT_TYPES:
        found = "is missing" if name is None else f"{name!r} is not known"
        raise ValueError(f"projection_args: project_type {found}; {_nearest(name, PROJECT_TYPES)}")
    kind = PROJECT_TYPES[name]
    given = {key: value for key, value in args.items() if key != "project_type"}
    problems = [_unknown_key(key, name, kind) for key in given if key not in kind.defaults]
    problems += [
        problem
        for key, value in given.items()
        if key in kind.defaults and (problem := _bad_value(key, value, kind.place))
    ]
    if problems:
        raise ValueError("projection_args: " + "; ".join(problems))
    complete = {**kind.defaults, **given}
    if complete["form"] == "stream" and complete.get("alpha", kind.alpha) == 1.0:
        raise ValueError(f"projection_args: form 'stream' needs alpha above 1; {name} has alpha 1; use auto or dense")
    return {"project_type": name} | {
        key: float(value) if isinstance(kind.defaults[key], float) else value for key, value in complete.items()
    }


def _nearest(name: object, valid: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(name), list(valid), n=3)
    return "did you mean " + " or ".join(map(repr, close)) + "?" if close else "valid names: " + ", ".join(valid)


def _unknown_key(key: str, name: str, kind: ProjectType) -> str:
    elsewhere = [other for other, its in PROJECT_TYPES.items() if key in its.defaults]
    if elsewhere:
        fixed = f", whose alpha is {kind.alpha:g}" if key == "alpha" else ""
        return f"{key!r} has no meaning for {name}{fixed}; it is a key of {', '.join(elsewhere)}"
    return f"{key!r} is not a key of {name}; {_nearest(key, kind.defaults)}"


def _bad_value(key: str, value: object, place: str) -> str | None:
    """Say what is wrong with the value of a key, or None."""
    if key in CHOICES:
        known = ", ".join(CHOICES[key])
        return None if value in CHOICES[key] else f"{key} {value!r} is not known; valid are {known}"
    if key == "easy_margin":
        return None if isinstance(value, bool) else f"easy_margin must be true or false; found {value!r}"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        hint = " (write 1.0e-4 for 1e-4 in YAML)" if isinstance(value, str) else ""
        return f"{key} must be a number; found {value!r}{hint}"
    if not math.isfinite(value):
        return f"{key} must be finite; found {value}"
    if key == "scale":
        return None if value > 0 else f"scale must be above 0; found {value}"
    if key == "alpha":
        return None if value >= 1 else f"alpha must be at least 1; found {value}"
    if place == "angle" and not 0 <= value < math.pi:
        return f"margin must be an angle in [0, π) radians; found {value}"
    return None if value >= 0 else f"margin must be at least 0; found {value}"


def scaled_cosines(embeddings: Tensor, prototypes: Tensor, scale: float) -> Tensor:
    """Return θ = s cos(embedding, prototype) (B, C), in float32 or finer.

    A vector shorter than 1e-12 has no direction: its cosines and their gradient are 0. (x / max(‖x‖, 1e-12)
    would give the same cosine and a gradient 1e12 times too large.)

    Args:
        embeddings: (B, D).
        prototypes: (C, D).
        scale: s.
    """
    dtype = torch.promote_types(torch.promote_types(embeddings.dtype, prototypes.dtype), torch.float32)
    embeddings, prototypes = embeddings.to(dtype), prototypes.to(dtype)
    directions = embeddings * (scale * _InverseNorm.apply(embeddings)).unsqueeze(1)
    # Dividing the columns of the product spares a normalised copy of the prototypes and its gradient.
    return F.linear(directions, prototypes) * _InverseNorm.apply(prototypes)


class _InverseNorm(torch.autograd.Function):
    """1/‖x‖ of each row of x (N, D), and 0 for a row shorter than 1e-12 (the limit of F.normalize).

    The gradient -x/‖x‖³ is one pass over the prototypes, where autograd's norm and reciprocal take four.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=1)
        short = norm < 1e-12
        inverse = torch.where(short, 1.0, norm).reciprocal().masked_fill_(short, 0.0)
        ctx.save_for_backward(x, inverse)
        return inverse

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        x, inverse = ctx.saved_tensors
        slope = -grads[0] * inverse * inverse * inverse  # in this order no factor leaves float32
        return x * slope.unsqueeze(1)


class MarginHead(nn.Module):
    """A margin on the label's cosine × an α-divergence over the classes; `weight` (C, D) holds the prototypes.

    Computes in float32 or finer, also under autocast. `update` sets the margin, as a schedule does in training.

    Args:
        embed_dim: D.
        num_classes: C.
        place: "cosine", "angle" or "log_prior".
        alpha: at least 1.
        scale: s.
        margin: m; radians for "angle".
        easy_margin: see `angular_margin`.
        form: "dense" makes the logits, in one buffer where C is large; "stream" never does and needs alpha above 1;
            "auto" streams where this very batch turns out sparse enough for it to be the faster one. All give the
            same numbers.
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
        form: str = "auto",
        screen: str = "none",
        weight_grad: str = "dense",
    ) -> None:
        super().__init__()
        self.place, self.alpha, self.scale, self.easy_margin = place, alpha, scale, easy_margin
        self.form, self.screen, self.weight_grad = form, screen, weight_grad
        self.update(margin)
        self.weight = nn.Parameter(torch.empty(num_classes, embed_dim))
        nn.init.xavier_uniform_(self.weight)

    def update(self, margin: float) -> None:
        """Set the margin; ValueError where `validate_projection_args` would refuse it."""
        if problem := _bad_value("margin", margin, self.place):
            raise ValueError(problem)
        self.margin = float(margin)

    def forward(self, embeddings: Tensor, labels: Tensor) -> HeadOutput:
        """Compute the loss of embeddings (B, D) with labels (B,) int64 in [0, C)."""
        _check_batch(embeddings, self.weight)
        with torch.autocast(embeddings.device.type, enabled=False):
            if self._may_stream() and (found := self._stream(embeddings, labels)) is not None:
                return found
            if 1.1 <= self.alpha <= 2.0 and len(self.weight) >= FEW_CLASSES:
                return self._buffered(embeddings, labels)
            theta = scaled_cosines(embeddings, self.weight, self.scale)  # (B, C)
            of_label = at_label(theta.detach() if self.place == "log_prior" else theta, labels)
            target, log_q = self._place_margin(of_label / self.scale)
            found_dense = alpha_divergence(theta, labels, log_q, alpha=self.alpha, target=target)
            return _output(found_dense.loss, theta, labels, found_dense.support)

    def _may_stream(self) -> bool:
        if self.form == "auto":
            return len(self.weight) >= FEW_CLASSES and self.alpha >= STREAM_ALPHA
        return self.form == "stream"

    def _stream(self, embeddings: Tensor, labels: Tensor) -> HeadOutput | None:
        share = min(LARGEST_SHARE, STREAM_SHARE * (len(self.weight) / 18_000) ** 0.6)
        found = stream_divergence(
            embeddings,
            self.weight,
            labels,
            self._place_margin,
            alpha=self.alpha,
            scale=self.scale,
            screen=self.screen,
            weight_grad=self.weight_grad,
            max_share=share if self.form == "auto" else 1.0,
        )
        if found is None:
            return None
        return HeadOutput(
            loss=found.loss.mean(),
            per_sample=found.loss,
            correct=found.correct,
            support=found.support,
            path="stream",
            scanned=found.scanned,
        )

    def _buffered(self, embeddings: Tensor, labels: Tensor) -> HeadOutput:
        found = buffered_divergence(
            embeddings, self.weight, labels, self._place_margin, alpha=self.alpha, scale=self.scale
        )
        return HeadOutput(
            loss=found.loss.mean(),
            per_sample=found.loss,
            correct=found.correct,
            support=found.support,
            path="dense",
            scanned=len(labels) * len(self.weight),
        )

    def _place_margin(self, cosine: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Return the label's logit or None for its cosine's own, and log q of the label or None for 0; (B,)."""
        if self.place == "log_prior":
            return None, log_prior_margin(cosine, scale=self.scale, margin=self.margin)
        if self.place == "cosine":
            return self.scale * cosine_margin(cosine, margin=self.margin), None
        return self.scale * angular_margin(cosine, margin=self.margin, easy_margin=self.easy_margin), None

    def extra_repr(self) -> str:
        """Return what `print` shows."""
        num_classes, embed_dim = self.weight.shape
        return (
            f"{embed_dim}, {num_classes}, place={self.place!r}, alpha={self.alpha:g}, scale={self.scale:g}, "
            f"margin={self.margin:g}"
        )


class SoftmaxHead(nn.Module):
    """Plain cross-entropy on W x + b: no cosines, no scale and no margin; `weight` (C, D) and `bias` (C,).

    WeSpeaker's softmax projection puts batch normalisation and ReLU before the linear layer, a second
    non-linearity that belongs to the backbone's choices; here the embedding meets the linear layer as
    extraction will see it.
    """

    margin = 0.0

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
            return _output(found.loss, logits, labels, found.support)


def _check_batch(embeddings: Tensor, weight: Tensor) -> None:
    if embeddings.ndim != 2 or embeddings.shape[1] != weight.shape[1]:
        raise ValueError(f"embeddings must be (B, {weight.shape[1]}); found {tuple(embeddings.shape)}")


def _output(per_sample: Tensor, logits: Tensor, labels: Tensor, support: Tensor) -> HeadOutput:
    correct = logits.detach().argmax(1) == labels
    return HeadOutput(
        loss=per_sample.mean(),
        per_sample=per_sample,
        correct=correct,
        support=support,
        path="dense",
        scanned=logits.numel(),
    )


def build_head(projection_args: Mapping[str, Any], *, embed_dim: int, num_classes: int) -> MarginHead | SoftmaxHead:
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
    return MarginHead(
        embed_dim,
        num_classes,
        place=kind.place,
        alpha=args["alpha"] if kind.alpha is None else kind.alpha,
        scale=args["scale"],
        margin=args["margin"],
        easy_margin=args.get("easy_margin", False),
        form=args["form"],
        screen=args.get("screen", "none"),
        weight_grad=args.get("weight_grad", "dense"),
    )
