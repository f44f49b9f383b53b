import re

import numpy as np
import pytest
import soundfile
from conftest import RATE, voice, write_m4a, write_wav

from wespeaker.data.custom import prepare_folder, speaker_from_parent, speaker_from_regex
from wespeaker.data.manifest import read_manifest, read_pairs
from wespeaker.data.trials import read_trials
from wespeaker.errors import InputError


def tree(root, *paths):
    rng = np.random.default_rng(0)
    for path in paths:
        write_wav(root / path, voice(rng, 120, 0.2))
    return root


def prepare(wav_dir, output_dir, rule=None, **options):
    rule = rule or speaker_from_parent(1)
    return prepare_folder(wav_dir, output_dir, speaker_of=rule, num_jobs=1, rate=RATE, **options)


@pytest.fixture
def speech(tmp_path):
    """Six speakers of two sessions with two files, one with a single file."""
    names = [f"s{n}/{session}/{k}.wav" for n in range(6) for session in ("mon", "tue") for k in (1, 2)]
    return tree(tmp_path / "speech", *names, "s9/mon/1.wav")


@pytest.mark.parametrize(
    ("rule", "path", "spk"),
    [
        (speaker_from_parent(1), "ann/mon/1.wav", "mon"),
        (speaker_from_parent(2), "ann/mon/1.wav", "ann"),
        (speaker_from_parent(2), "mon/1.wav", None),
        (speaker_from_parent(1), "1.wav", None),
        (speaker_from_regex(r"(spk\d+)_"), "calls/spk7_mon.wav", "spk7"),
        (speaker_from_regex(r"^(?:in|out)/(\w+)-"), "out/ann-1.wav", "ann"),
        (speaker_from_regex(r"(spk\d+)_"), "calls/ann.wav", None),
        (speaker_from_regex(r"(\d*)\.wav"), "ann.wav", None),  # an empty name is none
    ],
)
def test_the_speaker_of_a_path(rule, path, spk):
    assert rule(path) == spk


@pytest.mark.parametrize(
    ("pattern", "match"),
    [
        ("(spk", r"'\(spk' is not a regular expression \(missing \)"),
        ("spk", r"has 0 groups; put one pair of parentheses around .* names the speaker"),
        ("(a)(b)", r"has 2 groups; .* other groups as \(\?:\.\.\.\)"),
    ],
)
def test_a_regular_expression_has_one_group(pattern, match):
    with pytest.raises(InputError, match=match):
        speaker_from_regex(pattern)


def test_a_level_is_at_least_1():
    with pytest.raises(InputError, match=r"--spk_level must be at least 1 .* found 0"):
        speaker_from_parent(0)


def test_keys_are_paths_and_all_formats_are_read(tmp_path):
    pytest.importorskip("av")
    root = tree(tmp_path / "in", "ann/a.wav", "ann/x.y.WAV", "bob/.hidden.wav")
    samples, _ = soundfile.read(root / "ann/a.wav")
    (root / "bob").mkdir(exist_ok=True)
    for name, subtype in (("b.flac", "PCM_16"), ("c.mp3", "MPEG_LAYER_III"), ("d.ogg", "VORBIS"), ("e.opus", "OPUS")):
        container = "OGG" if name == "e.opus" else name[2:].upper()
        soundfile.write(root / "bob" / name, samples, RATE, format=container, subtype=subtype)
    write_m4a(root / "bob/f.m4a", samples)
    (root / "bob/notes.txt").write_text("no audio")
    utterances = prepare(root, tmp_path / "out")
    assert {utt.key: utt.spk for utt in read_manifest(tmp_path / "out")} == {
        "ann/a.wav": "ann", "ann/x.y.WAV": "ann", "bob/b.flac": "bob", "bob/c.mp3": "bob", "bob/d.ogg": "bob",
        "bob/e.opus": "bob", "bob/f.wav": "bob",
    }  # fmt: skip
    assert all(utt.seconds == pytest.approx(0.2, abs=0.15) for utt in utterances)
    durations = read_pairs(tmp_path / "out" / "utt2dur", "durations")
    assert float(durations["ann/a.wav"]) == pytest.approx(0.2)


def test_a_held_out_part_with_trials_of_different_sessions(speech, tmp_path):
    prepare(speech, tmp_path / "out", speaker_from_parent(2), num_test_speakers=3, utts_per_test_speaker=4)
    whole, train, test = (list(read_manifest(tmp_path / "out" / name)) for name in ("", "train", "test"))
    assert sorted(train + test, key=lambda utt: utt.key) == whole
    assert len({utt.spk for utt in test}) == 3
    assert not {utt.spk for utt in test} & {utt.spk for utt in train}
    assert all(utt.spk == utt.key.split("/")[0] for utt in whole)
    trials = read_trials(tmp_path / "out" / "test" / "trials" / "test.kaldi")
    # 12 utterances of 3 speakers; a session is a speaker's folder: 4 pairs across the two of each, all between speakers
    assert (int(trials.is_target.sum()), len(trials)) == (3 * 4, 3 * 4 + 3 * 16)
    for i in range(len(trials)):
        enroll, other = (utt.split("/") for utt in trials.name(i).split())
        assert trials.is_target[i] == (enroll[0] == other[0])
        assert enroll[:2] != other[:2]
    assert len(read_trials(tmp_path / "out" / "test" / "dev.kaldi")) == 60


def test_the_speaker_of_a_trial_is_not_read_from_the_key(tmp_path):
    root = tree(tmp_path / "in", *(f"{n}-{'abcde'[n % 5]}.wav" for n in range(20)))
    prepare(root, tmp_path / "out", speaker_from_regex(r"-(\w)"), num_test_speakers=3, utts_per_test_speaker=2)
    trials = read_trials(tmp_path / "out" / "test" / "trials" / "test.kaldi")
    assert (int(trials.is_target.sum()), len(trials)) == (3, 15)
    for i in range(len(trials)):
        enroll, other = trials.name(i).split()
        assert trials.is_target[i] == (enroll[-5] == other[-5])


def test_test_speakers_are_drawn_by_seed_and_a_new_one_moves_at_most_one(speech, tmp_path):
    def held_out(name, seed):
        prepare(speech, tmp_path / name, speaker_from_parent(2), num_test_speakers=3, seed=seed)
        return {utt.spk for utt in read_manifest(tmp_path / name / "test")}

    first = held_out("a", 1)
    assert "s9" not in first  # has no pair
    assert held_out("b", 1) == first
    assert {frozenset(held_out(f"c{seed}", seed)) for seed in range(2, 8)} != {frozenset(first)}
    tree(speech, "new/mon/1.wav", "new/tue/1.wav")
    assert len(held_out("d", 1) - first) <= 1


def test_a_second_call_gives_the_same_and_another_folder_is_refused(speech, tmp_path):
    files = []
    for _ in range(2):
        prepare(speech, tmp_path / "out", speaker_from_parent(2), num_test_speakers=2)
        files.append({path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()})
    assert files[0] == files[1]
    other = tree(tmp_path / "other", "ann/1.wav", "bob/1.wav")
    with pytest.raises(InputError, match=r"out was prepared from wav_dir .*speech, now it is .*other; give another"):
        prepare(other, tmp_path / "out")


def test_files_without_a_speaker_are_named_or_left_out(speech, tmp_path):
    tree(speech, "readme.wav", "s1/intro.wav")
    with pytest.raises(
        InputError,
        match=r"2 of 27 files below .* no speaker by this rule: readme.wav, s1/intro.wav; change .*--skip_un",
    ):
        prepare(speech, tmp_path / "out", speaker_from_parent(2))
    assert not (tmp_path / "out").exists()
    assert len(prepare(speech, tmp_path / "out", speaker_from_parent(2), skip_unmatched=True)) == 25
    assert (tmp_path / "out" / "unmatched.txt").read_text() == "readme.wav\ns1/intro.wav\n"


@pytest.mark.parametrize(
    ("paths", "options", "match"),
    [
        ((), {}, r"no audio below .*in \(files that end in \.wav, .*\.opus\); name the right folder"),
        (("a/1.flac",), {"suffixes": ["wav"]}, r"no audio below .* end in \.wav\)"),
        (("a/1.wav", "a/2.wav"), {}, r"2 files below .* of 1 speaker by this rule \(a\); at least two .* --spk_from"),
        (("a/my call.wav", "b/1.wav"), {}, r"1 of 2 files .* blanks .* 'a/my call.wav'; .* rename them"),
        (("a/1.wav", "a/1.flac", "b/1.wav"), {}, r"2 files .* suffix only: a/1.flac, a/1.wav; .* --suffix, or rename"),
    ],
)
def test_trees_that_cannot_be_used_are_errors(tmp_path, paths, options, match):
    (tmp_path / "in").mkdir()
    for path in paths:
        (tmp_path / "in" / path).parent.mkdir(exist_ok=True)
        (tmp_path / "in" / path).touch()
    with pytest.raises(InputError, match=match):
        prepare(tmp_path / "in", tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("number", "match"),
    [
        (1, r"--num_test_speakers 1 does not go with 7 speakers .*, 6 of them with two or more .* give 2 to 5"),
        (6, r"--num_test_speakers 6 does not go with 7 speakers .*training two speakers more; give 2 to 5"),
    ],
)
def test_numbers_of_test_speakers_that_cannot_be(speech, tmp_path, number, match):
    with pytest.raises(InputError, match=match):
        prepare(speech, tmp_path / "out", speaker_from_parent(2), num_test_speakers=number)


def test_one_utterance_of_each_test_speaker_makes_no_target_trial(speech, tmp_path):
    with pytest.raises(InputError, match=r"^1 utterances .* no trials of both kinds.* raise --utts_per_test_speaker"):
        prepare(speech, tmp_path / "out", speaker_from_parent(2), num_test_speakers=2, utts_per_test_speaker=1)
    assert not (tmp_path / "out" / "test").exists()


def test_too_few_speakers_for_any_test(tmp_path):
    root = tree(tmp_path / "in", "a/1.wav", "a/2.wav", "b/1.wav", "b/2.wav")
    with pytest.raises(InputError, match=r"2 speakers .* record more speakers, or leave the option out"):
        prepare(root, tmp_path / "out", num_test_speakers=2)


def test_folders_that_are_not_there_or_in_each_other(speech, tmp_path):
    with pytest.raises(InputError, match=f"--wav_dir {re.escape(str(tmp_path))}/no is not a folder"):
        prepare(tmp_path / "no", tmp_path / "out")
    with pytest.raises(InputError, match=r"--output_dir .*speech/out lies in --wav_dir .*speech; .* folder elsewhere"):
        prepare(speech, speech / "out")


def test_unreadable_files_are_listed_or_left_out(speech, tmp_path):
    (speech / "s1" / "mon" / "1.wav").write_bytes(b"no audio")
    with pytest.raises(InputError, match=r"1 of 25 audio files .*s1/mon/1.wav cannot be read .* --max_bad_utts 0.04"):
        prepare(speech, tmp_path / "out", speaker_from_parent(2))
    assert len(prepare(speech, tmp_path / "out", speaker_from_parent(2), max_bad_utts=0.05)) == 24
    assert "s1/mon/1.wav" in (tmp_path / "out" / "bad.txt").read_text()


def test_the_tool_wants_the_options_of_the_rule(tool, tmp_path):
    done = tool("prepare_data", "--wav_dir", tmp_path, "--output_dir", tmp_path / "out", "--spk_from", "regex")
    assert done.returncode == 1
    assert "prepare_data.py: error: --spk_from regex needs --spk_regex, and no --spk_level" in done.stderr
