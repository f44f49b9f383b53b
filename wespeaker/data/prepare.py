"""Stage 1: from the published folders to manifests and trial lists."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from wespeaker.data.audio import AudioSource, audio_length
from wespeaker.data.corpora import (
    NOISE_KINDS,
    PUBLISHED_COUNTS,
    Corpora,
    find_files,
    find_speech,
    find_trial_lists,
    in_test_part,
    is_published_list,
    noise_root,
    rirs_root,
)
from wespeaker.data.manifest import LENGTHS, MAX_BAD_UTTS, read_lengths, read_pairs, read_scp, write_manifest
from wespeaker.data.randomness import generator
from wespeaker.data.trials import Trials, read_trials, write_kaldi_trials
from wespeaker.data.utterances import TableBuilder, Utterance, UtteranceTable
from wespeaker.errors import InputError, listing
from wespeaker.files import write_lines
from wespeaker.parallel import map_in_processes
from wespeaker.progress import progress

logger = logging.getLogger(__name__)

DEV_TRIALS = "dev.kaldi"  # in the folder of the set whose speakers show the progress of training
CORPORA_FILE = "corpora.txt"  # in the data folder: which corpora it was made from

_CHUNK = 500  # files that a process takes at a time

DEV_SPEAKERS, DEV_UTTS_PER_SPEAKER = 40, 8  # at most; all pairs of them are the dev trials


def prepare_corpora(
    corpora: Corpora,
    output_dir: Path,
    *,
    num_jobs: int,
    rate: int,
    max_bad_utts: float = MAX_BAD_UTTS,
    seed: int = 42,
) -> None:
    """Write ``vox2_dev``, ``vox1``, ``vox2_test`` (if there is one), ``musan`` and ``rirs`` below ``output_dir``.

    Args:
        corpora: the folders; musan and rirs may be missing.
        output_dir: the data folder.
        num_jobs: processes that read headers and decode.
        rate: sample rate in Hz that noises and room responses must have.
        max_bad_utts: share of unreadable files up to which they are left out and named in ``bad.txt``.
        seed: draws the dev trials.

    Raises:
        InputError: unreadable audio, a speaker in training and test, a trial that names no utterance, and so on.

    """
    if corpora.voxceleb1 is None or corpora.voxceleb2 is None:
        raise InputError("the folders of both VoxCeleb1 and VoxCeleb2 are needed; give --voxceleb1 and --voxceleb2")
    named = name_corpora(output_dir, vars(corpora))
    collect = partial(collect_utterances, speaker_of=_speaker, num_jobs=num_jobs, max_bad_utts=max_bad_utts)
    vox2 = dict(find_speech(corpora.voxceleb2))
    train = {key: path for key, path in vox2.items() if not in_test_part(path, corpora.voxceleb2)}
    dev = {key: path for key, path in vox2.items() if key not in train}
    test = dict(find_speech(corpora.voxceleb1))
    for root, found in ((corpora.voxceleb2, train), (corpora.voxceleb1, test)):
        if not found:
            raise InputError(f"there is no audio of VoxCeleb's layout under {root}; stage 0 says what should be there")
    _check_disjoint(train, {"vox1": test, "vox2_test": dev})
    lists = _read_lists(corpora.voxceleb1, test)

    write_lines(output_dir / CORPORA_FILE, (f"{name} {path}" for name, path in named.items()))
    train_utts = collect(train, output_dir / "vox2_dev")
    test_utts = collect(test, output_dir / "vox1", needed={utt for trials in lists.values() for utt in trials.utts})
    for name, trials in lists.items():
        write_kaldi_trials(output_dir / "vox1" / "trials" / f"{name}.kaldi", trials)
    log_counts("vox2_dev", train_utts)
    log_counts("vox1", test_utts)
    if dev:
        dev_utts = collect(dev, output_dir / "vox2_test")
        log_counts("vox2_test", dev_utts)
        write_kaldi_trials(output_dir / "vox2_test" / DEV_TRIALS, make_dev_trials(dev_utts, seed=seed))
    else:
        logger.info("VoxCeleb2's test part is not there; dev trials are of vox1: to watch by, not to choose by")
        write_kaldi_trials(output_dir / "vox1" / DEV_TRIALS, make_dev_trials(test_utts, seed=seed))
    prepare_banks(output_dir, musan=corpora.musan, rirs=corpora.rirs, rate=rate)


def prepare_banks(output_dir: Path, *, musan: Path | None, rirs: Path | None, rate: int) -> None:
    """Write the manifests of noises and room responses, ``musan`` and ``rirs``, where their folders are given.

    Raises:
        InputError: a file has another sample rate than ``rate``, or there is none.

    """
    if musan is not None:
        root = noise_root(musan)
        files = (path for kind in NOISE_KINDS for path in find_files(root / kind, (".wav", ".flac")))
        _write_bank(output_dir / "musan", root, files, rate=rate)
    if rirs is not None:
        root = rirs_root(rirs)
        _write_bank(output_dir / "rirs", root, find_files(root / "simulated_rirs", (".wav", ".flac")), rate=rate)


def name_corpora(output_dir: Path, folders: Mapping[str, Path | None]) -> dict[str, str]:
    """Return which folders a data folder is made from; refuse to mix two corpora in one data folder.

    Raises:
        InputError: ``CORPORA_FILE`` in ``output_dir`` names another folder.

    """
    stamp = output_dir / CORPORA_FILE
    named = {name: str(path.resolve()) for name, path in folders.items() if path is not None}
    if stamp.exists():
        before = read_pairs(stamp, "the corpora of this data folder")
        changed = [name for name in named if before.get(name, named[name]) != named[name]]
        if changed:
            raise InputError(
                f"{output_dir} was prepared from {changed[0]} {before[changed[0]]}, now it is {named[changed[0]]}; "
                f"give another data folder, or remove this one"
            )
        named = {**before, **named}
    return named


def _speaker(key: str) -> str:
    """Return the speaker of a key of VoxCeleb."""
    return key.split("/", 1)[0]


def _check_disjoint(train: Iterable[str], others: dict[str, Iterable[str]]) -> None:
    speakers = {_speaker(key) for key in train}
    for name, keys in others.items():
        both = sorted(speakers & {_speaker(key) for key in keys})
        if both:
            raise InputError(f"{len(both)} speakers are in the training set and in {name}: {listing(both)}")


def _read_lists(root: Path, test: dict[str, Path]) -> dict[str, Trials]:
    lists = {}
    for name, path in find_trial_lists(root).items():
        trials = read_trials(path)
        unknown = sorted(set(trials.utts) - test.keys())
        if unknown:
            raise InputError(
                f"{path} names {len(unknown)} utterances of which there is no audio under {root} "
                f"({listing(unknown, 3)}); get the audio, or move the list away to go without it"
            )
        published = is_published_list(name, path)
        logger.info("%s: %d trials, %s", name, len(trials), "as published" if published else "not a published list")
        lists[name] = trials
    return lists


def collect_utterances(
    files: dict[str, Path],
    folder: Path,
    *,
    speaker_of: Callable[[str], str],
    num_jobs: int,
    max_bad_utts: float = 0.0,
    needed: Collection[str] = (),
) -> UtteranceTable:
    """Read the header of each file and write the manifest; m4a is decoded to count its samples, and left as it is.

    What an earlier call found is kept for files that have not changed since.

    Args:
        files: key to audio file.
        folder: the data set.
        speaker_of: gives the speaker of a key.
        num_jobs: processes.
        max_bad_utts: share of unreadable files up to which they are left out and named in ``bad.txt``.
        needed: keys that cannot be left out.

    Returns:
        The utterances of the readable files.

    Raises:
        InputError: more files than that cannot be read, or one that is needed; the first are named.

    """
    known = _known_lengths(files, folder)
    builder = TableBuilder()
    for key, length in known.items():
        builder.add(Utterance(key, speaker_of(key), AudioSource(str(files[key].resolve())), length))
    unknown = [key for key in files if key not in known]
    starts = range(0, len(unknown), _CHUNK)
    chunks = ([(key, str(files[key].resolve())) for key in unknown[first : first + _CHUNK]] for first in starts)
    results = map_in_processes(_lengths_of, chunks, num_jobs=min(num_jobs, len(starts)))
    bad: dict[str, str] = {}
    for chunk in progress(results, desc=f"reading {folder.name}", total=len(starts)):
        for key, path, found in chunk:
            if isinstance(found, str):
                bad[key] = found
            else:
                builder.add(Utterance(key, speaker_of(key), AudioSource(path), found))
    sentences = list(bad.values())
    if lost := [sentence for key, sentence in bad.items() if key in needed]:
        raise InputError(f"{len(lost)} audio files that trials name cannot be used: {listing(lost)}; mend them")
    if len(bad) > max_bad_utts * len(files):
        raise InputError(
            f"{len(bad)} of {len(files)} audio files for {folder} cannot be used: {listing(sentences)}; "
            f"mend them, or leave them out with --max_bad_utts {min(1.0, 1.01 * len(bad) / len(files)):.2g}"
        )
    (folder / "bad.txt").unlink(missing_ok=True)
    if bad:
        write_lines(folder / "bad.txt", sentences)
        logger.warning("%s: left out %d unreadable files, named in %s", folder.name, len(bad), folder / "bad.txt")
    table = builder.table()
    write_manifest(folder, table)
    return table


def _known_lengths(files: Mapping[str, Path], folder: Path) -> dict[str, tuple[int, int]]:
    """Return what the manifest of an earlier call says of the files that are older than it."""
    lengths = read_lengths(folder)
    if not lengths:
        return {}
    written = (folder / LENGTHS).stat().st_mtime_ns
    known = {}
    for key, path in read_scp(folder / "wav.scp").items():
        file = files.get(key)
        if file is not None and path == str(file.resolve()) and file.stat().st_mtime_ns < written and key in lengths:
            known[key] = lengths[key]
    return known


def _lengths_of(items: Sequence[tuple[str, str]]) -> list[tuple[str, str, tuple[int, int] | str]]:
    """Return (key, path, length, or the sentence that says why there is none) of files."""
    results: list[tuple[str, str, tuple[int, int] | str]] = []
    for key, path in items:
        try:
            results.append((key, path, audio_length(AudioSource(path))))
        except InputError as error:
            results.append((key, path, str(error)))
    return results


def log_counts(name: str, utterances: UtteranceTable) -> None:
    """Log the size of a set, beside the published one if it has the name of a published set."""
    num_utts, num_spks = len(utterances), len(utterances.speakers)
    hours = utterances.seconds.sum() / 3600
    published = PUBLISHED_COUNTS.get(name)
    whole = ""
    if published is not None:
        same = (num_utts, num_spks) == published
        whole = ", as published" if same else ", published: {:,} of {:,}".format(*published)
    logger.info("%s: %d utterances of %d speakers%s; %.2f hours", name, num_utts, num_spks, whole, hours)


def _write_bank(folder: Path, root: Path, files: Iterable[Path], *, rate: int) -> None:
    entries = []
    for path in files:
        _, found = audio_length(AudioSource(str(path)))
        if found != rate:
            raise InputError(f"{path} has {found} Hz; noises and room responses must have {rate} Hz")
        entries.append(f"{path.relative_to(root)} {path.resolve()}")
    if not entries:
        raise InputError(f"there is no wav file under {root} for {folder}")
    write_lines(folder / "wav.scp", entries)
    logger.info("%s: %d files", folder.name, len(entries))


def make_dev_trials(utterances: Sequence[Utterance], *, seed: int) -> Trials:
    """Make the trials that show the progress of training: at most 51,040, of 40 speakers with 8 utterances each."""
    return make_trials(utterances, seed=seed, num_speakers=DEV_SPEAKERS, utts_per_speaker=DEV_UTTS_PER_SPEAKER)


def make_trials(utterances: Sequence[Utterance], *, seed: int, num_speakers: int, utts_per_speaker: int) -> Trials:
    """Draw speakers and utterances and pair all of them.

    A session is the folder in the key (VoxCeleb's video). Where a speaker has two, no trial is of one session:
    same-session targets are told by their channel.

    Args:
        utterances: to draw from.
        seed: of the draws.
        num_speakers: draw at most so many speakers.
        utts_per_speaker: draw at most so many utterances of each.

    Returns:
        The pairs; there is no target trial where no speaker has two utterances.

    """
    by_speaker: dict[str, list[str]] = {}
    for utt in sorted(utterances, key=lambda utt: utt.key):
        by_speaker.setdefault(utt.spk, []).append(utt.key)
    rng = generator(seed, "dev trials")
    chosen = [str(spk) for spk in rng.permutation(sorted(by_speaker))[:num_speakers]]
    drawn = [(spk, str(key)) for spk in chosen for key in rng.permutation(by_speaker[spk])[:utts_per_speaker]]
    keys = [key for _, key in drawn]
    spk = np.array([spk for spk, _ in drawn])
    session = np.array([key.rsplit("/", 1)[0] for key in keys])
    enroll, test = np.triu_indices(len(keys), k=1)
    is_target = spk[enroll] == spk[test]
    across = session[enroll] != session[test]
    if np.any(is_target & across):
        enroll, test, is_target = enroll[across], test[across], is_target[across]
    return Trials(keys, enroll.astype(np.int32), test.astype(np.int32), is_target)
