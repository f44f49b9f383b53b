import numpy as np
import pytest
import soundfile
from conftest import RATE, voice, write_m4a, write_wav

from wespeaker.data.audio import BLOCK_SAMPLES
from wespeaker.data.measure import measure
from wespeaker.errors import InputError


@pytest.fixture
def wav(rng):
    return voice(rng, 120, 1.0)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_figures_are_those_of_the_first_channel(tmp_path, wav):
    path = write_wav(tmp_path / "a.wav", np.stack([wav, np.zeros_like(wav)], axis=1))
    found = measure(str(path))
    kept, _ = soundfile.read(path)
    assert (found.num_samples, found.rate, found.channels) == (RATE, RATE, 2)
    assert found.rms == pytest.approx(np.std(kept[:, 0]), rel=1e-3)
    assert (found.is_finite, found.is_clipped, found.is_cut) == (True, False, False)


def test_a_long_file_gives_the_figures_of_the_whole(tmp_path, rng):
    wav = 0.05 + 0.1 * rng.standard_normal(2 * BLOCK_SAMPLES + 77)
    path = write_wav(tmp_path / "long.wav", wav)
    kept, _ = soundfile.read(path)
    found = measure(str(path))
    assert found.num_samples == len(wav)
    assert found.mean == pytest.approx(kept.mean(), abs=1e-9)
    assert found.rms == pytest.approx(np.sqrt(np.mean(kept**2)), rel=1e-9)


@pytest.mark.parametrize(
    ("at", "samples", "is_clipped"),
    [
        (100, [1, 1, 1], True),
        (100, [-1, -1, -1], True),
        (100, [1, 1, 0.5, 1], False),
        (BLOCK_SAMPLES - 1, [1, 1, 1], True),  # across two blocks
        (BLOCK_SAMPLES - 2, [1, 1, 0, 1, 1], False),
    ],
)
def test_clipping_is_a_run_of_samples_at_full_scale(tmp_path, at, samples, is_clipped):
    wav = np.zeros(BLOCK_SAMPLES + 100)
    wav[at : at + len(samples)] = samples
    assert measure(str(write_wav(tmp_path / "a.wav", wav))).is_clipped is is_clipped


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_samples_that_are_not_finite(tmp_path, wav, value):
    wav[5] = value
    soundfile.write(tmp_path / "a.wav", wav, RATE, subtype="FLOAT")
    found = measure(str(tmp_path / "a.wav"))
    assert not found.is_finite
    assert np.isnan(found.rms)


def test_the_digest_is_of_the_sound_not_of_the_file(tmp_path, wav):
    first = measure(str(write_wav(tmp_path / "a.wav", wav)))
    soundfile.write(tmp_path / "a.flac", soundfile.read(tmp_path / "a.wav")[0], RATE)
    assert measure(str(tmp_path / "a.flac")).digest == first.digest
    assert measure(str(write_wav(tmp_path / "b.wav", wav, rate=8000))).digest != first.digest
    assert measure(str(write_wav(tmp_path / "c.wav", wav[:-1]))).digest != first.digest


def test_a_wav_that_was_cut_off_says_so(tmp_path, wav):
    whole = write_wav(tmp_path / "a.wav", wav).read_bytes()
    (tmp_path / "cut.wav").write_bytes(whole[: len(whole) // 2])
    assert measure(str(tmp_path / "cut.wav")).is_cut
    (tmp_path / "pipe.wav").write_bytes(whole[:4] + b"\xff\xff\xff\xff" + whole[8:])  # as a program writes to a pipe
    assert not measure(str(tmp_path / "pipe.wav")).is_cut


@pytest.mark.parametrize(("container", "subtype"), [("FLAC", "PCM_16"), ("MP3", "MPEG_LAYER_III")])
def test_a_torso_of_a_format_that_knows_its_length_is_damaged(tmp_path, rng, container, subtype):
    path = tmp_path / f"a.{container.lower()}"
    soundfile.write(path, voice(rng, 120, 3.0), RATE, format=container, subtype=subtype)
    assert measure(str(path)).num_samples == 3 * RATE
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=r"a\.\w+ (is damaged: \d+ of 48000 samples|cannot be read)"):
        measure(str(path))


def test_what_is_no_audio_is_named(tmp_path):
    with pytest.raises(InputError, match=r"a\.wav does not exist"):
        measure(str(tmp_path / "a.wav"))
    (tmp_path / "a.wav").write_bytes(b"no audio at all")
    with pytest.raises(InputError, match=r"a\.wav cannot be read as audio"):
        measure(str(tmp_path / "a.wav"))
    write_wav(tmp_path / "b.wav", np.zeros(0))
    with pytest.raises(InputError, match=r"b\.wav holds no audio \(0 samples\)"):
        measure(str(tmp_path / "b.wav"))


def test_what_libsndfile_does_not_know_is_decoded_whole(tmp_path, wav):
    found = measure(str(write_m4a(tmp_path / "a.m4a", np.stack((wav, wav), axis=1))))
    assert (found.rate, found.channels) == (RATE, 2)
    assert found.num_samples == pytest.approx(len(wav), abs=2048)
    assert found.rms == pytest.approx(np.sqrt(np.mean(wav**2)), rel=0.05)
