"""The typed form of conf/*.yaml: what keys there are, their units, ranges and defaults, and how they are read."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, overload

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from wespeaker import checks
from wespeaker.documents import parse_yaml
from wespeaker.errors import InputError, nearest
from wespeaker.interchange.config import is_wespeakers, read_wespeakers
from wespeaker.losses import validate_projection_args
from wespeaker.models import campplus, check_model, ecapa_tdnn, resnet, tdnn
from wespeaker.models.pooling import PoolingFunc

Share = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0.0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
NonNegativeFloat = Annotated[float, Field(ge=0.0)]


def _auto_or_factor(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    """Check a factor in one sentence; pydantic has one for each of the types that it may be."""
    try:
        return handler(value)
    except ValidationError as error:
        raise ValueError(f"must be auto or a number above 0, found {value!r}") from error


ScaleRatio = Annotated[Literal["auto"] | PositiveFloat, WrapValidator(_auto_or_factor)]


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
    frame_length: Annotated[float, Field(ge=2.0, le=1000.0)] = 25.0  # ms
    frame_shift: Annotated[float, Field(ge=1.0, le=1000.0)] = 10.0  # ms
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

    resample_rate: Annotated[int, Field(ge=1000, le=384_000)] = 16000  # Hz
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
    """Size of the backbone: what all have, and what one has in a class of its own."""

    feat_dim: PositiveInt = 80
    embed_dim: PositiveInt = 256
    pooling_func: PoolingFunc = "TSTP"  # over time: mean, deviation, both; ASTP: both, weighted by an attention

    ours: ClassVar[tuple[str, ...]] = ()  # keys that WeSpeaker's model of the same name does not take


class ResNetArgs(ModelArgs):
    """Options of the ResNets."""

    two_emb_layer: bool = False
    m_channels: PositiveInt = 32  # channels of the first stage; the others have 2, 4, 8 times as many

    ours = ("m_channels",)


class ECAPAArgs(ModelArgs):
    """Options of the ECAPA-TDNNs whose width is in the name."""

    embed_dim: PositiveInt = 192
    pooling_func: PoolingFunc = "ASTP"
    emb_bn: bool = False  # batch normalisation of the embedding


class ECAPAWidthArgs(ECAPAArgs):
    """Options of ECAPA_TDNN, of any width."""

    channels: Annotated[int, Field(gt=0, multiple_of=8)] = 512
    out_channels: PositiveInt = 1536  # of the aggregation of all blocks, which is pooled
    global_context_att: bool = False  # the attention sees the statistics of the utterance too; GLOB in the other names

    ours = ("out_channels",)


class CAMPPlusArgs(ModelArgs):
    """Options of CAMPPlus."""

    embed_dim: PositiveInt = 512
    growth_rate: PositiveInt = 32  # channels that each layer of a dense block adds
    bn_size: PositiveInt = 4  # channels of a layer's bottleneck, in multiples of growth_rate
    init_channels: PositiveInt = 128  # before the first dense block
    m_channels: PositiveInt = 32  # of the convolutions on the time-frequency plane

    ours = ("m_channels",)


class XVECArgs(ModelArgs):
    """Options of XVEC."""

    embed_dim: PositiveInt = 512
    hid_dim: PositiveInt = 512  # channels of the first four layers
    stats_dim: PositiveInt = 1500  # channels of the fifth, which is pooled


MODEL_ARGS: dict[str, type[ModelArgs]] = {
    **dict.fromkeys(resnet.MODELS, ResNetArgs),
    **dict.fromkeys(ecapa_tdnn.MODELS, ECAPAArgs),
    "ECAPA_TDNN": ECAPAWidthArgs,
    **dict.fromkeys(campplus.MODELS, CAMPPlusArgs),
    **dict.fromkeys(tdnn.MODELS, XVECArgs),
}


class MarginUpdate(Section):
    """Margin annealing; epochs count from 1."""

    initial_margin: NonNegativeFloat = 0.0
    final_margin: NonNegativeFloat = 0.2
    final_gap: Annotated[float, Field(gt=0.0, lt=checks.LARGEST_GAP)] | None = None  # final_margin by its zero_loss_gap
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
        if self.final_gap is not None and not self.update_margin:
            raise ValueError("final_gap needs update_margin: true; without it the margin is initial_margin all along")
        return self

    @property
    def final_key(self) -> str:
        """The key that says which margin the schedule ends with."""
        if not self.update_margin:
            return "initial_margin"
        return "final_margin" if self.final_gap is None else "final_gap"

    @property
    def final(self) -> float:
        """The margin that the schedule ends with, if the run is long enough."""
        return self.final_margin if self.update_margin else self.initial_margin


class SGDArgs(Section):
    """Options of torch.optim.SGD."""

    momentum: Share = 0.9
    nesterov: bool = True
    weight_decay: NonNegativeFloat = 1e-4

    @model_validator(mode="after")
    def _nesterov_of_momentum(self) -> SGDArgs:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov: true needs a momentum above 0; give nesterov: false for plain SGD")
        return self


class AdamWArgs(Section):
    """Options of torch.optim.AdamW."""

    weight_decay: NonNegativeFloat = 1e-2


class WarmUpArgs(Section):
    """What every schedule of the learning rate has: a start, a linear warm-up and a factor; epochs may be fractions."""

    initial_lr: PositiveFloat = 0.1
    warm_up_epoch: NonNegativeFloat = 0
    warm_from_zero: bool = True
    scale_ratio: ScaleRatio = 1.0  # factor on all rates; auto: world size x batch_size / 64


class ExponentialDecreaseArgs(WarmUpArgs):
    """Exponential decay over the whole run; the defaults are WeSpeaker's."""

    final_lr: PositiveFloat = 5e-5
    warm_up_epoch: NonNegativeFloat = 6
    scale_ratio: ScaleRatio = "auto"

    @model_validator(mode="after")
    def _decreases(self) -> ExponentialDecreaseArgs:
        if self.final_lr > self.initial_lr:
            raise ValueError(f"final_lr ({self.final_lr:g}) must not exceed initial_lr ({self.initial_lr:g})")
        return self


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
    model_init: str | None = None  # model_<epoch>.pt or avg_model.pt to start from; null: random weights
    head_init: Literal["keep", "unperturbed", "reinit"] = "keep"  # prototypes: model_init's, those at speed 1, new ones
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

    @field_validator("margin_update")
    @classmethod
    def _margin_of_gap(cls, update: MarginUpdate, info: ValidationInfo) -> MarginUpdate:
        """Make final_gap the final_margin that it is with this loss, so that a margin is all that a schedule knows."""
        if update.final_gap is None or "projection_args" not in info.data:
            return update
        try:
            margin = checks.margin_of_gap(info.data["projection_args"], update.final_gap)
        except ValueError as error:
            raise ValueError(f"final_gap: {error}") from error
        if "final_margin" in update.model_fields_set and not math.isclose(update.final_margin, margin):
            raise ValueError(
                f"final_gap ({update.final_gap:g}) is a final_margin of {margin:.4g} with this loss, "
                f"but final_margin is {update.final_margin:g}; give one of the two"
            )
        return update.model_copy(update={"final_margin": margin})

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
        return checks.problems(self)

    def doubts(self, *, device: str) -> list[str]:
        """Say what is allowed but hardly meant, such as a final margin that the run is too short to reach.

        Args:
            device: torch's type of the one to train on, such as ``cuda``.

        """
        return checks.doubts(self, device=device)

    def dump(self) -> str:
        """Return the resolved config, defaults included, as YAML."""
        return yaml.safe_dump(self.model_dump(), sort_keys=False, allow_unicode=True)

    def record(self) -> str:
        """Return what config.yaml of a run folder holds: the resolved config, but for what is `tacit`."""
        return self.dump()

    def tacit(self) -> dict[str, Any]:
        """Return keys, dotted, that `record` leaves out while they have their defaults, with these."""
        return {}


class Config(TrainConfig):
    """One experiment with speakers. The names are WeSpeaker's where the meaning is the same."""

    dataset_args: DatasetArgs = DatasetArgs()
    model: str = "ResNet34"
    model_args: SerializeAsAny[ModelArgs] = Field(default=ModelArgs(), validate_default=True)

    @field_validator("model")
    @classmethod
    def _known_model(cls, name: str) -> str:
        return check_model(name, takes="features")

    @field_validator("model_args", mode="before")
    @classmethod
    def _typed_model_args(cls, args: Any, info: ValidationInfo) -> Any:
        if "model" not in info.data:
            return ModelArgs()  # its own error is enough
        given = args.model_dump(exclude_unset=True) if isinstance(args, ModelArgs) else args
        return _typed(given, MODEL_ARGS[info.data["model"]])

    def record(self) -> str:
        """Return what config.yaml of a run folder holds, which WeSpeaker's tools read too: see `tacit`."""
        values = self.model_dump()
        tacit = self.tacit()
        values["model_args"] = {
            name: value for name, value in values["model_args"].items() if tacit.get(f"model_args.{name}") != value
        }
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)

    def tacit(self) -> dict[str, Any]:
        """Return what WeSpeaker's model takes no argument for: its tools pass it all ``model_args`` of a run folder."""
        fields = type(self.model_args).model_fields
        return {f"model_args.{name}": fields[name].default for name in self.model_args.ours}

    def _problems(self) -> list[str]:
        return checks.speaker_problems(self) + super()._problems()

    def doubts(self, *, device: str) -> list[str]:
        """Say what is allowed but hardly meant, see `TrainConfig.doubts`."""
        return checks.speaker_doubts(self) + super().doubts(device=device)


AnyConfig = TypeVar("AnyConfig", bound=TrainConfig)


@overload
def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config: ...


@overload
def load_config(path: str | Path, overrides: Sequence[str] = (), *, schema: type[AnyConfig]) -> AnyConfig: ...


def load_config(path: str | Path, overrides: Sequence[str] = (), *, schema: type[TrainConfig] = Config) -> TrainConfig:
    """Read a config file, apply overrides, and check all of it. One of WeSpeaker's is translated, see `interchange`.

    Args:
        path: a YAML file.
        overrides: ``section.key=value`` items, the value in YAML's notation; the keys are ours.
        schema: what keys there are; the default is the one of speakers.

    Raises:
        InputError: naming every problem of the file and the overrides at once.

    """
    values = read_document(path)
    sentences: list[str] = []
    if issubclass(schema, Config) and is_wespeakers(values):
        values, sentences = read_wespeakers(values, path, [item.partition("=")[0] for item in overrides])
    for item in overrides:
        try:
            _override(values, item)
        except InputError as error:
            sentences.append(str(error))
    return validated(values, f"{path}" + (f" with {' '.join(overrides)}" if overrides else ""), sentences, schema)


def read_document(path: str | Path) -> dict[str, Any]:
    """Read a YAML file of keys and values, whatever they are.

    Raises:
        InputError: it is missing, or no such file.

    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} (the config) does not exist; the ready ones are in conf/")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from error
    values = parse_yaml(text, path)
    if not isinstance(values, dict):
        raise InputError(f"{path} must be a mapping of keys to values, found {type(values).__name__}")
    return values


def validated(values: dict[str, Any], where: str, problems: Sequence[str], schema: type[AnyConfig]) -> AnyConfig:
    """Check values as a config.

    Args:
        values: of a document.
        where: what the error calls them.
        problems: sentences about what is wrong already.
        schema: what keys there are.

    Raises:
        InputError: naming every problem.

    """
    sentences = [*problems]
    try:
        config = schema.model_validate(values)
    except ValidationError as error:
        sentences += _sentences(error, schema)
    if sentences:
        raise InputError(f"{where}: " + "\n  ".join(sentences if len(sentences) == 1 else ["", *sentences]))
    return config


def _typed(args: Any, schema: type[Section] | None) -> Any:
    """Check a section whose schema another key chooses; None: that key's validator says what is wrong."""
    if schema is None or isinstance(args, Section):
        return args
    if not isinstance(args, dict):
        raise ValueError(f"must be a mapping of keys to values, found {args!r}")
    try:
        return schema.model_validate(args)
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
    values[key] = parse_yaml(text, f"override {item!r}: {text!r}")


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
    return f"{name}: {message[0].lower()}{message[1:]}, found {repr(detail['input'])[:200]}"


def _section_at(schema: type[BaseModel], location: Sequence[str]) -> type[BaseModel]:
    for part in location:
        annotation = schema.model_fields[part].annotation
        assert isinstance(annotation, type)
        schema = annotation
    return schema
