"""Being told to stop: signals are noted, all ranks take the decision together, and the exit code says what it was."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch
from torch import distributed

from wespeaker.train.distributed import Ranks

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # what schedulers and torchrun send before they kill
EXIT_PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: try again later


class Preempted(Exception):
    """The run was told to stop, has written a checkpoint and logged so; the same command goes on from there."""


@contextmanager
def noted_signals() -> Iterator[list[str]]:
    """Collect the names of the signals of `SIGNALS` that arrive meanwhile; off the main thread there are none."""
    noted: list[str] = []
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return

    def note(number: int, frame: FrameType | None) -> None:
        noted.append(signal.Signals(number).name)

    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave_signals_to_parent(worker: int) -> None:
    """Keep a loader process alive for the step that its parent finishes; loaders call it with their number."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


class Agreement:
    """Questions that all ranks answer with yes as soon as one of them does.

    The all-reduce of a few bytes goes over the CPU (gloo), so that no rank waits for its GPU.

    Args:
        ranks: this process among those of the run; all of them make their Agreement at the same time.

    """

    def __init__(self, ranks: Ranks) -> None:
        self._group = _cpu_group() if ranks.world_size > 1 else None

    def any(self, *wishes: bool) -> list[bool]:
        """Return for each wish whether any rank has it; all ranks call it, with as many wishes."""
        if self._group is None:
            return list(wishes)
        asked = torch.tensor(wishes, dtype=torch.uint8)
        distributed.all_reduce(asked, op=distributed.ReduceOp.MAX, group=self._group)
        return [bool(wish) for wish in asked.tolist()]


def _cpu_group() -> distributed.ProcessGroup:
    group = distributed.new_group(backend="gloo")
    assert isinstance(group, distributed.ProcessGroup)  # and not what those get who are no part of it
    return group
