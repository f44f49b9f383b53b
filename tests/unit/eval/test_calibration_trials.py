"""What pairs of utterances a calibration is trained on."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from wespeaker.data.trials import Trials
from wespeaker.errors import InputError
from wespeaker.eval.calibration_trials import draw_calibration_trials

KEYS = [f"id{s:02d}/v{v}/{u:05d}.wav" for s in range(20) for v in range(4) for u in range(3)]
UTT2SPK = {key: key[:4] for key in KEYS}
UTT2DUR = {key: (4.0, 6.0, 6.001)[i % 3] for i, key in enumerate(KEYS)}  # a third of them is long


def _cells(trials: Trials) -> dict[tuple[int, bool], int]:
    """Count trials by the number of long utterances and the class."""
    long = np.array([UTT2DUR[utt] > 6 for utt in trials.utts])
    num_long = long[trials.enroll].astype(int) + long[trials.test]
    return {(n, t): int(np.sum((num_long == n) & (trials.is_target == t))) for n in range(3) for t in (True, False)}


def test_lengths_and_classes_are_balanced() -> None:
    trials = draw_calibration_trials(UTT2SPK, UTT2DUR, num_trials=600)
    assert _cells(trials) == dict.fromkeys(_cells(trials), 100)


def test_no_pair_comes_twice_and_targets_are_of_two_sessions() -> None:
    trials = draw_calibration_trials(UTT2SPK, UTT2DUR, num_trials=3000)
    names = [(trials.utts[e], trials.utts[t]) for e, t in zip(trials.enroll, trials.test, strict=True)]
    assert len({frozenset(pair) for pair in names}) == len(names)
    assert all(a != b for a, b in names)
    assert [a[:4] == b[:4] for a, b in names] == trials.is_target.tolist()
    assert all(a.rsplit("/", 1)[0] != b.rsplit("/", 1)[0] for a, b in names)
    assert set(trials.utts) == {utt for pair in names for utt in pair}


def test_a_small_set_gives_all_that_it_has(caplog: pytest.LogCaptureFixture) -> None:
    few = {key: spk for key, spk in UTT2SPK.items() if spk < "id03"}
    with caplog.at_level(logging.INFO):
        trials = draw_calibration_trials(few, UTT2DUR)
    # 3 speakers x 6 pairs of sessions x pairs of 2 short and 1 long; 3 pairs of speakers x those of 8 and 4
    counts = {(0, True): 72, (1, True): 72, (2, True): 18, (0, False): 192, (1, False): 192, (2, False): 48}
    assert _cells(trials) == counts
    assert "72 short-short target, 192 short-short nontarget, 72 short-long target" in caplog.text


def test_a_set_without_long_utterances_is_drawn_from_short_ones() -> None:
    trials = draw_calibration_trials(UTT2SPK, dict.fromkeys(KEYS, 3.0), num_trials=600)
    assert trials.is_target.sum() == 100
    assert len(trials) == 200


def test_a_set_of_one_session_each_is_drawn_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    trials = draw_calibration_trials({key: UTT2SPK[key] for key in KEYS if "/v0/" in key}, UTT2DUR)
    assert trials.is_target.sum() == 20 * 3
    assert "no speaker has two sessions" in caplog.text


def test_the_seed_decides_and_the_order_of_the_files_does_not() -> None:
    first, again = (
        draw_calibration_trials(u2s, UTT2DUR, num_trials=600) for u2s in (UTT2SPK, dict(reversed(UTT2SPK.items())))
    )
    other = draw_calibration_trials(UTT2SPK, UTT2DUR, num_trials=600, seed=1)
    names = [[trials.name(i) for i in range(len(trials))] for trials in (first, again, other)]
    assert names[0] == names[1]
    assert len(set(names[0]) & set(names[2])) < 300


@pytest.mark.parametrize(
    ("utt2spk", "utt2dur", "message"),
    [
        (UTT2SPK, {key: 1.0 for key in KEYS[2:]}, "2 of 240 utterances have no duration: id00/v0/00000.wav, id00/v0/0"),
        (dict.fromkeys(KEYS, "one"), UTT2DUR, "needs two speakers; the 240 utterances given"),
        (
            {key: UTT2SPK[key] for key in KEYS[::12]},
            UTT2DUR,
            "needs two utterances of a speaker; the 20 utterances given",
        ),
    ],
)
def test_sets_without_trials_are_refused(utt2spk: dict[str, str], utt2dur: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        draw_calibration_trials(utt2spk, utt2dur)
