"""Augmentation of a waveform: additive noise at the asked SNR, and reverberation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import isfinite

import numpy as np
from scipy.fft import irfft, rfft

from wespeaker.data.audio import read_audio
from wespeaker.data.bank import BankFile
from wespeaker.data.crops import power, read_crop
from wespeaker.data.resampling import resample
from wespeaker.errors import InputError

# SNR ranges in dB by how the key of a noise begins, as in Kaldi's and WeSpeaker's VoxCeleb recipes.
SNR_DB = {"noise": (0.0, 15.0), "speech": (10.0, 30.0), "music": (5.0, 15.0)}


def snr_range_db(key: str) -> tuple[float, float]:
    """Return the range of SNRs for a noise; one that is of no kind of its own counts as ``noise``."""
    return next((snr_db for kind, snr_db in SNR_DB.items() if key.startswith(kind)), SNR_DB["noise"])


def add_noise(speech: np.ndarray, noise: np.ndarray, snr_db: float, *, power_floor: float = 0.0) -> np.ndarray:
    """Add noise so that the ratio of mean powers is exactly ``snr_db``.

    Args:
        speech: (N,) float32.
        noise: (N,) float32.
        snr_db: 10 log10(mean speech² / mean noise²) of what is added up.
        power_floor: added to both powers before their ratio is taken. WeSpeaker has 1e-4, with which 10 dB of
            noise whose RMS is 0.003 become 20.8 dB.

    Returns:
        (N,) float32; the speech unchanged where either signal is silent, since no SNR is defined then.

    """
    speech_power, noise_power = power(speech), power(noise)
    if speech_power == 0.0 or noise_power == 0.0:
        return speech
    gain = ((speech_power + power_floor) / (noise_power + power_floor) / 10.0 ** (snr_db / 10.0)) ** 0.5
    return speech + np.float32(gain) * noise


def add_reverb(speech: np.ndarray, rir: np.ndarray, *, align_direct_path: bool = True) -> np.ndarray:
    """Convolve with a room impulse response of unit energy.

    Args:
        speech: (N,) float32.
        rir: (M,) float32, not all zero.
        align_direct_path: move the response's direct path, its largest sample, to time 0, so that what comes out is
            in time with the speech. WeSpeaker does not: its speech is late by the path, and loses as much at its end.

    Returns:
        (N,) float32.

    """
    if align_direct_path:
        rir = rir[int(np.argmax(np.abs(rir))) :]
    return convolve_to_end(speech, rir / np.float32((power(rir) * len(rir)) ** 0.5))


BLOCK = 2048  # samples; spectra of twice as many stay in a core's cache


def convolve_to_end(signal: np.ndarray, response: np.ndarray) -> np.ndarray:
    """Convolve (N,) with (M,), both float32, up to the end of the signal: (N,) float32.

    Both are cut into blocks, and products of their spectra that end in the same place are added before the way back
    (partitioned overlap-add). For 2 s and a response of 1 s this takes 40 % of the time of scipy's ``oaconvolve``,
    which cuts the signal only, and can as little be told to leave out what comes after its end.
    """
    spectra, parts = (rfft(_in_blocks(x), 2 * BLOCK) for x in (signal, response))
    sums = np.zeros_like(spectra)
    for delay, part in enumerate(parts[: len(spectra)]):
        sums[delay:] += spectra[: len(spectra) - delay] * part
    blocks = irfft(sums, 2 * BLOCK)  # the second half of each belongs to the next one's place
    blocks[1:, :BLOCK] += blocks[:-1, BLOCK:]
    return blocks[:, :BLOCK].reshape(-1)[: len(signal)]


def _in_blocks(x: np.ndarray) -> np.ndarray:
    """Return (N,) as (blocks, BLOCK), zeros at its end."""
    padded = np.zeros((-(-len(x) // BLOCK), BLOCK), dtype=np.float32)
    padded.reshape(-1)[: len(x)] = x
    return padded


def peak_normalised(wav: np.ndarray) -> np.ndarray:
    """Scale (N,) so that its largest sample is 1 or -1; silence stays as it is."""
    peak = np.abs(wav).max()
    return wav / peak if peak > 0 else wav


@dataclass
class Augmenter:
    """Draws what happens to a crop: nothing, reverberation, or one noise; never both.

    What is drawn does not depend on the order of the banks. Their files are read anew each time, the part that is
    needed only: the memory of a process does not grow with the banks, and the system's own cache holds what fits.

    Args:
        noises: the noise files; their SNR is drawn as `snr_range_db` says.
        rirs: the room impulse responses, of which the first channel is used.
        aug_prob: share of crops that is augmented at all.
        reverb_share: of those, the share that gets reverberation; the rest gets noise.
        rate: sample rate in Hz.
        align_direct_path: see ``add_reverb``.
        power_floor: see ``add_noise``.
        peak_normalise: scale augmented crops, and only those, to a peak of 1, as WeSpeaker does.

    """

    noises: Sequence[BankFile]
    rirs: Sequence[BankFile]
    aug_prob: float
    reverb_share: float
    rate: int
    align_direct_path: bool = True
    power_floor: float = 0.0
    peak_normalise: bool = False

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
        self.noises, self.rirs = (sorted(bank, key=lambda file: file.key) for bank in (self.noises, self.rirs))

    def __call__(self, speech: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return the augmented crop, (N,) float32; every draw comes from ``rng``.

        Raises:
            InputError: the file that was drawn cannot be used.

        """
        if rng.random() >= self.aug_prob:
            return speech
        reverb = rng.random() < self.reverb_share
        bank = self.rirs if reverb else self.noises
        file = bank[int(rng.integers(len(bank)))]
        try:
            wav = self._reverberated(speech, file) if reverb else self._noisy(speech, file, rng)
        except InputError as error:
            raise InputError(f"{file.key} (of the {'room' if reverb else 'noise'} bank): {error}") from error
        return peak_normalised(wav) if self.peak_normalise else wav

    def _reverberated(self, speech: np.ndarray, file: BankFile) -> np.ndarray:
        rir = resample(read_audio(file.source), Fraction(file.length[1], self.rate))
        if not (isfinite(energy := power(rir)) and energy > 0):
            raise InputError(f"{file.source} (a room impulse response) is silent or holds values that are not finite")
        return add_reverb(speech, rir, align_direct_path=self.align_direct_path)

    def _noisy(self, speech: np.ndarray, file: BankFile, rng: np.random.Generator) -> np.ndarray:
        snr_db = rng.uniform(*snr_range_db(file.key))
        noise = read_crop(file.source, file.length, num_samples=len(speech), rate=self.rate, rng=rng)
        return add_noise(speech, noise, snr_db, power_floor=self.power_floor)
