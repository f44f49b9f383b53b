"""The project types of a config: which margin × which divergence a name stands for, its keys, and what is valid."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from wespeaker.losses.adaptive import (
    PLUS,
    Curriculum,
    ElasticMargin,
    InterTopK,
    KappaMargin,
    MagnitudeMargin,
    NormMargin,
)
from wespeaker.losses.margins import GRADIENTS
from wespeaker.losses.prototypes import PrototypeReinit
from wespeaker.losses.screening import SCREENS
from wespeaker.losses.shards import Shards

# Keys whose value is a name, and the names.
CHOICES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "form": ("auto", "dense", "stream"),
        "screen": SCREENS,
        "weight_grad": ("dense", "sparse"),
        "gradient": GRADIENTS,
        "plus": PLUS,
        "place": ("logit", "log_q"),
    }
)

Args = Mapping[str, Any]  # of projection_args, complete
Parts = Callable[[Args, Shards, int], dict[str, Any]]  # (args, classes, D) to further arguments of MarginHead


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
    sparse = {} if fixed_alpha == 1.0 else {"screen": "auto", "weight_grad": "dense"}
    return ProjectType(place, fixed_alpha, MappingProxyType({**defaults, "form": "auto", **sparse}), parts)


def _adaptive(place: str, parts: Parts, /, **defaults: Any) -> ProjectType:
    """Register a margin that may also lie in log q, and whose α may exceed 1."""
    return _type(place, None, parts=parts, alpha=1.0, scale=64.0, **defaults, place="logit")


def _elastic(args: Args, shards: Shards, embed_dim: int) -> dict[str, Any]:
    return {"adapt": ElasticMargin(sigma=args["sigma"], plus=args["plus"])}


def _magnitude(args: Args, shards: Shards, embed_dim: int) -> dict[str, Any]:
    names = ("lower_norm", "upper_norm", "margin", "upper_margin", "norm_weight")
    return {"adapt": MagnitudeMargin(**{name: args[name] for name in names}), "easy_margin": True}


def _kappa(args: Args, shards: Shards, embed_dim: int) -> dict[str, Any]:
    names = ("temperature", "gamma", "memory")
    return {"adapt": KappaMargin(shards, embed_dim, **{name: args[name] for name in names})}


def _sub_centers(args: Args, shards: Shards, embed_dim: int) -> dict[str, Any]:
    return {
        "sub_centers": args["K"],
        "negatives": InterTopK(mp=args["mp"], k_top=args["k_top"], margin=args["margin"]),
    }


def _reinit(args: Args, shards: Shards, embed_dim: int) -> dict[str, Any]:
    return {
        "reinit": PrototypeReinit(shards, embed_dim, epoch=args["reinit_epoch"], zero_share=args["reinit_zero_share"])
    }


PROJECT_TYPES: Mapping[str, ProjectType] = MappingProxyType(
    {
        "softmax": _type("none", 1.0, sample_rate=1.0),
        "add_margin": _type("cosine", 1.0, scale=32.0, margin=0.2, sample_rate=1.0),
        "arc_margin": _type("angle", 1.0, scale=32.0, margin=0.2, easy_margin=False, gradient="exact", sample_rate=1.0),
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
        "sphere": _type("factor", 1.0, scale=64.0, margin=1.7, gradient="straight_through", sample_rate=1.0),
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
    {'project_type': 'add_margin', 'scale': 30.0, 'margin': 0.2, 'sample_rate': 1.0, 'form': 'auto'}
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
    if "margin" in kind.defaults and (problem := bad_margin(margin, kind.place)):
        raise ValueError(f"{problem} ({project_type})")


def bad_margin(margin: float, place: str) -> str | None:
    """Say why a margin means nothing at this place (see `MarginHead`), or None."""
    return _bad_value("margin", margin, place)


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
        "sample_rate": (lambda x: 0 < x <= 1, "above 0 and at most 1"),
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
