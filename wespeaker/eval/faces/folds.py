"""Accuracy over folds, with the threshold of the other folds: the protocol of LFW (Huang et al., 2007, view 2)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wespeaker.errors import InputError
from wespeaker.eval.metrics import error_tradeoff

NUM_FOLDS = 10


@dataclass(frozen=True)
class FoldAccuracies:
    """How many pairs of each fold the threshold of the other folds decides rightly."""

    accuracies: NDArray[np.float64]  # (K,), in [0, 1]
    thresholds: NDArray[np.float64]  # (K,), on the scale of the scores

    @property
    def mean(self) -> float:
        """Mean of the folds' accuracies, in [0, 1]."""
        return float(self.accuracies.mean())

    @property
    def standard_error(self) -> float:
        """Standard error of the mean, ``std / sqrt(K)`` with the unbiased variance, as LFW defines it.

        ArcFace's code prints the population's standard deviation after its ±, which is sqrt(K - 1) times as much.
        """
        return float(self.accuracies.std(ddof=1) / np.sqrt(len(self.accuracies)))


def fold_accuracies(scores: ArrayLike, is_target: ArrayLike, *, num_folds: int = NUM_FOLDS) -> FoldAccuracies:
    """Return the accuracy of each fold with the threshold that is best on the other folds.

    The folds are contiguous parts of the list, as LFW's are; where K does not divide N the first are longer by one. A
    threshold decides by ``score >= threshold``. It is sought among all that decide differently on the other folds, not
    on a grid (ArcFace's has steps of 0.01 in the squared distance 2 - 2 cos). Among equally good ones the strictest is
    taken, as there, and it is put halfway between the lowest score it accepts and the next, so that a gap between
    targets and nontargets is shared by both. Half of LFW's pairs are targets; in a list with few of them to reject all
    is right nearly always, and the accuracy says little.

    Args:
        scores: (N,), larger means more alike.
        is_target: (N,), booleans.
        num_folds: K, from 2 to N.

    Raises:
        InputError: for fewer pairs than folds, or folds without which the others lack targets or nontargets; and
            whatever `error_tradeoff` refuses.

    >>> fold_accuracies([0.9, 0.2, 0.8, 0.1], [True, False, True, False], num_folds=2)
    FoldAccuracies(accuracies=array([1., 1.]), thresholds=array([0.45, 0.55]))
    """
    scores, labels = np.asarray(scores, dtype=np.float64), np.asarray(is_target, dtype=np.bool_)
    if not 2 <= num_folds <= len(scores):
        raise InputError(f"folds must be at least 2 and at most as many as the {len(scores)} pairs, found {num_folds}")
    accuracies, thresholds = np.empty(num_folds), np.empty(num_folds)
    for k, fold in enumerate(np.array_split(np.arange(len(scores)), num_folds)):
        others = np.ones(len(scores), dtype=np.bool_)
        others[fold] = False
        try:
            thresholds[k] = best_threshold(scores[others], labels[others])
        except InputError as error:
            raise InputError(f"the folds other than fold {k + 1} of {num_folds}: {error}") from None
        accuracies[k] = np.mean((scores[fold] >= thresholds[k]) == labels[fold])
    return FoldAccuracies(accuracies, thresholds)


def best_threshold(scores: ArrayLike, is_target: ArrayLike) -> float:
    """Return the threshold that decides most pairs rightly, as `fold_accuracies` chooses it.

    Args:
        scores: (N,).
        is_target: (N,), booleans.

    Raises:
        InputError: whatever `error_tradeoff` refuses.
    """
    tradeoff = error_tradeoff(scores, is_target)
    best = int(np.argmax(tradeoff.num_true_accepts - tradeoff.num_false_accepts))  # the first, which is the strictest
    threshold, below = tradeoff.threshold[best], tradeoff.threshold[min(best + 1, len(tradeoff.threshold) - 1)]
    halfway = below + (threshold - below) / 2
    return float(halfway if halfway > below else threshold)  # neighbouring floats have nothing between them
