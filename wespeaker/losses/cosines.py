"""Scaled cosines of embeddings and prototypes, and lengths that may be zero."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def working_dtype(embeddings: Tensor, prototypes: Tensor) -> torch.dtype:
    """Return what a head computes in: float32, or float64 where either is."""
    return torch.promote_types(torch.promote_types(embeddings.dtype, prototypes.dtype), torch.float32)


def inverse_norms(x: Tensor) -> Tensor:
    """Return 1/‖x‖ of each row of x (N, D), 0 for one shorter than 1e-12, which has no direction, NaN for infinity."""
    norm = torch.linalg.vector_norm(x, dim=1)
    norm.masked_fill_(norm == math.inf, math.nan)
    return norm.reciprocal().masked_fill_(norm < 1e-12, 0.0)


def scaled_directions(embeddings: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Return s e/‖e‖ (B, D) and 1/‖e‖ (B,) of embeddings (B, D)."""
    inverse = inverse_norms(embeddings)
    return embeddings * (scale * inverse).unsqueeze(1), inverse


def scaled_cosines(embeddings: Tensor, prototypes: Tensor, scale: float) -> Tensor:
    """Return θ = s cos(embedding, prototype) (B, C), in float32 or finer.

    A vector shorter than 1e-12 has no direction: its cosines and their gradient are 0. (x / max(‖x‖, 1e-12)
    would give the same cosine and a gradient 1e12 times too large.)

    Args:
        embeddings: (B, D).
        prototypes: (C, D).
        scale: s.
    """
    dtype = working_dtype(embeddings, prototypes)
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
        inverse = inverse_norms(x)
        ctx.save_for_backward(x, inverse)
        return inverse

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        x, inverse = ctx.saved_tensors
        slope = -grads[0] * inverse * inverse * inverse  # in this order no factor leaves float32
        return x * slope.unsqueeze(1)
