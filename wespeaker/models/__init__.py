"""Backbones: a batch of features (B, T, F) to embeddings (B, D). One file, one paper."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

from torch import nn

from wespeaker.errors import InputError, nearest
from wespeaker.models import campplus, ecapa_tdnn, resnet, tdnn

MODELS: dict[str, Callable[..., nn.Module]] = {**resnet.MODELS, **ecapa_tdnn.MODELS, **campplus.MODELS, **tdnn.MODELS}


def build_model(name: str, **model_args: Any) -> nn.Module:
    """Build a backbone by its registry name.

    Args:
        name: a key of ``MODELS``, such as ``ResNet34``.
        **model_args: the config's ``model_args``.

    Returns:
        A module from features (B, T, F) to embeddings (B, D), with the shortest T it takes as ``min_frames``.

    Raises:
        InputError: the name is not known.

    """
    if name not in MODELS:
        raise InputError(f"unknown model {name!r}; {nearest(name, MODELS)}")
    return MODELS[name](**model_args)


def min_frames(name: str) -> int:
    """Return the shortest T that the backbone of a registry name takes, without building it."""
    model = MODELS[name]
    shortest: int = cast(Any, model.func if isinstance(model, partial) else model).min_frames
    return shortest
