"""Segments of speech (WeSpeaker's vad): the same samples as slicing the whole recording, in any container."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import RATE, encode_m4a, write_wav
from hypothesis import given
from hypothesis import strategies as st

from wespeaker.config import DatasetArgs
from wespeaker.data.audio import AudioSource, read_audio, read_whole
from wespeaker.data.augment import Augmenter
from wespeaker.data.crops import read_crop
from wespeaker.data.dataset import TrainingSet
from wespeaker.data.manifest import read_manifest, read_raw_list, write_raw_list
from wespeaker.data.pack import write_shards
from wespeaker.data.randomness import generator
from wespeaker.data.segments import from_seconds, spans, to_seconds
from wespeaker.data.shards import read_shard_list
from wespeaker.data.utterances import make_table
from wespeaker.errors import InputError

WAV = np.random.default_rng(0).integers(-9000, 9000, 3 * RATE).astype(np.int16)
VAD = [("0.5", "0.75"), ("1.0001", "1.5"), ("2.2", "99")]


def sliced(samples, seconds, rate=RATE):
    """What WeSpeaker makes of a recording: int(seconds * rate), joined."""
    return np.concatenate([samples[int(float(start) * rate) : int(float(end) * rate)] for start, end in seconds])


@given(st.lists(st.tuples(st.integers(0, 90), st.integers(0, 30)), max_size=6), st.integers(0, 120), st.integers(0, 99))
def test_spans_are_slices_of_the_joined_segments(parts, start, count):
    """In any order, overlapping or not."""
    recording = np.arange(130)
    segments = tuple((first, first + length) for first, length in parts if length)
    joined = np.concatenate([recording[:0], *(recording[first:end] for first, end in segments)])
    found = [recording[low:high] for low, high in spans(segments, start, count)]
    np.testing.assert_array_equal(np.concatenate([recording[:0], *found]), joined[start : start + count])
    rest = [recording[low:high] for low, high in spans(segments, start, None)]
    np.testing.assert_array_equal(np.concatenate([recording[:0], *rest]), joined[start:])


@given(st.integers(0, 1 << 40), st.integers(1, 1 << 30), st.sampled_from([8000, 11025, 16000, 44100, 48000]))
def test_texts_give_back_the_samples_wherever_they_are_rounded_down(first, length, rate):
    segments = ((first, first + length),)
    (texts,) = to_seconds(segments, rate=rate)
    assert tuple(int(float(text) * rate) for text in texts) == segments[0]  # WeSpeaker's way to read them
    assert from_seconds([texts], rate=rate) == segments


@pytest.mark.parametrize("container", ["wav", "flac", "m4a"])
def test_a_span_of_segments_is_read(tmp_path, container):
    path = tmp_path / f"a.{container}"
    path.write_bytes(encode_m4a(WAV)) if container == "m4a" else soundfile.write(path, WAV, RATE, subtype="PCM_16")
    whole = read_audio(AudioSource(str(path)))
    source = AudioSource(str(path), segments=from_seconds(VAD, rate=RATE, num_samples=len(whole)))
    joined = sliced(whole, VAD)
    np.testing.assert_array_equal(read_audio(source), joined)
    np.testing.assert_array_equal(read_whole(source)[0], joined)
    np.testing.assert_array_equal(read_audio(source, 3900, 8200), joined[3900:12100])
    crop = read_crop(source, (len(joined), RATE), num_samples=5000, rate=RATE, rng=generator("crop"))
    start = int(generator("crop").integers(len(joined) - 5000 + 1))
    np.testing.assert_array_equal(crop, joined[start : start + 5000])
    with pytest.raises(InputError, match=f"has no audio from sample {len(joined)} on"):
        read_audio(source, len(joined), 10)


@pytest.fixture
def recordings(tmp_path):
    """Three recordings of two speakers, in a data folder."""
    folder = tmp_path / "set"
    folder.mkdir()
    keys = ("a/1.wav", "a/2.wav", "b/1.wav")
    paths = {key: write_wav(tmp_path / key, WAV[: 32_000 + 1000 * n]) for n, key in enumerate(keys)}
    (folder / "wav.scp").write_text("".join(f"{key} {path}\n" for key, path in paths.items()))
    (folder / "utt2spk").write_text("".join(f"{key} {key[0]}\n" for key in paths))
    return folder


def raw_list(folder, vad_of):
    """Write WeSpeaker's raw.list."""
    entries = []
    for line in (folder / "wav.scp").read_text().splitlines():
        key, path = line.split()
        entries.append({"key": key, "spk": key[0], "wav": path, **({"vad": vad_of[key]} if key in vad_of else {})})
    (folder / "raw.list").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return folder / "raw.list"


def test_a_raw_list_of_wespeaker_with_segments(recordings, caplog):
    vad_of = {"a/1.wav": [["0.1", "0.6"], [1.5, 7]], "b/1.wav": [["1.0", "1.1"]], "a/2.wav": [["5", "6"]]}
    table = read_raw_list(raw_list(recordings, vad_of))
    assert {utt.key: utt.length for utt in table} == {"a/1.wav": (16000, RATE), "b/1.wav": (1600, RATE)}
    assert "left out 1 utterances without a segment of speech: a/2.wav" in caplog.text
    for utt in table:
        whole = WAV[:32_000] if utt.key == "a/1.wav" else WAV[:34_000]
        np.testing.assert_array_equal(read_audio(utt.source) * 32768, sliced(whole, vad_of[utt.key]))
    again = recordings / "again.list"
    write_raw_list(again, table)
    assert list(read_raw_list(again)) == list(table)
    assert list(table.select(table.seconds > 0.5)) == [utt for utt in table if utt.spk == "a"]


def test_the_same_file_with_other_segments_is_another_utterance(recordings):
    """Also next to each other, where the table keeps one name for neighbours of one file."""
    path = recordings / "wav.scp"
    wav = path.read_text().split()[1]
    entries = [{"key": f"k{n}", "spk": "s", "wav": wav} for n in range(5)]
    entries[1]["vad"], entries[2]["vad"] = [["0", "1"]], [["1", "1.5"], ["0", "0.25"]]
    (recordings / "raw.list").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    table = make_table(list(read_raw_list(recordings / "raw.list")))
    assert [utt.length[0] for utt in table] == [32_000, 16_000, 12_000, 32_000, 32_000]
    assert [utt.source.segments for utt in table] == [(), ((0, 16_000),), ((16_000, 24_000), (0, 4000)), (), ()]


def test_a_data_folder_with_a_vad_file_is_cut_wherever_it_is_read(recordings, tmp_path, caplog):
    """Training list, shards, and what extraction embeds: all of them the joined segments."""
    (recordings / "vad").write_text("ann a/1.wav 0.25 1.0\nann a/1.wav 1.25 1.5\nann b/1.wav 0.0 2.125\n")
    table = read_manifest(recordings)
    assert [(utt.key, utt.length[0]) for utt in table] == [("a/1.wav", 16_000), ("b/1.wav", 34_000)]
    assert "left out 1 utterances without a segment of speech: a/2.wav" in caplog.text
    write_raw_list(recordings / "raw.list", table)
    assert list(read_raw_list(recordings / "raw.list")) == list(table)
    write_shards(tmp_path / "shards", table, utts_per_shard=10, seed=1, rate=RATE)
    packed = read_shard_list(tmp_path / "shard.list")
    expected = sliced(WAV[:32_000], [(0.25, 1.0), (1.25, 1.5)])
    for utt in (table[0], packed[0], read_raw_list(recordings / "raw.list")[0]):
        np.testing.assert_array_equal(read_audio(utt.source) * 32768, expected)


def test_training_sees_segments_only(recordings):
    """Silence outside of them, so that a crop with any of it would have zeros."""
    for path in (line.split()[1] for line in (recordings / "wav.scp").read_text().splitlines()):
        silent = np.zeros(60_000, np.int16)
        silent[10_000:22_000], silent[40_000:50_000] = 1000, 2000
        write_wav(Path(path), silent)
    speech = [[str(start / RATE), str(end / RATE)] for start, end in ((10_000, 22_000), (40_000, 50_000))]
    table = read_raw_list(raw_list(recordings, dict.fromkeys(("a/1.wav", "a/2.wav", "b/1.wav"), speech)))
    args = DatasetArgs(num_frms=100, speed_perturb=False, fbank_args={"dither": 0.0})
    dataset = TrainingSet(table, args, Augmenter((), (), aug_prob=0.0, reverb_share=0.5, rate=RATE), seed=1)
    levels = set()
    for epoch in range(20):
        levels |= set(np.unique(dataset[epoch, 0].wav * 32768))
    assert levels == {1000, 2000}


@pytest.mark.parametrize(
    ("vad", "match"),
    [
        ([["0.1"]], r"raw\.list:1: a segment must be a start and an end in seconds, found \['0\.1'\]"),
        ([["1", "0.5"]], "a segment must be a start and an end"),
        ([["-1", "0.5"]], "a segment must be a start and an end"),
        ([["0", "nan"]], "a segment must be a start and an end"),
        ([[0, 10**400]], "a segment must be a start and an end"),
        (["12"], "a segment must be a start and an end"),
        ({"0": "1"}, "segments must be a list of starts and ends in seconds, found {'0': '1'}"),
        (None, "segments must be a list"),
    ],
)
def test_segments_that_are_none_are_named(recordings, vad, match):
    with pytest.raises(InputError, match=match):
        read_raw_list(raw_list(recordings, {"a/1.wav": vad}))


def test_a_length_that_is_not_that_of_the_segments_is_named(tmp_path):
    entry = {"key": "k", "spk": "s", "wav": "/x.wav", "vad": [["0", "1"]], "num_samples": 15_999, "sample_rate": RATE}
    (tmp_path / "raw.list").write_text(json.dumps(entry))
    with pytest.raises(InputError, match=r"k: the segments \(vad\) have 16000 samples, its entry says 15999"):
        read_raw_list(tmp_path / "raw.list")


def test_a_vad_file_with_too_few_columns_is_named(recordings):
    (recordings / "vad").write_text("a/1.wav 0.1 0.5\nb/1.wav 3\n")
    with pytest.raises(InputError, match=r"vad:2: expected '… key start end', found 'b/1\.wav 3'"):
        read_manifest(recordings)
