"""Improved ResNets for aligned faces, as ArcFace (Deng et al., CVPR 2019, section 3.1) trains them.

The module names are those of the published PyTorch code (``arcface_torch``), so its checkpoints load:
``conv1 bn1 prelu layer1..4 bn2 dropout fc features``. IResNet10 is this project's, for small images and runs of
minutes on a laptop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn

from wespeaker.errors import InputError

STRIDE = 16  # of all four stages together


class IBasicBlock(nn.Module):
    """Two 3x3 convolutions with a residual connection; batch normalisation comes before, between and after them.

    One rectification in all, and none of the sum; the stride is in the second convolution. Source: Han et al., "Deep
    Pyramidal Residual Networks", CVPR 2017.
    """

    def __init__(self, in_planes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_planes)
        self.conv1 = nn.Conv2d(in_planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.prelu = nn.PReLU(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride=stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_planes != planes:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_planes, planes, 1, stride=stride, bias=False), nn.BatchNorm2d(planes)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, in_planes, H, W) to (B, planes, H / stride, W / stride)."""
        out = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        out = self.bn3(self.conv2(out))
        return out + self.downsample(x)


class IResNet(nn.Module):
    """A 3x3 stem without pooling, four stages that halve the image, one linear layer on all that is left of it.

    Args:
        num_blocks: blocks in each of the four stages.
        embed_dim: size of the embedding (D).
        in_channels: of the images: 3 for RGB, 1 for grey.
        image_size: height and width of the images, a multiple of 16; 112 in all that ArcFace publishes.
        width: channels of the stem and the first stage; the others have 2, 4, 8 times as many.
        dropout: share of the numbers before the linear layer that training hides.

    Raises:
        InputError: ``image_size`` is not a multiple of 16.

    """

    def __init__(
        self,
        num_blocks: Sequence[int],
        *,
        embed_dim: int = 512,
        in_channels: int = 3,
        image_size: int = 112,
        width: int = 64,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if image_size < STRIDE or image_size % STRIDE:
            raise InputError(f"image_size must be a multiple of {STRIDE}, such as 48 or 112, found {image_size}")
        self.image_shape = (in_channels, image_size, image_size)
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.prelu = nn.PReLU(width)
        planes = [width * factor for factor in (1, 2, 4, 8)]
        stages = [
            nn.Sequential(*(IBasicBlock(i if n == 0 else p, p, 2 if n == 0 else 1) for n in range(count)))
            for i, p, count in zip([width, *planes[:3]], planes, num_blocks, strict=True)
        ]
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.bn2 = nn.BatchNorm2d(planes[3])
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(planes[3] * (image_size // STRIDE) ** 2, embed_dim)
        self.features = nn.BatchNorm1d(embed_dim)
        self.features.weight.requires_grad = False  # stays 1: the loss sets the scale
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Embed images; under autocast the last two layers stay in the precision of their weights, as in ArcFace.

        Args:
            images: (B, C, H, W), RGB or grey, from -1 (black) to 1 (white).

        Returns:
            Embeddings (B, D), not length normalised.

        Raises:
            ValueError: images of another shape than the network was built for.

        """
        if images.dim() != 4 or images.shape[1:] != self.image_shape:
            wanted = ", ".join(map(str, self.image_shape))
            raise ValueError(f"images must be (batch, {wanted}), found {tuple(images.shape)}")
        x = self.prelu(self.bn1(self.conv1(images)))
        x = self.bn2(self.layer4(self.layer3(self.layer2(self.layer1(x)))))
        with torch.autocast(x.device.type, enabled=False):
            x = self.dropout(x.flatten(start_dim=1).to(self.fc.weight.dtype))
            embedding: torch.Tensor = self.features(self.fc(x))
        return embedding


MODELS: dict[str, Callable[..., nn.Module]] = {
    "IResNet10": partial(IResNet, (1, 1, 1, 1)),
    "IResNet18": partial(IResNet, (2, 2, 2, 2)),
    "IResNet34": partial(IResNet, (3, 4, 6, 3)),
    "IResNet50": partial(IResNet, (3, 4, 14, 3)),
    "IResNet100": partial(IResNet, (3, 13, 30, 3)),
}
