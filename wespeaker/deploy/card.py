"""The model card: what a deployed model says of itself, in one JSON document beside or inside its weights.

Whoever has a model in ONNX needs neither torch nor scipy, so nothing here imports them.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from wespeaker.documents import write_json
from wespeaker.errors import InputError, listing

CARD = "card.json"  # in the models/ of a run folder
METADATA_KEY = "card"  # of the card's JSON in the metadata of an ONNX or a safetensors file
WAV, FEATS, EMBS = "wav", "feats", "embs"  # inputs and output of the graphs

_Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
_Share = Annotated[float, Field(ge=0, le=1)]
_Count = Annotated[int, Field(ge=0)]
_Positive = Annotated[int, Field(gt=0)]
_Interval = tuple[_Share, _Share]  # its two ends


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class FbankSettings(_Part):
    """The front end's settings; the rest of it (Kaldi's, Hamming window, no dither, 20 Hz to Nyquist) is fixed."""

    num_mel_bins: _Positive  # F
    frame_length: Annotated[float, Field(gt=0)]  # ms
    frame_shift: Annotated[float, Field(gt=0)]  # ms


class CosineCalibration(_Part):
    """``llr = weight * score + offset``: a cosine as a log-likelihood ratio (natural log)."""

    p_target: Annotated[float, Field(gt=0, lt=1)]  # prior of a target trial that the fit was weighted to
    weight: float
    offset: float


class FarUpper(_Part):
    """One-sided upper bounds of a false acceptance rate, at the decision's level."""

    clopper_pearson: _Share  # of trials drawn independently
    bootstrap: _Share | None  # over speakers; None where there was no false accept, or no bootstrap


class PointIntervals(_Part):
    """Intervals of the rates of a threshold, of a bootstrap over speakers, at the decision's level."""

    far: _Interval | None  # None where there was no false accept
    tar: _Interval


class MeasuredPoint(_Part):
    """An entry of threshold.json: accept where score >= threshold, and what that gave on the list."""

    threshold: float
    tar: _Share
    far: _Share
    num_false_accepts: _Count
    num_true_accepts: _Count
    resolvable: bool  # False: the list has too few nontarget trials to show the asked FAR
    far_upper: FarUpper
    interval: PointIntervals | None = None  # None: without a bootstrap


class Decision(_Part):
    """What was measured on one trial list with cosines of embeddings whose mean was subtracted as the card says."""

    trials: str  # name of the list
    note: str | None = None  # a remark on it, such as that its corpus is synthetic
    trials_sha256: _Sha256  # of `wespeaker.eval.fingerprint.trials_sha256`
    num_target: _Positive
    num_nontarget: _Positive
    num_speakers: _Positive | None  # None: without a bootstrap
    level: Annotated[float, Field(gt=0, lt=1)]  # of intervals and bounds
    calibration: CosineCalibration
    target_far: Annotated[dict[str, MeasuredPoint], Field(min_length=1)]  # by ``str(float(far))`` of the asked FAR

    def llr(self, score: float) -> float:
        """Return the log-likelihood ratio (natural log) of a cosine."""
        return self.calibration.weight * score + self.calibration.offset

    def at(self, far: float) -> MeasuredPoint:
        """Return the operating point that was measured for an asked false acceptance rate.

        Raises:
            InputError: none was; nothing is interpolated.

        """
        try:
            return self.target_far[str(float(far))]
        except KeyError:
            raise InputError(
                f"no threshold was measured for FAR {far:g} on {self.trials}, there are {listing([*self.target_far])}; "
                f"ask for one of them, or measure it with --target_far (stage 5) and export again (stage 8)"
            ) from None


class Card(_Part):
    """What is to be known of a model by those who use it."""

    wespeaker_q: str  # version that wrote the card
    fingerprint: _Sha256  # of `model_sha256`: the same for a run folder, its ONNX and its safetensors file
    model: str  # name of the backbone
    model_args: dict[str, JsonValue]
    embed_dim: _Positive  # D
    sample_rate: _Positive  # Hz
    min_samples: _Positive  # the shortest waveform that can be embedded
    fbank: FbankSettings
    training: dict[str, JsonValue] = {}  # where the weights come from, as far as it is known
    mean_vec: tuple[float, ...] | None = None  # (D,), subtracted from embeddings before the cosine; None: nothing is
    decision: Decision | None = None  # None: nothing was measured yet

    @model_validator(mode="after")
    def _one_dimension(self) -> Card:
        if self.mean_vec is not None and len(self.mean_vec) != self.embed_dim:
            raise ValueError(f"mean_vec has {len(self.mean_vec)} numbers, embeddings have {self.embed_dim}")
        return self

    @classmethod
    def parse(cls, text: str | bytes, where: object) -> Card:
        """Read a card from its JSON.

        Args:
            text: the document.
            where: what an error calls it, such as the file that holds it.

        Raises:
            InputError: it is no card of this version.

        """
        try:
            return cls.model_validate_json(text, strict=True)
        except ValidationError as error:
            problem = error.errors()[0]
            name = ".".join(map(str, problem["loc"])) or "the document"
            message = problem["msg"].removeprefix("Value error, ")
            raise InputError(
                f"{where} is no model card that this version reads ({name}: {message}); "
                f"export the model again (stage 8)"
            ) from None

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Card:
        """Read a card's file.

        Raises:
            InputError: it is missing, or no card of this version.

        """
        try:
            text = Path(path).read_bytes()
        except FileNotFoundError:
            raise InputError(f"{path} (a model card) does not exist; export the model first (stage 8)") from None
        return cls.parse(text, path)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the card's file; it appears whole or not at all."""
        write_json(path, self.model_dump(mode="json"))


def model_sha256(
    weights: Mapping[str, NDArray[Any]],
    *,
    model: str,
    model_args: Mapping[str, Any],
    fbank: FbankSettings,
    sample_rate: int,
) -> str:
    """Return the hash of all that makes the embeddings of a model.

    It is that of a line of JSON with the settings (sorted keys), and for each weight in the order of their names a line
    ``name dtype shape``, such as ``seg_1.bias <f4 256``, and its bytes, little-endian.

    Args:
        weights: of the backbone, by WeSpeaker's names.
        model: its name.
        model_args: its options, all of them.
        fbank: settings of the front end.
        sample_rate: in Hz.

    """
    settings = {
        "model": model,
        "model_args": dict(model_args),
        "fbank": fbank.model_dump(),
        "sample_rate": sample_rate,
    }
    found = hashlib.sha256(json.dumps(settings, sort_keys=True).encode() + b"\n")
    for name in sorted(weights):
        values = np.asarray(weights[name])
        values = values.astype(values.dtype.newbyteorder("<"), copy=False)
        shape = "x".join(map(str, values.shape))
        found.update(f"{name} {values.dtype.str} {shape}\n".encode())
        found.update(values.tobytes())
    return found.hexdigest()
