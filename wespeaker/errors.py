"""The one error for what a user gave and can mend: files, options, configs."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class InputError(ValueError):
    """What was given cannot be used. The message is a sentence: what, where, and what to do next.

    The command-line tools print it without a traceback and exit with code 1.
    """


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return a hint such as ``did you mean 'arc_margin'?``, or the list of all valid names.

    Args:
        name: what was given.
        valid: the names that would have been understood.
    """
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    if close:
        return "did you mean " + " or ".join(repr(c) for c in close) + "?"
    return "valid names: " + ", ".join(names)


def listing(items: Sequence[object], limit: int = 10) -> str:
    """Join the first ``limit`` items with commas and say how many more there are."""
    shown = ", ".join(str(i) for i in items[:limit])
    return shown if len(items) <= limit else f"{shown} and {len(items) - limit} more"
