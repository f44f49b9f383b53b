"""Folders that are made once, whole or not at all, and that say what they were made with."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from wespeaker.documents import WRITTEN_BY, write_json
from wespeaker.errors import InputError

logger = logging.getLogger(__name__)

MADE_WITH = "made_with"
ADVICE = "name another folder, or remove this one to make it anew"


def is_made(folder: Path, description: Mapping[str, Any], *, stamp: str) -> bool:
    """Return whether a folder was made with this description; false if it is missing or empty.

    Args:
        folder: what `making` fills.
        description: what must be equal for two folders to be equal, as JSON has it.
        stamp: name of the file in ``folder`` that holds the description.

    Raises:
        InputError: the folder holds something else.

    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        found = dict(json.loads((folder / stamp).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise InputError(f"{folder} exists and has no readable {stamp}; {ADVICE}") from None
    for versions in (WRITTEN_BY, MADE_WITH):  # others may make other bytes, but no other set
        found.pop(versions, None)
    differences = [
        f"{name}: {found.get(name)} there, {description.get(name)} asked for"
        for name in sorted(found.keys() | description.keys())
        if found.get(name) != description.get(name)
    ]
    if differences:
        raise InputError(f"{folder} was made with other settings ({'; '.join(differences)}); {ADVICE}")
    return True


@contextmanager
def making(folder: Path, description: Mapping[str, Any], *, stamp: str, packages: Sequence[str] = ()) -> Iterator[Path]:
    """Give an empty folder to fill; on success it gets its stamp and becomes ``folder``.

    Until then it is ``<folder>.partial``, which an interrupted run leaves and the next one replaces.

    Args:
        folder: missing or empty.
        description: as `is_made` compares it.
        stamp: name of the file that holds it.
        packages: whose versions the stamp tells, too.

    """
    folder = folder.resolve()
    partial = folder.with_name(folder.name + ".partial")
    if partial.exists():
        logger.info("removing %s, left by an interrupted run", partial)
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    yield partial
    versions = {package: metadata.version(package) for package in packages}
    told = {**description, **({MADE_WITH: versions} if versions else {})}
    write_json(partial / stamp, told)
    partial.rename(folder)
