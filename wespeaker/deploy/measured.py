"""What stage 5 measured with a model, for its card: thresholds of one trial list and the calibration of its cosines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from wespeaker.data.trials import Trials, read_scores
from wespeaker.deploy.card import CosineCalibration, Decision, MeasuredPoint
from wespeaker.errors import InputError, nearest
from wespeaker.eval.calibration import fit_calibration
from wespeaker.eval.embeddings import load_embeddings
from wespeaker.eval.fingerprint import embeddings_sha256, file_fingerprint, trials_sha256


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class _File(_Part):
    file: str
    sha256: str


class _List(_Part):
    num_target: int
    num_nontarget: int
    num_speakers: int | None
    trials_sha256: str
    target_far: dict[str, MeasuredPoint] = Field(min_length=1)


class Thresholds(_Part):
    """What a card needs of threshold.json."""

    score: str
    embeddings: _File | None = None
    mean_vec: _File | None = None
    model: _File | None
    level: float
    note: str | None = None
    trials: dict[str, _List] = Field(min_length=1)


def read_thresholds(path: Path) -> Thresholds:
    """Read the threshold.json of cosines.

    Raises:
        InputError: it is missing, no such file, or of other scores.

    """
    try:
        thresholds = Thresholds.model_validate_json(path.read_bytes(), strict=True)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; it is made by stage 5 (tools/score.py with --target_far)") from None
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"])) or "the file"
        raise InputError(f"{path} is not what stage 5 writes ({where}: {problem['msg']}); repeat stage 5") from None
    if thresholds.score != "cosine" or thresholds.embeddings is None:
        raise InputError(
            f"{path} has thresholds of {thresholds.score} scores; a model is exported with those of the cosines of "
            f"its embeddings, which stage 5 writes to scores/threshold.json"
        )
    return thresholds


def file_in_run(exp_dir: Path, named: _File) -> Path:
    """Return where a file of the embeddings that threshold.json names lies, wherever the run folder is by now."""
    return exp_dir / "embeddings" / Path(named.file).parent.name / Path(named.file).name


def measured_decision(
    path: Path,
    thresholds: Thresholds,
    *,
    exp_dir: Path,
    weights: Path,
    mean_vec: Path | None,
    trials: str | None = None,
    p_target: float = 0.01,
) -> Decision:
    """Return the thresholds of one list, and the calibration of its scores, after all that they are of was compared.

    The calibration is fitted on the very list that the thresholds were found on: two numbers of all its trials.

    Args:
        path: threshold.json, beside which lie the scores.
        thresholds: what it holds.
        exp_dir: the run folder, with the embeddings that were scored.
        weights: the file of the model that is to have the card.
        mean_vec: the file of the mean that is subtracted from its embeddings; None for none.
        trials: name of the list; None for the one with the most nontarget trials.
        p_target: prior of a target trial that the calibration is weighted to.

    Raises:
        InputError: the thresholds are of other weights, embeddings, mean, trials or scores than those that are there;
            the list is not known.

    """
    _same(path, "weights", thresholds.model, weights, "average and extract them, and repeat stage 5")
    _same(path, "the mean", thresholds.mean_vec, mean_vec, "name that one with --mean_vec, or repeat stage 5")
    assert thresholds.embeddings is not None
    scp = file_in_run(exp_dir, thresholds.embeddings)
    if embeddings_sha256(*load_embeddings(scp)) != thresholds.embeddings.sha256:
        raise InputError(f"{path} was found with other embeddings than those of {scp}; repeat stage 5")
    name = trials or max(thresholds.trials, key=lambda name: thresholds.trials[name].num_nontarget)
    if name not in thresholds.trials:
        raise InputError(f"{path} has no thresholds of the trials {name!r}; {nearest(name, thresholds.trials)}")
    found = thresholds.trials[name]
    score_file = _score_file(path.parent, name)
    scored, scores = read_scores(score_file)
    if trials_sha256(scored) != found.trials_sha256 or not _agree(scored, scores, found.target_far):
        raise InputError(f"{score_file} does not hold the scores that {path} was found with; repeat stage 5")
    fitted = fit_calibration({"score": scores}, scored.is_target, p_target=p_target)
    return Decision(
        trials=name,
        note=thresholds.note,
        trials_sha256=found.trials_sha256,
        num_target=found.num_target,
        num_nontarget=found.num_nontarget,
        num_speakers=found.num_speakers,
        level=thresholds.level,
        calibration=CosineCalibration(p_target=p_target, weight=fitted.weights["score"], offset=fitted.offset),
        target_far=found.target_far,
    )


def _same(path: Path, what: str, wanted: _File | None, given: Path | None, advice: str) -> None:
    """Refuse a file that is not the one that the thresholds were found with."""
    if (wanted and wanted.sha256) != (given and file_fingerprint(given)["sha256"]):
        raise InputError(
            f"{path} is of another model: {what} that it was found with {'is' if what == 'the mean' else 'are'} "
            f"{f'{wanted.file} (SHA-256 {wanted.sha256[:12]}…)' if wanted else 'none'}, not {given or 'none'}; {advice}"
        )


def _score_file(folder: Path, name: str) -> Path:
    """Return the file of the scores of a list, which is called as the list's file, whose suffix results leave out."""
    files = [folder / f"{name}{suffix}.score" for suffix in (".kaldi", ".txt", "")]
    for file in files:
        if file.is_file():
            return file
    raise InputError(f"{files[0]} does not exist, from which the calibration is made; repeat stage 5")


def _agree(scored: Trials, scores: NDArray[np.float64], points: Mapping[str, MeasuredPoint]) -> bool:
    """Whether the scores give the counts of the operating points."""
    targets, nontargets = scores[scored.is_target], scores[~scored.is_target]
    return all(
        (np.count_nonzero(targets >= point.threshold), np.count_nonzero(nontargets >= point.threshold))
        == (point.num_true_accepts, point.num_false_accepts)
        for point in points.values()
    )
