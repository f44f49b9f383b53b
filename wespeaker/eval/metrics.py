"""Exact error rates of a list of scores: EER, minDCF, actDCF, Cllr and TAR at a fixed FAR, all from one sort."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wespeaker.errors import InputError, listing


@dataclass(frozen=True)
class ErrorTradeoff:
    """Every operating point of one score list, the strictest first: K distinct scores give K + 1 points.

    Point k accepts the trials whose score is >= ``threshold[k]``. Point 0 accepts none, point K accepts all.
    Trials with the same score are accepted together, so their order in the list cannot matter. A trial may count
    several times, or not at all (`wespeaker.eval.intervals`): then neighbouring points may have the same counts.
    """

    threshold: NDArray[np.float64]  # (K + 1,), strictly descending, finite
    num_true_accepts: NDArray[np.int64]  # (K + 1,), target trials accepted, ascending
    num_false_accepts: NDArray[np.int64]  # (K + 1,), nontarget trials accepted, ascending

    @property
    def num_target(self) -> int:
        """Number of target trials."""
        return int(self.num_true_accepts[-1])

    @property
    def num_nontarget(self) -> int:
        """Number of nontarget trials; 1 / num_nontarget is the lowest FAR the list can resolve."""
        return int(self.num_false_accepts[-1])

    @property
    def tar(self) -> NDArray[np.float64]:
        """True acceptance rate of each point, (K + 1,), in [0, 1]."""
        return self.num_true_accepts / self.num_target

    @property
    def far(self) -> NDArray[np.float64]:
        """False acceptance rate of each point, (K + 1,), in [0, 1]."""
        return self.num_false_accepts / self.num_nontarget

    @property
    def frr(self) -> NDArray[np.float64]:
        """False rejection rate of each point, 1 - TAR, (K + 1,), in [0, 1]; 0 misses are exactly 0."""
        return (self.num_target - self.num_true_accepts) / self.num_target

    def index(self, threshold: float) -> int:
        """Return the point that decides as ``score >= threshold`` does on this list."""
        num_below = int(np.searchsorted(self.threshold[::-1], threshold))  # of the K + 1 thresholds
        return max(0, len(self.threshold) - num_below - 1)


@dataclass(frozen=True)
class OperatingPoint:
    """What a threshold does on a list: accept iff score >= ``threshold`` gives exactly these counts and rates."""

    tar: float  # in [0, 1]
    far: float  # reached, in [0, 1]
    threshold: float  # on the scale of the scores
    num_false_accepts: int
    resolvable: bool  # False: the list has fewer than 1 / (asked FAR) nontarget trials


def error_tradeoff(
    scores: ArrayLike, is_target: ArrayLike, *, trial_name: Callable[[int], str] = "trial {}".format
) -> ErrorTradeoff:
    """Sort the scores once and count what each possible threshold accepts.

    Args:
        scores: (N,), any real dtype, computed on in float64; larger means more alike.
        is_target: (N,), booleans or 0 and 1.
        trial_name: what an error message calls the trial with a given index.

    Returns:
        The operating points, ties grouped.

    Raises:
        InputError: for shapes that differ, a score that is not finite (a NaN would sort as the highest score),
            or a list without target or without nontarget trials; it names the first such trials.

    >>> tradeoff = error_tradeoff([0.9, 0.8, 0.8, 0.1], [True, True, False, False])
    >>> tradeoff.num_true_accepts, tradeoff.num_false_accepts
    (array([0, 1, 2, 2]), array([0, 0, 1, 2]))
    """
    scores = np.asarray(scores, dtype=np.float64)
    labels = np.asarray(is_target)
    if scores.ndim != 1 or scores.shape != labels.shape:
        raise InputError(
            f"scores and labels must be two lists of one length, found shapes {scores.shape} and {labels.shape}"
        )
    if labels.dtype != np.bool_ and not np.isin(labels, (0, 1)).all():
        raise InputError("labels must be True (target) and False (nontarget), or 1 and 0")
    labels = labels.astype(np.bool_)
    # The largest float is refused with inf and NaN: no finite threshold would reject it.
    limit = np.finfo(np.float64).max
    largest = float(np.maximum(scores.max(initial=0.0), -scores.min(initial=0.0)))
    if not largest < limit:
        bad = np.flatnonzero(~(np.abs(scores) < limit))
        found = [f"{trial_name(int(i))} ({scores[i]})" for i in bad[:10]]
        raise InputError(f"{bad.size} of {scores.size} scores are not finite numbers; the first: {listing(found)}")
    if labels.all() or not labels.any():
        present, absent = ("target", "nontarget") if labels.any() else ("nontarget", "target")
        found = [trial_name(i) for i in range(min(3, scores.size))]
        which = f"all {scores.size} are {present} trials; the first: {listing(found)}" if found else "it is empty"
        raise InputError(f"the list has no {absent} trials, so it has no error trade-off: {which}")

    descending, is_target = _sort_descending(scores, labels, largest)
    last_of_tie = np.flatnonzero(np.append(descending[1:] != descending[:-1], True))
    size = last_of_tie.size + 1  # point 0, which accepts none, goes before the others
    threshold, true, false = np.empty(size), np.zeros(size, dtype=np.int64), np.zeros(size, dtype=np.int64)
    threshold[0] = np.nextafter(descending[0], np.inf)
    np.take(descending, last_of_tie, out=threshold[1:], mode="clip")  # "raise" would copy
    np.take(np.cumsum(is_target, out=is_target), last_of_tie, out=true[1:], mode="clip")
    np.subtract(last_of_tie, true[1:], out=false[1:])
    false[1:] += 1
    return ErrorTradeoff(threshold, true, false)


def _sort_descending(
    scores: NDArray[np.float64], labels: NDArray[np.bool_], largest: float
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the scores in descending order, and the labels in the order of their scores, 1 and 0.

    Below a magnitude of 2 the highest bit of a float's exponent is 0, so that there is room for the label in the 64
    bits: one sort of integers, which numpy vectorises, does all, in a third of the time of argsort. Larger scores are
    divided by a power of 2, which changes no digit; where it would (scores of 2 and of 1e-308), argsort does it.

    Args:
        scores: (N,), finite.
        labels: (N,).
        largest: the largest magnitude of the scores.
    """
    exponent = max(0, math.frexp(largest)[1] - 1)
    small = np.ldexp(scores, -exponent) if exponent else scores
    if exponent and not np.array_equal(np.ldexp(small, exponent), scores):
        order = np.argsort(scores)[::-1]
        return scores[order], labels[order].astype(np.int64)
    # Three arrays of N in all: fresh memory costs as much as the arithmetic.
    keys = (small + 0.0).view(np.int64)  # a copy, with 0.0 for -0.0
    scratch = np.empty_like(keys)
    _swap_bits_and_order(keys, scratch)
    keys <<= 1
    keys |= labels
    keys.sort()
    is_target = keys[::-1] & 1
    bits = np.right_shift(keys[::-1], 1, out=scratch)
    _swap_bits_and_order(bits, keys)
    descending = bits.view(np.float64)
    return np.ldexp(descending, exponent) if exponent else descending, is_target


def _swap_bits_and_order(values: NDArray[np.int64], scratch: NDArray[np.int64]) -> None:
    """Turn the bits of floats, in place, into integers in the order of the floats, or such integers back into bits."""
    np.right_shift(values, 63, out=scratch)  # of negative ones -1, which is all bits; of others 0
    scratch &= 2**63 - 1
    values ^= scratch


def corners(tradeoff: ErrorTradeoff) -> NDArray[np.intp]:
    """Return the points where the ROC turns, and its two ends: ascending indices.

    The points between two corners accept more trials of one class only, so that they lie on a straight line between
    the two, however often each trial counts. EER, minDCF, minCllr and the largest TAR at a FAR need the corners alone.

    >>> corners(error_tradeoff([5, 4, 3, 2, 1], [True, True, False, False, True]))
    array([0, 2, 4, 5])
    """
    counts = np.stack((tradeoff.num_true_accepts, tradeoff.num_false_accepts))
    distinct = np.flatnonzero(np.append(True, np.diff(counts).any(axis=0)))  # all of them, but where weights are 0
    same = np.diff(counts[:, distinct]) == 0
    straight = (same[:, :-1] & same[:, 1:]).any(axis=0)
    return distinct[np.concatenate(([True], ~straight, [True]))]


def eer(tradeoff: ErrorTradeoff) -> float:
    """Return the equal error rate, in [0, 1]: where the piecewise linear ROC meets FAR = FRR.

    The ROC joins neighbouring operating points (ties grouped) by straight lines; the EER is read off the line
    between the last point with FRR > FAR and the first with FRR <= FAR. Hence it depends on the set of trials
    alone, not on their order: scores that are all equal give 0.5. The same as solving 1 - x = ROC(x) on
    scikit-learn's ``roc_curve``.

    >>> eer(error_tradeoff([0.5] * 4, [True, True, False, False]))
    0.5
    """
    num_target, num_nontarget = tradeoff.num_target, tradeoff.num_nontarget

    def gap(k: int) -> int:
        """Return (FAR - FRR) * num_target * num_nontarget, in exact integers; it ascends with k."""
        misses = num_target - int(tradeoff.num_true_accepts[k])
        return int(tradeoff.num_false_accepts[k]) * num_target - misses * num_nontarget

    after = bisect_left(range(len(tradeoff.threshold)), 0, key=gap)
    above, below = -gap(after - 1), gap(after)
    low, high = int(tradeoff.num_false_accepts[after - 1]), int(tradeoff.num_false_accepts[after])
    # (below low + above high) / (above + below) false accepts; whole numbers up to one rounding at the end
    return (below * low + above * high) / ((above + below) * num_nontarget)


def min_dcf(tradeoff: ErrorTradeoff, *, p_target: float = 0.01, c_miss: float = 1.0, c_fa: float = 1.0) -> float:
    """Return the minimum of the normalised detection cost over all thresholds, in [0, 1].

    ``min_k [c_miss p FRR_k + c_fa (1 - p) FAR_k] / min(c_miss p, c_fa (1 - p))`` with p = ``p_target``; accepting
    everything and rejecting everything are among the points, so that the result never exceeds 1.
    Source: NIST SRE evaluation plans.

    Raises:
        InputError: for a ``p_target`` outside (0, 1) or a cost that is not positive.
    """
    miss, fa = _costs(p_target, c_miss, c_fa)
    cost, of_accepts = tradeoff.frr, tradeoff.far
    cost *= miss  # in place, which takes half the time
    of_accepts *= fa
    cost += of_accepts
    return float(cost.min() / min(miss, fa))


def act_dcf(tradeoff: ErrorTradeoff, *, p_target: float = 0.01, c_miss: float = 1.0, c_fa: float = 1.0) -> float:
    """Return the normalised detection cost of Bayes decisions, for scores that are log-likelihood ratios (natural log).

    Accepts where ``score >= log(c_fa (1 - p) / (c_miss p))`` with p = ``p_target``. At least `min_dcf`, with the same
    normalisation; the difference is the cost of bad calibration, and above 1 the scores do more harm than good.
    Source: NIST SRE evaluation plans.

    Raises:
        InputError: for a ``p_target`` outside (0, 1) or a cost that is not positive.
    """
    miss, fa = _costs(p_target, c_miss, c_fa)
    k = tradeoff.index(math.log(fa / miss))
    return float((miss * tradeoff.frr[k] + fa * tradeoff.far[k]) / min(miss, fa))


def _costs(p_target: float, c_miss: float, c_fa: float) -> tuple[float, float]:
    """Return the costs of missing every target and of accepting every nontarget trial."""
    if not 0 < p_target < 1:
        raise InputError(f"p_target must lie between 0 and 1, found {p_target}")
    if not (c_miss > 0 and c_fa > 0):
        raise InputError(f"c_miss and c_fa must be positive, found {c_miss} and {c_fa}")
    return c_miss * p_target, c_fa * (1 - p_target)


def cllr(tradeoff: ErrorTradeoff) -> float:
    """Return the cost of log-likelihood ratios (natural log), in bits: 0 is perfect, 1 is what saying nothing costs.

    ``[mean over targets of log2(1 + e^-s) + mean over nontargets of log2(1 + e^s)] / 2``, unbounded above.
    Source: Bruemmer and du Preez, "Application-independent evaluation of speaker detection", 2006, eq. 37.
    """
    scores = tradeoff.threshold[1:]  # point k accepts the trials of score k and those above
    targets, nontargets = np.diff(tradeoff.num_true_accepts), np.diff(tradeoff.num_false_accepts)
    miss = targets @ np.logaddexp(0, -scores) / tradeoff.num_target
    false_accept = nontargets @ np.logaddexp(0, scores) / tradeoff.num_nontarget
    return float((miss + false_accept) / math.log(4))


def min_cllr(tradeoff: ErrorTradeoff) -> float:
    """Return the least `cllr` of any non-decreasing function of the scores, in bits, in [0, 1].

    The best function is found by pooling adjacent violators (PAV): its log-likelihood ratios are those of the counts
    of each segment of the ROC's convex hull. It depends on the ranking alone. Source: as `cllr`, section 5.3.
    """
    kept = corners(tradeoff)
    pools = pool_adjacent_violators(np.diff(tradeoff.num_true_accepts[kept]), np.diff(tradeoff.num_false_accepts[kept]))
    # Shares of all targets and of all nontargets; their ratio is the pool's likelihood ratio. 0 log 0 is 0.
    target, nontarget = pools[:, 0] / tradeoff.num_target, pools[:, 1] / tradeoff.num_nontarget
    some_target, some_nontarget = target > 0, nontarget > 0
    miss = target[some_target] @ np.log1p(nontarget[some_target] / target[some_target])
    false_accept = nontarget[some_nontarget] @ np.log1p(target[some_nontarget] / nontarget[some_nontarget])
    return float((miss + false_accept) / math.log(4))


def pool_adjacent_violators(targets: ArrayLike, nontargets: ArrayLike) -> NDArray[np.int64]:
    """Pool neighbouring groups of trials until the share of targets falls from each group to the next.

    Args:
        targets: (K,), number of target trials in each group, groups in descending order of score.
        nontargets: (K,), number of nontarget trials, likewise; a group without any trial is skipped.

    Returns:
        Targets and nontargets of each pool, (P, 2).

    >>> pool_adjacent_violators([2, 0, 1, 0], [0, 1, 1, 3]).tolist()
    [[2, 0], [1, 2], [0, 3]]
    """
    pools: list[tuple[int, int]] = []
    for t, n in zip(np.asarray(targets).tolist(), np.asarray(nontargets).tolist(), strict=True):
        # t / (t + n) >= that of the pool before, in whole numbers; true of (0, 0) on either side
        while pools and t * pools[-1][1] >= pools[-1][0] * n:
            before = pools.pop()
            t, n = t + before[0], n + before[1]
        pools.append((t, n))
    return np.array(pools, dtype=np.int64).reshape(-1, 2)


def tar_at_far(tradeoff: ErrorTradeoff, far: float) -> OperatingPoint:
    """Return the largest TAR whose FAR does not exceed ``far``, and the threshold that gives it.

    No interpolation: the threshold is one of the scores (or the next float above the largest, where the best is to
    accept nothing), so that deciding ``score >= threshold`` on this list gives exactly the counts returned.
    A list with fewer than 1 / far nontarget trials cannot show such a FAR: then the point with no false accept at
    all is returned with ``resolvable`` False.

    Args:
        tradeoff: the operating points.
        far: the false acceptance rate asked for, in (0, 1].

    Raises:
        InputError: for a ``far`` outside (0, 1].

    >>> tar_at_far(error_tradeoff([0.9, 0.8, 0.7, 0.1], [True, False, True, False]), 0.5)
    OperatingPoint(tar=1.0, far=0.5, threshold=0.7, num_false_accepts=1, resolvable=True)
    """
    if not 0 < far <= 1:
        raise InputError(f"a FAR must lie in (0, 1], found {far}")
    num_nontarget, counts = tradeoff.num_nontarget, tradeoff.num_false_accepts
    # Compared as rates, not as counts: count / num_nontarget is the double nearest to that fraction and so is a
    # literal such as 0.001, while 0.001 * num_nontarget may round to just below the whole number.
    best = bisect_right(range(len(counts)), far, key=lambda k: int(counts[k]) / num_nontarget) - 1
    return OperatingPoint(
        tar=int(tradeoff.num_true_accepts[best]) / tradeoff.num_target,
        far=int(counts[best]) / num_nontarget,
        threshold=float(tradeoff.threshold[best]),
        num_false_accepts=int(counts[best]),
        resolvable=1 / num_nontarget <= far,
    )
