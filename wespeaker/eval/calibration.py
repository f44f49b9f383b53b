"""Calibration: scores and quality measures to log-likelihood ratios, by prior-weighted logistic regression."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import TypeAdapter, ValidationError
from scipy.optimize import minimize
from scipy.special import expit, logit

from wespeaker.data.trials import Trials
from wespeaker.documents import write_json
from wespeaker.errors import InputError, listing, nearest
from wespeaker.eval.embeddings import PathLike

MEASURES = ("duration", "norm", "cohort_mean")  # of the two utterances of a trial
MAX_DURATION_SEC = 20.0  # more makes an embedding no better: WeSpeaker's bound
_PARTS = ("min", "max", "diff", "ratio")  # what the regression sees of a measure
# Cohort means may be 0 or below, and a duration may be 0. From here on, a ratio says nothing.
_RATIO_FLOOR = 1e-3
# Of the squared weights of standardised features. It makes the solution unique (max - min is a combination of max and
# min) and finite (targets and nontargets that a line separates), and is too small to be seen otherwise.
_L2 = 1e-6


@dataclass(frozen=True)
class Calibration:
    """A linear function of scores and quality measures whose value is a log-likelihood ratio (natural log)."""

    score: str  # which scores it is for, such as vox2_dev_asnorm300
    p_target: float  # prior of a target trial that the training was weighted to
    weights: Mapping[str, float]  # of each feature, in nats per unit
    offset: float  # in nats
    num_target: int  # trials of the training
    num_nontarget: int
    fingerprint: str  # SHA-256 of the features and labels of the training

    @property
    def measures(self) -> tuple[str, ...]:
        """The quality measures it needs, in the order of MEASURES."""
        return tuple(measure for measure in MEASURES if f"{measure}_min" in self.weights)

    def llr(self, features: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
        """Return the log-likelihood ratio of each trial, (N,), of `trial_features`."""
        llr = np.full_like(features["score"], self.offset)
        for name, weight in self.weights.items():
            llr += weight * features[name]
        return llr


def trial_features(scores: ArrayLike, measures: Mapping[str, NDArray[np.float64]]) -> dict[str, NDArray[np.float64]]:
    """Return what the regression sees of N trials: the score, and four numbers of each quality measure.

    These are minimum, maximum, their difference and their ratio, the smaller over the larger, both raised to at least
    1e-3: in (0, 1] whatever the measure, where WeSpeaker's may divide by a cohort mean of about 0. They do not depend
    on which side of a trial is which.

    Args:
        scores: (N,).
        measures: values of the two utterances by the name of the measure, (N, 2).

    Returns:
        (N,) float64 each: ``score``, and ``<measure>_min``, ``_max``, ``_diff``, ``_ratio``.
    """
    features = {"score": np.asarray(scores, dtype=np.float64)}
    for name, values in measures.items():
        low, high = values.min(axis=1), values.max(axis=1)
        features[f"{name}_min"], features[f"{name}_max"] = low, high
        features[f"{name}_diff"] = high - low
        features[f"{name}_ratio"] = np.maximum(low, _RATIO_FLOOR) / np.maximum(high, _RATIO_FLOOR)
    return features


def fit_calibration(
    features: Mapping[str, NDArray[np.float64]], is_target: ArrayLike, *, p_target: float = 0.01, score: str = "score"
) -> Calibration:
    """Find the log-likelihood ratios, linear in the features, of least prior-weighted cross-entropy.

    With x = llr + logit(p) and p = ``p_target`` it minimises ``p mean over targets of log(1 + e^-x) + (1 - p) mean
    over nontargets of log(1 + e^x)``, which is convex; for p = 1/2 it is Cllr in nats. L-BFGS from zero, in float64
    on standardised features: the same trials give the same weights. Source: Bruemmer and du Preez,
    "Application-independent evaluation of speaker detection", 2006; the features are WeSpeaker's (Thienpondt et al.,
    "The IDLab VoxSRC-20 submission", 2021).

    Args:
        features: as of `trial_features`, (N,) each.
        is_target: (N,), booleans.
        p_target: prior of a target trial at which the ratios will be used, in (0, 1).
        score: what the scores are called.

    Raises:
        InputError: for a ``p_target`` outside (0, 1), for a list of one class.
    """
    if not 0 < p_target < 1:
        raise InputError(f"p_target must lie between 0 and 1, found {p_target}")
    labels = np.asarray(is_target, dtype=np.bool_)
    num_target = int(labels.sum())
    num_nontarget = len(labels) - num_target
    if not (num_target and num_nontarget):
        raise InputError(f"calibration needs both classes, found {num_target} target and {num_nontarget} nontarget")
    values = np.stack(list(features.values()), axis=1)  # (N, F)
    centre, spread = values.mean(axis=0), values.std(axis=0)
    spread[spread <= 1e-9 * np.abs(centre)] = 1.0  # the same in every trial, up to rounding: the weight stays 0
    standardised = (values - centre) / spread
    share = np.where(labels, p_target / num_target, (1 - p_target) / num_nontarget)
    sign = np.where(labels, 1.0, -1.0)

    def objective(parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weights, offset = parameters[:-1], parameters[-1]
        wrong = -sign * (standardised @ weights + offset + logit(p_target))
        slope = -sign * share * expit(wrong)
        loss = share @ np.logaddexp(0, wrong) + 0.5 * _L2 * (weights @ weights)
        return float(loss), np.append(slope @ standardised + _L2 * weights, slope.sum())

    start = np.zeros(values.shape[1] + 1)
    options = {"maxiter": 10_000, "maxfun": 100_000, "ftol": 0.0, "gtol": 1e-10, "maxcor": 30}
    solution = minimize(objective, start, jac=True, method="L-BFGS-B", options=options).x
    weights = solution[:-1] / spread
    return Calibration(
        score=score,
        p_target=p_target,
        weights=dict(zip(features, weights.tolist(), strict=True)),
        offset=float(solution[-1] - weights @ centre),
        num_target=num_target,
        num_nontarget=num_nontarget,
        fingerprint=hashlib.sha256(values.tobytes() + labels.tobytes()).hexdigest(),
    )


def save_calibration(path: PathLike, calibration: Calibration) -> None:
    """Write a calibration as JSON; the file appears whole or not at all."""
    write_json(path, asdict(calibration))


def load_calibration(path: PathLike) -> Calibration:
    """Read what `save_calibration` wrote.

    Raises:
        InputError: for a file that is missing, is no such JSON, or has weights of other features.
    """
    try:
        calibration = TypeAdapter(Calibration).validate_json(Path(path).read_bytes(), strict=True)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; it is made by tools/calibrate.py (stage 7)") from None
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"])) or "the file"
        raise InputError(
            f"{path} is not a calibration that tools/calibrate.py wrote ({where}: {problem['msg']})"
        ) from None
    numbers = [calibration.offset, *calibration.weights.values()]
    if not (all(map(math.isfinite, numbers)) and 0 < calibration.p_target < 1):
        raise InputError(
            f"{path} must hold finite numbers as weights and offset and a p_target between 0 and 1, "
            f"found {numbers} and {calibration.p_target}"
        )
    features = {"score", *(f"{measure}_{part}" for measure in calibration.measures for part in _PARTS)}
    if odd := sorted(calibration.weights.keys() ^ features):
        raise InputError(f"{path} must have weights of the score and of whole quality measures; {listing(odd)} is odd")
    return calibration


def trial_measures(
    trials: Trials,
    quality: NDArray[np.float64],
    *,
    names: Sequence[str] = MEASURES,
    utt2dur: Mapping[str, float] | None = None,
) -> dict[str, NDArray[np.float64]]:
    """Return the values of quality measures of the two utterances of each trial, (N, 2) each.

    Args:
        trials: N trials.
        quality: (N, 4), as of `read_normalised_scores`.
        names: which of MEASURES.
        utt2dur: the duration of each utterance in seconds; more than MAX_DURATION_SEC counts as that.

    Raises:
        InputError: for a name that is not known; for utterances without duration, naming the first ten.
    """
    measures = {}
    for name in names:
        if name == "duration":
            missing = [utt for utt in trials.utts if utt not in (utt2dur or {})]
            if utt2dur is None or missing:
                raise InputError(
                    f"{len(missing)} of {len(trials.utts)} utterances have no duration: {listing(missing)}; "
                    "give the utt2dur of their data folder, or leave the measure 'duration' out"
                )
            seconds = np.minimum([utt2dur[utt] for utt in trials.utts], MAX_DURATION_SEC)
            measures[name] = np.stack((seconds[trials.enroll], seconds[trials.test]), axis=1)
        elif name in MEASURES:
            measures[name] = quality[:, :2] if name == "norm" else quality[:, 2:]
        else:
            raise InputError(f"'{name}' is no quality measure; {nearest(name, MEASURES)}")
    return measures
