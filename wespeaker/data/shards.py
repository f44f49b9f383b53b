"""WeSpeaker's tar shards (``<key>.spk`` then ``<key>.<ext>``) with an index, read as map-style data.

The index beside each tar says where the audio of an utterance lies and how long it is, so a two-second crop reads two
seconds and no shuffle buffer is needed. A tar without one, made by WeSpeaker, is indexed when it is first used.

Layout of ``<name>.tar.index``: a line of JSON, the head, then the rows (``ROW``, little-endian), the ends of the keys
(int64) and the keys themselves (UTF-8, nothing between), sorted. The head holds ``version``, ``rows``, ``key_bytes``,
``speakers`` (sorted, the rows number them), ``crc32`` of all that follows, ``tar_bytes`` and ``tar_crc32`` (of a few
places of the tar file, so an index knows its tar wherever both are copied), ``bad`` (the sentences of members that
cannot be read) and ``changed`` (what packing had to change: how many utterances were resampled, and so on).
"""

from __future__ import annotations

import json
import logging
import os
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

import numpy as np
from pydantic import BaseModel, ValidationError

from wespeaker.data.audio import AudioSource, read_header
from wespeaker.data.manifest import MAX_BAD_UTTS, read_lines
from wespeaker.data.tar import DamagedTarError, TarMember, read_members
from wespeaker.data.utterances import (
    ROW,
    TableBuilder,
    Texts,
    Utterance,
    UtteranceTable,
    check_table,
    merge_tables,
)
from wespeaker.errors import InputError, listing
from wespeaker.files import find_listed, open_plain, replacing
from wespeaker.progress import progress

logger = logging.getLogger(__name__)

INDEX_SUFFIX = ".index"
VERSION = 1
AUDIO_SUFFIXES = ("wav", "flac", "mp3", "ogg", "opus", "m4a", "wma")  # WeSpeaker's
_MAX_SPEAKER_BYTES = 1024  # of a .spk member
_PLACES, _PLACE_BYTES = 4, 1024  # of a tar file, in its checksum
_READERS, _READ_AHEAD = 8, 64  # indexes read at a time, which hides the delays of a network disk, and in memory


@dataclass
class ShardIndex:
    """What lies in a tar file."""

    table: UtteranceTable  # all rows of one file, the tar
    bad: list[str] = field(default_factory=list)
    changed: Counter[str] = field(default_factory=Counter)


def index_path(shard: Path) -> Path:
    """Return where the index of a tar file lies."""
    return shard.with_name(shard.name + INDEX_SUFFIX)


def read_shard_list(path: Path, *, max_bad_utts: float = MAX_BAD_UTTS) -> UtteranceTable:
    """Open all tar files that a shard.list names; relative paths are looked for as `find_listed` says.

    Those that have no index get one; where none can be written beside the tar, it is kept in memory.

    Args:
        path: the list.
        max_bad_utts: share of utterances that may be unreadable; they are left out and named in the log.

    Raises:
        InputError: a tar file or an index is missing, damaged, or does not fit the other; too many utterances are bad.

    """
    shards = [_existing(text, path) for _, text in read_lines(path, "the list of shards")]
    missing = [shard for shard in shards if not index_path(shard).exists()]
    if missing:
        logger.info("%d of %d shards of %s have no index; it is made now, once", len(missing), len(shards), path)
    made = {shard: _make_index(shard) for shard in progress(missing, desc="indexing shards")}
    bad: list[str] = []

    def tables() -> Iterator[UtteranceTable]:
        with ThreadPoolExecutor(_READERS) as pool:
            for first in range(0, len(shards), _READ_AHEAD):
                some = shards[first : first + _READ_AHEAD]
                for index in pool.map(lambda shard: made.get(shard) or load_index(shard), some):
                    bad.extend(index.bad)
                    yield index.table

    table = merge_tables(tables())
    if len(bad) > max_bad_utts * (len(table) + len(bad)):
        raise InputError(
            f"{len(bad)} of {len(table) + len(bad)} utterances of {path} are bad: {listing(bad)}; "
            f"mend them, or allow more with dataset_args.max_bad_utts ({max_bad_utts:g} now)"
        )
    if bad:
        logger.warning("%s: left out %d bad utterances: %s", path, len(bad), listing(bad))
    return table


def _existing(text: str, listed_in: Path) -> Path:
    path = find_listed(text, listed_in)
    if not os.path.isfile(path):
        where = "" if os.path.isabs(path) else f", neither in {os.getcwd()} nor in the folder of the list or above it"
        raise InputError(
            f"{text} (a shard, named in {listed_in}) does not exist{where}; run stage 2 again, or correct the list"
        )
    return Path(path)


def _make_index(shard: Path) -> ShardIndex:
    index = scan_shard(shard)
    try:
        save_index(shard, index)
    except OSError as error:
        reason = f"{index_path(shard)} cannot be written ({error.strerror})"
        logger.warning("%s; the index is kept in memory and made anew at each start", reason)
    return index


def scan_shard(shard: Path) -> ShardIndex:
    """Go through the headers of a tar file and of the audio in it.

    Audio that cannot be read is listed in the index; the tar file itself must be whole.

    Raises:
        InputError: the tar file is damaged or cut short, a member lies outside of it (an absolute path, ``..``) or is
            not a plain file, speaker and audio do not come in pairs.

    """
    builder, bad, decoded_whole = TableBuilder(), [], 0
    for key, speaker, audio in _pairs(shard):
        if audio is None:
            raise InputError(f"{shard}: {key}.spk has no audio beside it ({', '.join(AUDIO_SUFFIXES)})")
        if not speaker:
            raise InputError(f"{shard}: {audio.name} has no speaker: {key}.spk is missing or empty")
        source = AudioSource(str(shard), audio.offset, audio.size)
        try:
            header = read_header(source)
        except InputError as error:
            bad.append(f"{audio.name}: {error}")
            continue
        decoded_whole += header.container == "FFMPEG"
        builder.add(Utterance(key, speaker, replace(source, pcm=header.pcm), header[:2]))
    if decoded_whole:
        logger.warning(
            "%s: %d members are decoded whole for each crop (m4a, wma); pack wav or flac with tools/make_shards.py",
            shard, decoded_whole,
        )  # fmt: skip
    return ShardIndex(builder.table(), bad)


def _pairs(shard: Path) -> Iterator[tuple[str, str | None, TarMember | None]]:
    """Yield key, speaker and audio member of neighbours of the same name; what is missing is None."""
    last = "the start"
    try:
        with open_plain(shard) as file:
            key, speaker, audio = "", None, None
            for member in read_members(file):
                last = member.name
                _check_member(shard, member)
                stem, _, suffix = member.name.rpartition(".")
                if member.kind == "folder" or suffix.lower() not in ("spk", *AUDIO_SUFFIXES):
                    continue
                if stem != key and (speaker, audio) != (None, None):
                    yield key, speaker, audio
                    speaker = audio = None
                key = stem
                if suffix.lower() in AUDIO_SUFFIXES:
                    audio = member
                else:
                    file.seek(member.offset)
                    speaker = file.read(min(member.size, _MAX_SPEAKER_BYTES + 1)).decode().strip()
            if (speaker, audio) != (None, None):
                yield key, speaker, audio
    except (DamagedTarError, UnicodeDecodeError, OSError) as error:
        raise InputError(f"{shard} is damaged after {last} ({error}); copy or make it again") from error


def check_member_name(shard: Path, name: str) -> None:
    """Check that a member would stay in its folder if someone unpacked the tar file.

    Raises:
        InputError: the name is an absolute path or has ``..`` in it.

    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise InputError(f"{shard}: the member {name} would lie outside of the folder it is unpacked in; it is refused")


def _check_member(shard: Path, member: TarMember) -> None:
    check_member_name(shard, member.name)
    if member.kind == "other":
        raise InputError(f"{shard}: the member {member.name} is not a plain file; it is refused")


class _Head(BaseModel, strict=True):
    """The first line of an index."""

    version: int
    rows: int
    key_bytes: int
    crc32: int
    tar_bytes: int
    tar_crc32: int
    bad: list[str]
    changed: dict[str, int]
    speakers: list[str]


def save_index(shard: Path, index: ShardIndex) -> None:
    """Write the index of a tar file beside it."""
    table = index.table
    body = table.rows.tobytes() + table.keys.ends.astype("<i8").tobytes() + table.keys.blob
    tar_bytes, tar_crc32 = tar_fingerprint(shard)
    head = _Head(
        version=VERSION,
        rows=len(table),
        key_bytes=len(table.keys.blob),
        crc32=zlib.crc32(body),
        tar_bytes=tar_bytes,
        tar_crc32=tar_crc32,
        bad=index.bad,
        changed=index.changed,
        speakers=table.speakers,
    )
    with replacing(index_path(shard)) as temporary:
        temporary.write_bytes(json.dumps(head.model_dump()).encode() + b"\n" + body)


def load_index(shard: Path) -> ShardIndex:
    """Read the index of a tar file and check that it belongs to it.

    Raises:
        InputError: it is damaged, says what cannot be, or was made from another tar file.

    """
    path = index_path(shard)
    again = f"remove {path.name} and it is made anew, or run stage 2 again"
    line, _, body = path.read_bytes().partition(b"\n")
    try:
        head = _Head.model_validate_json(line)
    except ValidationError as error:
        raise InputError(f"{path} (the index of a shard) is damaged; {again}") from error
    if head.version != VERSION:
        raise InputError(f"{path} has layout {head.version}, this program reads {VERSION}; {again}")
    keys_at = head.rows * ROW.itemsize
    blob_at = keys_at + 8 * head.rows
    if min(head.rows, head.key_bytes) < 0 or len(body) != blob_at + head.key_bytes or zlib.crc32(body) != head.crc32:
        raise InputError(f"{path} (the index of a shard) is damaged; {again}")
    if (found := tar_fingerprint(shard)) != (head.tar_bytes, head.tar_crc32):
        raise InputError(
            f"{path} was made from another {shard.name}: that one had {head.tar_bytes} bytes and checksum "
            f"{head.tar_crc32}, this one has {found[0]} and {found[1]}; {again}"
        )
    table = UtteranceTable(
        Texts(body[blob_at:], np.frombuffer(body[keys_at:blob_at], "<i8")),
        head.speakers,
        Texts.of([str(shard)]),
        np.frombuffer(body[:keys_at], ROW),
    )
    try:
        check_table(table, num_bytes=head.tar_bytes)
    except InputError as error:
        raise InputError(f"{path} (the index of a shard) {error}; {again}") from error
    return ShardIndex(table, head.bad, Counter(head.changed))


def tar_fingerprint(shard: Path) -> tuple[int, int]:
    """Return (size in bytes, CRC-32 of a kibibyte at the start, a quarter, half and three quarters of it)."""
    with open_plain(shard, buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        crc = 0
        for place in range(_PLACES):
            file.seek(place * size // _PLACES)
            crc = zlib.crc32(file.read(_PLACE_BYTES), crc)
    return size, crc
