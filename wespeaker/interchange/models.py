"""The network of a run folder, ours or WeSpeaker's, and of the folders in which WeSpeaker publishes models."""

from __future__ import annotations

from pathlib import Path

from wespeaker.config import Config, load_config
from wespeaker.errors import InputError
from wespeaker.speaker_net import SpeakerNet
from wespeaker.train.checkpoint import load, load_backbone, weights_of


def load_speaker_net(folder: Path, *, checkpoint: Path | None = None) -> tuple[Config, SpeakerNet]:
    """Build the network of a folder with ``config.yaml`` and weights.

    Args:
        folder: a run folder of this recipe or of WeSpeaker, or one that WeSpeaker published (both files side by side).
        checkpoint: other weights than the folder's average.

    Returns:
        The config, and the network on the CPU in eval mode.

    Raises:
        InputError: there is no such folder, or its config or its weights cannot be used.

    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise InputError(
            f"{folder} is not a run folder (it has no config.yaml); run the training stage first, or name a folder "
            f"with config.yaml and avg_model.pt"
        )
    config = load_config(path)
    net = SpeakerNet(config)
    load_backbone(net.model, load(checkpoint or weights_of(folder)))
    return config, net.eval()
