"""A training set as a table: columns of numbers and text, so that a million utterances take about 100 MB.

Loader processes that are forked from the one that opened the table share its memory: a Python object of each
utterance would be copied in every process as soon as its reference count is touched.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import overload

import numpy as np

from wespeaker.data.audio import MAX_RATE, AudioSource
from wespeaker.data.riff import Pcm16
from wespeaker.data.segments import MAX_SAMPLES, Segments
from wespeaker.errors import InputError

ROW = np.dtype(
    [
        ("spk", "<i4"),  # index of the speaker
        ("file", "<i4"),  # index of the file
        ("offset", "<i8"),  # in bytes
        ("size", "<i8"),  # in bytes; WHOLE for a file of its own
        ("samples", "<i8"),  # per channel
        ("rate", "<i4"),  # in Hz
        ("pcm", "<i4"),  # bytes from offset to the first 16-bit sample; NO_PCM if the audio is not 16-bit mono wav
    ]
)
_PACK = struct.Struct("<iiqqqii")
WHOLE, NO_PCM = -1, -1
MAX_NAME_BYTES = 1024  # of a key or a speaker: sorting takes the longest key times the number of keys
_BLOCK = 1 << 18  # bytes of text that are moved at a time


@dataclass(frozen=True, slots=True)
class Utterance:
    """One recording of one speaker."""

    key: str  # such as id10001/1zcIwhmdeo4/00001.wav
    spk: str
    source: AudioSource
    length: tuple[int, int]  # samples, sample rate in Hz

    @property
    def seconds(self) -> float:
        """Duration in seconds."""
        return self.length[0] / self.length[1]


class Texts(Sequence[str]):
    """Strings in one block of memory.

    Args:
        blob: all of them, in UTF-8, without anything between.
        ends: (N,) int64, where each ends in it.

    >>> list(Texts.of(["b", "", "äa"]))
    ['b', '', 'äa']
    """

    def __init__(self, blob: bytes, ends: np.ndarray) -> None:
        self.blob, self.ends = blob, ends

    @classmethod
    def of(cls, texts: Iterable[str]) -> Texts:
        """Pack strings."""
        encoded = [text.encode() for text in texts]
        return cls(b"".join(encoded), np.cumsum([len(text) for text in encoded], dtype=np.int64))

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        end = int(self.ends[index])
        at = index % len(self)
        return self.blob[int(self.ends[at - 1]) if at else 0 : end].decode()

    def padded(self) -> np.ndarray:
        """Return the bytes of the texts, (N,) of numpy's type ``S``, which sorts as the texts do."""
        lengths = np.diff(self.ends, prepend=0)
        width = int(lengths.max(initial=1))
        block = np.frombuffer(self.blob, np.uint8)
        padded = np.zeros((len(self), width), np.uint8)
        start, step = 0, max(1, _BLOCK // width)
        for first in range(0, len(self), step):
            inside = np.arange(width) < lengths[first : first + step, None]
            end = start + int(np.count_nonzero(inside))
            padded[first : first + step][inside] = block[start:end]
            start = end
        return padded.view(f"S{width}").reshape(-1)

    def take(self, rows: np.ndarray) -> Texts:
        """Return the texts at ``rows``, in that order."""
        lengths = np.diff(self.ends, prepend=0)
        block = np.frombuffer(self.blob, np.uint8)
        parts = []
        step = max(1, _BLOCK // int(lengths.max(initial=1)))
        for first in range(0, len(rows), step):
            some = rows[first : first + step]
            counts = lengths[some]
            ends = np.cumsum(counts)
            shift = np.repeat(self.ends[some] - ends, counts)
            parts.append(block[np.arange(len(shift)) + shift].tobytes())
        return Texts(b"".join(parts), np.cumsum(lengths[rows], dtype=np.int64))


class FileSegments:
    """Segments of files in two blocks of memory.

    Args:
        bounds: (S, 2) int64, first sample and end of each.
        ends: (F,) int64, where those of each file end in ``bounds``; of no file if none has any.

    """

    def __init__(self, bounds: np.ndarray, ends: np.ndarray) -> None:
        self._bounds, self._ends = bounds, ends

    def __getitem__(self, file: int) -> Segments:
        if not len(self._ends):
            return ()
        start = self._ends[file - 1] if file else 0
        return tuple((first, end) for first, end in self._bounds[start : self._ends[file]].tolist())


NO_SEGMENTS = FileSegments(np.zeros((0, 2), np.int64), np.zeros(0, np.int64))


@dataclass(frozen=True, eq=False)
class UtteranceTable(Sequence[Utterance]):
    """Utterances sorted by key; an item is made when it is asked for.

    Attributes:
        keys: of the utterances, (N,).
        speakers: sorted; each has at least one utterance.
        files: paths that the rows point to.
        rows: (N,) of dtype ``ROW``.
        segments: of the files, what is used of each.

    """

    keys: Texts
    speakers: list[str]
    files: Texts
    rows: np.ndarray
    segments: FileSegments = NO_SEGMENTS

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Utterance: ...
    @overload
    def __getitem__(self, index: slice) -> list[Utterance]: ...
    def __getitem__(self, index: int | slice) -> Utterance | list[Utterance]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        spk, file, offset, size, samples, rate, pcm = self.rows[index].item()
        source = AudioSource(
            self.files[file],
            offset,
            None if size == WHOLE else size,
            None if pcm == NO_PCM else Pcm16(pcm, samples),
            self.segments[file],
        )
        return Utterance(self.keys[index], self.speakers[spk], source, (samples, rate))

    @property
    def labels(self) -> np.ndarray:
        """Index in ``speakers`` of the speaker of each utterance, (N,) int32."""
        labels: np.ndarray = self.rows["spk"]
        return labels

    @property
    def seconds(self) -> np.ndarray:
        """Durations in seconds, (N,) float64."""
        seconds: np.ndarray = self.rows["samples"] / self.rows["rate"]
        return seconds

    def find(self, key: str) -> Utterance | None:
        """Return the utterance of a key, None if there is none."""
        at = bisect_left(self.keys, key)
        return self[at] if at < len(self) and self.keys[at] == key else None

    def select(self, keep: np.ndarray) -> UtteranceTable:
        """Return the utterances where ``keep``, (N,) bool, is true; speakers that lose their last one go."""
        rows = np.flatnonzero(keep)
        table = _with_speakers_in_order(self.keys.take(rows), self.speakers, self.files, self.rows[rows])
        return replace(table, segments=self.segments)


class _GrowingTexts:
    """Strings that are appended to one block of memory."""

    def __init__(self) -> None:
        self._blob, self._ends = bytearray(), array("q")

    def __len__(self) -> int:
        return len(self._ends)

    def append(self, text: str) -> None:
        self._blob += text.encode()
        self._ends.append(len(self._blob))

    def texts(self) -> Texts:
        return Texts(bytes(self._blob), np.array(self._ends, np.int64))


class TableBuilder:
    """Makes a table of utterances that come one by one, in any order."""

    def __init__(self) -> None:
        self._rows, self._keys, self._files = bytearray(), _GrowingTexts(), _GrowingTexts()
        self._speakers: dict[str, int] = {}
        self._bounds, self._bound_ends = array("q"), array("q")
        self._last: tuple[str, Segments] | None = None  # file and segments

    def add(self, utt: Utterance) -> None:
        """Append one.

        Raises:
            InputError: a name is none that lines of text can hold, or the length is none of audio.

        """
        source = utt.source
        if not (is_name(utt.key) and is_name(utt.spk)):
            raise InputError(
                f"{source}: the key {utt.key[:80]!r} and the speaker {utt.spk[:80]!r} must be of 1 to {MAX_NAME_BYTES} "
                f"bytes in UTF-8 without blanks, at which the lines of a manifest end a name; rename them"
            )
        if not _is_utf8(source.path):
            raise InputError(f"{utt.key} lies in {source.path!r}, which is not UTF-8; rename the file")
        samples, rate = utt.length
        if not (0 < samples <= MAX_SAMPLES and 0 < rate <= MAX_RATE):
            raise InputError(
                f"{source}: {utt.key} cannot have {samples} samples at {rate} Hz (at least 1, 1 to {MAX_RATE} Hz); "
                f"correct its entry, or leave the length out"
            )
        self._keys.append(utt.key)
        self._rows += _PACK.pack(
            self._speakers.setdefault(utt.spk, len(self._speakers)),
            self._file_of(source),
            source.offset,
            WHOLE if source.size is None else source.size,
            *utt.length,
            NO_PCM if source.pcm is None or source.segments else source.pcm.offset,
        )

    def _file_of(self, source: AudioSource) -> int:
        """Return the index of the file; neighbours share one, unless other parts of it are used."""
        if self._last != (source.path, source.segments):
            self._last = source.path, source.segments
            self._files.append(source.path)
            self._bounds.extend(chain.from_iterable(source.segments))
            self._bound_ends.append(len(self._bounds) // 2)
        return len(self._files) - 1

    def table(self) -> UtteranceTable:
        """Return what was added, sorted by key.

        Raises:
            InputError: a key came twice.

        """
        rows = np.frombuffer(self._rows, ROW)
        table = _sorted_table(self._keys.texts(), list(self._speakers), self._files.texts(), rows)
        if not self._bounds:
            return table
        bounds, ends = (np.array(numbers, np.int64) for numbers in (self._bounds, self._bound_ends))
        return replace(table, segments=FileSegments(bounds.reshape(-1, 2), ends))


def is_name(text: str) -> bool:
    """Whether a key or a speaker can stand in a line of text: a newline in one would be a line of its own there."""
    return text.split() == [text] and _is_utf8(text) and len(text.encode()) <= MAX_NAME_BYTES


def _is_utf8(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)  # halves of a pair


def check_table(table: UtteranceTable, *, num_bytes: int) -> None:
    """Check a table of one file that was not made by a `TableBuilder`.

    Args:
        table: keys, speakers and rows as they were read.
        num_bytes: size of the file.

    Raises:
        InputError: with what is impossible in it.

    """
    rows, ends, text = table.rows, table.keys.ends, np.frombuffer(table.keys.blob, np.uint8)
    lengths = np.diff(ends, prepend=0)
    samples = rows["samples"]
    most = np.where(rows["pcm"] == NO_PCM, MAX_SAMPLES, (rows["size"] - rows["pcm"]) // 2)
    problems = {
        "has keys that no line of text can hold": not (
            (int(ends[-1]) if len(ends) else 0) == len(text)
            and ((lengths > 0) & (lengths <= MAX_NAME_BYTES)).all()
            and (text[ends[:-1]] & 0xC0 != 0x80).all()  # no key begins within a letter
            and _is_one_word(table.keys.blob)
        ),
        "has speakers that no line of text can hold": not (
            " ".join(table.speakers).split() == table.speakers
            and max(map(len, table.speakers), default=0) <= MAX_NAME_BYTES
        ),
        "has rows of speakers or files that it does not have": not (
            ((rows["spk"] >= 0) & (rows["spk"] < len(table.speakers)) & (rows["file"] == 0)).all()
        ),
        "has rows that lie outside of the file": not (
            (rows["offset"] >= 0) & (rows["size"] >= 0) & (rows["size"] <= num_bytes - rows["offset"])
        ).all(),
        "has rows of impossible lengths": not (
            ((samples > 0) & (samples <= most) & (rows["pcm"] >= NO_PCM)).all()
            and ((rows["rate"] > 0) & (rows["rate"] <= MAX_RATE)).all()
        ),
    }
    if found := [problem for problem, is_there in problems.items() if is_there]:
        raise InputError(found[0])


def _is_one_word(blob: bytes) -> bool:
    try:
        text = blob.decode()
    except UnicodeDecodeError:
        return False
    return text.split() == [text] or not text


def make_table(utterances: Iterable[Utterance]) -> UtteranceTable:
    """Return utterances as a table.

    Raises:
        InputError: a key comes twice.

    """
    if isinstance(utterances, UtteranceTable):
        return utterances
    builder = TableBuilder()
    for utt in utterances:
        builder.add(utt)
    return builder.table()


def merge_tables(tables: Iterable[UtteranceTable]) -> UtteranceTable:
    """Return the utterances of several tables of tar files, which have no segments, taken one by one, as one table.

    Raises:
        InputError: a key comes twice.

    """
    speakers: dict[str, int] = {}
    files: list[str] = []
    rows, keys, ends = bytearray(), bytearray(), bytearray()
    for table in tables:
        part = table.rows.copy()
        labels = np.array([speakers.setdefault(spk, len(speakers)) for spk in table.speakers], np.int32)
        part["spk"] = labels[part["spk"]]
        part["file"] += len(files)
        rows += part.tobytes()
        ends += (table.keys.ends + len(keys)).tobytes()
        keys += table.keys.blob
        files += table.files
    texts = Texts(bytes(keys), np.frombuffer(ends, np.int64))
    return _sorted_table(texts, list(speakers), Texts.of(files), np.frombuffer(rows, ROW))


def _sorted_table(keys: Texts, speakers: Sequence[str], files: Texts, rows: np.ndarray) -> UtteranceTable:
    padded = keys.padded()
    if not np.all(padded[1:] > padded[:-1]):
        order = np.argsort(padded, kind="stable")
        padded = padded[order]
        keys, rows = keys.take(order), rows[order]
        twice = np.flatnonzero(padded[1:] == padded[:-1])
        if len(twice):
            first, second = (files[int(rows["file"][at])] for at in (twice[0], twice[0] + 1))
            raise InputError(f"{keys[int(twice[0])]} is the key of two utterances, in {first} and in {second}")
    return _with_speakers_in_order(keys, speakers, files, rows)


def _with_speakers_in_order(keys: Texts, speakers: Sequence[str], files: Texts, rows: np.ndarray) -> UtteranceTable:
    """Leave out speakers without an utterance, sort the others and number the rows anew."""
    present = np.flatnonzero(np.bincount(rows["spk"], minlength=len(speakers)))
    order = sorted(present.tolist(), key=lambda i: speakers[i])
    labels = np.full(len(speakers), -1, np.int32)
    labels[order] = np.arange(len(order), dtype=np.int32)
    rows = rows.copy()
    rows["spk"] = labels[rows["spk"]]
    return UtteranceTable(keys, [speakers[i] for i in order], files, rows)
