"""WeSpeaker's configs as ours: what each key becomes, what means nothing here, and what cannot be honoured.

Both its YAML files and the ``config.yaml`` that its training leaves in a run folder, which has more keys. What its keys
do was read in its train.py, data pipeline, projections and schedulers, and their defaults are taken where a key is
missing (https://github.com/wenet-e2e/wespeaker, 2022 to 2026).
"""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from wespeaker.errors import listing

logger = logging.getLogger(__name__)

Fate = Literal["taken", "becomes", "idle", "ours", "refused"]

# Top-level keys that WeSpeaker's training reads or saves, and that ours has not. Each of its configs has three at least
# (gpus, loss, loss_args); one of them alone in a config of ours is a mistake, and an unknown key.
MARKS = frozenset(
    {
        *("gpus", "loss", "loss_args", "enable_amp", "do_lm", "data_type", "train_data", "train_label"),
        *("reverb_data", "noise_data", "checkpoint"),
    }
)

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

# What makes an embedding, and what would make another if it were possible; the other keys are about training.
EMBEDDING = ("model", "model_args", "dataset_args.resample_rate", "dataset_args.fbank_args")
OTHER_EMBEDDING = ("dataset_args.frontend", "dataset_args.cmvn", "dataset_args.cmvn_args", "model_args.config_str")

# Where this recipe differs on purpose, and the key that brings WeSpeaker's way back.
OURS: Mapping[str, str] = {
    "dataset_args.snr_power_floor": "noise has the SNR that was drawn; 1.0e-4 is WeSpeaker's",
    "dataset_args.align_direct_path": "reverberated speech stays in time; false is WeSpeaker's",
    "dataset_args.peak_normalise": "augmented crops keep their level; true is WeSpeaker's",
    "dataloader_args.drop_last": "the last batch of an epoch may be smaller; true is WeSpeaker's",
}


@dataclass(frozen=True)
class Note:
    """What became of a key.

    key: with its section. fate: "taken" as it is; it "becomes" another key or value; "idle", it means nothing here;
    "ours", a choice of this recipe that the document does not make; "refused". text: what and why, empty for "taken".
    """

    key: str
    fate: Fate
    text: str = ""

    def __str__(self) -> str:
        """Return the sentence."""
        verb = {"taken": " is taken", "becomes": " becomes ", "idle": " has no meaning here: "}.get(self.fate, ": ")
        return f"{self.key}{verb}{self.text}"


@dataclass(frozen=True)
class Translation:
    """A document of WeSpeaker's as one of ours, to be checked as such, and a note on every key that it has."""

    values: dict[str, Any]
    notes: tuple[Note, ...]

    def of(self, fate: Fate) -> list[Note]:
        """Return the notes of one fate."""
        return [note for note in self.notes if note.fate == fate]

    def report(self) -> list[str]:
        """Return lines for people: what became of every key."""
        taken = [note.key for note in self.of("taken")]
        lines = [f"as they are: {', '.join(taken)}"] if taken else []
        lines += [str(note) for fate in ("becomes", "idle", "refused") for note in self.of(fate)]
        return lines + [f"this recipe's own is {note}" for note in self.of("ours")]

    def embedding(self) -> Translation:
        """Return what makes embeddings, and of training what a Config must have."""
        reading = _Reading({"exp_dir": "", "projection_args": {"project_type": "softmax"}})
        for name in EMBEDDING:
            if (value := _find(self.values, name)) is not None:
                reading.set(name, value)
        return Translation(reading.values, tuple(note for note in self.notes if note.key in OTHER_EMBEDDING))


def is_wespeakers(document: Mapping[Any, Any]) -> bool:
    """Tell whether a config is WeSpeaker's: it has two at least of the top-level keys that ours has not."""
    return len(MARKS & document.keys()) >= 2


def translate(document: Mapping[str, Any]) -> Translation:
    """Translate a config of WeSpeaker's.

    Args:
        document: as it was read; sections that are no mappings are left to the schema to name.

    Returns:
        Values that are not checked yet, without the keys that are idle or refused, and the notes in the order of the
        rules: what the document has no key for comes last.

    """
    reading = _Reading(document)
    for rule in _RULES:
        rule(reading)
    for name, text in IDLE.items():
        reading.drop(name, "idle", text)
    noted = {note.key for note in reading.notes}
    reading.notes += [Note(name, "taken") for name in _leaves(document) if not _settled(name, noted)]
    if _find(reading.values, "dataset_args.aug_prob") != 0:
        reading.notes += [Note(key, "ours", text) for key, text in OURS.items() if _find(document, key) is None]
    return Translation(reading.values, tuple(reading.notes))


def read_wespeakers(
    document: Mapping[str, Any], where: object, overridden: Collection[str] = ()
) -> tuple[dict[str, Any], list[str]]:
    """Translate a config of WeSpeaker's and log it, a warning for each key that has no meaning here.

    Args:
        document: as it was read.
        where: what the log calls it.
        overridden: names of our keys or sections that are given otherwise, so that theirs of that name are not refused.

    Returns:
        Values to be checked, and a sentence for each key that cannot be honoured.

    """
    translation = translate(document)
    logger.info("%s is read as a config of WeSpeaker's (tools/import_wespeaker.py --config shows it as ours)", where)
    for note in translation.of("becomes"):
        logger.info("%s", note)
    for note in translation.of("idle"):
        logger.warning("%s", note)
    if ours := translation.of("ours"):
        logger.info("this recipe's, not WeSpeaker's, are %s", listing([note.key for note in ours]))
    refused = [note for note in translation.of("refused") if not _settled(note.key, overridden)]
    return translation.values, [str(note) for note in refused]


def _settled(key: str, names: Collection[str]) -> bool:
    """Whether a key, or the section that it is in, is among the names."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


_MISSING: Any = object()


class _Reading:
    """A document while it is taken apart: what is left of it is ours. Names have their section, as ``a.b``."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.values: dict[str, Any] = copy.deepcopy(dict(document))
        self.notes: list[Note] = []

    def get(self, name: str, default: Any = None) -> Any:
        """Return a value, or the default where it or its section is missing."""
        return _find(self.values, name, default)

    def has(self, name: str) -> bool:
        """Whether there is such a key."""
        return self.get(name, _MISSING) is not _MISSING

    def set(self, name: str, value: Any) -> None:
        """Set a value; its section is made if it is missing, and left to the schema if it is no mapping."""
        *sections, key = name.split(".")
        values = self.values
        for section in sections:
            values = values.setdefault(section, {})
            if not isinstance(values, dict):
                return
        values[key] = value

    def remove(self, name: str) -> None:
        """Take a key away that is there."""
        section, _, key = name.rpartition(".")
        del (self.get(section) if section else self.values)[key]

    def note(self, name: str, fate: Fate, text: str) -> None:
        """Say what became of a key."""
        self.notes.append(Note(name, fate, text))

    def drop(self, name: str, fate: Fate, text: str) -> None:
        """Take a key away, if it is there, and say why."""
        if self.has(name):
            self.remove(name)
            self.note(name, fate, text)

    def change(self, name: str, new: Mapping[str, Any], why: str) -> None:
        """Put keys of ours in the place of one that is there, or for one that is not there and has a default."""
        missing = "" if self.has(name) else "left out, "
        if not missing:
            self.remove(name)
        for key, value in new.items():
            self.set(key, value)
        becomes = " ".join(f"{key}={value}" for key, value in new.items())
        self.note(name, "becomes", f"{becomes} ({missing}{why})")


def _find(values: Mapping[str, Any], name: str, default: Any = None) -> Any:
    found: Any = values
    for key in name.split("."):
        if not isinstance(found, Mapping) or key not in found:
            return default
        found = found[key]
    return found


def _shown(value: object) -> str:
    return repr(value)[:200]


def _leaves(values: Mapping[Any, Any], prefix: str = "") -> list[str]:
    """Name the keys that hold no section, or an empty one."""
    names = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        names += _leaves(value, f"{name}.") if isinstance(value, Mapping) and value else [name]
    return names


def _training(reading: _Reading) -> None:
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


def _fine_tuning(reading: _Reading) -> None:
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


def _loss(reading: _Reading) -> None:
    """Translate the loss, which here is the head's."""
    loss, args = reading.get("loss"), reading.get("loss_args")
    if loss in (None, "CrossEntropyLoss") or reading.get("projection_args.project_type") == "sphereface2":
        reading.drop("loss", "idle", "projection_args.project_type is the loss")
    reading.drop("loss", "refused", f"must be CrossEntropyLoss, found {_shown(loss)}; projection_args has the losses")
    if args not in (None, {}):
        reading.drop("loss_args", "refused", f"must be empty, found {_shown(args)}; projection_args has the losses")


def _data(reading: _Reading) -> None:
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


def _model(reading: _Reading) -> None:
    """Translate the options of backbones that are no choice here."""
    if reading.get("model_args.config_str", "batchnorm-relu") != "batchnorm-relu":
        text = f"must be batchnorm-relu, found {_shown(reading.get('model_args.config_str'))}"
        reading.drop("model_args.config_str", "refused", text)


def _projection(reading: _Reading) -> None:
    """Translate the projection; a name that only this recipe has is taken, with its keys."""
    name = reading.get("projection_args.project_type")
    if isinstance(name, str) and name in OTHER_PROJECTIONS:
        reading.note("projection_args.project_type", "refused", f"{name}: {OTHER_PROJECTIONS[name]}")
        reading.set("projection_args", {"project_type": name})
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


def _rates(reading: _Reading) -> None:
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


_RULES: tuple[Callable[[_Reading], None], ...] = (_training, _loss, _data, _model, _projection, _rates)
