"""The card of a network: what it is, where its weights come from, and what was measured with them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import wespeaker
from wespeaker.config import Config
from wespeaker.deploy.card import Card, Decision, FbankSettings, model_sha256
from wespeaker.documents import parse_json
from wespeaker.eval.fingerprint import file_fingerprint
from wespeaker.speaker_net import SpeakerNet
from wespeaker.train.runlog import CONFIG, ENVIRONMENT


def describe(
    net: SpeakerNet,
    config: Config,
    *,
    training: Mapping[str, Any] | None = None,
    mean_vec: NDArray[np.floating] | None = None,
    decision: Decision | None = None,
) -> Card:
    """Return the card of a network.

    Args:
        net: the network with its weights.
        config: what it was built from.
        training: where the weights come from, as of `origin`.
        mean_vec: (D,), to be subtracted from embeddings before their cosine; None for nothing.
        decision: what was measured with the embeddings less this mean.

    """
    data = config.dataset_args
    fbank = FbankSettings(**data.fbank_args.model_dump(include=set(FbankSettings.model_fields)))
    model_args = config.model_args.model_dump()
    weights = {name: values.cpu().numpy() for name, values in net.model.state_dict().items()}
    return Card(
        wespeaker_q=wespeaker.__version__,
        fingerprint=model_sha256(
            weights, model=config.model, model_args=model_args, fbank=fbank, sample_rate=data.resample_rate
        ),
        model=config.model,
        model_args=model_args,
        embed_dim=config.model_args.embed_dim,
        sample_rate=data.resample_rate,
        min_samples=net.min_samples,
        fbank=fbank,
        training=dict(training or {}),
        mean_vec=None if mean_vec is None else tuple(mean_vec.tolist()),
        decision=decision,
    )


def origin(folder: Path, config: Config, weights: Path) -> dict[str, Any]:
    """Say where weights come from: the run's folder, config and environment as far as they are known, and the file.

    Args:
        folder: of the run, with config.yaml; env.json may be missing.
        config: what config.yaml holds.
        weights: the file of the weights.

    Raises:
        InputError: env.json is there and is not what a run writes.

    """
    path = folder / ENVIRONMENT
    environment = parse_json(path.read_text(encoding="utf-8", errors="replace"), path) if path.is_file() else {}
    known = {key: environment[key] for key in ("started", "git_revision", "wespeaker_q") if key in environment}
    return {
        "exp_dir": config.exp_dir,
        "config_sha256": file_fingerprint(folder / CONFIG)["sha256"],
        "checkpoint": weights.name,
        "checkpoint_sha256": file_fingerprint(weights)["sha256"],
        **known,
    }
