"""Error rates against scikit-learn and against trying every threshold."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import brentq
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import det_curve, log_loss, roc_curve

from wespeaker.errors import InputError
from wespeaker.eval.metrics import (
    act_dcf,
    cllr,
    corners,
    eer,
    error_tradeoff,
    min_cllr,
    min_dcf,
    pool_adjacent_violators,
    tar_at_far,
)

Scores = tuple[NDArray[np.float64], NDArray[np.bool_]]


def _gaussian(num: int, seed: int, decimals: int = 12) -> Scores:
    rng = np.random.default_rng(seed)
    is_target = rng.random(num) < 0.4
    is_target[:2] = True, False
    return np.round(rng.standard_normal(num) + 1.5 * is_target, decimals), is_target


CASES = [
    pytest.param(_gaussian(2000, 0), id="no ties"),
    pytest.param(_gaussian(2000, 1, decimals=1), id="many ties"),
    pytest.param(_gaussian(30, 2, decimals=0), id="few distinct scores"),
    pytest.param((np.array([2.0, 1.0]), np.array([True, False])), id="perfect"),
    pytest.param((np.array([1.0, 2.0]), np.array([True, False])), id="inverted"),
    pytest.param((np.full(7, 0.3), np.arange(7) < 3), id="constant"),
]

COSTS = pytest.mark.parametrize(("p_target", "c_miss", "c_fa"), [(0.01, 1, 1), (0.5, 1, 1), (0.05, 10, 2)])


@pytest.mark.parametrize("case", CASES)
def test_operating_points_are_those_of_scikit_learn(case: Scores) -> None:
    scores, is_target = case
    far, tar, threshold = roc_curve(is_target, scores, drop_intermediate=False)
    tradeoff = error_tradeoff(scores, is_target)
    np.testing.assert_array_equal(tradeoff.far, far)
    np.testing.assert_array_equal(tradeoff.tar, tar)
    np.testing.assert_array_equal(tradeoff.threshold[1:], threshold[1:])
    far, frr, _ = det_curve(is_target, scores)
    assert set(zip(far, frr, strict=True)) <= set(zip(tradeoff.far, tradeoff.frr, strict=True))


@pytest.mark.parametrize("case", CASES)
def test_eer_solves_far_equal_to_frr_on_the_roc(case: Scores) -> None:
    scores, is_target = case
    far, tar, _ = roc_curve(is_target, scores, drop_intermediate=False)
    # The ROC as a function of its arc, so that its vertical parts are no trouble.
    arc = np.append(0, np.cumsum(np.diff(far) + np.diff(tar)))
    root = brentq(lambda a: 1 - np.interp(a, arc, tar) - np.interp(a, arc, far), 0, 2, xtol=1e-14)
    assert eer(error_tradeoff(scores, is_target)) == pytest.approx(np.interp(root, arc, far), abs=1e-12)


@pytest.mark.parametrize("case", CASES)
@COSTS
def test_min_dcf_is_the_least_cost_of_any_threshold(case: Scores, p_target: float, c_miss: float, c_fa: float) -> None:
    scores, is_target = case
    costs = []
    for threshold in [-np.inf, *scores, np.inf]:
        accepted = scores >= threshold
        frr, far = np.mean(~accepted[is_target]), np.mean(accepted[~is_target])
        costs.append(c_miss * p_target * frr + c_fa * (1 - p_target) * far)
    expected = min(costs) / min(c_miss * p_target, c_fa * (1 - p_target))
    found = min_dcf(error_tradeoff(scores, is_target), p_target=p_target, c_miss=c_miss, c_fa=c_fa)
    assert found == pytest.approx(expected, abs=1e-12)
    assert found <= 1


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("far", [1.0, 0.5, 0.1, 0.01, 1e-3, 1e-5])
def test_tar_at_far_is_the_best_of_all_thresholds_and_its_threshold_reproduces_it(case: Scores, far: float) -> None:
    scores, is_target = case
    point = error_tradeoff(scores, is_target)
    found = tar_at_far(point, far)
    best = max(
        np.mean(scores[is_target] >= threshold)
        for threshold in [*scores, np.inf]
        if np.mean(scores[~is_target] >= threshold) <= far
    )
    accepted = scores >= found.threshold
    assert np.isfinite(found.threshold)
    assert found.tar == best == np.mean(accepted[is_target])
    assert found.far == np.mean(accepted[~is_target]) <= far
    assert found.num_false_accepts == accepted[~is_target].sum()
    assert found.resolvable == ((~is_target).sum() >= 1 / far)


@pytest.mark.parametrize("case", CASES)
@COSTS
def test_act_dcf_is_the_cost_of_bayes_decisions(case: Scores, p_target: float, c_miss: float, c_fa: float) -> None:
    scores, is_target = case
    # Accepting a trial of posterior P costs c_fa (1 - P), rejecting it c_miss P.
    posterior = 1 / (1 + np.exp(-scores - np.log(p_target / (1 - p_target))))
    accepted = c_fa * (1 - posterior) <= c_miss * posterior
    frr, far = np.mean(~accepted[is_target]), np.mean(accepted[~is_target])
    expected = (c_miss * p_target * frr + c_fa * (1 - p_target) * far) / min(c_miss * p_target, c_fa * (1 - p_target))
    costs = {"p_target": p_target, "c_miss": c_miss, "c_fa": c_fa}
    tradeoff = error_tradeoff(scores, is_target)
    assert act_dcf(tradeoff, **costs) == pytest.approx(expected, abs=1e-12)
    assert act_dcf(tradeoff, **costs) >= min_dcf(tradeoff, **costs)


def test_act_dcf_of_scores_that_are_all_on_one_side_of_the_threshold() -> None:
    labels = [True, True, False]
    assert act_dcf(error_tradeoff([9, 8, 7], labels)) == pytest.approx(99)  # accepts everything
    assert act_dcf(error_tradeoff([1, 2, 3], labels)) == 1  # accepts nothing
    bayes = np.log(99)
    assert act_dcf(error_tradeoff([bayes, bayes + 1, 0], labels)) == 0  # a score at the threshold is accepted


def _log_loss_bits(llr: NDArray[np.float64], is_target: NDArray[np.bool_]) -> float:
    """Cllr is the log loss in bits of posteriors at prior 1/2, both classes weighing the same."""
    weights = np.where(is_target, 0.5 / is_target.sum(), 0.5 / (~is_target).sum())
    with np.errstate(over="ignore"):
        posterior = 1 / (1 + np.exp(-llr))
    return log_loss(is_target, posterior, sample_weight=weights) / np.log(2)


@pytest.mark.parametrize("case", CASES)
def test_cllr_is_the_log_loss_of_scikit_learn(case: Scores) -> None:
    scores, is_target = case
    assert cllr(error_tradeoff(scores, is_target)) == pytest.approx(_log_loss_bits(scores, is_target), abs=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_min_cllr_is_the_log_loss_after_isotonic_regression_of_scikit_learn(case: Scores) -> None:
    scores, is_target = case
    posterior = IsotonicRegression(y_min=0, y_max=1).fit_transform(scores, is_target)
    with np.errstate(divide="ignore"):
        llr = np.log(posterior / (1 - posterior)) - np.log(is_target.sum() / (~is_target).sum())
    found = min_cllr(error_tradeoff(scores, is_target))
    assert found == pytest.approx(_log_loss_bits(llr, is_target), abs=1e-7)  # its isotonic regression is in float32
    assert 0 <= found <= 1


def test_cllr_in_closed_form() -> None:
    labels = [True, False]
    assert cllr(error_tradeoff([0, 0], labels)) == pytest.approx(1)
    assert cllr(error_tradeoff([np.log(3), -np.log(3)], labels)) == pytest.approx(np.log2(4 / 3))
    assert cllr(error_tradeoff([-1000, 1000], labels)) == pytest.approx(1000 / np.log(2))
    assert min_cllr(error_tradeoff([1, 0], labels)) == 0
    assert min_cllr(error_tradeoff([0, 1], labels)) == pytest.approx(1)


def test_log_likelihood_ratios_of_two_gaussians_are_nearly_as_good_as_pav_and_bayes_decisions_nearly_the_best() -> None:
    rng = np.random.default_rng(4)
    is_target = np.arange(60_000) < 30_000
    separation = 2.0  # d' of N(±d²/2, d²): such scores are their own log-likelihood ratios
    scores = separation * rng.standard_normal(is_target.size) + np.where(is_target, 0.5, -0.5) * separation**2
    tradeoff, shifted = error_tradeoff(scores, is_target), error_tradeoff(scores + 2, is_target)
    assert 0 < cllr(tradeoff) - min_cllr(tradeoff) < 0.003
    assert 0 <= act_dcf(tradeoff, p_target=0.1) - min_dcf(tradeoff, p_target=0.1) < 0.01
    assert min_cllr(shifted) == pytest.approx(min_cllr(tradeoff), abs=1e-12)
    assert cllr(shifted) - min_cllr(shifted) > 0.1
    assert act_dcf(shifted, p_target=0.1) - min_dcf(shifted, p_target=0.1) > 0.1


@pytest.mark.parametrize("case", CASES)
def test_pooled_shares_are_those_of_isotonic_regression_of_scikit_learn(case: Scores) -> None:
    scores, is_target = case
    tradeoff = error_tradeoff(scores, is_target)
    pools = pool_adjacent_violators(np.diff(tradeoff.num_true_accepts), np.diff(tradeoff.num_false_accepts))
    shares = pools[:, 0] / pools.sum(axis=1)
    assert (np.diff(shares) < 0).all()
    expected = np.sort(IsotonicRegression().fit_transform(scores, is_target))[::-1]
    np.testing.assert_allclose(np.repeat(shares, pools.sum(axis=1)), expected, atol=1e-7)


@pytest.mark.parametrize("case", CASES)
def test_corners_carry_the_curve(case: Scores) -> None:
    scores, is_target = case
    tradeoff = error_tradeoff(scores, is_target)
    far, tar, _ = roc_curve(is_target, scores, drop_intermediate=False)
    kept = corners(tradeoff)
    assert kept[0] == 0
    assert kept[-1] == len(far) - 1
    # Along its arc the curve is straight between corners, and turns at each.
    arc = far + tar
    np.testing.assert_allclose(np.interp(arc, arc[kept], far[kept]), far, rtol=0, atol=1e-12)
    turns = np.diff(far[kept][:-1]) * np.diff(tar[kept][1:]) - np.diff(far[kept][1:]) * np.diff(tar[kept][:-1])
    straight_ahead = np.isclose(turns, 0, atol=1e-15)
    axis_aligned = (np.diff(far[kept]) == 0) | (np.diff(tar[kept]) == 0)
    assert not (straight_ahead & axis_aligned[:-1] & axis_aligned[1:]).any()


@pytest.mark.parametrize("case", CASES)
def test_a_threshold_finds_its_point(case: Scores) -> None:
    scores, is_target = case
    tradeoff = error_tradeoff(scores, is_target)
    for threshold in (-1e9, *scores[:50], *(scores[:50] + 1e-6), 1e9):
        k = tradeoff.index(threshold)
        assert tradeoff.num_true_accepts[k] == (scores[is_target] >= threshold).sum()
        assert tradeoff.num_false_accepts[k] == (scores[~is_target] >= threshold).sum()


def test_far_of_exactly_one_count_is_allowed_whatever_the_rounding() -> None:
    for num_nontarget in (10, 100, 1000, 31000, 18809):
        scores = np.arange(num_nontarget + 1, dtype=float)
        tradeoff = error_tradeoff(scores, scores == 0)
        for count in {1, 3, num_nontarget // 7 + 1, num_nontarget - 1}:
            assert tar_at_far(tradeoff, count / num_nontarget).num_false_accepts == count
    thousand = np.arange(31001.0)
    assert tar_at_far(error_tradeoff(thousand, thousand == 0), 0.001).num_false_accepts == 31


def test_a_far_the_list_cannot_show_gives_the_tar_without_false_accepts_and_says_so() -> None:
    point = tar_at_far(error_tradeoff([0.9, 0.8, 0.7, 0.6], [True, False, True, False]), 0.4)
    assert (point.tar, point.far, point.num_false_accepts, point.resolvable) == (0.5, 0.0, 0, False)
    assert point.threshold == 0.9


def test_where_nothing_can_be_accepted_the_threshold_is_the_next_float_above_the_scores() -> None:
    point = tar_at_far(error_tradeoff([0.9, 0.9, 0.1], [True, False, False]), 0.4)
    assert point.tar == 0
    assert point.threshold == np.nextafter(0.9, 1)


def test_integer_labels_and_float32_scores_are_taken() -> None:
    scores, is_target = _gaussian(50, 3)
    single = scores.astype(np.float32)
    found = error_tradeoff(single, is_target.astype(int))
    np.testing.assert_array_equal(found.threshold[1:], np.unique(single)[::-1].astype(np.float64))


@pytest.mark.parametrize(
    "scale", [1e-320, 1e-300, 0.1, 0.999, 1.0, 2.0, 1000.0, 1e300, np.array([1e-310, 1e5]), np.array([0.0, -0.0, 7.0])]
)
def test_scores_of_any_size_and_sign_keep_their_order_and_digits(scale: float | NDArray[np.float64]) -> None:
    rng = np.random.default_rng(5)
    scores = np.round(rng.standard_normal(999), 2) * np.resize(scale, 999)
    is_target = rng.random(999) < 0.3
    far, tar, threshold = roc_curve(is_target, scores + 0.0, drop_intermediate=False)
    tradeoff = error_tradeoff(scores, is_target)
    np.testing.assert_array_equal(tradeoff.threshold[1:], threshold[1:])
    np.testing.assert_array_equal(tradeoff.far, far)
    np.testing.assert_array_equal(tradeoff.tar, tar)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, np.finfo(np.float64).max])
def test_a_score_that_is_not_finite_is_refused_by_name(value: float) -> None:
    with pytest.raises(InputError, match=r"1 of 3 scores .* not finite numbers; the first: trial 1 \("):
        error_tradeoff([0.1, value, 0.2], [True, True, False])
    with pytest.raises(InputError, match=r"the first: a-1 \("):
        error_tradeoff([0.1, value, 0.2], [True, True, False], trial_name="a-{}".format)


@pytest.mark.parametrize(
    ("label", "present", "absent"), [(True, "target", "nontarget"), (False, "nontarget", "target")]
)
def test_a_list_of_one_class_is_refused(label: bool, present: str, absent: str) -> None:
    with pytest.raises(InputError, match=f"no {absent} trials.*all 2 are {present} trials; the first: trial 0"):
        error_tradeoff([0.1, 0.2], [label, label])


def test_an_empty_list_is_refused() -> None:
    with pytest.raises(InputError, match="it is empty"):
        error_tradeoff([], [])


def test_shapes_and_labels_must_fit() -> None:
    with pytest.raises(InputError, match=r"\(3,\) and \(2,\)"):
        error_tradeoff([0.1, 0.2, 0.3], [True, False])
    with pytest.raises(InputError, match="labels must be"):
        error_tradeoff([0.1, 0.2], [1, 2])


@pytest.mark.parametrize("far", [0.0, -0.1, 1.5, np.nan])
def test_a_far_outside_0_1_is_refused(far: float) -> None:
    with pytest.raises(InputError, match="FAR must lie in"):
        tar_at_far(error_tradeoff([0.1, 0.2], [True, False]), far)


def test_costs_and_prior_must_make_sense() -> None:
    tradeoff = error_tradeoff([0.1, 0.2], [True, False])
    for p_target in (0.0, 1.0, np.nan):
        with pytest.raises(InputError, match="p_target"):
            min_dcf(tradeoff, p_target=p_target)
        with pytest.raises(InputError, match="p_target"):
            act_dcf(tradeoff, p_target=p_target)
    with pytest.raises(InputError, match="positive"):
        min_dcf(tradeoff, c_fa=0)
    with pytest.raises(InputError, match="positive"):
        act_dcf(tradeoff, c_miss=-1)
