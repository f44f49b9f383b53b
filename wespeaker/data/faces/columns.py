"""Text files of numbers in columns: millions of lines a second, and the line in each error."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wespeaker.errors import InputError

Number = type[np.int32 | np.int64 | np.float32]
_LIMITS: dict[type, float] = {np.int32: 2**31, np.int64: 2**63, np.float32: 2.0**128}


def read_numbers(path: Path, what: str, *, columns: Sequence[str], dtype: Number) -> NDArray:
    """Read lines of numbers with blanks or tabs between; blank lines are passed over.

    Args:
        path: the file.
        what: what it is, for the error, such as ``the pairs of templates``.
        columns: what each column is called.
        dtype: of the numbers; floats must be finite.

    Returns:
        (lines, columns).

    Raises:
        InputError: the file is missing or empty; with ``file:line``, for a line of other columns or something that is
            no such number.

    """
    next(_lines(path, what, columns))  # there is one
    return _load(path, path, what, columns, dtype, first=0)


def read_named_numbers(path: Path, what: str, *, columns: Sequence[str], dtype: Number) -> tuple[list[str], NDArray]:
    """Read lines of a name without blanks and numbers after it.

    Args:
        path: the file.
        what: what it is, for the error.
        columns: what each column is called, first that of the names.
        dtype: of the numbers; floats must be finite.

    Returns:
        The names, and the numbers, (lines, columns - 1).

    Raises:
        InputError: as `read_numbers` does, and for a name that comes twice.

    """
    numbers: dict[str, str] = {}
    for where, line in _lines(path, what, columns):
        fields = line.split(None, 1)
        if len(fields) != 2:
            raise _unlike(where, line, columns)
        if fields[0] in numbers:
            raise InputError(f"{where}: {fields[0]} is in {what} twice; remove one of the lines")
        numbers[fields[0]] = fields[1]
    return list(numbers), _load(list(numbers.values()), path, what, columns, dtype, first=1)


def _load(
    source: Path | list[str], path: Path, what: str, columns: Sequence[str], dtype: Number, *, first: int
) -> NDArray:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", DeprecationWarning)  # numpy 1 takes 1.5 for an integer
            numbers: NDArray = np.loadtxt(source, dtype, comments=None, ndmin=2)
    except (ValueError, DeprecationWarning) as error:  # names the row, not counting blank lines
        reason = str(error)
    else:
        if numbers.shape[1] == len(columns) - first and np.isfinite(numbers).all():
            return numbers
        reason = "other numbers are expected"
    raise _complaint(path, what, columns, dtype, first) or InputError(f"{path} ({what}): {reason}")


def _complaint(path: Path, what: str, columns: Sequence[str], dtype: Number, first: int) -> InputError | None:
    """Find the first line that is wrong."""
    for where, line in _lines(path, what, columns):
        fields = line.split()
        if len(fields) != len(columns):
            return _unlike(where, line, columns)
        for name, text in zip(columns[first:], fields[first:], strict=True):
            if not _fits(text, dtype):
                kind = "a finite number" if dtype is np.float32 else f"a whole number that fits {dtype.__name__}"
                return InputError(f"{where}: {name} must be {kind}, found {text[:80]!r}")
    return None


def _fits(text: str, dtype: Number) -> bool:
    """Tell whether numpy reads a text as a number of this type."""
    try:
        value = float(text) if dtype is np.float32 else int(text)
    except ValueError:
        return False
    return text.isascii() and "_" not in text and -_LIMITS[dtype] < value < _LIMITS[dtype]


def _unlike(where: str, line: str, columns: Sequence[str]) -> InputError:
    return InputError(f"{where}: expected '{' '.join(columns)}', found {line[:80]!r}")


def _lines(path: Path, what: str, columns: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield (``file:line``, line) of those that are not blank; there must be one."""
    if not path.is_file():
        raise InputError(f"{path} ({what}) does not exist; expected lines of '{' '.join(columns)}'")
    found = False
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if text := line.strip():
                found = True
                yield f"{path}:{number}", text
    if not found:
        raise InputError(f"{path} ({what}) is empty; expected lines of '{' '.join(columns)}'")
