"""Backbones: speech (B, T, F) or images (B, C, H, W) to embeddings (B, D). One file, one paper."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, cast

from torch import nn

from wespeaker.errors import InputError, nearest
from wespeaker.models import campplus, ecapa_tdnn, iresnet, resnet, tdnn

# Of features (B, T, F), and of images (B, C, H, W).
MODELS: dict[str, Callable[..., nn.Module]] = {**resnet.MODELS, **ecapa_tdnn.MODELS, **campplus.MODELS, **tdnn.MODELS}
FACE_MODELS: dict[str, Callable[..., nn.Module]] = {**iresnet.MODELS}

_BY_INPUT: Mapping[str, Mapping[str, Callable[..., nn.Module]]] = {"features": MODELS, "images": FACE_MODELS}


def check_model(name: str, *, takes: Literal["features", "images"]) -> str:
    """Return ``name`` if it is a model of features (B, T, F), or of images (B, C, H, W).

    Raises:
        InputError: the name is not known, or is that of a model that takes the other.

    """
    models = _BY_INPUT[takes]
    if name in models:
        return name
    if name in MODELS or name in FACE_MODELS:
        other = "images" if takes == "features" else "features"
        raise InputError(f"{name} takes {other}, and {takes} are given to it here; {nearest(name, models)}")
    raise InputError(f"unknown model {name!r}; {nearest(name, models)}")


def build_model(name: str, **model_args: Any) -> nn.Module:
    """Build a backbone by its registry name.

    Args:
        name: a key of ``MODELS``, such as ``ResNet34``, or of ``FACE_MODELS``, such as ``IResNet50``.
        **model_args: the config's ``model_args``.

    Returns:
        A module to embeddings (B, D): from features (B, T, F), with the shortest T it takes as ``min_frames``, or from
        images (B, C, H, W), with the (C, H, W) it takes as ``image_shape``.

    Raises:
        InputError: the name is not known.

    """
    models = {**MODELS, **FACE_MODELS}
    if name not in models:
        raise InputError(f"unknown model {name!r}; {nearest(name, models)}")
    return models[name](**model_args)


def min_frames(name: str) -> int:
    """Return the shortest T that the backbone of a registry name takes, without building it."""
    model = MODELS[name]
    shortest: int = cast(Any, model.func if isinstance(model, partial) else model).min_frames
    return shortest
