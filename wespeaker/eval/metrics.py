"""Exact error rates of a list of scores: EER, minDCF and TAR at a fixed FAR, all from one sort."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wespeaker.errors import InputError, listing


@dataclass(frozen=True)
class ErrorTradeoff:
    """Every operating point of one score list, the strictest first: K distinct scores give K + 1 points.

    Point k accepts the trials whose score is >= ``threshold[k]``. Point 0 accepts none, point K accepts all.
    Trials with the same score are accepted together, so their order in the list cannot matter.
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
    bad = np.flatnonzero(~(np.abs(scores) < np.finfo(np.float64).max))
    if bad.size:
        found = [f"{trial_name(int(i))} ({scores[i]})" for i in bad[:10]]
        raise InputError(f"{bad.size} of {scores.size} scores are not finite numbers; the first: {listing(found)}")
    if labels.all() or not labels.any():
        present, absent = ("target", "nontarget") if labels.any() else ("nontarget", "target")
        found = [trial_name(i) for i in range(min(3, scores.size))]
        which = f"all {scores.size} are {present} trials; the first: {listing(found)}" if found else "it is empty"
        raise InputError(f"the list has no {absent} trials, so it has no error trade-off: {which}")

    order = np.argsort(scores)[::-1]
    descending = scores[order]
    last_of_tie = np.append(np.flatnonzero(np.diff(descending)), scores.size - 1)
    true_accepts = np.cumsum(labels[order], dtype=np.int64)[last_of_tie]
    accept_none = np.nextafter(descending[0], np.inf)
    return ErrorTradeoff(
        threshold=np.concatenate(([accept_none], descending[last_of_tie])),
        num_true_accepts=np.concatenate(([0], true_accepts)),
        num_false_accepts=np.concatenate(([0], last_of_tie + 1 - true_accepts)),
    )


def eer(tradeoff: ErrorTradeoff) -> float:
    """Return the equal error rate, in [0, 1]: where the piecewise linear ROC meets FAR = FRR.

    The ROC joins neighbouring operating points (ties grouped) by straight lines; the EER is read off the line
    between the last point with FRR > FAR and the first with FRR <= FAR. Hence it depends on the set of trials
    alone, not on their order: scores that are all equal give 0.5. The same as solving 1 - x = ROC(x) on
    scikit-learn's ``roc_curve``.

    >>> eer(error_tradeoff([0.5] * 4, [True, True, False, False]))
    0.5
    """
    misses = tradeoff.num_target - tradeoff.num_true_accepts
    # (FRR - FAR) * num_target * num_nontarget, in exact integers: from positive to negative
    gap = misses * tradeoff.num_nontarget - tradeoff.num_false_accepts * tradeoff.num_target
    after = int(np.argmax(gap <= 0))
    above, below = int(gap[after - 1]), -int(gap[after])
    low, high = int(tradeoff.num_false_accepts[after - 1]), int(tradeoff.num_false_accepts[after])
    # (below low + above high) / (above + below) false accepts; whole numbers up to one rounding at the end
    return (below * low + above * high) / ((above + below) * tradeoff.num_nontarget)


def min_dcf(tradeoff: ErrorTradeoff, *, p_target: float = 0.01, c_miss: float = 1.0, c_fa: float = 1.0) -> float:
    """Return the minimum of the normalised detection cost over all thresholds, in [0, 1].

    ``min_k [c_miss p FRR_k + c_fa (1 - p) FAR_k] / min(c_miss p, c_fa (1 - p))`` with p = ``p_target``; accepting
    everything and rejecting everything are among the points, so that the result never exceeds 1.
    Source: NIST SRE evaluation plans.

    Raises:
        InputError: for a ``p_target`` outside (0, 1) or a cost that is not positive.
    """
    if not 0 < p_target < 1:
        raise InputError(f"p_target must lie between 0 and 1, found {p_target}")
    if not (c_miss > 0 and c_fa > 0):
        raise InputError(f"c_miss and c_fa must be positive, found {c_miss} and {c_fa}")
    cost = c_miss * p_target * tradeoff.frr + c_fa * (1 - p_target) * tradeoff.far
    return float(cost.min() / min(c_miss * p_target, c_fa * (1 - p_target)))


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
    # Compared as rates, not as counts: count / num_nontarget is the double nearest to that fraction and so is a
    # literal such as 0.001, while 0.001 * num_nontarget may round to just below the whole number.
    reached = tradeoff.far
    best = int(np.searchsorted(reached, far, side="right")) - 1
    return OperatingPoint(
        tar=float(tradeoff.tar[best]),
        far=float(reached[best]),
        threshold=float(tradeoff.threshold[best]),
        num_false_accepts=int(tradeoff.num_false_accepts[best]),
        resolvable=1 / tradeoff.num_nontarget <= far,
    )
