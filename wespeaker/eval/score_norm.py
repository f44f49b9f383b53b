"""Score normalisation with a cohort of training speakers: AS-Norm and S-Norm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wespeaker.data.manifest import read_pairs
from wespeaker.data.trials import AnyTrials, Trials, read_any_scores, write_scores
from wespeaker.errors import InputError, listing
from wespeaker.eval.embeddings import (
    SPEAKER_XVECTOR,
    PathLike,
    centred_norms,
    check_mean_vec,
    find_rows,
    load_embeddings,
    load_mean_vec,
)

METHODS = ("asnorm", "snorm")
DEFAULT_TOP_N = 300  # of 5,994 speakers: WeSpeaker's recipe for VoxCeleb

# Cohort scores are cosines; those of a trained network spread by some 0.05. Where they are all but equal, as for a
# cohort that holds one voice many times, their spread is rounding, and dividing by it would make scores of 1e15.
STD_FLOOR = 1e-4

# Utterances at a time: 25 MB of float64 scores with 5,994 speakers. An utterance takes 74 µs with 512 or 1024 of them,
# 86 µs with 64 (the matrix product is slower) and 123 µs with 4096 (scores leave the cache).
BLOCK = 512


@dataclass(frozen=True)
class Cohort:
    """The C speakers that utterances are compared with."""

    spks: Sequence[str]
    directions: NDArray[np.float64]  # (C, D): speaker means minus mean_vec, of norm 1
    mean_vec: NDArray[np.float64]  # (D,): subtracted from utterances too


@dataclass(frozen=True)
class CohortStatistics:
    """What U utterances score with their cohort: what score normalisation and calibration need of them."""

    norm: NDArray[np.float64]  # (U,): of the embedding minus mean_vec
    mean: NDArray[np.float64]  # (U,): of the cohort scores
    std: NDArray[np.float64]  # (U,): population standard deviation, at least STD_FLOOR

    def __getitem__(self, rows: NDArray[np.intp]) -> CohortStatistics:
        return CohortStatistics(self.norm[rows], self.mean[rows], self.std[rows])


def make_cohort(
    utts: Sequence[str], embeddings: ArrayLike, utt2spk: Mapping[str, str], *, mean_vec: ArrayLike | None = None
) -> Cohort:
    """Average the embeddings of each speaker, subtract ``mean_vec`` and scale to norm 1.

    As in WeSpeaker, the embeddings are averaged as they are: a long one weighs more than a short one.

    Args:
        utts: the U utterances that have embeddings.
        embeddings: (U, D), any float dtype.
        utt2spk: the speaker of each utterance.
        mean_vec: (D,), the mean of the training embeddings; None subtracts nothing.

    Returns:
        The cohort, speakers in alphabetical order, computed in float64.

    Raises:
        InputError: if the two do not have the same utterances, or if a mean is not finite or has norm 0 after the
            subtraction, naming the first ten; if ``mean_vec`` has another dimension.
    """
    embeddings = np.asarray(embeddings)
    mean = check_mean_vec(mean_vec, embeddings.shape[1])
    odd = sorted(set(utts) ^ utt2spk.keys())
    if odd:
        raise InputError(
            f"{len(odd)} utterances of the cohort have an embedding or a speaker, but not both: {listing(odd)}; "
            "extract the embeddings of the whole set"
        )
    spks, spk = np.unique([utt2spk[utt] for utt in utts], return_inverse=True)
    by_spk = np.split(np.argsort(spk, kind="stable"), np.cumsum(np.bincount(spk))[:-1])
    means = np.stack([embeddings[rows].mean(axis=0, dtype=np.float64) for rows in by_spk])
    names = spks.tolist()
    norms = centred_norms(means, np.arange(len(means)), mean, names=names)
    return Cohort(names, (means - mean) / norms[:, None], mean)


def cohort_statistics(
    wanted: Sequence[str],
    utts: Sequence[str],
    embeddings: ArrayLike,
    cohort: Cohort,
    *,
    top_n: int | None,
    own: NDArray[np.intp] | None = None,
) -> CohortStatistics:
    """Return mean and standard deviation of each utterance's cosines with its nearest ``top_n`` cohort speakers.

    Each utterance is scored once, in float64, in blocks: beside the embeddings this needs some 30 MB, however many
    utterances there are.

    Args:
        wanted: the W utterances to describe.
        utts: the U utterances that have embeddings.
        embeddings: (U, D), any float dtype.
        cohort: the speakers to compare with.
        top_n: how many of them, at least 2; None takes all (S-Norm).
        own: (W,), the place in the cohort of each wanted utterance's own speaker, where the cohort has them. It is
            left out then, as a test utterance has no speaker of its own there: at a cosine of .8, where 299 others
            are at .25 ± .05, it would raise the standard deviation by 18 %.

    Raises:
        InputError: for a cohort of fewer than ``top_n`` speakers; for utterances without embedding or with one that
            is not finite or has norm 0 after the subtraction of the mean; for embeddings of another dimension.
    """
    embeddings = np.asarray(embeddings)
    if embeddings.shape[1] != cohort.directions.shape[1]:
        raise InputError(
            f"the embeddings have {embeddings.shape[1]} numbers, those of the cohort {cohort.directions.shape[1]}; "
            "extract both with one model"
        )
    available = len(cohort.spks) - (own is not None)
    num_top = available if top_n is None else top_n
    if num_top < 2:
        raise InputError(f"the spread of cohort scores needs at least 2 speakers, found {num_top} (top_n)")
    if num_top > available:
        others = "" if own is None else " beside an utterance's own"
        raise InputError(
            f"the cohort has {available} speakers{others}, which is fewer than top_n = {num_top}; "
            f"give a top_n of at most {available}, or the method snorm, which takes the whole cohort"
        )
    rows = find_rows(wanted, utts)
    norms = centred_norms(embeddings, rows, cohort.mean_vec, names=wanted)
    means, stds = np.empty(len(rows)), np.empty(len(rows))
    for start in range(0, len(rows), BLOCK):
        block = slice(start, start + BLOCK)
        centred = embeddings[rows[block]] - cohort.mean_vec
        scores = (centred / norms[block, None]) @ cohort.directions.T  # (block, C)
        if own is not None:
            scores[np.arange(len(scores)), own[block]] = -np.inf
        if num_top < scores.shape[1]:
            scores.partition(scores.shape[1] - num_top, axis=1)
        top = scores[:, scores.shape[1] - num_top :]
        means[block], stds[block] = top.mean(axis=1), top.std(axis=1)
    return CohortStatistics(norms, means, np.maximum(stds, STD_FLOOR))


def normalise(scores: ArrayLike, trials: AnyTrials, statistics: CohortStatistics) -> NDArray[np.float64]:
    """Return ``[(s - mean_e) / std_e + (s - mean_t) / std_t] / 2`` of each trial.

    Source: Matějka et al., "Analysis of Score Normalization in Multilingual Speaker Recognition", Interspeech 2017
    (AS-Norm1); with the whole cohort it is S-Norm (Kenny, Odyssey 2010).

    Args:
        scores: (N,), cosines after subtraction of the mean.
        trials: N trials of U utterances.
        statistics: of these utterances, in the order of ``trials.utts``.

    Returns:
        Scores, (N,) float64.
    """
    s = np.asarray(scores, dtype=np.float64)
    sides = [(s - statistics.mean[side]) / statistics.std[side] for side in (trials.enroll, trials.test)]
    return 0.5 * (sides[0] + sides[1])


def quality(trials: AnyTrials, statistics: CohortStatistics) -> NDArray[np.float64]:
    """Return norms of the two embeddings and their cohort means, (N, 4): the last columns of a normalised score file.

    Args:
        trials: N trials of U utterances.
        statistics: of these utterances, in the order of ``trials.utts``.
    """
    return np.stack(
        [values[side] for values in (statistics.norm, statistics.mean) for side in (trials.enroll, trials.test)], axis=1
    )


def load_cohort(scp: PathLike, utt2spk: PathLike | None = None, *, mean_vec: PathLike | None = None) -> Cohort:
    """Read embeddings, speakers and mean of a training set and make its cohort.

    Args:
        scp: embeddings, as in `load_embeddings`.
        utt2spk: a file of ``utt spk`` lines; None where the embeddings are means of speakers, whose file is called
            ``spk_xvector.scp`` then: those of utterances would be taken for speakers without a sign.
        mean_vec: a file as in `load_mean_vec`; None subtracts nothing.

    Raises:
        InputError: whatever is wrong with a file, named.
    """
    if utt2spk is None and not Path(scp).name.startswith(SPEAKER_XVECTOR):
        raise InputError(
            f"the speakers of the utterances in {scp} are needed (--cohort_utt2spk); means of speakers need "
            f"none, in a file called {SPEAKER_XVECTOR}.scp"
        )
    speakers = None if utt2spk is None else read_pairs(Path(utt2spk), "the speakers of the cohort")
    mean = None if mean_vec is None else load_mean_vec(mean_vec)
    utts, embeddings = load_embeddings(scp)
    try:
        return make_cohort(utts, embeddings, speakers or {spk: spk for spk in utts}, mean_vec=mean)
    except InputError as error:
        raise InputError(f"{scp}{f' with {utt2spk}' if utt2spk else ''}: {error}") from None


def score_kind(method: str, top_n: int, *, cohort_name: str) -> str:
    """Return what files of normalised scores are called by: ``vox2_dev_asnorm300`` or ``vox2_dev_snorm``."""
    return f"{cohort_name}_{method}{top_n if method == 'asnorm' else ''}"


def normalise_files(
    score_files: Sequence[PathLike],
    *,
    scp: PathLike,
    cohort: Cohort,
    top_n: int | None,
    output_dir: PathLike,
    kind: str,
) -> list[Path]:
    """Normalise ready score files and write ``<kind>_<name of the file>`` for each, in WeSpeaker's eight columns.

    A file without labels has three columns, and so has what is written of it, as nothing reads the others without.
    Nothing is written before everything has been computed; files there are replaced, each whole.

    Args:
        score_files: files as in `read_any_scores`, cosines after subtraction of the mean.
        scp: embeddings of their utterances, as in `load_embeddings`.
        cohort: of the same model.
        top_n: as in `cohort_statistics`.
        output_dir: where to write.
        kind: as of `score_kind`.

    Returns:
        The files written.

    Raises:
        InputError: whatever is wrong with a file, named; for two files of one name.
    """
    names = [Path(path).name for path in score_files]
    clashes = sorted({name for name in names if names.count(name) > 1})
    if clashes:
        raise InputError(f"several score files are called {listing(clashes)}; normalise them into separate folders")
    missing = [path for path in score_files if not Path(path).is_file()]
    if missing:
        raise InputError(f"{missing[0]} does not exist; score the trials first (stage 5)")
    lists = [read_any_scores(path) for path in score_files]
    wanted = list(dict.fromkeys(chain.from_iterable(trials.utts for trials, _ in lists)))
    utts, embeddings = load_embeddings(scp)
    try:
        statistics = cohort_statistics(wanted, utts, embeddings, cohort, top_n=top_n)
    except InputError as error:
        raise InputError(f"{scp}: {error}") from None
    results = []
    for trials, scores in lists:
        of_list = statistics[find_rows(trials.utts, wanted)]
        sides = quality(trials, of_list) if isinstance(trials, Trials) else None
        results.append((trials, normalise(scores, trials, of_list), sides))
    written = [Path(output_dir, f"{kind}_{name}") for name in names]
    for path, (trials, normalised, sides) in zip(written, results, strict=True):
        write_scores(path, trials, normalised, quality=sides)
    return written
