"""What WeSpeaker's training reads and writes, as tests need it: its keys, in documents of our own values."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from written_out import resnet_keys

# The keys of its YAML files (their values are this test's): none of them is ours alone.
RECIPE: dict[str, Any] = {
    "exp_dir": "exp/theirs",
    "gpus": "[0,1]",
    "num_avg": 3,
    "enable_amp": False,
    "seed": 7,
    "num_epochs": 30,
    "save_epoch_interval": 2,
    "log_batch_interval": 50,
    "dataloader_args": {
        "batch_size": 96,
        "num_workers": 3,
        "pin_memory": False,
        "prefetch_factor": 2,
        "drop_last": True,
    },
    "dataset_args": {
        "sample_num_per_epoch": 0,
        "shuffle": True,
        "shuffle_args": {"shuffle_size": 1000},
        "filter": True,
        "filter_args": {"min_num_frames": 90, "max_num_frames": 700},
        "resample_rate": 16000,
        "speed_perturb": True,
        "num_frms": 180,
        "aug_prob": 0.55,
        "frontend": "fbank",
        "fbank_args": {"num_mel_bins": 64, "frame_shift": 10, "frame_length": 25, "dither": 0.9},
        "spec_aug": False,
        "spec_aug_args": {"num_t_mask": 2, "num_f_mask": 1, "max_t": 9, "max_f": 7, "prob": 0.5},
    },
    "model": "ResNet34",
    "model_init": None,
    "model_args": {"feat_dim": 64, "embed_dim": 128, "pooling_func": "TSTP", "two_emb_layer": False},
    "projection_args": {"project_type": "arc_margin", "scale": 30.0, "easy_margin": False},
    "margin_scheduler": "MarginScheduler",
    "margin_update": {
        "initial_margin": 0.0,
        "final_margin": 0.25,
        "increase_start_epoch": 5,
        "fix_start_epoch": 9,
        "update_margin": True,
        "increase_type": "exp",
    },
    "loss": "CrossEntropyLoss",
    "loss_args": {},
    "optimizer": "SGD",
    "optimizer_args": {"momentum": 0.8, "nesterov": True, "weight_decay": 0.0002},
    "scheduler": "ExponentialDecrease",
    "scheduler_args": {"initial_lr": 0.2, "final_lr": 0.0001, "warm_up_epoch": 4, "warm_from_zero": True},
}

# What its training adds before it saves config.yaml in the run folder.
SAVED: dict[str, Any] = {
    "checkpoint": None,
    "data_type": "shard",
    "train_data": "data/vox2_dev/shard.list",
    "train_label": "data/vox2_dev/utt2spk",
    "reverb_data": "data/rirs/lmdb",
    "noise_data": "data/musan/lmdb",
    "gpus": [0, 1],
    "projection_args": {"embed_dim": 128, "num_class": 600, "do_lm": False},
    "optimizer_args": {"lr": 0.2},
    "scheduler_args": {"num_epochs": 30, "epoch_iter": 512, "scale_ratio": 3.0},
    "margin_update": {"epoch_iter": 512},
}


RESNET18 = (2, 2, 2, 2)  # blocks in each stage


def recipe(**changes: Any) -> dict[str, Any]:
    """The YAML's document; a change is merged into the section of its name, and None as a section's value stays."""
    return merged(RECIPE, changes)


def saved(**changes: Any) -> dict[str, Any]:
    """The document that training saves."""
    return merged(merged(RECIPE, SAVED), changes)


def merged(document: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    new = copy.deepcopy(document)
    for key, value in changes.items():
        inside = isinstance(value, dict) and isinstance(new.get(key), dict)
        new[key] = merged(new[key], value) if inside else copy.deepcopy(value)
    return new


def resnet18_weights(*, embed_dim: int, num_classes: int, two_emb_layer: bool = False) -> dict[str, torch.Tensor]:
    """Random weights of WeSpeaker's ResNet18 and its head, as its average_model.py leaves them: all in fractions."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for key, shape in resnet_keys(RESNET18, embed_dim=embed_dim, two_emb_layer=two_emb_layer).items():
        fan_in = max(1, torch.Size(shape[1:]).numel())
        weights[key] = torch.randn(shape, generator=generator) * (2 / fan_in) ** 0.5
        if key.endswith("running_var") or (key.endswith("weight") and len(shape) == 1):
            weights[key] = torch.rand(shape, generator=generator) + 0.5
        elif key.endswith("num_batches_tracked"):
            weights[key] = torch.tensor(1234.5)
    weights["projection.weight"] = torch.randn(num_classes, embed_dim, generator=generator)
    return weights


def write_folder(folder: Path, document: dict[str, Any], weights: Mapping[str, torch.Tensor]) -> Path:
    """Write a folder as WeSpeaker publishes a model: both files side by side."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.dump(document))
    torch.save(dict(weights), folder / "avg_model.pt")
    return folder
