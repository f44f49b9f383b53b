"""Through what a session is heard: a room, a noise, a microphone, a telephone codec and a level."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.signal import fftconvolve

SAMPLE_RATE = 16000  # Hz, of the whole corpus

EQUALISER_TAPS = 512
# Where microphones and lines begin and end to hear; two of five are not limited.
LOW_CUTS_HZ = (0, 0, 80, 200, 300)
HIGH_CUTS_HZ = (8000, 8000, 7000, 5500, 3600)
LOG_OF_60_DB = 6.9  # ln 1000: what decays by 60 dB falls to a thousandth of its amplitude
NUM_ECHOES = 6
PEAK = 0.95  # of a session at 0 dB, below full scale so that rounding and the codec do not clip
MU = 255.0  # ITU-T G.711's companding
MU_LAW_STEPS = 127  # of each sign: 8 bits


@dataclass(frozen=True)
class Channel:
    """The recording conditions of one session.

    Attributes:
        equaliser: linear-phase impulse response of the microphone; shape (512,).
        room: impulse response, or none for a close microphone.
        snr_db: ratio of speech to noise power.
        noise_slope: the noise's power falls as frequency to minus this: 0 is white, 1 pink, 2 brown.
        mu_law: whether an 8-bit telephone codec is passed.
        gain_db: level of the peak, at most 0.
    """

    equaliser: np.ndarray
    room: np.ndarray | None
    snr_db: float
    noise_slope: float
    mu_law: bool
    gain_db: float

    def record(self, speech: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return what is recorded of clean speech.

        Args:
            speech: samples at 16 kHz; shape (num_samples,).
            rng: of the noise.

        Returns:
            As many samples, none beyond 0.95 of full scale; float32.
        """
        heard = speech if self.room is None else fftconvolve(speech, self.room)[: len(speech)]
        noise_level = np.sqrt(np.mean(heard**2)) * 10 ** (-self.snr_db / 20)
        heard = heard + noise_level * coloured_noise(len(heard), self.noise_slope, rng)
        heard = fftconvolve(heard, self.equaliser, mode="same")
        heard = heard * (PEAK * 10 ** (self.gain_db / 20) / (np.abs(heard).max() + 1e-6))
        return (_through_mu_law(heard) if self.mu_law else heard).astype(np.float32)


def draw_channel(rng: np.random.Generator, hardness: float) -> Channel:
    """Return random recording conditions.

    Args:
        rng: of every draw.
        hardness: 0 for flat microphones and at least 28 dB of signal-to-noise ratio, 1 for strongly coloured
            microphones and at least 10 dB.
    """
    return Channel(
        equaliser=_draw_equaliser(rng, hardness),
        room=_draw_room(rng) if rng.random() < 0.6 else None,
        snr_db=float(rng.uniform(28 - 18 * hardness, 35)),
        noise_slope=float(rng.uniform(0, 2)),
        mu_law=bool(rng.random() < 0.2),
        gain_db=float(rng.uniform(-14, 0)),
    )


def coloured_noise(num_samples: int, slope: float, rng: np.random.Generator) -> np.ndarray:
    """Return noise of unit power whose power spectrum falls as frequency to the power of ``-slope``."""
    frequencies = np.fft.rfftfreq(num_samples)
    frequencies[0] = frequencies[1]  # a finite level at 0 Hz
    spectrum = np.fft.rfft(rng.standard_normal(num_samples)) * frequencies ** (-slope / 2)
    noise = np.fft.irfft(spectrum, num_samples)
    return noise / noise.std()


def _draw_equaliser(rng: np.random.Generator, hardness: float) -> np.ndarray:
    """Return a microphone: a tilt, four broad resonances or dips, and the limits of its band."""
    frequencies = np.fft.rfftfreq(EQUALISER_TAPS, 1 / SAMPLE_RATE)
    octaves = np.log2(np.maximum(frequencies, 60) / 1000)  # from 1 kHz
    gain_db = rng.normal(0, 2 * hardness) * octaves
    for _ in range(4):
        height_db, centre, width = rng.normal(0, 4 * hardness), rng.uniform(-3, 3), rng.uniform(0.3, 0.9)
        gain_db += height_db * np.exp(-(((octaves - centre) / width) ** 2))
    gain_db -= _band_loss_db(frequencies, low_hz=int(rng.choice(LOW_CUTS_HZ)), high_hz=int(rng.choice(HIGH_CUTS_HZ)))
    response = np.fft.irfft(10 ** (gain_db / 20), EQUALISER_TAPS)
    return np.roll(response, EQUALISER_TAPS // 2) * np.hanning(EQUALISER_TAPS)


def _band_loss_db(frequencies: np.ndarray, *, low_hz: int, high_hz: int) -> np.ndarray:
    """Return the loss outside the band: 12 dB an octave below it and 36 dB above."""
    audible = np.maximum(frequencies, 1.0)  # no logarithm of 0 Hz
    below = np.clip(12 * np.log2(max(low_hz, 1) / audible), 0, 40)
    above = np.clip(36 * np.log2(audible / high_hz), 0, 50)
    return below + above


def _draw_room(rng: np.random.Generator) -> np.ndarray:
    """Return a direct path, six early echoes of either sign and an exponentially decaying noise.

    The augmentation's rooms (``rooms``) are boxes with mirror images, so it does not teach this very model.
    """
    t60_sec = rng.uniform(0.12, 0.6)
    times = np.arange(int(t60_sec * SAMPLE_RATE)) / SAMPLE_RATE
    tail = rng.standard_normal(len(times)) * np.exp(-LOG_OF_60_DB * times / t60_sec)
    tail *= 0.6 * 10 ** (-rng.uniform(0, 9) / 20) / np.sqrt(np.sum(tail**2))  # 4 to 13 dB below the direct path
    delay = rng.integers(0, 80)  # up to 5 ms
    room = np.concatenate([np.zeros(delay + 1), tail])
    room[0] = 1.0
    echoes = rng.integers(20, 600, size=NUM_ECHOES)  # 1 to 37 ms
    np.add.at(room, echoes, rng.normal(0, 0.15, size=NUM_ECHOES))
    return room


def _through_mu_law(samples: np.ndarray) -> np.ndarray:
    """Return samples in [-1, 1] after rounding to 8 bits on G.711's logarithmic scale."""
    companded = np.sign(samples) * np.log1p(MU * np.abs(samples)) / np.log1p(MU)
    rounded = np.round(companded * MU_LAW_STEPS) / MU_LAW_STEPS
    return np.sign(rounded) * np.expm1(np.abs(rounded) * np.log1p(MU)) / MU
