"""Trials to calibrate with: pairs of training utterances, as many short as long, drawn by a seed."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from itertools import combinations_with_replacement

import numpy as np
from numpy.typing import NDArray

from wespeaker.data.randomness import generator
from wespeaker.data.trials import Trials
from wespeaker.errors import InputError, listing

logger = logging.getLogger(__name__)

NUM_TRIALS = 30_000  # WeSpeaker's
SHORT_SEC = 6.0  # an utterance of at most this is short, a longer one long: WeSpeaker's border
_ROUNDS = 30  # of drawing; small sets have few pairs, and the last ones are seldom drawn


def draw_calibration_trials(
    utt2spk: Mapping[str, str],
    utt2dur: Mapping[str, float],
    *,
    num_trials: int = NUM_TRIALS,
    short_sec: float = SHORT_SEC,
    seed: int = 42,
) -> Trials:
    """Draw pairs of utterances: a sixth of them in each of three pairs of lengths, target and nontarget.

    The pairs of lengths are short-short, short-long and long-long. Targets are from two sessions (what a key holds
    before its last ``/``), since those of one session are told by their channel; where no speaker has two, any two
    utterances of a speaker do. No utterance is paired with itself and no pair comes twice, in either order. What a
    set has too few of, such as long utterances, is drawn as far as it goes: the shares are logged, and target and
    nontarget trials are weighted by the prior in training anyway.

    Args:
        utt2spk: the speaker of each utterance.
        utt2dur: the duration of each utterance in seconds.
        num_trials: how many at most.
        short_sec: the longest short utterance, in seconds.
        seed: the same seed and utterances give the same trials.

    Returns:
        The trials, sorted; utterances that are in none are left out.

    Raises:
        InputError: for an utterance without duration, naming the first ten; if there are no two utterances of a
            speaker or no two speakers.
    """
    keys = sorted(utt2spk)
    missing = [key for key in keys if key not in utt2dur]
    if missing:
        raise InputError(f"{len(missing)} of {len(keys)} utterances have no duration: {listing(missing)}")
    spk, session = (
        np.unique(names, return_inverse=True)[1]
        for names in ([utt2spk[key] for key in keys], [key.rsplit("/", 1)[0] for key in keys])
    )
    if len(np.unique(np.stack((spk, session)), axis=1)[0]) == len(np.unique(spk)):
        logger.warning("no speaker has two sessions; targets are of one, where the channel helps to tell them")
        session = np.arange(len(keys))
    long = np.array([utt2dur[key] > short_sec for key in keys])
    lengths = {"short": np.flatnonzero(~long), "long": np.flatnonzero(long)}
    rng = generator(seed, "calibration trials")
    pairs, labels, shares = [], [], []
    for first, second in combinations_with_replacement(lengths, 2):
        for is_target in (True, False):
            groups = lengths[first], lengths[second]
            drawn = _draw(*groups, num_trials // 6, spk=spk, session=session, is_target=is_target, rng=rng)
            pairs.append(drawn)
            labels.append(np.full(len(drawn), is_target))
            shares.append(f"{len(drawn)} {first}-{second} {'target' if is_target else 'nontarget'}")
    logger.info("calibration trials: %s", ", ".join(shares))
    enroll, test = np.concatenate(pairs).T
    labelled = np.concatenate(labels)
    if labelled.all() or not labelled.any():
        lacking = "two speakers" if labelled.any() else "two utterances of a speaker"
        raise InputError(f"calibration needs {lacking}; the {len(keys)} utterances given have none")
    order = np.lexsort((test, enroll))
    used, rows = np.unique(np.stack((enroll, test))[:, order], return_inverse=True)
    rows = rows.reshape(2, -1).astype(np.int32)
    return Trials([keys[i] for i in used], rows[0], rows[1], labelled[order])


def _draw(
    first: NDArray[np.intp],
    second: NDArray[np.intp],
    num: int,
    *,
    spk: NDArray[np.intp],
    session: NDArray[np.intp],
    is_target: bool,
    rng: np.random.Generator,
) -> NDArray[np.intp]:
    """Return up to ``num`` different pairs, (n, 2), the smaller index first: one of each group, of the class asked."""
    found = np.empty((0, 2), dtype=np.intp)
    if not (len(first) and len(second)):
        return found
    second = second[np.argsort(spk[second], kind="stable")]  # the utterances of a speaker lie together
    for _ in range(_ROUNDS):
        a = rng.choice(first, size=2 * num)
        if is_target:
            start, end = (np.searchsorted(spk[second], spk[a], side=side) for side in ("left", "right"))
            a, start, end = (values[end > start] for values in (a, start, end))
            b = second[rng.integers(start, end)]
            fits = session[a] != session[b]
        else:
            b = rng.choice(second, size=len(a))
            fits = spk[a] != spk[b]
        drawn = np.sort(np.stack((a[fits], b[fits]), axis=1), axis=1)
        found = _distinct(np.concatenate((found, drawn)))[:num]
        if len(found) == num:
            break
    return found


def _distinct(pairs: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return the rows without those that came before, in order of first appearance."""
    return pairs[np.sort(np.unique(pairs, axis=0, return_index=True)[1])]
