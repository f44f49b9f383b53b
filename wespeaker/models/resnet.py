"""ResNets on the time-frequency plane (He et al. 2016) with statistics pooling, as WeSpeaker's ``r-vectors``.

The module names are WeSpeaker's, so its checkpoints load: ``conv1 bn1 layer1..4 [pool] seg_1 [seg_bn_1 seg_2]``.
ResNet221 and ResNet293 are WeSpeaker's depths; ResNet10 is this project's, for runs of minutes on a laptop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from wespeaker.models.inputs import check_feats
from wespeaker.models.pooling import PoolingFunc, build_pooling

STAGE_STRIDES = (1, 2, 2, 2)
Stride = int | tuple[int, int]  # of frequency and time alike, or of each


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a residual connection."""

    expansion = 1

    def __init__(self, in_planes: int, planes: int, stride: Stride) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.shortcut = projection_shortcut(in_planes, planes * self.expansion, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, in_planes, F, T) to (B, planes, F / stride, T / stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions with a residual connection; four times as many channels come out."""

    expansion = 4

    def __init__(self, in_planes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, planes * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes * self.expansion)
        self.shortcut = projection_shortcut(in_planes, planes * self.expansion, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, in_planes, F, T) to (B, 4 planes, F / stride, T / stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return F.relu(out + self.shortcut(x))


def projection_shortcut(in_planes: int, out_planes: int, stride: Stride) -> nn.Sequential:
    """Return the identity where shapes agree, else a strided 1x1 convolution with batch normalisation."""
    if stride == 1 and in_planes == out_planes:
        return nn.Sequential()
    return nn.Sequential(nn.Conv2d(in_planes, out_planes, 1, stride=stride, bias=False), nn.BatchNorm2d(out_planes))


class ResNet(nn.Module):
    """Four stages of residual blocks, pooling, one or two linear layers.

    Args:
        block: the residual block of all stages.
        num_blocks: blocks in each of the four stages.
        feat_dim: features per frame (F).
        embed_dim: size of the embedding (D).
        pooling_func: name of the pooling.
        two_emb_layer: add ReLU, batch normalisation and a second linear layer after the first.
        m_channels: channels of the first stage; the others have 2, 4, 8 times as many.

    """

    min_frames = 9  # the strides leave ceil(T / 8) frames and statistics pooling needs two of them

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        num_blocks: Sequence[int],
        *,
        feat_dim: int = 80,
        embed_dim: int = 256,
        pooling_func: PoolingFunc = "TSTP",
        two_emb_layer: bool = False,
        m_channels: int = 32,
    ) -> None:
        super().__init__()
        self.feat_dim = feat_dim
        self.two_emb_layer = two_emb_layer
        self.conv1 = nn.Conv2d(1, m_channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(m_channels)
        planes = [m_channels * factor for factor in (1, 2, 4, 8)]
        inputs = [m_channels, *(p * block.expansion for p in planes[:3])]
        stages = [
            nn.Sequential(*(block(i if n == 0 else p * block.expansion, p, s if n == 0 else 1) for n in range(count)))
            for i, p, s, count in zip(inputs, planes, STAGE_STRIDES, num_blocks, strict=True)
        ]
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        bins = -(-feat_dim // 8)  # a convolution of stride 2 and padding 1 rounds up
        self.pool, pooled_dim = build_pooling(pooling_func, bins * planes[3] * block.expansion)
        self.seg_1 = nn.Linear(pooled_dim, embed_dim)
        if two_emb_layer:
            self.seg_bn_1 = nn.BatchNorm1d(embed_dim, affine=False)
            self.seg_2 = nn.Linear(embed_dim, embed_dim)

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
        x = feats.transpose(1, 2).unsqueeze(1)  # (B, 1, F, T)
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        embedding = self.seg_1(self.pool(x))
        if self.two_emb_layer:
            embedding = self.seg_2(self.seg_bn_1(F.relu(embedding)))
        return embedding


MODELS: dict[str, Callable[..., nn.Module]] = {
    "ResNet10": partial(ResNet, BasicBlock, (1, 1, 1, 1)),
    "ResNet18": partial(ResNet, BasicBlock, (2, 2, 2, 2)),
    "ResNet34": partial(ResNet, BasicBlock, (3, 4, 6, 3)),
    "ResNet50": partial(ResNet, Bottleneck, (3, 4, 6, 3)),
    "ResNet101": partial(ResNet, Bottleneck, (3, 4, 23, 3)),
    "ResNet152": partial(ResNet, Bottleneck, (3, 8, 36, 3)),
    "ResNet221": partial(ResNet, Bottleneck, (6, 16, 48, 3)),
    "ResNet293": partial(ResNet, Bottleneck, (10, 20, 64, 3)),
}
