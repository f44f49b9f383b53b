"""Stage 1: from the published folders to manifests, trial lists and decoded audio."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from wespeaker.data.audio import AudioSource, audio_length, decode_to_wav
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
from wespeaker.data.manifest import Utterance, read_pairs, write_manifest
from wespeaker.data.randomness import generator
from wespeaker.data.trials import Trials, read_trials, write_kaldi_trials
from wespeaker.errors import InputError, listing
from wespeaker.files import write_lines
from wespeaker.progress import progress

logger = logging.getLogger(__name__)

DEV_TRIALS = "dev.kaldi"  # in the folder of the set whose speakers show the progress of training
CORPORA_FILE = "corpora.txt"  # in the data folder: which corpora it was made from

DEV_SPEAKERS, DEV_UTTS_PER_SPEAKER = 40, 8  # at most; all pairs of them are the dev trials


def prepare_corpora(
    corpora: Corpora,
    output_dir: Path,
    *,
    num_threads: int,
    rate: int,
    max_bad_share: float = 0.0,
    seed: int = 42,
) -> None:
    """Write ``vox2_dev``, ``vox1``, ``vox2_test`` (if there is one), ``musan`` and ``rirs`` below ``output_dir``.

    Args:
        corpora: the folders; musan and rirs may be missing.
        output_dir: the data folder.
        num_threads: files read or decoded at a time.
        rate: sample rate in Hz that m4a is decoded to and that noises and room responses must have.
        max_bad_share: share of unreadable files up to which they are left out and named in ``bad.txt``.
        seed: draws the dev trials.

    Raises:
        InputError: unreadable audio, a speaker in training and test, a trial that names no utterance, and so on.

    """
    if corpora.voxceleb1 is None or corpora.voxceleb2 is None:
        raise InputError("the folders of both VoxCeleb1 and VoxCeleb2 are needed; give --voxceleb1 and --voxceleb2")
    named = name_corpora(output_dir, vars(corpora))
    collect = partial(
        collect_utterances, speaker_of=_speaker, num_threads=num_threads, rate=rate, max_bad_share=max_bad_share
    )
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
    test_utts = collect(test, output_dir / "vox1")
    for name, trials in lists.items():
        write_kaldi_trials(output_dir / "vox1" / "trials" / f"{name}.kaldi", trials)
    _log_counts("vox2_dev", train_utts)
    _log_counts("vox1", test_utts)
    if dev:
        dev_utts = collect(dev, output_dir / "vox2_test")
        _log_counts("vox2_test", dev_utts)
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
    num_threads: int,
    rate: int,
    max_bad_share: float,
) -> list[Utterance]:
    """Read the header of each file, decode those that soundfile does not read, and write the manifest.

    Args:
        files: key to audio file.
        folder: the data set; decoded audio goes to ``wav`` in it.
        speaker_of: gives the speaker of a key.
        num_threads: files read or decoded at a time.
        rate: sample rate in Hz that m4a is decoded to.
        max_bad_share: share of unreadable files up to which they are left out and named in ``bad.txt``.

    Returns:
        The utterances of the readable files, in the order of ``files``.

    Raises:
        InputError: more files than that cannot be read; the first are named.

    """
    read = partial(_prepare_utterance, speaker_of=speaker_of, wav_dir=folder / "wav", rate=rate)
    good, bad = _map_files(read, list(files.items()), num_threads=num_threads, desc=f"reading {folder.name}")
    if len(bad) > max_bad_share * len(files):
        raise InputError(
            f"{len(bad)} of {len(files)} audio files for {folder} cannot be used: {listing(bad)}; "
            f"mend them, or leave them out with --max_bad_share {min(1.0, 1.01 * len(bad) / len(files)):.2g}"
        )
    if bad:
        write_lines(folder / "bad.txt", bad)
        logger.warning("%s: left out %d unreadable files, named in %s", folder.name, len(bad), folder / "bad.txt")
    write_manifest(folder, good)
    return good


def _prepare_utterance(
    item: tuple[str, Path], *, speaker_of: Callable[[str], str], wav_dir: Path, rate: int
) -> Utterance:
    key, path = item
    if path.suffix.lower() == ".m4a":
        wav = wav_dir / key
        if not wav.exists():
            decode_to_wav(path, wav, rate=rate)
        path = wav
    source = AudioSource(str(path.resolve()))
    return Utterance(key, speaker_of(key), source, audio_length(source))


def _map_files(
    function: Callable[[tuple[str, Path]], Utterance],
    items: Sequence[tuple[str, Path]],
    *,
    num_threads: int,
    desc: str,
) -> tuple[list[Utterance], list[str]]:
    """Apply a function in threads (the codecs release the interpreter lock); collect results and sentences."""

    def attempt(item: tuple[str, Path]) -> Utterance | str:
        try:
            return function(item)
        except InputError as error:
            return str(error)

    with ThreadPoolExecutor(num_threads) as pool:
        results = list(progress(pool.map(attempt, items), desc=desc, total=len(items)))
    return [r for r in results if isinstance(r, Utterance)], [r for r in results if isinstance(r, str)]


def _log_counts(name: str, utterances: Sequence[Utterance]) -> None:
    num_utts, num_spks = len(utterances), len({utt.spk for utt in utterances})
    hours = sum(utt.seconds for utt in utterances) / 3600
    published = PUBLISHED_COUNTS.get(name)
    whole = ""
    if published is not None:
        same = (num_utts, num_spks) == published
        whole = ", as published" if same else ", published: {:,} of {:,}".format(*published)
    logger.info("%s: %d utterances of %d speakers%s; %.1f hours", name, num_utts, num_spks, whole, hours)


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
