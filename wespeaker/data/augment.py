"""Augmentation of a waveform: additive noise at the asked SNR, and reverberation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.signal import oaconvolve

from wespeaker.data.audio import read_audio, read_crop
from wespeaker.data.manifest import BankFile
from wespeaker.errors import InputError

# SNR ranges in dB by kind of noise, as in Kaldi's and WeSpeaker's VoxCeleb recipes.
SNR_DB = {"noise": (0.0, 15.0), "speech": (10.0, 30.0), "music": (5.0, 15.0)}


def add_noise(speech: np.ndarray, noise: np.ndarray, snr_db: float) -> np.ndarray:
    """Add noise so that the ratio of mean powers is exactly ``snr_db``.

    Args:
        speech: (N,).
        noise: (N,).
        snr_db: 10 log10(mean speech² / mean noise²) of what is added up.

    Returns:
        (N,) float32; the speech unchanged where either signal is silent, since no SNR is defined then.

    """
    speech_power, noise_power = (float(np.mean(x.astype(np.float64) ** 2)) for x in (speech, noise))
    if speech_power == 0.0 or noise_power == 0.0:
        return speech
    gain = np.sqrt(speech_power / noise_power / 10.0 ** (snr_db / 10.0))
    return (speech + gain * noise).astype(np.float32)


def add_reverb(speech: np.ndarray, rir: np.ndarray) -> np.ndarray:
    """Convolve with a room impulse response of unit energy, its direct path moved to time 0.

    Args:
        speech: (N,).
        rir: (M,), not all zero.

    Returns:
        (N,) float32, in time with the speech that came in.

    """
    direct = rir[int(np.argmax(np.abs(rir))) :]
    return oaconvolve(speech, direct / np.linalg.norm(direct))[: len(speech)].astype(np.float32)


@dataclass(frozen=True)
class Augmenter:
    """Draws what happens to a crop: nothing, reverberation, or one noise; never both.

    Args:
        noises: the noise files; the first part of a key is its kind, a key of ``SNR_DB``.
        rirs: the room impulse responses.
        aug_prob: share of crops that is augmented at all.
        reverb_share: of those, the share that gets reverberation; the rest gets noise.
        rate: sample rate in Hz.

    """

    noises: Sequence[BankFile]
    rirs: Sequence[BankFile]
    aug_prob: float
    reverb_share: float
    rate: int

    def __post_init__(self) -> None:
        if self.aug_prob > 0 and self.reverb_share < 1 and not self.noises:
            raise InputError(
                "noise augmentation is on (aug_prob, reverb_share) but there is no noise file; "
                "prepare the data with --musan, or set dataset_args.aug_prob=0"
            )
        if self.aug_prob > 0 and self.reverb_share > 0 and not self.rirs:
            raise InputError(
                "reverberation is on (aug_prob, reverb_share) but there is no room impulse response; "
                "prepare the data with --rirs, or set dataset_args.aug_prob=0"
            )

    def __call__(self, speech: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return the augmented crop, (N,) float32; every draw comes from ``rng``."""
        if rng.random() >= self.aug_prob:
            return speech
        if rng.random() < self.reverb_share:
            rir = self.rirs[int(rng.integers(len(self.rirs)))]
            return add_reverb(speech, read_audio(rir.source))
        noise = self.noises[int(rng.integers(len(self.noises)))]
        snr_db = rng.uniform(*SNR_DB[noise.kind])
        crop = read_crop(noise.source, noise.length, num_samples=len(speech), rate=self.rate, rng=rng)
        return add_noise(speech, crop, snr_db)
