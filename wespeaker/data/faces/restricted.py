"""Pickles of plain data, read by a machine that can build lists and arrays and can do nothing else.

Python's unpickler imports and calls what the file names, and a filter of names still leaves it to allocate what the
file claims: twelve bytes (``LONG_BINPUT``, ``BYTEARRAY8``) cost gigabytes. Here the opcodes of `pickle` are read by a
loop that knows those of tuples, lists, bytes, text, whole numbers, booleans and None. The names below stand for
functions of this module that check what they are given; any other opcode or name is refused. Bytes are views of the
file, so memory is that of the objects around them.
"""

from __future__ import annotations

import math
import pickle
import pickletools
import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from wespeaker.errors import InputError

MAX_OPCODES = 4_000_000  # a pair of pictures takes ten; the objects of so many take a gigabyte at most
_MAX_DIGITS = 21  # of a whole number in text, with its sign and Python 2's L; binary ones have 8 bytes
_DTYPE, _NEWLINE = re.compile(r"b1|[iu][1248]"), re.compile(rb"\n")

_CONSTANTS = {pickle.NONE: None, pickle.NEWTRUE: True, pickle.NEWFALSE: False, pickle.EMPTY_TUPLE: ()}
_INTEGERS = {pickle.BININT: "<i", pickle.BININT1: "<B", pickle.BININT2: "<H"}
_LONGS = {pickle.LONG1: "<B", pickle.LONG4: "<i"}
_BYTES = {
    **{pickle.SHORT_BINSTRING: "<B", pickle.BINSTRING: "<i", pickle.SHORT_BINBYTES: "<B", pickle.BINBYTES: "<I"},
    **{pickle.BINBYTES8: "<Q", pickle.BYTEARRAY8: "<Q"},
}
_TEXTS = {pickle.SHORT_BINUNICODE: "<B", pickle.BINUNICODE: "<I", pickle.BINUNICODE8: "<Q"}
_PUTS = {pickle.BINPUT: "<B", pickle.LONG_BINPUT: "<I"}
_GETS = {pickle.BINGET: "<B", pickle.LONG_BINGET: "<I"}
_TUPLES = {pickle.TUPLE1: 1, pickle.TUPLE2: 2, pickle.TUPLE3: 3}


class _Refused(Exception):
    """What the file asks for, in words."""


@dataclass
class _Unbuilt:
    """What awaits its BUILD, and under which number it is remembered."""

    build: Callable[[Sequence[Any]], object]
    key: int | None = None


def load_restricted(data: bytes | memoryview, where: str) -> object:
    """Return what a pickle of any protocol holds, of Python 2 too, whose ``str`` is bytes.

    Args:
        data: the whole file.
        where: its name, for the error.

    Returns:
        Lists, tuples, bytes (as ``memoryview`` or ``bytes``), ``str``, ``int``, ``bool``, None, and numpy arrays and
        scalars (as arrays, ``int``, ``bool``) of booleans and integers. Arrays are read-only.

    Raises:
        InputError: the file asks for something else, with the name of it and the byte; it is damaged or cut; it has
            more than four million opcodes.

    """
    machine = _Machine(memoryview(data).toreadonly())
    try:
        return machine.run()
    except _Refused as refused:
        reason = f"asks for {refused}; only plain lists, bytes, numbers and their arrays are read, nothing was run"
    except (IndexError, KeyError, TypeError, ValueError, OverflowError, struct.error) as error:
        reason = f"is no whole pickle ({type(error).__name__}: {error}); copy it or make it again"
    raise InputError(f"{where}: byte {machine.opcode_at} {reason}")


class _Machine:
    """A stack, marks in it, and a memo, as in `pickletools`."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._at = 0
        self.opcode_at = 0
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._encoded = 0  # bytes that were made of text

    def run(self) -> object:
        for _ in range(MAX_OPCODES):
            self.opcode_at = self._at
            opcode = bytes(self._take(1))
            if opcode == pickle.STOP:
                (result,) = self._stack
                return result
            self._step(opcode)
        raise _Refused(f"more than {MAX_OPCODES} steps")

    def _step(self, opcode: bytes) -> None:
        push = self._stack.append
        if opcode in _CONSTANTS:
            push(_CONSTANTS[opcode])
        elif opcode in _INTEGERS:
            push(self._number(_INTEGERS[opcode]))
        elif opcode in _BYTES:
            push(self._take(self._number(_BYTES[opcode])))
        elif opcode in _TEXTS:
            push(str(self._take(self._number(_TEXTS[opcode])), "utf-8", "surrogatepass"))
        elif opcode in _LONGS:
            push(int.from_bytes(self._take(self._number(_LONGS[opcode]), most=8), "little", signed=True))
        elif opcode in _PUTS:
            self._remember(self._number(_PUTS[opcode]))
        elif opcode in _GETS:
            push(self._memo[self._number(_GETS[opcode])])
        elif opcode in _TUPLES:
            push(tuple(self._pop(_TUPLES[opcode])))
        else:
            self._step_of_its_own(opcode)

    def _step_of_its_own(self, opcode: bytes) -> None:
        push = self._stack.append
        match opcode:
            case pickle.MEMOIZE:
                self._remember(len(self._memo))
            case pickle.PROTO:
                self._take(1)
            case pickle.FRAME:
                self._take(8)
            case pickle.MARK:
                self._marks.append(len(self._stack))
            case pickle.EMPTY_LIST:
                push([])
            case pickle.LIST:
                push(self._since_mark())
            case pickle.TUPLE:
                push(tuple(self._since_mark()))
            case pickle.APPEND:
                (item,) = self._pop(1)
                self._top(list).append(item)
            case pickle.APPENDS:
                items = self._since_mark()
                self._top(list).extend(items)
            case pickle.PUT:
                self._remember(self._integer())
            case pickle.GET:
                push(self._memo[self._integer()])
            case pickle.INT | pickle.LONG:
                push(self._integer())
            case pickle.STRING:
                push(_unescape(self._line()))
            case pickle.UNICODE:
                push(str(self._line(), "raw-unicode-escape"))
            case pickle.GLOBAL:
                push(_allowed(str(self._line(), "utf-8"), str(self._line(), "utf-8")))
            case pickle.STACK_GLOBAL:
                push(_allowed(*self._pop(2)))
            case pickle.REDUCE:
                make, arguments = self._pop(2)
                push(self._made(make, arguments))
            case pickle.BUILD:
                (state,) = self._pop(1)
                unbuilt = self._top(_Unbuilt)
                self._stack[-1] = unbuilt.build(state)
                if unbuilt.key is not None:
                    self._memo[unbuilt.key] = self._stack[-1]
            case _:
                _refuse_opcode(opcode)

    def _take(self, count: int, *, most: int | None = None) -> memoryview:
        """Return the next bytes as they lie in the file."""
        taken = self._data[self._at : self._at + count]
        if count < 0 or len(taken) < count:
            raise ValueError(f"{count} bytes are wanted, {len(taken)} are left")
        if most is not None and count > most:
            raise _Refused(f"a whole number of {count} bytes")
        self._at += count
        return taken

    def _number(self, form: str) -> int:
        return int(struct.unpack(form, self._take(struct.calcsize(form)))[0])

    def _line(self) -> bytes:
        """Return the text up to the end of the line."""
        end = _NEWLINE.search(self._data, self._at)
        if end is None:
            raise ValueError("a line does not end")
        line = bytes(self._data[self._at : end.start()])
        self._at = end.end()
        return line

    def _integer(self) -> int:
        line = self._line()
        if line in (b"00", b"01"):
            return line == b"01"  # protocol 0's booleans
        if len(line) > _MAX_DIGITS:
            raise _Refused(f"a whole number of {len(line)} digits")
        return int(line.rstrip(b"L"))

    def _pop(self, count: int) -> list[Any]:
        if len(self._stack) - count < (self._marks[-1] if self._marks else 0):
            raise IndexError("the stack is empty")
        items = self._stack[-count:]
        del self._stack[-count:]
        return items

    def _since_mark(self) -> list[Any]:
        mark = self._marks.pop()
        items = self._stack[mark:]
        del self._stack[mark:]
        return items

    def _top(self, kind: type[Any]) -> Any:
        if type(self._stack[-1]) is not kind:
            raise TypeError(f"{kind.__name__} expected, found {type(self._stack[-1]).__name__}")
        return self._stack[-1]

    def _remember(self, key: int) -> None:
        self._memo[key] = self._stack[-1]
        if isinstance(self._stack[-1], _Unbuilt):
            self._stack[-1].key = key

    def _made(self, make: object, arguments: object) -> object:
        """Call one of the functions below with a tuple of arguments."""
        if not isinstance(make, partial) or type(arguments) is not tuple:
            raise TypeError("a call of something that is no function")
        value = make(*arguments)
        if isinstance(value, bytes):
            self._encoded += len(value)
            if self._encoded > len(self._data):  # text that is remembered could be encoded again and again
                raise _Refused("more bytes than the file has")
        return value


def _refuse_opcode(opcode: bytes) -> NoReturn:
    known = next((known.name for known in pickletools.opcodes if known.code == opcode.decode("latin-1")), None)
    if known is None:
        raise ValueError(f"unknown opcode {opcode!r}")
    raise _Refused(f"the opcode {known}")


def _shown(value: object) -> str:
    """Return a text of the file in one short line, of anything else what it is."""
    return repr(value[:60])[1:-1] if isinstance(value, str) else f"<{type(value).__name__}>"


def _unescape(quoted: bytes) -> bytes:
    r"""Return the bytes of a Python 2 string literal.

    >>> _unescape(rb"'\xff\\n\''")
    b"\xff\\n'"
    """
    if len(quoted) < 2 or quoted[:1] not in (b"'", b'"') or quoted[-1:] != quoted[:1]:
        raise ValueError("a string without quotes")
    escapes = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"\\": b"\\", b"'": b"'", b'"': b'"'}

    def plain(found: re.Match[bytes]) -> bytes:
        return bytes.fromhex(found[1][1:].decode()) if found[1][:1] == b"x" else escapes[found[1]]

    return re.sub(rb"\\(x[0-9a-fA-F]{2}|.)", plain, quoted[1:-1], flags=re.DOTALL)


def _encode(text: object, encoding: object) -> bytes:
    """Stand for ``_codecs.encode``: bytes in protocols 0 to 2 of Python 3."""
    if not isinstance(text, str) or encoding != "latin1":
        raise _Refused(f"the encoding {_shown(encoding)} of {_shown(text)}")
    return text.encode("latin-1")


def _no_bytes() -> bytes:
    return b""


def _scalar(dtype: np.dtype[Any], data: memoryview) -> object:
    (value,) = _array(data, dtype, (1,)).tolist()
    return value


def _dtype(code: object, _align: object, _copy: object) -> _Unbuilt:
    name = str(code, "ascii") if isinstance(code, bytes | memoryview) else code
    if not isinstance(name, str) or not _DTYPE.fullmatch(name):
        raise _Refused(f"an array of numpy's type {_shown(name)}")
    return _Unbuilt(partial(_build_dtype, name))


def _build_dtype(name: str, state: Sequence[Any]) -> np.dtype[Any]:
    order = str(state[1], "ascii") if isinstance(state[1], bytes | memoryview) else state[1]
    if order not in ("<", ">", "|", "="):
        raise ValueError(f"the byte order {_shown(order)}")
    return np.dtype(order + name)


def _ndarray() -> NoReturn:
    raise _Refused("an array without data")


def _reconstruct(kind: object, _shape: object, _code: object) -> _Unbuilt:
    if kind is not _ALLOWED["numpy", "ndarray"]:
        raise TypeError("an array of another class")
    return _Unbuilt(_build_array)


def _build_array(state: Sequence[Any]) -> NDArray[Any]:
    _, shape, dtype, is_fortran, data = state
    return _array(data, dtype, shape, "F" if is_fortran else "C")


def _array(data: bytes | memoryview, dtype: np.dtype[Any], shape: Sequence[int], order: Any = "C") -> NDArray[Any]:
    """View bytes as an array of at most three dimensions."""
    if not isinstance(dtype, np.dtype) or not isinstance(data, bytes | memoryview) or len(shape) > 3:
        raise TypeError("an array of something else than bytes")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError(f"an array of shape {tuple(shape)} in {len(data)} bytes")
    return np.frombuffer(data, dtype).reshape(tuple(shape), order=order)


_ALLOWED: dict[tuple[str, str], partial[Any]] = {
    ("_codecs", "encode"): partial(_encode),
    ("__builtin__", "bytes"): partial(_no_bytes),
    ("numpy", "dtype"): partial(_dtype),
    ("numpy", "ndarray"): partial(_ndarray),
    **{
        (f"numpy.{core}.{module}", name): partial(function)
        for core in ("core", "_core")  # numpy 1 and 2
        for module, name, function in (
            ("multiarray", "_reconstruct", _reconstruct),
            ("multiarray", "scalar", _scalar),
            ("numeric", "_frombuffer", _array),
        )
    },
}


def _allowed(module: object, name: object) -> partial[Any]:
    if not isinstance(module, str) or not isinstance(name, str) or (module, name) not in _ALLOWED:
        raise _Refused(f"{_shown(module)}.{_shown(name)}")
    return _ALLOWED[module, name]
