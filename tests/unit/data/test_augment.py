import numpy as np
import pytest
from conftest import RATE, write_wav
from scipy.signal import correlate, fftconvolve

from wespeaker.data.audio import AudioSource, audio_length, read_audio
from wespeaker.data.augment import SNR_DB, Augmenter, add_noise, add_reverb, convolve_to_end, peak_normalised
from wespeaker.data.bank import BankFile
from wespeaker.data.randomness import generator
from wespeaker.errors import InputError


def noise_like(rms, num_samples=RATE, seed=0):
    return (rms * np.random.default_rng(seed).standard_normal(num_samples)).astype(np.float32)


def snr_db(speech, noisy):
    speech, added = speech.astype(np.float64), noisy.astype(np.float64) - speech
    return 10 * np.log10(np.mean(speech**2) / np.mean(added**2))


@pytest.mark.parametrize("speech_rms", [0.3, 0.003, 1e-4])
@pytest.mark.parametrize("noise_rms", [0.3, 0.001, 1e-5])
@pytest.mark.parametrize("asked", [0.0, 10.0, 30.0])
def test_the_snr_is_the_snr_that_was_asked(speech_rms, noise_rms, asked):
    speech, noise = noise_like(speech_rms), noise_like(noise_rms, seed=1)
    assert snr_db(speech, add_noise(speech, noise, asked)) == pytest.approx(asked, abs=0.1)


@pytest.mark.parametrize(
    ("speech_rms", "noise_rms", "found"), [(0.1, 0.003, 20.8), (0.1, 0.001, 30.0), (0.003, 0.1, -0.8)]
)
def test_with_wespeakers_floor_the_snr_is_wespeakers(speech_rms, noise_rms, found):
    """The values are those of WeSpeaker's own code where 10 dB are asked."""
    speech, noise = noise_like(speech_rms), noise_like(noise_rms, seed=1)
    assert snr_db(speech, add_noise(speech, noise, 10.0, power_floor=1e-4)) == pytest.approx(found, abs=0.1)


def test_silence_gets_no_noise():
    noise = np.ones(10, dtype=np.float32)
    assert not add_noise(np.zeros(10, dtype=np.float32), noise, 5.0).any()
    assert np.array_equal(add_noise(noise, np.zeros(10, dtype=np.float32), 5.0), noise)


def room(delay, num_samples=600, seed=0):
    rir = 0.1 * np.random.default_rng(seed).standard_normal(num_samples)
    rir[:delay] = 0
    rir[delay] = 1.0
    return rir.astype(np.float32)


def test_reverberation_is_convolution():
    speech, rir = noise_like(1.0, 4000), room(100)
    direct = rir[100:].astype(np.float64)
    expected = fftconvolve(speech, direct / np.linalg.norm(direct))[:4000]
    np.testing.assert_allclose(add_reverb(speech, rir), expected, atol=1e-5)
    whole = fftconvolve(speech, rir / np.linalg.norm(rir.astype(np.float64)))[:4000]
    np.testing.assert_allclose(add_reverb(speech, rir, align_direct_path=False), whole, atol=1e-5)
    lone = np.zeros(300, dtype=np.float32)
    lone[200] = -0.5
    np.testing.assert_allclose(add_reverb(speech, lone), -speech, atol=1e-6)


@pytest.mark.parametrize("signal_samples", [1, 2048, 5000, 32_240])
@pytest.mark.parametrize("response_samples", [1, 2047, 2049, 16_000, 40_000])
def test_blockwise_convolution_is_convolution(signal_samples, response_samples):
    signal, response = noise_like(1.0, signal_samples), noise_like(0.01, response_samples, 1)
    out = convolve_to_end(signal, response)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, fftconvolve(signal.astype(np.float64), response)[:signal_samples], atol=1e-5)


@pytest.mark.parametrize("delay", [0, 37, 400])
def test_reverberated_speech_is_in_time_with_the_speech(delay):
    speech = noise_like(0.1, 8000)

    def lag(wav):
        return int(np.argmax(np.abs(correlate(wav, speech)))) - (len(speech) - 1)

    assert lag(add_reverb(speech, room(delay))) == 0
    assert lag(add_reverb(speech, room(delay), align_direct_path=False)) == delay


def test_peak_normalisation():
    assert peak_normalised(np.array([0.1, -0.5], dtype=np.float32)).tolist() == pytest.approx([0.2, -1.0])
    assert not peak_normalised(np.zeros(3, dtype=np.float32)).any()


@pytest.fixture
def bank(tmp_path):
    def make(key, samples, rate=RATE):
        source = AudioSource(str(write_wav(tmp_path / key, samples, rate)))
        return BankFile(key, source, audio_length(source))

    return make


@pytest.fixture
def augmenter(bank):
    noises = [bank(f"{kind}/x/{kind}.wav", noise_like(0.1, 5000, seed)) for seed, kind in enumerate(SNR_DB)]
    stereo = np.stack([np.eye(1, 50)[0], 0.3 * noise_like(1.0, 50)], axis=1)
    banks = {"noises": noises, "rirs": [bank("simulated_rirs/a.wav", stereo)]}
    return lambda **args: Augmenter(**{**banks, "rate": RATE, **args})


def test_shares_are_what_they_are_called(augmenter):
    speech = noise_like(0.1, 8000, 2)
    augment = augmenter(aug_prob=0.6, reverb_share=0.5)
    outs = [augment(speech, generator("shares", i)) for i in range(600)]
    clean = np.mean([np.array_equal(out, speech) for out in outs])
    # A one-sample response leaves the speech as it was but for the 16-bit rounding of its level.
    reverb = np.mean([not np.array_equal(out, speech) and np.abs(out - speech).max() < 0.001 for out in outs])
    assert clean == pytest.approx(0.4, abs=0.07)
    assert reverb == pytest.approx(0.3, abs=0.07)


@pytest.mark.parametrize("kind", SNR_DB)
@pytest.mark.parametrize("noise_samples", [1000, 50_000])
def test_the_snr_holds_for_the_crop_that_is_added(augmenter, bank, kind, noise_samples):
    """Also where the noise is shorter than the speech and is repeated, and where most of its file is loud."""
    wav = noise_like(0.2, noise_samples) * np.linspace(0.001, 1, noise_samples, dtype=np.float32)
    augment = augmenter(noises=[bank(f"{kind}/long.wav", wav)], aug_prob=1.0, reverb_share=0.0)
    speech = noise_like(0.001, 8000, 3)
    found = [snr_db(speech, augment(speech, generator(kind, i))) for i in range(40)]
    low, high = SNR_DB[kind]
    assert low - 0.1 < min(found) < max(found) < high + 0.1
    assert max(found) - min(found) > 0.7 * (high - low)


def test_the_order_of_a_bank_does_not_matter(augmenter, bank):
    noises = [bank(f"noise/{i}.wav", noise_like(0.1, 9000, i)) for i in range(5)]
    speech = noise_like(0.1, 8000)
    one, other = (augmenter(noises=order, aug_prob=1.0, reverb_share=0.3) for order in (noises, noises[::-1]))
    for i in range(20):
        assert np.array_equal(one(speech, generator(i)), other(speech, generator(i)))


def test_only_augmented_crops_are_peak_normalised_and_only_if_asked(augmenter):
    speech = noise_like(0.01, 8000)
    for asked in (False, True):
        augment = augmenter(aug_prob=0.6, reverb_share=0.5, peak_normalise=asked)
        outs = [augment(speech, generator("peak", i)) for i in range(40)]
        peaks = {float(np.abs(out).max()) for out in outs if not np.array_equal(out, speech)}
        assert (peaks == {1.0}) == asked
        assert any(np.array_equal(out, speech) for out in outs)


def test_a_response_of_another_rate_is_resampled(augmenter, bank):
    at_8k = np.zeros(400)
    at_8k[[0, 200]] = 0.9, 0.4  # an echo after 25 ms
    augment = augmenter(rirs=[bank("r/8k.wav", at_8k, 8000)], aug_prob=1.0, reverb_share=1.0)
    speech = noise_like(0.1, 8000)
    echo = correlate(augment(speech, generator(0)), speech)[len(speech) - 1 :]
    assert np.argmax(echo[100:]) + 100 == RATE // 40


def test_a_bank_file_that_cannot_be_used_names_itself(augmenter, bank, tmp_path):
    augment = augmenter(rirs=[bank("r/silent.wav", np.zeros(100))], aug_prob=1.0, reverb_share=1.0)
    with pytest.raises(InputError, match=r"silent\.wav \(a room impulse response\) is silent"):
        augment(noise_like(0.1), generator(0))
    gone = bank("noise/gone.wav", noise_like(0.1))
    (tmp_path / "noise/gone.wav").unlink()
    with pytest.raises(InputError, match=r"gone\.wav does not exist"):
        augmenter(noises=[gone], aug_prob=1.0, reverb_share=0.0)(noise_like(0.1), generator(0))


def test_the_part_of_a_noise_that_is_needed_is_all_that_is_read(augmenter, bank, monkeypatch):
    spans = []

    def watched(source, start=0, num_samples=None):
        spans.append(num_samples)
        return read_audio(source, start, num_samples)

    monkeypatch.setattr("wespeaker.data.crops.read_audio", watched)
    augment = augmenter(noises=[bank("noise/long.wav", noise_like(0.1, 100_000))], aug_prob=1.0, reverb_share=0.0)
    augment(noise_like(0.1, 8000), generator(0))
    assert spans == [8000]


def test_an_empty_bank_is_an_error_where_it_is_needed():
    with pytest.raises(InputError, match="no noise file"):
        Augmenter(noises=(), rirs=(), aug_prob=0.6, reverb_share=0.5, rate=RATE)
    with pytest.raises(InputError, match="no room impulse response"):
        Augmenter(noises=(), rirs=(), aug_prob=0.6, reverb_share=1.0, rate=RATE)
    Augmenter(noises=(), rirs=(), aug_prob=0.0, reverb_share=0.5, rate=RATE)


def test_an_snr_range_for_each_kind():
    assert SNR_DB == {"noise": (0, 15), "speech": (10, 30), "music": (5, 15)}
