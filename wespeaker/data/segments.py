"""The parts of a recording that hold speech, which are used as if they were all of it: seconds and samples."""

from __future__ import annotations

import math

from wespeaker.errors import InputError

Segments = tuple[tuple[int, int], ...]  # (first sample, end) of each part, in the order in which they are joined
MAX_SAMPLES = 1 << 47  # per channel


def from_seconds(seconds: object, *, rate: int, num_samples: int = MAX_SAMPLES) -> Segments:
    """Return segments in samples, rounded down as WeSpeaker does; what lies beyond the end is cut off.

    Args:
        seconds: a list of (start, end) pairs, numbers or their texts, as in the ``vad`` of a raw.list.
        rate: sample rate in Hz.
        num_samples: length of the recording.

    Returns:
        Those that are not empty, maybe none.

    Raises:
        InputError: one is no pair of numbers from 0 on in ascending order.

    >>> from_seconds([("0.5", "1.25"), (2, 99)], rate=8, num_samples=20)
    ((4, 10), (16, 20))

    """
    if not isinstance(seconds, list):
        raise InputError(f"segments must be a list of starts and ends in seconds, found {str(seconds)[:80]}")
    segments = []
    for pair in seconds:
        try:
            start, end = map(float, pair)
            if isinstance(pair, str) or not 0 <= start <= end < math.inf:
                raise ValueError
        except (TypeError, ValueError, OverflowError):
            raise InputError(f"a segment must be a start and an end in seconds, found {str(pair)[:80]}") from None
        first, last = (int(min(time * rate, num_samples)) for time in (start, end))
        if first < last:
            segments.append((first, last))
    return tuple(segments)


def to_seconds(segments: Segments, *, rate: int) -> list[tuple[str, str]]:
    """Return texts of which `from_seconds` makes the same samples: they lie in the middle of a sample's time.

    >>> to_seconds(((4, 10),), rate=8)
    [('0.5625', '1.3125')]
    """
    return [(repr((first + 0.5) / rate), repr((end + 0.5) / rate)) for first, end in segments]


def spans(segments: Segments, start: int, num_samples: int | None) -> list[tuple[int, int]]:
    """Return where a span of the joined segments lies in the recording: (first sample, end) of each part.

    >>> spans(((10, 20), (50, 60)), 8, 5)
    [(18, 20), (50, 53)]
    """
    found = []
    stop = math.inf if num_samples is None else start + num_samples
    joined = 0  # samples of the segments before
    for first, end in segments:
        shift = first - joined
        joined += end - first
        low, high = max(start + shift, first), min(stop + shift, end)
        if low < high:
            found.append((low, int(high)))
    return found
