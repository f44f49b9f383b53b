"""A recording of a user: any format and sample rate in, samples for the model out, and what is doubtful about it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from wespeaker.data.audio import AudioSource, quick_header, read_whole
from wespeaker.data.measure import Measurement, measure_samples
from wespeaker.data.resampling import resample_without_torch
from wespeaker.errors import InputError

MAX_SECONDS = 600.0  # ten minutes take a ResNet34 about 3 GB of memory; they are hardly of one person's speech
QUIET_DB = -50.0  # RMS below full scale; speech that was recorded as it should be has -35 to -15


@dataclass(frozen=True)
class Recording:
    """The first channel of a file, as everywhere in this project."""

    path: str
    wav: NDArray[np.float32]  # (N,), in [-1, 1], at the sample rate that was asked for
    seconds: float
    warnings: tuple[str, ...]  # sentences


def read_recording(path: str, *, rate: int, min_samples: int) -> Recording:
    """Read a whole file and resample it.

    Args:
        path: of any format that libsndfile reads, or m4a, mp4, wma, webm, mkv, 3gp or amr, which FFmpeg does.
        rate: the sample rate to give, in Hz.
        min_samples: the least that is enough, at that rate.

    Raises:
        InputError: the file is missing, damaged or no audio; it is too short or longer than `MAX_SECONDS`; a sample is
            not finite; all samples are equal.

    """
    source = AudioSource(path)
    header = quick_header(source)
    if header is not None:  # before memory is taken for it
        _check_length(path, header.num_samples / header.rate)
    samples, file_rate, channels = read_whole(source)
    seconds = len(samples) / file_rate
    _check_length(path, seconds)
    if not np.any(samples != samples[0]):
        raise InputError(f"{path} is silent: all of its samples are equal; record it again")
    warnings = tuple(_doubts(path, measure_samples(samples, file_rate, channels), rate))
    wav = resample_without_torch(samples, Fraction(file_rate, rate))
    if len(wav) < min_samples:
        raise InputError(
            f"{path} is too short: {seconds:.3f} s, the model needs {min_samples / rate:.3f} s; "
            f"a few seconds of speech make a decision worth more"
        )
    return Recording(path, wav, seconds, warnings)


def _check_length(path: str, seconds: float) -> None:
    if seconds > MAX_SECONDS:
        raise InputError(
            f"{path} is too long: {seconds:,.0f} s, at most {MAX_SECONDS:,.0f} s are embedded as one; "
            f"cut out what the person says"
        )


def _doubts(path: str, found: Measurement, rate: int) -> list[str]:
    """Return what may make the score of a recording worth less than those that thresholds were measured on."""
    doubts = []
    if found.is_clipped:
        doubts.append(f"{path} is clipped (runs of samples at full scale), which distorts the voice")
    level_db = 20 * math.log10(max(found.rms, 1e-10))
    if level_db < QUIET_DB:
        doubts.append(f"{path} is very quiet ({level_db:.0f} dB of full scale)")
    if found.channels > 1:
        doubts.append(f"{path} has {found.channels} channels; the first is used, as in training")
    if found.rate < rate:
        doubts.append(
            f"{path} has {found.rate:,} samples a second, and the model was trained with {rate:,}: it lacks the high "
            f"frequencies, as telephone speech does, and thresholds of full-band speech may not hold for it"
        )
    return doubts
