"""Progress bars: on rank 0 and where a person watches, nowhere else."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Any, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


def progress(items: Iterable[Item], *, desc: str, total: int | None = None, **options: Any) -> tqdm[Item]:
    """Wrap an iterable in a bar on standard error; silent off a terminal and on other ranks than 0."""
    silent = not sys.stderr.isatty() or os.environ.get("RANK", "0") != "0"
    return tqdm(items, desc=desc, total=total, disable=silent, dynamic_ncols=True, **options)
