"""Damaged and lying files for any reader: what it takes to attack one is a valid file and the call that reads it."""

from __future__ import annotations

import os
import re
import resource
import signal
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wespeaker.errors import InputError

SECONDS = 20  # for one reading of a file of a few kilobytes, on a machine that is busy
MEMORY = 1 << 30  # bytes of address space that one reading may add

NUMBERS = (0, 1, -1, 127, 255, 256, 32767, 65535, 2**24, 2**31 - 1, -(2**31), 2**32 - 1, 2**40, 2**63 - 1, -(2**63))
WORDS = [
    *(str(number).encode() for number in (*NUMBERS, 10**30, "nan", "-inf", "1e999", "1_0", "0x10", "1.5", "true")),
    *(b"", b"\0", b"\n", b"\r", b"\t", b" ", b"\xff", b"\xc3", b"\xe2\x80\xa8", b"\\ud800", b"../", b"/dev/zero", b"-"),
    *(b" |", b"| true", b"{", b"[", b'"', b"[" * 3000, b"{a: " * 1500, b"&a [*a]", b"<<: 1", b"!!bool x", b"!!int ''"),
    *(b"2024-99-99", b"0x" + b"f" * 9000, b"7" * 5000, b"null", b"target", b"a" * 5000, b"!!python/object:os.system x"),
]


@dataclass(frozen=True)
class Family:
    """A kind of file and its reader."""

    name: str
    file: str  # the file that is damaged, in a folder
    build: Callable[[Path], object]  # writes it, valid, with all that is read beside it
    read: Callable[[Path], object]  # reads the folder
    repair: Callable[[bytes], bytes] = bytes  # makes checksums right, so that what is behind them is reached


Change = tuple[int, int, int]
changes = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 2**32 - 1), st.integers(0, 2**16 - 1)), max_size=5)
inputs = st.tuples(changes, st.booleans(), st.one_of(st.none(), st.none(), st.none(), st.binary(max_size=600)))


def damaged(data: bytes, of: Sequence[Change]) -> bytes:
    """Apply changes, each of a kind, a place and a value, one after the other."""
    for kind, place, value in of:
        at = place % (len(data) + 1)
        end = min(at + value % 64, len(data))
        word = WORDS[value % len(WORDS)]
        number = NUMBERS[value % len(NUMBERS)]
        if kind == 0 and at < len(data):  # one bit
            data = data[:at] + bytes([data[at] ^ 1 << value % 8]) + data[at + 1 :]
        elif kind == 1:  # cut off
            data = data[:at]
        elif kind == 2:  # a span is lost
            data = data[:at] + data[end:]
        elif kind == 3:  # a span comes twice, or elsewhere
            start = value % (len(data) + 1)
            data = data[:at] + data[start : start + 600] + data[at:]
        elif kind == 4:  # other bytes are put in
            data = data[:at] + value.to_bytes(2, "big") * (value % 5) + data[at:]
        elif kind == 5:  # a word that means something is put in
            data = data[:at] + word + data[at:]
        elif kind in (6, 7):  # a number, or any word, in the text is another one
            found = list(re.finditer(rb"-?\d[\d.e+-]*" if kind == 6 else rb"[^\s,:{}\[\]\"]+", data[:20_000]))
            if found:
                span = found[place % len(found)]
                data = data[: span.start()] + word + data[span.end() :]
        elif kind in (8, 9):  # a binary number is another one, of either byte order
            width = (1, 2, 4, 8)[place % 4]
            lie = struct.pack("<q" if kind == 8 else ">q", number)
            data = data[:at] + (lie[:width] if kind == 8 else lie[-width:]) + data[at + width :]
    return data


class Hang(BaseException):
    """A reading took too long; no reader catches it."""


@contextmanager
def limits() -> Iterator[None]:
    """Bound the time and the address space of what runs inside."""

    def stop(*_: object) -> None:
        raise Hang

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * os.sysconf("SC_PAGE_SIZE") + MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)


def attack(family: Family, folder: Path, *, examples: int) -> tuple[int, int]:
    """Read so many damaged files; anything but an InputError is raised with the damage that led to it.

    Returns:
        How many were read, and how many of them were refused.

    """
    family.build(folder)
    path = folder / family.file
    valid = path.read_bytes()
    family.read(folder)
    count = refused = 0

    @settings(max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=HealthCheck)
    @given(inputs)
    def one(drawn: tuple[Sequence[Change], bool, bytes | None]) -> None:
        nonlocal count, refused
        of, repaired, instead = drawn
        data = damaged(valid if instead is None else instead, of)
        path.write_bytes(family.repair(data) if repaired else data)
        count += 1
        with limits():
            try:
                family.read(folder)
            except InputError:
                refused += 1

    one()
    return count, refused
