"""ECAPA-TDNN (Desplanques et al. 2020): Res2 blocks with squeeze-excitation, all of them aggregated and pooled.

The module names are WeSpeaker's, so its checkpoints load: ``layer1..4 conv pool bn linear [bn2]``. As there, a block
sees the block before it (not the sum of all), and the aggregated layer has 1,536 channels whatever the others have.
``ECAPA_TDNN`` takes any width; the other names fix it, and whether the attention sees a global context (GLOB).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from wespeaker.models.inputs import check_feats
from wespeaker.models.pooling import PoolingFunc, build_pooling

RES2_SCALE = 8
SE_BOTTLENECK = 128


class ConvReLUBN(nn.Module):
    """A convolution over time that keeps its length, ReLU, batch normalisation."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv1d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
        self.bn = nn.BatchNorm1d(out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, in_channels, T) to (B, out_channels, T)."""
        return self.bn(F.relu(self.conv(x)))


class Res2Conv(nn.Module):
    """A hierarchy of dilated convolutions of width 3 (Res2Net, Gao et al. 2019).

    The channels are cut into 8 parts. The first is convolved, each next one is added to the result of the one before
    and convolved, the last is passed on as it is.
    """

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        width = channels // RES2_SCALE
        self.convs = nn.ModuleList(
            nn.Conv1d(width, width, 3, padding=dilation, dilation=dilation) for _ in range(RES2_SCALE - 1)
        )
        self.bns = nn.ModuleList(nn.BatchNorm1d(width) for _ in range(RES2_SCALE - 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, channels, T) to the same shape."""
        first, *middle, last = x.chunk(RES2_SCALE, dim=1)
        parts = [self.bns[0](F.relu(self.convs[0](first)))]
        for part, conv, bn in zip(middle, self.convs[1:], self.bns[1:], strict=True):
            parts.append(bn(F.relu(conv(parts[-1] + part))))
        return torch.cat((*parts, last), dim=1)


class SqueezeExcitation(nn.Module):
    """Scale the channels by a function of their means over time (Hu et al. 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(channels, SE_BOTTLENECK)
        self.linear2 = nn.Linear(SE_BOTTLENECK, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, channels, T) to the same shape."""
        scale = torch.sigmoid(self.linear2(F.relu(self.linear1(x.mean(dim=-1)))))
        return x * scale.unsqueeze(-1)


class SERes2Block(nn.Module):
    """Convolution of one frame, Res2 convolution, convolution of one frame, squeeze-excitation, residual connection."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.se_res2block = nn.Sequential(
            ConvReLUBN(channels, channels),
            Res2Conv(channels, dilation),
            ConvReLUBN(channels, channels),
            SqueezeExcitation(channels),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, channels, T) to the same shape."""
        return x + self.se_res2block(x)


class ECAPA_TDNN(nn.Module):
    """One convolution, three SE-Res2 blocks, their aggregation, pooling, a linear layer.

    Args:
        feat_dim: features per frame (F).
        embed_dim: size of the embedding (D).
        pooling_func: name of the pooling.
        emb_bn: batch normalisation of the embedding.
        channels: channels of the convolution and the blocks, a multiple of 8.
        out_channels: channels of the aggregation, which are pooled.
        global_context_att: the attention of ``ASTP`` sees the statistics of the utterance too.

    """

    min_frames = 2  # nothing shortens the input; a standard deviation needs two frames

    def __init__(
        self,
        *,
        feat_dim: int = 80,
        embed_dim: int = 192,
        pooling_func: PoolingFunc = "ASTP",
        emb_bn: bool = False,
        channels: int = 512,
        out_channels: int = 1536,
        global_context_att: bool = False,
    ) -> None:
        super().__init__()
        self.feat_dim = feat_dim
        self.layer1 = ConvReLUBN(feat_dim, channels, kernel_size=5)
        self.layer2, self.layer3, self.layer4 = (SERes2Block(channels, dilation) for dilation in (2, 3, 4))
        self.conv = nn.Conv1d(3 * channels, out_channels, 1)
        self.pool, pooled_dim = build_pooling(pooling_func, out_channels, global_context_att=global_context_att)
        self.bn = nn.BatchNorm1d(pooled_dim)
        self.linear = nn.Linear(pooled_dim, embed_dim)
        self.bn2 = nn.BatchNorm1d(embed_dim) if emb_bn else nn.Identity()

    def forward(self, feats: torch.Tensor) -> torch.Tensor:
        """Embed features.

        Args:
            feats: (B, T, F), mean normalised.

        Returns:
            Embeddings (B, D), not length normalised.

        Raises:
            ValueError: T is below ``min_frames`` or F is not ``feat_dim``.

        """
        check_feats(feats, min_frames=self.min_frames, feat_dim=self.feat_dim)
        first = self.layer2(self.layer1(feats.transpose(1, 2)))  # (B, channels, T)
        second = self.layer3(first)
        third = self.layer4(second)
        x = F.relu(self.conv(torch.cat((first, second, third), dim=1)))
        return self.bn2(self.linear(self.bn(self.pool(x))))


MODELS: dict[str, Callable[..., nn.Module]] = {
    "ECAPA_TDNN": ECAPA_TDNN,
    "ECAPA_TDNN_c512": partial(ECAPA_TDNN, channels=512),
    "ECAPA_TDNN_GLOB_c512": partial(ECAPA_TDNN, channels=512, global_context_att=True),
    "ECAPA_TDNN_c1024": partial(ECAPA_TDNN, channels=1024),
    "ECAPA_TDNN_GLOB_c1024": partial(ECAPA_TDNN, channels=1024, global_context_att=True),
}
