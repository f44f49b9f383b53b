"""The classification heads: a margin × a divergence on the cosines of embeddings and class prototypes."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wespeaker.losses.adaptive import (
    PLUS,
    Curriculum,
    ElasticMargin,
    InterTopK,
    KappaMargin,
    MagnitudeMargin,
    NormMargin,
)
from wespeaker.losses.binary import sphereface2_bias, sphereface2_loss, uniface_bias, uniface_loss
from wespeaker.losses.buffered import Buffered, buffered_divergence
from wespeaker.losses.divergence import alpha_divergence, at_label
from wespeaker.losses.margins import (
    GRADIENTS,
    adaface_margin,
    angular_margin,
    cosine_margin,
    log_prior_margin,
    multiplicative_margin,
)
from wespeaker.losses.prototypes import PrototypeReinit
from wespeaker.losses.stream import Streamed, stream_divergence

# Keys whose value is a name, and the names.
CHOICES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "form": ("auto", "dense", "stream"),
        "screen": ("none", "bf16"),
        "weight_grad": ("dense", "sparse"),
        "gradient": GRADIENTS,
        "plus": PLUS,
        "place": ("logit", "log_q"),
    }
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


Args = Mapping[str, Any]  # of projection_args, complete
Parts = Callable[[Args, int, int], dict[str, Any]]  # (args, C, D) to further arguments of MarginHead


@dataclass(frozen=True)
class ProjectType:
    """A named margin × divergence: where the margin acts, α where the name fixes it, its keys with defaults.

    parts: what `MarginHead` needs beside the keys that all have.
    """

    place: str
    alpha: float | None
    defaults: Mapping[str, Any]
    parts: Parts


def _type(place: str, fixed_alpha: float | None, /, *, parts: Parts = lambda *_: {}, **defaults: Any) -> ProjectType:
    sparse = {} if fixed_alpha == 1.0 else {"screen": "none", "weight_grad": "dense"}
    return ProjectType(place, fixed_alpha, MappingProxyType({**defaults, "form": "auto", **sparse}), parts)


def _adaptive(place: str, parts: Parts, /, **defaults: Any) -> ProjectType:
    """Register a margin that may also lie in log q, and whose α may exceed 1."""
    return _type(place, None, parts=parts, alpha=1.0, scale=64.0, **defaults, place="logit")


def _elastic(args: Args, num_classes: int, embed_dim: int) -> dict[str, Any]:
    return {"adapt": ElasticMargin(sigma=args["sigma"], plus=args["plus"])}


def _magnitude(args: Args, num_classes: int, embed_dim: int) -> dict[str, Any]:
    names = ("lower_norm", "upper_norm", "margin", "upper_margin", "norm_weight")
    return {"adapt": MagnitudeMargin(**{name: args[name] for name in names}), "easy_margin": True}


def _kappa(args: Args, num_classes: int, embed_dim: int) -> dict[str, Any]:
    names = ("temperature", "gamma", "memory")
    return {"adapt": KappaMargin(num_classes, embed_dim, **{name: args[name] for name in names})}


def _sub_centers(args: Args, num_classes: int, embed_dim: int) -> dict[str, Any]:
    return {
        "sub_centers": args["K"],
        "negatives": InterTopK(mp=args["mp"], k_top=args["k_top"], margin=args["margin"]),
    }


def _reinit(args: Args, num_classes: int, embed_dim: int) -> dict[str, Any]:
    return {
        "reinit": PrototypeReinit(
            num_classes, embed_dim, epoch=args["reinit_epoch"], zero_share=args["reinit_zero_share"]
        )
    }


PROJECT_TYPES: Mapping[str, ProjectType] = MappingProxyType(
    {
        "softmax": _type("none", 1.0),
        "add_margin": _type("cosine", 1.0, scale=32.0, margin=0.2),
        "arc_margin": _type("angle", 1.0, scale=32.0, margin=0.2, easy_margin=False, gradient="exact"),
        "q_margin": _type("log_prior", None, alpha=1.5, scale=10.0, margin=0.1),
        "entmax": _type("angle", None, alpha=1.75, scale=5.0, margin=0.1, easy_margin=False),
        "sparsemax": _type("angle", 2.0, scale=5.0, margin=0.1, easy_margin=False),
        "a3m": _type(
            "angle",
            None,
            parts=_reinit,
            alpha=1.75,
            scale=5.0,
            margin=0.1,
            easy_margin=False,
            reinit_epoch=40,
            reinit_zero_share=0.0,
        ),
        "arc_margin_intertopk_subcenter": _type(
            "angle", 1.0, parts=_sub_centers, scale=32.0, margin=0.2, easy_margin=False, K=3, mp=0.06, k_top=5
        ),
        "sphere": _type("factor", 1.0, scale=64.0, margin=1.7, gradient="straight_through"),
        "sphereface2": _type("binary", 1.0, scale=40.0, margin=0.4, t=3.0, positive_weight=0.7, loss_weight=50.0),
        "uniface": _type("binary", 1.0, scale=64.0, margin=0.4, negative_weight=1.0),
        "ada_margin": _adaptive(
            "adaface",
            lambda args, *_: {"adapt": NormMargin(h=args["h"], t_alpha=args["t_alpha"])},
            margin=0.4,
            h=0.333,
            t_alpha=0.01,
        ),
        "mag_margin": _adaptive(
            "angle",
            _magnitude,
            margin=0.45,
            upper_margin=0.8,
            lower_norm=10.0,
            upper_norm=110.0,
            norm_weight=35.0,
        ),
        "elastic_arc": _adaptive("angle", _elastic, margin=0.5, sigma=0.05, plus="none"),
        "elastic_cos": _adaptive("cosine", _elastic, margin=0.35, sigma=0.05, plus="none"),
        "curricular": _adaptive(
            "angle",
            lambda args, *_: {"negatives": Curriculum(t_weight=args["t_weight"])},
            margin=0.5,
            t_weight=0.01,
        ),
        "kappa": _adaptive("angle", _kappa, margin=0.8, temperature=0.4, gamma=0.7, memory=0.9),
    }
)

# What the streaming form cannot do with α > 1: other classes' logits change, or the target's may exceed its cosine's.
DENSE_ONLY = ("curricular", "elastic_arc", "elastic_cos", "ada_margin")

# σ of ElasticFace+ where none is given: sorted draws need less spread (the authors' values).
PLUS_SIGMA = MappingProxyType({"elastic_arc": 0.0175, "elastic_cos": 0.02})


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
    complete = {**kind.defaults, **given}
    if not problems:
        if complete.get("plus", "none") != "none" and "sigma" not in given:
            complete["sigma"] = PLUS_SIGMA[name]
        problems = _bad_together(name, complete)
    if problems:
        raise ValueError("projection_args: " + "; ".join(problems))
    return {"project_type": name} | {
        key: float(value) if isinstance(kind.defaults[key], float) else value for key, value in complete.items()
    }


def check_margin(project_type: str, margin: float) -> None:
    """Raise ValueError, a sentence, if a margin schedule must not give the head of this type this margin."""
    kind = PROJECT_TYPES[project_type]
    if "margin" in kind.defaults and (problem := _bad_value("margin", margin, kind.place)):
        raise ValueError(f"{problem} ({project_type})")


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
    if key in _COUNTS and not isinstance(value, int):
        return f"{key} must be a whole number; found {value}"
    if key == "margin" and place in _MARGIN_RANGES:
        holds, range_ = _MARGIN_RANGES[place]
    else:
        holds, range_ = _RANGES.get(key, (lambda x: x >= 0, "at least 0"))
    return None if holds(value) else f"{key} must be {range_}; found {value}"


def _bad_together(name: str, args: Args) -> list[str]:
    """Say which values of complete arguments do not go together."""
    problems = []
    if args["form"] == "stream":
        if args.get("alpha", PROJECT_TYPES[name].alpha) == 1.0:
            problems.append(f"form 'stream' needs alpha above 1; {name} has alpha 1; use auto or dense")
        elif name in DENSE_ONLY and not (name == "ada_margin" and args["place"] == "log_q"):
            problems.append(f"form 'stream' is not for {name}; use auto or dense")
    if "upper_norm" not in args:
        return problems
    if not args["lower_norm"] < args["upper_norm"]:
        problems.append(f"lower_norm ({args['lower_norm']}) must be below upper_norm ({args['upper_norm']})")
    if not 0 < args["margin"] <= args["upper_margin"]:
        problems.append(f"margin ({args['margin']}) must be above 0 and at most upper_margin ({args['upper_margin']})")
    return problems


_COUNTS = ("K", "k_top", "reinit_epoch")
_Range = tuple[Callable[[float], bool], str]
_ANGLE: _Range = (lambda x: 0 <= x < math.pi, "an angle in [0, π) radians")
_SHARE: _Range = (lambda x: 0 <= x <= 1, "in [0, 1]")
_POSITIVE: _Range = (lambda x: x > 0, "above 0")
_AT_LEAST_1: _Range = (lambda x: x >= 1, "at least 1")
_MARGIN_RANGES: Mapping[str, _Range] = MappingProxyType(
    {"angle": _ANGLE, "adaface": _ANGLE, "factor": (lambda x: x >= 1, "a factor on the angle of at least 1")}
)
_RANGES: Mapping[str, _Range] = MappingProxyType(  # what is not here must be at least 0
    {
        "scale": _POSITIVE,
        "alpha": _AT_LEAST_1,
        "h": _POSITIVE,
        "t_alpha": _SHARE,
        "t_weight": _SHARE,
        "gamma": _SHARE,
        "memory": (lambda x: 0 <= x < 1, "in [0, 1)"),
        "reinit_zero_share": _SHARE,
        "reinit_epoch": (lambda x: x == 0 or x >= 2, "an epoch from 2 on, or 0 for never"),
        "K": _AT_LEAST_1,
        "t": _AT_LEAST_1,
        "mp": _ANGLE,
        "upper_margin": _ANGLE,
        "lower_norm": _POSITIVE,
        "positive_weight": (lambda x: 0 < x < 1, "between 0 and 1"),
        "loss_weight": _POSITIVE,
        "negative_weight": _POSITIVE,
    }
)


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
            other devices it is "dense", since nothing was timed there). All give the same numbers.
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
        screen: str = "none",
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

    def update(self, margin: float) -> None:
        """Set the margin; ValueError where `validate_projection_args` would refuse it."""
        if problem := _bad_value("margin", margin, self.place):
            raise ValueError(problem)
        self.margin = float(margin)

    def start_epoch(self, epoch: int) -> Tensor:
        """Do what is done once an epoch: call it before the first batch of every epoch, counted from 1.

        Returns:
            The rows of `weight` that were re-initialised (n,) int64, mostly none; the optimiser's momentum of these
            rows is stale, see `forget_momentum`.
        """
        if isinstance(self.adapt, KappaMargin):
            self.adapt.start_epoch(epoch)
        if self.reinit is not None:
            return self.reinit.start_epoch(epoch, self.weight)
        return _no_rows(self.weight)

    def forward(self, embeddings: Tensor, labels: Tensor) -> HeadOutput:
        """Compute the loss of embeddings (B, D) with labels (B,) int64 in [0, C)."""
        _check_batch(embeddings, self.weight)
        with torch.autocast(embeddings.device.type, enabled=False):
            margin = self._margin(embeddings, labels)
            if self._may_stream(embeddings) and (streamed := self._stream(embeddings, labels, margin)) is not None:
                return self._finish(streamed, embeddings, labels)
            if self.streamable and 1.1 <= self.alpha <= 2.0 and self._chooses_by_size(embeddings):
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


class BinaryHead(nn.Module):
    """A yes-or-no question for each class: SphereFace2 or UniFace; `weight` (C, D) and one learnable `bias` ().

    `support` is C: no class's share is ever 0. `target_posterior` is the probability of yes for the label.

    Args:
        embed_dim: D.
        num_classes: C.
        args: complete `projection_args` of "sphereface2" or "uniface".
    """

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

    def update(self, margin: float) -> None:
        """Set the margin; ValueError where `validate_projection_args` would refuse it."""
        if problem := _bad_value("margin", margin, "binary"):
            raise ValueError(problem)
        self.margin = float(margin)

    def start_epoch(self, epoch: int) -> Tensor:
        """Accept the trainer's call; nothing is done."""
        return _no_rows(self.weight)

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

    def start_epoch(self, epoch: int) -> Tensor:
        """Accept the trainer's call; nothing is done."""
        return _no_rows(self.weight)

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


def _no_rows(weight: Tensor) -> Tensor:
    return torch.empty(0, dtype=torch.int64, device=weight.device)


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


Head = MarginHead | BinaryHead | SoftmaxHead


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
        screen=args.get("screen", "none"),
        weight_grad=args.get("weight_grad", "dense"),
        **{key: args[key] for key in shared},
        **kind.parts(args, num_classes, embed_dim),
    )
