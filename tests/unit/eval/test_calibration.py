"""Calibration against scikit-learn's logistic regression and the likelihood ratios of known Gaussians."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from wespeaker.data.trials import Trials
from wespeaker.errors import InputError
from wespeaker.eval.calibration import (
    Calibration,
    fit_calibration,
    load_calibration,
    save_calibration,
    trial_features,
    trial_measures,
)
from wespeaker.eval.metrics import act_dcf, cllr, error_tradeoff, min_cllr, min_dcf

Array = NDArray[np.float64]


def _gaussians(num: int, *, seed: int = 0) -> tuple[Array, NDArray[np.bool_]]:
    """Scores of nontargets from N(1, 4) and of targets from N(5, 4): the true log-likelihood ratio is s - 3."""
    rng = np.random.default_rng(seed)
    is_target = np.arange(num) % 5 == 0
    return 1 + 4 * is_target + 2 * rng.standard_normal(num), is_target


def _measured(num: int = 2000) -> tuple[dict[str, Array], NDArray[np.bool_]]:
    """Scores whose targets score lower where the shorter utterance is short."""
    rng = np.random.default_rng(1)
    is_target = np.arange(num) % 4 == 0
    duration, norm = rng.uniform(2, 20, (num, 2)), rng.uniform(5, 15, (num, 2))
    scores = rng.standard_normal(num) + is_target * (0.3 * duration.min(axis=1))
    return trial_features(scores, {"duration": duration, "norm": norm}), is_target


@pytest.mark.parametrize("p_target", [0.01, 0.5])
def test_weights_are_those_of_scikit_learn(p_target: float) -> None:
    features, is_target = _measured()
    found = fit_calibration(features, is_target, p_target=p_target)
    scaled = StandardScaler().fit_transform(np.stack(list(features.values()), axis=1))
    weight = np.where(is_target, p_target / is_target.sum(), (1 - p_target) / (~is_target).sum())
    # scikit-learn minimises C sum(weight * loss) + |w|^2 / 2, so that C is 1 over the penalty's factor of 1e-6.
    theirs = LogisticRegression(C=1e6, tol=1e-12, max_iter=1000, solver="newton-cholesky")
    theirs.fit(scaled, is_target, sample_weight=weight)
    expected = theirs.decision_function(scaled) - np.log(p_target / (1 - p_target))
    np.testing.assert_allclose(found.llr(features), expected, rtol=0, atol=1e-5)
    assert (found.num_target, found.num_nontarget) == (500, 1500)


@pytest.mark.parametrize("p_target", [0.05, 0.5])
def test_the_likelihood_ratio_of_two_gaussians_is_found(p_target: float) -> None:
    scores, is_target = _gaussians(200_000)
    calibration = fit_calibration({"score": scores}, is_target, p_target=p_target)
    assert calibration.weights["score"] == pytest.approx(1, abs=0.03)
    assert calibration.offset == pytest.approx(-3, abs=0.1)
    fresh, labels = _gaussians(200_000, seed=7)
    tradeoff = error_tradeoff(calibration.llr({"score": fresh}), labels)
    assert min_cllr(tradeoff) <= cllr(tradeoff) < min_cllr(tradeoff) + 0.002
    assert act_dcf(tradeoff, p_target=p_target) < 1.01 * min_dcf(tradeoff, p_target=p_target)


def test_the_scale_of_scores_does_not_matter() -> None:
    scores, is_target = _gaussians(2000)
    plain, scaled = ({"score": values} for values in (scores, 1e-4 * scores + 3))
    ratios = [fit_calibration(features, is_target).llr(features) for features in (plain, scaled)]
    np.testing.assert_allclose(ratios[0], ratios[1], atol=1e-6)


def test_quality_measures_help_where_they_matter() -> None:
    features, is_target = _measured()
    by_score = {"score": features["score"]}
    alone, together = (
        min_cllr(error_tradeoff(fit_calibration(f, is_target, p_target=0.5).llr(f), is_target))
        for f in (by_score, features)
    )
    assert together < 0.95 * alone


def test_separable_and_constant_features_give_finite_weights() -> None:
    is_target = np.arange(100) % 2 == 0
    features = {"score": is_target + 0.001 * np.arange(100), "same": np.full(100, 0.1)}
    calibration = fit_calibration(features, is_target)
    assert calibration.weights["same"] == pytest.approx(0)
    tradeoff = error_tradeoff(calibration.llr(features), is_target)
    assert cllr(tradeoff) < 0.01
    assert np.abs(calibration.llr(features)).max() < 100


def test_features_are_symmetric_and_bounded() -> None:
    values = np.array([[2.0, 8.0], [0.0, 4.0], [-0.1, 1e-9], [0.0, 0.0]])
    features = trial_features(np.zeros(4), {"norm": values})
    assert list(features) == ["score", "norm_min", "norm_max", "norm_diff", "norm_ratio"]
    assert features["norm_min"].tolist() == [2.0, 0.0, -0.1, 0.0]
    assert features["norm_max"].tolist() == [8.0, 4.0, 1e-9, 0.0]
    np.testing.assert_allclose(features["norm_diff"], [6.0, 4.0, 0.1, 0.0])
    assert features["norm_ratio"].tolist() == [0.25, 0.001 / 4, 1.0, 1.0]
    swapped = trial_features(np.zeros(4), {"norm": values[:, ::-1]})
    for name in features:
        np.testing.assert_array_equal(features[name], swapped[name])


TRIALS = Trials(["a", "b", "c"], np.array([0, 1], np.int32), np.array([1, 2], np.int32), np.array([True, False]))
QUALITY = np.array([[1.0, 2.0, 0.1, 0.2], [2.0, 3.0, 0.2, 0.3]])


def test_measures_of_trials() -> None:
    found = trial_measures(TRIALS, QUALITY, utt2dur={"a": 3.0, "b": 20.5, "c": 7.0})
    assert {name: values.tolist() for name, values in found.items()} == {
        "duration": [[3.0, 20.0], [20.0, 7.0]],
        "norm": [[1.0, 2.0], [2.0, 3.0]],
        "cohort_mean": [[0.1, 0.2], [0.2, 0.3]],
    }
    assert trial_measures(TRIALS, QUALITY, names=()) == {}


def test_measures_that_are_not_there() -> None:
    with pytest.raises(InputError, match="2 of 3 utterances have no duration: b, c; give the utt2dur"):
        trial_measures(TRIALS, QUALITY, utt2dur={"a": 3.0})
    with pytest.raises(InputError, match="3 of 3 utterances have no duration: a, b, c"):
        trial_measures(TRIALS, QUALITY)
    with pytest.raises(InputError, match="'durations' is no quality measure; did you mean 'duration'"):
        trial_measures(TRIALS, QUALITY, names=["durations"])


def test_a_calibration_survives_its_file(tmp_path: Path) -> None:
    features, is_target = _measured()
    calibration = fit_calibration(features, is_target, score="vox2_dev_asnorm300")
    assert calibration.measures == ("duration", "norm")
    save_calibration(tmp_path / "c.json", calibration)
    assert load_calibration(tmp_path / "c.json") == calibration
    assert fit_calibration(features, is_target, score="vox2_dev_asnorm300") == calibration
    changed = fit_calibration({**features, "score": features["score"] + 1e-12}, is_target)
    assert changed.fingerprint != calibration.fingerprint


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"weights": 1}', json.dumps({"score": "s", "weights": {"score": 1.0}})]
)  # fmt: skip
def test_other_files_are_no_calibration(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(InputError, match=r"c.json is not a calibration that tools/calibrate.py wrote"):
        load_calibration(tmp_path / "c.json")


def test_a_calibration_without_numbers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"c.json does not exist; .*stage 7"):
        load_calibration(tmp_path / "c.json")
    good = Calibration("s", 0.01, {"score": 1.0}, 0.0, 1, 1, "")
    for bad, match in (
        (replace(good, offset=float("nan")), "must hold finite numbers"),
        (replace(good, p_target=1.5), "a p_target between 0 and 1, found .* and 1.5"),
        (
            replace(good, weights={"score": None}),
            r"not a calibration .*\(weights\.score: Input should be a valid number",
        ),  # type: ignore[dict-item]
        (replace(good, weights={"score": 1.0, "norm_min": 1.0}), "norm_diff, norm_max, norm_ratio is odd"),
        (replace(good, weights={"score": 1.0, "mood": 1.0}), "mood is odd"),
        (replace(good, weights={}), "score is odd"),
    ):
        save_calibration(tmp_path / "c.json", bad)
        with pytest.raises(InputError, match=match):
            load_calibration(tmp_path / "c.json")


def test_training_needs_both_classes_and_a_prior() -> None:
    with pytest.raises(InputError, match="both classes, found 3 target and 0 nontarget"):
        fit_calibration({"score": np.arange(3.0)}, np.ones(3, np.bool_))
    with pytest.raises(InputError, match="p_target must lie between 0 and 1, found 1"):
        fit_calibration({"score": np.arange(3.0)}, np.ones(3, np.bool_), p_target=1)
