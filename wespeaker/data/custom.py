"""Stage 1 for any folder tree of speech: who speaks is read from the paths; a part is held out for trials."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from wespeaker.data.corpora import find_files
from wespeaker.data.manifest import MAX_BAD_UTTS, write_manifest
from wespeaker.data.prepare import (
    CORPORA_FILE,
    DEV_TRIALS,
    collect_utterances,
    log_counts,
    make_dev_trials,
    make_trials,
    name_corpora,
    prepare_banks,
)
from wespeaker.data.randomness import generator
from wespeaker.data.trials import write_kaldi_trials
from wespeaker.data.utterances import UtteranceTable
from wespeaker.errors import InputError, listing
from wespeaker.files import write_lines

logger = logging.getLogger(__name__)

SUFFIXES = ("wav", "flac", "m4a", "mp3", "ogg", "opus")
TRAIN, TEST = "train", "test"  # sets in the data folder
TRIALS = "trials/test.kaldi"  # in the test set

SpeakerRule = Callable[[str], str | None]
"""Gives the speaker of a file from its path below the folder, with slashes; None where it does not apply."""


def speaker_from_parent(level: int) -> SpeakerRule:
    """Name the speaker after a folder above the file.

    >>> speaker_from_parent(1)("smith/monday/a.wav"), speaker_from_parent(2)("smith/monday/a.wav")
    ('monday', 'smith')

    Args:
        level: 1 is the folder that holds the file, 2 the one above it, and so on.

    Raises:
        InputError: ``level`` is less than 1.

    """
    if level < 1:
        raise InputError(f"--spk_level must be at least 1 (the folder that holds the file), found {level}")

    def rule(path: str) -> str | None:
        folders = PurePosixPath(path).parts[:-1]
        return folders[-level] if level <= len(folders) else None

    return rule


def speaker_from_regex(pattern: str) -> SpeakerRule:
    """Name the speaker after what the one group of a regular expression finds anywhere in the path.

    >>> speaker_from_regex(r"/(spk[0-9]+)_")("calls/spk07_0001.wav")
    'spk07'

    Raises:
        InputError: it is no regular expression, or has not exactly one group.

    """
    try:
        regex = re.compile(pattern)
    except re.error as error:
        raise InputError(f"--spk_regex {pattern!r} is not a regular expression ({error})") from error
    if regex.groups != 1:
        raise InputError(
            f"--spk_regex {pattern!r} has {regex.groups} groups; put one pair of parentheses around the part of the "
            f"path that names the speaker, and write other groups as (?:...)"
        )

    def rule(path: str) -> str | None:
        found = regex.search(path)
        return found[1] or None if found else None

    return rule


def prepare_folder(
    wav_dir: Path,
    output_dir: Path,
    *,
    speaker_of: SpeakerRule,
    num_jobs: int,
    rate: int,
    suffixes: Sequence[str] = SUFFIXES,
    skip_unmatched: bool = False,
    max_bad_utts: float = MAX_BAD_UTTS,
    num_test_speakers: int = 0,
    utts_per_test_speaker: int = 8,
    seed: int = 42,
    musan: Path | None = None,
    rirs: Path | None = None,
) -> UtteranceTable:
    """Write the manifest of all audio below a folder; with test speakers also ``train`` and ``test`` with trials.

    The key of an utterance is its path below ``wav_dir``, so it stays the same when files are added; that of
    an m4a ends in ``.wav``, as in VoxCeleb's lists. Each speaker draws a number by its name and the seed, and the
    lowest are held out, so that a new speaker moves at most one other between training and test.

    Args:
        wav_dir: the folder tree.
        output_dir: the data folder.
        speaker_of: the rule.
        num_jobs: processes that read headers and decode.
        rate: sample rate in Hz that noises and room responses must have.
        suffixes: which files are audio, without the dot.
        skip_unmatched: leave out the files that have no speaker by the rule, and name them in ``unmatched.txt``.
        max_bad_utts: share of unreadable files up to which they are left out and named in ``bad.txt``.
        num_test_speakers: speakers that are held out of training; 0: none, and no trials.
        utts_per_test_speaker: all pairs of so many utterances of each are the trials.
        seed: draws the test speakers and their utterances.
        musan: folder of MUSAN, for training with noise.
        rirs: folder of RIRS_NOISES, for training with reverberation.

    Returns:
        All utterances.

    Raises:
        InputError: no audio, names that Kaldi's files cannot hold, files without a speaker, too few speakers,
            unreadable audio.

    """
    if output_dir.resolve().is_relative_to(wav_dir.resolve()):
        raise InputError(
            f"--output_dir {output_dir} lies in --wav_dir {wav_dir}; what is decoded there would be taken for speech, "
            f"so give a folder elsewhere"
        )
    named = name_corpora(output_dir, {"wav_dir": wav_dir, "musan": musan, "rirs": rirs})
    found = _find_audio(wav_dir, suffixes)
    speakers = {path: spk for path in found if (spk := speaker_of(path)) is not None}
    unmatched = [path for path in found if path not in speakers]
    if unmatched and not skip_unmatched:
        raise InputError(
            f"{len(unmatched)} of {len(found)} files below {wav_dir} have no speaker by this rule: "
            f"{listing(unmatched, 3)}; change --spk_from, --spk_level or --spk_regex, "
            f"or leave them out with --skip_unmatched"
        )
    _check_speakers(speakers.values(), wav_dir, num_test_speakers)

    write_lines(output_dir / CORPORA_FILE, (f"{name} {path}" for name, path in named.items()))
    if unmatched:
        write_lines(output_dir / "unmatched.txt", unmatched)
        logger.warning("left out %d files without a speaker, named in %s", len(unmatched), output_dir / "unmatched.txt")
    by_key = {_key(path): spk for path, spk in speakers.items()}
    utterances = collect_utterances(
        {_key(path): found[path] for path in speakers},
        output_dir,
        speaker_of=by_key.__getitem__,
        num_jobs=num_jobs,
        max_bad_utts=max_bad_utts,
    )
    _check_speakers((utt.spk for utt in utterances), wav_dir, num_test_speakers)  # some files may be left out
    log_counts(str(output_dir), utterances)
    if num_test_speakers:
        _write_parts(
            output_dir, utterances, num_speakers=num_test_speakers, utts_per_speaker=utts_per_test_speaker, seed=seed
        )
    prepare_banks(output_dir, musan=musan, rirs=rirs, rate=rate)
    return utterances


def _find_audio(root: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    """Return path below the root, with slashes, to file."""
    if not root.is_dir():
        raise InputError(f"--wav_dir {root} is not a folder; name the top of the folders with the audio")
    wanted = tuple("." + suffix.lower().lstrip(".") for suffix in suffixes)
    found = {path.relative_to(root).as_posix(): path for path in find_files(root, wanted)}
    if not found:
        raise InputError(f"there is no audio below {root} (files that end in {listing(wanted)}); name the right folder")
    unfit = [path for path in found if not _fits_kaldi(path)]
    if unfit:
        raise InputError(
            f"{len(unfit)} of {len(found)} files below {root} have blanks or bytes that are not UTF-8 in their path: "
            f"{listing([repr(path) for path in unfit], 3)}; the lines of wav.scp and utt2spk end a name at the first "
            f"blank, so rename them (a blank to _, say)"
        )
    stems = Counter(_stem(path) for path in found)
    twins = [path for path in found if stems[_stem(path)] > 1]
    if twins:
        raise InputError(
            f"{len(twins)} files below {root} differ in their suffix only: {listing(twins, 4)}; they would be one "
            f"utterance in a tar file, so choose the format to use with --suffix, or rename them"
        )
    return found


def _fits_kaldi(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return not any(letter.isspace() for letter in path)


def _stem(path: str) -> str:
    return path.rpartition(".")[0]


def _key(path: str) -> str:
    """Return the key of a file: its path, ending in ``.wav`` for an m4a, as in VoxCeleb's lists."""
    return f"{_stem(path)}.wav" if path.lower().endswith(".m4a") else path


def _check_speakers(speakers: Iterable[str], wav_dir: Path, num_test_speakers: int) -> None:
    """Check that there are speakers enough to train and to test; ``speakers`` has one entry an utterance."""
    utts = Counter(speakers)
    if len(utts) < 2:
        raise InputError(
            f"{utts.total()} files below {wav_dir} are of {len(utts)} speaker{'' if len(utts) == 1 else 's'} by this "
            f"rule ({listing(list(utts))}); at least two are needed: check --spk_from, --spk_level and --spk_regex"
        )
    if num_test_speakers == 0:
        return
    able = sum(count > 1 for count in utts.values())
    most = min(able, len(utts) - 2)
    if not 2 <= num_test_speakers <= most:
        raise InputError(
            f"--num_test_speakers {num_test_speakers} does not go with {len(utts)} speakers below {wav_dir}, {able} of "
            f"them with two or more utterances: trials need two of those, training two speakers more; "
            f"{f'give 2 to {most}' if most >= 2 else 'record more speakers, or leave the option out'}"
        )


def _write_parts(
    output_dir: Path, utterances: UtteranceTable, *, num_speakers: int, utts_per_speaker: int, seed: int
) -> None:
    """Write the training set, and the test set with its trials."""
    held_out = _draw_speakers(utterances, num_speakers, seed=seed)
    train, test = utterances.select(~held_out), utterances.select(held_out)
    trials = make_trials(test, seed=seed, num_speakers=num_speakers, utts_per_speaker=utts_per_speaker)
    if not trials.is_target.any() or trials.is_target.all():
        raise InputError(
            f"{utts_per_speaker} utterances of each test speaker give no trials of both kinds, target and nontarget; "
            f"raise --utts_per_test_speaker"
        )
    for name, part in ((TRAIN, train), (TEST, test)):
        write_manifest(output_dir / name, part)
        log_counts(str(output_dir / name), part)
    write_kaldi_trials(output_dir / TEST / TRIALS, trials)
    write_kaldi_trials(output_dir / TEST / DEV_TRIALS, make_dev_trials(test, seed=seed))
    num_target = int(trials.is_target.sum())
    logger.info("%s: %d target, %d nontarget trials", TRIALS, num_target, len(trials) - num_target)


def _draw_speakers(utterances: UtteranceTable, number: int, *, seed: int) -> np.ndarray:
    """Draw speakers that have two utterances, each by a number of its own; return which utterances are theirs."""
    able = np.flatnonzero(np.bincount(utterances.labels) > 1).tolist()
    draws = sorted(able, key=lambda i: generator(seed, "test speaker", utterances.speakers[i]).random())
    return np.isin(utterances.labels, draws[:number])
