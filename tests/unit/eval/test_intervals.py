"""The bootstrap over speakers against copying speakers literally, and against scipy's exact bounds."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binomtest, norm

from wespeaker.data.trials import Trials
from wespeaker.errors import InputError
from wespeaker.eval.intervals import (
    TrialSpeakers,
    bootstrap,
    bootstrap_quantiles,
    confidence_interval,
    far_grid,
    p_values,
    tar_band,
    trial_speakers,
    upper_bound,
)
from wespeaker.eval.metrics import ErrorTradeoff, eer, error_tradeoff, min_cllr, min_dcf, tar_at_far

FARS = (0.3, 0.1, 0.02)


def _trials(num_speakers: int = 7, num_utts: int = 3) -> Trials:
    utts = [f"id{speaker}/v/{utt}.wav" for speaker in range(num_speakers) for utt in range(num_utts)]
    pairs = np.array(list(combinations(range(len(utts)), 2)), dtype=np.int32)
    enroll, test = pairs.T
    return Trials(utts, enroll, test, enroll // num_utts == test // num_utts)


def _scores(trials: Trials, *, decimals: int = 12, seed: int = 0) -> NDArray[np.float64]:
    noise = np.random.default_rng(seed).standard_normal(len(trials))
    return np.round(noise + 1.5 * trials.is_target, decimals)


def _rates(tradeoff: ErrorTradeoff) -> list[float]:
    points = [tar_at_far(tradeoff, far) for far in FARS]
    return [eer(tradeoff), min_dcf(tradeoff, p_target=0.2), min_cllr(tradeoff), *(point.tar for point in points)]


def _copied(
    scores: NDArray[np.float64], speakers: TrialSpeakers, drawn: NDArray[np.int64]
) -> tuple[list[float], list[bool]]:
    """Write out the trials of drawn speakers: each copy's own target trials, and nontarget trials of any two copies."""
    copied, labels = [], []
    for score, enroll, test in zip(scores, speakers.enroll, speakers.test, strict=True):
        if enroll == test:
            copies = [score for copy in drawn if copy == enroll]
        else:
            copies = [score for a, b in product(drawn, drawn) if (a, b) == (enroll, test)]
        copied += copies
        labels += [bool(enroll == test)] * len(copies)
    return copied, labels


@pytest.mark.parametrize("decimals", [12, 0], ids=["no ties", "many ties"])
def test_a_replicate_is_the_list_of_the_drawn_speakers(decimals: int) -> None:
    trials = _trials()
    scores, speakers = _scores(trials, decimals=decimals), trial_speakers(trials)
    samples = bootstrap(scores, trials.is_target, speakers, _rates, replicates=20, seed=5)
    assert samples.shape == (20, 6)
    for replicate, found in enumerate(samples):
        drawn = np.random.default_rng((5, replicate)).integers(7, size=7)
        np.testing.assert_allclose(found, _rates(error_tradeoff(*_copied(scores, speakers, drawn))), rtol=0, atol=1e-12)


def test_a_fixed_threshold_is_kept_though_it_is_no_corner() -> None:
    trials = _trials()
    scores, speakers = _scores(trials), trial_speakers(trials)
    thresholds = [float(np.sort(scores)[i]) for i in (3, 50, 150)]

    def rates(tradeoff: ErrorTradeoff) -> NDArray[np.float64]:
        points = [tradeoff.index(threshold) for threshold in thresholds]
        return np.concatenate((tradeoff.far[points], tradeoff.tar[points]))

    samples = bootstrap(scores, trials.is_target, speakers, rates, thresholds=thresholds, replicates=10, seed=2)
    for replicate, found in enumerate(samples):
        drawn = np.random.default_rng((2, replicate)).integers(7, size=7)
        copied, labels = (np.array(values) for values in _copied(scores, speakers, drawn))
        expected = [np.mean(copied[labels == wanted] >= t) for wanted in (False, True) for t in thresholds]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_a_replicate_depends_on_the_seed_and_its_number_alone() -> None:
    trials = _trials()
    scores, speakers = _scores(trials), trial_speakers(trials)
    long = bootstrap(scores, trials.is_target, speakers, eer, replicates=30, seed=1)
    np.testing.assert_array_equal(bootstrap(scores, trials.is_target, speakers, eer, replicates=9, seed=1), long[:9])
    assert (bootstrap(scores, trials.is_target, speakers, eer, replicates=30, seed=2) != long).any()
    # The same speakers for another system: its rates differ by what it does, and an equal system's do not.
    monotone = bootstrap(np.exp(scores), trials.is_target, speakers, eer, replicates=30, seed=1)
    np.testing.assert_array_equal(monotone, long)


def test_draws_without_both_kinds_of_trials_are_repeated() -> None:
    trials = Trials(["a/1", "a/2", "b/1"], np.array([0, 0]), np.array([1, 2]), np.array([True, False]))
    samples = bootstrap([0.1, 0.9], trials.is_target, trial_speakers(trials), eer, replicates=100)
    np.testing.assert_array_equal(samples, np.ones((100, 1)))


def test_speakers_are_read_off_the_names_or_looked_up() -> None:
    trials = _trials(3, 2)
    speakers = trial_speakers(trials)
    assert speakers.names == ["id0", "id1", "id2"]
    np.testing.assert_array_equal(speakers.enroll, trials.enroll // 2)
    np.testing.assert_array_equal(speakers.test, trials.test // 2)
    renamed = Trials([f"utt{i}" for i in range(6)], trials.enroll, trials.test, trials.is_target)
    looked_up = trial_speakers(renamed, {f"utt{i}": f"spk{i // 2}" for i in range(9)})
    assert looked_up.names == ["spk0", "spk1", "spk2"]
    np.testing.assert_array_equal(looked_up.enroll, speakers.enroll)


@pytest.mark.parametrize(
    ("utts", "utt2spk", "message"),
    [
        (["a/1", "a2", "b/1"], None, "1 of 3 names do not begin with 'speaker/': a2; give .* --utt2spk FILE"),
        (["/a/1", "a/2", "b/1"], None, "1 of 3 names do not begin with 'speaker/': /a/1"),
        (["x", "y", "z"], {"x": "a"}, "2 of 3 utterances have no speaker: y, z"),
        (["a/1", "b/1", "b/2"], None, "1 labels contradict .*a/1 b/1 is target of a and b"),
        (
            ["wav/a", "wav/b", "wav/c"],
            None,
            r"first '/' \(give --utt2spk FILE if .*wav/a wav/c is nontarget of wav and",
        ),
        (["x", "y", "z"], {"x": "a", "y": "b", "z": "b"}, "utt2spk: x y is target of a and b"),
    ],
)
def test_speakers_that_are_unknown_or_contradict_the_labels_are_refused(
    utts: list[str], utt2spk: dict[str, str] | None, message: str
) -> None:
    trials = Trials(utts, np.array([0, 0], np.int32), np.array([1, 2], np.int32), np.array([True, False]))
    with pytest.raises(InputError, match=message):
        trial_speakers(trials, utt2spk)


def test_quantiles_are_shifted_by_the_bias_of_the_median() -> None:
    samples = np.arange(1001.0)[:, None] * [1, 1, 1, 0]
    found = bootstrap_quantiles(samples, [0.025, 0.975], estimates=[500, 600, 5000, 0])
    np.testing.assert_allclose(found[0], [25, 975], rtol=1e-3)
    z0 = norm.ppf(600.5 / 1001)
    np.testing.assert_allclose(found[1], 1000 * norm.cdf([2 * z0 - 1.959964, 2 * z0 + 1.959964]), rtol=1e-3)
    assert 999 < found[2, 0] <= found[2, 1] <= 1000  # the estimate is above all replicates
    assert (found[3] == 0).all()


def test_confidence_intervals_and_p_values() -> None:
    samples = np.stack([np.arange(1001.0), np.zeros(1001), np.arange(1001.0) - 10], axis=1)
    np.testing.assert_allclose(confidence_interval(samples), [[25, 975], [0, 0], [15, 965]])
    np.testing.assert_allclose(confidence_interval(samples, level=0.5)[0], [250, 750])
    np.testing.assert_allclose(p_values(samples), [2 * 2 / 1002, 1, 2 * 12 / 1002])


def test_p_values_and_intervals_agree_about_zero() -> None:
    samples = np.random.default_rng(0).standard_normal((999, 400)) + np.linspace(0, 3, 400)
    low, high = confidence_interval(samples).T
    outside = (low > 0) | (high < 0)
    p = p_values(samples)
    sure = np.abs(p - 0.05) > 0.004  # the two count the replicates at the very edge differently
    np.testing.assert_array_equal(outside[sure], p[sure] < 0.05)


@pytest.mark.parametrize(("count", "num"), [(0, 30), (1, 30), (27, 275_000), (30, 30)])
def test_the_upper_bound_is_that_of_clopper_and_pearson(count: int, num: int) -> None:
    exact = binomtest(count, num, alternative="less").proportion_ci(0.95, "exact").high
    assert upper_bound(count, num) == pytest.approx(exact, rel=1e-9)


def test_a_band_is_the_interval_of_the_miss_rate_at_each_far() -> None:
    trials = _trials(20)
    scores, speakers = _scores(trials), trial_speakers(trials)
    fars, low, high = tar_band(scores, trials.is_target, speakers, replicates=200, seed=3)
    num_nontarget = int((~trials.is_target).sum())
    assert fars[0] == 1 / num_nontarget
    assert (np.diff(fars) > 0).all()
    assert (low <= high).all()
    assert high[0] > 0.8 > 0.2 > high[-20]
    at = 40

    def tar(tradeoff: ErrorTradeoff) -> float:
        return tar_at_far(tradeoff, float(fars[at])).tar

    samples = bootstrap(scores, trials.is_target, speakers, tar, replicates=200, seed=3)
    estimate = [1 - tar(error_tradeoff(scores, trials.is_target))]
    expected = confidence_interval(1 - samples, estimates=estimate)
    np.testing.assert_allclose(expected[0], [low[at], high[at]], rtol=0, atol=0.003)  # 1 - TAR ties but for rounding
    asked, *_ = tar_band(scores, trials.is_target, speakers, fars=[0.1, 0.2], replicates=100)
    np.testing.assert_array_equal(asked, [0.1, 0.2])


@pytest.mark.parametrize("num_nontarget", [1, 2, 7, 31_000, 10**8])
def test_the_grid_begins_with_one_false_accept(num_nontarget: int) -> None:
    grid = far_grid(num_nontarget)
    assert grid[0] == min(1 / num_nontarget, 0.5)
    assert (np.diff(grid) > 0).all()
    assert grid[-1] == pytest.approx(0.9)
