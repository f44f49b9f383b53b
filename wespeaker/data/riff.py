"""Where the samples of a 16-bit mono wav file begin, so that a span of them is one seek and one read."""

from __future__ import annotations

import struct
from typing import BinaryIO, NamedTuple

_FORMAT_PCM, _FORMAT_EXTENSIBLE = 0x0001, 0xFFFE
_MAX_CHUNKS = 1000  # before the samples; a file of zeros after its header would be millions of chunks of no length
_PCM_GUID = bytes.fromhex("0100000000001000800000aa00389b71")  # KSDATAFORMAT_SUBTYPE_PCM


class Pcm16(NamedTuple):
    """Little-endian 16-bit samples of one channel."""

    offset: int  # bytes from the start of the file, or of the tar member, to the first sample
    num_samples: int


def find_pcm16(file: BinaryIO, size: int) -> tuple[Pcm16, int] | None:
    """Find the samples of a RIFF/WAVE file of one channel of 16-bit PCM.

    The chunks are walked as the format says: any number of others (``LIST``, ``bext``, …) may come before ``data``,
    and one of odd size is followed by a byte of padding.

    Args:
        file: at the start of the wav file, which ends ``size`` bytes later.
        size: in bytes.

    Returns:
        (the samples, sample rate in Hz); None for anything else: another encoding, more channels, no sample, a
        ``data`` chunk that does not end within the file (a stream, or a file that was cut short).

    """
    start = file.tell()
    head = file.read(12)
    if head[:4] != b"RIFF" or head[8:] != b"WAVE":
        return None
    position, rate = 12, 0
    for _ in range(_MAX_CHUNKS):
        if position + 8 > size:
            return None
        file.seek(start + position)
        chunk = file.read(8)
        if len(chunk) < 8:
            return None
        name, length = chunk[:4], struct.unpack("<I", chunk[4:])[0]
        position += 8
        if name == b"fmt ":
            rate = _rate_of_pcm16_mono(file.read(min(length, 40)))
            if rate == 0:
                return None
        elif name == b"data":
            fits = rate > 0 and 0 < length <= size - position and length % 2 == 0
            return (Pcm16(position, length // 2), rate) if fits else None
        position += length + length % 2
    return None


def _rate_of_pcm16_mono(fmt: bytes) -> int:
    """Return the sample rate of a ``fmt`` chunk, 0 if it is not 16-bit PCM of one channel."""
    if len(fmt) < 16:
        return 0
    tag, channels, rate, _, block, bits = struct.unpack("<HHIIHH", fmt[:16])
    if tag == _FORMAT_EXTENSIBLE:
        valid_bits = struct.unpack("<H", fmt[18:20])[0] if len(fmt) == 40 else 0
        is_pcm = valid_bits == bits and fmt[24:] == _PCM_GUID
    else:
        is_pcm = tag == _FORMAT_PCM
    return rate if is_pcm and (channels, block, bits) == (1, 2, 16) else 0
