"""What one audio file is like: decoded once, in blocks, so that an hour takes no more memory than a minute."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from wespeaker.data.audio import AudioSource, UnknownToSndfile, first_channel, opened, read_whole
from wespeaker.errors import InputError
from wespeaker.files import open_plain

FULL_SCALE = 1 - 2**-15  # the highest sample of 16-bit audio
CLIPPED_RUN = 3  # samples in a row at full scale; speech that merely touches it has one or two


@dataclass(frozen=True, slots=True)
class Measurement:
    """The first channel of a file, which is the one that is used."""

    num_samples: int
    rate: int  # Hz
    channels: int
    is_finite: bool  # no NaN, no infinity
    rms: float  # of full scale; NaN where it is not finite
    mean: float  # of full scale (DC offset); NaN where it is not finite
    is_clipped: bool  # has a run of samples at full scale
    is_cut: bool  # a wav file that ends before its header says
    digest: int  # 64 bits of a hash over sample rate and samples: equal for equal audio in any lossless format


def measure(path: str) -> Measurement:
    """Decode a file from start to end and measure it.

    Raises:
        InputError: it is missing, not audio, damaged, or holds no sample.

    """
    source = AudioSource(path)
    try:
        with opened(source) as sound:
            found = _measure(first_channel(sound), sound.samplerate, sound.channels, is_cut=_is_cut_wav(path))
            promised = sound.frames
    except (UnknownToSndfile, soundfile.LibsndfileError):  # damaged, or for FFmpeg: the reader of all others decides
        wav, rate, channels = read_whole(source)
        promised = len(wav)
        found = measure_samples(wav, rate, channels)
    if found.num_samples < promised:
        raise InputError(f"{path} is damaged: {found.num_samples} of {promised} samples can be decoded")
    if found.num_samples == 0:
        raise InputError(f"{path} holds no audio (0 samples)")
    return found


def measure_samples(wav: np.ndarray, rate: int, channels: int) -> Measurement:
    """Measure the first channel (N,) of a file that was decoded already."""
    return _measure([wav], rate, channels, is_cut=False)


def _measure(blocks: Iterable[np.ndarray], rate: int, channels: int, *, is_cut: bool) -> Measurement:
    total = squares = 0.0
    num_samples, is_finite, is_clipped = 0, True, False
    recent = np.zeros(CLIPPED_RUN - 1, dtype=np.bool_)  # whether the last samples were at full scale
    digest = hashlib.blake2b(struct.pack("<q", rate), digest_size=8)
    for block in blocks:
        wav = np.ascontiguousarray(block)
        digest.update(wav.data)
        num_samples += len(wav)
        is_finite = is_finite and bool(np.isfinite(wav).all())
        if is_finite:
            total += float(wav.sum(dtype=np.float64))
            squares += float(np.square(wav, dtype=np.float64).sum())
        at_full_scale = np.concatenate((recent, np.abs(wav) >= FULL_SCALE))
        is_clipped = is_clipped or _has_run(at_full_scale, CLIPPED_RUN)
        recent = at_full_scale[-len(recent) :]
    return Measurement(
        num_samples,
        rate,
        channels,
        is_finite=is_finite,
        rms=(squares / max(num_samples, 1)) ** 0.5 if is_finite else np.nan,
        mean=total / max(num_samples, 1) if is_finite else np.nan,
        is_clipped=is_clipped,
        is_cut=is_cut,
        digest=int.from_bytes(digest.digest(), "little"),
    )


def _has_run(flags: np.ndarray, length: int) -> bool:
    """Whether ``length`` flags in a row are set; flags are mostly clear, so the check of one comes first."""
    if not flags.any():
        return False
    return bool(np.lib.stride_tricks.sliding_window_view(flags, length).all(axis=1).any())


def _is_cut_wav(path: str) -> bool:
    """Whether a RIFF file is shorter than its header says; a header written into a pipe says nothing (0 or 4 GiB)."""
    with open_plain(path) as file:
        head = file.read(8)
    if len(head) < 8 or head[:4] != b"RIFF":
        return False
    size = struct.unpack("<I", head[4:])[0]
    return 0 < size < 0x7FFFF000 and 8 + size > Path(path).stat().st_size
