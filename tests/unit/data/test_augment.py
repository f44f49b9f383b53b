import numpy as np
import pytest
from conftest import RATE, write_wav
from scipy.signal import fftconvolve

from wespeaker.data.audio import AudioSource, audio_length
from wespeaker.data.augment import SNR_DB, Augmenter, add_noise, add_reverb
from wespeaker.data.manifest import BankFile
from wespeaker.data.randomness import generator
from wespeaker.errors import InputError


@pytest.mark.parametrize("speech_rms", [0.3, 0.003])
@pytest.mark.parametrize("noise_rms", [0.3, 0.001, 1e-5])
@pytest.mark.parametrize("snr_db", [0.0, 10.0, 30.0])
def test_the_snr_is_the_snr_that_was_asked(speech_rms, noise_rms, snr_db):
    """WeSpeaker's floor of 1e-4 makes 10 dB into 20.8 dB where the noise is quiet."""
    rng = np.random.default_rng(0)
    speech = (speech_rms * rng.standard_normal(RATE)).astype(np.float32)
    noise = (noise_rms * rng.standard_normal(RATE)).astype(np.float32)
    added = add_noise(speech, noise, snr_db).astype(np.float64) - speech
    found = 10 * np.log10(np.mean(speech.astype(np.float64) ** 2) / np.mean(added**2))
    assert found == pytest.approx(snr_db, abs=0.1)


def test_silence_gets_no_noise():
    noise = np.ones(10, dtype=np.float32)
    assert not add_noise(np.zeros(10, dtype=np.float32), noise, 5.0).any()
    assert np.array_equal(add_noise(noise, np.zeros(10, dtype=np.float32), 5.0), noise)


def test_reverberation_is_convolution_in_time_with_the_speech():
    rng = np.random.default_rng(0)
    speech = rng.standard_normal(4000).astype(np.float32)
    rir = np.concatenate([np.zeros(100), [1.0], 0.1 * rng.standard_normal(500)]).astype(np.float32)
    direct = rir[100:].astype(np.float64)
    expected = fftconvolve(speech, direct / np.linalg.norm(direct))[:4000]
    np.testing.assert_allclose(add_reverb(speech, rir), expected, atol=1e-5)
    lone = np.zeros(300, dtype=np.float32)
    lone[200] = -0.5
    np.testing.assert_allclose(add_reverb(speech, lone), -speech, atol=1e-6)


@pytest.fixture
def augmenter(tmp_path):
    def bank(key, samples):
        source = AudioSource(str(write_wav(tmp_path / key, samples)))
        return BankFile(key, source, audio_length(source))

    rng = np.random.default_rng(1)
    noises = [bank(f"{kind}/x/{kind}.wav", 0.1 * rng.standard_normal(5000)) for kind in SNR_DB]
    stereo = np.stack([np.eye(1, 50)[0], 0.3 * rng.standard_normal(50)], axis=1)
    return lambda **args: Augmenter(noises=noises, rirs=[bank("simulated_rirs/a.wav", stereo)], rate=RATE, **args)


def test_shares_are_what_they_are_called(augmenter):
    speech = np.random.default_rng(2).standard_normal(8000).astype(np.float32)
    augment = augmenter(aug_prob=0.6, reverb_share=0.5)
    outs = [augment(speech, generator("shares", i)) for i in range(600)]
    clean = np.mean([np.array_equal(out, speech) for out in outs])
    # A one-sample response leaves the speech as it was but for the 16-bit rounding of its level.
    reverb = np.mean([not np.array_equal(out, speech) and np.abs(out - speech).max() < 0.01 for out in outs])
    assert clean == pytest.approx(0.4, abs=0.07)
    assert reverb == pytest.approx(0.3, abs=0.07)


def test_same_draws_same_audio(augmenter):
    speech = np.random.default_rng(2).standard_normal(8000).astype(np.float32)
    augment = augmenter(aug_prob=1.0, reverb_share=0.3)
    for i in range(20):
        assert np.array_equal(augment(speech, generator(i)), augment(speech, generator(i)))


def test_an_empty_bank_is_an_error_where_it_is_needed():
    with pytest.raises(InputError, match="no noise file"):
        Augmenter(noises=(), rirs=(), aug_prob=0.6, reverb_share=0.5, rate=RATE)
    with pytest.raises(InputError, match="no room impulse response"):
        Augmenter(noises=(), rirs=(), aug_prob=0.6, reverb_share=1.0, rate=RATE)
    Augmenter(noises=(), rirs=(), aug_prob=0.0, reverb_share=0.5, rate=RATE)


def test_an_snr_range_for_each_kind():
    assert SNR_DB == {"noise": (0, 15), "speech": (10, 30), "music": (5, 15)}
