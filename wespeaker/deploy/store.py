"""Enrolled people in one SQLite file: voiceprints and no audio, of one model, deleted when a person asks for it.

A voiceprint is biometric data. The file is made for its owner's eyes only; `Store.forget` leaves no byte of what it
deletes in the file or in a journal beside it. Copies, backups and what a disk keeps of freed blocks are beyond it.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wespeaker.deploy.card import Card
from wespeaker.errors import InputError, nearest
from wespeaker.files import open_plain

SCHEMA = 1  # PRAGMA user_version
APPLICATION_ID = 0x57535051  # PRAGMA application_id: "WSPQ"
TIMEOUT_SEC = 10.0  # that a writer waits for another
MAX_NAME = 200  # characters

_TABLES = {
    "model": "CREATE TABLE model (fingerprint TEXT NOT NULL, mean_sha256 TEXT NOT NULL, name TEXT NOT NULL, "
    "embed_dim INTEGER NOT NULL)",
    "person": "CREATE TABLE person (name TEXT PRIMARY KEY NOT NULL, enrolled_at TEXT NOT NULL, "
    "num_files INTEGER NOT NULL, seconds REAL NOT NULL, voiceprint BLOB NOT NULL) WITHOUT ROWID",
}


@dataclass(frozen=True)
class Person:
    """Someone who is enrolled."""

    name: str
    enrolled_at: str  # UTC, as 2026-01-31T12:00:00+00:00
    num_files: int
    seconds: float  # of all files
    voiceprint: NDArray[np.float32]  # (D,), of `wespeaker.deploy.verification.voiceprint`


class Store:
    """An open store; `open_store` opens one."""

    def __init__(self, path: Path, database: sqlite3.Connection) -> None:
        self.path = path
        self._database = database

    def check_model(self, card: Card) -> None:
        """Refuse another model than the one that people were enrolled with; a store without any takes any.

        Raises:
            InputError: it is another, or the same with another mean, whose cosines cannot be compared.

        """
        found = self._database.execute("SELECT fingerprint, mean_sha256, name, embed_dim FROM model").fetchone()
        if found is None:
            return
        fingerprint, mean, name, embed_dim = found
        if fingerprint != card.fingerprint:
            what = f"was made with another model ({name} {str(fingerprint)[:12]}) than this one "
            what += f"({card.model} {card.fingerprint[:12]})"
        elif mean != _mean_sha256(card):
            what = f"was made with another mean of the embeddings of this model ({card.model} {fingerprint[:12]})"
        elif embed_dim != card.embed_dim:
            what = f"claims embeddings of {embed_dim} numbers, the model ({card.model}) has {card.embed_dim}"
        else:
            return
        raise InputError(f"{self.path} {what}; name that model, or enrol the people again in a new store")

    def enrol(self, person: Person, card: Card, *, replace: bool = False) -> None:
        """Write a person.

        Args:
            person: whom.
            card: of the model that the voiceprint is of.
            replace: whether to replace what is there of that name.

        Raises:
            InputError: the name is taken, or the store is of another model.

        """
        with self._writing(deletes=replace):
            self.check_model(card)
            row: tuple[object, ...] = (card.fingerprint, _mean_sha256(card), card.model, card.embed_dim)
            self._database.execute("INSERT INTO model SELECT ?, ?, ?, ? WHERE NOT EXISTS (SELECT * FROM model)", row)
            if replace:
                self._database.execute("DELETE FROM person WHERE name = ?", (person.name,))
            elif person.name in self._names():
                raise InputError(
                    f"{person.name!r} is enrolled in {self.path} already; --replace enrols anew, forget deletes"
                )
            blob = person.voiceprint.astype("<f4").tobytes()
            row = (person.name, person.enrolled_at, person.num_files, person.seconds, blob)
            self._database.execute("INSERT INTO person VALUES (?, ?, ?, ?, ?)", row)

    def forget(self, name: str) -> None:
        """Delete a person, and write the file anew without a trace of the name or the voiceprint.

        Raises:
            InputError: nobody of that name is enrolled.

        """
        with self._writing(deletes=True):
            if not self._database.execute("DELETE FROM person WHERE name = ?", (name,)).rowcount:
                raise self._unknown(name)
            if not self._names():
                self._database.execute("DELETE FROM model")  # an empty store takes any model

    def person(self, name: str) -> Person:
        """Return a person.

        Raises:
            InputError: nobody of that name is enrolled, or the row is damaged.

        """
        rows = self._database.execute(f"{_SELECT} WHERE person.name = ?", (name,)).fetchall()
        if not rows:
            raise self._unknown(name)
        return self._person(rows[0])

    def people(self) -> list[Person]:
        """Return everyone who is enrolled, sorted by name.

        Raises:
            InputError: a row is damaged.

        """
        return [self._person(row) for row in self._database.execute(f"{_SELECT} ORDER BY person.name")]

    def _names(self) -> list[str]:
        return [str(name) for (name,) in self._database.execute("SELECT name FROM person")]

    def _unknown(self, name: str) -> InputError:
        names = self._names()
        return InputError(f"{name!r} is not enrolled in {self.path}; {nearest(name, names) if names else 'nobody is'}")

    def _person(self, row: tuple[object, ...]) -> Person:
        name, enrolled_at, num_files, seconds, blob, embed_dim = row
        if (
            isinstance(name, str)
            and isinstance(enrolled_at, str)
            and isinstance(num_files, int)
            and isinstance(seconds, float)
            and isinstance(blob, bytes)
            and isinstance(embed_dim, int)
            and len(blob) == 4 * embed_dim > 0
        ):
            vector = np.frombuffer(blob, "<f4").astype(np.float32)
            if name.isprintable() and enrolled_at.isprintable() and 0 < np.linalg.norm(vector.astype(float)) < np.inf:
                return Person(name, enrolled_at, num_files, seconds, vector)
        raise InputError(f"{self.path} is damaged: what it has of {name!r} cannot be used; enrol that person again")

    @contextmanager
    def _writing(self, *, deletes: bool) -> Iterator[None]:
        """Change the store as a whole, or not at all; nobody else comes in until it is closed.

        Args:
            deletes: leave no byte of what is deleted. secure_delete puts zeros over it, and VACUUM writes all anew, so
                that nothing rests on one of them. The journal, which has it too, is emptied at once.

        """
        self._set("journal_mode = TRUNCATE")  # not the log (WAL) that another program may have asked for
        self._database.execute("BEGIN EXCLUSIVE")
        self._set("locking_mode = EXCLUSIVE")  # not before: two that read and keep that lock wait for each other
        try:
            yield
        except BaseException:
            self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")
        if deletes:
            self._database.execute("VACUUM")
        self._set("journal_mode = DELETE")

    def _set(self, setting: str) -> None:
        self._database.execute(f"PRAGMA {setting}")


_SELECT = (
    "SELECT person.name, enrolled_at, num_files, seconds, voiceprint, (SELECT embed_dim FROM model LIMIT 1) FROM person"
)


@contextmanager
def open_store(path: str | os.PathLike[str], *, create: bool = False) -> Iterator[Store]:
    """Open a store, and close it in the end.

    Args:
        path: the file.
        create: whether to make it, for its owner to read and write alone, where there is none.

    Raises:
        InputError: there is none, or what is there is no store of this version, is damaged, or is in use by another
            process for longer than `TIMEOUT_SEC`.

    """
    path = Path(path)
    if create:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    try:
        with open_plain(path) as file:
            head = file.read(16)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; enrol somebody first, which makes it") from None
    if head not in (b"", b"SQLite format 3\0"):
        raise InputError(f"{path} is no store of enrolled people (no SQLite file); name another file")
    try:
        database = sqlite3.connect(path, timeout=TIMEOUT_SEC, isolation_level=None)
        try:
            _prepare(path, database, create=create)
            yield Store(path, database)
        finally:
            database.close()
    except (sqlite3.Error, OverflowError, UnicodeError) as error:  # the last two: values of a damaged file
        raise InputError(_sentence(path, error)) from error


def _prepare(path: Path, database: sqlite3.Connection, *, create: bool) -> None:
    """Make sure that this is a store; ``create`` makes one of an empty file."""
    for setting in ("trusted_schema = OFF", "cell_size_check = ON", "temp_store = MEMORY", "secure_delete = ON"):
        database.execute(f"PRAGMA {setting}")
    database.execute("BEGIN IMMEDIATE" if create else "BEGIN")  # of two processes that create it one comes first
    found = dict(database.execute("SELECT name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite^_%' ESCAPE '^'"))
    application, version = (database.execute(f"PRAGMA {of}").fetchone()[0] for of in ("application_id", "user_version"))
    if not found and (application, version) == (0, 0):
        if not create:
            raise InputError(f"{path} is empty; enrol somebody first")
        for statement in _TABLES.values():
            database.execute(statement)
        database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        database.execute(f"PRAGMA user_version = {SCHEMA}")
    elif application != APPLICATION_ID:
        raise InputError(f"{path} is a database of another program, no store of enrolled people; name another file")
    elif version != SCHEMA or found != _TABLES:
        raise InputError(
            f"{path} is a store of another schema (version {version}, this program reads {SCHEMA}); use the version "
            f"that made it, or enrol the people again in a new store"
        )
    database.execute("COMMIT")


def _sentence(path: Path, error: Exception) -> str:
    text = str(error)
    if "locked" in text:
        return f"{path} is in use by another process for more than {TIMEOUT_SEC:g} s; try again when that is done"
    if "readonly" in text or "unable to open" in text:
        return f"{path} cannot be written ({text}); a store and its folder must be writable"
    return f"{path} is damaged ({text}); restore a copy of it, or enrol the people again in a new store"


def check_name(name: str) -> str:
    """Return the name of a person in Unicode's composed form, so that one name has one spelling.

    Raises:
        InputError: it is empty or long, begins or ends with a space, or holds what cannot be printed.

    """
    name = unicodedata.normalize("NFC", name)
    if not (0 < len(name) <= MAX_NAME and name.isprintable() and name == name.strip()):
        raise InputError(
            f"a name must have 1 to {MAX_NAME} printable characters and no space at its ends, found {name!r}"
        )
    return name


def new_person(name: str, voiceprint: NDArray[np.float32], *, num_files: int, seconds: float) -> Person:
    """Return a person who is enrolled now.

    Raises:
        InputError: as `check_name` does.

    """
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return Person(check_name(name), now, num_files, seconds, voiceprint)


def _mean_sha256(card: Card) -> str:
    """Return the hash of the mean that was subtracted, in little-endian float64; of nothing where none is."""
    return hashlib.sha256(np.asarray(card.mean_vec or (), dtype="<f8").tobytes()).hexdigest()
