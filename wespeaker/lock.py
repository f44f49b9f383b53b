"""One writer for a folder: a second process that means to write there is told who does, and since when."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import shlex
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import BinaryIO

from wespeaker.documents import parse_json
from wespeaker.errors import InputError

logger = logging.getLogger(__name__)

NAME = ".lock"
_HELD = (errno.EACCES, errno.EAGAIN)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder, which is made if it is not there, until the end of the block or of this process.

    The lock is of the kernel (POSIX record locks, also over NFS) on ``.lock``, which says who holds it: one that died
    holds nothing, whatever the file says. Unlike flock's it is not inherited by forked processes, so that loaders
    that outlive their parent by seconds do not keep a run from going on. Where a file system has no locks, a warning
    says so.

    Raises:
        InputError: another process holds it.
        OSError: the file cannot be made.

    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / NAME, "a+b", buffering=0) as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _HELD:
                raise InputError(
                    f"{folder} is being written by {_holder(file)}; wait for its end, or give another folder"
                ) from None
            logger.warning("%s cannot be locked (%s); see to it that nothing else writes to it", folder, error)
        file.truncate(0)
        file.write(json.dumps(_myself()).encode())
        yield


def _myself() -> dict[str, object]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv),
    }


def _holder(file: BinaryIO) -> str:
    """Describe who holds a lock by what it wrote."""
    file.seek(0)
    text = file.read(1 << 16).decode(errors="replace")
    try:
        who = parse_json(text, file.name)
        return f"process {who['pid']} on {who['host']} since {who['since']} ({who['command']})"
    except (InputError, LookupError, TypeError):
        return "another process"  # which has not written who it is yet
