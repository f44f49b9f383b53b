"""Whether recordings are of one person: cosines, log-likelihood ratios, decisions at measured FARs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wespeaker.deploy.card import Card, Decision, MeasuredPoint
from wespeaker.errors import InputError, listing
from wespeaker.eval.embeddings import centred_norms, check_mean_vec


@dataclass(frozen=True)
class Evidence:
    """What a calibrated score says with a prior."""

    llr: float  # log-likelihood ratio (natural log) of one speaker to two
    p_target: float  # prior probability of one speaker
    posterior: float  # probability of one speaker


@dataclass(frozen=True)
class Verdict:
    """What a score means, as far as the card of the model tells; None is what was not measured."""

    score: float  # cosine of the embeddings after the subtraction of the card's mean, in [-1, 1]
    evidence: Evidence | None = None
    far: float | None = None  # the false acceptance rate that the threshold is for
    point: MeasuredPoint | None = None  # the threshold, and what it gave on the card's trial list

    @property
    def accepted(self) -> bool | None:
        """Whether the score reaches the threshold; None without one."""
        return None if self.point is None else self.score >= self.point.threshold


def voiceprint(embeddings: Sequence[ArrayLike], card: Card, *, names: Sequence[str]) -> NDArray[np.float32]:
    """Return the mean of the embeddings of one person, each centred by the card's mean and of length 1 before.

    The cosine of two of them is, for one recording each, that of `wespeaker.eval.scoring.cosine_scores`.

    Args:
        embeddings: one (D,) for each recording.
        card: of the model that made them.
        names: what an error calls the recordings.

    Returns:
        (D,) float32.

    Raises:
        InputError: an embedding is not finite or has no direction, or together they have none.

    """
    rows = np.stack([np.asarray(embedding) for embedding in embeddings])
    mean = check_mean_vec(card.mean_vec, rows.shape[1])
    norms = centred_norms(rows, np.arange(len(rows)), mean, names=names)
    together = ((rows - mean) / norms[:, None]).mean(axis=0)
    if np.linalg.norm(together) < 1e-3:  # of unit vectors: they point to opposite sides
        raise InputError(f"the embeddings of {listing(names)} have no common direction; are they of one person?")
    return together.astype(np.float32)


def cosines(voiceprints: ArrayLike, probe: ArrayLike) -> NDArray[np.float64]:
    """Return the cosines of N voiceprints (N, D) with one (D,), computed in float64, (N,) in [-1, 1]."""
    rows, vector = np.asarray(voiceprints, dtype=np.float64), np.asarray(probe, dtype=np.float64)
    return np.clip(rows @ vector / (np.linalg.norm(rows, axis=1) * np.linalg.norm(vector)), -1.0, 1.0)


def resolvable_fars(decision: Decision) -> dict[float, MeasuredPoint]:
    """Return the points whose FAR the list has enough nontarget trials to show, from the lowest FAR on."""
    points = {float(far): point for far, point in decision.target_far.items() if point.resolvable}
    return dict(sorted(points.items()))


def choose_far(card: Card, far: float | None = None) -> float | None:
    """Return the false acceptance rate to decide at.

    Args:
        card: of the model.
        far: what was asked for; None for the lowest that the card's list resolves.

    Returns:
        The rate; None where nothing was asked for and nothing was measured.

    Raises:
        InputError: what was asked for was not measured, or the list has too few nontarget trials to show it.

    """
    if card.decision is None:
        if far is not None:
            raise InputError(f"no threshold was measured for this model, for FAR {far:g} or any other; {HOW_TO_DECIDE}")
        return None
    measured = resolvable_fars(card.decision)
    if far is None:
        return min(measured, default=None)
    if not card.decision.at(far).resolvable:
        raise InputError(
            f"the {card.decision.num_nontarget:,} nontarget trials of {card.decision.trials} are too few to show "
            f"FAR {far:g}; {listing([f'{rate:g}' for rate in measured]) or 'none'} can be asked for, and a longer list "
            f"would show more"
        )
    return far


HOW_TO_DECIDE = "score trials with --target_far (stage 5) and export the model (stage 8): its card has thresholds then"


def judge(score: float, card: Card, *, far: float | None, p_target: float | None = None) -> Verdict:
    """Return what a score means.

    The posterior is that of Bayes: its log odds are ``llr + log(p / (1 - p))``.

    Args:
        score: of `cosines`.
        card: of the model.
        far: of `choose_far`; None for no decision.
        p_target: prior probability of one speaker, in (0, 1); None for that of the calibration.

    Raises:
        InputError: the prior is not in (0, 1).

    """
    if p_target is not None and not 0 < p_target < 1:
        raise InputError(f"p_target, the prior probability of one speaker, must lie between 0 and 1, found {p_target}")
    decision = card.decision
    if decision is None:
        return Verdict(score)
    llr = decision.llr(score)
    prior = decision.calibration.p_target if p_target is None else p_target
    log_odds = llr + math.log(prior / (1 - prior))
    posterior = 0.5 * (1 + math.tanh(log_odds / 2))  # the logistic function, which cannot overflow so
    return Verdict(score, Evidence(llr, prior, posterior), far, None if far is None else decision.at(far))


@dataclass(frozen=True)
class Candidate:
    """An enrolled person and what the score with the recording means."""

    name: str
    verdict: Verdict


def rank(
    people: Mapping[str, NDArray[np.float32]],
    probe: NDArray[np.float32],
    card: Card,
    *,
    far: float | None,
    p_target: float | None = None,
) -> list[Candidate]:
    """Return all people, the highest score first.

    Args:
        people: their voiceprints, (D,) each.
        probe: voiceprint of the recording, (D,).
        card: of the model of all of them.
        far: as in `judge`.
        p_target: as in `judge`.

    """
    scores = cosines(list(people.values()), probe)
    order = np.argsort(-scores, kind="stable")
    names = list(people)
    return [Candidate(names[i], judge(float(scores[i]), card, far=far, p_target=p_target)) for i in order.tolist()]
