"""Audio from files and from members of tar files: partial reads, resampling, and decoding of m4a."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile

from wespeaker.errors import InputError
from wespeaker.files import replacing


@dataclass(frozen=True, slots=True)
class AudioSource:
    """Where audio lies: a file, or ``size`` bytes at ``offset`` of one (a member of a tar file)."""

    path: str
    offset: int = 0
    size: int | None = None

    def __str__(self) -> str:
        return self.path if self.size is None else f"{self.path} (bytes {self.offset} to {self.offset + self.size})"


class _Window(io.RawIOBase):
    """A read-only view of a span of a file that looks like a file of its own."""

    def __init__(self, file: BinaryIO, offset: int, size: int) -> None:
        self._file, self._offset, self._size, self._position = file, offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = min(max(base + offset, 0), self._size)
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        self._file.seek(self._offset + self._position)
        data = self._file.read(min(len(buffer), self._size - self._position))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


class _Opened:
    """Context of an open sound file; any failure is an InputError that names the source."""

    def __init__(self, source: AudioSource) -> None:
        self._source = source
        self._file: BinaryIO | None = None

    def __enter__(self) -> soundfile.SoundFile:
        try:
            if self._source.size is None:
                self._sound = soundfile.SoundFile(self._source.path)
            else:
                self._file = open(self._source.path, "rb")
                self._sound = soundfile.SoundFile(_Window(self._file, self._source.offset, self._source.size))
        except (soundfile.LibsndfileError, OSError) as error:
            if self._file is not None:
                self._file.close()
            if not os.path.exists(self._source.path):
                raise InputError(f"{self._source} does not exist") from error
            raise InputError(f"{self._source} cannot be read as audio ({_reason(error)})") from error
        return self._sound

    def __exit__(self, *_: object) -> None:
        self._sound.close()
        if self._file is not None:
            self._file.close()


def _reason(error: Exception) -> str:
    return str(getattr(error, "error_string", error)).rstrip(".")


def audio_length(source: AudioSource) -> tuple[int, int]:
    """Return (samples per channel, sample rate in Hz) from the header.

    Raises:
        InputError: the file is missing, is not audio, or holds no sample.

    """
    with _Opened(source) as sound:
        if sound.frames == 0:
            raise InputError(f"{source} holds no audio (0 samples)")
        return sound.frames, sound.samplerate


def read_audio(source: AudioSource, start: int = 0, num_samples: int | None = None) -> np.ndarray:
    """Read a span of the first channel; only that span is read from disk.

    Args:
        source: the file or tar member.
        start: first sample.
        num_samples: how many to read; None: to the end. Fewer come back where the audio ends earlier.

    Returns:
        (N,) float32 in [-1, 1].

    Raises:
        InputError: the file is missing or damaged, or not one sample lies in the span.

    """
    with _Opened(source) as sound:
        try:
            sound.seek(min(start, sound.frames))
            wav = sound.read(-1 if num_samples is None else num_samples, dtype="float32", always_2d=True)[:, 0]
        except soundfile.LibsndfileError as error:
            raise InputError(f"{source} cannot be read from sample {start} on ({_reason(error)})") from error
    if len(wav) == 0:
        raise InputError(f"{source} has no audio from sample {start} on; it is shorter than its entry says")
    return np.ascontiguousarray(wav)


def resample(wav: np.ndarray, step: Fraction) -> np.ndarray:
    """Resample so that one output sample takes ``step`` input samples (polyphase filter of scipy).

    A step of 2 halves the sample rate; a step of 9/10 at an unchanged rate is speech at 0.9 times its speed.
    """
    if step == 1:
        return wav
    from scipy.signal import resample_poly  # here: it takes half a second to import, and scoring reads no audio

    return resample_poly(wav, step.denominator, step.numerator).astype(np.float32)


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

    """
    available, source_rate = length
    step = speed * Fraction(source_rate, rate)
    needed = ceil(num_samples * step)
    start = int(rng.integers(max(available - needed, 0) + 1))
    return fit_length(resample(read_audio(source, start, needed), step), num_samples)


def decode_to_wav(source: Path, destination: Path, *, rate: int) -> None:
    """Decode any format that FFmpeg knows (VoxCeleb2's m4a) to a mono 16-bit wav file.

    Raises:
        InputError: the file is damaged or holds no audio stream.

    """
    import av

    blocks = []
    try:
        with av.open(str(source)) as container:
            resampler = av.AudioResampler(format="s16", layout="mono", rate=rate)
            for frame in container.decode(audio=0):
                blocks += resampler.resample(frame)
            blocks += resampler.resample(None)
    except (av.error.FFmpegError, IndexError) as error:  # IndexError: no audio stream
        raise InputError(f"{source} cannot be decoded ({' '.join(str(error).split())})") from error
    if not blocks:
        raise InputError(f"{source} holds no audio")
    samples = np.concatenate([block.to_ndarray().reshape(-1) for block in blocks])
    with replacing(destination) as temporary:
        soundfile.write(temporary, samples, rate, subtype="PCM_16", format="WAV")
