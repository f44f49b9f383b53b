"""What the keys of WeSpeaker's configs are here: its meanings and defaults, key by key.

What its keys do was read in its train.py, data pipeline, projections and schedulers
(https://github.com/wenet-e2e/wespeaker, 2022 to 2026).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from wespeaker.interchange.reading import Reading

# Keys that change nothing here, and what is there instead.
IDLE: Mapping[str, str] = {
    "gpus": "run.sh --gpus or --nproc says where to train",
    "loss_args": "the loss has the keys of projection_args",
    "train_data": "the command line names the training set (run.sh --data, tools/train.py --train_data)",
    "train_label": "the speakers are in the list of the training set",
    "reverb_data": "the command line names the room responses (run.sh --data, tools/train.py --reverb_data)",
    "noise_data": "the command line names the noises (run.sh --data, tools/train.py --noise_data)",
    "dataset_args.sample_num_per_epoch": "an epoch is all utterances",
    "dataset_args.shuffle": "each epoch has an order of its own over all utterances",
    "dataset_args.shuffle_args": "there is no shuffle buffer, for crops are read out of order",
    "dataset_args.filter_args.max_num_frames": "it bounds WeSpeaker's shuffle buffer (and makes crops near the ends "
    "of longer utterances rarer); here a crop may lie anywhere in its utterance, of which no more is read",
    "dataset_args.frontend": "fbank is the only one",
    "dataset_args.cmvn": "the mean over time is always subtracted",
    "dataset_args.cmvn_args": "the mean over time is always subtracted, the variance left",
    "dataset_args.speed_perturb_mode": "each crop has one speed, drawn anew in each epoch",
    "model_args.config_str": "it is the only order of layers",
    "projection_args.embed_dim": "it is model_args.embed_dim",
    "projection_args.num_class": "the classes are counted in the training set",
    "projection_args.do_lm": "see do_lm",
    "projection_args.margin": "margin_update says what the margin is",
    "margin_update.epoch_iter": "the steps of an epoch are counted in the training set",
    "optimizer_args.lr": "scheduler_args has the rates",
    "scheduler_args.num_epochs": "it is num_epochs",
    "scheduler_args.epoch_iter": "the steps of an epoch are counted in the training set",
    "scheduler_args.process_num": "scale_ratio: auto counts the processes",
}

# What WeSpeaker's projections read beside scale. Its others are not the losses of the same name here.
PROJECTION_ARGS: Mapping[str, tuple[str, ...]] = {
    "add_margin": (),
    "arc_margin": ("easy_margin",),
    "arc_margin_intertopk_subcenter": ("easy_margin", "K", "mp", "k_top"),
    "sphereface2": ("t", "lanbuda", "margin_type"),
}
OTHER_PROJECTIONS: Mapping[str, str] = {
    "softmax": "WeSpeaker's normalises and rectifies the embedding before its linear layer; give "
    "projection_args.project_type=softmax for the cross-entropy of the embedding itself",
    "sphere": "WeSpeaker's is the A-Softmax of 2017 (margin 4, annealed), which is not here; give "
    "projection_args.project_type=sphere for SphereFace-R, or another loss",
}

# Where this recipe differs on purpose, and the key that brings WeSpeaker's way back.
OURS: Mapping[str, str] = {
    "dataset_args.snr_power_floor": "noise has the SNR that was drawn; 1.0e-4 is WeSpeaker's",
    "dataset_args.align_direct_path": "reverberated speech stays in time; false is WeSpeaker's",
    "dataset_args.peak_normalise": "augmented crops keep their level; true is WeSpeaker's",
    "dataloader_args.drop_last": "the last batch of an epoch may be smaller; true is WeSpeaker's",
}


def _training(reading: Reading) -> None:
    """Translate what says how to train: precision, fine-tuning, and where to start."""
    amp = reading.get("enable_amp")
    if reading.has("precision"):
        reading.drop("enable_amp", "idle", "precision says it")
    elif amp is True:
        reading.change("enable_amp", {"precision": "fp16"}, "a scaled loss as there, with the head in float32")
    elif amp is False or amp is None:
        reading.drop("enable_amp", "idle", "precision is float32 unless it is given")
    else:
        reading.drop("enable_amp", "refused", f"must be true or false, found {_shown(amp)}")
    if reading.get("do_lm") is True:
        _fine_tuning(reading)
    reading.drop("do_lm", "idle", "a run that starts from model_init is a fine-tuning")
    start, checkpoint = reading.get("model_init"), reading.get("checkpoint")
    if isinstance(checkpoint, str) and re.search(r"(^|/)model_0\.pt$", checkpoint):
        reading.drop("model_init", "idle", "the checkpoint is loaded after it")
        why = "the weights and prototypes before the first epoch"
        reading.change("checkpoint", {"model_init": checkpoint, "head_init": "keep"}, why)
    elif start is not None and not reading.has("head_init"):
        reading.change("model_init", {"model_init": start, "head_init": "reinit"}, "WeSpeaker takes no prototypes")
    reading.drop("checkpoint", "idle", "a run goes on in its folder by itself; model_init starts from other weights")


def _fine_tuning(reading: Reading) -> None:
    """Say what WeSpeaker's mode of fine-tuning with a large margin is here."""
    text = "margin, crops and rates of a fine-tuning are in this config, and model_init is where it starts from"
    if reading.get("dataset_args.speed_perturb") is False and reading.has("projection_args.num_class"):
        text += (
            "; WeSpeaker writes speed_perturb: false here and perturbs the speed all the same, with three classes a "
            "speaker: give dataset_args.speed_perturb=true if the prototypes are to be kept"
        )
    if not (reading.get("model_init") or reading.get("checkpoint")):
        text += "; without it the weights are random: give model_init=BASE/models/avg_model.pt"
    reading.drop("do_lm", "idle", text)
    if reading.get("projection_args.project_type") == "arc_margin_intertopk_subcenter":
        why = "WeSpeaker's fine-tuning has no penalty on the nearest negatives"
        reading.change("projection_args.k_top", {"projection_args.k_top": 0}, why)
        reading.change("projection_args.mp", {"projection_args.mp": 0.0}, why)


def _loss(reading: Reading) -> None:
    """Translate the loss, which here is the head's."""
    loss, args = reading.get("loss"), reading.get("loss_args")
    if loss in (None, "CrossEntropyLoss") or reading.get("projection_args.project_type") == "sphereface2":
        reading.drop("loss", "idle", "projection_args.project_type is the loss")
    reading.drop("loss", "refused", f"must be CrossEntropyLoss, found {_shown(loss)}; projection_args has the losses")
    if args not in (None, {}):
        reading.drop("loss_args", "refused", f"must be empty, found {_shown(args)}; projection_args has the losses")


def _data(reading: Reading) -> None:
    """Translate what a training example is."""
    if reading.get("data_type") == "feat":
        reading.drop("data_type", "refused", "feat is not read here; train on audio, with run.sh --data_type shard")
    reading.drop("data_type", "idle", "the command line says what the list is (run.sh --data_type)")
    if reading.has("train_data") and not (reading.get("reverb_data") and reading.get("noise_data")):
        why = "WeSpeaker augments nothing without both noise_data and reverb_data"
        reading.change("dataset_args.aug_prob", {"dataset_args.aug_prob": 0.0}, why)
    for key, (holds, text) in _NEEDED.items():
        if reading.has(key) and not holds(value := reading.get(key)):
            reading.drop(key, "refused", f"{_shown(value)} is not possible here: {text}")
    longest, crop = reading.get("dataset_args.filter_args.max_num_frames", 800), reading.get("dataset_args.num_frms")
    shortened = isinstance(longest, int) and isinstance(crop, int) and longest < crop
    if shortened and reading.get("dataset_args.filter", True) is True:
        text = f"WeSpeaker cuts utterances to {longest} frames (filter_args.max_num_frames) and repeats them to {crop}"
        reading.note("dataset_args.num_frms", "refused", f"{text}; give at most {longest}")
    if reading.get("dataset_args.spec_aug") is True:
        text = "each utterance has bands of its own; WeSpeaker hides the same ones in all of a batch"
        reading.note("dataset_args.spec_aug", "ours", text)


# Values without which an example would not be WeSpeaker's here.
_CMVN = {"norm_mean": True, "norm_var": False}
_NEEDED: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "dataset_args.sample_num_per_epoch": (lambda x: not x, "an epoch is all utterances; give 0, and other num_epochs"),
    "dataset_args.shuffle": (lambda x: x is True, "utterances always come in a drawn order; give true"),
    "dataset_args.speed_perturb_mode": (lambda x: x is None, "a crop has one speed; leave the key out"),
    "dataset_args.frontend": (lambda x: x == "fbank", "fbank is the only front end; models of others do not run here"),
    "dataset_args.cmvn": (lambda x: x is True, "the mean over time is always subtracted"),
    "dataset_args.cmvn_args": (
        lambda x: isinstance(x, dict) and _CMVN | x == _CMVN,
        "the mean over time is always subtracted and the variance left",
    ),
}


def _model(reading: Reading) -> None:
    """Translate the options of backbones that are no choice here."""
    if reading.get("model_args.config_str", "batchnorm-relu") != "batchnorm-relu":
        text = f"must be batchnorm-relu, found {_shown(reading.get('model_args.config_str'))}"
        reading.drop("model_args.config_str", "refused", text)


def _projection(reading: Reading) -> None:
    """Translate the projection; a name that only this recipe has is taken, with its keys."""
    name = reading.get("projection_args.project_type")
    if isinstance(name, str) and name in OTHER_PROJECTIONS:
        reading.note("projection_args.project_type", "refused", f"{name}: {OTHER_PROJECTIONS[name]}")
        reading.set("projection_args", {"project_type": "softmax"})  # so that none of its keys is wrong, too
    if not isinstance(name, str) or name not in PROJECTION_ARGS:
        return
    for key in sorted({key for keys in PROJECTION_ARGS.values() for key in keys} - set(PROJECTION_ARGS[name])):
        reading.drop(f"projection_args.{key}", "idle", f"{name} does not read it")
    if name != "sphereface2":
        return
    if (kind := reading.get("projection_args.margin_type", "C")) != "C":
        text = f"{_shown(kind)} is not here; give C, with a margin for cosines"
        reading.drop("projection_args.margin_type", "refused", text)
    reading.drop("projection_args.margin_type", "idle", "the margin is on the cosine (C)")
    weight, scale = reading.get("projection_args.lanbuda", 0.7), reading.get("projection_args.scale", 32.0)
    reading.change("projection_args.lanbuda", {"projection_args.positive_weight": weight}, "λ of the paper")
    why = "WeSpeaker does not divide the loss by its scale"
    reading.change("projection_args.scale", {"projection_args.scale": scale, "projection_args.loss_weight": scale}, why)
    text = "its bias starts where the loss is least; WeSpeaker's starts at 0"
    reading.note("projection_args.project_type", "ours", text)


def _rates(reading: Reading) -> None:
    """Translate optimiser and schedule, where defaults differ."""
    if reading.get("optimizer") == "SGD":
        for key, value in {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0}.items():
            if not reading.has(name := f"optimizer_args.{key}"):
                reading.change(name, {name: value}, "torch's default")
    if reading.get("scheduler") == "ExponentialDecrease":
        if not reading.has(name := "scheduler_args.warm_from_zero"):
            reading.change(name, {name: False}, "WeSpeaker's default")
        if reading.has(name := "scheduler_args.scale_ratio"):
            reading.change(name, {name: "auto"}, "WeSpeaker sets it in each run to processes x batch_size / 64")


# In this order, then what is idle.
RULES: tuple[Callable[[Reading], None], ...] = (_training, _loss, _data, _model, _projection, _rates)


def _shown(value: object) -> str:
    return repr(value)[:200]
