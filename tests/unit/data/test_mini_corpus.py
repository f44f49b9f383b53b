"""The synthetic mini corpus: equal files for equal settings, honest trials, readable audio, clear refusals."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from math import comb
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from wespeaker.data.mini_corpus import CorpusSettings, make_corpus
from wespeaker.data.mini_corpus.processes import run_each
from wespeaker.data.mini_corpus.rooms import SPEED_OF_SOUND, shoebox_response
from wespeaker.data.mini_corpus.speakers import draw_speaker
from wespeaker.data.mini_corpus.trials import RecordedSpeaker, write_trial_lists
from wespeaker.errors import InputError

ROOT = Path(__file__).resolve().parents[3]
TINY = CorpusSettings(
    num_train_spk=8,
    num_dev_spk=2,
    num_test_spk=8,
    num_sessions=2,
    num_utts=2,
    num_noise_files=3,
    num_music_files=2,
    num_speech_files=2,
    num_rirs=4,
)
NUM_TARGETS = 8 * 2 * 2  # speakers × utterances of one session × utterances of the other
SPLITS = {"train": "voxceleb2/dev/wav", "dev": "voxceleb2/test/wav", "test": "voxceleb1/test/wav"}


def run_tool(output_dir: Path, settings: CorpusSettings, *options: str) -> subprocess.CompletedProcess[str]:
    sizes = {name: value for name, value in vars(settings).items() if name not in ("spread", "drift", "hardness")}
    arguments = [text for name, value in sizes.items() for text in (f"--{name}", str(value))]
    return subprocess.run(
        [sys.executable, "tools/make_mini_corpus.py", "--output_dir", str(output_dir), *arguments, *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def hashes(corpus: Path) -> dict[str, str]:
    files = sorted(path for path in corpus.rglob("*") if path.is_file())
    return {str(path.relative_to(corpus)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def read_trials(corpus: Path, name: str) -> list[tuple[str, str, str]]:
    rows = [line.split() for line in (corpus / "voxceleb1/meta" / name).read_text().splitlines()]
    return [(label, enroll, test) for label, enroll, test in rows]


def speakers_below(corpus: Path, split: str) -> set[str]:
    return {folder.name for folder in (corpus / SPLITS[split]).iterdir()}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("espeakng_loader")
    output_dir = tmp_path_factory.mktemp("made") / "mini"
    done = run_tool(output_dir, TINY, "--nj", "2")
    assert done.returncode == 0, done.stderr
    assert "made in" in done.stdout
    return output_dir


def test_the_number_of_processes_changes_no_byte(corpus: Path, tmp_path: Path) -> None:
    done = run_tool(tmp_path / "mini", TINY, "--nj", "1")
    assert done.returncode == 0, done.stderr
    assert hashes(tmp_path / "mini") == hashes(corpus)


def test_the_seed_changes_every_recording_and_fewer_speakers_change_none(corpus: Path, tmp_path: Path) -> None:
    small = replace(TINY, num_train_spk=2, num_dev_spk=2, num_test_spk=3)
    for folder, settings in (("same", small), ("other", replace(small, seed=2))):
        assert make_corpus(tmp_path / folder, settings)
    whole, same, other = (
        {digest for name, digest in hashes(path).items() if name.startswith("vox") and name.endswith(".wav")}
        for path in (corpus, tmp_path / "same", tmp_path / "other")
    )
    assert same < whole
    assert not other & whole


def test_splits_hold_the_asked_number_of_different_speakers(corpus: Path) -> None:
    splits = {split: speakers_below(corpus, split) for split in SPLITS}
    assert {split: len(ids) for split, ids in splits.items()} == {"train": 8, "dev": 2, "test": 8}
    assert len(set.union(*splits.values())) == 18
    header, *rows = (line.split("\t") for line in (corpus / "speakers.tsv").read_text().splitlines())
    assert header == ["id", "split", "sex", "accent"]
    assert {(row[0], row[1]) for row in rows} == {(one, split) for split, ids in splits.items() for one in ids}


def test_any_pair_list_has_all_cross_session_targets_and_all_cross_speaker_pairs(corpus: Path) -> None:
    trials = read_trials(corpus, "veri_test2.txt")
    labels = [label for label, _, _ in trials]
    assert (labels.count("1"), labels.count("0")) == (NUM_TARGETS, comb(8, 2) * 4 * 4)
    assert len({frozenset(pair) for _, *pair in trials}) == len(trials)
    for label, enroll, test in trials:
        (enroll_spk, enroll_session, _), (test_spk, test_session, _) = enroll.split("/"), test.split("/")
        assert (label == "1") == (enroll_spk == test_spk)
        assert enroll_session != test_session
        assert (corpus / SPLITS["test"] / enroll).is_file()
        assert (corpus / SPLITS["test"] / test).is_file()


def test_hard_list_has_the_same_targets_and_nontargets_of_one_sex(corpus: Path) -> None:
    trials = read_trials(corpus, "list_test_hard2.txt")
    any_pair = read_trials(corpus, "veri_test2.txt")
    assert [trial for trial in trials if trial[0] == "1"] == [trial for trial in any_pair if trial[0] == "1"]
    nontargets = [trial for trial in trials if trial[0] == "0"]
    assert len(nontargets) == 2 * comb(4, 2) * 4 * 4  # four women, four men
    sex = {row.split("\t")[0]: row.split("\t")[2] for row in (corpus / "speakers.tsv").read_text().splitlines()}
    assert all(sex[enroll.split("/")[0]] == sex[test.split("/")[0]] for _, enroll, test in nontargets)


def test_hard_list_keeps_to_one_accent_where_that_leaves_enough(tmp_path: Path) -> None:
    woman = draw_speaker(TINY, "test", 0)
    accents = ["en", "en", "en", "de"]
    speakers = [
        RecordedSpeaker(
            replace(woman, id=f"id{number}", accent=accent),
            [[f"id{number}/{session}/{utt}.wav" for utt in range(30)] for session in "ab"],
        )
        for number, accent in enumerate(accents)
    ]
    write_trial_lists(tmp_path, speakers)
    nontargets = [row for row in (tmp_path / "list_test_hard2.txt").read_text().splitlines() if row[0] == "0"]
    assert len(nontargets) == comb(3, 2) * 60 * 60
    assert not any("id3/" in row for row in nontargets)


def test_every_recording_is_16_khz_mono_16_bit_and_neither_silent_nor_clipped(corpus: Path) -> None:
    wavs = sorted(corpus.rglob("*.wav"))
    assert len(wavs) == 18 * 4 + 3 + 2 + 2 + 4
    for path in wavs:
        info = sf.info(path)
        assert (info.samplerate, info.channels, info.subtype) == (16000, 1, "PCM_16")
        samples, _ = sf.read(path)
        assert 0.1 < np.abs(samples).max() < 0.96
        if "musan" not in path.parts and "RIRS_NOISES" not in path.parts:
            assert 16000 < len(samples) <= TINY.max_sec * 16000
            assert samples.std() > 0.005


def test_noises_and_rooms_lie_where_the_published_ones_do(corpus: Path) -> None:
    for kind, num_files in (("noise", 3), ("music", 2), ("speech", 2)):
        assert len(list((corpus / "musan" / kind / "synth").glob("*.wav"))) == num_files
    for kind in ("smallroom", "mediumroom"):
        assert len(list((corpus / "RIRS_NOISES/simulated_rirs" / kind).glob("Room*/*.wav"))) == 2
    assert "CC0" in (corpus / "LICENSE").read_text()
    assert "synthetic mini corpus" in (corpus / "README.md").read_text()


def test_a_second_call_changes_nothing_and_needs_no_engine(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    times = {path: path.stat().st_mtime_ns for path in corpus.rglob("*")}
    assert make_corpus(corpus, TINY) is False
    assert {path: path.stat().st_mtime_ns for path in corpus.rglob("*")} == times


def test_other_settings_are_refused_with_the_difference(corpus: Path) -> None:
    with pytest.raises(InputError, match=r"other settings \(num_utts: 2 there, 5 asked for\); name another"):
        make_corpus(corpus, replace(TINY, num_utts=5))


def test_a_folder_with_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(InputError, match=r"no readable corpus\.json, so it is no mini corpus"):
        make_corpus(tmp_path, TINY)
    (tmp_path / "corpus.json").write_text(json.dumps(["not", "a", "stamp"]))
    with pytest.raises(InputError, match=r"no readable corpus\.json"):
        make_corpus(tmp_path, TINY)
    assert sorted(os.listdir(tmp_path)) == ["corpus.json", "thesis.tex"]


def test_a_missing_engine_is_an_error_that_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install espeakng-loader==0\.2\.4"):
        make_corpus(tmp_path / "mini", TINY)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_train_spk": 0}, "num_train_spk must be from 2 to 8000 .*, got 0"),
        ({"num_test_spk": 2}, "hard list needs two speakers of one sex"),
        ({"num_sessions": 1}, "target trials pair different sessions"),
        ({"max_sec": 0.0, "num_rirs": 1}, "max_sec must be .*; num_rirs must be"),
    ],
)
def test_settings_that_cannot_work_are_refused(tmp_path: Path, wrong: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_corpus(tmp_path / "mini", replace(TINY, **wrong))  # type: ignore[arg-type]


def test_no_processes_at_all_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\(nj\) must be at least 1, got 0"):
        make_corpus(tmp_path / "mini", TINY, num_jobs=0)


@pytest.mark.parametrize("options", [["--num_sessions", "1"], ["--nj", "0"], ["--num_speakers", "3"]])
def test_the_tool_says_one_sentence_and_exits_with_1(tmp_path: Path, options: Sequence[str]) -> None:
    done = run_tool(tmp_path / "mini", TINY, *options)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("make_mini_corpus.py: error: ")


def fail_by_bug(number: int) -> None:
    if number == 2:
        raise KeyError("formant")


def fail_by_input(number: int) -> None:
    if number == 2:
        raise OSError("no space left")


def fail_by_death(number: int) -> None:
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (fail_by_bug, RuntimeError, "making speaker 2 failed.*KeyError: 'formant'"),
        (fail_by_input, InputError, "making speaker 2 failed: no space left"),
        (fail_by_death, RuntimeError, "making speaker 2 failed: .*left no message"),
    ],
)
def test_a_process_that_fails_or_dies_is_named(function: object, error: type[Exception], message: str) -> None:
    jobs = [(f"speaker {number}", number) for number in range(4)]
    with pytest.raises(error, match=f"(?s){message}"):
        run_each(function, jobs, num_jobs=2, description="test")  # type: ignore[arg-type]


def test_a_room_reflects_its_floor_at_the_mirror_images_distance() -> None:
    source, microphone = np.array([1.0, 2.0, 1.5]), np.array([3.0, 2.5, 1.0])
    response = shoebox_response(np.array([4.0, 5.0, 3.0]), source, microphone, absorption=0.4)
    direct = np.linalg.norm(source - microphone)
    mirrored = np.linalg.norm(source * [1, 1, -1] - microphone)
    delay = round((mirrored - direct) / SPEED_OF_SOUND * 16000)
    assert response[0] == pytest.approx(1.0, abs=0.05)
    assert response[delay] == pytest.approx(np.sqrt(0.6) * direct / mirrored, abs=0.1)
    assert np.abs(response[1:delay]).max() < 0.1  # nothing is nearer than the floor


def test_a_room_decays_as_eyring_says() -> None:
    sides = np.array([6.0, 5.0, 3.0])
    response = shoebox_response(sides, np.array([2.0, 2.0, 1.5]), np.array([4.0, 3.0, 1.2]), absorption=0.5)
    left_db = 10 * np.log10(np.cumsum(response[::-1] ** 2)[::-1] / np.sum(response**2) + 1e-12)
    t60_sec = 3 * (np.argmax(left_db < -25) - np.argmax(left_db < -5)) / 16000
    eyring_sec = 0.161 * 90 / (-126 * np.log(0.5))
    assert t60_sec == pytest.approx(eyring_sec, rel=0.35)  # a box is less diffuse than Eyring assumes
