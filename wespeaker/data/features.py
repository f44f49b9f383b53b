"""Kaldi's log mel filterbank features in batches, and mean normalisation: the one front end for all of the project."""

from __future__ import annotations

import torch
import torch.nn.functional as F
import torchaudio.compliance.kaldi as kaldi
from torch import nn

INT16_SCALE = 32768.0  # Kaldi computes on 16-bit steps; the log makes it an offset
PREEMPHASIS = 0.97
LOW_FREQ = 20.0  # Hz
CACHED_SAMPLES = 1 << 16  # waveform samples whose spectra stay in a core's cache: the whole batch takes 5 times as long


class Fbank(nn.Module):
    """Log mel filterbank, equal to Kaldi's ``compute-fbank-feats`` with a Hamming window and no dither.

    Frames that do not fit are dropped (snip edges); the mean of each frame is removed before pre-emphasis.

    Args:
        num_mel_bins: F.
        frame_length: in ms.
        frame_shift: in ms.
        sample_rate: in Hz.

    """

    window: torch.Tensor
    mel: torch.Tensor

    def __init__(
        self,
        *,
        num_mel_bins: int = 80,
        frame_length: float = 25.0,
        frame_shift: float = 10.0,
        sample_rate: int = 16000,
    ) -> None:
        super().__init__()
        self.length = round(frame_length * sample_rate / 1000)
        self.shift = round(frame_shift * sample_rate / 1000)
        self.fft_length = 1 << (self.length - 1).bit_length()
        window = torch.hamming_window(self.length, periodic=False)
        mel, _ = kaldi.get_mel_banks(num_mel_bins, self.fft_length, sample_rate, LOW_FREQ, 0.0, 100.0, -500.0, 1.0)
        self.register_buffer("window", window, persistent=False)
        self.register_buffer("mel", mel.T.contiguous(), persistent=False)  # (fft_length / 2, F): none at Nyquist

    def num_samples(self, num_frames: int) -> int:
        """Return how many samples give exactly ``num_frames`` frames (32,240 for 200 frames at 16 kHz)."""
        return (num_frames - 1) * self.shift + self.length

    def num_frames(self, num_samples: int) -> int:
        """Return how many frames come out of ``num_samples`` samples."""
        return max(0, 1 + (num_samples - self.length) // self.shift)

    def forward(self, wav: torch.Tensor) -> torch.Tensor:
        """Compute features.

        Args:
            wav: (B, N) float in [-1, 1].

        Returns:
            (B, T, F) float32.

        Raises:
            ValueError: N is less than one frame.

        """
        if wav.shape[-1] < self.length:
            raise ValueError(f"audio of {wav.shape[-1]} samples is shorter than one frame ({self.length} samples)")
        if wav.device.type != "cpu":
            return self._log_mel(wav)
        return torch.cat([self._log_mel(rows) for rows in wav.split(max(1, CACHED_SAMPLES // wav.shape[-1]))])

    def _log_mel(self, wav: torch.Tensor) -> torch.Tensor:
        frames = (wav.float() * INT16_SCALE).unfold(-1, self.length, self.shift)  # (B, T, length)
        frames = frames - frames.mean(dim=-1, keepdim=True)
        emphasised = frames.new_zeros(*frames.shape[:2], self.fft_length)
        emphasised[..., 0] = (1.0 - PREEMPHASIS) * frames[..., 0]  # there is no sample before it: it is its own
        emphasised[..., 1 : self.length] = torch.sub(frames[..., 1:], frames[..., :-1], alpha=PREEMPHASIS)
        emphasised[..., : self.length] *= self.window
        spectrum = torch.fft.rfft(emphasised)[..., :-1]
        parts = torch.view_as_real(spectrum).square()
        power = parts[..., 0] + parts[..., 1]
        return log_mel(power, self.mel)


class ConvFbank(nn.Module):
    """The features of an `Fbank` as a convolution, for graphs: few runtimes have a fast Fourier transform.

    All up to the spectrum is linear in the samples of a frame: removal of the mean, pre-emphasis, window, transform.
    Their product, taken in float64, is the kernel of a convolution whose stride is the frame shift: 20 million
    multiplications a second of audio at 16 kHz, 1 % of a ResNet34's.

    Args:
        fbank: the front end that it equals up to rounding.

    """

    kernel: torch.Tensor
    mel: torch.Tensor

    def __init__(self, fbank: Fbank) -> None:
        super().__init__()
        self.shift = fbank.shift
        identity = torch.eye(fbank.length, dtype=torch.float64)
        frame = INT16_SCALE * (identity - 1 / fbank.length)  # without its mean
        before = torch.cat((frame[:1], frame[:-1]))  # the first sample is its own
        emphasised = fbank.window.double().unsqueeze(1) * (frame - PREEMPHASIS * before)
        spectrum = torch.fft.rfft(emphasised, n=fbank.fft_length, dim=0)[:-1]  # none at Nyquist
        kernel = torch.cat((spectrum.real, spectrum.imag)).unsqueeze(1).float()  # (fft_length, 1, length)
        self.register_buffer("kernel", kernel, persistent=False)
        self.register_buffer("mel", fbank.mel, persistent=False)

    def forward(self, wav: torch.Tensor) -> torch.Tensor:
        """Compute features (B, T, F) of waveforms (B, N), as `Fbank` does; shorter than a frame they are an error."""
        wav = wav - wav.mean(dim=-1, keepdim=True)  # changes nothing but rounding: frames lose their means anyway
        real, imag = F.conv1d(wav.unsqueeze(1), self.kernel, stride=self.shift).square().chunk(2, dim=1)
        return log_mel((real + imag).transpose(1, 2), self.mel)


def log_mel(power: torch.Tensor, mel: torch.Tensor) -> torch.Tensor:
    """Return the logarithms (B, T, F) of the bands' energies, of power spectra (B, T, K) and weights (K, F)."""
    return (power @ mel).clamp(min=torch.finfo(torch.float32).eps).log()


def mean_normalise(feats: torch.Tensor) -> torch.Tensor:
    """Subtract the mean over time from features (B, T, F): cepstral mean normalisation without the cepstrum."""
    return feats - feats.mean(dim=1, keepdim=True)
