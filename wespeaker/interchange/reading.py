"""A config while it is taken apart: what is left of it, and what became of each key."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Fate = Literal["taken", "becomes", "idle", "ours", "refused"]


@dataclass(frozen=True)
class Note:
    """What became of a key.

    key: with its section. fate: "taken" as it is; it "becomes" another key or value; "idle", it means nothing here;
    "ours", a choice of this recipe that the document does not make; "refused". text: what and why, empty for "taken".
    """

    key: str
    fate: Fate
    text: str = ""

    def __str__(self) -> str:
        """Return the sentence."""
        verb = {"taken": " is taken", "becomes": " becomes ", "idle": " has no meaning here: "}.get(self.fate, ": ")
        return f"{self.key}{verb}{self.text}"


_MISSING: Any = object()


class Reading:
    """A document while it is taken apart: what is left of it is ours. Names have their section, as ``a.b``."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.values: dict[str, Any] = copy.deepcopy(dict(document))
        self.notes: list[Note] = []

    def get(self, name: str, default: Any = None) -> Any:
        """Return a value, or the default where it or its section is missing."""
        return find(self.values, name, default)

    def has(self, name: str) -> bool:
        """Whether there is such a key."""
        return self.get(name, _MISSING) is not _MISSING

    def set(self, name: str, value: Any) -> None:
        """Set a value; its section is made if it is missing, and left to the schema if it is no mapping."""
        *sections, key = name.split(".")
        values = self.values
        for section in sections:
            values = values.setdefault(section, {})
            if not isinstance(values, dict):
                return
        values[key] = value

    def remove(self, name: str) -> None:
        """Take a key away that is there."""
        section, _, key = name.rpartition(".")
        del (self.get(section) if section else self.values)[key]

    def note(self, name: str, fate: Fate, text: str) -> None:
        """Say what became of a key."""
        self.notes.append(Note(name, fate, text))

    def drop(self, name: str, fate: Fate, text: str) -> None:
        """Take a key away, if it is there, and say why."""
        if self.has(name):
            self.remove(name)
            self.note(name, fate, text)

    def change(self, name: str, new: Mapping[str, Any], why: str) -> None:
        """Put keys of ours in the place of one that is there, or for one that is not there and has a default."""
        missing = "" if self.has(name) else "left out, "
        if not missing:
            self.remove(name)
        for key, value in new.items():
            self.set(key, value)
        becomes = " ".join(f"{key}={value}" for key, value in new.items())
        self.note(name, "becomes", f"{becomes} ({missing}{why})")


def find(values: Mapping[str, Any], name: str, default: Any = None) -> Any:
    """Return the value of a name with its section, as ``a.b``, or the default where there is none."""
    found: Any = values
    for key in name.split("."):
        if not isinstance(found, Mapping) or key not in found:
            return default
        found = found[key]
    return found


def leaves(values: Mapping[Any, Any], prefix: str = "") -> list[str]:
    """Name the keys that hold no section, or an empty one."""
    names = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        names += leaves(value, f"{name}.") if isinstance(value, Mapping) and value else [name]
    return names
