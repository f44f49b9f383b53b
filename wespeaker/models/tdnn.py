"""The x-vector network: time-delay layers and statistics pooling (Snyder et al. 2018, "X-vectors", Table 1).

The module names are WeSpeaker's, so its checkpoints load: ``frame_1..5 [pool] seg_1 seg_bn_1 seg_2``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from wespeaker.models.inputs import check_feats
from wespeaker.models.pooling import PoolingFunc, build_pooling


class TDNNLayer(nn.Module):
    """A convolution over time, ReLU, and batch normalisation without scale and shift, as Kaldi's."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, dilation: int) -> None:
        super().__init__()
        self.conv_1d = nn.Conv1d(in_channels, out_channels, kernel_size, dilation=dilation)
        self.bn = nn.BatchNorm1d(out_channels, affine=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, in_channels, T) to (B, out_channels, T - dilation (kernel_size - 1))."""
        return self.bn(F.relu(self.conv_1d(x)))


class XVEC(nn.Module):
    """Five time-delay layers, pooling, two linear layers.

    Args:
        feat_dim: features per frame (F).
        embed_dim: size of the embedding (D).
        pooling_func: name of the pooling.
        hid_dim: channels of the first four layers.
        stats_dim: channels of the fifth, which are pooled.

    """

    min_frames = 16  # the contexts of 5, 5 and 7 frames take 14 away and statistics pooling needs two

    def __init__(
        self,
        *,
        feat_dim: int = 80,
        embed_dim: int = 512,
        pooling_func: PoolingFunc = "TSTP",
        hid_dim: int = 512,
        stats_dim: int = 1500,
    ) -> None:
        super().__init__()
        self.feat_dim = feat_dim
        self.frame_1 = TDNNLayer(feat_dim, hid_dim, kernel_size=5, dilation=1)
        self.frame_2 = TDNNLayer(hid_dim, hid_dim, kernel_size=3, dilation=2)
        self.frame_3 = TDNNLayer(hid_dim, hid_dim, kernel_size=3, dilation=3)
        self.frame_4 = TDNNLayer(hid_dim, hid_dim, kernel_size=1, dilation=1)
        self.frame_5 = TDNNLayer(hid_dim, stats_dim, kernel_size=1, dilation=1)
        self.pool, pooled_dim = build_pooling(pooling_func, stats_dim)
        self.seg_1 = nn.Linear(pooled_dim, embed_dim)
        self.seg_bn_1 = nn.BatchNorm1d(embed_dim, affine=False)
        self.seg_2 = nn.Linear(embed_dim, embed_dim)

    def forward(self, feats: torch.Tensor) -> torch.Tensor:
        """Embed features.

        Args:
            feats: (B, T, F), mean normalised.

        Returns:
            Embeddings (B, D) of the second linear layer, which is the one that WeSpeaker trains and extracts.

        Raises:
            ValueError: T is below ``min_frames`` or F is not ``feat_dim``.

        """
        check_feats(feats, min_frames=self.min_frames, feat_dim=self.feat_dim)
        x = feats.transpose(1, 2)  # (B, F, T)
        x = self.frame_5(self.frame_4(self.frame_3(self.frame_2(self.frame_1(x)))))
        return self.seg_2(self.seg_bn_1(F.relu(self.seg_1(self.pool(x)))))


MODELS: dict[str, Callable[..., nn.Module]] = {"XVEC": XVEC}
