"""The run folder: what was run, with which config and where, and how it went."""

from __future__ import annotations

import json
import logging
import platform
import socket
import subprocess
import sys
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml

import wespeaker
from wespeaker.config import Config
from wespeaker.errors import InputError
from wespeaker.files import write_lines
from wespeaker.nested import flatten

# What may change when a run goes on: nothing that changes its numbers.
FREE_TO_CHANGE = {
    "exp_dir",
    "num_avg",
    "save_epoch_interval",
    "log_batch_interval",
    "dev_interval",
    "dataloader_args.num_workers",
    "dataloader_args.prefetch_factor",
    "dataloader_args.pin_memory",
    "dataset_args.max_bad_utts",
}


def open_run_folder(folder: Path, config: Config) -> None:
    """Make the folder of a run with config.yaml and env.json, or check that it is a folder of this very config.

    Raises:
        InputError: the folder is of another config; the differences are listed.

    """
    saved = folder / "config.yaml"
    if saved.exists():
        before = flatten(yaml.safe_load(saved.read_text(encoding="utf-8")))
        now = flatten(config.model_dump())
        changed = sorted(
            k for k in before.keys() | now.keys() if before.get(k) != now.get(k) and k not in FREE_TO_CHANGE
        )
        if changed:
            differences = "; ".join(f"{key} was {before.get(key)}, now {now.get(key)}" for key in changed)
            raise InputError(
                f"{folder} holds a run of another config: {differences}; give another --exp_dir, or remove the folder"
            )
    folder.mkdir(parents=True, exist_ok=True)
    write_lines(saved, config.dump().splitlines())
    write_lines(folder / "env.json", json.dumps(environment(), indent=2).splitlines())


def environment() -> dict[str, Any]:
    """Return command, git revision, versions and machine."""
    packages = ("torch", "torchaudio", "numpy", "scipy", "soundfile")
    return {
        "command": sys.argv,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "git_revision": _git_revision(),
        "wespeaker_q": wespeaker.__version__,
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

    """

    def __init__(self, path: Path, *, last_step: int) -> None:
        self.path = path
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        whole = text[: text.rfind("\n") + 1].splitlines()  # a kill may have cut the last row
        write_lines(path, [row for row in whole if json.loads(row)["step"] <= last_step])

    def write(self, row: dict[str, Any]) -> None:
        """Append a row, which must have ``step``."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
