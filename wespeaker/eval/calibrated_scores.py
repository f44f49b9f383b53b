"""From files of normalised scores to files of log-likelihood ratios, and what calibration did to the error rates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wespeaker.data.manifest import read_manifest, read_pairs
from wespeaker.data.trials import Trials, read_normalised_scores, write_kaldi_trials, write_scores
from wespeaker.documents import write_json
from wespeaker.errors import InputError, listing
from wespeaker.eval.calibration import (
    MEASURES,
    Calibration,
    fit_calibration,
    trial_features,
    trial_measures,
)
from wespeaker.eval.calibration_trials import NUM_TRIALS, draw_calibration_trials
from wespeaker.eval.embeddings import PathLike, load_embeddings
from wespeaker.eval.metrics import act_dcf, cllr, error_tradeoff, min_cllr, min_dcf
from wespeaker.eval.score_norm import Cohort, cohort_statistics, normalise, quality
from wespeaker.eval.scoring import cosine_scores

TRIALS_NAME = "vox2_cali.kaldi"  # WeSpeaker's


def train_calibration(
    data_dir: PathLike,
    scp: PathLike,
    cohort: Cohort,
    *,
    top_n: int | None,
    score: str,
    measures: Sequence[str] = MEASURES,
    p_target: float = 0.01,
    num_trials: int = NUM_TRIALS,
    seed: int = 42,
    output_dir: PathLike,
) -> Calibration:
    """Draw trials of a data set, score and normalise them as those of a test, and fit a calibration to them.

    Leaves the trials, ``vox2_cali.kaldi``, and their normalised scores, ``<score>_vox2_cali.kaldi.score``. Where the
    speakers of the set are those of the cohort, an utterance is not compared with its own (`cohort_statistics`).
    WeSpeaker's are, which makes the scores of training smaller than those of a test: on the mini corpus the actDCF of
    its two lists is 1.8 to 2.0 and 1.0 to 1.1 then, over three seeds, and 0.66 to 0.72 and 0.46 to 0.49 here, where
    minDCF is 0.56 and 0.46.

    A network has learned the speakers of its training set, so that their target trials score higher than those of
    others will. That is little at the threshold of a small ``p_target`` and more for Cllr, which asks of every
    threshold: without quality measures 0.26 and 0.24 on these two lists, and 0.20 and 0.16 after training on 12 other
    speakers (minCllr 0.16 and 0.12). Where there are hundreds of other speakers, train on them.

    Args:
        data_dir: a folder with utt2spk and utt2dur.
        scp: embeddings of its utterances, as in `load_embeddings`.
        cohort: as the scores to calibrate were normalised.
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
    utts, embeddings = load_embeddings(scp)
    try:
        trials = draw_calibration_trials(utt2spk, utt2dur, num_trials=num_trials, seed=seed)
        own = _own_rows([utt2spk[utt] for utt in trials.utts], cohort)
        statistics = cohort_statistics(trials.utts, utts, embeddings, cohort, top_n=top_n, own=own)
        cosines = cosine_scores(trials, utts, embeddings, mean_vec=cohort.mean_vec)
        scores, sides = normalise(cosines, trials, statistics), quality(trials, statistics)
        features = trial_features(scores, trial_measures(trials, sides, names=measures, utt2dur=utt2dur))
        calibration = fit_calibration(features, trials.is_target, p_target=p_target, score=score)
    except InputError as error:
        raise InputError(f"{scp} with {data_dir}: {error}") from None
    write_kaldi_trials(Path(output_dir, TRIALS_NAME), trials)
    write_scores(Path(output_dir, f"{score}_{TRIALS_NAME}.score"), trials, scores, quality=sides)
    return calibration


def _own_rows(spks: Sequence[str], cohort: Cohort) -> NDArray[np.intp] | None:
    """Return where each speaker is in the cohort; None if none is.

    Raises:
        InputError: if the cohort has some of them.
    """
    row = {spk: i for i, spk in enumerate(cohort.spks)}
    others = sorted({spk for spk in spks if spk not in row})
    if len(others) == len(set(spks)):
        return None
    if others:
        raise InputError(
            f"{len(others)} of {len(set(spks))} speakers of the trials are not in the cohort and the rest is: "
            f"{listing(others)}; give a set of which the cohort has all speakers, or none"
        )
    return np.array([row[spk] for spk in spks])


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
    """Read a Kaldi utt2dur: ``utt seconds`` lines; without one, the durations of the wav.scp beside it are taken.

    WeSpeaker makes no utt2dur before it calibrates.

    Raises:
        InputError: for a file that is missing or empty, a duration that is not a number of at least 0.
    """
    if not Path(path).exists() and Path(path).with_name("wav.scp").is_file():
        table = read_manifest(Path(path).parent)
        return dict(zip(table.keys, table.seconds.tolist(), strict=True))
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
    by_file = {path.name: asdict(effect) for path, effect in effects.items()}
    write_json(Path(output_dir, f"cali_{calibration.score}_effect.json"), {"score_files": by_file})
    return effects
