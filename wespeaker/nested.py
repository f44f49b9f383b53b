"""Nested mappings, such as a config, as one level of dotted keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values by the path to them; an empty mapping leaves nothing.

    >>> flatten({"seed": 1, "model_args": {"embed_dim": 256, "feat_dim": 80}})
    {'seed': 1, 'model_args.embed_dim': 256, 'model_args.feat_dim': 80}
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
