"""The headers of a tar file, read without trust in what they say.

Python's tarfile follows them: a name or an extended header that claims gigabytes is given them, a size below zero
sends it back to where it was, for ever (CVE-2025-8194), and each extended header in a row is a call deeper. Here every
header is checked against the file, and there is no recursion. Formats: POSIX ustar and pax, GNU, and the old V7.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import BinaryIO, Literal, NamedTuple

_BLOCK = 512
_MAX_EXTENSION = 1 << 16  # bytes of a long name or of an extended header; a path has 4096 at most
_EXTENSIONS = {b"L": "path", b"K": "linkpath", b"x": "", b"g": ""}  # GNU's long names, pax' headers
Kind = Literal["file", "folder", "other"]  # other: links, devices, pipes, sparse files
_KINDS: dict[bytes, Kind] = {b"0": "file", b"\0": "file", b"7": "file", b"5": "folder"}


class TarMember(NamedTuple):
    """What a header says of a member."""

    name: str
    kind: Kind
    offset: int  # bytes from the start of the tar file to the contents
    size: int  # bytes of the contents, which lie within the tar file


class DamagedTarError(Exception):
    """The tar file is not whole."""


def read_members(file: BinaryIO) -> Iterator[TarMember]:
    """Yield the members of a tar file in their order; between two, the caller may read elsewhere in the file.

    Args:
        file: opened to read bytes; of any length, of which the headers alone are read.

    Raises:
        DamagedTarError: a header is damaged, contents reach beyond the end of the file, the mark of the end is missing.

    """
    total = os.fstat(file.fileno()).st_size
    if total == 0:
        raise DamagedTarError("empty file")
    position = 0
    extended: dict[str, str] = {}
    while (header := _read_header(file, position)) is not None:
        kind = header[156:157]
        size = _number(header[124:136])
        if kind not in _EXTENSIONS and "size" in extended:
            size = _digits(extended["size"].encode(), 10)
        position += _BLOCK
        if size > total - position:
            raise DamagedTarError("unexpected end of data")
        if kind in _EXTENSIONS:
            extended |= _read_extension(file, position, size, kind)
        else:
            yield _member(header, extended, position, size)
            extended = {}
        position += -(-size // _BLOCK) * _BLOCK


def _read_header(file: BinaryIO, position: int) -> bytes | None:
    """Return the header at a place of the file; None for a block of zeros, the mark of the end."""
    file.seek(position)
    header = file.read(_BLOCK)
    if header == bytes(_BLOCK):
        return None
    blanked = header[:148] + b" " * 8 + header[156:]
    try:
        is_header = len(header) == _BLOCK and _number(header[148:156]) == sum(blanked)
    except DamagedTarError:
        is_header = False
    if not is_header:
        raise DamagedTarError(f"no header and no end mark at byte {position}")
    return header


def _member(header: bytes, extended: dict[str, str], position: int, size: int) -> TarMember:
    name = _text(header[:100])
    if header[257:263] == b"ustar\0" and (prefix := _text(header[345:500])):
        name = f"{prefix}/{name}"
    name = extended.get("path", name)
    kind: Kind = _KINDS.get(header[156:157], "other")
    if any(key.startswith("GNU.sparse.") for key in extended):
        kind = "other"
    elif name.endswith("/") and header[156:157] == b"\0":
        kind = "folder"  # V7 has no other sign of one
    return TarMember(name.rstrip("/") if kind == "folder" else name, kind, position, size)


def _read_extension(file: BinaryIO, position: int, size: int, kind: bytes) -> dict[str, str]:
    """Return what a long name or an extended header says of the member that follows."""
    if size > _MAX_EXTENSION:
        raise DamagedTarError(f"a name or an extended header of {size} bytes at byte {position}")
    file.seek(position)
    data = file.read(size)
    if _EXTENSIONS[kind]:
        return {_EXTENSIONS[kind]: _text(data)}
    records = dict(_pax_records(data, position))
    if kind == b"g" and not {"path", "size"}.isdisjoint(records):
        raise DamagedTarError(f"one name or size for all members at byte {position}")
    return records if kind == b"x" else {}


def _pax_records(data: bytes, position: int) -> Iterator[tuple[str, str]]:
    """Yield the records of an extended header, ``<length> <key>=<value>\\n`` with the length of all of it."""
    start = 0
    while start < len(data):
        digits = data[start : start + 20].partition(b" ")[0]
        end = start + _digits(digits, 10)
        key, equals, value = data[start + len(digits) + 1 : end].partition(b"=")
        if end > len(data) or not equals or value[-1:] != b"\n":
            raise DamagedTarError(f"an extended header that cannot be read at byte {position}")
        yield _text(key), _text(value[:-1])
        start = end


def _number(field: bytes) -> int:
    """Return a number of a header: octal digits, or GNU's binary form of what they cannot hold; never below zero."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    return _digits(field.partition(b"\0")[0].strip(b" ") or b"0", 8)


def _digits(text: bytes, base: int) -> int:
    if not text.isdigit() or len(text) > 20:
        raise DamagedTarError(f"{text[:20]!r} in place of a number")
    try:
        return int(text, base)
    except ValueError as error:
        raise DamagedTarError(f"{text!r} in place of a number") from error


def _text(field: bytes) -> str:
    try:
        return field.partition(b"\0")[0].decode()
    except UnicodeDecodeError as error:
        raise DamagedTarError("a name that is not UTF-8") from error
