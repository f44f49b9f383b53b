"""How sure an error rate is: bootstrap intervals over speakers, and exact bounds on one count.

Trials share speakers, so they are not independent, and a bootstrap of trials gives intervals that are far too short.
Here the S speakers of a list are drawn S times with replacement, and a trial counts as often as the drawn speakers
bring it along: with c_a the times that speaker a was drawn,

- a nontarget trial of speakers a and b counts c_a c_b times: each copy of a meets each copy of b;
- a target trial of speaker a counts c_a times: each copy brings its own trials along. The pairs of two different copies
  of one speaker are neither target trials, as the copies stand for different people, nor nontarget trials, as they
  are one voice, and are left out. (Were they taken as target trials, the weight c_a² would have 2.75 times the
  relative variance of c_a, and intervals of the TAR would be 1.7 times too long.)

This is the bootstrap of Snijders and Borgatti (Connections 22, 1999) for relations between pairs; Owen (Annals of
Applied Statistics 1, 2007) shows that it errs on the long side, where the noise of single pairs outweighs the
differences between speakers. It needs speakers enough: in simulations as in tests/unit/eval/test_coverage.py 95 %
intervals cover the EER in 93 to 97 % of the runs with 500 or 100 speakers and in 89 % with 40; the minDCF, a minimum
over thresholds, in 93, 83 and 71 %.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaincinv, ndtr, ndtri

from wespeaker.data.trials import LABELS, Trials
from wespeaker.errors import InputError, listing
from wespeaker.eval.metrics import ErrorTradeoff, corners, error_tradeoff

LEVEL = 0.95
REPLICATES = 1000


@dataclass(frozen=True)
class TrialSpeakers:
    """The speakers of N trials."""

    names: Sequence[str]  # (S,), sorted
    enroll: NDArray[np.int32]  # (N,), index into names
    test: NDArray[np.int32]  # (N,), index into names


def trial_speakers(trials: Trials, utt2spk: Mapping[str, str] | None = None) -> TrialSpeakers:
    """Look up who speaks in the trials.

    Args:
        trials: N trials.
        utt2spk: the speaker of each utterance; None takes the part of the utterance's name before the first ``/``,
            as in VoxCeleb (``id10270/5r0dWxy17C8/00001.wav``).

    Raises:
        InputError: if utterances have no speaker, or if a target trial has two speakers or a nontarget trial has one;
            it names the first ten.
    """
    if utt2spk is None:
        unnamed = [utt for utt in trials.utts if utt.find("/") < 1]
        if unnamed:
            raise InputError(
                f"intervals need the speaker of each utterance, and {len(unnamed)} of {len(trials.utts)} names do not "
                f"begin with 'speaker/': {listing(unnamed)}; give the speakers with --utt2spk FILE"
            )
        speakers = [utt.partition("/")[0] for utt in trials.utts]
    else:
        unnamed = [utt for utt in trials.utts if utt not in utt2spk]
        if unnamed:
            raise InputError(f"{len(unnamed)} of {len(trials.utts)} utterances have no speaker: {listing(unnamed)}")
        speakers = [utt2spk[utt] for utt in trials.utts]
    names = sorted(set(speakers))
    index = {name: i for i, name in enumerate(names)}
    of_utt = np.array([index[speaker] for speaker in speakers], dtype=np.int32)
    enroll, test = of_utt[trials.enroll], of_utt[trials.test]
    wrong = np.flatnonzero((enroll == test) != trials.is_target)
    if wrong.size:
        found = [
            f"{trials.name(i)} is {LABELS[int(trials.is_target[i])]} of {names[enroll[i]]} and {names[test[i]]}"
            for i in wrong[:10].tolist()
        ]
        source = "the part before the first '/' (give --utt2spk FILE if it is not)" if utt2spk is None else "utt2spk"
        raise InputError(f"{wrong.size} labels contradict the speakers, taken from {source}: {listing(found)}")
    return TrialSpeakers(names, enroll, test)


def bootstrap(
    scores: ArrayLike,
    is_target: ArrayLike,
    speakers: TrialSpeakers,
    statistic: Callable[[ErrorTradeoff], ArrayLike],
    *,
    thresholds: Sequence[float] = (),
    replicates: int = REPLICATES,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Return a statistic of the list under resampled speakers.

    The scores are sorted once; a replicate costs two sums over the trials. Replicate r draws its speakers from a
    generator seeded by (seed, r) alone: the number of threads changes nothing, and two score lists of the same trials
    have the same speakers in the same row, which pairs them. A draw without any target or nontarget trial is repeated.

    Args:
        scores: (N,), finite.
        is_target: (N,), booleans.
        speakers: of the N trials.
        statistic: a pure function of the operating points that gives M numbers, and looks at none but the `corners`
            and the points at ``thresholds``. In a replicate each trial counts as often as its speakers were drawn.
        thresholds: whose points a replicate keeps beside its corners.
        replicates: R, how often to draw.
        seed: a whole number from 0.

    Returns:
        (R, M) float64.

    Raises:
        InputError: whatever `error_tradeoff` refuses.
    """
    resampled = _Resampled(scores, is_target, speakers, thresholds)

    def row(replicate: int) -> NDArray[np.float64]:
        tradeoff = resampled.draw(np.random.default_rng((seed, replicate)))
        return np.atleast_1d(np.asarray(statistic(tradeoff), dtype=np.float64))

    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:  # numpy works without the GIL
        return np.stack(list(pool.map(row, range(replicates))))


class _Resampled:
    """A sorted list of scores that gives operating points under resampled speakers."""

    def __init__(
        self, scores: ArrayLike, is_target: ArrayLike, speakers: TrialSpeakers, thresholds: Sequence[float]
    ) -> None:
        scores, is_target = np.asarray(scores), np.asarray(is_target)
        tradeoff = error_tradeoff(scores, is_target)
        kept = np.union1d(corners(tradeoff), np.array([tradeoff.index(t) for t in thresholds], dtype=np.intp))
        self._threshold = tradeoff.threshold[kept]
        self._num_true, self._num_false = tradeoff.num_true_accepts[kept], tradeoff.num_false_accepts[kept]
        targets, nontargets = (
            rows[np.argsort(-scores[rows])] for rows in (np.flatnonzero(is_target), np.flatnonzero(~is_target))
        )
        self._target = speakers.enroll[targets]
        self._enroll, self._test = speakers.enroll[nontargets], speakers.test[nontargets]
        self._num_speakers = len(speakers.names)

    def draw(self, rng: np.random.Generator) -> ErrorTradeoff:
        """Draw speakers until there are target and nontarget trials among them; count what is accepted."""
        while True:
            drawn = rng.integers(self._num_speakers, size=self._num_speakers)
            times = np.bincount(drawn, minlength=self._num_speakers).astype(np.int32)
            true = _accepted(times[self._target], self._num_true)
            false = _accepted(times[self._enroll] * times[self._test], self._num_false)
            if true[-1] and false[-1]:
                return ErrorTradeoff(self._threshold, true, false)


def _accepted(weights: NDArray[np.int32], nums: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the total weight of the first ``n`` trials for each n of ``nums``."""
    total = np.cumsum(weights, dtype=np.int64)
    return np.where(nums > 0, total[nums - 1], 0)


def bootstrap_quantiles(
    samples: ArrayLike, shares: Sequence[float], *, estimates: ArrayLike | None = None
) -> NDArray[np.float64]:
    """Return the quantiles of each column, corrected for bias: ends of confidence intervals, or one-sided bounds.

    A minimum over thresholds, as in minDCF, is too low on the list it was chosen on, and lower still on a replicate of
    that list. Efron (Canadian Journal of Statistics 9, 1981) shifts the share p to Phi(Phi^-1(p) + 2 z0), where
    z0 = Phi^-1(share of replicates below the estimate). In simulations as in tests/unit/eval/test_coverage.py it lets
    95 % intervals of minDCF with 500 speakers cover the truth in 94 instead of 89 % of the runs, and leaves EER and
    TAR as they were.

    Args:
        samples: (R, M), what `bootstrap` returns.
        shares: (Q,), in (0, 1).
        estimates: (M,), the statistic of the list itself; None corrects nothing.

    Returns:
        (M, Q) float64.
    """
    samples = np.asarray(samples, dtype=np.float64)
    shift = np.zeros(samples.shape[1])
    if estimates is not None:
        below = (samples < estimates).mean(axis=0) + (samples == estimates).mean(axis=0) / 2
        edge = 0.5 / (len(samples) + 1)  # below or above all replicates is not infinitely far
        shift = 2 * ndtri(np.clip(below, edge, 1 - edge))
    corrected = ndtr(ndtri(np.asarray(shares)) + shift[:, None])
    return np.stack([np.quantile(column, at) for column, at in zip(samples.T, corrected, strict=True)])


def confidence_interval(
    samples: ArrayLike, *, estimates: ArrayLike | None = None, level: float = LEVEL
) -> NDArray[np.float64]:
    """Return the two-sided interval of each column.

    Args:
        samples: as in `bootstrap_quantiles`.
        estimates: as in `bootstrap_quantiles`.
        level: of confidence, in (0, 1).

    Returns:
        Lower and upper ends, (M, 2).
    """
    tail = (1 - level) / 2
    return bootstrap_quantiles(samples, (tail, 1 - tail), estimates=estimates)


def p_values(differences: ArrayLike) -> NDArray[np.float64]:
    """Return the two-sided p-value of each column of bootstrapped differences: how far 0 lies in the tails.

    ``min(1, 2 (1 + min(#{d <= 0}, #{d >= 0})) / (1 + R))``: in step with `confidence_interval` without estimates,
    never exactly 0, and 1 for two systems that are the same.

    Args:
        differences: (R, M).

    Returns:
        (M,), in (0, 1].
    """
    differences = np.asarray(differences)
    beyond = np.minimum((differences <= 0).sum(axis=0), (differences >= 0).sum(axis=0))
    return np.minimum(1.0, 2 * (1 + beyond) / (1 + len(differences)))


def tar_band(
    scores: ArrayLike,
    is_target: ArrayLike,
    speakers: TrialSpeakers,
    *,
    fars: ArrayLike | None = None,
    level: float = LEVEL,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the interval of the miss rate at each FAR of a grid, for a DET plot: each FAR has its own, at ``level``.

    Args:
        scores: (N,), finite.
        is_target: (N,), booleans.
        speakers: of the N trials.
        fars: (G,), in (0, 1]; None takes `far_grid` of the list.
        level: of confidence, in (0, 1).
        replicates: as in `bootstrap`.
        seed: as in `bootstrap`.

    Returns:
        FARs, lower and upper ends of the FRR; (G,) each.
    """
    grid = far_grid(int(np.sum(~np.asarray(is_target)))) if fars is None else np.asarray(fars, dtype=np.float64)
    estimates = frr_at_fars(error_tradeoff(scores, is_target), grid)
    samples = bootstrap(scores, is_target, speakers, lambda t: frr_at_fars(t, grid), replicates=replicates, seed=seed)
    low, high = confidence_interval(samples, estimates=estimates, level=level).T
    return grid, low, high


def far_grid(num_nontarget: int, num: int = 80) -> NDArray[np.float64]:
    """Return FARs evenly spaced in their logits from 1 / ``num_nontarget`` to 0.9, (num,) ascending."""
    lowest = min(1 / num_nontarget, 0.5)
    grid = 1 / (1 + np.exp(-np.linspace(np.log(lowest / (1 - lowest)), np.log(9), num)))
    grid[0] = lowest  # to the last digit, so that one false accept is within it
    return grid


def frr_at_fars(tradeoff: ErrorTradeoff, fars: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the least FRR whose FAR does not exceed each of ``fars``, (G,)."""
    return tradeoff.frr[np.searchsorted(tradeoff.far, fars, side="right") - 1]


def upper_bound(count: int, num: int, *, level: float = LEVEL) -> float:
    """Return the one-sided upper bound of a rate of which ``count`` of ``num`` independent trials were seen.

    Clopper and Pearson (Biometrika 26, 1934). Trials that share speakers are not independent: then it is too low.

    >>> round(upper_bound(0, 3000), 6)  # the rule of three: 3 / 3000
    0.000998
    """
    return 1.0 if count == num else float(betaincinv(count + 1, num - count, level))
