"""The run folder: what was run, with which config and where, and how it went."""

from __future__ import annotations

import json
import logging
import platform
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from wespeaker.config import TrainConfig
from wespeaker.documents import parse_json, parse_yaml, write_json
from wespeaker.errors import InputError
from wespeaker.files import write_lines
from wespeaker.nested import flatten

CONFIG, ENVIRONMENT = "config.yaml", "env.json"

# What may change when a run goes on: nothing that changes its numbers.
FREE_TO_CHANGE = {
    "exp_dir",
    "num_avg",
    "save_epoch_interval",
    "save_minutes",
    "log_batch_interval",
    "dev_interval",
    "dataloader_args.num_workers",
    "dataloader_args.prefetch_factor",
    "dataloader_args.pin_memory",
    "dataset_args.max_bad_utts",
}


def check_run_folder(folder: Path, config: TrainConfig, *, world_size: int) -> None:
    """Check that a folder is new, or of this very config; another number of processes may share out the same steps.

    Raises:
        InputError: the folder is of another config, whose differences are listed, or its files are damaged.

    """
    if not (folder / CONFIG).exists():
        return
    before, now = config.tacit() | flatten(_mapping(folder / CONFIG, parse_yaml)), flatten(config.model_dump())
    step_size = _mapping(folder / ENVIRONMENT, parse_json).get("examples_per_step")
    if not isinstance(step_size, int) or step_size < 1:
        raise InputError(
            f"{folder / ENVIRONMENT} does not say how many examples a step has (examples_per_step); "
            f"bring the file back, or give another --exp_dir"
        )
    changed = {key for key in before.keys() | now.keys() if before.get(key) != now.get(key)} - FREE_TO_CHANGE
    if step_size == config.dataloader_args.batch_size * world_size:
        changed.discard("dataloader_args.batch_size")
    elif changed <= {"dataloader_args.batch_size"}:
        advice = (
            f"give dataloader_args.batch_size={step_size // world_size}"
            if step_size % world_size == 0
            else f"give a number of processes that divides {step_size}"
        )
        raise InputError(
            f"{folder} holds a run of steps of {step_size} examples, and {world_size} processes of batch_size "
            f"{config.dataloader_args.batch_size} take {config.dataloader_args.batch_size * world_size}; {advice}"
        )
    if changed:
        differences = [f"{key} was {_shown(key, before)}, now {_shown(key, now)}" for key in sorted(changed)]
        raise InputError(
            f"{folder} holds a run of another config: {'; '.join(differences)}; "
            f"give another --exp_dir, or remove the folder"
        )


def _mapping(path: Path, parse: Callable[[str, object], Any]) -> dict[str, Any]:
    """Read a file of the run folder."""
    try:
        values = parse(path.read_text(encoding="utf-8"), path)
    except (FileNotFoundError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not what a run writes ({error}); give another --exp_dir") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} is not what a run writes (a list of keys and values); give another --exp_dir")
    return values


def _shown(key: str, values: Mapping[str, Any]) -> str:
    return json.dumps(values[key], default=str) if key in values else "not there"


def write_run_folder(folder: Path, config: TrainConfig, *, world_size: int) -> None:
    """Make the folder of a run with config.yaml and env.json."""
    step_size = {"world_size": world_size, "examples_per_step": world_size * config.dataloader_args.batch_size}
    write_json(folder / ENVIRONMENT, environment() | step_size)
    write_lines(folder / CONFIG, config.record().splitlines())  # last: where it is, the other one is


def environment() -> dict[str, Any]:
    """Return command, git revision, versions and machine."""
    packages = ("torch", "torchaudio", "numpy", "scipy", "soundfile")
    return {
        "command": sys.argv,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "git_revision": _git_revision(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in packages},
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_revision() -> str | None:
    root = Path(__file__).resolve().parents[2]
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def log_to_file(path: Path) -> logging.Handler:
    """Add a file to the logs of the package; the caller removes the handler when done."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    package = logging.getLogger("wespeaker")
    package.setLevel(min(logging.INFO, package.level or logging.INFO))
    package.addHandler(handler)
    return handler


class MetricsFile:
    """metrics.jsonl: one JSON object a line, in the order of steps, without gaps or repeats after a resume.

    Args:
        path: the file.
        last_step: rows of later steps, left by a run that was interrupted, are removed.

    Raises:
        InputError: a row, but the last, is damaged.

    """

    def __init__(self, path: Path, *, last_step: int) -> None:
        self.path = path
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        whole = text[: text.rfind("\n") + 1].splitlines()  # a kill may have cut the last row
        write_lines(path, [row for line, row in enumerate(whole, 1) if self._step(row, line) <= last_step])

    def _step(self, row: str, line: int) -> int:
        where = f"{self.path}:{line}"
        values = parse_json(row, where)
        step = values.get("step") if isinstance(values, dict) else None
        if not isinstance(step, int):
            raise InputError(f"{where} is not a row of metrics (it has no step); remove the line")
        return step

    def write(self, row: dict[str, Any]) -> None:
        """Append a row, which must have ``step``."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
