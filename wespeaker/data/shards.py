"""WeSpeaker's tar shards (``<key>.spk`` then ``<key>.<ext>``) with an index, read as map-style data.

The index beside each tar gives where a member lies and how long its audio is, so a two-second crop reads two
seconds and no shuffle buffer is needed. A line of it: key, speaker, offset and size in bytes, samples, sample rate.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path

from wespeaker.data.audio import AudioSource
from wespeaker.data.manifest import Utterance, read_lines
from wespeaker.data.randomness import generator
from wespeaker.errors import InputError
from wespeaker.files import replacing, write_lines

INDEX_SUFFIX = ".index"


def write_shards(folder: Path, utterances: Sequence[Utterance], *, utts_per_shard: int, seed: int) -> list[Path]:
    """Pack utterances, shuffled, into tar files and write ``shard.list`` beside the folder.

    A shard that is complete (its index is written last) is kept, so an interrupted call goes on where it stopped.

    Args:
        folder: where ``shards_000000000.tar`` and so on go.
        utterances: each from a file of its own.
        utts_per_shard: how many go in one tar file.
        seed: of the shuffle.

    Returns:
        The tar files.

    Raises:
        InputError: an audio file cannot be read.

    """
    order = generator(seed, "shards").permutation(len(utterances))
    paths = []
    for number, first in enumerate(range(0, len(order), utts_per_shard)):
        path = folder / f"shards_{number:09d}.tar"
        _write_shard(path, [utterances[i] for i in order[first : first + utts_per_shard]])
        paths.append(path)
    for stale in set(folder.glob("shards_*.tar*")) - {p for path in paths for p in (path, index_path(path))}:
        stale.unlink()
    write_lines(folder.parent / "shard.list", (str(path.resolve()) for path in paths))
    return paths


def index_path(shard: Path) -> Path:
    """Return where the index of a tar file lies."""
    return shard.with_name(shard.name + INDEX_SUFFIX)


def _write_shard(path: Path, utterances: Sequence[Utterance]) -> None:
    if path.exists() and index_path(path).exists() and _indexed(path) == _wanted(utterances):
        return
    rows = []
    with replacing(path) as temporary, tarfile.open(temporary, mode="w") as tar:
        for utt in utterances:
            stem, extension = os.path.splitext(utt.key)
            audio = Path(utt.source.path).read_bytes()
            _add(tar, f"{stem}.spk", utt.spk.encode())
            offset = _add(tar, f"{stem}{extension or Path(utt.source.path).suffix}", audio)
            rows.append(f"{utt.key}\t{utt.spk}\t{offset}\t{len(audio)}\t{utt.length[0]}\t{utt.length[1]}")
    write_lines(index_path(path), rows)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    """Append a member and return the offset of its data."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
    return tar.offset - -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _indexed(path: Path) -> list[tuple[str, str, tuple[int, int]]]:
    return _wanted(read_index(path))


def _wanted(utterances: Sequence[Utterance]) -> list[tuple[str, str, tuple[int, int]]]:
    return [(utt.key, utt.spk, utt.length) for utt in utterances]


def read_index(shard: Path) -> list[Utterance]:
    """Read the index of one tar file.

    Raises:
        InputError: with file and line; also where tar file or index is missing.

    """
    if not shard.exists():
        raise InputError(f"{shard} (a shard) does not exist; run stage 2 again")
    size_on_disk = shard.stat().st_size
    utterances = []
    for where, text in read_lines(index_path(shard), f"the index of {shard.name}"):
        try:
            key, spk, *numbers = text.split("\t")
            offset, size, samples, rate = map(int, numbers)
        except ValueError as error:
            raise InputError(f"{where}: expected key, speaker and four numbers, found {text[:80]!r}") from error
        if offset + size > size_on_disk:
            raise InputError(f"{shard} is shorter than its index says; remove it and run stage 2 again")
        utterances.append(Utterance(key, spk, AudioSource(str(shard), offset, size), (samples, rate)))
    return utterances


def read_shard_list(path: Path) -> list[Utterance]:
    """Read the indexes of all tar files that a shard.list names."""
    return [utt for _, shard in read_lines(path, "the list of shards") for utt in read_index(Path(shard))]
