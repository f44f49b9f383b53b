from fractions import Fraction

import numpy as np
import pytest
from conftest import RATE
from scipy.signal import firwin, resample_poly

from wespeaker.data.resampling import KAISER_BETA, ZERO_CROSSINGS, resample, resample_without_torch


def test_resampling_moves_a_tone_as_the_step_says():
    time = np.arange(RATE) / RATE
    tone = np.sin(2 * np.pi * 1000 * time).astype(np.float32)
    for step, hertz in ((Fraction(9, 10), 900), (Fraction(11, 10), 1100), (Fraction(2), 2000), (Fraction(1, 2), 500)):
        out = resample(tone, step)
        assert abs(len(out) - RATE / step) <= 1
        peak = np.argmax(np.abs(np.fft.rfft(out * np.hanning(len(out))))) * RATE / len(out)
        assert peak == pytest.approx(hertz, abs=2)


STEPS = [Fraction(9, 10), Fraction(11, 10), Fraction(2), Fraction(1, 2), Fraction(441, 160), Fraction(3969, 1600)]


def gain_db(hertz, step):
    """Level of a tone after resampling, away from the ends."""
    tone = np.sin(2 * np.pi * hertz * np.arange(RATE) / RATE).astype(np.float32)
    out = resample(tone, step)
    middle = out[len(out) // 4 : -len(out) // 4].astype(np.float64)
    return 10 * np.log10(np.mean(middle**2) / 0.5 + 1e-20)


@pytest.mark.parametrize("step", STEPS)
def test_tones_below_the_lower_nyquist_frequency_pass_and_those_above_do_not_alias(step):
    nyquist = RATE / 2 / max(1, step)
    for share in (0.1, 0.5, 0.9):
        assert gain_db(share * nyquist, step) == pytest.approx(0, abs=0.1)
    for hertz in (1.1 * nyquist, 1.5 * nyquist):
        if hertz < RATE / 2:
            assert gain_db(hertz, step) < -60


@pytest.mark.parametrize("step", [*STEPS, Fraction(1, 3), Fraction(9, 20)])
@pytest.mark.parametrize("num_samples", [1, 37, 4000])
def test_resampling_equals_scipys_polyphase_filtering(step, num_samples):
    wav = np.random.default_rng(0).standard_normal(num_samples).astype(np.float32)
    steepest = max(step.numerator, step.denominator)
    lowpass = firwin(2 * ZERO_CROSSINGS * steepest + 1, 1 / steepest, window=("kaiser", KAISER_BETA))
    expected = resample_poly(wav.astype(np.float64), step.denominator, step.numerator, window=lowpass)
    np.testing.assert_allclose(resample(wav, step), expected, atol=1e-5)
    np.testing.assert_allclose(resample_without_torch(wav, step), expected, atol=1e-5)
