"""The task of recognising faces: images of identities, a backbone on them, and pairs to show progress on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from wespeaker.config import load_config
from wespeaker.data.faces.dataset import FaceSet, FaceSource, ImageSource, collate
from wespeaker.data.faces.packs import FacePack
from wespeaker.data.faces.sources import ListedImages
from wespeaker.data.trials import read_trials
from wespeaker.errors import InputError
from wespeaker.eval.faces.extraction import embed_images
from wespeaker.eval.faces.folds import fold_accuracies
from wespeaker.eval.faces.verification import pair_scores
from wespeaker.eval.metrics import eer, error_tradeoff
from wespeaker.face_config import FaceConfig
from wespeaker.face_net import build_face_net
from wespeaker.train.checkpoint import AVERAGE, load, load_backbone
from wespeaker.train.task import Task


@dataclass(frozen=True)
class DevPairs:
    """N pairs among images; for showing progress, never for choosing a model."""

    images: ImageSource
    pairs: NDArray[np.integer[Any]]  # (N, 2), images
    is_target: NDArray[np.bool_]  # (N,)


def read_dev_pairs(pairs: Path, image_dir: Path) -> DevPairs:
    """Read a list of pairs whose images are paths in a folder.

    Raises:
        InputError: the list cannot be read, or images are missing.

    """
    trials = read_trials(pairs)
    return DevPairs(
        ListedImages(image_dir, trials.utts), np.stack([trials.enroll, trials.test], axis=1), trials.is_target
    )


def read_dev_pack(path: Path) -> DevPairs:
    """Read a verification pack.

    Raises:
        InputError: as `FacePack` does.

    """
    pack = FacePack(path)
    return DevPairs(pack, np.arange(len(pack)).reshape(-1, 2), pack.is_same)


def face_task(config: FaceConfig, source: FaceSource, *, dev: DevPairs | None = None) -> Task:
    """Say how a training set of faces is trained on.

    Args:
        config: the experiment.
        source: the images.
        dev: pairs to show progress on; None: none.

    Raises:
        InputError: there are fewer than two identities.

    """
    args = config.dataset_args
    dataset = FaceSet(source, size=args.image_size, channels=args.channels, seed=config.seed)

    def evaluate(network: nn.Module, dev: DevPairs) -> dict[str, float]:
        embeddings = embed_images(network, dev.images, num_workers=config.dataloader_args.num_workers, desc="dev pairs")
        scores = pair_scores(embeddings, dev.pairs)
        accuracy = fold_accuracies(scores, dev.is_target).mean
        return {"dev_eer": eer(error_tradeoff(scores, dev.is_target)), "dev_accuracy": accuracy}

    return Task(
        dataset=dataset,
        collate=collate,
        num_classes=dataset.num_classes,
        embed_dim=config.model_args.embed_dim,
        network=lambda: build_face_net(config),
        about=f"{config.model} on {len(dataset)} images of {dataset.num_classes} identities",
        facts={"images": len(dataset), "classes": dataset.num_classes, "identities": dataset.class_names},
        evaluate=None if dev is None else lambda network: evaluate(network, dev),
        max_bad_utts=args.max_bad_utts,
    )


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
