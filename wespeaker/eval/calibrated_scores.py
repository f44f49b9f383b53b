"""From files of normalised scores to files of log-likelihood ratios, and what calibration did to the error rates."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wespeaker.data.manifest import read_pairs
from wespeaker.data.trials import Trials, read_normalised_scores, write_kaldi_trials, write_scores
from wespeaker.errors import InputError
from wespeaker.eval.calibration import (
    MEASURES,
    Calibration,
    fit_calibration,
    trial_features,
    trial_measures,
)
from wespeaker.eval.calibration_trials import NUM_TRIALS, draw_calibration_trials
from wespeaker.eval.embeddings import PathLike, load_embeddings, load_mean_vec
from wespeaker.eval.metrics import act_dcf, cllr, error_tradeoff, min_cllr, min_dcf
from wespeaker.eval.score_norm import cohort_statistics, make_cohort, normalise, quality
from wespeaker.eval.scoring import cosine_scores
from wespeaker.files import replacing

TRIALS_NAME = "vox2_cali.kaldi"  # WeSpeaker's


def train_calibration(
    data_dir: PathLike,
    scp: PathLike,
    *,
    mean_vec: PathLike | None = None,
    top_n: int | None,
    score: str,
    measures: Sequence[str] = MEASURES,
    p_target: float = 0.01,
    num_trials: int = NUM_TRIALS,
    seed: int = 42,
    output_dir: PathLike,
) -> Calibration:
    """Draw trials of a training set, score and normalise them with its own cohort, and fit a calibration to them.

    Leaves the trials, ``vox2_cali.kaldi``, and their normalised scores, ``<score>_vox2_cali.kaldi.score``. The
    speakers of these trials are those of the cohort; an utterance is not compared with its own (`cohort_statistics`).
    WeSpeaker's are, which makes the scores of training smaller than those of a test: on the mini corpus the actDCF
    of its two lists is 1.82 and 0.98 then (minDCF 0.57 and 0.46), here it is 0.67 and 0.47 (minDCF 0.58 and 0.47).

    Args:
        data_dir: a folder with utt2spk and utt2dur.
        scp: embeddings of its utterances, as in `load_embeddings`.
        mean_vec: a file as in `load_mean_vec`; None subtracts nothing.
        top_n: as in `cohort_statistics`.
        score: what the normalised scores are called, such as ``vox2_dev_asnorm300``.
        measures: the quality measures to use, of `MEASURES`; may be empty.
        p_target: prior of a target trial.
        num_trials: as in `draw_calibration_trials`.
        seed: as there.
        output_dir: where to write.

    Raises:
        InputError: whatever is wrong with a file, named.
    """
    utt2spk = read_pairs(Path(data_dir, "utt2spk"), "the speakers of the calibration trials")
    utt2dur = read_durations(Path(data_dir, "utt2dur"))
    mean = None if mean_vec is None else load_mean_vec(mean_vec)
    utts, embeddings = load_embeddings(scp)
    try:
        trials = draw_calibration_trials(utt2spk, utt2dur, num_trials=num_trials, seed=seed)
        cohort = make_cohort(utts, embeddings, utt2spk, mean_vec=mean)
        own = np.searchsorted(cohort.spks, [utt2spk[utt] for utt in trials.utts])
        statistics = cohort_statistics(trials.utts, utts, embeddings, cohort, top_n=top_n, own=own)
        scores = normalise(cosine_scores(trials, utts, embeddings, mean_vec=mean), trials, statistics)
        sides = quality(trials, statistics)
        features = trial_features(scores, trial_measures(trials, sides, names=measures, utt2dur=utt2dur))
        calibration = fit_calibration(features, trials.is_target, p_target=p_target, score=score)
    except InputError as error:
        raise InputError(f"{scp} with {data_dir}: {error}") from None
    write_kaldi_trials(Path(output_dir, TRIALS_NAME), trials)
    write_scores(Path(output_dir, f"{score}_{TRIALS_NAME}.score"), trials, scores, quality=sides)
    return calibration


@dataclass(frozen=True)
class CalibrationEffect:
    """Costs of one list before and after calibration; Cllr in bits.

    Scores that are no log-likelihood ratios have no actDCF and no Cllr: both depend on their scale, which means
    nothing. Only what the best threshold and the best calibration would reach can be compared: minDCF and minCllr.
    """

    min_dcf_before: float
    min_cllr_before: float
    min_dcf: float
    act_dcf: float
    min_cllr: float
    cllr: float


def calibration_effect(
    scores: NDArray[np.float64], llr: NDArray[np.float64], trials: Trials, *, p_target: float
) -> CalibrationEffect:
    """Compare scores and log-likelihood ratios of the same N trials, (N,) each."""
    before, after = (error_tradeoff(values, trials.is_target, trial_name=trials.name) for values in (scores, llr))
    return CalibrationEffect(
        min_dcf_before=min_dcf(before, p_target=p_target),
        min_cllr_before=min_cllr(before),
        min_dcf=min_dcf(after, p_target=p_target),
        act_dcf=act_dcf(after, p_target=p_target),
        min_cllr=min_cllr(after),
        cllr=cllr(after),
    )


def effect_table(effects: Mapping[str, CalibrationEffect], *, p_target: float) -> str:
    """Lay out effects for reading, a line for each list, without a newline at the end."""
    width = max(24, *map(len, effects))
    costs = ("minDCF", "minCllr", "minDCF", "actDCF", "minCllr", "Cllr")
    header = f"{'':<{width}}  {'before':>17}  {'after':>37}"
    lines = [header, f"{'trial list':<{width}}" + "".join(f"{cost:>10}" for cost in costs), "-" * (width + 60)]
    for name, effect in effects.items():
        lines.append(f"{name:<{width}}" + "".join(f"{value:10.4f}" for value in vars(effect).values()))
    lines.append(f"minDCF and actDCF at p_target {p_target:g}; scores before calibration have no actDCF and no Cllr")
    return "\n".join(lines)


def read_durations(path: PathLike) -> dict[str, float]:
    """Read a Kaldi utt2dur: ``utt seconds`` lines.

    Raises:
        InputError: for a file that is missing or empty, a duration that is not a number of at least 0.
    """
    durations = {}
    for utt, text in read_pairs(Path(path), "the durations").items():
        try:
            durations[utt] = float(text)
        except ValueError:
            durations[utt] = math.nan
        if not 0 <= durations[utt] < math.inf:
            raise InputError(f"{path}: the duration of {utt} must be a number of seconds, found '{text}'")
    return durations


def calibrate_files(
    score_files: Sequence[PathLike],
    calibration: Calibration,
    *,
    utt2dur: Mapping[str, float] | None,
    output_dir: PathLike,
) -> dict[Path, CalibrationEffect]:
    """Turn files of normalised scores into log-likelihood ratios and write ``cali_<name of the file>`` for each.

    What calibration did to each list goes to ``cali_<score>_effect.json``. Nothing is written before everything has
    been computed; files there are replaced, each whole.

    Args:
        score_files: files of eight columns, as in `read_normalised_scores`.
        calibration: trained on such scores.
        utt2dur: durations of their utterances in seconds; None where the calibration needs none.
        output_dir: where to write.

    Returns:
        The files written, and what calibration did to each.

    Raises:
        InputError: whatever is wrong with a file, named; for one whose name does not begin with the name of the
            scores that the calibration is for.
    """
    results = {}
    for path in score_files:
        if not Path(path).name.startswith(f"{calibration.score}_"):
            raise InputError(
                f"the calibration is for scores called {calibration.score}_…, found {path}; other scores have another "
                "scale: train a calibration for them"
            )
        try:
            trials, scores, sides = read_normalised_scores(path)
        except InputError as error:
            raise InputError(f"{error}; make files of normalised scores with tools/score_norm.py (stage 6)") from None
        try:
            measures = trial_measures(trials, sides, names=calibration.measures, utt2dur=utt2dur)
            llr = calibration.llr(trial_features(scores, measures))
            effect = calibration_effect(scores, llr, trials, p_target=calibration.p_target)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        results[Path(output_dir, f"cali_{Path(path).name}")] = trials, llr, effect
    for path, (trials, llr, _) in results.items():
        write_scores(path, trials, llr)
    effects = {path: effect for path, (_, _, effect) in results.items()}
    with replacing(Path(output_dir, f"cali_{calibration.score}_effect.json")) as temporary:
        by_file = {path.name: asdict(effect) for path, effect in effects.items()}
        temporary.write_text(json.dumps(by_file, indent=2) + "\n", encoding="utf-8")
    return effects
