"""CAM++ (Wang et al. 2023): a densely connected time-delay network whose layers are masked by their context.

The module names are WeSpeaker's, so its checkpoints load: ``head.* xvector.{tdnn,block1..3,transit1..3,…,dense}``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from wespeaker.models.inputs import check_feats
from wespeaker.models.pooling import PoolingFunc, build_pooling
from wespeaker.models.resnet import BasicBlock

BLOCKS = ((12, 1), (24, 2), (16, 2))  # layers and dilation of each dense block
SEGMENT = 100  # frames of a segment of the context: 2 s, after the stride of 2


def norm_relu(channels: int) -> nn.Sequential:
    """Batch normalisation and ReLU."""
    return nn.Sequential(OrderedDict(batchnorm=nn.BatchNorm1d(channels), relu=nn.ReLU()))


class FCM(nn.Module):
    """The front-end convolution module: residual blocks on the time-frequency plane that shorten frequency alone."""

    def __init__(self, feat_dim: int, m_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, m_channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(m_channels)
        self.layer1, self.layer2 = (
            nn.Sequential(BasicBlock(m_channels, m_channels, (2, 1)), BasicBlock(m_channels, m_channels, 1))
            for _ in range(2)
        )
        self.conv2 = nn.Conv2d(m_channels, m_channels, 3, stride=(2, 1), padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(m_channels)
        self.out_channels = m_channels * -(-feat_dim // 8)  # a convolution of stride 2 and padding 1 rounds up

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, F, T) to (B, out_channels, T)."""
        x = F.relu(self.bn1(self.conv1(x.unsqueeze(1))))
        x = F.relu(self.bn2(self.conv2(self.layer2(self.layer1(x)))))
        return x.flatten(start_dim=1, end_dim=2)


def segment_means(x: torch.Tensor) -> torch.Tensor:
    """Return the means (B, C, S) of the segments of (B, C, T); the last is of the frames that there are."""
    if not torch.compiler.is_exporting():
        return F.avg_pool1d(x, SEGMENT, ceil_mode=True)
    # The same without ceil_mode: in it onnxruntime 1.16 takes the last mean of SEGMENT frames, of which some are not.
    filled = [F.pad(values, (0, -x.shape[-1] % SEGMENT)) for values in (x, torch.ones_like(x[:1, :1]))]
    means, shares = (F.avg_pool1d(values, SEGMENT) for values in filled)
    return means / shares


class ContextAwareMasking(nn.Module):
    """A convolution over time whose output is masked by what the utterance and the segment of 100 frames are like.

    Section 2.2 of the paper: the context is the mean over the utterance plus the mean over the frame's segment.
    """

    def __init__(self, in_channels: int, out_channels: int, dilation: int) -> None:
        super().__init__()
        self.linear_local = nn.Conv1d(in_channels, out_channels, 3, padding=dilation, dilation=dilation, bias=False)
        self.linear1 = nn.Conv1d(in_channels, in_channels // 2, 1)
        self.linear2 = nn.Conv1d(in_channels // 2, out_channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, in_channels, T) to (B, out_channels, T)."""
        context = x.mean(dim=-1, keepdim=True) + segment_means(x)
        mask = torch.sigmoid(self.linear2(F.relu(self.linear1(context))))  # one for each segment
        return self.linear_local(x) * mask.repeat_interleave(SEGMENT, dim=-1)[..., : x.shape[-1]]


class DenseLayer(nn.Module):
    """A bottleneck and a masked convolution, whose output is joined to the input."""

    def __init__(self, in_channels: int, bn_channels: int, out_channels: int, dilation: int) -> None:
        super().__init__()
        self.nonlinear1 = norm_relu(in_channels)
        self.linear1 = nn.Conv1d(in_channels, bn_channels, 1, bias=False)
        self.nonlinear2 = norm_relu(bn_channels)
        self.cam_layer = ContextAwareMasking(bn_channels, out_channels, dilation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, in_channels, T) to (B, in_channels + out_channels, T)."""
        return torch.cat((x, self.cam_layer(self.nonlinear2(self.linear1(self.nonlinear1(x))))), dim=1)


class CAMPPlus(nn.Module):
    """The front-end module, a strided time-delay layer, three dense blocks, pooling, a linear layer.

    With ``ASTP`` WeSpeaker lists the weights of the attention twice, as ``pool.*`` and ``xvector.stats.*``; here only
    the second names exist. Its published checkpoints are of ``TSTP``.

    Args:
        feat_dim: features per frame (F).
        embed_dim: size of the embedding (D).
        pooling_func: name of the pooling.
        growth_rate: channels that each layer of a dense block adds.
        bn_size: channels of a layer's bottleneck, in multiples of ``growth_rate``.
        init_channels: channels before the first dense block.
        m_channels: channels of the front-end module.

    """

    min_frames = 3  # the stride leaves ceil(T / 2) frames and statistics pooling needs two of them

    def __init__(
        self,
        *,
        feat_dim: int = 80,
        embed_dim: int = 512,
        pooling_func: PoolingFunc = "TSTP",
        growth_rate: int = 32,
        bn_size: int = 4,
        init_channels: int = 128,
        m_channels: int = 32,
    ) -> None:
        super().__init__()
        self.feat_dim = feat_dim
        self.head = FCM(feat_dim, m_channels)
        tdnn = nn.Conv1d(self.head.out_channels, init_channels, 5, stride=2, padding=2, bias=False)
        layers = OrderedDict[str, nn.Module](
            tdnn=nn.Sequential(OrderedDict(linear=tdnn, nonlinear=norm_relu(init_channels)))
        )
        channels = init_channels
        for number, (count, dilation) in enumerate(BLOCKS, 1):
            block = OrderedDict[str, nn.Module]()
            for n in range(1, count + 1):
                block[f"tdnnd{n}"] = DenseLayer(channels, bn_size * growth_rate, growth_rate, dilation)
                channels += growth_rate
            layers[f"block{number}"] = nn.Sequential(block)
            transit = nn.Conv1d(channels, channels // 2, 1, bias=False)
            layers[f"transit{number}"] = nn.Sequential(OrderedDict(nonlinear=norm_relu(channels), linear=transit))
            channels //= 2
        layers["out_nonlinear"] = norm_relu(channels)
        layers["stats"], pooled_dim = build_pooling(pooling_func, channels)
        layers["dense"] = nn.Sequential(
            OrderedDict[str, nn.Module](
                as_frame=nn.Unflatten(1, (pooled_dim, 1)),
                linear=nn.Conv1d(pooled_dim, embed_dim, 1, bias=False),
                nonlinear=nn.Sequential(OrderedDict(batchnorm=nn.BatchNorm1d(embed_dim, affine=False))),
                as_vector=nn.Flatten(),
            )
        )
        self.xvector = nn.Sequential(layers)
        for module in self.modules():
            if isinstance(module, nn.Conv1d):
                nn.init.kaiming_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

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
        return self.xvector(self.head(feats.transpose(1, 2)))


MODELS: dict[str, Callable[..., nn.Module]] = {"CAMPPlus": CAMPPlus}
