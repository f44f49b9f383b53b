"""The network of a run folder, ours or WeSpeaker's, and of the folders in which WeSpeaker publishes models."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from wespeaker.config import Config, load_config, read_document, validated
from wespeaker.errors import InputError
from wespeaker.interchange.config import is_wespeakers, translate
from wespeaker.models import build_model
from wespeaker.speaker_net import SpeakerNet
from wespeaker.train.checkpoint import backbone_weights, load, load_backbone, weights_of

logger = logging.getLogger(__name__)


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
    config, weights = _load_config(path), load(checkpoint or weights_of(folder))
    try:
        with torch.device("meta"):  # shapes alone: what does not fit takes no memory
            shapes = build_model(config.model, **config.model_args.model_dump())
    except (RuntimeError, TypeError) as error:  # torch's answers to sizes that no tensor has
        raise InputError(f"{path}: model_args make no network ({str(error).splitlines()[0]})") from error
    backbone_weights(shapes, weights)
    net = SpeakerNet(config)
    load_backbone(net.model, weights)
    return config, net.eval()


def _load_config(path: Path) -> Config:
    """Read a config to embed with; what WeSpeaker's says about training need not be possible here."""
    try:
        return load_config(path)
    except InputError as error:
        document = read_document(path)
        if not is_wespeakers(document):
            raise
        embedding = translate(document).embedding()
        values = {**embedding.values, "exp_dir": str(path.parent)}
        config = validated(values, str(path), [str(note) for note in embedding.of("refused")], Config)
        logger.warning("taken for embeddings alone, since it cannot be trained with here: %s", error)
        return config
