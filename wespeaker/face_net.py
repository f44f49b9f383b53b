"""The network of a face config: a backbone alone, since images need no front end."""

from __future__ import annotations

from torch import nn

from wespeaker.face_config import FaceConfig
from wespeaker.models import build_model


def build_face_net(config: FaceConfig) -> nn.Module:
    """Return the network that a config describes, from images (B, C, H, W) to embeddings (B, D)."""
    args = config.dataset_args
    size = {"in_channels": args.channels, "image_size": args.image_size}
    return build_model(config.model, **size, **config.model_args.model_dump())
