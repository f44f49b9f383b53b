"""What a config will do, to read before it is run: settings, parameters, memory, schedule and zero-loss gap."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from wespeaker.checks import GOOD_GAP, LOW_GAP, final_gap, gap_at
from wespeaker.config import OPTIMIZER_ARGS, Config, Section, StepDecreaseArgs, TrainConfig
from wespeaker.data.dataset import count_classes, read_training_list
from wespeaker.data.sampler import RunSampler
from wespeaker.errors import InputError
from wespeaker.losses import PROJECT_TYPES
from wespeaker.models import build_model
from wespeaker.nested import flatten
from wespeaker.train import schedules
from wespeaker.train.memory import HeadSize, head_size, head_step, network_step, optimizer_copies

COMMENT_COLUMN = 40  # of the settings, where what is noted of a value begins
NAME_WIDTH = 34  # of the tables' first column
FINE = 1000  # steps an epoch for want of data: rates and margins are functions of the epoch but for their fineness
FLOAT = 4  # bytes; weights, gradients and states are in float32 whatever the precision is


@dataclass(frozen=True)
class Plan:
    """A run that has not begun.

    config: of the run. backbone: makes the network. example_shape: of the features of an example, as (T, F).
    embed_dim: D. num_classes, num_examples: of the training set, None where it is not known. world_size: processes.
    device: torch's type of the one of each process.
    """

    config: TrainConfig
    backbone: Callable[[], nn.Module]
    example_shape: tuple[int, ...]
    embed_dim: int
    num_classes: int | None = None
    num_examples: int | None = None
    world_size: int = 1
    device: str = "cpu"

    def __post_init__(self) -> None:
        least = max(2, self.world_size)
        if self.world_size < 1:
            raise InputError(f"a run needs at least one process, found a world size of {self.world_size}")
        if self.num_classes is not None and self.num_classes < least:
            raise InputError(
                f"a run on {self.world_size} processes needs at least {least} classes, found {self.num_classes}"
            )

    @property
    def steps_per_epoch(self) -> int | None:
        """How many steps an epoch has; None where that is not known."""
        if self.num_examples is None:
            return None
        return RunSampler(
            self.num_examples,
            batch_size=self.config.dataloader_args.batch_size,
            num_epochs=self.config.num_epochs,
            seed=self.config.seed,
            drop_last=self.config.dataloader_args.drop_last,
            world_size=self.world_size,
        ).steps_per_epoch

    @property
    def classes_here(self) -> int | None:
        """How many classes a process holds, the one that holds most; None where that is not known."""
        return None if self.num_classes is None else -(-self.num_classes // self.world_size)


def speaker_plan(
    config: Config,
    *,
    train_list: Path | None = None,
    data_type: str = "shard",
    num_classes: int | None = None,
    world_size: int = 1,
    device: str = "cpu",
) -> Plan:
    """Return the plan of a run with speakers.

    Args:
        config: the experiment.
        train_list: shard.list or raw.list, whose utterances and speakers are counted; None: there are no data yet.
            (Shards without an index get one, as when a run reads them.)
        data_type: what the list is, ``raw`` or ``shard``.
        num_classes: for want of data.
        world_size: processes.
        device: torch's type of the one of each process, such as ``cuda``.

    Raises:
        InputError: the list cannot be read, both or too few classes are given, or there are fewer than one process.

    """
    num_examples = None
    if train_list is not None:
        if num_classes is not None:
            raise InputError(f"give the number of classes or {train_list}, which tells it, but not both")
        utterances = read_training_list(train_list, data_type, config.dataset_args)
        num_examples, num_classes = len(utterances), count_classes(len(utterances.speakers), config.dataset_args)
    return Plan(
        config,
        backbone=lambda: build_model(config.model, **config.model_args.model_dump()),
        example_shape=(config.dataset_args.num_frms, config.model_args.feat_dim),
        embed_dim=config.model_args.embed_dim,
        num_classes=num_classes,
        num_examples=num_examples,
        world_size=world_size,
        device=device,
    )


def explain(plan: Plan, overrides: Sequence[str] = ()) -> str:
    """Say what a run will do, in 120 columns.

    Args:
        plan: the run.
        overrides: the ``section.key=value`` items that its config was made with, to mark them.

    Returns:
        Sections with titles, joined by newlines, without one at the end.

    """
    size = Size.of(plan)
    config = plan.config
    parts = {
        "Settings": annotated(config, overrides),
        "Parameters": _parameters(plan, size),
        "Memory" + (f", each of {plan.world_size} processes" if plan.world_size > 1 else ""): _memory(plan, size),
        "Schedule": _schedule(plan),
        "Zero-loss gap": _gap(config),
        "Doubts": [f"- {doubt}" for doubt in config.doubts(device=plan.device)] or ["none"],
    }
    return "\n\n".join("\n".join([title, "=" * len(title), *lines]) for title, lines in parts.items())


# Settings


def annotated(config: TrainConfig, overrides: Sequence[str] = ()) -> list[str]:
    """Return the lines of the config as YAML, with a comment where a value is not the default or was overridden."""
    defaults, changed = flatten(_defaults(config)), [item.partition("=")[0] for item in overrides]

    def note(path: str, value: Any) -> str:
        default = defaults.get(path, value)  # what has none is what it must be
        notes = ["overridden"] if any(f"{path}.".startswith(f"{name}.") for name in changed) else []
        notes += [f"default {_flow(default)}"] if value != default else []
        return ", ".join(notes)

    return list(_lines(config.model_dump(), note))


def _lines(values: Mapping[str, Any], note: Callable[[str, Any], str], path: str = "") -> Iterator[str]:
    indent = "  " * path.count(".")
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield f"{indent}{key}:"
            yield from _lines(value, note, f"{path}{key}.")
            continue
        text, comment = f"{indent}{key}: {_flow(value)}", note(path + key, value)
        yield f"{text:<{COMMENT_COLUMN - 2}}  # {comment}" if comment else text


def _flow(value: Any) -> str:
    """Return a value in YAML's notation, on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=math.inf, allow_unicode=True)
    return text.removesuffix("\n...\n").strip()


def _defaults(section: Section) -> dict[str, Any]:
    """Return the defaults of all keys that have one, nested."""
    found: dict[str, Any] = {}
    for key, info in type(section).model_fields.items():
        value = getattr(section, key)
        if isinstance(value, Section):
            found[key] = _defaults(value)
        elif not info.is_required():
            found[key] = info.get_default(call_default_factory=True)
    if isinstance(section, TrainConfig):
        found["projection_args"] = dict(PROJECT_TYPES[section.projection_args["project_type"]].defaults)
        found["optimizer_args"] = OPTIMIZER_ARGS[section.optimizer]().model_dump()
    return found


# Parameters and memory


@dataclass(frozen=True)
class Size:
    """How large a network and its head are.

    params: of the backbone. nbytes: of its weights and buffers. head: as a function of the classes.
    """

    params: int
    nbytes: int
    head: HeadSize

    @classmethod
    def of(cls, plan: Plan) -> Size:
        """Count; the network is made on the meta device, which holds no numbers."""
        with torch.device("meta"):
            network = plan.backbone()
        return cls(
            sum(param.numel() for param in network.parameters()),
            sum(value.nbytes for value in network.state_dict().values()),
            head_size(plan.config, embed_dim=plan.embed_dim),
        )


def _row(name: str, number: str, note: str = "") -> str:
    return f"{name:<{NAME_WIDTH}}{number:>14}  {note}".rstrip()


def _parameters(plan: Plan, size: Size) -> list[str]:
    head, loss = size.head, plan.config.projection_args["project_type"]
    lines = [_row("backbone", f"{size.params:,}", str(getattr(plan.config, "model", "")))]
    if plan.num_classes is None or plan.classes_here is None:
        note = f"{loss}; for the whole head give --train_data or --num_classes"
        return [*lines, _row("head, each class", f"{head.params_of_class:,}", note)]
    lines.append(_row(f"head, {plan.num_classes:,} classes", f"{head.params(plan.num_classes):,}", loss))
    if plan.world_size > 1:
        here = f"  {plan.classes_here:,} of them in each process"
        lines.append(_row(here, f"{head.params(plan.classes_here):,}"))
    return lines


def memory(plan: Plan, size: Size) -> dict[str, int]:
    """Return the bytes that a process takes on its device, by what takes them; without a head where C is not known."""
    config, classes, batch_size = plan.config, plan.classes_here, plan.config.dataloader_args.batch_size
    params, found = size.params, {"weights": size.nbytes}
    if classes is not None and plan.num_classes is not None:
        params += size.head.params(classes)
        found["weights"] += size.head.nbytes(num_classes=plan.num_classes, here=classes)
    found["gradients"] = FLOAT * params
    if plan.world_size > 1:
        found["gradients under way"] = FLOAT * size.params
    found["optimiser"] = FLOAT * params * optimizer_copies(config)
    found["network's step"] = network_step(
        plan.backbone, plan.example_shape, batch_size=batch_size, precision=config.precision
    )
    if classes is not None:
        rows = batch_size * plan.world_size
        found["head's step"] = head_step(
            config, embed_dim=plan.embed_dim, num_rows=rows, num_classes=classes, device=plan.device
        )
    return found


def _memory(plan: Plan, size: Size) -> list[str]:
    config, found = plan.config, memory(plan, size)
    rows = config.dataloader_args.batch_size * plan.world_size
    notes = {
        "weights": "float32",
        "gradients under way": "the backbone's, in the buckets of DistributedDataParallel",
        "optimiser": config.optimizer,
        "network's step": f"activations of {config.dataloader_args.batch_size} examples, {config.precision}: counted",
        "head's step": f"{rows} rows x {plan.classes_here or 0:,} classes: measured on a smaller step, scaled up",
    }
    lines = [_row(name, _mib(nbytes), notes.get(name, "")) for name, nbytes in found.items()]
    lines.append(_row("together", _mib(sum(found.values())), f"on {plan.device}"))
    if plan.num_classes is None:
        of_class = size.head.of_class + FLOAT * size.head.params_of_class * (1 + optimizer_copies(config))
        lines.append(_row("each class", f"{of_class:,} bytes", "weights, gradients, optimiser; its logits not counted"))
    return [
        *lines,
        "",
        "A step is counted at its peak: all tensors of forward and backward that are alive at a time, by following",
        "every operation. Not in it: workspaces of libraries, a GPU's context, fragmentation, the front end, batches",
        "in advance.",
    ]


def _mib(nbytes: int) -> str:
    return f"{nbytes / 2**20:,.1f} MiB"


# Schedule


@dataclass(frozen=True)
class Moment:
    """A moment of a run: an epoch, counted from 1, at whose start something happens; halves are in its middle."""

    epoch: float
    what: str


def moments(config: TrainConfig) -> list[Moment]:
    """Return what happens when, in order; the end is the start of the epoch that there is not any more."""
    margin, schedule, epochs = config.margin_update, config.scheduler_args, config.num_epochs
    found = [Moment(1, "start")]
    if schedule.warm_up_epoch:
        found.append(Moment(1 + schedule.warm_up_epoch, "the warm-up is over"))
    if isinstance(schedule, StepDecreaseArgs):
        found += [Moment(1 + epoch, f"the rate falls to {schedule.gamma:g} of it") for epoch in schedule.milestones]
    if margin.update_margin and margin.final_margin != margin.initial_margin:
        share = math.log(0.5) / schedules.RAMP_LOG if margin.increase_type == "exp" else 0.5
        first, last = margin.increase_start_epoch, margin.fix_start_epoch
        found += [Moment(first, "the margin starts to change")] if first < last else []
        found += [Moment(first + share * (last - first), "the margin is half way")] if first < last else []
        found.append(Moment(last, "the margin is final"))
    if reinit_epoch := config.projection_args.get("reinit_epoch"):
        found.append(Moment(reinit_epoch, "prototypes are re-initialised"))
    found.append(Moment(epochs - config.num_avg + 1, f"the first of {config.num_avg} epochs that are averaged"))
    together: dict[float, list[str]] = {}
    for moment in sorted(found, key=lambda moment: moment.epoch):
        if moment.epoch < epochs + 1:
            together.setdefault(moment.epoch, []).append(moment.what)
    together[epochs + 1] = [f"the end of epoch {epochs}"]
    return [Moment(epoch, ", ".join(what)) for epoch, what in together.items()]


def _schedule(plan: Plan) -> list[str]:
    config, schedule = plan.config, plan.config.scheduler_args
    batch_size, steps = config.dataloader_args.batch_size, plan.steps_per_epoch
    scale = schedules.scale_ratio(schedule, world_size=plan.world_size, batch_size=batch_size)
    of = {"steps_per_epoch": steps or FINE, "num_epochs": config.num_epochs}
    show_gap = math.isfinite(final_gap(config))
    header = f"{'epoch':>7}  {'step':>9}  {'learning rate':>13}  {'margin':>7}  "
    lines = [header + (f"{'gap':>5}  " if show_gap else "") + "what happens"]
    lines.append("-" * len(lines[0]))
    for moment in moments(config):
        step = (moment.epoch - 1) * of["steps_per_epoch"]
        rate = schedules.learning_rate(step, schedule, scale=scale, **of)
        margin = schedules.margin(step, config.margin_update, steps_per_epoch=of["steps_per_epoch"])
        gap = f"{gap_at(config, margin):>5.2f}  " if show_gap else ""
        at = "-" if steps is None else f"{math.ceil(step):,}"
        lines.append(f"{moment.epoch:>7.4g}  {at:>9}  {rate:>13.3g}  {margin:>7.3g}  {gap}{moment.what}")
    peak = schedules.peak_learning_rate(schedule, scale=scale, **of)
    return [*lines, "", *_steps(plan), _scaling(plan, scale=scale, peak=peak)]


def _steps(plan: Plan) -> list[str]:
    steps, epochs = plan.steps_per_epoch, plan.config.num_epochs
    each = f"{plan.world_size} x {plan.config.dataloader_args.batch_size} examples"
    if steps is None:
        return [f"{epochs} epochs of steps of {each}; how many, --train_data tells."]
    return [f"{epochs} epochs of {steps:,} steps of {each}, out of {plan.num_examples:,}: {epochs * steps:,} steps."]


def _scaling(plan: Plan, *, scale: float, peak: float) -> str:
    why = "scheduler_args.scale_ratio"
    if plan.config.scheduler_args.scale_ratio == "auto":
        why += f" auto: {plan.world_size} processes x {plan.config.dataloader_args.batch_size} / 64"
    return f"All rates are x {scale:g} ({why}); the highest is {peak:.3g}."


# Zero-loss gap


def _gap(config: TrainConfig) -> list[str]:
    gap, margin = final_gap(config), config.margin_update.final
    if math.isinf(gap):
        return ["No sample's loss is ever exactly zero with this loss, and every class has a part in every posterior."]
    unmoved = gap_at(config, 0.0)
    verdict = "more than" if gap > GOOD_GAP else "less than" if gap < LOW_GAP else "within"
    own = "own prototype" if gap != unmoved or not margin else "own prototype, less its margin,"
    return [
        f"At the final margin {margin:g} a sample's loss and gradient are exactly zero once the cosine with its {own}",
        f"leads that with every other by {gap:.3g}; at margin 0, by {unmoved:.3g}.",
        f"That is {verdict} the {LOW_GAP:g} to {GOOD_GAP:g} of settings that train well: with a smaller gap samples",
        "rest earlier, with a larger one they are pulled on for longer, and no two cosines differ by more than 2.",
    ]
