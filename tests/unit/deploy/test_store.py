"""The store of enrolled people: whose eyes it is for, which model it is of, and that what is deleted is gone."""

from __future__ import annotations

import os
import sqlite3
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from wespeaker.deploy import store as module
from wespeaker.deploy.card import Card, FbankSettings
from wespeaker.deploy.store import check_name, new_person, open_store
from wespeaker.errors import InputError

FBANK = FbankSettings(num_mel_bins=80, frame_length=25.0, frame_shift=10.0)


def card(fingerprint: str = "a", dim: int = 16, mean: float = 0.5) -> Card:
    return Card(
        wespeaker_q="0.1.0", fingerprint=64 * fingerprint, model="ResNet34", model_args={}, embed_dim=dim,
        sample_rate=16000, min_samples=400, fbank=FBANK, mean_vec=(mean,) * dim,
    )  # fmt: skip


def voiceprint(seed: int, dim: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(dim).astype(np.float32)


def enrol(path: Path, name: str, seed: int = 0, *, of: Card | None = None, replace: bool = False) -> np.ndarray:
    of = of or card()
    vector = voiceprint(seed, of.embed_dim)
    with open_store(path, create=True) as store:
        store.enrol(new_person(name, vector, num_files=2, seconds=3.5), of, replace=replace)
    return vector


def bytes_around(path: Path) -> bytes:
    """All that lies in the folder of a store: the database, a journal, a log."""
    return b"".join(file.read_bytes() for file in sorted(path.parent.iterdir()))


def is_left(vector: np.ndarray, content: bytes) -> bool:
    """Whether any 16 bytes of a vector are there."""
    blob = vector.astype("<f4").tobytes()
    return any(blob[i : i + 16] in content for i in range(0, len(blob) - 15, 4))


def test_people_are_read_as_they_were_enrolled(tmp_path: Path):
    path = tmp_path / "deep" / "people.sqlite"
    vectors = {name: enrol(path, name, seed) for seed, name in enumerate(["Zoë", "anna", "Jürgen Ö."])}
    with open_store(path) as store:
        people = store.people()
        assert [person.name for person in people] == sorted(vectors)
        for person in people:
            np.testing.assert_array_equal(person.voiceprint, vectors[person.name])
            assert (person.num_files, person.seconds) == (2, 3.5)
            assert person.enrolled_at.endswith("+00:00")
        assert store.person("anna").name == "anna"


def test_only_the_owner_can_read_it(tmp_path: Path):
    umask = os.umask(0)
    try:
        enrol(tmp_path / "people.sqlite", "anna")
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "people.sqlite").stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["people.sqlite"]  # no journal stays behind


@pytest.mark.parametrize("dim", [16, 256, 2048])  # rows of many on a page, of few, and of several pages
@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_no_byte_of_who_is_forgotten_is_left(tmp_path: Path, dim: int, mode: str):
    path, of = tmp_path / "people.sqlite", card(dim=dim)
    vectors = {f"person-{i:02d}-of-many": enrol(path, f"person-{i:02d}-of-many", i, of=of) for i in range(20)}
    other = sqlite3.connect(path)
    other.execute(f"PRAGMA journal_mode = {mode}")  # as a program that looks into it may have asked for
    other.close()
    for name in ("person-07-of-many", "person-00-of-many"):
        assert name.encode() in bytes_around(path)
        assert is_left(vectors[name], bytes_around(path))
        with open_store(path) as store:
            store.forget(name)
            assert not is_left(vectors[name], bytes_around(path))  # before it is closed, too
        assert name.encode() not in bytes_around(path)
        assert not is_left(vectors.pop(name), bytes_around(path))
    with open_store(path) as store:
        assert [person.name for person in store.people()] == sorted(vectors)
    assert is_left(vectors["person-08-of-many"], bytes_around(path))


def test_no_byte_of_who_is_replaced_is_left(tmp_path: Path):
    path = tmp_path / "people.sqlite"
    old = enrol(path, "anna", 1)
    new = enrol(path, "anna", 2, replace=True)
    assert not is_left(old, bytes_around(path))
    with open_store(path) as store:
        np.testing.assert_array_equal(store.person("anna").voiceprint, new)


def test_a_name_is_enrolled_once(tmp_path: Path):
    path = tmp_path / "people.sqlite"
    enrol(path, "anna")
    with pytest.raises(InputError, match=r"'anna' is enrolled in .* already; --replace enrols anew"):
        enrol(path, "anna", 1)


def test_unknown_names_are_answered_with_the_nearest(tmp_path: Path):
    path = tmp_path / "people.sqlite"
    enrol(path, "anna")
    with open_store(path) as store:
        with pytest.raises(InputError, match=r"'ana' is not enrolled in .*did you mean 'anna'"):
            store.person("ana")
        with pytest.raises(InputError, match="'ana' is not enrolled"):
            store.forget("ana")
        store.forget("anna")
        with pytest.raises(InputError, match="nobody is"):
            store.person("anna")


@pytest.mark.parametrize(
    ("other", "match"),
    [
        (card("b"), r"was made with another model \(ResNet34 aaaaaaaaaaaa\) than this one \(ResNet34 bbbbbbbbbbbb\)"),
        (card(mean=0.25), r"was made with another mean of the embeddings of this model"),
        (card(dim=8, mean=0.5), r"was made with another mean"),
    ],
)
def test_a_store_of_another_model_is_refused(tmp_path: Path, other: Card, match: str):
    path = tmp_path / "people.sqlite"
    enrol(path, "anna")
    with open_store(path) as store:
        store.check_model(card())
        with pytest.raises(InputError, match=f"{match}.*enrol the people again in a new store"):
            store.check_model(other)
    with pytest.raises(InputError, match=match):
        enrol(path, "berta", of=other)
    with open_store(path) as store:
        store.forget("anna")
    enrol(path, "berta", of=other)  # nobody is left whose voiceprint could be compared wrongly


def test_several_at_once_each_come_in(tmp_path: Path):
    path = tmp_path / "people.sqlite"
    names = [f"p{i}" for i in range(12)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda i: enrol(path, names[i], i), range(12)))
    with open_store(path) as store:
        assert [person.name for person in store.people()] == sorted(names)


def test_a_store_in_use_is_a_sentence_and_nothing_is_half_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "TIMEOUT_SEC", 0.05)
    path = tmp_path / "people.sqlite"
    vector = enrol(path, "anna")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN")
    other.execute("SELECT * FROM person").fetchone()  # a reader
    with (
        pytest.raises(InputError, match=r"is in use by another process for more than 0\.05 s"),
        open_store(path) as store,
    ):
        store.forget("anna")
    other.execute("ROLLBACK")
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(InputError, match="is in use"), open_store(path):
        pass
    other.close()
    with open_store(path) as store:
        np.testing.assert_array_equal(store.person("anna").voiceprint, vector)


def foreign(path: Path, script: str) -> None:
    database = sqlite3.connect(path)
    database.executescript(script)
    database.close()


@pytest.mark.parametrize(
    ("script", "match"),
    [
        ("CREATE TABLE cookies (name TEXT)", "is a database of another program"),
        (
            f"PRAGMA application_id = {module.APPLICATION_ID}; PRAGMA user_version = 2",
            r"schema \(version 2, this .* 1\)",
        ),
        (f"PRAGMA application_id = {module.APPLICATION_ID}; PRAGMA user_version = 1", "of another schema"),
    ],
)
def test_other_databases_are_refused(tmp_path: Path, script: str, match: str):
    foreign(tmp_path / "a.db", script)
    before = (tmp_path / "a.db").read_bytes()
    for create in (False, True):
        with pytest.raises(InputError, match=match), open_store(tmp_path / "a.db", create=create):
            pass
    assert (tmp_path / "a.db").read_bytes() == before


def test_a_store_with_a_trigger_of_somebodys_is_refused(tmp_path: Path):
    enrol(tmp_path / "a.db", "anna")
    foreign(
        tmp_path / "a.db", "CREATE TRIGGER t AFTER DELETE ON person BEGIN INSERT INTO person VALUES (1,1,1,1,1); END"
    )
    with pytest.raises(InputError, match="of another schema"), open_store(tmp_path / "a.db"):
        pass


def test_what_is_no_store_is_a_sentence(tmp_path: Path):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "pipe")
    for name, match in (
        ("none", "does not exist"),
        ("a.txt", "no SQLite file"),
        ("empty", "is empty"),
        ("pipe", "pipe"),
    ):
        with pytest.raises(InputError, match=match), open_store(tmp_path / name):
            pass
    with pytest.raises(InputError, match="no SQLite file"):
        enrol(tmp_path / "a.txt", "anna")
    assert (tmp_path / "a.txt").read_text() == "text"
    enrol(tmp_path / "empty", "anna")


@pytest.mark.parametrize(
    "change",
    [
        "voiceprint = x'00'",
        "voiceprint = zeroblob(64)",
        "seconds = 'long'",
        "num_files = 'many'",
        "name = char(27) || 'm'",
    ],
)
def test_a_damaged_person_is_a_sentence(tmp_path: Path, change: str):
    enrol(tmp_path / "a.db", "anna")
    foreign(tmp_path / "a.db", f"UPDATE person SET {change}")
    with open_store(tmp_path / "a.db") as store, pytest.raises(InputError, match="is damaged: what it has of"):
        store.people()


def test_names_are_printable_and_have_one_spelling():
    assert check_name("Jose\u0301") == "José"
    for name in ("", " anna", "an\nna", "a" * 201, "\x1b[31m"):
        with pytest.raises(InputError, match="a name must have 1 to 200 printable characters"):
            check_name(name)
