"""A model of WeSpeaker's as a run folder of this recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wespeaker.config import Config, load_config
from wespeaker.errors import InputError
from wespeaker.eval.embeddings import load_mean_vec
from wespeaker.files import replacing
from wespeaker.interchange.models import load_speaker_net
from wespeaker.losses import build_head
from wespeaker.train.checkpoint import AVERAGE, HEAD_PREFIX, differences, load, save, weights_of
from wespeaker.train.runlog import CONFIG, write_run_folder


@dataclass(frozen=True)
class Model:
    """What a folder of WeSpeaker's holds, checked.

    config: as ours. weights: of the network and, under our keys, of the head; without a head where it is none of ours.
    num_parameters: of the network. num_classes: of the head, None where there is none. mean_vecs: (D,) by their place.
    """

    config: Config
    weights: Mapping[str, Any]
    num_parameters: int
    num_classes: int | None
    mean_vecs: Mapping[Path, NDArray[np.float64]]

    @property
    def has_head(self) -> bool:
        """Whether training can go on with the prototypes."""
        return any(key.startswith(HEAD_PREFIX) for key in self.weights)


def read_model(folder: Path) -> Model:
    """Read a run folder of WeSpeaker's, or a folder in which it published a model.

    Raises:
        InputError: the config cannot be honoured in full, or the weights are not of its network; the differences are
            named.

    """
    load_config(folder / CONFIG)  # of a model that can only embed here, there is no run folder
    config, net = load_speaker_net(folder)
    head, num_classes = _head(load(weights_of(folder)), config)
    mean_vecs = {path.relative_to(folder): load_mean_vec(path) for path in folder.glob("embeddings/*/mean_vec.npy")}
    for path, mean_vec in mean_vecs.items():
        if mean_vec.size != config.model_args.embed_dim:
            raise InputError(
                f"{folder / path} has {mean_vec.size} values, the model's embeddings have "
                f"{config.model_args.embed_dim}; remove it"
            )
    num_parameters = sum(parameter.numel() for parameter in net.model.parameters())
    return Model(config, {**net.model.state_dict(), **head}, num_parameters, num_classes, mean_vecs)


def write_model(model: Model, exp_dir: Path) -> None:
    """Write a run folder: ``config.yaml``, ``env.json``, ``models/avg_model.pt`` and the mean vectors.

    Raises:
        InputError: the folder is another run's.

    """
    config = model.config.model_copy(update={"exp_dir": str(exp_dir)})
    if (exp_dir / CONFIG).exists() and load_config(exp_dir / CONFIG) != config:
        raise InputError(f"{exp_dir} is the folder of another run (its {CONFIG} differs); give another --exp_dir")
    save(dict(model.weights), exp_dir / "models" / AVERAGE)
    for path, mean_vec in model.mean_vecs.items():
        with replacing(exp_dir / path) as temporary:
            np.save(temporary, mean_vec)
    write_run_folder(exp_dir, config, world_size=1)


def _head(weights: Mapping[str, Any], config: Config) -> tuple[dict[str, Any], int | None]:
    """Return the head's weights, empty where the config's head has others, and the number of its classes."""
    given = {str(k).removeprefix(HEAD_PREFIX): x for k, x in weights.items() if str(k).startswith(HEAD_PREFIX)}
    rows = given.get("weight", given.get("trans.2.weight"))  # WeSpeaker's softmax is the last of three layers
    per_class = config.projection_args.get("K", 1)
    if not (isinstance(rows, torch.Tensor) and rows.ndim == 2 and len(rows) >= per_class):
        return {}, None
    num_classes = len(rows) // per_class
    own = build_head(config.projection_args, embed_dim=config.model_args.embed_dim, num_classes=num_classes)
    bias = given.get("bias")
    if isinstance(bias, torch.Tensor) and bias.numel() == 1:  # SphereFace2's, (1, 1) there
        given["bias"] = bias.reshape(())
    fits = not differences(given, own.state_dict())
    return {HEAD_PREFIX + name: value for name, value in given.items()} if fits else {}, num_classes
