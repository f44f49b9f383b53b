"""MXNet's RecordIO as InsightFace uses it (``train.rec``, ``train.idx``, ``train.lst``, ``property``), without MXNet.

A record of ``train.rec`` is one part or several: the magic number, a word of 3 bits of flag and 29 bits of length, the
data, and zeros up to a multiple of four bytes (dmlc-core, ``recordio.h``). Where the data themselves hold the magic
number at a multiple of four, the record is cut there: the parts are flagged 1, 2, …, 2, 3 and the number is left out.
The data begin with ``<IfQQ``: the number of labels (0 if the float beside it is the only one), that label, two ids;
then come the labels as float32, then the encoded picture. ``train.idx`` says where each key's record begins.

Record 0 is about the others: its labels are the number of images plus one, n + 1, and the end of the identity records.
Images have the keys 1 to n; the identity records, which hold no picture, say which of them are of one person. In files
without a record 0 of two labels, each key is an image.
"""

from __future__ import annotations

import mmap
import struct
from enum import IntEnum
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from wespeaker.data.faces.columns import read_numbers
from wespeaker.data.faces.folder import decode_image
from wespeaker.errors import InputError
from wespeaker.files import open_plain

MAGIC = 0xCED7230A
MAGIC_BYTES = struct.pack("<I", MAGIC)
PART = struct.Struct("<II")  # magic, flag << 29 | length
HEADER = struct.Struct("<IfQQ")  # number of labels, label, two ids
LENGTH_BITS = 29
MAX_LENGTH = (1 << LENGTH_BITS) - 1
MAX_EXACT = 1 << 24  # the whole numbers up to here are exact in float32
_BLOCK = 1 << 20  # records whose headers are read at a time


class Part(IntEnum):
    """Which part of a record it is."""

    WHOLE, FIRST, MIDDLE, LAST = range(4)


class Record(NamedTuple):
    """One record: its labels, (L,) float32, and what follows them."""

    labels: NDArray[np.float32]
    data: bytes


class RecordFile:
    """The images of a ``train.rec``, in the order of their keys; item i is read when it is asked for.

    The file is mapped, not read: threads and forked or spawned processes share it, and memory is that of two numbers
    an image (``train.idx``). What a record claims is checked before it is used.

    Args:
        path: ``train.rec``; ``train.idx`` lies beside it.

    Raises:
        InputError: a file is missing or damaged; the sentence names file, key and byte.

    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        keys, offsets = _read_index(self.path.with_suffix(".idx"))
        self._open()
        if (count := self._num_images(keys, offsets)) is not None:
            first, end = np.searchsorted(keys, (1, count + 1))
            if end - first != count:
                raise InputError(
                    f"{self.path}: record 0 promises the keys 1 to {count}, of which {self.path.with_suffix('.idx')} "
                    f"has {end - first}; the two are not of one set, copy them again"
                )
            keys, offsets = keys[first:end], offsets[first:end]
        self.keys, self._offsets = keys, offsets

    def _open(self) -> None:
        try:
            with open_plain(self.path) as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise InputError(f"{self.path} does not exist; make it with tools/make_recordio.py") from None
        except ValueError:  # an empty file cannot be mapped
            raise InputError(f"{self.path} is empty; copy it or make it again") from None

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if name != "_map"}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state)
        self._open()

    def __len__(self) -> int:
        return len(self.keys)

    def encoded(self, i: int) -> bytes:
        """Return the picture as it is stored, most often a JPEG file."""
        return self.record(i).data

    def image(self, i: int) -> NDArray[np.uint8]:
        """Return the picture, (H, W, 3) uint8 in RGB."""
        return decode_image(self.encoded(i), f"{self.path}: record {self.keys[i]}")

    def identity(self, i: int) -> int:
        """Return whom the picture shows: the first label."""
        return int(self.identities[i])

    def record(self, i: int) -> Record:
        """Return all labels of image i (some sets add landmarks) and its picture."""
        return self._read(int(self.keys[i]), int(self._offsets[i]))

    @cached_property
    def identities(self) -> NDArray[np.int32]:
        """First label of each image, (N,), read in one pass over the headers: a page of the disk for each image."""
        words = np.frombuffer(self._map, "<u4", count=len(self._map) // 4)
        labels = np.empty(len(self), np.float32)
        for start in range(0, len(self), _BLOCK):
            block = slice(start, start + _BLOCK)
            labels[block] = self._first_labels(words, self.keys[block], self._offsets[block])
        wrong = np.flatnonzero(~((labels >= 0) & (labels <= MAX_EXACT) & (np.floor(labels) == labels)))
        if wrong.size:
            raise InputError(
                f"{self.path}: record {self.keys[wrong[0]]} has the label {labels[wrong[0]]:g}; identities are whole "
                f"numbers from 0 to {MAX_EXACT}, which float32 tells apart"
            )
        return labels.astype(np.int32)

    @property
    def num_identities(self) -> int:
        """Rows that a classifier of these labels needs: the largest label plus one."""
        return int(self.identities.max(initial=-1)) + 1

    def _first_labels(self, words: NDArray[np.uint32], keys: NDArray[np.int64], offsets: NDArray[np.int64]) -> NDArray:
        """Return the first label of each record, (N,) float32, without reading pictures."""
        size, header = len(self._map), PART.size + HEADER.size
        labels, usual = np.empty(len(keys), np.float32), np.zeros(len(keys), np.bool_)
        rows = np.flatnonzero((offsets % 4 == 0) & (offsets >= 0) & (offsets <= size - header - 4))
        at = offsets[rows] // 4
        magic, length, count = words[at], words[at + 1], words[at + 2].astype(np.int64)
        # A length with a flag in its upper bits is larger than any.
        usual[rows] = (magic == MAGIC) & (length <= MAX_LENGTH) & (length >= HEADER.size + 4 * count)
        usual[rows] &= offsets[rows] <= size - PART.size - length.astype(np.int64)
        labels[rows] = words[at + np.where(count > 0, header // 4, 3)].view(np.float32)
        for row in np.flatnonzero(~usual):  # of several parts, or damaged: `_read` knows what to say
            labels[row] = self._read(int(keys[row]), int(offsets[row])).labels[0]
        return labels

    def _num_images(self, keys: NDArray[np.int64], offsets: NDArray[np.int64]) -> int | None:
        """Return n of record 0, None where there is no such record or it is an image like the others."""
        if keys[0] != 0:
            return None
        labels, data = self._read(0, int(offsets[0]))
        if len(labels) < 2 or data:
            return None
        if not 2 <= labels[0] < 1 << 40:
            raise InputError(f"{self.path}: record 0 must give the number of images plus one, found {labels[0]:g}")
        # From 2^24 on, n + 1 may be rounded, by half the distance between neighbours in float32.
        count, rounding = int(labels[0]) - 1, int(np.spacing(labels[0]) / 2)
        for last in range(count + rounding, count - rounding, -1):
            row = int(np.searchsorted(keys, last))
            if row < len(keys) and keys[row] == last and self._read(last, int(offsets[row])).data:
                return last
        return count - rounding

    def _read(self, key: int, offset: int) -> Record:
        where = f"{self.path}: record {key} at byte {offset}"
        parts: list[bytes] = []
        at, size = offset, len(self._map)
        while True:
            if not 0 <= at <= size - PART.size:
                raise InputError(f"{where} lies beyond the end ({size} bytes); the file is cut, or of another .idx")
            magic, word = PART.unpack_from(self._map, at)
            flag, length = word >> LENGTH_BITS, word & MAX_LENGTH
            if magic != MAGIC or flag not in ((Part.MIDDLE, Part.LAST) if parts else (Part.WHOLE, Part.FIRST)):
                raise InputError(f"{where} does not begin as one does (byte {at}); damaged, or of another .idx")
            begin, end = at + PART.size, at + PART.size + length
            if end > size:
                raise InputError(f"{where} claims {length} bytes, of which the file has {size - begin}; copy it again")
            parts.append(self._map[begin:end])
            if flag in (Part.WHOLE, Part.LAST):
                break
            at = end + -length % 4
        return _split(MAGIC_BYTES.join(parts), where)


def _split(payload: bytes, where: str) -> Record:
    """Split the data of a record into labels and picture."""
    if len(payload) < HEADER.size:
        raise InputError(f"{where} has {len(payload)} bytes, fewer than its header of {HEADER.size}; copy it again")
    count, label, _, _ = HEADER.unpack_from(payload)
    begin = HEADER.size + 4 * count
    if begin > len(payload):
        raise InputError(f"{where} claims {count} labels, more than fit in its {len(payload)} bytes; copy it again")
    if count == 0:
        return Record(np.array([label], np.float32), payload[begin:])
    return Record(np.frombuffer(payload, "<f4", count, HEADER.size), payload[begin:])


def _read_index(path: Path) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the keys, (N,), sorted, and where their records begin, (N,) in bytes."""
    rows = read_numbers(path, "where the records begin", columns=("key", "offset"), dtype=np.int64)
    keys, offsets = rows.T
    if (np.diff(keys) <= 0).any():
        order = np.argsort(keys, kind="stable")
        keys, offsets = keys[order], offsets[order]
        if (repeated := np.flatnonzero(np.diff(keys) == 0)).size:
            raise InputError(f"{path} has the key {keys[repeated[0]]} twice; make the set again")
    return np.ascontiguousarray(keys), np.ascontiguousarray(offsets)
