"""Runs as TensorBoard shows them: an event file made of what a run folder holds, which grows with the run."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from wespeaker.errors import InputError, listing
from wespeaker.extras import require
from wespeaker.nested import flatten
from wespeaker.report.runs import metrics_rows, name_runs, read_results, read_text, read_yaml

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

logger = logging.getLogger(__name__)

FOLDER = "tensorboard"  # in the run folder
_SUFFIX = ".wespeaker"  # of the names of our event files: others in the folder are not ours to remove
# The headings under which TensorBoard shows what metrics.jsonl has; dev_… goes under dev and the rest under train.
_GROUPS = {
    "head": ("support", "support_max", "zero_target", "zero_loss", "streamed", "scanned"),
    "schedule": ("epoch", "margin", "learning_rate", "zero_loss_gap", "grad_scale"),
    "speed": ("samples_per_sec", "data_wait"),
}
_GROUP_OF = {key: group for group, keys in _GROUPS.items() for key in keys}


def write_events(
    folders: Sequence[str | os.PathLike[str]],
    *,
    output_dir: str | os.PathLike[str] | None = None,
    follow_seconds: float | None = None,
) -> list[Path]:
    """Write what runs hold as event files of TensorBoard, one run a folder.

    The curves of metrics.jsonl by step, config and environment as text, the settings as hyper-parameters with the error
    rates of scores/results.json as their metrics, the tables, and the DET plots; the same of normalised and of
    calibrated scores. A call replaces the event files of earlier calls.

    Args:
        folders: run folders.
        output_dir: where to write a folder for each, under its name; None writes to ``tensorboard`` in each.
        follow_seconds: look for news that often until interrupted; None does not.

    Returns:
        The folders written to.

    Raises:
        NotInstalledError: there is no tensorboard.
        InputError: a folder is no run, is given twice or is damaged; two runs have one name in ``output_dir``.

    """
    require("tensorboard", extra="track")
    if follow_seconds is not None and not follow_seconds > 0:
        raise InputError(f"following needs a number of seconds above 0, found {follow_seconds:g}")
    named = name_runs(folders)
    if output_dir is not None and (clashes := sorted(name for name in named if Path(name).name != name)):
        raise InputError(f"these have the same name, so one folder cannot hold both: {listing(clashes)}")
    runs = [
        _RunEvents(run, run / FOLDER if output_dir is None else Path(output_dir, name)) for name, run in named.items()
    ]
    try:
        for run in runs:
            run.update()
        while follow_seconds is not None:
            time.sleep(follow_seconds)
            for run in runs:
                run.update()
    finally:
        for run in runs:
            run.close()
    return [run.folder for run in runs]


class _RunEvents:
    """The event file of one run; `update` brings it up to date.

    It grows by the rows that metrics.jsonl gained. Where anything else is new, as after scoring, or after a resume that
    took rows back, a new file takes its place, which tells a TensorBoard that watches to forget the old one.
    """

    def __init__(self, run: Path, folder: Path) -> None:
        if not any((run / name).exists() for name in ("config.yaml", "metrics.jsonl")):
            raise InputError(f"{run} has neither config.yaml nor metrics.jsonl, so no run was started in it")
        self.run = run
        self.folder = folder
        self._writer: SummaryWriter | None = None
        self._text = ""  # of metrics.jsonl, as far as it was written
        self._num_rows = 0
        self._sources: list[tuple[Path, int]] = []  # other files that were written, and their times

    def update(self) -> None:
        """Write what is new."""
        path = self.run / "metrics.jsonl"
        text = read_text(path) or ""
        rows = metrics_rows(text, path)
        results = sorted((self.run / "scores").glob("*results.json"))
        there = (file for file in (self.run / "config.yaml", *results) if file.exists())
        sources = [(file, file.stat().st_mtime_ns) for file in there]
        if self._writer is None or sources != self._sources or not text.startswith(self._text):
            self._writer = self._begin(results, last_step=rows[-1]["step"] if rows else 0)
            self._sources, self._num_rows = sources, 0
        for row in rows[self._num_rows :]:
            for key, value in row.items():
                if key != "step" and isinstance(value, int | float):
                    self._writer.add_scalar(_tag(key), value, row["step"])
        self._writer.flush()
        if len(rows) > self._num_rows:
            logger.info("%s: %d rows in %s", self.run, len(rows), self.folder)
        self._text, self._num_rows = text[: text.rfind("\n") + 1], len(rows)

    def close(self) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()

    def _begin(self, results: Sequence[Path], *, last_step: int) -> SummaryWriter:
        """Replace the event file by one that has all but the rows of metrics.jsonl."""
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        self.close()
        old = list(self.folder.glob(f"*.tfevents.*{_SUFFIX}"))
        writer = SummaryWriter(self.folder, purge_step=0, filename_suffix=_SUFFIX)
        for name, file in {"config": "config.yaml", "environment": "env.json"}.items():
            if text := read_text(self.run / file):
                writer.add_text(name, _as_code(text), 0)
        rates: dict[str, float] = {}
        for path in results:
            rates |= _write_scores(writer, path, last_step)
        settings = {key: _as_hparam(value) for key, value in flatten(read_yaml(self.run / "config.yaml") or {}).items()}
        *starts, end = hparams(settings, rates)
        file_writer: Any = writer.file_writer  # torch declares it as None
        for summary in (*starts, *([end] if rates else [])):  # until it has error rates, a run is under way
            file_writer.add_summary(summary)
        for path in old:  # emptied first: a TensorBoard that reads a file waits for ever for one that was removed
            if path.stat().st_size:
                os.truncate(path, 0)
            else:
                path.unlink()
        return writer


def _write_scores(writer: SummaryWriter, results: Path, step: int) -> dict[str, float]:
    """Write table, DET plot and error rates of a results.json; return the rates by their tags."""
    prefix = results.name.removesuffix("results.json")
    group = prefix.rstrip("_") or "scores"
    if table := read_text(results.with_suffix(".txt")):
        writer.add_text(f"{group}/results", _as_code(table), step)
    if (plot := results.with_name(f"{prefix}det.png")).exists():
        with Image.open(plot) as image:
            writer.add_image(f"{group}/det", np.asarray(image.convert("RGB")), step, dataformats="HWC")
    rates = {
        f"{group}/{name}/{rate}": value
        for name, entry in (read_results(results) or {"trials": {}})["trials"].items()
        for rate, value in _rates(entry).items()
    }
    for tag, value in rates.items():
        writer.add_scalar(tag, value, step)
    return rates


def _rates(entry: Mapping[str, Any]) -> dict[str, float]:
    """Return EER, minDCF, and the TAR at each FAR that the list resolves."""
    resolved = {far: point for far, point in entry["tar_at_far"].items() if point.get("resolvable", True)}
    return {
        "eer": entry["eer"],
        **{f"min_dcf_{prior}": cost for prior, cost in entry["min_dcf"].items()},
        **{f"tar_at_far_{far}": point["tar"] for far, point in resolved.items()},
    }


def _tag(key: str) -> str:
    """Return the tag of a key of metrics.jsonl.

    >>> _tag("loss"), _tag("dev_eer"), _tag("margin")
    ('train/loss', 'dev/eer', 'schedule/margin')
    """
    if key.startswith("dev_"):
        return f"dev/{key.removeprefix('dev_')}"
    return f"{_GROUP_OF.get(key, 'train')}/{key}"


def _as_code(text: str) -> str:
    return "".join(f"    {line}\n" for line in text.splitlines())  # Markdown shows indented lines as they are


def _as_hparam(value: Any) -> float | str:
    plain = isinstance(value, int | float | str) and not isinstance(value, bool)
    return value if plain else json.dumps(value, default=str)
