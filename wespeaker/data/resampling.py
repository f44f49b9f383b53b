"""Change of the sample rate, or of the speed, by a polyphase filter.

torch and scipy.signal take seconds to import, and a program that embeds a recording may need neither.
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from math import ceil
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

# Zero crossings of the filter on each side of its centre, and the shape of its Kaiser window, by Kaiser's formulas:
# 72 dB of attenuation beyond a transition of (72 - 8) / (14.36 x 48) = 9 % of the lower of the two sample rates,
# half of it on each side of that rate's Nyquist frequency. (scipy's default: 10 and 5.0, 53 dB and 16 %.)
ZERO_CROSSINGS, KAISER_BETA = 24, 7.0
MIN_PHASES = 32  # outputs of one row of the matrix product: narrow products are slow
MAX_POLYPHASE = 1 << 20  # numerator x denominator from which the matrix of all phases is too large


def resample(wav: np.ndarray, step: Fraction) -> np.ndarray:
    """Resample so that one output sample takes ``step`` input samples.

    A step of 2 halves the sample rate; a step of 9/10 at an unchanged rate is speech at 0.9 times its speed. The
    filter is linear-phase and its delay is taken out; beyond the ends of ``wav`` is silence, as in scipy's
    ``resample_poly``.

    Args:
        wav: (N,) float32.
        step: above 0.

    Returns:
        (ceil(N / step),) float32.

    """
    if step == 1:
        return wav
    if step.numerator * step.denominator > MAX_POLYPHASE:
        return resample_without_torch(wav, step)
    import torch

    phases, before, hop = _polyphase(step)
    width, num_phases = phases.shape
    num_samples = ceil(len(wav) / step)
    num_blocks = ceil(num_samples / num_phases)
    padded = torch.zeros((num_blocks - 1) * hop + width)
    inside = torch.from_numpy(wav)[: len(padded) - before]
    padded[before : before + len(inside)] = inside
    # torch's product and not numpy's, which starts threads of its own in each of the loader's processes
    return (padded.unfold(0, width, hop) @ phases).flatten()[:num_samples].numpy()


def resample_without_torch(wav: np.ndarray, step: Fraction) -> np.ndarray:
    """Return what `resample` does up to rounding, by scipy's loop, which takes longer."""
    if step == 1:
        return wav
    from scipy.signal import resample_poly

    return resample_poly(wav, step.denominator, step.numerator, window=_lowpass(step).astype(np.float32))


@lru_cache
def _lowpass(step: Fraction) -> np.ndarray:
    """Return the filter at the common multiple of both sample rates, unit gain."""
    from scipy.signal import firwin

    steepest = max(step.numerator, step.denominator)
    return firwin(2 * ZERO_CROSSINGS * steepest + 1, 1 / steepest, window=("kaiser", KAISER_BETA))


@lru_cache
def _polyphase(step: Fraction) -> tuple[torch.Tensor, int, int]:
    """Return the filter as a matrix from a window of the input to a row of outputs.

    Output n = sum over k of input[k] h[half + n p - k q] for a step of p / q; the matrix holds h for one window of
    k and the J values of n that it covers, and the next J take the window that lies J p / q further on.

    Returns:
        matrix (K, J) float32, inputs of the window before its origin, inputs from one window to the next.

    """
    import torch

    p, q = step.numerator, step.denominator
    lowpass = _lowpass(step) * q
    half = len(lowpass) // 2
    num_phases = q * ceil(MIN_PHASES / q)
    n = np.arange(num_phases)
    k = np.arange(-(half // q), ((num_phases - 1) * p + half) // q + 1)
    index = half + n * p - k[:, None] * q
    inside = (index >= 0) & (index < len(lowpass))
    phases = np.where(inside, lowpass[np.where(inside, index, 0)], 0.0).astype(np.float32)
    return torch.from_numpy(phases), half // q, num_phases // q * p
