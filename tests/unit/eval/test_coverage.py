"""Do 95 % intervals cover the truth in 95 % of the cases? Simulated speakers, with rates known in closed form.

The score of a target trial of speaker a is ``mean + g_a + e_u + e_v``, that of a nontarget trial of speakers a and b
``w_a + w_b + e_u + e_v``: some speakers are harder to recognise (g), some are more often taken for others (w), and
each utterance has noise of its own (e). All are Gaussian, so the true FAR and FRR of a threshold are Gaussian tails.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.stats import norm

from wespeaker.eval.intervals import TrialSpeakers, bootstrap, confidence_interval
from wespeaker.eval.metrics import ErrorTradeoff, error_tradeoff
from wespeaker.eval.results import Asked, rate_vector

MEAN, OF_TARGETS, OF_NONTARGETS, OF_UTTS = 3.0, 0.6, 0.3, 0.6  # the last three: standard deviations of g, w, e
ASKED = Asked(fars=(1e-1, 1e-2, 1e-3))
NAMES = ("EER", "minDCF", "TAR@1e-1", "TAR@1e-2", "TAR@1e-3")
NUM_UTTS = 4


def _truth() -> NDArray[np.float64]:
    target, nontarget = np.hypot(OF_TARGETS, np.sqrt(2) * OF_UTTS), np.sqrt(2) * np.hypot(OF_NONTARGETS, OF_UTTS)

    def cost(threshold: float) -> float:
        frr, far = norm.cdf((threshold - MEAN) / target), norm.sf(threshold / nontarget)
        return frr + (1 - ASKED.p_target) / ASKED.p_target * far

    min_dcf = minimize_scalar(cost, bounds=(0, 2 * MEAN), method="bounded").fun
    tars = norm.sf((nontarget * norm.isf(ASKED.fars) - MEAN) / target)
    return np.array([norm.cdf(-MEAN / (target + nontarget)), min_dcf, *tars])


def _simulate(
    rng: np.random.Generator, num_speakers: int, num_nontarget: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_], TrialSpeakers]:
    """Draw speakers and utterances; return the scores of all target and some nontarget trials."""
    easy, alike = OF_TARGETS * rng.standard_normal(num_speakers), OF_NONTARGETS * rng.standard_normal(num_speakers)
    noise = OF_UTTS * rng.standard_normal((num_speakers, NUM_UTTS))
    pairs = np.array(list(combinations(range(NUM_UTTS), 2)))
    own = np.repeat(np.arange(num_speakers), len(pairs))
    targets = MEAN + easy[own] + noise[:, pairs].sum(axis=2).ravel()
    a = rng.integers(num_speakers, size=num_nontarget)
    b = (a + rng.integers(1, num_speakers, size=num_nontarget)) % num_speakers
    u, v = rng.integers(NUM_UTTS, size=(2, num_nontarget))
    nontargets = alike[a] + alike[b] + noise[a, u] + noise[b, v]
    scores = np.concatenate((targets, nontargets))
    enroll, test = np.concatenate((own, a)).astype(np.int32), np.concatenate((own, b)).astype(np.int32)
    return scores, enroll == test, TrialSpeakers([str(i) for i in range(num_speakers)], enroll, test)


def _of_trials(
    rng: np.random.Generator, scores: NDArray[np.float64], is_target: NDArray[np.bool_], replicates: int
) -> NDArray[np.float64]:
    """Return rates under resampled trials, as if these were independent."""
    rows = (rng.integers(len(scores), size=len(scores)) for _ in range(replicates))
    return np.stack([rate_vector(error_tradeoff(scores[chosen], is_target[chosen]), ASKED) for chosen in rows])


def _coverage(
    *, runs: int, num_speakers: int, num_nontarget: int, replicates: int, naive_runs: int, naive_replicates: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return how often intervals over speakers, and naive ones over trials, cover the truth; (5,) each."""

    def statistic(tradeoff: ErrorTradeoff) -> NDArray[np.float64]:
        return rate_vector(tradeoff, ASKED)

    truth, covered, naively = _truth(), [], []
    for run in range(runs):
        rng = np.random.default_rng((20, run))
        scores, is_target, speakers = _simulate(rng, num_speakers, num_nontarget)
        estimates = statistic(error_tradeoff(scores, is_target))
        samples = bootstrap(scores, is_target, speakers, statistic, replicates=replicates, seed=run)
        low, high = confidence_interval(samples, estimates=estimates).T
        covered.append((low <= truth) & (truth <= high))
        if run < naive_runs:
            samples = _of_trials(rng, scores, is_target, naive_replicates)
            low, high = confidence_interval(samples, estimates=estimates).T
            naively.append((low <= truth) & (truth <= high))
    return np.mean(covered, axis=0), np.mean(naively, axis=0)


def test_the_closed_form_is_what_the_simulation_draws() -> None:
    scores, is_target, _ = _simulate(np.random.default_rng(0), 20_000, 400_000)
    found = rate_vector(error_tradeoff(scores, is_target), ASKED)
    np.testing.assert_allclose(found, _truth(), rtol=0.03)


def test_intervals_over_speakers_cover_the_eer_and_those_over_trials_do_not() -> None:
    covered, naively = _coverage(
        runs=60, num_speakers=80, num_nontarget=4000, replicates=200, naive_runs=40, naive_replicates=100
    )
    # 60 runs at 95 % have at least 52 hits but once in a hundred times; naive intervals have half of 40.
    for name in ("EER", "TAR@1e-1", "TAR@1e-2"):
        assert covered[NAMES.index(name)] >= 52 / 60, (name, covered)
        assert naively[NAMES.index(name)] < 0.8, (name, naively)


@pytest.mark.slow
def test_intervals_cover_the_truth_in_92_to_98_percent_of_the_runs(capsys: pytest.CaptureFixture[str]) -> None:
    covered, naively = _coverage(
        runs=500, num_speakers=500, num_nontarget=60_000, replicates=400, naive_runs=60, naive_replicates=200
    )
    with capsys.disabled():
        for name, ours, naive in zip(NAMES, covered, naively, strict=True):
            print(f"{name:<10} covered by {100 * ours:.1f} % over speakers, {100 * naive:.0f} % over trials")
    assert (covered >= 0.92).all(), covered
    assert (covered <= 0.98).all(), covered
    assert (naively < 0.8).all(), naively
