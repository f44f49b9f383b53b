"""Values of a config that do not go together: those that stop a run (problems), and those that are warned of (doubts).

Each is a sentence with the keys, the values and what to give instead. What one value may be is the schema's matter, see
`config`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from wespeaker.losses import PROJECT_TYPES, check_margin, zero_loss_gap, zero_loss_margin
from wespeaker.losses.screening import fast_bfloat16
from wespeaker.models import min_frames

if TYPE_CHECKING:
    from wespeaker.config import Config, TrainConfig

# Gaps of cosines between the label and the nearest other class: none is above 2, hardly any above 1, and the good
# settings of the Q-Margin paper ask for 0.33 to 0.66.
LARGEST_GAP, SEEN_GAP, GOOD_GAP, LOW_GAP = 2.0, 1.0, 0.7, 0.3
# A crop that repeats its utterance more often than this is hardly speech any more.
MAX_REPEATS = 3


def problems(config: TrainConfig) -> list[str]:
    """Say what stops a run of any task."""
    found = []
    if config.num_avg > config.num_epochs:
        found.append(f"num_avg ({config.num_avg}) must not exceed num_epochs ({config.num_epochs})")
    if config.scheduler_args.warm_up_epoch > config.num_epochs:
        found.append(
            f"scheduler_args.warm_up_epoch ({config.scheduler_args.warm_up_epoch:g}) "
            f"must not exceed num_epochs ({config.num_epochs})"
        )
    if config.projection_args.get("weight_grad") == "sparse" and config.optimizer != "SGD":
        found.append(
            f"projection_args.weight_grad: sparse needs optimizer SGD, which takes it; found {config.optimizer}"
        )
    if _margin_overshoots(config):
        found += _unreachable_gap(config, above=LARGEST_GAP)
    return found + _meaningless_margins(config)


def speaker_problems(config: Config) -> list[str]:
    """Say what else stops a run with speakers."""
    found, data, bands = [], config.dataset_args, config.dataset_args.spec_aug_args
    feat_dim, num_mel_bins = config.model_args.feat_dim, data.fbank_args.num_mel_bins
    if feat_dim != num_mel_bins:
        found.append(
            f"model_args.feat_dim ({feat_dim}) must equal dataset_args.fbank_args.num_mel_bins ({num_mel_bins})"
        )
    if data.num_frms < (shortest := min_frames(config.model)):
        found.append(f"dataset_args.num_frms ({data.num_frms}) must be at least {shortest}, which {config.model} needs")
    if config.dataloader_args.batch_size == 1:
        found.append("dataloader_args.batch_size must be at least 2: batch normalisation knows no variance of one")
    for number, widest, size, of in (
        ("num_t_mask", "max_t", data.num_frms, "num_frms"),
        ("num_f_mask", "max_f", num_mel_bins, "fbank_args.num_mel_bins"),
    ):
        if data.spec_aug and getattr(bands, number) and getattr(bands, widest) >= size:
            found.append(
                f"dataset_args.spec_aug_args.{widest} ({getattr(bands, widest)}) must be below "
                f"dataset_args.{of} ({size}), else a band hides all of an example"
            )
    return found


def doubts(config: TrainConfig, *, device: str) -> list[str]:
    """Say what is hardly meant in a config of any task.

    Args:
        config: a valid one.
        device: torch's type of the one that it is to run on, such as ``cuda``.

    """
    return [
        *_unreachable_gap(config, above=SEEN_GAP),
        *_late_margin(config),
        *_late_changes(config),
        *_slow_precision(config, device),
    ]


def speaker_doubts(config: Config) -> list[str]:
    """Say what is hardly meant in a config of speakers beside that."""
    found, data, loader = [], config.dataset_args, config.dataloader_args
    shortest = data.filter_args.min_num_frames if data.filter else 0
    if data.num_frms > MAX_REPEATS * shortest:
        found.append(
            f"a crop of {data.num_frms} frames (dataset_args.num_frms) may repeat an utterance "
            + (f"{-(-data.num_frms // shortest)} times" if shortest else "any number of times")
            + f"; give dataset_args.filter_args.min_num_frames={-(-data.num_frms // 2)}"
            + ("" if data.filter else " and dataset_args.filter=true")
        )
    if loader.batch_size < 4 and not loader.drop_last:
        found.append(
            f"with dataloader_args.batch_size ({loader.batch_size}) below 4 an epoch's last batch may be of one "
            f"utterance, of which batch normalisation knows no variance; give dataloader_args.drop_last=true"
        )
    return found


def final_gap(config: TrainConfig) -> float:
    """Return the gap of cosines from which a sample's loss is exactly 0 at the final margin; inf: from none."""
    return gap_at(config, config.margin_update.final)


def gap_at(config: TrainConfig, margin: float) -> float:
    """Return the gap of cosines from which a sample's loss is exactly 0 at a margin; inf: from none.

    It is what the head's `zero_loss_gap` says, without a head: a margin acts on it in the reference measure alone.
    """
    args = config.projection_args
    return _gap(_alpha(args), args.get("scale", 1.0), margin if _in_prior(args) else 0.0)


def margin_of_gap(projection_args: Mapping[str, Any], gap: float) -> float:
    """Return the margin at which a sample's loss is exactly 0 from a gap of cosines on, the inverse of `gap_at`.

    Args:
        projection_args: valid and complete, see `validate_projection_args`.
        gap: of cosines.

    Raises:
        ValueError: with this loss no margin has this gap; what to give instead.

    """
    name, alpha = projection_args["project_type"], _alpha(projection_args)
    if alpha == 1.0:
        raise ValueError(f"{name} with alpha 1 never has a loss of zero, whatever its margin; give final_margin")
    if not _in_prior(projection_args):
        raise ValueError(f"the margin of {name} is not in the reference measure and moves no gap; give final_margin")
    return zero_loss_margin(alpha, projection_args["scale"], gap)


def _alpha(projection_args: Mapping[str, Any]) -> float:
    fixed = PROJECT_TYPES[projection_args["project_type"]].alpha
    return float(projection_args["alpha"]) if fixed is None else fixed


def _in_prior(projection_args: Mapping[str, Any]) -> bool:
    in_prior = PROJECT_TYPES[projection_args["project_type"]].place == "log_prior"
    return in_prior or projection_args.get("place") == "log_q"


def _gap(alpha: float, scale: float, margin: float) -> float:
    try:
        return zero_loss_gap(alpha, scale, margin)
    except OverflowError:
        return sys.float_info.max


def _meaningless_margins(config: TrainConfig) -> list[str]:
    """Say which margins of the schedule mean nothing to this loss, as 0 to one that multiplies the angle."""
    found = []
    for key in ("initial_margin", "final_margin") if config.margin_update.update_margin else ("initial_margin",):
        try:
            check_margin(config.projection_args["project_type"], getattr(config.margin_update, key))
        except ValueError as error:
            found.append(f"margin_update.{key}: {error}")
    return found


def _margin_overshoots(config: TrainConfig) -> bool:
    """Tell whether it is the margin that makes the gap e^{bsm}/(bs), b = α - 1, large: bsm is beyond its minimum at 1.

    Below it a large gap comes from a small bs: the loss is near a cross-entropy, which never becomes zero and trains.
    """
    args = config.projection_args
    pull = (_alpha(args) - 1.0) * args.get("scale", 1.0) * config.margin_update.final
    return _in_prior(args) and pull >= 1.0


def _unreachable_gap(config: TrainConfig, *, above: float) -> list[str]:
    """Say that the final margin asks for a gap that no sample has, or that hardly one has."""
    gap = final_gap(config)
    if math.isinf(gap) or gap <= above:
        return []
    args, update = config.projection_args, config.margin_update
    margin = update.final if _in_prior(args) else 0.0
    asks = f"alpha {_alpha(args):g} and projection_args.scale ({args['scale']:g})"
    if margin:
        asks = f"margin_update.{update.final_key} ({getattr(update, update.final_key):g}) with {asks}"
    seen = "more than the 2 that there can be" if gap > LARGEST_GAP else "which hardly a sample reaches"
    return [
        f"{asks} asks the label's cosine for a lead of {gap:.3g} before a sample's loss is zero (zero_loss_gap), "
        f"{seen}: losses do not become zero and training may suffer; leads of {LOW_GAP:g} to {GOOD_GAP:g} train well: "
        f"give {' or '.join(_remedies(config, margin))}"
    ]


def _remedies(config: TrainConfig, margin: float) -> list[str]:
    """Return changes that bring the gap e^{bsm}/(bs), b = α - 1, where training is good, each with its gap."""
    alpha, scale = _alpha(config.projection_args), config.projection_args["scale"]
    key, b = config.margin_update.final_key, alpha - 1.0

    def remedy(new_margin: float, new_scale: float) -> str:
        new_margin, new_scale = float(f"{new_margin:.2g}"), float(f"{new_scale:.2g}")
        lead = f"{_gap(alpha, new_scale, new_margin):.2g}"
        new = lead if key == "final_gap" else f"{new_margin:g}"
        changes = [f"margin_update.{key}={new}"] if key == "final_gap" or new_margin != margin else []
        changes += [f"projection_args.scale={new_scale:g}"] if new_scale != scale else []
        return f"{' with '.join(changes)} (a lead of {lead})"

    if not margin:
        return [remedy(0.0, 1.0 / (b * GOOD_GAP))]
    found = []
    if b * scale * GOOD_GAP > 1.0:  # else no margin is small enough
        found.append(remedy(math.log(b * scale * GOOD_GAP) / (b * scale), scale))
    if math.e * margin <= SEEN_GAP:  # the least gap of this margin, at the scale 1 / (b m)
        found.append(remedy(margin, 1.0 / (b * margin)))
    return found or [remedy(0.25, 1.0 / (b * 0.25))]  # a gap of e / 4


def _late_margin(config: TrainConfig) -> list[str]:
    """Say that the run ends, or that its average begins, before the margin is what it should become."""
    margin, epochs = config.margin_update, config.num_epochs
    if not margin.update_margin or margin.final_margin == margin.initial_margin:
        return []
    if margin.increase_start_epoch > epochs:
        return [
            f"the margin stays at margin_update.initial_margin ({margin.initial_margin:g}), for num_epochs ({epochs}) "
            f"ends before margin_update.increase_start_epoch ({margin.increase_start_epoch:g})"
        ]
    if margin.fix_start_epoch > epochs:
        return [
            f"margin_update.final_margin ({margin.final_margin:g}) is never reached, for num_epochs ({epochs}) ends "
            f"before margin_update.fix_start_epoch ({margin.fix_start_epoch:g})"
        ]
    if margin.fix_start_epoch > (first := epochs - config.num_avg + 1):
        return [
            f"the average of the last num_avg ({config.num_avg}) epochs begins with epoch {first}, when the margin "
            f"still rises (margin_update.fix_start_epoch is {margin.fix_start_epoch:g})"
        ]
    return []


def _late_changes(config: TrainConfig) -> list[str]:
    """Say what is to happen after the last epoch."""
    found, epochs = [], config.num_epochs
    milestones: list[float] = getattr(config.scheduler_args, "milestones", [])
    if late := [f"{epoch:g}" for epoch in milestones if epoch >= epochs]:
        found.append(
            f"the learning rate never falls at scheduler_args.milestones {', '.join(late)}, for num_epochs is {epochs}"
        )
    if config.projection_args.get("reinit_epoch", 0) > epochs:
        found.append(
            f"prototypes are never re-initialised, for num_epochs ({epochs}) ends before "
            f"projection_args.reinit_epoch ({config.projection_args['reinit_epoch']})"
        )
    return found


def _slow_precision(config: TrainConfig, device: str) -> list[str]:
    slow = config.precision == "fp16" or not fast_bfloat16(torch.device("cpu"))
    if device != "cpu" or config.precision == "float32" or not slow:
        return []
    return [f"this CPU does not compute {config.precision} in hardware, which may be slower than precision=float32"]
