"""Pooling over time: frame-level features to one vector per utterance."""

from __future__ import annotations

import torch
from torch import nn


class TSTP(nn.Module):
    """Temporal statistics pooling: mean and standard deviation over time (x-vectors, Snyder et al. 2018).

    The variance is the unbiased one plus 1e-7, as WeSpeaker's, so that its checkpoints give the same embeddings.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Pool (B, ..., T) to (B, 2 x product of ...).

        Raises:
            ValueError: T < 2, where a standard deviation does not exist.

        """
        if x.shape[-1] < 2:
            raise ValueError(f"statistics pooling needs at least 2 frames, found {x.shape[-1]}")
        mean = x.mean(dim=-1)
        std = torch.sqrt(x.var(dim=-1) + 1e-7)
        return torch.cat((mean.flatten(start_dim=1), std.flatten(start_dim=1)), dim=1)
