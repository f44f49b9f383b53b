"""The network of a face config: a backbone alone, since images need no front end."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from wespeaker.config import load_config
from wespeaker.errors import InputError
from wespeaker.face_config import FaceConfig
from wespeaker.models import build_model
from wespeaker.train.checkpoint import AVERAGE, load, load_backbone


def build_face_net(config: FaceConfig) -> nn.Module:
    """Return the network that a config describes, from images (B, C, H, W) to embeddings (B, D)."""
    args = config.dataset_args
    size = {"in_channels": args.channels, "image_size": args.image_size}
    return build_model(config.model, **size, **config.model_args.model_dump())


def load_face_net(exp_dir: Path, checkpoint: Path | None = None) -> nn.Module:
    """Return the network of a run in evaluation mode, on the CPU.

    Args:
        exp_dir: the run's folder.
        checkpoint: a model file; None takes the average of the run's last epochs.

    Raises:
        InputError: it is not the folder of a run with faces, or the weights are missing or those of another network.

    """
    if not (exp_dir / "config.yaml").is_file():
        raise InputError(f"{exp_dir} is not a run folder (it has no config.yaml); run the training stage first")
    net = build_face_net(load_config(exp_dir / "config.yaml", schema=FaceConfig))
    load_backbone(net, load(checkpoint or exp_dir / "models" / AVERAGE))
    return net.eval()
