"""Noise and room banks: a wav.scp, or WeSpeaker's LMDB database of the same keys."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from wespeaker.data.audio import AudioSource, read_header
from wespeaker.data.lmdb import DamagedLmdbError, read_values
from wespeaker.data.manifest import read_scp
from wespeaker.errors import InputError
from wespeaker.files import open_plain

LMDB_FILE = "data.mdb"  # in the folder of a database
_LIST_OF_KEYS = b"__keys__"  # WeSpeaker's pickled list of the other keys, which are in the database anyway


@dataclass(frozen=True, slots=True)
class BankFile:
    """One noise or room impulse response."""

    key: str  # such as noise/free-sound/x.wav
    source: AudioSource
    length: tuple[int, int]  # samples, sample rate in Hz


def read_bank(path: Path) -> list[BankFile]:
    """Read a bank and the header of each of its files.

    Args:
        path: a wav.scp, or the folder of an LMDB database whose values are audio files, as of WeSpeaker's
            ``make_lmdb.py``. Files of the same keys and contents are drawn and read the same from both.

    Raises:
        InputError: the list or the database is missing or damaged, or a file cannot be read, with its key.

    """
    files = []
    for key, source in _values(path) if path.is_dir() else _entries(path):
        try:
            header = read_header(source)
        except InputError as error:
            raise InputError(f"{path}: {key}: {error}") from error
        files.append(BankFile(key, replace(source, pcm=header.pcm), (header.num_samples, header.rate)))
    return files


def _entries(scp: Path) -> Iterator[tuple[str, AudioSource]]:
    for key, wav in read_scp(scp).items():
        yield key, AudioSource(wav)


def _values(folder: Path) -> Iterator[tuple[str, AudioSource]]:
    """Yield the files in a database, each as a span of it."""
    path = folder / LMDB_FILE
    if not path.is_file():
        raise InputError(f"{folder} (a bank) holds no {LMDB_FILE}; give a wav.scp, or the folder of an LMDB database")
    try:
        with open_plain(path) as file:
            for value in read_values(file):
                if value.key != _LIST_OF_KEYS:
                    yield value.key.decode(), AudioSource(str(path), value.offset, value.size)
    except (DamagedLmdbError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no LMDB database of audio files, or is damaged ({error}); make it again") from None
