"""Recordings as users have them: any format, what cannot be used as a sentence, what is doubtful as a warning."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import RATE, voice, write_m4a, write_wav

from wespeaker.data.audio import AudioSource, read_audio
from wespeaker.deploy import recording as module
from wespeaker.deploy.recording import read_recording
from wespeaker.errors import InputError


def speech(seconds: float = 1.5, rate: int = RATE) -> np.ndarray:
    """A buzz of 120 Hz at a sample rate."""
    wav = voice(np.random.default_rng(0), 120 * RATE / rate, seconds * rate / RATE)
    return (0.5 * wav / np.abs(wav).max()).astype(np.float32)


def read(path: Path | str, min_samples: int = 400):
    return read_recording(str(path), rate=RATE, min_samples=min_samples)


def test_a_file_of_the_models_rate_comes_as_training_reads_it(tmp_path: Path):
    path = write_wav(tmp_path / "a.wav", speech())
    found = read(path)
    np.testing.assert_array_equal(found.wav, read_audio(AudioSource(str(path))))
    assert (found.wav.dtype, found.seconds, found.warnings) == (np.float32, 1.5, ())


def encode(samples: np.ndarray, rate: int, *, container: str, codec: str) -> bytes:
    import av

    file = io.BytesIO()
    with av.open(file, "w", format=container) as target:
        stream = target.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray((samples * 32767).astype(np.int16)[None], format="s16", layout="mono")
        frame.sample_rate = rate
        resampler = av.AudioResampler(format=stream.codec_context.format, layout="mono", rate=rate)
        for part in resampler.resample(frame) + resampler.resample(None):
            target.mux(stream.encode(part))
        target.mux(stream.encode(None))
    return file.getvalue()


@pytest.mark.parametrize(
    "write",
    [
        lambda path: soundfile.write(path, speech(rate=44100), 44100, format="FLAC"),
        lambda path: soundfile.write(path, speech(rate=48000), 48000, format="OGG", subtype="OPUS"),
        lambda path: soundfile.write(path, speech(rate=44100), 44100, format="MP3"),
        lambda path: write_m4a(path, speech(rate=32000), 32000),
        lambda path: path.write_bytes(encode(speech(rate=48000), 48000, container="webm", codec="libopus")),
        lambda path: path.write_bytes(encode(speech(rate=48000), 48000, container="matroska", codec="aac")),
    ],
    ids=["flac", "opus", "mp3", "m4a", "webm", "mkv"],
)
def test_any_format_and_rate(tmp_path: Path, write):
    write(tmp_path / "a")  # without a suffix: the contents tell
    found = read(tmp_path / "a")
    assert found.seconds == pytest.approx(1.5, abs=0.1)
    assert len(found.wav) == pytest.approx(found.seconds * RATE, abs=2)
    assert not found.warnings
    spectrum = np.abs(np.fft.rfft(found.wav * np.hanning(len(found.wav))))
    assert np.argmax(spectrum) * RATE / len(found.wav) == pytest.approx(120, abs=2)


def test_a_telephones_recording(tmp_path: Path):
    data = encode(speech(rate=8000), 8000, container="amr", codec="libopencore_amrnb")
    (tmp_path / "a.amr").write_bytes(data)
    found = read(tmp_path / "a.amr")
    assert len(found.wav) == pytest.approx(1.5 * RATE, abs=0.05 * RATE)
    assert "8,000 samples a second" in found.warnings[0]


@pytest.mark.parametrize(
    ("samples", "match"),
    [
        (np.zeros(RATE), "is silent: all of its samples are equal"),
        (np.full(RATE, 0.25), "is silent"),
        (np.full(RATE, np.nan), "not finite"),
        (speech(0.02), r"is too short: 0\.020 s, the model needs 0\.025 s"),
        (np.zeros(0), "holds no audio"),
    ],
)
def test_what_cannot_be_used_is_a_sentence(tmp_path: Path, samples: np.ndarray, match: str):
    soundfile.write(tmp_path / "a.wav", samples, RATE, subtype="FLOAT")
    with pytest.raises(InputError, match=match):
        read(tmp_path / "a.wav")


def test_hours_are_refused_before_they_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write_wav(tmp_path / "a.wav", np.resize(speech(), 601 * 1000), rate=1000)
    monkeypatch.setattr(module, "read_whole", None)
    with pytest.raises(InputError, match=r"is too long: 601 s, at most 600 s are embedded as one; cut out"):
        read(path)


def test_no_audio_and_no_file(tmp_path: Path):
    (tmp_path / "a.txt").write_text("no audio")
    with pytest.raises(InputError, match="cannot be read as audio"):
        read(tmp_path / "a.txt")
    with pytest.raises(InputError, match="does not exist"):
        read(tmp_path / "b.wav")


@pytest.mark.parametrize(
    ("wav", "rate", "match"),
    [
        (np.clip(10 * speech(), -1, 1), RATE, "is clipped"),
        (speech() / 1000, RATE, r"is very quiet \(-7\d dB of full scale\)"),
        (np.stack([speech(), -speech()], axis=1), RATE, "has 2 channels; the first is used, as in training"),
        (speech(), 8000, "has 8,000 samples a second, and the model was trained with 16,000"),
    ],
)
def test_doubts_are_warnings(tmp_path: Path, wav: np.ndarray, rate: int, match: str):
    found = read(write_wav(tmp_path / "a.wav", wav, rate))
    (warning,) = found.warnings
    assert re.search(match, warning)
