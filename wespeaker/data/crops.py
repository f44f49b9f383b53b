"""Crops of utterances and noises: only the span that is needed is read and resampled."""

from __future__ import annotations

from fractions import Fraction
from math import ceil, isfinite

import numpy as np
import torch

from wespeaker.data.audio import AudioSource, read_audio
from wespeaker.data.resampling import resample
from wespeaker.errors import InputError


def fit_length(wav: np.ndarray, num_samples: int) -> np.ndarray:
    """Cut to ``num_samples``, or repeat from the start until there are that many."""
    return wav[:num_samples] if len(wav) >= num_samples else np.resize(wav, num_samples)


def read_crop(
    source: AudioSource,
    length: tuple[int, int],
    *,
    num_samples: int,
    rate: int,
    rng: np.random.Generator,
    speed: Fraction = Fraction(1),
) -> np.ndarray:
    """Read a crop from a uniformly drawn position; only its own span is read and resampled.

    Args:
        source: the file or tar member.
        length: its (samples, sample rate).
        num_samples: samples to return, at ``rate``; shorter audio is repeated.
        rate: sample rate to return, in Hz.
        rng: draws the position.
        speed: playing speed; pitch and formants move with it.

    Returns:
        (num_samples,) float32.

    Raises:
        InputError: the span cannot be read, is not all there, or holds values that are not finite.

    """
    available, source_rate = length
    step = speed * Fraction(source_rate, rate)
    needed = ceil(num_samples * step)
    start = int(rng.integers(max(available - needed, 0) + 1))
    wav = read_audio(source, start, needed)
    if len(wav) < min(needed, available - start):
        raise InputError(f"{source} ends at sample {start + len(wav)}; it is shorter than its entry says ({available})")
    if not isfinite(power(wav)):
        raise InputError(f"{source} holds samples that are not finite numbers")
    return fit_length(resample(wav, step), num_samples)


def power(wav: np.ndarray) -> float:
    """Return the mean square of (N,) float32; not finite if any sample is not."""
    samples = torch.from_numpy(wav)
    return float(samples @ samples) / len(wav)
