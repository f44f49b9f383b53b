"""One fresh process for each job: what is left over from one job cannot reach the next."""

from __future__ import annotations

import logging
import multiprocessing as mp
import signal
import sys
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from wespeaker.errors import InputError
from wespeaker.progress import progress

logger = logging.getLogger(__name__)

# Imported once by the server that the processes are forked from: importing them takes longer than most jobs.
SLOW_IMPORTS = ["numpy", "scipy.signal", "soundfile", "tqdm"]
MAX_REPORT_CHARS = 8000  # fits a pipe's buffer, so that a failing process never waits for its reader


def run_each(
    function: Callable[[Any], None], jobs: Sequence[tuple[str, Any]], *, num_jobs: int, description: str
) -> None:
    """Call ``function`` once for each job, in a new process each time.

    Unlike those of a pool, a process that is killed is noticed and named.

    Args:
        function: a module's function, so that another process can import it.
        jobs: pairs of a name, for errors, and the function's argument.
        num_jobs: processes at the same time, at least 1.
        description: what is made, for the progress bar and the log.

    Raises:
        InputError: a process met one, or an OSError such as a full disk; the message names the job.
        RuntimeError: a process failed otherwise or was killed; the message names the job and has its traceback.
    """
    # Forking from here is unsafe with threads and spawning starts Python anew for each job; a fork server is a
    # process without threads to fork from.
    method = "forkserver" if "forkserver" in mp.get_all_start_methods() else "spawn"
    context = mp.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(SLOW_IMPORTS)
    waiting = deque(jobs)
    running: dict[Any, tuple[str, mp.process.BaseProcess, Connection]] = {}  # by sentinel
    is_terminal = sys.stderr.isatty()
    if not is_terminal:
        logger.info("%s: %d to do with %d processes", description, len(jobs), num_jobs)
    try:
        with progress(range(len(jobs)), desc=description) as bar:
            while waiting or running:
                while waiting and len(running) < num_jobs:
                    name, argument = waiting.popleft()
                    process, reports = _start(context, function, argument)
                    running[process.sentinel] = (name, process, reports)
                for sentinel in wait(list(running)):
                    _finish(*running.pop(sentinel))
                    bar.update()
    finally:
        for _, process, reports in running.values():
            process.terminate()
            process.join()
            process.close()
            reports.close()
    if not is_terminal:
        logger.info("%s: done", description)


def _start(context: Any, function: Callable[[Any], None], argument: Any) -> tuple[Any, Connection]:
    """Start a process; return it and the connection on which it reports a failure."""
    reports, child_end = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(function, argument, child_end), daemon=True)
    process.start()
    child_end.close()
    return process, reports


def _work(function: Callable[[Any], None], argument: Any, reports: Connection) -> None:
    """Call the function in the new process; report its failure as (kind, message) and exit with 1."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C the parent ends its processes
    try:
        function(argument)
    except (InputError, OSError) as error:
        reports.send(("input", str(error)[:MAX_REPORT_CHARS]))
        raise SystemExit(1) from None
    except Exception:
        reports.send(("bug", traceback.format_exc()[-MAX_REPORT_CHARS:]))
        raise SystemExit(1) from None


def _finish(name: str, process: mp.process.BaseProcess, reports: Connection) -> None:
    """Free an ended process; raise its failure."""
    process.join()
    exit_code = process.exitcode
    process.close()
    with reports:
        kind, message = reports.recv() if exit_code == 1 and reports.poll() else ("killed", "it left no message")
    if exit_code == 0:
        return
    if kind == "input":
        raise InputError(f"making {name} failed: {message}")
    raise RuntimeError(f"making {name} failed: its process ended with exit code {exit_code}; {message}")
