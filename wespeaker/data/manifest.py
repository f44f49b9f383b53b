"""Kaldi-style manifests: wav.scp, utt2spk, spk2utt, utt2dur, raw.list; every error names file and line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from wespeaker.data.audio import AudioSource, audio_length
from wespeaker.errors import InputError
from wespeaker.files import write_lines


@dataclass(frozen=True, slots=True)
class Utterance:
    """One recording of one speaker."""

    key: str  # such as id10001/1zcIwhmdeo4/00001.wav
    spk: str
    source: AudioSource
    length: tuple[int, int]  # samples, sample rate in Hz

    @property
    def seconds(self) -> float:
        """Duration in seconds."""
        return self.length[0] / self.length[1]


@dataclass(frozen=True, slots=True)
class BankFile:
    """One noise or room impulse response; the first part of the key is its kind (``noise/free-sound/x.wav``)."""

    key: str
    source: AudioSource
    length: tuple[int, int]  # samples, sample rate in Hz

    @property
    def kind(self) -> str:
        """``noise``, ``speech`` or ``music``; for room impulse responses the name of the collection."""
        return self.key.split("/", 1)[0]


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
    """Read ``key value`` lines; the value may hold spaces.

    Raises:
        InputError: with file and line, for a line without a value or a key that comes twice.

    """
    pairs: dict[str, str] = {}
    for where, text in read_lines(path, what):
        key, _, value = text.partition(" ")
        if not value.strip():
            raise InputError(f"{where}: expected 'key value' in {what}, found {text!r}")
        if key in pairs:
            raise InputError(f"{where}: {key} is in {what} twice")
        pairs[key] = value.strip()
    return pairs


def read_scp(path: Path) -> dict[str, str]:
    """Read a wav.scp: key to path.

    Raises:
        InputError: also for an entry that is a shell command (ends in ``|``), which is never executed.

    """
    entries = read_pairs(path, "the list of audio files")
    for key, value in entries.items():
        if value.endswith("|"):
            raise InputError(f"{path}: {key} is a shell command ({value!r}); commands are not run, give a file")
    return entries


def write_manifest(folder: Path, utterances: Sequence[Utterance]) -> None:
    """Write wav.scp, utt2spk, spk2utt and utt2dur of a data set, sorted by key."""
    ordered = sorted(utterances, key=lambda utt: utt.key)
    by_speaker: dict[str, list[str]] = {}
    for utt in ordered:
        by_speaker.setdefault(utt.spk, []).append(utt.key)
    write_lines(folder / "utt2spk", (f"{utt.key} {utt.spk}" for utt in ordered))
    write_lines(folder / "spk2utt", (f"{spk} {' '.join(keys)}" for spk, keys in sorted(by_speaker.items())))
    write_lines(folder / "utt2dur", (f"{utt.key} {utt.seconds:.6f}" for utt in ordered))
    write_lines(folder / "wav.scp", (f"{utt.key} {utt.source.path}" for utt in ordered))


def read_manifest(folder: Path) -> list[Utterance]:
    """Read wav.scp and utt2spk of a data set and the header of each file.

    Raises:
        InputError: the two files do not hold the same keys, or a file cannot be read.

    """
    paths = read_scp(folder / "wav.scp")
    speakers = read_pairs(folder / "utt2spk", "the speaker of each utterance")
    if paths.keys() != speakers.keys():
        odd = sorted(paths.keys() ^ speakers.keys())
        raise InputError(f"{folder}: wav.scp and utt2spk must have the same keys; {odd[0]} is in one only")
    sources = {key: AudioSource(path) for key, path in paths.items()}
    return [Utterance(key, speakers[key], source, audio_length(source)) for key, source in sources.items()]


def write_raw_list(path: Path, utterances: Sequence[Utterance]) -> int:
    """Write WeSpeaker's raw.list, a JSON object a line, with the length added; return the number of lines."""
    return write_lines(path, (json.dumps(_raw_entry(utt), ensure_ascii=False) for utt in utterances))


def _raw_entry(utt: Utterance) -> dict[str, object]:
    samples, rate = utt.length
    return {"key": utt.key, "spk": utt.spk, "wav": utt.source.path, "num_samples": samples, "sample_rate": rate}


def read_raw_list(path: Path) -> list[Utterance]:
    """Read a raw.list; where a line lacks the length, the file's header is read.

    Raises:
        InputError: with file and line.

    """
    utterances = []
    for where, text in read_lines(path, "the list of utterances"):
        try:
            entry = json.loads(text)
            key, spk, wav = entry["key"], entry["spk"], entry["wav"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f'{where}: expected {{"key": …, "spk": …, "wav": …}}, found {text[:80]!r}') from error
        if wav.endswith("|"):
            raise InputError(f"{where}: {wav!r} is a shell command; commands are not run, give a file")
        source = AudioSource(wav)
        known = (entry["num_samples"], entry["sample_rate"]) if "num_samples" in entry else audio_length(source)
        utterances.append(Utterance(key, spk, source, known))
    return utterances


def read_bank(path: Path) -> list[BankFile]:
    """Read the wav.scp of a noise or room bank and the header of each file."""
    sources = {key: AudioSource(wav) for key, wav in read_scp(path).items()}
    return [BankFile(key, source, audio_length(source)) for key, source in sources.items()]
