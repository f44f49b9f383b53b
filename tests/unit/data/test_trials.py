"""Trial lists and score files: formats taken, formats refused, and what survives a round trip."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import numpy as np
import pytest

from wespeaker.data.trials import (
    Trials,
    UnlabelledTrials,
    are_labelled,
    read_any_scores,
    read_normalised_scores,
    read_scores,
    read_trials,
    read_unlabelled_trials,
    write_kaldi_trials,
    write_scores,
)
from wespeaker.errors import InputError

PUBLISHED = Path(__file__).resolve().parents[4] / "shared" / "voxlists" / "veri_test2.txt"


def _write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def _pairs(trials: Trials) -> list[tuple[str, bool]]:
    return [(trials.name(i), bool(trials.is_target[i])) for i in range(len(trials))]


EXPECTED = [("a/1.wav b/1.wav", True), ("a/1.wav c/1.wav", False)]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("a/1.wav b/1.wav target\na/1.wav c/1.wav nontarget\n", id="kaldi"),
        pytest.param("1 a/1.wav b/1.wav\n0 a/1.wav c/1.wav\n", id="voxceleb"),
        pytest.param("1 a/1.wav b/1.wav\r\n0 a/1.wav c/1.wav\r\n", id="CRLF"),
        pytest.param("1 a/1.wav b/1.wav\n0 a/1.wav c/1.wav", id="no final newline"),
        pytest.param("\ufeff1 a/1.wav b/1.wav\n\n0\ta/1.wav  c/1.wav\n\n", id="byte order mark, blank lines, tabs"),
    ],
)
def test_formats_of_trial_lists(tmp_path: Path, text: str) -> None:
    trials = read_trials(_write(tmp_path / "list", text))
    assert _pairs(trials) == EXPECTED
    assert list(trials.utts) == ["a/1.wav", "b/1.wav", "c/1.wav"]
    write_kaldi_trials(tmp_path / "list.kaldi", trials)
    text = (tmp_path / "list.kaldi").read_text()
    assert text == "a/1.wav b/1.wav target\na/1.wav c/1.wav nontarget\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a b\n", r"list:1: expected 'utt1 utt2 target\|nontarget' or '1\|0 utt1 utt2', found 'a b'"),
        ("2 a b\n", "list:1: "),
        ("a b Target\n", "list:1: "),
        ("1 a b\n0 a\n", "list:2: expected '1.0 utt1 utt2' as in the lines before, found '0 a'"),
        ("1 a b\n\na b target\n", "list:3: "),
        ("a b target\n1 a c\n", "list:2: expected 'utt1 utt2 target.nontarget' as in the lines before"),
        ("a b 0.5 target\n", "list:1: "),
        ("a b target\n" + "x" * 500 + "\n", "list:2: .*…'$"),
        ("", "list is empty"),
        ("\n\n", "list is empty"),
        ("1 a b\n0 a b\n", "a b both as target and as nontarget"),
        ("1 a b\n0 a c\n1 a b\n1 a c\n0 a b\n", "a c both as target and as nontarget .2 such trials."),
    ],
)
def test_other_trial_lists_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_trials(_write(tmp_path / "list", text))


def test_missing_and_binary_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.kaldi does not exist"):
        read_trials(tmp_path / "nothing.kaldi")
    (tmp_path / "binary").write_bytes(b"1 a \xff\xfe\n")
    with pytest.raises(InputError, match="not UTF-8"):
        read_trials(tmp_path / "binary")


def test_an_utterance_may_be_called_1(tmp_path: Path) -> None:
    assert _pairs(read_trials(_write(tmp_path / "list", "1 2 target\n0 1 nontarget\n"))) == [
        ("1 2", True),
        ("0 1", False),
    ]


def test_repeated_trials_are_kept_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        trials = read_trials(_write(tmp_path / "list", "1 a b\n1 a b\n0 a c\n1 a b\n1 b a\n"))
    assert len(trials) == 5
    assert "2 of 5 trials repeat an earlier one" in caplog.text


def test_scores_come_back_bit_for_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    scores = np.concatenate([rng.standard_normal(500), [1 / 3, 1e-300, -0.0, 5e-324, 1.0, np.nextafter(0.5, 1)]])
    size = len(scores)
    trials = Trials(["u", "v"], np.zeros(size, np.int32), np.ones(size, np.int32), np.ones(size, np.bool_))
    write_scores(tmp_path / "a.score", trials, scores)
    found, values = read_scores(tmp_path / "a.score")
    np.testing.assert_array_equal(values.view(np.int64), scores.view(np.int64))
    assert _pairs(found) == _pairs(trials)
    assert (tmp_path / "a.score").read_text().splitlines()[500] == "u v 0.3333333333333333 target"


def test_score_files_of_wespeaker(tmp_path: Path) -> None:
    four = _write(tmp_path / "four", "a b 0.12345 target\na c -1e-3 nontarget\n")
    eight = _write(tmp_path / "eight", "a b 0.12345 target 1.0 2.0 .1 .2\na c -0.001 nontarget 1 2 3 4\n")
    for path in (four, eight):
        trials, scores = read_scores(path)
        assert _pairs(trials) == [("a b", True), ("a c", False)]
        assert scores.tolist() == [0.12345, -0.001]
    trials, scores, quality = read_normalised_scores(eight)
    assert scores.tolist() == [0.12345, -0.001]
    assert quality.tolist() == [[1.0, 2.0, 0.1, 0.2], [1.0, 2.0, 3.0, 4.0]]
    write_scores(tmp_path / "again", trials, scores, quality=quality / 3)
    np.testing.assert_array_equal(read_normalised_scores(tmp_path / "again")[2], quality / 3)
    with pytest.raises(InputError, match=r"four:1: expected 'utt1 utt2 score target.nontarget norm1 norm2 "):
        read_normalised_scores(four)
    with pytest.raises(InputError, match="bad:1: column 7 must be a finite number, found 'x'"):
        read_normalised_scores(_write(tmp_path / "bad", "a b 0.5 target 1 2 x 4"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a b target\n", "s:1: expected 'utt1 utt2 score target.nontarget' or "),
        ("a b 0.5\n", "s:1: "),
        ("a b 0.5 target 1\n", "s:1: "),
        ("a b 0.5 target\na c 0.5 target 1 2 3 4\n", "s:2: .* as in the lines before"),
        ("a b 0.5 target\na c half target\n", "s:2: the score must be a finite number, found 'half'"),
        ("a b 0.5 target\na c nan target\n", "s:2: .* found 'nan'"),
        ("a b -inf target\n", "s:1: .* found '-inf'"),
        ("a b 0.5 Target\n", "s:1: "),
        ("", "is empty"),
    ],
)
def test_other_score_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_scores(_write(tmp_path / "s", text))


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.score", "old")
    trials = Trials(["u", "v"], np.zeros(2, np.int32), np.ones(2, np.int32), np.ones(2, np.bool_))
    with pytest.raises(ValueError, match="zip"):
        write_scores(path, trials, [0.5])
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.score"]


@pytest.mark.skipif(not PUBLISHED.exists(), reason="the published VoxCeleb1-O list is not beside the repository")
def test_the_published_list_has_its_published_counts(tmp_path: Path) -> None:
    # A copy may have CRLF or lack the final newline; the published file has neither fault.
    text = PUBLISHED.read_bytes().replace(b"\r\n", b"\n").rstrip() + b"\n"
    assert hashlib.md5(text).hexdigest() == "b73110731c9223c1461fe49cb48dddfc"
    trials = read_trials(PUBLISHED)
    assert (len(trials), int(trials.is_target.sum())) == (37611, 18802)
    speakers = np.array([utt.split("/")[0] for utt in trials.utts])
    np.testing.assert_array_equal(speakers[trials.enroll] == speakers[trials.test], trials.is_target)
    write_kaldi_trials(tmp_path / "veri_test2.kaldi", trials)
    assert _pairs(read_trials(tmp_path / "veri_test2.kaldi")) == _pairs(trials)


def test_lists_and_scores_without_labels(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trials = read_unlabelled_trials(_write(tmp_path / "list", "a b\nc\ta\n\na b\n"))
    assert [(trials.utts[e], trials.utts[t]) for e, t in zip(trials.enroll, trials.test, strict=True)] == [
        *(("a", "b"), ("c", "a"), ("a", "b"))
    ]
    assert "1 of 3 trials repeat an earlier one" in caplog.text
    write_scores(tmp_path / "list.score", trials, [0.1, -2.0, 1 / 3])
    assert (tmp_path / "list.score").read_text() == f"a b 0.1\nc a -2.0\na b {1 / 3!r}\n"
    found, scores = read_any_scores(tmp_path / "list.score")
    assert isinstance(found, UnlabelledTrials)
    assert scores.tolist() == [0.1, -2.0, 1 / 3]
    with pytest.raises(InputError, match=r"list\.score:1: expected 'utt1 utt2 score target\|nontarget' or"):
        read_scores(tmp_path / "list.score")
    with pytest.raises(InputError, match=r"list:1: expected 'utt1 utt2 target\|nontarget' or .*, found 'a b'"):
        read_trials(tmp_path / "list")
    _write(tmp_path / "mixed", "a b\na c target\n")
    with pytest.raises(InputError, match=r"mixed:2: expected 'utt1 utt2' as in the lines before, found 'a c target'"):
        read_unlabelled_trials(tmp_path / "mixed")


def test_whether_lists_have_labels(tmp_path: Path) -> None:
    blind, labelled = _write(tmp_path / "blind", "a b\n"), _write(tmp_path / "labelled", "1 a b\n")
    blind_scores, scores = _write(tmp_path / "b.score", "a b 1\n"), _write(tmp_path / "s.score", "a b 1 target\n")
    assert are_labelled([labelled])
    assert not are_labelled([blind, blind])
    assert are_labelled([scores], scores=True)
    assert not are_labelled([blind_scores], scores=True)
    with pytest.raises(InputError, match=r"some lists have no labels: .*blind; give them in a call of their own"):
        are_labelled([labelled, blind])
