"""Watch over processes that work together: one that is lost ends the others within a minute, with its reason.

A collective alone would wait for its timeout, as a machine without power closes no connection, and would not know why.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from wespeaker.errors import InputError, listing

logger = logging.getLogger(__name__)

ARRIVAL_TIMEOUT = timedelta(minutes=5)  # from the first process to the last: importing torch from a slow disk
LOST_SECONDS = 30.0  # without a sign of life
POLL_SECONDS = 1.0
PACKAGE = Path(__file__).resolve().parent

_LEFT, _FAILURE = b"left", "failure"


@contextmanager
def watched(store: dist.Store, *, rank: int, world_size: int) -> Iterator[None]:
    """Wait for all processes, then watch over them until the end of the block.

    Every second each process leaves a sign of life in the store, looks for that of the next one, and looks whether
    any has failed: three requests, however many processes there are. Where one is lost, all others end at once with
    exit code 1 and its name, host and reason in the log.

    Args:
        store: that all processes reach; another connection to it is made.
        rank: of this process.
        world_size: number of processes.

    Raises:
        InputError: some did not come within ``ARRIVAL_TIMEOUT``; what the block raises, after the others were told.

    """
    watch = _Watch(store, rank, world_size)
    try:
        yield
    except BaseException as error:
        watch.fail(error)
        raise
    watch.leave()


def is_exchange(error: BaseException) -> bool:
    """Tell whether an error is of an exchange between processes: a time-out, or a connection that broke."""
    return isinstance(error, dist.DistError | ConnectionError) or (
        isinstance(error, RuntimeError) and "gloo" in str(error)
    )


def place_of_exchange(error: BaseException) -> str:
    """Name the collective that an error came out of, and the function of this package that called it."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if PACKAGE in Path(frame.filename).parents]
    collectives = [frame.name for frame in frames if Path(frame.filename).name == "distributed_c10d.py"]
    caller = f"{ours[-1].name} ({Path(ours[-1].filename).name}:{ours[-1].lineno})" if ours else "another package"
    return f"{next(iter(collectives), frames[-1].name)}, called by {caller}"


class _Watch:
    def __init__(self, store: dist.Store, rank: int, world_size: int) -> None:
        self._store = dist.PrefixStore("watch", store.clone())
        self._rank, self._next = rank, (rank + 1) % world_size
        self._name = f"rank {rank} on {socket.gethostname()}"
        self._launcher = os.getppid()
        self._over = threading.Event()
        self._store.set(f"life{rank}", "0")
        self._store.set(f"name{rank}", self._name)
        self._wait_for_names(world_size)
        self._store.set_timeout(timedelta(seconds=LOST_SECONDS))  # the store's machine may be the one that is lost
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)
        self._thread.start()

    def _wait_for_names(self, world_size: int) -> None:
        try:
            self._store.wait([f"name{rank}" for rank in range(world_size)], ARRIVAL_TIMEOUT)
        except dist.DistStoreError:
            missing = [rank for rank in range(world_size) if not self._store.check([f"name{rank}"])]
            raise InputError(
                f"rank {listing(missing)} of {world_size} processes did not come within {ARRIVAL_TIMEOUT}; "
                f"look at the output of the other nodes"
            ) from None
        self._name_of_next = self._store.get(f"name{self._next}").decode()

    def fail(self, error: BaseException) -> None:
        """Tell the others why this process ends, unless one of them is the cause: then end with that."""
        if is_exchange(error):
            self._thread.join(LOST_SECONDS + 2 * POLL_SECONDS)  # a broken connection has no reason; the watch finds it
        self._stop()
        with suppress(dist.DistError):
            self._tell(f"{self._name} failed: {error if isinstance(error, InputError) else repr(error)}")
        time.sleep(2 * POLL_SECONDS)  # the store may end with this process, and the others shall have read it

    def leave(self) -> None:
        """Stop watching, and tell so."""
        self._stop()
        with suppress(dist.DistError):
            self._store.set(f"life{self._rank}", _LEFT.decode())

    def _stop(self) -> None:
        self._over.set()
        self._thread.join(LOST_SECONDS)  # of the request under way; a thread inside torch would crash Python's end

    def _watch(self) -> None:
        life, seen, seen_at = 0, b"", time.monotonic()
        while not self._over.wait(POLL_SECONDS):
            reason = None
            if os.getppid() != self._launcher:
                reason = f"{self._name} lost torchrun, which started it and was killed"
            try:
                sign = self._store.get(f"life{self._next}")  # first, as it is the request with a timeout
                life += 1
                self._store.set(f"life{self._rank}", str(life))
                if sign != seen:
                    seen, seen_at = sign, time.monotonic()
                elif sign != _LEFT and time.monotonic() - seen_at > LOST_SECONDS:
                    reason = f"{self._name_of_next} gave no sign of life for {LOST_SECONDS:.0f} s"
                if reason is not None:
                    self._tell(reason)
                if self._store.check([_FAILURE]):
                    reason = self._store.get(_FAILURE).decode()
            except dist.DistError:
                if self._over.wait(POLL_SECONDS):  # at the end of a run the store may leave first
                    return
                place = ":".join(os.environ.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT"))
                reason = reason or f"the node that holds the run together ({place}) is gone"
            if reason is not None and not self._over.is_set():
                logger.error("%s; this process (%s) ends too", reason, self._name)
                os._exit(1)  # the main thread may be waiting for one that is lost

    def _tell(self, reason: str) -> None:
        self._store.compare_set(_FAILURE, "", reason)  # the first reason stays
