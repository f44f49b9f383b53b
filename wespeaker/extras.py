"""Packages that only some work needs: imported where they are used, or named with the extra that brings them."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from wespeaker.errors import InputError


class NotInstalledError(InputError):
    """A package of an extra is not installed."""


def require(module: str, *, extra: str) -> ModuleType:
    """Import a module of one of the extras of pyproject.toml.

    Args:
        module: its name, such as ``onnxruntime``.
        extra: the extra that has it, such as ``export``.

    Raises:
        NotInstalledError: it is not there; the message says how it gets there.

    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise  # it is there, and lacks something of its own
        raise NotInstalledError(
            f"{module} is not installed, which this needs; pip install '.[{extra}]' in the project's folder brings it"
        ) from None
