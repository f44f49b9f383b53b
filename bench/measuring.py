"""What the benches share: CPU time in turn, peak memory, and rows that say where they come from."""

from __future__ import annotations

import ctypes
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the benches run from a clone, installed or not

Row = dict[str, Any]
T = TypeVar("T")


def cpu_seconds(work: Callable[[], object]) -> float:
    """Return the CPU time of this process, all threads, that a call takes."""
    start = time.process_time()
    work()
    return time.process_time() - start


def in_turn(ways: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Call each way once to warm up, then all of them in turn; return what they returned, by name."""
    for way in ways.values():
        way()
    found: dict[str, list[T]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            found[name].append(way())
    return found


def ratios(numerator: Iterable[float], denominator: Iterable[float]) -> tuple[float, list[float]]:
    """Return the median of the ratios round by round, and the smallest and largest."""
    found = [a / b for a, b in zip(numerator, denominator, strict=True)]
    return round(statistics.median(found), 3), [round(min(found), 3), round(max(found), 3)]


def median_ms(seconds: Iterable[float]) -> float:
    """Return the median in milliseconds."""
    return round(1e3 * statistics.median(seconds), 2)


def keep_memory() -> None:
    """Let the allocator keep what is freed, so that no step pays for fresh pages: glibc only, else nothing is done.

    Heads that make large matrices gain most, which are the other ones.
    """
    _mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD of malloc.h
    _mallopt(-4, 0)  # M_MMAP_MAX


def return_memory() -> None:
    """Let the allocator give back all that is freed, so that the memory of the process is what is in use."""
    _mallopt(-3, 1 << 16)  # M_MMAP_THRESHOLD


def _mallopt(option: int, value: int) -> None:
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(option, value)


def memory_mb(key: str) -> float:
    """Return a line of /proc/self/status (VmRSS: memory now, VmHWM: at most so far) in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) * 1.024e-3 for line in lines if line.startswith(key + ":"))


def forget_peak() -> None:
    """Let VmHWM start again from the memory of now."""
    Path("/proc/self/clear_refs").write_text("5")


def revision() -> str:
    """Return the revision of the clone, "-dirty" if it was changed."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "none"


def record(name: str, rows: Iterable[Row], **where: Any) -> Iterator[Row]:
    """Append rows to bench/results/<name>.jsonl as they come, with `where`, and pass them on."""
    where = {**where, "python": platform.python_version(), "threads": 1, "revision": revision()}
    path = ROOT / "bench" / "results" / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        for row in rows:
            file.write(json.dumps(row | where) + "\n")
            file.flush()
            yield row
