"""What an evaluation says of one trial list: error rates, how sure they are, and thresholds to decide with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wespeaker.data.trials import Trials
from wespeaker.errors import InputError
from wespeaker.eval.intervals import (
    LEVEL,
    REPLICATES,
    bootstrap,
    bootstrap_quantiles,
    confidence_interval,
    far_grid,
    frr_at_fars,
    trial_speakers,
    upper_bound,
)
from wespeaker.eval.metrics import ErrorTradeoff, OperatingPoint, eer, error_tradeoff, min_dcf, tar_at_far

DEFAULT_FARS = (1e-2, 1e-3, 1e-4, 1e-5)
MIN_REPLICATES = 100  # 2.5 % of fewer are too few to tell where an interval ends

Band = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]


@dataclass(frozen=True)
class Asked:
    """What to find out of every list."""

    fars: Sequence[float] = DEFAULT_FARS  # of the table, in (0, 1]
    p_target: float = 0.01  # prior of a target trial in minDCF; costs are 1 and 1
    target_fars: Sequence[float] = ()  # to give operating points for, in (0, 1]
    utt2spk: Mapping[str, str] | None = None  # None: the utterances' names begin with the speaker's
    replicates: int = REPLICATES  # of the bootstrap; 0 for no intervals
    seed: int = 0

    def __post_init__(self) -> None:
        if self.replicates != 0 and self.replicates < MIN_REPLICATES:
            raise InputError(
                f"replicates must be 0 (no intervals) or at least {MIN_REPLICATES}, found {self.replicates}"
            )


@dataclass(frozen=True)
class ListResult:
    """What was found of one list."""

    tradeoff: ErrorTradeoff
    rates: dict[str, Any]  # the entry of results.json
    points: dict[str, dict[str, Any]]  # the entries of threshold.json, by ``str(far)`` of the target FAR
    band: Band | None  # FARs and the interval of the FRR at each, (G,) each; None without intervals


def error_rates(
    tradeoff: ErrorTradeoff, *, fars: Sequence[float] = DEFAULT_FARS, p_target: float = 0.01
) -> dict[str, Any]:
    """Return the entry of one list in results.json, but for its intervals: counts, and rates in [0, 1].

    Args:
        tradeoff: the operating points of the list.
        fars: asked false acceptance rates; the keys of ``tar_at_far`` are ``str(far)``.
        p_target: prior of a target trial in minDCF; costs are 1 and 1.
    """
    points = {str(float(far)): tar_at_far(tradeoff, far) for far in fars}
    return {
        "num_target": tradeoff.num_target,
        "num_nontarget": tradeoff.num_nontarget,
        "eer": eer(tradeoff),
        "min_dcf": {str(float(p_target)): min_dcf(tradeoff, p_target=p_target)},
        "tar_at_far": {key: dict(vars(point)) for key, point in points.items()},
    }


def rate_vector(tradeoff: ErrorTradeoff, asked: Asked) -> NDArray[np.float64]:
    """Return EER, minDCF and the TAR at each FAR of the table as one vector, (2 + len(fars),)."""
    tars = [tar_at_far(tradeoff, far).tar for far in asked.fars]
    return np.array([eer(tradeoff), min_dcf(tradeoff, p_target=asked.p_target), *tars])


def by_name(values: Sequence[Any], asked: Asked) -> dict[str, Any]:
    """Give the parts of a `rate_vector`, or what was made of them, their names in results.json."""
    tars = {str(float(far)): value for far, value in zip(asked.fars, values[2:], strict=True)}
    return {"eer": values[0], "min_dcf": {str(float(asked.p_target)): values[1]}, "tar_at_far": tars}


def evaluate_list(trials: Trials, scores: NDArray[np.float64], asked: Asked) -> ListResult:
    """Find out all that is asked of one list.

    Args:
        trials: N trials.
        scores: (N,).
        asked: what to find out.

    Raises:
        InputError: for scores, labels, FARs or speakers that cannot be evaluated.
    """
    tradeoff = error_tradeoff(scores, trials.is_target, trial_name=trials.name)
    rates = error_rates(tradeoff, fars=asked.fars, p_target=asked.p_target)
    targets = [tar_at_far(tradeoff, far) for far in asked.target_fars]
    points = {str(float(far)): _operating_point(t, tradeoff) for far, t in zip(asked.target_fars, targets, strict=True)}
    if not asked.replicates:
        return ListResult(tradeoff, rates, points, None)

    try:
        speakers = trial_speakers(trials, asked.utt2spk)
    except InputError as error:
        raise InputError(f"{error} (or --replicates 0, for no intervals)") from None
    thresholds = [target.threshold for target in targets]
    grid = far_grid(tradeoff.num_nontarget)

    def statistic(resampled: ErrorTradeoff) -> NDArray[np.float64]:
        fixed = [resampled.index(threshold) for threshold in thresholds]
        vector = rate_vector(resampled, asked)
        return np.concatenate((vector, resampled.far[fixed], resampled.tar[fixed], frr_at_fars(resampled, grid)))

    samples = bootstrap(
        scores,
        trials.is_target,
        speakers,
        statistic,
        thresholds=thresholds,
        replicates=asked.replicates,
        seed=asked.seed,
    )
    estimates = statistic(tradeoff)
    num_rates, num_points = 2 + len(asked.fars), len(thresholds)
    of_rates, of_far, of_tar, of_grid = np.split(
        confidence_interval(samples, estimates=estimates), np.cumsum([num_rates, num_points, num_points])
    )
    named = by_name(of_rates.tolist(), asked)
    for far, point in rates["tar_at_far"].items():
        if not point["resolvable"]:
            named["tar_at_far"][far] = None
    rates["interval"] = {
        "level": LEVEL,
        "replicates": asked.replicates,
        "seed": asked.seed,
        "num_speakers": len(speakers.names),
        **named,
    }
    for i, point in enumerate(points.values()):
        point["interval"] = {"far": None, "tar": of_tar[i].tolist()}
        if point["num_false_accepts"]:  # no resampling of no false accept tells how many there might be
            point["interval"]["far"] = of_far[i].tolist()
            at = [num_rates + i]
            upper = bootstrap_quantiles(samples[:, at], [LEVEL], estimates=estimates[at])
            point["far_upper"]["bootstrap"] = float(upper[0, 0])
    return ListResult(tradeoff, rates, points, (grid, of_grid[:, 0], of_grid[:, 1]))


def _operating_point(point: OperatingPoint, tradeoff: ErrorTradeoff) -> dict[str, Any]:
    """Return an entry of threshold.json; `evaluate_list` adds what the bootstrap says of this threshold."""
    return {
        **vars(point),
        "num_true_accepts": round(point.tar * tradeoff.num_target),
        "far_upper": {
            "clopper_pearson": upper_bound(point.num_false_accepts, tradeoff.num_nontarget),
            "bootstrap": None,
        },
    }
