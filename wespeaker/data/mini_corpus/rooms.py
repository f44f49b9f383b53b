"""Room responses for augmentation: boxes with mirror images of the source (Allen and Berkley, JASA 1979)."""

from __future__ import annotations

import numpy as np
from scipy.signal import butter, lfilter

from wespeaker.data.mini_corpus.channel import SAMPLE_RATE

SPEED_OF_SOUND = 343.0  # m/s, at 20 °C
EYRING = 0.161  # s/m: 24 ln(10) / SPEED_OF_SOUND
MAX_SEC = 0.5  # of a response; longer tails cost the training time and are faint by then
WALL_CLEARANCE_M = 0.4
NEARBY_M = 2.0  # along each axis: speech is recorded from nearby, also in a hall
MIN_DISTANCE_M = 0.3  # the pressure of a point source has no limit
# All images have the same sign, so late ones add up to a slow swell that no room has; the paper filters it out.
HIGH_PASS_HZ = 80.0

# (shortest, longest) side in metres, after RIRS_NOISES (Ko et al., ICASSP 2017), whose small rooms start at
# 1 m.
FLOOR_SIDES_M = {"smallroom": (2.0, 10.0), "mediumroom": (10.0, 30.0)}
HEIGHT_M = (2.0, 5.0)
ABSORPTION = (0.2, 0.8)  # part of the energy that a wall keeps


def draw_room_response(rng: np.random.Generator, kind: str) -> np.ndarray:
    """Return the response between two random places, not far apart, of a random room.

    Args:
        rng: of every draw.
        kind: ``smallroom`` or ``mediumroom``.

    Returns:
        Samples at 16 kHz from the arrival of the direct sound on, at most 0.5 s.
    """
    sides_m = np.array([*rng.uniform(*FLOOR_SIDES_M[kind], size=2), rng.uniform(*HEIGHT_M)])
    source_m = rng.uniform(WALL_CLEARANCE_M, sides_m - WALL_CLEARANCE_M)
    nearby_m = source_m + rng.uniform(-NEARBY_M, NEARBY_M, size=3)
    microphone_m = np.clip(nearby_m, WALL_CLEARANCE_M, sides_m - WALL_CLEARANCE_M)
    return shoebox_response(sides_m, source_m, microphone_m, absorption=float(rng.uniform(*ABSORPTION)))


def shoebox_response(
    sides_m: np.ndarray, source_m: np.ndarray, microphone_m: np.ndarray, *, absorption: float
) -> np.ndarray:
    """Return the impulse response of a box whose walls all absorb alike.

    An image at distance d after n reflections arrives (d - d_direct) / c after the direct sound, and its
    amplitude is (1 - absorption)^(n/2) · d_direct / d. Delays are rounded to whole samples.

    Args:
        sides_m: length, width, height; shape (3,).
        source_m: place of the source; shape (3,).
        microphone_m: place of the microphone; shape (3,).
        absorption: part of the energy that a wall keeps, from 0 to 1.

    Returns:
        Samples at 16 kHz, for the reverberation time or 0.5 s; the first is the direct sound.
    """
    duration_sec = min(_reverberation_sec(sides_m, absorption), MAX_SEC)
    direct_m = max(float(np.linalg.norm(source_m - microphone_m)), MIN_DISTANCE_M)
    reach_m = direct_m + duration_sec * SPEED_OF_SOUND
    axes = [
        _images(side, source, microphone, reach_m)
        for side, source, microphone in zip(sides_m, source_m, microphone_m, strict=True)
    ]
    offsets = np.ix_(*(offset for offset, _ in axes))
    reflections = np.ix_(*(count for _, count in axes))
    distance = np.maximum(np.sqrt(sum(offset**2 for offset in offsets)), MIN_DISTANCE_M)
    amplitude = (1 - absorption) ** (sum(reflections) / 2) * direct_m / distance
    heard = distance < reach_m
    delay = np.round((distance[heard] - direct_m) / SPEED_OF_SOUND * SAMPLE_RATE).astype(int)
    pulses = np.bincount(np.maximum(delay, 0), weights=amplitude[heard])
    response = lfilter(*butter(2, HIGH_PASS_HZ, "highpass", fs=SAMPLE_RATE), pulses)
    fade = len(response) // 4  # the longest tails are cut before they have decayed
    window = np.ones(len(response))
    window[len(response) - fade :] = np.hanning(2 * fade)[fade:]
    return response * window


def _images(side: float, source: float, microphone: float, reach: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the images along one axis: their offsets from the microphone, and how often each was reflected.

    Images repeat every two sides: the source itself after 2|n| reflections, its mirror image after |2n - 1|.
    """
    num_periods = int(np.ceil(reach / (2 * side))) + 1
    period = np.arange(-num_periods, num_periods + 1)
    offsets = np.concatenate([2 * side * period + source, 2 * side * period - source]) - microphone
    reflections = np.concatenate([2 * np.abs(period), np.abs(2 * period - 1)])
    audible = np.abs(offsets) < reach
    return offsets[audible], reflections[audible]


def _reverberation_sec(sides_m: np.ndarray, absorption: float) -> float:
    """Return the time in which sound decays by 60 dB, after Eyring (1930)."""
    length, width, height = sides_m
    surface = 2 * (length * width + length * height + width * height)
    return EYRING * float(np.prod(sides_m)) / (-surface * np.log(1 - absorption))
