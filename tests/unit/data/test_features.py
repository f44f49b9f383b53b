import kaldi_native_fbank
import numpy as np
import pytest
import torch
import torchaudio

from wespeaker.data.features import ConvFbank, Fbank, mean_normalise


def speechlike(num_samples, seed=0):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(np.cumsum(rng.standard_normal((3, num_samples)), axis=1).astype(np.float32) * 1e-3)


@pytest.mark.parametrize(("bins", "rate"), [(80, 16000), (40, 16000), (64, 8000)])
def test_equals_torchaudios_kaldi_fbank(bins, rate):
    wav = speechlike(rate)
    expected = torch.stack([
        torchaudio.compliance.kaldi.fbank(
            row[None] * 32768, num_mel_bins=bins, sample_frequency=rate, window_type="hamming", dither=0.0,
            use_energy=False,
        )
        for row in wav
    ])  # fmt: skip
    torch.testing.assert_close(Fbank(num_mel_bins=bins, sample_rate=rate)(wav), expected, rtol=0, atol=1e-4)


def test_equals_kaldis_own_features():
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.dither, options.frame_opts.window_type, options.mel_opts.num_bins = 0.0, "hamming", 80
    fbank = kaldi_native_fbank.OnlineFbank(options)
    wav = speechlike(16000)[0]
    fbank.accept_waveform(16000, (wav * 32768).tolist())
    expected = np.stack([fbank.get_frame(i) for i in range(fbank.num_frames_ready)])
    np.testing.assert_allclose(Fbank()(wav[None])[0].numpy(), expected, atol=2e-3)


def test_frames_and_samples():
    fbank = Fbank()
    assert fbank.num_samples(200) == 32240
    assert fbank.num_frames(32000) == 198
    assert fbank.num_frames(399) == 0
    for num_samples in (400, 559, 560, 12345):
        assert fbank(torch.zeros(1, num_samples)).shape == (1, fbank.num_frames(num_samples), 80)


def test_silence_is_finite_and_too_short_an_error():
    assert Fbank()(torch.zeros(1, 800)).isfinite().all()
    with pytest.raises(ValueError, match="shorter than one frame"):
        Fbank()(torch.zeros(1, 399))


def test_batch_is_each_alone():
    wav = speechlike(8000)
    torch.testing.assert_close(Fbank()(wav)[1:2], Fbank()(wav[1:2]))


def test_mean_normalisation_cancels_level():
    wav = speechlike(16000)
    torch.testing.assert_close(mean_normalise(Fbank()(wav)), mean_normalise(Fbank()(0.5 * wav)), atol=1e-3, rtol=0)
    assert mean_normalise(Fbank()(wav)).mean(dim=1).abs().max() < 1e-4


@pytest.mark.parametrize(("bins", "rate"), [(80, 16000), (40, 8000)])
def test_the_convolution_equals_kaldis_own_features(bins, rate):
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.dither, options.frame_opts.window_type, options.mel_opts.num_bins = 0.0, "hamming", bins
    options.frame_opts.samp_freq = rate
    fbank = kaldi_native_fbank.OnlineFbank(options)
    wav = speechlike(rate)[1] + 0.3  # with an offset, which is removed
    fbank.accept_waveform(rate, (wav * 32768).tolist())
    expected = np.stack([fbank.get_frame(i) for i in range(fbank.num_frames_ready)])
    found = ConvFbank(Fbank(num_mel_bins=bins, sample_rate=rate))(wav[None])
    np.testing.assert_allclose(found[0].numpy(), expected, atol=2e-3)


def test_the_convolution_equals_the_transform_on_every_length_and_in_silence():
    fbank = Fbank()
    convolution = ConvFbank(fbank)
    for num_samples in (400, 559, 560, 12345):
        wav = speechlike(num_samples)
        torch.testing.assert_close(convolution(wav), fbank(wav), rtol=0, atol=1e-3)
        wav = torch.zeros(2, num_samples)
        torch.testing.assert_close(convolution(wav), fbank(wav), rtol=0, atol=0)
