"""What every backbone asks of its input."""

from __future__ import annotations

import torch


def check_feats(feats: torch.Tensor, *, min_frames: int, feat_dim: int) -> None:
    """Raise ValueError, a sentence, if features are not (B, T, F) with T of at least ``min_frames``, F ``feat_dim``."""
    if feats.dim() != 3 or feats.shape[1] < min_frames or feats.shape[2] != feat_dim:
        raise ValueError(
            f"features must be (batch, at least {min_frames} frames, {feat_dim} bins), found {tuple(feats.shape)}"
        )
