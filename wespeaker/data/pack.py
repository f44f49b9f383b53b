"""Stage 2: audio of any kind into tar shards of wav or flac, in parallel, resumable, checked."""

from __future__ import annotations

import io
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

from wespeaker.data.audio import AudioSource, quick_header, read_audio, read_bytes, read_whole
from wespeaker.data.randomness import generator
from wespeaker.data.resampling import resample
from wespeaker.data.riff import Pcm16, find_pcm16
from wespeaker.data.shards import ShardIndex, check_member_name, index_path, load_index, save_index
from wespeaker.data.utterances import NO_PCM, TableBuilder, Utterance, make_table
from wespeaker.errors import InputError
from wespeaker.files import remove_abandoned, replacing, write_lines
from wespeaker.parallel import map_in_processes
from wespeaker.progress import progress
from wespeaker.ranks import ALONE, Ranks, gathered, shares, wait_for_all

MEMBER_FORMATS = ("wav", "flac")
RESAMPLED, FIRST_CHANNEL, REDUCED = "resampled", "of several channels, the first taken", "reduced to 16 bits"
_MORE_THAN_16_BITS = ("PCM_24", "PCM_32", "FLOAT", "DOUBLE")
_PROBE = 400  # samples at the end of a member that are read to check it


@dataclass
class Packed:
    """What was packed."""

    shards: list[Path]
    num_utts: int
    seconds: float
    changed: Counter[str]  # utterances by what was changed: RESAMPLED, FIRST_CHANNEL, REDUCED


class _Task(NamedTuple):
    shard: Path
    utterances: list[Utterance]


def write_shards(
    folder: Path,
    utterances: Sequence[Utterance],
    *,
    utts_per_shard: int,
    seed: int,
    rate: int,
    member_format: str = "wav",
    num_jobs: int = 1,
    ranks: Ranks = ALONE,
) -> Packed:
    """Pack utterances, shuffled, into tar files and write ``shard.list`` beside the folder.

    A shard that is complete (its index is written last) is kept, so an interrupted call goes on where it stopped. The
    list is written when every member was read through the index, and the old one is removed first.

    Args:
        folder: where ``shards_000000000.tar`` and so on go.
        utterances: what to pack; audio that is a mono file of ``member_format`` and ``rate`` is copied as it is.
        utts_per_shard: how many go in one tar file.
        seed: of the shuffle.
        rate: sample rate in Hz that members get.
        member_format: one of ``MEMBER_FORMATS``; both have 16 bits, unless a flac file of more is copied.
        num_jobs: processes.
        ranks: machines that share the work, each with ``num_jobs`` processes, and a file system: each makes its own
            of the shards, which are the same whoever makes them.

    Returns:
        What all machines packed.

    Raises:
        InputError: an audio file cannot be read or is not as long as its entry says.

    """
    utterances = make_table(utterances)
    order = generator(seed, "shards").permutation(len(utterances))
    starts = range(0, len(order), utts_per_shard)
    shards = [folder / f"shards_{number:09d}.tar" for number in range(len(starts))]
    shard_list = folder.parent / "shard.list"
    if ranks.first:
        shard_list.unlink(missing_ok=True)
        _clean(folder, shards)
    wait_for_all(ranks)
    seconds = utterances.seconds
    owners = shares([float(seconds[order[first : first + utts_per_shard]].sum()) for first in starts], ranks.world_size)

    def tasks() -> Iterator[_Task]:
        for shard, first, owner in zip(shards, starts, owners, strict=True):
            if owner == ranks.rank:
                yield _Task(shard, [utterances[int(i)] for i in order[first : first + utts_per_shard]])

    pack = partial(_pack, rate=rate, member_format=member_format)
    results = map_in_processes(pack, tasks(), num_jobs=num_jobs)
    mine = list(progress(results, desc="packing shards", total=owners.count(ranks.rank)))
    packed = Packed(shards, 0, 0.0, Counter())
    for num_utts, num_seconds, changed in (shard for some in gathered(mine, ranks) for shard in some):
        packed.num_utts += num_utts
        packed.seconds += num_seconds
        packed.changed += changed
    wanted = float(seconds.sum())
    if packed.num_utts != len(utterances) or abs(packed.seconds - wanted) > len(utterances) / rate + 1e-6 * wanted:
        raise RuntimeError(
            f"{packed.num_utts} utterances of {packed.seconds} s are packed, not {len(utterances)} of {wanted} s"
        )
    if ranks.first:
        write_lines(shard_list, (str(shard.resolve()) for shard in shards))
    wait_for_all(ranks)
    return packed


def _clean(folder: Path, shards: Sequence[Path]) -> None:
    """Remove shards of an earlier, larger set and what a killed process left half-written."""
    wanted = {path for shard in shards for path in (shard, index_path(shard))}
    for stale in set(folder.glob("shards_*.tar*")) - wanted:
        stale.unlink()
    if folder.is_dir():
        remove_abandoned(folder, ".shards_*.partial*")


def _pack(task: _Task, *, rate: int, member_format: str) -> tuple[int, float, Counter[str]]:
    """Make a shard if it is not there, check it, and return its utterances, seconds and changes."""
    index = _complete_index(task, rate=rate, member_format=member_format)
    if index is None:
        _write_shard(task, rate=rate, member_format=member_format)
        index = load_index(task.shard)
        _check_members(index)
    return len(index.table), float(index.table.seconds.sum()), index.changed


def _complete_index(task: _Task, *, rate: int, member_format: str) -> ShardIndex | None:
    """Return the index of a shard that is there and holds what is wanted, in the format that is wanted."""
    if not (task.shard.exists() and index_path(task.shard).exists()):
        return None
    try:
        index = load_index(task.shard)
        _check_members(index)
    except InputError:
        return None
    is_wav = index.table.rows["pcm"] != NO_PCM
    same_format = np.all(is_wav == (member_format == "wav")) and np.all(index.table.rows["rate"] == rate)
    wanted = sorted(task.utterances, key=lambda utt: utt.key)
    same_utts = len(index.table) == len(wanted) and all(
        (have.key, have.spk) == (want.key, want.spk) and abs(have.seconds - want.seconds) <= 1 / rate
        for have, want in zip(index.table, wanted, strict=True)
    )
    return index if same_format and same_utts else None


def _check_members(index: ShardIndex) -> None:
    """Read the end of every member through the index."""
    for utt in index.table:
        count = min(_PROBE, utt.length[0])
        if len(read_audio(utt.source, utt.length[0] - count, count)) != count:
            raise InputError(f"{utt.key} in {utt.source.path} is shorter than its index says")


def _write_shard(task: _Task, *, rate: int, member_format: str) -> None:
    """Write the tar file, then its index."""
    index_path(task.shard).unlink(missing_ok=True)
    builder, changed = TableBuilder(), Counter[str]()
    with replacing(task.shard) as temporary, tarfile.open(temporary, "w") as tar:
        for utt in task.utterances:
            check_member_name(task.shard, utt.key)
            try:
                member = make_member(utt, rate=rate, member_format=member_format)
            except InputError as error:
                raise InputError(f"{utt.key} cannot be packed: {error}") from error
            except Exception as error:
                raise RuntimeError(f"packing {utt.key} ({utt.source}) into {task.shard} failed") from error
            _append(tar, f"{utt.key}.spk", utt.spk.encode())
            offset = _append(tar, f"{utt.key}.{member_format}", member.data)
            source = AudioSource(str(task.shard), offset, len(member.data), member.pcm)
            builder.add(Utterance(utt.key, utt.spk, source, (member.num_samples, rate)))
            changed.update(member.changed)
    save_index(task.shard, ShardIndex(builder.table(), changed=changed))


def _append(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    """Append a member and return the offset of its data."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
    return tar.offset - -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


class Member(NamedTuple):
    """Audio as it goes into a tar file."""

    data: bytes
    num_samples: int
    pcm: Pcm16 | None
    changed: list[str]  # what was done to it, beside decoding


def make_member(utt: Utterance, *, rate: int, member_format: str) -> Member:
    """Return an utterance's audio as a mono file of the asked format and rate.

    Raises:
        InputError: the audio is damaged, or not as long as the utterance says.

    """
    header = quick_header(utt.source)
    is_wav = member_format == "wav"
    is_whole = not utt.source.segments
    if is_whole and header and (header.rate, header.channels, header.container) == (rate, 1, member_format.upper()):
        if is_wav and header.pcm is not None:
            _check_length(utt, header.num_samples, rate)
            return Member(read_bytes(utt.source), header.num_samples, header.pcm, [])
        if not is_wav:
            wav, _, _ = read_whole(utt.source)  # a damaged frame anywhere shows
            _check_length(utt, len(wav), rate)
            return Member(read_bytes(utt.source), len(wav), None, [])
    wav, source_rate, channels = read_whole(utt.source)
    _check_length(utt, len(wav), source_rate)
    reduced = header is not None and header.encoding in _MORE_THAN_16_BITS
    happened = {RESAMPLED: source_rate != rate, FIRST_CHANNEL: channels > 1, REDUCED: reduced}
    wav = resample(wav, Fraction(source_rate, rate))
    samples = np.rint(wav * 32768).clip(-32768, 32767).astype(np.int16)
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=member_format.upper(), subtype="PCM_16")
    file.seek(0)
    found = find_pcm16(file, len(file.getbuffer()))
    changed = [what for what, was_done in happened.items() if was_done]
    return Member(file.getvalue(), len(samples), found[0] if found else None, changed)


def _check_length(utt: Utterance, num_samples: int, rate: int) -> None:
    if (num_samples, rate) != utt.length:
        raise InputError(
            f"{utt.source} has {num_samples} samples at {rate} Hz, its entry says {utt.length[0]} at {utt.length[1]}; "
            f"run stage 1 again"
        )
