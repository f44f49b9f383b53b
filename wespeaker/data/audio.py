"""Audio from files and from members of tar files: headers, partial reads, decoding of m4a."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

import numpy as np
import soundfile

from wespeaker.data.riff import Pcm16, find_pcm16
from wespeaker.data.segments import Segments, spans
from wespeaker.errors import InputError
from wespeaker.files import open_plain

MAX_RATE = 384_000  # Hz; no recorder has more, and the filter from such a rate takes memory with it
BLOCK_SAMPLES = 1 << 20  # samples of all channels that are decoded at a time, 4 MiB


@dataclass(frozen=True, slots=True)
class AudioSource:
    """Where audio lies: a file, or ``size`` bytes at ``offset`` of one (a member of a tar file).

    ``pcm`` says where the samples begin if they are known to be 16-bit and of one channel; they are read without
    looking at the header then. ``segments``, where there are any, are the parts that are read, one after the other, as
    if they were all there is; a header is that of the whole.
    """

    path: str
    offset: int = 0
    size: int | None = None
    pcm: Pcm16 | None = None
    segments: Segments = ()

    def __str__(self) -> str:
        return self.path if self.size is None else f"{self.path} (bytes {self.offset} to {self.offset + self.size})"


class AudioHeader(NamedTuple):
    """What a header says."""

    num_samples: int  # per channel
    rate: int  # in Hz
    channels: int
    container: str  # libsndfile's name, such as WAV or FLAC; FFMPEG for what FFmpeg decodes
    encoding: str  # libsndfile's name, such as PCM_16
    pcm: Pcm16 | None = None


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


class UnknownToSndfile(Exception):
    """The file is of a container that libsndfile does not read and FFmpeg may."""


@contextmanager
def opened(source: AudioSource) -> Iterator[soundfile.SoundFile]:
    """Open with libsndfile, which is given no path: it reads ``-`` as standard input, and guesses by suffixes.

    Raises:
        InputError: it cannot be opened or is not audio.
        UnknownToSndfile: FFmpeg may read it.

    """
    with ExitStack() as stack:
        file = stack.enter_context(_open(source))
        # A copy of the descriptor, for libsndfile to close: before 1.2.1 it closes it after a failure in any case.
        span = os.dup(file.fileno()) if source.size is None else _Window(file, source.offset, source.size)
        try:
            sound = stack.enter_context(soundfile.SoundFile(span))
        except (soundfile.LibsndfileError, OSError) as error:
            if _is_for_ffmpeg(read_bytes(source, 16)):
                raise UnknownToSndfile from error
            raise InputError(f"{source} cannot be read as audio ({_reason(error)})") from error
        yield sound


def _open(source: AudioSource, *, buffering: int = -1) -> BinaryIO:
    """Open the file; any failure is an InputError that names the source."""
    try:
        return open_plain(source.path, buffering=buffering)
    except FileNotFoundError as error:
        where = "" if os.path.isabs(source.path) else f" in {os.getcwd()}"
        raise InputError(f"{source} does not exist{where}") from error
    except OSError as error:
        raise InputError(f"{source} cannot be read ({error.strerror})") from error


def first_channel(sound: soundfile.SoundFile, num_samples: int | None = None) -> Iterator[np.ndarray]:
    """Yield blocks of the first channel, (N,) float32 each: ``num_samples`` in all, or up to the end.

    A header may promise more than there is, so memory is taken as it is filled. (soundfile's own ``blocks`` repeats
    data where a file is damaged.)
    """
    left = sound.frames if num_samples is None else num_samples
    most = max(1, BLOCK_SAMPLES // sound.channels)
    while left > 0 and len(block := sound.read(min(left, most), dtype="float32", always_2d=True)):
        yield block[:, 0]
        left -= len(block)


def _reason(error: Exception) -> str:
    return str(getattr(error, "error_string", error)).rstrip(".")


def _is_for_ffmpeg(head: bytes) -> bool:
    """Whether a file begins as MPEG-4 (m4a), ASF (wma), Matroska (webm, which browsers record) or AMR (phones) does."""
    return head[4:8] == b"ftyp" or head.startswith((b"\x30\x26\xb2\x75", b"\x1a\x45\xdf\xa3", b"#!AMR"))


def read_bytes(source: AudioSource, count: int = -1) -> bytes:
    """Return the bytes of the file or tar member as they are: the first ``count``, or all.

    Raises:
        InputError: the file does not exist, or is none.

    """
    with _open(source) as file:
        try:
            file.seek(source.offset)
            most = -1 if source.size is None else source.size
            return file.read(most if count < 0 else count if most < 0 else min(count, most))
        except OSError as error:
            raise InputError(f"{source} cannot be read ({error.strerror})") from error


def read_header(source: AudioSource) -> AudioHeader:
    """Read the header; what only FFmpeg reads (m4a, wma, webm, amr) is decoded, since its headers are not exact.

    Raises:
        InputError: the file is missing, is not audio, or holds no sample.

    """
    header = quick_header(source)
    if header is None:
        wav, rate, channels = _decode(source)
        header = _checked(AudioHeader(len(wav), rate, channels, "FFMPEG", ""), source)
    return header


def quick_header(source: AudioSource) -> AudioHeader | None:
    """Read the header; None if the length is known only after decoding (m4a, wma, webm, amr).

    Raises:
        InputError: the file is missing, is not audio, or holds no sample.

    """
    try:
        found = _find_pcm16(source)
        if found is not None:
            pcm, rate = found
            return _checked(AudioHeader(pcm.num_samples, rate, 1, "WAV", "PCM_16", pcm), source)
        with opened(source) as sound:
            header = AudioHeader(sound.frames, sound.samplerate, sound.channels, sound.format, sound.subtype)
            return _checked(header, source)
    except UnknownToSndfile:
        return None


def _checked(header: AudioHeader, source: AudioSource) -> AudioHeader:
    """Return the header of audio that can be used."""
    if header.num_samples <= 0:
        raise InputError(f"{source} holds no audio ({header.num_samples} samples)")
    if not 0 < header.rate <= MAX_RATE:
        raise InputError(f"{source} has a header that says {header.rate} Hz, which no audio has; make it again")
    return header


def _find_pcm16(source: AudioSource) -> tuple[Pcm16, int] | None:
    """Look into the header for 16-bit samples of one channel; return where they are, and their rate in Hz."""
    with _open(source) as file:
        try:
            size = os.fstat(file.fileno()).st_size if source.size is None else source.size
            file.seek(source.offset)
            return find_pcm16(file, size)
        except OSError as error:
            raise InputError(f"{source} cannot be read ({error.strerror})") from error


def audio_length(source: AudioSource) -> tuple[int, int]:
    """Return (samples per channel, sample rate in Hz).

    Raises:
        InputError: the file is missing, is not audio, or holds no sample.

    """
    return read_header(source)[:2]


def read_audio(source: AudioSource, start: int = 0, num_samples: int | None = None) -> np.ndarray:
    """Read a span of the first channel; only that span is read from disk (m4a and wma are decoded whole).

    Args:
        source: the file or tar member.
        start: first sample.
        num_samples: how many to read; None: to the end. Fewer come back where the audio ends earlier.

    Returns:
        (N,) float32 in [-1, 1].

    Raises:
        InputError: the file is missing or damaged, or not one sample lies in the span.

    """
    wav = (_read_segments if source.segments else _read_span)(source, start, num_samples)
    if len(wav) == 0:
        raise InputError(f"{source} has no audio from sample {start} on; it is shorter than its entry says")
    return wav


def _read_segments(source: AudioSource, start: int, num_samples: int | None) -> np.ndarray:
    """Read a span of the joined segments: once from the first to the last of its samples, with what lies between."""
    parts = spans(source.segments, start, num_samples)
    if not parts:
        return np.zeros(0, np.float32)
    first, last = min(low for low, _ in parts), max(high for _, high in parts)
    wav = _read_span(source, first, last - first)
    return np.concatenate([wav[low - first : high - first] for low, high in parts])


def _read_span(source: AudioSource, start: int, num_samples: int | None) -> np.ndarray:
    pcm = source.pcm
    if pcm is None and source.size is None:  # of a member of a tar file it is known
        found = _find_pcm16(source)  # takes a quarter of libsndfile's time
        pcm = found[0] if found else None
    if pcm is not None:
        return _read_pcm16(source, pcm, start, num_samples)
    try:
        return _read_with_sndfile(source, start, num_samples)[0]
    except UnknownToSndfile:
        return _decode(source)[0][start:][:num_samples]


def read_whole(source: AudioSource) -> tuple[np.ndarray, int, int]:
    """Return (all samples of the first channel (N,) float32, sample rate in Hz, number of channels).

    Raises:
        InputError: the file is missing or damaged, its sample rate is absurd, a sample is not finite, or there is none.

    """
    try:
        wav, rate, channels = _read_with_sndfile(source, 0, None)
    except UnknownToSndfile:
        wav, rate, channels = _decode(source)
    if source.segments:
        wav = np.concatenate([wav[low:high] for low, high in source.segments])
    _checked(AudioHeader(len(wav), rate, channels, "", ""), source)
    if not np.isfinite(wav).all():
        raise InputError(f"{source} holds samples that are not finite (NaN or infinite)")
    return wav, rate, channels


def _read_pcm16(source: AudioSource, pcm: Pcm16, start: int, num_samples: int | None) -> np.ndarray:
    left = max(pcm.num_samples - start, 0)
    count = left if num_samples is None else min(num_samples, left)
    with _open(source, buffering=0) as file:
        try:
            file.seek(source.offset + pcm.offset + 2 * start)
            data = file.read(2 * count)
        except OSError as error:
            raise InputError(f"{source} cannot be read ({error.strerror})") from error
    if len(data) < 2 * count:
        raise InputError(f"{source} ends before sample {start + count}; it is shorter than its entry says")
    return np.frombuffer(data, "<i2").astype(np.float32) * np.float32(1 / 32768)


def _read_with_sndfile(source: AudioSource, start: int, num_samples: int | None) -> tuple[np.ndarray, int, int]:
    with opened(source) as sound:
        try:
            sound.seek(min(start, sound.frames))
            blocks = list(first_channel(sound, num_samples))
        except soundfile.LibsndfileError as error:
            raise InputError(f"{source} cannot be read from sample {start} on ({_reason(error)})") from error
        wav = np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
        return wav, sound.samplerate, sound.channels


def _decode(source: AudioSource) -> tuple[np.ndarray, int, int]:
    """Decode with FFmpeg to 16 bits; return (first channel (N,) float32, sample rate in Hz, number of channels)."""
    import av

    data = io.BytesIO(read_bytes(source))
    blocks, rate, channels = [], 0, 0
    try:
        with av.open(data, "r") as container:
            resampler = av.AudioResampler(format="s16p")
            for frame in container.decode(audio=0):
                rate, channels = frame.sample_rate, frame.layout.nb_channels
                blocks += resampler.resample(frame)
            blocks += resampler.resample(None) if blocks else []
    except (av.error.FFmpegError, IndexError, ValueError) as error:  # IndexError: no audio stream
        raise InputError(f"{source} cannot be decoded ({' '.join(str(error).split())})") from error
    if not blocks:
        raise InputError(f"{source} holds no audio (0 samples)")
    samples = np.concatenate([block.to_ndarray()[0] for block in blocks])
    return samples.astype(np.float32) * np.float32(1 / 32768), rate, channels
