"""What every command line of this project shares: a parser without surprises, and errors as one sentence."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from wespeaker.errors import InputError
from wespeaker.files import NO_ROOM


class Parser(argparse.ArgumentParser):
    """An argparse parser whose help shows defaults, that takes no abbreviations and exits with 1 on misuse."""

    def __init__(self, description: str | None = None, **options: Any) -> None:
        options = {"formatter_class": argparse.ArgumentDefaultsHelpFormatter, "allow_abbrev": False, **options}
        super().__init__(description=description, **options)

    def error(self, message: str) -> NoReturn:
        """Print the sentence and how to get help; exit with 1."""
        print(f"{self.prog}: error: {message}; see {self.prog} --help", file=sys.stderr)
        raise SystemExit(1)


def program() -> str:
    """Return what the user called: the name of a script, or ``python -m`` and a package."""
    script = Path(sys.argv[0])
    return f"python -m {script.parent.name}" if script.name == "__main__.py" else script.name


def run(main: Callable[[], None], *, in_every_process: bool = False, log_level: int = logging.INFO) -> None:
    """Call ``main``; print an InputError or OSError as one line and exit with 1. A bug keeps its traceback.

    Started by torchrun in several processes, it is called in the first, while the others wait for its end.

    Args:
        main: what the tool does.
        in_every_process: it shares its work itself.
        log_level: the least that is logged to the terminal.

    """
    if not in_every_process and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        from wespeaker.ranks import on_first_rank  # here, since it imports torch, which takes seconds

        main = partial(on_first_rank, main)
    logging.basicConfig(level=log_level, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    try:
        main()
    except (InputError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            os._exit(1)  # the reader of our output left, as in `tools/score.py ... | head`
        print(f"{program()}: error: {_sentence(error)}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print(f"{program()}: interrupted; the same command goes on from here", file=sys.stderr)
        raise SystemExit(130) from None


def _sentence(error: Exception) -> str:
    """Return what an error says; of a full disk, which file it was and what to do."""
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return f"{error.filename or 'a file'} cannot be written: {error.strerror}; make room and repeat the command"
    return str(error)
