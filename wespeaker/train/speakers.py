"""The task of recognising speakers: crops of utterances, a backbone on filterbanks, and dev trials."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from wespeaker.config import Config
from wespeaker.data.augment import Augmenter
from wespeaker.data.bank import read_bank
from wespeaker.data.corpora import uses_noise, uses_reverb
from wespeaker.data.dataset import TrainingSet, collate, read_training_list
from wespeaker.speaker_net import SpeakerNet
from wespeaker.train.dev import DevTrials, dev_eer
from wespeaker.train.task import Task


@dataclass(frozen=True)
class TrainingData:
    """The files that a run reads."""

    train_list: Path  # raw.list or shard.list
    data_type: str  # raw or shard
    noise_data: Path | None = None
    reverb_data: Path | None = None


def speaker_task(config: Config, data: TrainingData, *, dev: DevTrials | None = None) -> Task:
    """Read the lists of a training set and say how it is trained on.

    Args:
        config: the experiment.
        data: what to train on.
        dev: trials to show progress on; None: none.

    Raises:
        InputError: the data do not fit the config.

    """
    dataset = _training_set(config, data)

    def evaluate(network: nn.Module, dev: DevTrials) -> dict[str, float]:
        assert isinstance(network, SpeakerNet)
        rate, num_workers = config.dataset_args.resample_rate, config.dataloader_args.num_workers
        return {"dev_eer": dev_eer(network, dev, rate=rate, num_workers=num_workers)}

    return Task(
        dataset=dataset,
        collate=collate,
        num_classes=dataset.num_classes,
        embed_dim=config.model_args.embed_dim,
        network=lambda: SpeakerNet(config),
        backbone=lambda network: network.get_submodule("model"),
        about=f"{config.model} on {len(dataset)} utterances of {len(dataset.speakers)} speakers, "
        f"at {len(dataset.speeds)} speeds",
        facts={"utterances": len(dataset), "classes": dataset.num_classes, "speakers": list(dataset.speakers)},
        evaluate=None if dev is None else lambda network: evaluate(network, dev),
        max_bad_utts=config.dataset_args.max_bad_utts,
    )


def _training_set(config: Config, data: TrainingData) -> TrainingSet:
    args = config.dataset_args
    utterances = read_training_list(data.train_list, data.data_type, args)
    augmenter = Augmenter(
        noises=read_bank(data.noise_data) if data.noise_data and uses_noise(config) else (),
        rirs=read_bank(data.reverb_data) if data.reverb_data and uses_reverb(config) else (),
        aug_prob=args.aug_prob,
        reverb_share=args.reverb_share,
        rate=args.resample_rate,
        align_direct_path=args.align_direct_path,
        power_floor=args.snr_power_floor,
        peak_normalise=args.peak_normalise,
    )
    return TrainingSet(utterances, args, augmenter, seed=config.seed)
