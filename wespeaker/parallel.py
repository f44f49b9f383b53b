"""Work spread over processes, in order and in bounded memory."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from wespeaker.errors import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_processes(function: Callable[[Item], Result], items: Iterable[Item], *, num_jobs: int) -> Iterator[Result]:
    """Yield ``function(item)`` in the order of the items, of which twice ``num_jobs`` are under way at most.

    Args:
        function: of the top level of a module, so that a process can import it.
        items: taken one by one.
        num_jobs: processes; with 1 the work is done in this one.

    Raises:
        InputError: a process was killed; what ``function`` raises is raised here.

    """
    if num_jobs <= 1:
        yield from map(function, items)
        return
    # Not fork: this process may have threads. A fork server imports the module once, spawn in every process.
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload([getattr(function, "func", function).__module__])
    pending: deque[Future[Result]] = deque()
    pool = ProcessPoolExecutor(num_jobs, mp_context=context, initializer=_end_with_parent)
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) >= 2 * num_jobs:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool as error:
        raise InputError(
            "one of the processes was killed, perhaps for want of memory; try fewer with --nj, "
            "the same command goes on from here"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Leave Ctrl-C to the parent, and end when it has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
