"""The values of an LMDB database as spans of its file, read without trust in what the file says.

LMDB's own library maps the file and follows what it says unchecked: of 60 databases with five damaged words each, 13
ended the process with SIGBUS. A value lies whole in the file, so here a wav in it is read as a member of a tar file is:
a crop is one seek and one read, and there is nothing that loader processes would have to open after they are forked.

Format: ``mdb.c`` of LMDB 0.9, version 1 of the data, of little-endian machines of 64 bits. The file is pages of one
size, each with its own number at its start. The first two hold the roots of the last two commits, of which the later
one counts. From there a tree of branch pages leads to leaf pages; a value that does not fit in its leaf lies behind the
header of a page of its own.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

_HEADER = struct.Struct("<Q2xHH2x")  # of a page: number, flags, end of the places of its nodes
_META = struct.Struct("<16xII16xI48xH34xQ8xQ")  # of one of the first two: what _Meta has
_MAGIC, _VERSION = 0xBEEFC0DE, 1
_PAGE_SIZES = [1 << bits for bits in range(8, 16)]
_BRANCH, _LEAF = 0x01, 0x02  # flags of a page
_ELSEWHERE = 0x01  # flag of a node: the value lies on pages of its own
_NODE = struct.Struct("<HHHH")  # size of the value, low and high half, flags, size of the key; in a branch: the page
_EMPTY = (1 << 64) - 1  # root of a database without values


class LmdbValue(NamedTuple):
    """Where the value of a key lies."""

    key: bytes
    offset: int  # bytes from the start of the file
    size: int  # bytes, which lie within the file


class DamagedLmdbError(Exception):
    """The file is no database, or not whole."""


class _Meta(NamedTuple):
    magic: int
    version: int
    page_size: int
    flags: int  # of the database, such as several values for a key
    root: int  # page
    commit: int


def read_values(file: BinaryIO) -> Iterator[LmdbValue]:
    """Yield the values of the unnamed database, in the order of the keys.

    Args:
        file: ``data.mdb``, opened to read bytes.

    Raises:
        DamagedLmdbError: a page lies outside of the file, is not what leads to it, or comes twice; a value reaches
            beyond the end of the file; the database has others inside, or several values for a key.

    """
    total = os.fstat(file.fileno()).st_size
    meta = _read_meta(file)
    pages = [] if meta.root == _EMPTY else [meta.root]
    seen: set[int] = set()
    while pages:
        number = pages.pop()
        if number in seen:
            raise DamagedLmdbError(f"page {number} comes twice")
        seen.add(number)
        page, flags, places = _read_page(file, number, meta.page_size)
        if flags == _BRANCH:
            pages += reversed([_child(page, at) for at in places])
        elif flags == _LEAF:
            for at in places:
                yield _value(page, at, number, total)
        else:
            raise DamagedLmdbError(f"page {number} is neither branch nor leaf")


def _read_meta(file: BinaryIO) -> _Meta:
    """Return the later of the two first pages."""
    first = _read_meta_at(file, 0)
    second = _read_meta_at(file, first.page_size)
    return max(first, second, key=lambda meta: meta.commit)


def _read_meta_at(file: BinaryIO, position: int) -> _Meta:
    file.seek(position)
    data = file.read(_META.size)
    meta = _Meta(*_META.unpack(data)) if len(data) == _META.size else None
    if meta is None or (meta.magic, meta.version) != (_MAGIC, _VERSION) or meta.page_size not in _PAGE_SIZES:
        raise DamagedLmdbError(f"no head of a database of a 64-bit machine at byte {position}")
    if meta.flags:
        raise DamagedLmdbError("several values for a key, or keys that are no text")
    return meta


def _read_page(file: BinaryIO, number: int, page_size: int) -> tuple[bytes, int, tuple[int, ...]]:
    """Return the bytes of a page, its flags, and where its nodes begin."""
    if number * page_size < 1 << 62:
        file.seek(number * page_size)
        page = file.read(page_size)
        if len(page) == page_size:
            found, flags, end = _HEADER.unpack_from(page)
            if found == number and _HEADER.size <= end <= page_size and end % 2 == 0:
                places = struct.unpack_from(f"<{(end - _HEADER.size) // 2}H", page, _HEADER.size)
                if all(end <= at <= page_size - _NODE.size for at in places):
                    return page, flags, places
    raise DamagedLmdbError(f"page {number} is damaged or missing")


def _child(page: bytes, at: int) -> int:
    low, middle, high, _ = _NODE.unpack_from(page, at)
    return int(low | middle << 16 | high << 32)


def _value(page: bytes, at: int, number: int, total: int) -> LmdbValue:
    low, high, flags, key_size = _NODE.unpack_from(page, at)
    size, start = low | high << 16, at + _NODE.size + key_size
    key = page[at + _NODE.size : start]
    if flags == _ELSEWHERE and start + 8 <= len(page):
        offset = int.from_bytes(page[start : start + 8], "little") * len(page) + _HEADER.size
        end, last = offset + size, total
    elif flags == 0:
        offset, end, last = number * len(page) + start, start + size, len(page)
    else:
        raise DamagedLmdbError(f"page {number} has another kind of value than bytes")
    if end > last:
        raise DamagedLmdbError(f"the value of {key.decode(errors='replace')!r} reaches beyond the end")
    return LmdbValue(key, offset, size)
