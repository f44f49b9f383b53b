import numpy as np
import pytest
from sklearn.metrics import accuracy_score
from sklearn.model_selection import KFold

from wespeaker.errors import InputError
from wespeaker.eval.faces.folds import best_threshold, fold_accuracies


def simulate(num_pairs, *, ties=False, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.random(num_pairs) < 0.5
    labels[:4] = labels[-4:] = [True, False, True, False]
    scores = rng.normal(0.4 * labels, 0.2)
    return (np.round(scores, 1) if ties else scores), labels


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("num_pairs", "num_folds"), [(600, 10), (607, 10), (37, 10), (25, 2), (12, 12)])
def test_folds_are_scikit_learns_and_thresholds_the_best_of_all(num_pairs, num_folds, ties):
    scores, labels = simulate(num_pairs, ties=ties, seed=num_pairs)
    found = fold_accuracies(scores, labels, num_folds=num_folds)
    splits = KFold(n_splits=num_folds, shuffle=False).split(scores)
    for (train, test), accuracy, threshold in zip(splits, found.accuracies, found.thresholds, strict=True):
        candidates = np.append(np.unique(scores[train]), np.inf)[::-1]  # every one that decides differently
        right = (scores[train] >= candidates[:, None]) == labels[train]
        reached = right.mean(axis=1)
        decided = scores[train] >= threshold
        assert accuracy_score(labels[train], decided) == max(reached)
        assert np.array_equal(decided, scores[train] >= candidates[np.argmax(reached)])  # the strictest of the best
        assert accuracy == accuracy_score(labels[test], scores[test] >= threshold)
    assert found.mean == pytest.approx(np.mean(found.accuracies), abs=1e-15)


def test_standard_error_is_that_of_lfw():
    """LFW's report: the variance of the 10 folds with 9 in the denominator, then its root over the root of 10."""
    scores, labels = simulate(600)
    found = fold_accuracies(scores, labels)
    deviations = [accuracy - found.mean for accuracy in found.accuracies]
    assert found.standard_error == pytest.approx((sum(d * d for d in deviations) / 9) ** 0.5 / 10**0.5)
    assert found.accuracies.std() == pytest.approx(3 * found.standard_error)  # what ArcFace's code prints


def test_a_gap_is_shared_by_both_sides():
    scores, labels = [0.9, 0.8, 0.5, 0.1, 0.0], [True, True, True, False, False]
    assert best_threshold(scores, labels) == pytest.approx(0.3)


def test_a_finer_threshold_than_the_grid_of_arcface():
    """Squared distances 2 - 2 cos of 0.1003 and 0.1007 lie in one step of 0.01."""
    scores = 1 - np.array([0.1003, 0.1007] * 10) / 2
    labels = np.array([True, False] * 10)
    assert fold_accuracies(scores, labels).mean == 1.0
    grid = np.arange(0, 4, 0.01)
    assert max(np.mean((2 - 2 * scores < step) == labels) for step in grid) == 0.5


def test_neighbouring_floats_and_extremes():
    high = 0.5
    low = np.nextafter(high, 0)
    assert low < best_threshold([high, low], [True, False]) <= high
    rejecting = best_threshold([0.9, 0.8, 0.7, 0.1], [False, False, False, True])
    assert rejecting > 0.9
    accepting = best_threshold([0.9, 0.8, 0.7, 0.95], [True, True, True, False])
    assert accepting <= 0.7


@pytest.mark.parametrize(
    ("labels", "num_folds", "message"),
    [
        ([True, False, True], 4, "folds must be at least 2 and at most as many as the 3 pairs, found 4"),
        ([True, False, True], 1, "found 1"),
        ([True, False, False], 3, "the folds other than fold 1 of 3: the list has no target trials"),
    ],
)
def test_what_cannot_be_folded(labels, num_folds, message):
    with pytest.raises(InputError, match=message):
        fold_accuracies([0.3, 0.2, 0.1], labels, num_folds=num_folds)
