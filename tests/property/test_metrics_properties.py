"""What error rates must keep under any change that does not change the ranking of trials."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from wespeaker.eval.metrics import ErrorTradeoff, cllr, corners, eer, error_tradeoff, min_cllr, min_dcf, tar_at_far

Pairs = list[tuple[int, bool]]
FARS = (1.0, 0.5, 0.2, 0.1, 1e-2, 1e-3)
# Few distinct integers make ties common.
trial = st.tuples(st.integers(-8, 8), st.booleans())
lists = st.lists(trial, min_size=2, max_size=60).filter(lambda t: len({label for _, label in t}) == 2)
relaxed = settings(deadline=None, max_examples=150)


def _arrays(trials: Pairs) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    scores, labels = zip(*trials, strict=True)
    return np.array(scores, dtype=np.float64), np.array(labels)


def _rates(tradeoff: ErrorTradeoff) -> list[float]:
    """All that does not depend on the scale of the scores."""
    points = [tar_at_far(tradeoff, far) for far in FARS]
    return [eer(tradeoff), min_dcf(tradeoff), min_cllr(tradeoff), *(p.tar for p in points), *(p.far for p in points)]


@given(lists, st.sampled_from([np.exp, np.arctan, lambda s: 3 * s - 7, lambda s: s**3]))
@relaxed
def test_strictly_increasing_maps_change_no_rate(
    trials: Pairs, increasing: Callable[[NDArray[np.float64]], NDArray[np.float64]]
) -> None:
    scores, labels = _arrays(trials)
    assert _rates(error_tradeoff(increasing(scores), labels)) == _rates(error_tradeoff(scores, labels))


@given(lists, st.randoms(use_true_random=False))
@relaxed
def test_the_order_of_trials_changes_nothing(trials: Pairs, random: Random) -> None:
    shuffled = list(trials)
    random.shuffle(shuffled)
    first, second = error_tradeoff(*_arrays(trials)), error_tradeoff(*_arrays(shuffled))
    assert _rates(first) == _rates(second)
    np.testing.assert_array_equal(first.threshold, second.threshold)


@given(lists)
@relaxed
def test_rates_lie_in_their_ranges_and_tar_grows_with_far(trials: Pairs) -> None:
    tradeoff = error_tradeoff(*_arrays(trials))
    assert 0 <= eer(tradeoff) <= 1
    assert 0 <= min_dcf(tradeoff) <= 1
    tars = [tar_at_far(tradeoff, far).tar for far in sorted(FARS)]
    assert tars == sorted(tars)
    assert tars[-1] == 1
    assert (np.diff(tradeoff.threshold) < 0).all()
    assert len(tradeoff.threshold) == len({score for score, _ in trials}) + 1


@given(lists)
@relaxed
def test_swapping_classes_and_signs_keeps_the_eer(trials: Pairs) -> None:
    scores, labels = _arrays(trials)
    assert abs(eer(error_tradeoff(-scores, ~labels)) - eer(error_tradeoff(scores, labels))) < 1e-12


@given(lists, st.integers(2, 4))
@relaxed
def test_repeating_every_trial_changes_no_rate(trials: Pairs, times: int) -> None:
    assert _rates(error_tradeoff(*_arrays(trials * times))) == _rates(error_tradeoff(*_arrays(trials)))


@given(st.integers(1, 20), st.integers(1, 20), st.floats(-1e6, 1e6))
@relaxed
def test_constant_scores_have_an_eer_of_one_half(num_target: int, num_nontarget: int, score: float) -> None:
    labels = np.arange(num_target + num_nontarget) < num_target
    assert eer(error_tradeoff(np.full(len(labels), score), labels)) == 0.5


@given(lists)
@relaxed
def test_corners_give_the_same_rates(trials: Pairs) -> None:
    tradeoff = error_tradeoff(*_arrays(trials))
    kept = corners(tradeoff)
    few = ErrorTradeoff(tradeoff.threshold[kept], tradeoff.num_true_accepts[kept], tradeoff.num_false_accepts[kept])
    # The FAR that is reached may be lower: nontarget trials below the last accepted target need no accepting.
    assert _rates(few)[: 3 + len(FARS)] == _rates(tradeoff)[: 3 + len(FARS)]
    np.testing.assert_array_equal(corners(few), np.arange(len(kept)))


@given(lists, st.sampled_from([0.1, 1.0, 3.0]), st.integers(-2, 2))
@relaxed
def test_no_map_of_the_scores_has_a_lower_cllr_than_pav(trials: Pairs, scale: float, shift: int) -> None:
    scores, labels = _arrays(trials)
    assert cllr(error_tradeoff(scale * scores + shift, labels)) >= min_cllr(error_tradeoff(scores, labels)) - 1e-12
