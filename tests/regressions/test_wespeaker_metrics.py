"""Defects measured in WeSpeaker's scoring (dfa7419, 2026-07-08), each with the right behaviour."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from wespeaker.data.trials import Trials, read_scores, write_scores
from wespeaker.errors import InputError
from wespeaker.eval.metrics import eer, error_tradeoff, min_dcf, tar_at_far


@pytest.mark.parametrize("targets_first", [True, False])
def test_constant_scores_have_an_eer_of_50_percent_in_either_order(targets_first: bool) -> None:
    """There: 1.0 with targets listed first, 0.0 with nontargets first, as ties follow the order of the list."""
    labels = (np.arange(10) < 5) == targets_first
    assert eer(error_tradeoff(np.zeros(10), labels)) == 0.5


def test_a_nan_score_is_refused() -> None:
    """There: counted as the highest score, so that a NaN on a target trial gives EER 0 without a warning."""
    with pytest.raises(InputError, match=r"not finite numbers; the first: trial 0 \(nan\)"):
        error_tradeoff([np.nan, 0.2, 0.3], [True, False, False])


@pytest.mark.parametrize(("score", "expected"), [(0.1, 0.0), (0.9, 0.5)])
def test_a_list_with_one_nontarget_trial_has_an_eer(score: float, expected: float) -> None:
    """There: IndexError."""
    tradeoff = error_tradeoff([0.5, 0.95, score], [True, True, False])
    assert eer(tradeoff) == pytest.approx(expected)


def test_a_list_without_target_trials_is_refused_with_a_sentence() -> None:
    """There: IndexError."""
    with pytest.raises(InputError, match="has no target trials"):
        error_tradeoff([0.5, 0.6], [False, False])


def test_accepting_everything_is_among_the_costs() -> None:
    """There: the accept-all point is missing; where misses are dear it is the best one."""
    tradeoff = error_tradeoff([0.1, 0.9, 0.8], [True, False, False])
    assert min_dcf(tradeoff, p_target=0.99) == 1
    assert min_dcf(tradeoff, p_target=0.01) == 1


def test_score_files_keep_all_digits(tmp_path: Path) -> None:
    """There: ``%.5f``, which ties 82 % of the scores of a list of VoxCeleb1-H's size."""
    size = 20_000
    scores = 0.5 + 1e-7 * np.random.default_rng(0).standard_normal(size)
    labels = np.arange(size) % 2 == 0
    trials = Trials([str(i) for i in range(size)], np.arange(size, dtype=np.int32), np.zeros(size, np.int32), labels)
    write_scores(tmp_path / "a.score", trials, scores)
    _, found = read_scores(tmp_path / "a.score")
    np.testing.assert_array_equal(found, scores)
    assert len(np.unique(found)) == size > 100 * len(np.unique(np.round(scores, 5)))


def test_thresholds_are_given_at_the_asked_fars() -> None:
    """There: no TAR at a FAR and no threshold at all."""
    scores = np.arange(2000.0)
    point = tar_at_far(error_tradeoff(scores, scores % 2 == 0), 1e-2)
    assert (scores[1::2] >= point.threshold).sum() == point.num_false_accepts == 10


@pytest.mark.parametrize("arguments", [["a.score"], ["a.score", "0.01"], []])
def test_the_score_tool_does_not_succeed_without_having_printed_metrics(
    arguments: list[str], tmp_path: Path, tool: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """There: ``compute_metrics.py a.score`` binds the file to ``p_target``, prints nothing and exits with 0."""
    (tmp_path / "a.score").write_text("a b 0.5 target\na c 0.1 nontarget\n")
    done = tool("score", *arguments)
    assert done.returncode == 1
    assert "--scores" in done.stderr
    assert len(done.stderr.splitlines()) == 1
