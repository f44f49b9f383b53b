"""The tools, forked from a warm process and killed, with all that they started, at a chosen moment.

A start of a tool takes seconds, nearly all of them for the import of torch; a fork of a process that has it takes none.
As a script, this is the warm process: it takes a JSON object a line, forks, waits for the end, and answers with one.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import runpy
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
WARM = (
    "wespeaker.data.pack", "wespeaker.data.prepare", "wespeaker.eval.calibrated_scores", "wespeaker.eval.extraction",
    "wespeaker.eval.score_norm", "wespeaker.train.speakers", "wespeaker.train.trainer", "torch._dynamo",
    "matplotlib.pyplot",
)  # fmt: skip
ROOMY = "rw,size=64m"  # a disk of its own that lacks nothing
CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir"}  # of files and folders, as Python's audit events


def can_mount(folder: Path) -> bool:
    """Whether processes may have a disk of their own here: Linux, where users may make name spaces."""
    command = ("unshare", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "tmpfs", str(folder))
    return shutil.which("unshare") is not None and subprocess.run(command, capture_output=True).returncode == 0


class Moment(NamedTuple):
    """When to kill: before a change of a file, when the file has so many bytes, or after some time; or never."""

    change: int | None = None  # number of the change among those of the tool, from 0
    num_bytes: int | None = None  # of the file that this change opens
    seconds: float | None = None


NEVER = Moment()


class Ended(NamedTuple):
    """How a tool ended."""

    status: int  # exit code, or minus the signal
    output: str
    changes: list[tuple[str, str]]  # what it did to files of the watched folder: the audit event and the path
    seconds: float

    @property
    def killed(self) -> bool:
        return self.status == -signal.SIGKILL


class WarmTools:
    """A process that has imported what the tools need.

    Args:
        folder: changes of the files in it count.
        notes: a folder for what the tools print.
        own_disk: whether the folder is a disk of its own (a tmpfs), which only this process and its children see.

    """

    def __init__(self, folder: Path, notes: Path, *, own_disk: bool = False) -> None:
        self.folder, self.notes = folder, notes
        command = [sys.executable, __file__]
        if own_disk:
            mount = f'mount -t tmpfs -o {ROOMY} tmpfs "$1" && shift && exec "$@"'
            command = ["unshare", "--map-root-user", "--mount", "sh", "-c", mount, "sh", str(folder), *command]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"},
        )  # fmt: skip
        self._answer()

    @property
    def seen_from_here(self) -> Path:
        """The folder with what the process sees in it."""
        return Path(f"/proc/{self.process.pid}/root{self.folder}")

    def remount(self, options: str) -> None:
        """Change the disk, as with ``size=8m`` or ``ro``."""
        self._order(remount=options, folder=str(self.folder))

    def run(self, tool: str, *options: object, moment: Moment = NEVER, at_once: int = 1) -> Ended:
        """Call ``tools/<tool>.py`` with options, to its end or to its death, so many times at once."""
        argv = [str(ROOT / "tools" / f"{tool}.py"), *map(str, options)]
        status, seconds = self._order(
            argv=argv, folder=str(self.folder), notes=str(self.notes), at_once=at_once, **moment._asdict()
        )
        changes = [tuple(line.split("\t")) for line in (self.notes / "changes").read_text().splitlines()]
        return Ended(status, (self.notes / "output").read_text(), changes, seconds)

    def _order(self, **order: Any) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


def _change(event: str, args: tuple[Any, ...], folder: str) -> str | None:
    """Return the path that an audit event is about to change, None for any other event."""
    if event == "open":
        path, _, flags = args
        if not flags & (os.O_WRONLY | os.O_RDWR):
            return None
    elif event in CHANGES:
        path = args[1] if event == "os.rename" else args[0]
        if event != "os.rename" and args[-1] != -1:  # by shutil.rmtree, in an open folder
            path = os.path.join(os.readlink(f"/proc/self/fd/{args[-1]}"), path)
    else:
        return None
    return str(path) if isinstance(path, str | os.PathLike) and str(path).startswith(folder) else None


def _die_at(order: dict[str, Any]) -> None:
    """Note down the changes of files from now on, and kill the process group at that which is asked for."""
    own, count = os.getpid(), 0
    notes = os.open(os.path.join(order["notes"], "changes"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def kill(*_: object) -> None:
        os.killpg(0, signal.SIGKILL)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal count
        if os.getpid() != own or (path := _change(event, args, order["folder"])) is None:
            return
        os.write(notes, f"{event}\t{path}\n".encode())
        if count == order["change"]:
            if order["num_bytes"] is None or event != "open":
                kill()
            signal.signal(signal.SIGXFSZ, kill)  # comes with the write that would go beyond the limit
            resource.setrlimit(resource.RLIMIT_FSIZE, (order["num_bytes"], resource.RLIM_INFINITY))
        count += 1

    sys.addaudithook(hook)


def _become(order: dict[str, Any]) -> None:
    """Be the tool."""
    os.setpgid(0, 0)
    output = os.open(os.path.join(order["notes"], "output"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv = order["argv"]
    _die_at(order)
    runpy.run_path(sys.argv[0], run_name="__main__")


def _start(order: dict[str, Any]) -> int:
    """Start a tool in a process of its own; return its number."""
    if pid := os.fork():
        os.setpgid(pid, pid)  # the child does it too, and either may be first
        return pid
    status = 0
    try:
        _become(order)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    sys.stdout.flush()
    os._exit(status)


def _end(pid: int, seconds: float | None) -> int:
    """Wait for a process, or kill its group after some seconds; return its exit code, or minus the signal."""
    end = os.pidfd_open(pid)
    if not select.select([end], [], [], seconds)[0]:
        os.killpg(pid, signal.SIGKILL)
    os.close(end)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _run(order: dict[str, Any]) -> tuple[int, float]:
    """Run a tool so many times at once; return the first status that is not 0, and the seconds."""
    started = time.monotonic()
    statuses = [_end(pid, order["seconds"]) for pid in [_start(order) for _ in range(order["at_once"])]]
    return next(filter(None, statuses), 0), time.monotonic() - started


def _serve() -> None:
    sys.path[:0] = [str(ROOT), str(ROOT / "tools")]
    for name in WARM:
        importlib.import_module(name)
    import torch

    torch.set_num_threads(1)
    print(json.dumps("warm"), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        if "remount" in order:
            answer = subprocess.run(
                ["mount", "-o", f"remount,{order['remount']}", order["folder"]], check=True
            ).returncode
        else:
            answer = _run(order)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _serve()
