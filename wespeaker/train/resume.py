"""What a run needs to go on: written by all ranks, found whole or not at all, dealt out anew to any number of ranks.

A folder ``step_<N>`` holds

- ``rank_<r>.pt``: what rank r alone has, the rows of its classes and their optimiser state, its random state and sums;
- ``run.pt``: what all ranks have, the backbone and its optimiser state, the step, and facts about the run;
- ``files.json``: size in bytes and SHA-256 of both kinds.

All ranks must see the folder, so on several machines it lies on a shared disk.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from itertools import count, takewhile
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import torch

from wespeaker.errors import InputError, listing
from wespeaker.files import write_lines
from wespeaker.ranks import Ranks, gathered
from wespeaker.train.checkpoint import load, write
from wespeaker.train.task import Facts

logger = logging.getLogger(__name__)

T = TypeVar("T")
State = dict[str, Any]

CHECKPOINTS = "checkpoint"  # their folder, among a run's models
RUN, FILES = "run.pt", "files.json"
KEPT = 2  # checkpoints; the one before the last is for a disk that damages the last one
CHUNK_BYTES = 1 << 24


class Checkpoints:
    """The checkpoints of a run.

    Args:
        folder: where they lie.
        ranks: this process among those of the run.

    """

    def __init__(self, folder: Path, ranks: Ranks) -> None:
        self.folder, self.ranks = folder, ranks

    def save(self, step: int, own: State, run: State, *, before: Callable[[Path], None] | None = None) -> None:
        """Write the checkpoint of a step; all ranks call it.

        It has its name only when every file is on disk; older ones are removed only when it was read back and found
        the same.

        Args:
            step: steps taken so far.
            own: for ``rank_<r>.pt``, see `read_rows`: ``classes``, ``rows``, and anything else.
            run: for ``run.pt``; the first rank's is written.
            before: called by the first rank with the unfinished folder, when all ranks' files are there.

        Raises:
            OSError: a file cannot be written or comes back different, on any rank; raised on all. The checkpoints
                that were there still are.

        """
        unfinished, folder = self.folder / f".step_{step}.partial", self.folder / f"step_{step}"

        def start() -> None:
            self._remove_unfinished()
            unfinished.mkdir(parents=True)

        self._by_first(start)
        name = f"rank_{self.ranks.rank}.pt"
        written = self._together(lambda: {name: _write(unfinished / name, own)})

        def finish() -> None:
            if before is not None:
                before(unfinished)
            files = {name: facts for part in written for name, facts in part.items()}
            files[RUN] = _write(unfinished / RUN, run)
            write_lines(unfinished / FILES, json.dumps(files, indent=2).splitlines())
            _sync(unfinished)
            shutil.rmtree(folder, ignore_errors=True)  # of a run that came so far, was damaged, and was taken back
            os.replace(unfinished, folder)
            _sync(self.folder)

        self._by_first(finish)
        damages = self._damages(folder)
        if damages:
            raise OSError(f"{folder} was written but does not read back: {listing(damages, 3)}; check the disk")
        self._remove_others(step)

    def newest(self) -> Path | None:
        """Return the last checkpoint whose files are what was written, None where there is none; all ranks call it.

        What a killed process has not removed is removed.

        Raises:
            InputError: there are checkpoints, and all are damaged.

        """
        passed_over: list[str] = []
        for step in reversed(gathered(saved_steps(self.folder), self.ranks)[0]):
            folder = self.folder / f"step_{step}"
            damages = self._damages(folder)
            if not damages:
                if not passed_over:
                    self._remove_others(step)
                elif self.ranks.first:
                    logger.warning("%s: going on from %s instead", "; ".join(passed_over), folder)
                return folder
            passed_over.append(f"{folder} is damaged ({listing(damages, 3)})")
        if passed_over:
            raise InputError(f"{'; '.join(passed_over)}; there is no other to go on from: give another --exp_dir")
        return None

    def _remove_others(self, step: int) -> None:
        """Leave the checkpoint of a step, which is good, and those before it that are kept."""
        if self.ranks.first:
            self._remove_unfinished()
            older = [other for other in saved_steps(self.folder) if other < step]
            for other in set(saved_steps(self.folder)) - {step, *older[-(KEPT - 1) :]}:
                shutil.rmtree(self.folder / f"step_{other}")

    def _remove_unfinished(self) -> None:
        for left in self.folder.glob(".step_*.partial"):
            shutil.rmtree(left)

    def _damages(self, folder: Path) -> list[str]:
        """Compare files with what is known of them, every rank its share; return all ranks' findings."""
        try:
            files = json.loads((folder / FILES).read_text(encoding="utf-8"))
            mine = sorted(files.items())[self.ranks.rank :: self.ranks.world_size]
            damages = [damage for name, facts in mine if (damage := _damage(folder / name, facts))]
        except (OSError, ValueError) as error:
            damages = [f"{FILES}: {error}"]
        return sorted({damage for found in gathered(damages, self.ranks) for damage in found})

    def _by_first(self, work: Callable[[], None]) -> None:
        """Let the first rank do something that the others wait for."""
        self._together(work if self.ranks.first else lambda: None)

    def _together(self, work: Callable[[], T]) -> list[T]:
        """Do a part on each rank and return all results; if it fails on one, it fails on all."""
        problem, result = None, None
        try:
            result = work()
        except (OSError, InputError) as error:
            problem = f"rank {self.ranks.rank}: {error}"
        done: list[tuple[T | None, str | None]] = gathered((result, problem), self.ranks)
        problems = [problem for _, problem in done if problem]
        if problems:
            raise OSError(
                f"a checkpoint in {self.folder} cannot be written: {listing(problems, 3)}; "
                f"the same command goes on from the one before"
            )
        return [result for result, _ in done]  # type: ignore[misc]  # None is a T where there was no problem


def saved_steps(folder: Path) -> list[int]:
    """Return the steps of which a folder has checkpoints, in order."""
    names = (re.fullmatch(r"step_(\d+)", path.name) for path in folder.glob("step_*"))
    return sorted(int(match[1]) for match in names if match)


def read_run(folder: Path) -> State:
    """Return what all ranks have in common."""
    return load(folder / RUN)


def read_facts(folder: Path) -> Facts:
    """Return the facts of the run whose checkpoints lie in a folder; none where there are no checkpoints."""
    steps = saved_steps(folder)
    return dict(load(folder / f"step_{steps[-1]}" / RUN, mmap=True)["facts"]) if steps else {}


def read_ranks(folder: Path) -> list[State]:
    """Return what each rank had for itself; tensors stay on disk until they are looked at."""
    paths = takewhile(Path.is_file, (folder / f"rank_{rank}.pt" for rank in count()))  # a shared disk's listing may lag
    return [load(path, mmap=True) for path in paths]


def read_rows(folder: Path, first: int, last: int) -> State:
    """Return the ``rows`` of classes [first, last), whichever ranks had them.

    ``rows`` are nested dicts. The first dimension of each tensor runs over the rank's ``classes``, or over a number of
    sub-centres of each; scalars are the same on all ranks.
    """
    parts = []
    for state in read_ranks(folder):
        start, end = state["classes"]
        low, high = max(first, start), min(last, end)
        if low < high:
            size = end - start
            parts.append(_cut(state["rows"], Fraction(low - start, size), Fraction(high - start, size)))
    return _joined(parts)


def _cut(rows: Any, low: Fraction, high: Fraction) -> Any:
    """Cut the tensors of nested dicts, but scalars, to the part [low, high) of their rows, as shares in [0, 1]."""
    if isinstance(rows, Mapping):
        return {key: _cut(value, low, high) for key, value in rows.items()}
    if isinstance(rows, torch.Tensor) and rows.ndim:
        return rows[int(low * len(rows)) : int(high * len(rows))]
    return rows


def _joined(parts: Sequence[Any]) -> Any:
    """Put the tensors of nested dicts one after the other; in memory of their own."""
    if isinstance(parts[0], Mapping):
        return {key: _joined([part[key] for part in parts]) for key in parts[0]}
    return torch.cat(list(parts)) if isinstance(parts[0], torch.Tensor) and parts[0].ndim else parts[0]


class _Digesting:
    """A file that knows size and SHA-256 of what it was given, whatever the disk makes of it."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.size, self.digest = file, 0, hashlib.sha256()

    def write(self, data: bytes) -> int:
        """Write and take note."""
        self.digest.update(data)
        self.size += len(data)
        return self.file.write(data)

    def flush(self) -> None:
        """Pass on, as torch asks for it."""
        self.file.flush()


def _write(path: Path, state: State) -> dict[str, Any]:
    """Write a file of torch to the disk; return what `_damage` compares it with."""
    with open(path, "wb") as file:
        digesting = _Digesting(file)
        write(state, digesting)  # type: ignore[arg-type]  # write and flush are all that it calls
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": digesting.size, "sha256": digesting.digest.hexdigest()}


def _damage(path: Path, written: Mapping[str, Any]) -> str | None:
    """Say how a file differs from what was written, or None."""
    if not path.is_file():
        return f"{path.name} is missing"
    size = path.stat().st_size
    if size != written.get("bytes"):
        return f"{path.name} has {size} of {written.get('bytes')} bytes"
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return None if digest.hexdigest() == written.get("sha256") else f"{path.name} has another SHA-256"


def _sync(folder: Path) -> None:
    """Bring the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
