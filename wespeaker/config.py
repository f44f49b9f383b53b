"""The typed form of conf/*.yaml: what keys there are, their units, ranges and defaults, and how they are read."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, overload

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from wespeaker.errors import InputError, nearest
from wespeaker.losses import check_margin, validate_projection_args
from wespeaker.models import check_model

Share = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0.0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
NonNegativeFloat = Annotated[float, Field(ge=0.0)]


class Section(BaseModel):
    """A section of the config: unknown keys are errors and nothing changes it after it was read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataloaderArgs(Section):
    """How batches are made; the result does not depend on ``num_workers`` or ``prefetch_factor``."""

    batch_size: PositiveInt = 128  # utterances per process
    drop_last: bool = False  # true: an epoch has whole batches only, and leaves out the rest; other ones in each epoch
    num_workers: NonNegativeInt = 4  # loader processes per training process
    prefetch_factor: PositiveInt = 4  # batches that each loader process keeps ready
    pin_memory: bool = False


class FbankArgs(Section):
    """Kaldi's log mel filterbank (Povey pre-emphasis .97, Hamming window, power spectrum, 20 Hz to Nyquist)."""

    num_mel_bins: PositiveInt = 80
    frame_length: PositiveFloat = 25.0  # ms
    frame_shift: PositiveFloat = 10.0  # ms
    dither: NonNegativeFloat = 1.0  # training only; standard deviation in steps of 16-bit audio


class FilterArgs(Section):
    """Which training utterances are left out."""

    min_num_frames: NonNegativeInt = 100  # utterances shorter than this many frames


class SpecAugArgs(Section):
    """Bands that are hidden from the network; drawn for each utterance."""

    num_t_mask: NonNegativeInt = 1  # bands of time
    num_f_mask: NonNegativeInt = 1  # bands of frequency
    max_t: PositiveInt = 10  # frames, the widest band of time
    max_f: PositiveInt = 8  # mel bins, the widest band of frequency
    prob: Share = 0.6  # share of the utterances that gets bands


class DatasetArgs(Section):
    """What a training example is: crop, speed, augmentation, features."""

    resample_rate: PositiveInt = 16000  # Hz
    num_frms: PositiveInt = 200  # frames in a training crop
    speed_perturb: bool = True  # speed 1.0, .9 or 1.1, each a third
    speed_as_new_speaker: bool = True  # each speed of a speaker is a class of its own; false: the speeds share one
    aug_prob: Share = 0.6  # share of the crops that is augmented
    reverb_share: Share = 0.5  # of the augmented crops: this share gets reverberation, the rest noise
    align_direct_path: bool = True  # reverberated speech stays in time; false: late by the direct path, as WeSpeaker's
    snr_power_floor: NonNegativeFloat = 0.0  # 1.0e-4: WeSpeaker's, with which quiet noise or speech misses the SNR
    peak_normalise: bool = False  # true: augmented crops, and only those, are scaled to a peak of 1, as WeSpeaker's
    max_bad_utts: Share = 0.001  # share of the utterances that may be unusable: replaced and listed; above, a run stops
    filter: bool = True
    filter_args: FilterArgs = FilterArgs()
    fbank_args: FbankArgs = FbankArgs()
    spec_aug: bool = False
    spec_aug_args: SpecAugArgs = SpecAugArgs()


class ModelArgs(Section):
    """Size of the backbone."""

    feat_dim: PositiveInt = 80
    embed_dim: PositiveInt = 256
    pooling_func: Literal["TSTP"] = "TSTP"  # mean and standard deviation over time
    two_emb_layer: bool = False
    m_channels: PositiveInt = 32  # channels of the first stage; the others have 2, 4, 8 times as many


class MarginUpdate(Section):
    """Margin annealing; epochs count from 1."""

    initial_margin: NonNegativeFloat = 0.0
    final_margin: NonNegativeFloat = 0.2
    increase_start_epoch: PositiveFloat = 20
    fix_start_epoch: PositiveFloat = 40
    update_margin: bool = True  # false: initial_margin all along
    increase_type: Literal["exp", "linear"] = "exp"

    @model_validator(mode="after")
    def _ordered(self) -> MarginUpdate:
        if self.update_margin and self.fix_start_epoch < self.increase_start_epoch:
            raise ValueError(
                f"fix_start_epoch ({self.fix_start_epoch:g}) must not come before "
                f"increase_start_epoch ({self.increase_start_epoch:g})"
            )
        return self


class SGDArgs(Section):
    """Options of torch.optim.SGD."""

    momentum: Share = 0.9
    nesterov: bool = True
    weight_decay: NonNegativeFloat = 1e-4


class AdamWArgs(Section):
    """Options of torch.optim.AdamW."""

    weight_decay: NonNegativeFloat = 1e-2


class WarmUpArgs(Section):
    """What every schedule of the learning rate has: a start, a linear warm-up and a factor; epochs may be fractions."""

    initial_lr: PositiveFloat = 0.1
    warm_up_epoch: NonNegativeFloat = 0
    warm_from_zero: bool = True
    scale_ratio: Literal["auto"] | PositiveFloat = 1.0  # factor on all rates; auto: world size x batch_size / 64


class ExponentialDecreaseArgs(WarmUpArgs):
    """Exponential decay over the whole run; the defaults are WeSpeaker's."""

    final_lr: PositiveFloat = 5e-5
    warm_up_epoch: NonNegativeFloat = 6
    scale_ratio: Literal["auto"] | PositiveFloat = "auto"


class StepDecreaseArgs(WarmUpArgs):
    """A fall by a factor after each of some epochs: 7 and 13 with 0.1 is 0.1, 0.01, 0.001 over 7, 6, 7 of 20 epochs."""

    milestones: list[PositiveFloat]  # epochs that are over when the rate falls, in ascending order
    gamma: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1  # factor of each fall

    @field_validator("milestones")
    @classmethod
    def _ascending(cls, milestones: list[float]) -> list[float]:
        if milestones != sorted(set(milestones)):
            raise ValueError(f"must ascend, found {milestones}")
        return milestones


OPTIMIZER_ARGS: dict[str, type[Section]] = {"SGD": SGDArgs, "AdamW": AdamWArgs}
SCHEDULER_ARGS: dict[str, type[WarmUpArgs]] = {
    "ExponentialDecrease": ExponentialDecreaseArgs,
    "StepDecrease": StepDecreaseArgs,
}


class TrainConfig(Section):
    """What the training of any task is told: how long, how fast, with which loss, and what is written when."""

    exp_dir: str
    seed: NonNegativeInt = 42
    num_epochs: PositiveInt = 150
    num_avg: PositiveInt = 10  # last epochs whose weights are averaged
    save_epoch_interval: PositiveInt = 5  # epochs between kept models; the last num_avg are always kept
    save_minutes: NonNegativeFloat = 30  # between checkpoints in the middle of an epoch; 0: at the ends of epochs only
    log_batch_interval: PositiveInt = 100  # steps between rows of metrics.jsonl
    dev_interval: NonNegativeInt = 5  # epochs between dev trials; 0: never
    precision: Literal["float32", "bf16", "fp16"] = "float32"  # of the network; the head is in float32 always
    clip_grad_norm: NonNegativeFloat = 0.0  # largest norm of all gradients together; 0: they are not clipped
    dataloader_args: DataloaderArgs = DataloaderArgs()
    projection_args: dict[str, Any]
    margin_scheduler: Literal["MarginScheduler"] = "MarginScheduler"
    margin_update: MarginUpdate = MarginUpdate()
    optimizer: str = "SGD"
    optimizer_args: dict[str, Any] = Field(default_factory=dict, validate_default=True)
    scheduler: str = "ExponentialDecrease"
    scheduler_args: ExponentialDecreaseArgs | StepDecreaseArgs = Field(default_factory=dict, validate_default=True)

    @field_validator("projection_args")
    @classmethod
    def _known_projection(cls, args: dict[str, Any]) -> dict[str, Any]:
        try:
            return validate_projection_args(args)
        except ValueError as error:  # the section is named once, as for every other key
            raise ValueError(str(error).removeprefix("projection_args: ")) from error

    @field_validator("optimizer")
    @classmethod
    def _known_optimizer(cls, name: str) -> str:
        return _known("optimizer", name, OPTIMIZER_ARGS)

    @field_validator("optimizer_args", mode="before")
    @classmethod
    def _typed_optimizer_args(cls, args: Any, info: ValidationInfo) -> Any:
        typed = _typed(args, OPTIMIZER_ARGS.get(info.data.get("optimizer", "")))
        return typed.model_dump() if isinstance(typed, Section) else typed

    @field_validator("scheduler")
    @classmethod
    def _known_scheduler(cls, name: str) -> str:
        return _known("scheduler", name, SCHEDULER_ARGS)

    @field_validator("scheduler_args", mode="wrap")
    @classmethod
    def _typed_scheduler_args(cls, args: Any, handler: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        schema = SCHEDULER_ARGS.get(info.data.get("scheduler", ""))
        return args if schema is None else handler(_typed(args, schema))  # an unknown name is reported as such

    @model_validator(mode="after")
    def _consistent(self) -> TrainConfig:
        if problems := self._problems():
            raise ValueError("; ".join(problems))
        return self

    def _problems(self) -> list[str]:
        """Say which values do not go together."""
        problems = []
        if self.num_avg > self.num_epochs:
            problems.append(f"num_avg ({self.num_avg}) must not exceed num_epochs ({self.num_epochs})")
        if self.scheduler_args.warm_up_epoch > self.num_epochs:
            problems.append(
                f"scheduler_args.warm_up_epoch ({self.scheduler_args.warm_up_epoch:g}) "
                f"must not exceed num_epochs ({self.num_epochs})"
            )
        if self.projection_args.get("weight_grad") == "sparse" and self.optimizer != "SGD":
            problems.append(
                f"projection_args.weight_grad: sparse needs optimizer SGD, which takes it; found {self.optimizer}"
            )
        return problems + self._margin_problems()

    def _margin_problems(self) -> list[str]:
        """Say which margins of the schedule mean nothing to this loss, as 0 to one that multiplies the angle."""
        problems = []
        for key in ("initial_margin", "final_margin") if self.margin_update.update_margin else ("initial_margin",):
            try:
                check_margin(self.projection_args["project_type"], getattr(self.margin_update, key))
            except ValueError as error:
                problems.append(f"margin_update.{key}: {error}")
        return problems

    def dump(self) -> str:
        """Return the resolved config, defaults included, as YAML."""
        return yaml.safe_dump(self.model_dump(), sort_keys=False, allow_unicode=True)


class Config(TrainConfig):
    """One experiment with speakers. The names are WeSpeaker's where the meaning is the same."""

    dataset_args: DatasetArgs = DatasetArgs()
    model: str = "ResNet34"
    model_args: ModelArgs = ModelArgs()

    @field_validator("model")
    @classmethod
    def _known_model(cls, name: str) -> str:
        return check_model(name, takes="features")

    def _problems(self) -> list[str]:
        feat_dim, num_mel_bins = self.model_args.feat_dim, self.dataset_args.fbank_args.num_mel_bins
        unequal = f"model_args.feat_dim ({feat_dim}) must equal dataset_args.fbank_args.num_mel_bins ({num_mel_bins})"
        return ([unequal] if feat_dim != num_mel_bins else []) + super()._problems()


AnyConfig = TypeVar("AnyConfig", bound=TrainConfig)


@overload
def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config: ...


@overload
def load_config(path: str | Path, overrides: Sequence[str] = (), *, schema: type[AnyConfig]) -> AnyConfig: ...


def load_config(path: str | Path, overrides: Sequence[str] = (), *, schema: type[TrainConfig] = Config) -> TrainConfig:
    """Read a config file, apply overrides, and check all of it.

    Args:
        path: a YAML file.
        overrides: ``section.key=value`` items, the value in YAML's notation.
        schema: what keys there are; the default is the one of speakers.

    Raises:
        InputError: naming every problem of the file and the overrides at once.

    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} (the config) does not exist; the ready ones are in conf/")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} must be a mapping of keys to values, found {type(values).__name__}")
    for item in overrides:
        _override(values, item)
    try:
        return schema(**values)
    except ValidationError as error:
        where = f"{path}" + (f" with {' '.join(overrides)}" if overrides else "")
        sentences = _sentences(error, schema)
        raise InputError(f"{where}: " + "\n  ".join(sentences if len(sentences) == 1 else ["", *sentences])) from error


def _typed(args: Any, schema: type[Section] | None) -> Any:
    """Check a section whose schema another key chooses; None: that key's validator says what is wrong."""
    if schema is None or isinstance(args, Section):
        return args
    if not isinstance(args, dict):
        raise ValueError(f"must be a mapping of keys to values, found {args!r}")
    try:
        return schema(**args)
    except ValidationError as error:
        raise ValueError("; ".join(_sentences(error, schema))) from error


def _known(kind: str, name: str, registry: Collection[str]) -> str:
    if name not in registry:
        raise ValueError(f"unknown {kind} {name!r}; {nearest(name, registry)}")
    return name


def _override(values: dict[str, Any], item: str) -> None:
    """Set ``a.b=c`` in nested dicts, making the sections that are not there."""
    name, equals, text = item.partition("=")
    if not equals or not name:
        raise InputError(f"override {item!r} must look like section.key=value, as num_epochs=2")
    *sections, key = name.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise InputError(f"override {item!r}: {section} is a value, not a section")
    try:
        values[key] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"override {item!r}: {text!r} is not valid YAML") from error


class _UniqueKeyLoader(yaml.SafeLoader):
    """A safe loader that refuses a key given twice, which YAML would let the last one win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Build the mapping after looking for repeated keys."""
        seen = set()
        for key_node, _ in node.value:
            if key_node.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"key {key_node.value!r} is given twice", problem_mark=key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def _sentences(error: ValidationError, schema: type[BaseModel]) -> list[str]:
    """Turn each error of pydantic into ``section.key: what is wrong``."""
    return [_sentence(detail, schema) for detail in error.errors()]


def _sentence(detail: ErrorDetails, schema: type[BaseModel]) -> str:
    location = [str(part) for part in detail["loc"]]
    name = ".".join(location)
    if detail["type"] == "extra_forbidden":
        return f"{name}: unknown key; {nearest(location[-1], _section_at(schema, location[:-1]).model_fields)}"
    if detail["type"] == "missing":
        return f"{name}: is required"
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "value_error":
        return f"{name}: {message}" if name else message
    return f"{name}: {message[0].lower()}{message[1:]}, found {detail['input']!r}"


def _section_at(schema: type[BaseModel], location: Sequence[str]) -> type[BaseModel]:
    for part in location:
        annotation = schema.model_fields[part].annotation
        assert isinstance(annotation, type)
        schema = annotation
    return schema
