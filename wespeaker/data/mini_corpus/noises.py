"""Noise, music and babble for augmentation, in the three kinds of MUSAN.

The test channels' noise is steady with a power-law spectrum (``channel``); none here is, so that what the
augmentation teaches is not the very thing that is tested.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.signal import lfilter

from wespeaker.data.mini_corpus.channel import SAMPLE_RATE

MAJOR_SCALE = (0, 2, 4, 5, 7, 9, 11, 12)  # semitones
NUM_PARTIALS = 6
HUM_HZ = (50, 60, 100, 400)  # mains, rectified mains, aircraft


def draw_noise(rng: np.random.Generator, seconds: float) -> np.ndarray:
    """Return a resonant noise that is steady, swelling or bursting, at times with a hum.

    Args:
        rng: of every draw.
        seconds: duration.

    Returns:
        Samples at 16 kHz of unit power, without the hum's.
    """
    num_samples = int(seconds * SAMPLE_RATE)
    envelope = (_steady, _swelling, _bursting)[rng.integers(3)]
    noise = _resonant_noise(rng, num_samples) * envelope(rng, num_samples)
    noise /= noise.std()
    if rng.random() < 0.4:
        noise += rng.uniform(0.2, 1.0) * _tone(rng.choice(HUM_HZ), 1.0 / np.arange(1, NUM_PARTIALS + 1), num_samples)
    return noise


def draw_music(rng: np.random.Generator, seconds: float) -> np.ndarray:
    """Return chords of one to three plucked notes of a major scale, one chord a beat.

    Args:
        rng: of every draw.
        seconds: duration.

    Returns:
        Samples at 16 kHz.
    """
    music = np.zeros(int(seconds * SAMPLE_RATE))
    beat = int(rng.uniform(0.25, 0.7) * SAMPLE_RATE)
    root_hz = 110 * 2 ** (rng.integers(12) / 12)
    for start in range(0, len(music), beat):
        for _ in range(rng.integers(1, 4)):
            semitones = MAJOR_SCALE[rng.integers(len(MAJOR_SCALE))] + 12 * rng.integers(3)
            num_samples = min(2 * beat, len(music) - start)
            amplitudes = rng.uniform(0.2, 1.0, NUM_PARTIALS) / np.arange(1, NUM_PARTIALS + 1) ** 1.3
            decay = np.exp(-np.arange(num_samples) / (SAMPLE_RATE * rng.uniform(0.1, 0.8)))
            music[start : start + num_samples] += decay * _tone(
                root_hz * 2 ** (semitones / 12), amplitudes, num_samples
            )
    return music


def mix_speech(rng: np.random.Generator, recordings: Sequence[np.ndarray], seconds: float) -> np.ndarray:
    """Return babble: recordings of equal power, each repeated from a random place on, added.

    Args:
        rng: of the places.
        recordings: samples at 16 kHz, one recording for each voice.
        seconds: duration.

    Returns:
        Samples at 16 kHz.
    """
    num_samples = int(seconds * SAMPLE_RATE)
    babble = np.zeros(num_samples)
    for recording in recordings:
        start = rng.integers(len(recording))
        places = np.arange(start, start + num_samples) % len(recording)
        babble += recording[places] / recording.std()
    return babble


def _resonant_noise(rng: np.random.Generator, num_samples: int) -> np.ndarray:
    """Return white noise through one to four parallel resonances, as of machines and enclosures."""
    white = rng.standard_normal(num_samples)
    noise = rng.uniform(0.02, 0.5) * white
    for _ in range(rng.integers(1, 5)):
        centre_hz = 60 * 2 ** rng.uniform(0, 6.5)  # 60 Hz to 5.4 kHz
        radius = math.exp(-math.pi * centre_hz / (rng.uniform(0.5, 8) * SAMPLE_RATE))  # quality factor 0.5 to 8
        cosine = math.cos(2 * math.pi * centre_hz / SAMPLE_RATE)
        resonance = lfilter([1.0], [1.0, -2 * radius * cosine, radius**2], white)
        noise += rng.uniform(0.2, 1.0) * resonance / resonance.std()
    return noise


def _steady(rng: np.random.Generator, num_samples: int) -> np.ndarray:
    """Return a constant level."""
    return np.ones(num_samples)


def _swelling(rng: np.random.Generator, num_samples: int) -> np.ndarray:
    """Return a level that swells 0.4 to 6 times a second."""
    seconds = np.arange(num_samples) / SAMPLE_RATE
    return 0.3 + np.abs(np.sin(2 * np.pi * rng.uniform(0.2, 3) * seconds + rng.uniform(0, 2 * np.pi)))


def _bursting(rng: np.random.Generator, num_samples: int) -> np.ndarray:
    """Return a low level with 5 to 24 decaying bursts of up to 0.6 s."""
    level = np.full(num_samples, 0.05)
    for _ in range(rng.integers(5, 25)):
        start = int(rng.integers(num_samples))
        length = min(num_samples - start, int(rng.uniform(0.02, 0.6) * SAMPLE_RATE))
        level[start : start + length] += rng.uniform(0.3, 1.0) * np.exp(-4 * np.arange(length) / length)
    return level


def _tone(fundamental_hz: float, amplitudes: np.ndarray, num_samples: int) -> np.ndarray:
    """Return a sum of harmonics; those above half the sampling rate are left out."""
    seconds = np.arange(num_samples) / SAMPLE_RATE
    harmonics = fundamental_hz * np.arange(1, len(amplitudes) + 1)
    tone = np.zeros(num_samples)
    for harmonic_hz, amplitude in zip(harmonics, amplitudes, strict=True):
        if harmonic_hz < SAMPLE_RATE / 2:
            tone += amplitude * np.sin(2 * np.pi * harmonic_hz * seconds)
    return tone
