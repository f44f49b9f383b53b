"""Cosine scores of trial lists, and the files with scores and error rates that come of them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wespeaker.data.trials import Trials, read_scores, read_trials, write_scores
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
)
from wespeaker.eval.metrics import ErrorTradeoff, eer, error_tradeoff, min_dcf, tar_at_far
from wespeaker.eval.table import results_table
from wespeaker.files import replacing

DEFAULT_FARS = (1e-2, 1e-3, 1e-4, 1e-5)


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found and wrote."""

    results: dict[str, Any]  # the contents of results.json
    table: str  # the contents of results.txt
    results_path: Path | None  # results.json; None where nothing was written
    det_path: Path | None  # the DET plot; None where nothing was written


def cosine_scores(
    trials: Trials, utts: Sequence[str], embeddings: ArrayLike, *, mean_vec: ArrayLike | None = None
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


def error_rates(
    tradeoff: ErrorTradeoff, *, fars: Sequence[float] = DEFAULT_FARS, p_target: float = 0.01
) -> dict[str, Any]:
    """Return the entry of one list in results.json: counts, and rates in [0, 1].

    Args:
        tradeoff: the operating points of the list.
        fars: asked false acceptance rates; the keys of ``tar_at_far`` are ``str(far)``.
        p_target: prior of a target trial in minDCF; costs are 1 and 1.
    """
    points = {str(float(far)): tar_at_far(tradeoff, far) for far in fars}
    return {
        "num_target": tradeoff.num_target,
        "num_nontarget": tradeoff.num_nontarget,
        "eer": eer(tradeoff),
        "min_dcf": {str(float(p_target)): min_dcf(tradeoff, p_target=p_target)},
        "tar_at_far": {key: dict(vars(point)) for key, point in points.items()},
    }


def evaluate_embeddings(
    scp: PathLike,
    trial_lists: Sequence[PathLike],
    *,
    output_dir: PathLike,
    mean_vec: PathLike | None = None,
    fars: Sequence[float] = DEFAULT_FARS,
    p_target: float = 0.01,
    note: str | None = None,
) -> Evaluation:
    """Score trial lists by cosine and write scores, error rates and a DET plot.

    Leaves in ``output_dir``, which is made: ``<file name of the list>.score`` for each list (WeSpeaker's name:
    ``vox1_H_cleaned.kaldi.score``), ``results.json``, ``results.txt`` and ``det.png``. Files there are replaced,
    each whole, and only after everything has been computed. ``exp_dir`` in results.json is the folder that holds
    ``output_dir``.

    Args:
        scp: embeddings, as in `load_embeddings`.
        trial_lists: files as in `read_trials`; results are keyed by their names without ``.kaldi`` or ``.txt``.
        output_dir: where to write.
        mean_vec: a file as in `load_mean_vec`; None subtracts nothing.
        fars: asked false acceptance rates, in (0, 1].
        p_target: prior of a target trial in minDCF.
        note: a remark that heads results.txt and results.json, such as which corpus this is.

    Raises:
        InputError: whatever is wrong with a file, named.
    """
    names = _names(trial_lists)
    lists = [read_trials(path) for path in trial_lists]
    mean = None if mean_vec is None else load_mean_vec(mean_vec)
    utts, embeddings = load_embeddings(scp)
    scores, tradeoffs = [], {}
    for name, path, trials in zip(names, trial_lists, lists, strict=True):
        try:
            scores.append(cosine_scores(trials, utts, embeddings, mean_vec=mean))
            tradeoffs[name] = error_tradeoff(scores[-1], trials.is_target, trial_name=trials.name)
        except InputError as error:
            raise InputError(f"{path} with {scp}: {error}") from None
    results = _results(
        tradeoffs,
        {"score": "cosine", "mean_vec": None if mean_vec is None else os.fspath(mean_vec)},
        fars=fars,
        p_target=p_target,
        note=note,
        output_dir=output_dir,
    )
    for path, trials, values in zip(trial_lists, lists, scores, strict=True):
        write_scores(Path(output_dir, Path(path).name + ".score"), trials, values)
    return _write(results, tradeoffs, fars=fars, output_dir=output_dir)


def evaluate_scores(
    score_files: Sequence[PathLike],
    *,
    output_dir: PathLike | None = None,
    fars: Sequence[float] = DEFAULT_FARS,
    p_target: float = 0.01,
    note: str | None = None,
    prefix: str = "",
) -> Evaluation:
    """Compute the error rates of ready score files; write them and a DET plot if ``output_dir`` is given.

    Args:
        score_files: files as in `read_scores`; results are keyed by their names without ``.score`` and then
            without ``.kaldi`` or ``.txt``.
        output_dir: as in `evaluate_embeddings`, but no scores are written; None writes nothing.
        fars: asked false acceptance rates, in (0, 1].
        p_target: prior of a target trial in minDCF.
        note: as in `evaluate_embeddings`.
        prefix: what the names of the score files begin with, such as ``vox2_dev_asnorm300_``. Results are keyed
            without it, and the files written begin with it: they lie beside those of the same lists' other scores.

    Raises:
        InputError: whatever is wrong with a file, named.
    """
    tradeoffs = {}
    for name, path in zip(_names(score_files, prefix), score_files, strict=True):
        trials, scores = read_scores(path)
        try:
            tradeoffs[name] = error_tradeoff(scores, trials.is_target, trial_name=trials.name)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
    results = _results(
        tradeoffs,
        {"score": prefix.rstrip("_") or "score files"},
        fars=fars,
        p_target=p_target,
        note=note,
        output_dir=output_dir,
    )
    return _write(results, tradeoffs, fars=fars, output_dir=output_dir, prefix=prefix)


def _results(
    tradeoffs: Mapping[str, ErrorTradeoff],
    how: Mapping[str, Any],
    *,
    fars: Sequence[float],
    p_target: float,
    note: str | None,
    output_dir: PathLike | None,
) -> dict[str, Any]:
    """Return the contents of results.json."""
    results: dict[str, Any] = {"note": note} if note else {}
    if output_dir is not None:
        results["exp_dir"] = os.fspath(Path(output_dir).parent)
    results |= how
    results["trials"] = {
        name: error_rates(tradeoff, fars=fars, p_target=p_target) for name, tradeoff in tradeoffs.items()
    }
    return results


def _write(
    results: dict[str, Any],
    tradeoffs: Mapping[str, ErrorTradeoff],
    *,
    fars: Sequence[float],
    output_dir: PathLike | None,
    prefix: str = "",
) -> Evaluation:
    """Write the plot, the table and last results.json: where it is new, all is new."""
    table = results_table(results)
    if output_dir is None:
        return Evaluation(results, table, None, None)
    results_path, table_path, det_path = (
        Path(output_dir, prefix + name) for name in ("results.json", "results.txt", "det.png")
    )
    plot_det(tradeoffs, det_path, fars=fars, title=results.get("note"))
    for path, text in ((table_path, table), (results_path, json.dumps(results, indent=2))):
        with replacing(path) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
    return Evaluation(results, table, results_path, det_path)


def _names(paths: Sequence[PathLike], prefix: str = "") -> list[str]:
    """Return what results call the files; two files of one name would overwrite each other."""
    if not paths:
        raise InputError("there is nothing to evaluate: give at least one file")
    names = [re.sub(r"(\.(kaldi|txt))?(\.score)?$", "", Path(path).name.removeprefix(prefix)) for path in paths]
    clashes = sorted({name for name in names if names.count(name) > 1})
    if clashes:
        raise InputError(f"several files are called {listing(clashes)}; evaluate them in separate folders")
    return names
