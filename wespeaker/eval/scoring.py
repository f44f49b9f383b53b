"""Cosine scores of trial lists, and the files with scores and error rates that come of them."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wespeaker.data.manifest import read_pairs
from wespeaker.data.trials import AnyTrials, read_scores, read_trials, read_unlabelled_trials, write_scores
from wespeaker.documents import write_json
from wespeaker.errors import InputError, listing
from wespeaker.eval.det import plot_det
from wespeaker.eval.embeddings import (
    BLOCK,
    PathLike,
    centred_norms,
    check_mean_vec,
    find_rows,
    load_embeddings,
    load_mean_vec,
    read_weights,
)
from wespeaker.eval.fingerprint import embeddings_sha256, file_fingerprint, trials_sha256
from wespeaker.eval.intervals import LEVEL, REPLICATES
from wespeaker.eval.results import DEFAULT_FARS, Asked, ListResult, evaluate_list
from wespeaker.eval.table import results_table
from wespeaker.extras import NotInstalledError
from wespeaker.files import write_lines

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found and wrote."""

    results: dict[str, Any]  # the contents of results.json, but for the version that wrote it
    table: str  # the contents of results.txt
    results_path: Path | None  # results.json; None where nothing was written
    det_path: Path | None  # the DET plot; None where nothing was written or matplotlib is not installed
    threshold_path: Path | None  # threshold.json; None where none was asked for


def cosine_scores(
    trials: AnyTrials, utts: Sequence[str], embeddings: ArrayLike, *, mean_vec: ArrayLike | None = None
) -> NDArray[np.float64]:
    """Return ``cos(e - mean, t - mean)`` of each trial, in [-1, 1].

    Computed in float64 in blocks of trials: float32 embeddings lose nothing, so that scores that differ stay
    different (the precision of a threshold at FAR 1e-5), at the cost of a conversion in the cache; beside the
    embeddings and the scores it needs an index of the utterances and 20 MB, however many trials there
    are. A score depends on its two embeddings alone, not on its place in the list.

    Args:
        trials: N trials.
        utts: the U utterances that have embeddings.
        embeddings: (U, D), any float dtype.
        mean_vec: (D,), subtracted from every embedding first; None subtracts nothing.

    Returns:
        Scores, (N,) float64.

    Raises:
        InputError: if utterances of the trials have no embedding, or one that is not finite or has no direction
            (norm 0 after the subtraction), naming the first ten; if the mean has another dimension.
    """
    embeddings = np.asarray(embeddings)
    mean = check_mean_vec(mean_vec, embeddings.shape[1])
    rows = find_rows(trials.utts, utts)
    norms = centred_norms(embeddings, rows, mean, names=trials.utts)
    scores = np.empty(len(trials))
    for start in range(0, len(trials), BLOCK):
        enroll, test = trials.enroll[start : start + BLOCK], trials.test[start : start + BLOCK]
        dots = np.einsum("nd,nd->n", embeddings[rows[enroll]] - mean, embeddings[rows[test]] - mean)
        scores[start : start + BLOCK] = dots / (norms[enroll] * norms[test])
    return np.clip(scores, -1.0, 1.0, out=scores)  # rounding may give 1 + 2e-16


def evaluate_embeddings(
    scp: PathLike,
    trial_lists: Sequence[PathLike],
    *,
    output_dir: PathLike,
    mean_vec: PathLike | None = None,
    fars: Sequence[float] = DEFAULT_FARS,
    p_target: float = 0.01,
    target_fars: Sequence[float] = (),
    utt2spk: PathLike | None = None,
    replicates: int = REPLICATES,
    seed: int = 0,
    note: str | None = None,
) -> Evaluation:
    """Score trial lists by cosine and write scores, error rates and a DET plot.

    Leaves in ``output_dir``, which is made: ``<file name of the list>.score`` for each list (WeSpeaker's name:
    ``vox1_H_cleaned.kaldi.score``), ``results.json``, ``results.txt``, ``det.png``, ``det.svg`` and, with
    ``target_fars``, ``threshold.json``; without them that of an earlier run is removed, as it is not of these scores.
    Files there are replaced, each whole, and only after everything has been computed. ``exp_dir`` in results.json is
    the folder that holds ``output_dir``.

    Args:
        scp: embeddings, as in `load_embeddings`.
        trial_lists: files as in `read_trials`; results are keyed by their names without ``.kaldi`` or ``.txt``.
        output_dir: where to write.
        mean_vec: a file as in `load_mean_vec`; None subtracts nothing.
        fars: asked false acceptance rates, in (0, 1].
        p_target: prior of a target trial in minDCF.
        target_fars: false acceptance rates to give thresholds for, in (0, 1].
        utt2spk: a file of ``utt spk`` lines, for the intervals; None takes the utterances' names up to the first ``/``.
        replicates: of the bootstrap over speakers; 0 for no intervals.
        seed: of the bootstrap.
        note: a remark that heads results.txt and results.json, such as which corpus this is.

    Raises:
        InputError: whatever is wrong with a file, named.
    """
    asked = _asked(fars, p_target, target_fars, utt2spk, replicates, seed)
    names = _names(trial_lists)
    lists = [read_trials(path) for path in trial_lists]
    mean = None if mean_vec is None else load_mean_vec(mean_vec)
    utts, embeddings = load_embeddings(scp)
    found, all_scores = {}, []
    for name, path, trials in zip(names, trial_lists, lists, strict=True):
        try:
            scores = cosine_scores(trials, utts, embeddings, mean_vec=mean)
            found[name] = evaluate_list(trials, scores, asked)
        except InputError as error:
            raise InputError(f"{path} with {scp}: {error}") from None
        all_scores.append(scores)
    thresholds = None
    if target_fars:
        how: dict[str, Any] = {
            "score": "cosine",
            "embeddings": {"file": os.fspath(scp), "sha256": embeddings_sha256(utts, embeddings)},
            "mean_vec": None if mean_vec is None else file_fingerprint(mean_vec),
            "model": read_weights(scp),
        }
        sources = [{"trials_sha256": trials_sha256(trials)} for trials in lists]
        thresholds = _thresholds(found, sources, how, note)
    for path, trials, scores in zip(trial_lists, lists, all_scores, strict=True):
        write_scores(Path(output_dir, Path(path).name + ".score"), trials, scores)
    how = {"score": "cosine", "mean_vec": None if mean_vec is None else os.fspath(mean_vec)}
    results = collect_results(found, how, note=note, output_dir=output_dir)
    table = results_table(results)
    return write_evaluation(results, found, table=table, asked=asked, output_dir=output_dir, thresholds=thresholds)


def score_unlabelled(
    scp: PathLike, trial_lists: Sequence[PathLike], *, output_dir: PathLike, mean_vec: PathLike | None = None
) -> list[Path]:
    """Score trial lists without labels by cosine and write ``utt1 utt2 score`` files, as of a blind evaluation.

    Args:
        scp: embeddings, as in `load_embeddings`.
        trial_lists: files as in `read_unlabelled_trials`.
        output_dir: where to write ``<file name of the list>.score``, after everything has been computed.
        mean_vec: a file as in `load_mean_vec`; None subtracts nothing.

    Returns:
        The files written.

    Raises:
        InputError: whatever is wrong with a file, named.
    """
    _names(trial_lists)
    lists = [read_unlabelled_trials(path) for path in trial_lists]
    mean = None if mean_vec is None else load_mean_vec(mean_vec)
    utts, embeddings = load_embeddings(scp)
    try:
        scores = [cosine_scores(trials, utts, embeddings, mean_vec=mean) for trials in lists]
    except InputError as error:
        raise InputError(f"{scp}: {error}") from None
    written = [Path(output_dir, Path(path).name + ".score") for path in trial_lists]
    for path, trials, values in zip(written, lists, scores, strict=True):
        write_scores(path, trials, values)
    return written


def evaluate_scores(
    score_files: Sequence[PathLike],
    *,
    output_dir: PathLike | None = None,
    fars: Sequence[float] = DEFAULT_FARS,
    p_target: float = 0.01,
    target_fars: Sequence[float] = (),
    utt2spk: PathLike | None = None,
    replicates: int = REPLICATES,
    seed: int = 0,
    note: str | None = None,
    prefix: str = "",
    scp: PathLike | None = None,
) -> Evaluation:
    """Compute the error rates of ready score files; write them and a DET plot if ``output_dir`` is given.

    Args:
        score_files: files as in `read_scores`; results are keyed by their names without ``.score`` and then
            without ``.kaldi`` or ``.txt``.
        output_dir: as in `evaluate_embeddings`, but no scores are written; None writes nothing.
        fars: asked false acceptance rates, in (0, 1].
        p_target: prior of a target trial in minDCF.
        target_fars: as in `evaluate_embeddings`; needs ``output_dir``.
        utt2spk: as in `evaluate_embeddings`.
        replicates: as in `evaluate_embeddings`.
        seed: as in `evaluate_embeddings`.
        note: as in `evaluate_embeddings`.
        prefix: what the names of the score files begin with, such as ``vox2_dev_asnorm300_``. Results are keyed
            without it, and the files written begin with it: they lie beside those of the same lists' other scores.
        scp: embeddings that the scores come from; threshold.json names the weights that made them.

    Raises:
        InputError: whatever is wrong with a file, named.
    """
    asked = _asked(fars, p_target, target_fars, utt2spk, replicates, seed)
    if target_fars and output_dir is None:
        raise InputError("thresholds for target FARs are written to a file; give --output_dir, where to write")
    found, sources = {}, []
    for name, path in zip(_names(score_files, prefix), score_files, strict=True):
        trials, scores = read_scores(path)
        try:
            found[name] = evaluate_list(trials, scores, asked)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        if target_fars:
            sources.append({"trials_sha256": trials_sha256(trials), "scores": file_fingerprint(path)})
    how = {"score": prefix.rstrip("_") or "score files"}
    thresholds = None
    if target_fars and output_dir is not None:
        model = None if scp is None else read_weights(scp)
        thresholds = _thresholds(found, sources, {**how, "model": model}, note)
    results = collect_results(found, how, note=note, output_dir=output_dir)
    table = results_table(results)
    if output_dir is None:
        return Evaluation(results, table, None, None, None)
    return write_evaluation(
        results, found, table=table, asked=asked, output_dir=output_dir, thresholds=thresholds, prefix=prefix
    )


def _asked(
    fars: Sequence[float],
    p_target: float,
    target_fars: Sequence[float],
    utt2spk: PathLike | None,
    replicates: int,
    seed: int,
) -> Asked:
    speakers = None if utt2spk is None else read_pairs(Path(utt2spk), "the speaker of each utterance")
    return Asked(fars, p_target, target_fars, speakers, replicates, seed)


def collect_results(
    found: Mapping[str, ListResult], how: Mapping[str, Any], *, note: str | None, output_dir: PathLike | None
) -> dict[str, Any]:
    """Return the contents of results.json.

    Args:
        found: of each list, by its name.
        how: where the scores come from, such as ``{"score": "cosine"}``.
        note: as in `evaluate_embeddings`.
        output_dir: as in `evaluate_embeddings`; None if nothing is written.
    """
    results: dict[str, Any] = {"note": note} if note else {}
    if output_dir is not None:
        results["exp_dir"] = os.fspath(Path(output_dir).parent)
    return {**results, **how} | {"trials": {name: result.rates for name, result in found.items()}}


def _thresholds(
    found: Mapping[str, ListResult],
    sources: Sequence[Mapping[str, Any]],
    how: Mapping[str, Any],
    note: str | None,
) -> dict[str, Any]:
    """Return the contents of threshold.json."""
    lists = {}
    for (name, result), source in zip(found.items(), sources, strict=True):
        counts = {key: result.rates[key] for key in ("num_target", "num_nontarget")}
        speakers = result.rates.get("interval", {}).get("num_speakers")
        lists[name] = {**counts, "num_speakers": speakers, **source, "target_far": result.points}
    return {
        **({"note": note} if note else {}),
        "decision": "accept where score >= threshold",
        **how,
        "level": LEVEL,
        "trials": lists,
    }


def write_evaluation(
    results: dict[str, Any],
    found: Mapping[str, ListResult],
    *,
    table: str,
    asked: Asked,
    output_dir: PathLike,
    thresholds: dict[str, Any] | None = None,
    prefix: str = "",
) -> Evaluation:
    """Write the plot, the thresholds, the table and last results.json: where it is new, all is new.

    Args:
        results: the contents of results.json.
        found: of each list, by its name.
        table: the contents of results.txt.
        asked: what was asked of the lists.
        output_dir: where to write; it is made.
        thresholds: the contents of threshold.json; None removes that of an earlier run.
        prefix: what the names of the files begin with.
    """
    names = ("det.png", "det.svg", "threshold.json", "results.txt", "results.json")
    paths = {name: Path(output_dir, prefix + name) for name in names}
    tradeoffs = {name: result.tradeoff for name, result in found.items()}
    bands = {name: result.band for name, result in found.items() if result.band is not None}
    outdated = [] if thresholds else ["threshold.json"]
    try:
        plot_det(tradeoffs, paths["det.png"], fars=asked.fars, title=results.get("note"), bands=bands)
    except NotInstalledError as error:
        logger.warning("there will be no DET plot: %s", error)
        outdated += ["det.png", "det.svg"]
    for name in outdated:  # those of an earlier run are not of these scores
        paths[name].unlink(missing_ok=True)
    if thresholds:
        write_json(paths["threshold.json"], thresholds)
    write_lines(paths["results.txt"], table.split("\n"))
    write_json(paths["results.json"], results)
    written = [None if name in outdated else paths[name] for name in ("results.json", "det.png", "threshold.json")]
    return Evaluation(results, table, *written)


def _names(paths: Sequence[PathLike], prefix: str = "") -> list[str]:
    """Return what results call the files; two files of one name would overwrite each other."""
    if not paths:
        raise InputError("there is nothing to evaluate: give at least one file")
    names = [re.sub(r"(\.(kaldi|txt))?(\.score)?$", "", Path(path).name.removeprefix(prefix)) for path in paths]
    clashes = sorted({name for name in names if names.count(name) > 1})
    if clashes:
        raise InputError(f"several files are called {listing(clashes)}; evaluate them in separate folders")
    return names
