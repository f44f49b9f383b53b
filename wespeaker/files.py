"""Files that appear whole or not at all, and plain files where a list may name anything."""

from __future__ import annotations

import errno
import fnmatch
import glob
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from wespeaker.errors import InputError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of an OSError: a full disk, a quota, a file that is too large
_NO_LOCK = (OSError, ImportError)  # it is another's, the file is gone, or there are no locks: on this disk, on Windows


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give the name of a temporary file beside ``path``; on success it is on disk and becomes ``path``.

    The folder is made if it is not there. On an error the temporary file is removed and ``path`` stays as it was; what
    a killed process left of the same file is removed. The error of a full disk names ``path``.
    The temporary name keeps the suffix, since some writers choose their format by it, and is random, since processes of
    several machines may have the same number.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(target.parent, f".{glob.escape(target.stem)}.*.partial{target.suffix}")
    temporary = target.with_name(f".{target.stem}.{secrets.token_hex(4)}.partial{target.suffix}")
    try:
        with open(temporary, "xb") as mark:
            with suppress(*_NO_LOCK):
                _lock(mark)
            yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError as error:
        if error.errno in NO_ROOM and error.filename in (None, os.fspath(temporary)):
            error.filename = os.fspath(target)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def remove_abandoned(folder: Path, pattern: str) -> None:
    """Remove temporary files of `replacing` whose process has ended; one that is being written has a lock.

    Args:
        folder: where they lie.
        pattern: of their names, as of ``fnmatch``.

    """
    for name in fnmatch.filter(os.listdir(folder), pattern):
        with suppress(*_NO_LOCK), open(folder / name, "r+b") as file:  # NFS locks what may be written
            _lock(file, wait=False)
            os.unlink(folder / name)


def _lock(file: BinaryIO, *, wait: bool = True) -> None:
    """Lock a file until it is closed, here and in processes forked meanwhile."""
    import fcntl  # Unix

    fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)


def write_lines(path: str | os.PathLike[str], lines: Iterable[str]) -> int:
    """Write lines of text; return how many there were."""
    count = 0
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
        for line in lines:
            file.write(line + "\n")
            count += 1
    return count


def find_listed(path: str, listed_in: str | os.PathLike[str]) -> str:
    """Return where a file lies that a list names.

    WeSpeaker's lists have paths relative to the folder where its recipe ran, which is one above that of the list.

    Args:
        path: as it stands in the list; an absolute one is returned as it is.
        listed_in: the list.

    Returns:
        The path itself if there is such a file in the current folder, else the one in the folder of the list, else that
        in the next folder above it; the path itself if there is none.

    """
    if not (os.path.isabs(path) or os.path.isfile(path)):  # Path.is_file raises for a name that is too long
        for folder in Path(listed_in).absolute().parents:
            if os.path.isfile(found := os.path.join(folder, path)):
                return found
    return path


def open_plain(path: str | os.PathLike[str], *, buffering: int = -1) -> BinaryIO:
    """Open a file that a list, a manifest or an index names, to read its bytes.

    Only a plain file: to open or to read a named pipe may wait forever, and a device may have no end.

    Args:
        path: the file; ``-`` is a file of that name.
        buffering: as of ``open``, 0 or the default.

    Raises:
        InputError: it is a pipe, a device or a socket, or no path at all (it holds NUL).
        OSError: it is a folder, does not exist, or may not be read.

    """
    try:
        file = open(path, "rb", buffering, opener=_without_waiting)  # noqa: SIM115 (the caller closes it)
    except ValueError as error:
        raise InputError(f"{os.fspath(path)!r} is no path of a file ({error}); correct what names it") from error
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise InputError(f"{path} is not a plain file but a pipe, a device or a socket; name a file")
    return file


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # Windows has no pipes among its files
