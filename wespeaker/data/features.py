"""Kaldi's log mel filterbank features in batches, and mean normalisation: the one front end for all of the project."""

from __future__ import annotations

import torch
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
        return (power @ self.mel).clamp(min=torch.finfo(torch.float32).eps).log()


def mean_normalise(feats: torch.Tensor) -> torch.Tensor:
    """Subtract the mean over time from features (B, T, F): cepstral mean normalisation without the cepstrum."""
    return feats - feats.mean(dim=1, keepdim=True)
