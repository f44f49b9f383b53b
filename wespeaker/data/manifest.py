"""Kaldi-style manifests: wav.scp, utt2spk, spk2utt, utt2dur, vad, raw.list; every error names file and line."""

from __future__ import annotations

import hashlib
import json
import logging
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from wespeaker.data.audio import AudioSource, audio_length
from wespeaker.data.segments import MAX_SAMPLES, from_seconds, to_seconds
from wespeaker.data.utterances import TableBuilder, Utterance, UtteranceTable, make_table
from wespeaker.documents import parse_json
from wespeaker.errors import InputError, listing
from wespeaker.files import find_listed, replacing, write_lines

logger = logging.getLogger(__name__)

MAX_BAD_UTTS = 0.001  # share of the utterances of a set that may be unreadable, and are left out then
LENGTHS = "utt2num_samples"  # beside wav.scp: "key samples rate", so that no header is read twice
NO_FEATURES = (
    "this is a list of features (feat.list), which are not read: training cuts, perturbs and augments audio and then "
    "makes features of it; list the audio with tools/make_raw_list.py, or pack it with tools/make_shards.py"
)
VAD = "vad"  # beside wav.scp, where it is there: "… key start end" in seconds, the parts of utterances that are used


def read_lines(path: Path, what: str) -> Iterator[tuple[str, str]]:
    """Yield (``file:line``, stripped text) of each line that is not blank.

    Args:
        path: the file.
        what: what it is, for the error, such as ``the list of speakers``.

    Raises:
        InputError: the file is missing, not text, or has no line.

    """
    if not path.is_file():
        raise InputError(f"{path} ({what}) does not exist; run the stage that makes it first")
    found = False
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if text := line.strip():
                    found = True
                    yield f"{path}:{number}", text
    except UnicodeDecodeError as error:
        raise InputError(f"{path} ({what}) is not a text file in UTF-8") from error
    if not found:
        raise InputError(f"{path} ({what}) is empty")


def read_pairs(path: Path, what: str) -> dict[str, str]:
    """Read ``key value`` lines, blanks or tabs between the two; the value may hold more of them.

    Raises:
        InputError: with file and line, for a line without a value or a key that comes twice.

    """
    pairs: dict[str, str] = {}
    for where, text in read_lines(path, what):
        key, *values = text.split(maxsplit=1)
        if not values:
            raise InputError(f"{where}: expected 'key value' in {what}, found {text!r}")
        if key in pairs:
            raise InputError(f"{where}: {key} is in {what} twice")
        pairs[key] = values[0]
    return pairs


def read_scp(path: Path, *, allow_pipes: bool = False) -> dict[str, str]:
    """Read a wav.scp: key to path; relative paths are looked for as `find_listed` says.

    Raises:
        InputError: also for an entry that is a shell command (ends in ``|``), unless ``allow_pipes``.

    """
    entries = read_pairs(path, "the list of audio files")
    for key, value in entries.items():
        if not value.endswith("|"):
            entries[key] = find_listed(value, path)
        elif not allow_pipes:
            _refuse_pipe(value, f"{path}: {key}")
    return entries


def _refuse_pipe(value: str, where: str) -> None:
    if value.endswith("|"):
        raise InputError(
            f"{where} is a shell command ({value!r}); commands are not run, give a file, "
            f"or have stage 2 run them with --allow_pipes if you trust the list"
        )


def _run_pipe(command: str, folder: Path) -> str:
    """Run the command of a wav.scp once, keep the wav that it prints, and return the path of that."""
    path = folder / f"{hashlib.sha256(command.encode()).hexdigest()[:32]}.wav"
    if not path.exists():
        with replacing(path) as temporary, open(temporary, "wb") as file:
            done = subprocess.run(command[:-1], shell=True, stdout=file, stderr=subprocess.PIPE, check=False)
            if done.returncode != 0:
                said = " ".join(done.stderr.decode(errors="replace").split())[-200:]
                raise InputError(f"the command {command!r} ended with code {done.returncode}: {said}")
    return str(path.resolve())


def write_manifest(folder: Path, utterances: Sequence[Utterance]) -> None:
    """Write wav.scp, utt2spk, spk2utt, utt2dur and utt2num_samples of a data set, sorted by key."""
    table = make_table(utterances)
    by_speaker = np.argsort(table.labels, kind="stable")
    ends = np.cumsum(np.bincount(table.labels, minlength=len(table.speakers)))
    groups = np.split(by_speaker, ends[:-1])
    write_lines(folder / "utt2spk", (f"{utt.key} {utt.spk}" for utt in table))
    write_lines(
        folder / "spk2utt",
        (f"{spk} {' '.join(table.keys[int(i)] for i in of)}" for spk, of in zip(table.speakers, groups, strict=True)),
    )
    write_lines(folder / "utt2dur", (f"{utt.key} {utt.seconds:.6f}" for utt in table))
    write_lines(folder / "wav.scp", (f"{utt.key} {utt.source.path}" for utt in table))
    write_lines(folder / LENGTHS, (f"{utt.key} {utt.length[0]} {utt.length[1]}" for utt in table))  # last: the newest


def read_manifest(folder: Path, *, allow_pipes: bool = False) -> UtteranceTable:
    """Read wav.scp and utt2spk of a data set, and lengths from utt2num_samples, else from the headers.

    Where there is a ``vad``, utterances are its segments, one after the other; those without any are left out.

    Args:
        folder: of the data set.
        allow_pipes: run the entries of wav.scp that are shell commands, once, and keep what they print in ``piped``.

    Raises:
        InputError: the two files do not hold the same keys, or a file cannot be read.

    """
    paths = read_scp(folder / "wav.scp", allow_pipes=allow_pipes)
    speakers = read_pairs(folder / "utt2spk", "the speaker of each utterance")
    if paths.keys() != speakers.keys():
        odd = sorted(paths.keys() ^ speakers.keys())
        raise InputError(f"{folder}: wav.scp and utt2spk must have the same keys; {odd[0]} is in one only")
    commands = [path for path in paths.values() if path.endswith("|")]
    if commands:
        logger.warning("running %d shell commands of %s, such as %r", len(commands), folder / "wav.scp", commands[0])
    lengths = read_lengths(folder)
    vad = read_vad(folder / VAD) if (folder / VAD).is_file() else None
    builder, silent = TableBuilder(), []
    for key, path in paths.items():
        source = AudioSource(_run_pipe(path, folder / "piped") if path.endswith("|") else path)
        try:
            utt = Utterance(key, speakers[key], source, lengths.get(key) or audio_length(source))
            if vad is not None:
                utt = _cut(utt, vad.get(key, []), end=utt.length[0])
            if utt.length[0] or vad is None:
                builder.add(utt)
            else:
                silent.append(key)
        except InputError as error:
            raise InputError(f"{folder / 'wav.scp'}: {key}: {error}; correct the list, or make it again") from error
    if vad is not None:
        logger.info("%s: utterances are cut to the segments of %s", folder, VAD)
    _log_silent(silent, folder)
    return builder.table()


def read_vad(path: Path) -> dict[str, list[tuple[str, str]]]:
    """Read the segments of utterances: lines that end with ``key start end``, in seconds.

    Raises:
        InputError: with file and line, for one of fewer columns.

    """
    vad: dict[str, list[tuple[str, str]]] = {}
    for where, text in read_lines(path, "the speech segments"):
        try:
            key, start, end = text.split()[-3:]
        except ValueError as error:
            raise InputError(f"{where}: expected '… key start end', found {text[:80]!r}") from error
        vad.setdefault(key, []).append((start, end))
    return vad


def _cut(utt: Utterance, seconds: object, *, end: int) -> Utterance:
    """Return an utterance cut to its segments that lie before sample ``end``; it has no sample if none does."""
    segments = from_seconds(seconds, rate=utt.length[1], num_samples=end)
    source = replace(utt.source, segments=segments)
    return replace(utt, source=source, length=(sum(end - start for start, end in segments), utt.length[1]))


def _log_silent(silent: Sequence[str], where: Path) -> None:
    if silent:
        logger.warning(
            "%s: left out %d utterances without a segment of speech: %s", where, len(silent), listing(silent)
        )


def read_lengths(folder: Path) -> dict[str, tuple[int, int]]:
    """Return (samples, sample rate in Hz) by key; nothing where wav.scp was changed after they were written.

    Raises:
        InputError: with file and line.

    """
    path = folder / LENGTHS
    if not path.exists() or path.stat().st_mtime_ns < (folder / "wav.scp").stat().st_mtime_ns:
        return {}
    lengths = {}
    for where, text in read_lines(path, "the length of each utterance"):
        try:
            key, samples, rate = text.split()
            lengths[key] = int(samples), int(rate)
        except ValueError as error:
            raise InputError(f"{where}: expected 'key samples rate', found {text[:80]!r}") from error
    return lengths


def write_raw_list(path: Path, utterances: Sequence[Utterance]) -> int:
    """Write WeSpeaker's raw.list, a JSON object a line, with the length added; return the number of lines."""
    return write_lines(path, (json.dumps(_raw_entry(utt), ensure_ascii=False) for utt in utterances))


def _raw_entry(utt: Utterance) -> dict[str, object]:
    samples, rate = utt.length
    entry: dict[str, object] = {"key": utt.key, "spk": utt.spk, "wav": utt.source.path}
    if utt.source.segments:
        entry["vad"] = to_seconds(utt.source.segments, rate=rate)
    return {**entry, "num_samples": samples, "sample_rate": rate}


def read_raw_list(path: Path) -> UtteranceTable:
    """Read a raw.list, WeSpeaker's too; where a line lacks the length, the file's header is read.

    Of an entry with segments (``vad``: pairs of seconds) these are used, one after the other, and the length is theirs;
    one without any left is left out. Relative paths are looked for as `find_listed` says.

    Raises:
        InputError: with file and line; also for an entry that is a shell command, and for a feat.list.

    """
    builder, silent = TableBuilder(), []
    for where, text in read_lines(path, "the list of utterances"):
        entry = parse_json(text, where)
        if isinstance(entry, dict) and "feat" in entry and "wav" not in entry:
            raise InputError(f"{where}: {NO_FEATURES}")
        try:
            key, spk, wav = str(entry["key"]), str(entry["spk"]), str(entry["wav"])
            known = (int(entry["num_samples"]), int(entry["sample_rate"])) if "num_samples" in entry else None
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise InputError(f'{where}: expected {{"key": …, "spk": …, "wav": …}}, found {text[:80]!r}') from error
        _refuse_pipe(wav, f"{where}: {key}")
        try:
            source = AudioSource(find_listed(wav, path))
            utt = Utterance(key, spk, source, known or audio_length(source))
            if "vad" in entry:
                utt = _cut(utt, entry["vad"], end=utt.length[0] if known is None else MAX_SAMPLES)
            if known and utt.length != known:
                raise InputError(f"{key}: the segments (vad) have {utt.length[0]} samples, its entry says {known[0]}")
            if utt.length[0] or "vad" not in entry:
                builder.add(utt)
            else:
                silent.append(key)
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
    _log_silent(silent, path)
    return builder.table()
