"""Paired comparisons: what is matched, what is refused, and what pairing buys."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from wespeaker.data.trials import Trials, write_scores
from wespeaker.errors import InputError
from wespeaker.eval.comparison import Difference, compare_scores, comparison_table, match_trials
from wespeaker.eval.scoring import evaluate_scores

NUM_SPEAKERS, NUM_UTTS = 30, 4


def _trials() -> Trials:
    utts = [f"id{i // NUM_UTTS}/v/{i % NUM_UTTS}.wav" for i in range(NUM_SPEAKERS * NUM_UTTS)]
    rng = np.random.default_rng(0)
    enroll, test = np.triu_indices(len(utts), 1)
    kept = (enroll // NUM_UTTS == test // NUM_UTTS) | (rng.random(len(enroll)) < 0.4)
    enroll, test = enroll[kept].astype(np.int32), test[kept].astype(np.int32)
    return Trials(utts, enroll, test, enroll // NUM_UTTS == test // NUM_UTTS)


def _subset(trials: Trials, rows: object) -> Trials:
    return Trials(trials.utts, trials.enroll[rows], trials.test[rows], trials.is_target[rows])  # type: ignore[index]


@pytest.fixture
def systems(tmp_path: Path) -> list[Path]:
    """Scores of one system, of a slightly better one, and of the first with other noise, in another order."""
    trials, rng = _trials(), np.random.default_rng(1)
    of_speaker = 0.8 * rng.standard_normal(NUM_SPEAKERS)
    common = of_speaker[trials.enroll // NUM_UTTS] + rng.standard_normal(len(trials))
    order = rng.permutation(len(trials))
    paths = []
    for name, gain, rows in (("first", 2.2, slice(None)), ("better", 2.8, order), ("equal", 2.2, order)):
        scores = common + gain * trials.is_target + 0.3 * rng.standard_normal(len(trials))
        paths.append(tmp_path / name / "list.kaldi.score")
        write_scores(paths[-1], _subset(trials, rows), scores[rows])
    return paths


def test_differences_are_those_of_the_rates_and_pairing_makes_them_sure(systems: list[Path]) -> None:
    first, better = (evaluate_scores([path], fars=[0.1, 0.01], replicates=300) for path in systems[:2])
    comparison = compare_scores(systems, fars=[0.1, 0.01], replicates=300)
    rates = [evaluation.results["trials"]["list"] for evaluation in (first, better)]
    gain, none = comparison.differences
    assert gain["eer"].value == rates[1]["eer"] - rates[0]["eer"]
    assert gain["min_dcf"]["0.01"].value == rates[1]["min_dcf"]["0.01"] - rates[0]["min_dcf"]["0.01"]
    assert list(gain["tar_at_far"]) == ["0.1", "0.01"]
    for far, found in gain["tar_at_far"].items():
        assert found.value == rates[1]["tar_at_far"][far]["tar"] - rates[0]["tar_at_far"][far]["tar"]

    # The intervals of the two systems overlap, that of their difference is far from zero.
    intervals = [rate["interval"]["eer"] for rate in rates]
    assert intervals[1][1] > intervals[0][0]
    assert gain["eer"].low < gain["eer"].value < gain["eer"].high < 0
    assert gain["eer"].high - gain["eer"].low < 0.7 * (intervals[0][1] - intervals[0][0])
    assert gain["eer"].p_value < 0.02
    assert none["eer"].low < 0 < none["eer"].high
    assert none["eer"].p_value > 0.1


def test_a_system_does_not_differ_from_itself(systems: list[Path]) -> None:
    differences = compare_scores([systems[0], systems[0]], fars=[0.1], replicates=100).differences
    same = Difference(0.0, 0.0, 0.0, 1.0)
    assert differences == [{"eer": same, "min_dcf": {"0.01": same}, "tar_at_far": {"0.1": same}}]


def test_swapping_the_systems_turns_the_signs(systems: list[Path]) -> None:
    there = compare_scores(systems[:2], fars=[0.1], replicates=100, seed=3).differences[0]["eer"]
    back = compare_scores(systems[1::-1], fars=[0.1], replicates=100, seed=3).differences[0]["eer"]
    assert (back.value, back.low, back.high, back.p_value) == pytest.approx(
        (-there.value, -there.high, -there.low, there.p_value), abs=1e-12
    )


def test_the_table_and_the_json(systems: list[Path]) -> None:
    comparison = compare_scores(systems, fars=[0.1, 1e-5], replicates=100)
    table = comparison_table(comparison)
    assert f"of {NUM_SPEAKERS} speakers" in table
    for path in systems:
        assert str(path) in table
    assert table.count("not resolvable") == 2
    assert f"{100 * comparison.differences[0]['eer'].value:+.3f}" in table
    assert max(len(line) for line in table.splitlines() if not line.startswith(("A: ", "B: "))) <= 100
    contents = json.loads(json.dumps(comparison.contents()))
    assert contents["first"]["scores"] == str(systems[0])
    assert [other["scores"] for other in contents["others"]] == [str(path) for path in systems[1:]]
    eer = comparison.differences[1]["eer"]
    assert contents["others"][1]["difference"]["eer"] == {
        "difference": eer.value,
        "interval": [eer.low, eer.high],
        "p_value": eer.p_value,
    }


def test_trials_are_matched_by_pair_and_repeats_in_their_order() -> None:
    ours = Trials(["a", "b", "c"], np.array([0, 0, 0, 1]), np.array([1, 2, 1, 0]), np.array([True, False, True, True]))
    theirs = Trials(
        ["b", "c", "a"], np.array([2, 2, 0, 2]), np.array([0, 0, 2, 1]), np.array([True, True, True, False])
    )
    assert match_trials(ours, theirs).tolist() == [0, 3, 1, 2]


def _pairs(*lines: str) -> Trials:
    words = [line.split() for line in lines]
    utts = list(dict.fromkeys(word for line in words for word in line[:2]))
    enroll, test = (np.array([utts.index(line[side]) for line in words], np.int32) for side in (0, 1))
    return Trials(utts, enroll, test, np.array([line[2] == "target" for line in words]))


@pytest.mark.parametrize(
    ("others", "message"),
    [
        (["a b target"], "same trials: 1 is in x only .first: a c.$"),
        (["a b target", "a c nontarget", "b c nontarget", "b d target"], "2 are in y only .first: b c, b d.$"),
        (["b a target", "a c nontarget"], "1 is in x only .first: a b.; 1 is in y only .first: b a.$"),
        (["a b target", "a b target"], "1 is in x only .first: a c.; 1 is in y only .first: a b.$"),
        (["a c nontarget", "a b nontarget"], "x and y disagree about 1 labels; the first: a b is target in x and nont"),
    ],
)
def test_other_trials_are_refused_with_the_first_that_differ(others: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        match_trials(_pairs("a b target", "a c nontarget"), _pairs(*others), names=("x", "y"))


def test_what_cannot_be_compared_is_refused(systems: list[Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least two score files, found 1"):
        compare_scores(systems[:1])
    with pytest.raises(InputError, match="at least 100 replicates, found 0"):
        compare_scores(systems, replicates=0)
    (tmp_path / "utt2spk").write_text("id0/v/0.wav id0\n")
    with pytest.raises(InputError, match=r"list.kaldi.score: 119 of 120 utterances have no speaker"):
        compare_scores(systems, utt2spk=tmp_path / "utt2spk")
