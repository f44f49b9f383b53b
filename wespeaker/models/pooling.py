"""Pooling over time: frame-level features to one vector per utterance. The names and keys are WeSpeaker's."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from wespeaker.errors import InputError

PoolingFunc = Literal["TAP", "TSDP", "TSTP", "ASTP"]


def build_pooling(pooling_func: PoolingFunc, in_dim: int, *, global_context_att: bool = False) -> tuple[nn.Module, int]:
    """Build a pooling layer.

    Args:
        pooling_func: its name.
        in_dim: values per frame, the product of all dimensions between the batch and time.
        global_context_att: the attention of ``ASTP`` sees the statistics of the utterance too.

    Returns:
        The layer, from (B, ..., T) to (B, out_dim), and out_dim: ``in_dim`` or twice that.

    Raises:
        InputError: a global context is asked of a pooling without attention.

    """
    if global_context_att and pooling_func != "ASTP":
        raise InputError(
            f"pooling_func {pooling_func} has no attention that could see a global context; "
            f"take ASTP, or a model without one"
        )
    if pooling_func == "ASTP":
        return ASTP(in_dim, global_context_att=global_context_att), 2 * in_dim
    return {"TAP": TAP, "TSDP": TSDP, "TSTP": TSTP}[pooling_func](), 2 * in_dim if pooling_func == "TSTP" else in_dim


def fine(x: torch.Tensor) -> torch.Tensor:
    """Return ``x`` in float32 at least: under autocast, sums over time would lose what half precision cannot hold."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def mean_over_time(x: torch.Tensor) -> torch.Tensor:
    """Return the mean (B, ...) of (B, ..., T), in float32 at least."""
    return fine(x).mean(dim=-1)


def std_over_time(x: torch.Tensor) -> torch.Tensor:
    """Return the standard deviation (B, ...) of (B, ..., T), in float32 at least.

    The variance is the unbiased one plus 1e-7, as WeSpeaker's, so that its checkpoints give the same embeddings.

    Raises:
        ValueError: T < 2, where it does not exist.

    """
    if x.shape[-1] < 2:
        raise ValueError(f"statistics pooling needs at least 2 frames, found {x.shape[-1]}")
    return torch.sqrt(fine(x).var(dim=-1) + 1e-7)


class TAP(nn.Module):
    """Temporal average pooling: the mean over time."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Pool (B, ..., T) to (B, product of ...)."""
        return mean_over_time(x).flatten(start_dim=1)


class TSDP(nn.Module):
    """Temporal standard deviation pooling (Wang et al. 2021, "Revisiting the statistics pooling layer")."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Pool (B, ..., T) with T of at least 2 to (B, product of ...)."""
        return std_over_time(x).flatten(start_dim=1)


class TSTP(nn.Module):
    """Temporal statistics pooling: mean and standard deviation over time (x-vectors, Snyder et al. 2018)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Pool (B, ..., T) with T of at least 2 to (B, 2 x product of ...)."""
        x = fine(x)  # once, for both
        return torch.cat((mean_over_time(x).flatten(start_dim=1), std_over_time(x).flatten(start_dim=1)), dim=1)


class ASTP(nn.Module):
    """Attentive statistics pooling with a weight per channel and frame (ECAPA-TDNN, Desplanques et al. 2020, 3.1).

    The weights α are a softmax over time of two layers on the frame. WeSpeaker takes the variance as Σ α x² - mean²;
    here it is Σ α (x - mean)², the same number without the cancellation of two large ones.

    Args:
        in_dim: C, channels.
        bottleneck_dim: size of the attention's hidden layer.
        global_context_att: the attention sees mean and standard deviation of the utterance beside each frame.

    """

    def __init__(self, in_dim: int, *, bottleneck_dim: int = 128, global_context_att: bool = False) -> None:
        super().__init__()
        self.global_context_att = global_context_att
        self.linear1 = nn.Conv1d(3 * in_dim if global_context_att else in_dim, bottleneck_dim, 1)
        self.linear2 = nn.Conv1d(bottleneck_dim, in_dim, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Pool (B, ..., T) with C = product of ... to (B, 2 C); T must be at least 2 with a global context."""
        x = x.flatten(start_dim=1, end_dim=-2)  # (B, C, T)
        of_frame, of_context = self.linear1.weight.tensor_split([x.shape[1]], dim=1)
        hidden = F.conv1d(x, of_frame, self.linear1.bias)
        if self.global_context_att:  # the same in all frames, so its part of the layer is computed once
            context = torch.cat((mean_over_time(x), std_over_time(x)), dim=1)
            hidden = hidden + F.conv1d(context.unsqueeze(-1), of_context)
        alpha = fine(self.linear2(torch.tanh(hidden))).softmax(dim=-1)
        x = fine(x)
        mean = (alpha * x).sum(dim=-1)
        variance = (alpha * (x - mean.unsqueeze(-1)).square()).sum(dim=-1)
        return torch.cat((mean, variance.clamp(min=1e-7).sqrt()), dim=1)
