"""Two systems on the same trials: differences of error rates with intervals and p-values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wespeaker.data.manifest import read_pairs
from wespeaker.data.trials import LABELS, Trials, read_scores
from wespeaker.errors import InputError, listing
from wespeaker.eval.embeddings import PathLike
from wespeaker.eval.intervals import LEVEL, REPLICATES, bootstrap, confidence_interval, p_values, trial_speakers
from wespeaker.eval.metrics import ErrorTradeoff, error_tradeoff
from wespeaker.eval.results import DEFAULT_FARS, MIN_REPLICATES, Asked, by_name, error_rates, rate_vector


@dataclass(frozen=True)
class Difference:
    """An error rate of a system minus that of the first system on the same trials."""

    value: float
    low: float  # ends of the interval
    high: float
    p_value: float  # two-sided, of no difference


@dataclass(frozen=True)
class Comparison:
    """Score files of the same trials, the others compared with the first."""

    files: list[str]
    rates: list[dict[str, Any]]  # of each file, as in results.json
    differences: list[dict[str, Any]]  # of each file but the first: a `Difference` under each name of results.json
    num_speakers: int
    level: float
    replicates: int
    seed: int

    def contents(self) -> dict[str, Any]:
        """Return all of it as JSON has it."""

        def plain(value: Any) -> Any:
            if isinstance(value, Mapping):
                return {key: plain(inner) for key, inner in value.items()}
            if isinstance(value, Difference):
                interval = [value.low, value.high]
                return {"difference": value.value, "interval": interval, "p_value": value.p_value}
            return value

        others = zip(self.files[1:], self.rates[1:], self.differences, strict=True)
        return {
            "level": self.level,
            "replicates": self.replicates,
            "seed": self.seed,
            "num_speakers": self.num_speakers,
            "first": {"scores": self.files[0], **self.rates[0]},
            "others": [
                {"scores": file, **rates, "difference": plain(difference)} for file, rates, difference in others
            ],
        }


def compare_scores(
    score_files: Sequence[PathLike],
    *,
    fars: Sequence[float] = DEFAULT_FARS,
    p_target: float = 0.01,
    utt2spk: PathLike | None = None,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> Comparison:
    """Compare score files of the same trials with the first of them.

    Every replicate of the bootstrap draws the same speakers for all files: what makes a list easy or hard is in both
    systems' rates and falls out of their difference.

    Args:
        score_files: two or more files as in `read_scores`; the order of the trials may differ.
        fars: false acceptance rates to compare the TAR at, in (0, 1].
        p_target: prior of a target trial in minDCF.
        utt2spk: a file of ``utt spk`` lines; None takes the utterances' names up to the first ``/``.
        replicates: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        InputError: for files of different trials, naming the first that differ, or whatever is wrong with a file.
    """
    if len(score_files) < 2:
        raise InputError(f"a comparison needs at least two score files, found {len(score_files)}")
    if replicates < MIN_REPLICATES:
        raise InputError(f"a comparison needs at least {MIN_REPLICATES} replicates, found {replicates}")
    trials, first = read_scores(score_files[0])
    scores = [first]
    for path in score_files[1:]:
        others, values = read_scores(path)
        scores.append(values[match_trials(trials, others, names=(str(score_files[0]), str(path)))])
    utt2spk_pairs = None if utt2spk is None else read_pairs(Path(utt2spk), "the speaker of each utterance")
    asked = Asked(fars=fars, p_target=p_target, utt2spk=utt2spk_pairs, replicates=replicates, seed=seed)
    try:
        tradeoffs = [error_tradeoff(values, trials.is_target, trial_name=trials.name) for values in scores]
        rates = [error_rates(tradeoff, fars=fars, p_target=p_target) for tradeoff in tradeoffs]
        speakers = trial_speakers(trials, asked.utt2spk)
    except InputError as error:
        raise InputError(f"{score_files[0]}: {error}") from None

    def statistic(tradeoff: ErrorTradeoff) -> NDArray[np.float64]:
        return rate_vector(tradeoff, asked)

    samples = [
        bootstrap(values, trials.is_target, speakers, statistic, replicates=replicates, seed=seed) for values in scores
    ]
    vectors = [statistic(tradeoff) for tradeoff in tradeoffs]
    differences = []
    for vector, sample in zip(vectors[1:], samples[1:], strict=True):
        ends, p = confidence_interval(sample - samples[0]), p_values(sample - samples[0])
        columns = zip((vector - vectors[0]).tolist(), ends.tolist(), p.tolist(), strict=True)
        found = [Difference(value, low, high, p_value) for value, (low, high), p_value in columns]
        differences.append(by_name(found, asked))
    return Comparison(
        [str(path) for path in score_files], rates, differences, len(speakers.names), LEVEL, replicates, seed
    )


def match_trials(trials: Trials, others: Trials, *, names: tuple[str, str] = ("a", "b")) -> NDArray[np.intp]:
    """Return the place in ``others`` of each trial of ``trials``, (N,); repeated trials are matched in their order.

    Raises:
        InputError: if the two do not hold the same pairs with the same labels as often, naming the first that differ.
    """
    index = {utt: i for i, utt in enumerate(trials.utts)}
    utts = list(trials.utts) + [utt for utt in others.utts if utt not in index]
    index = {utt: i for i, utt in enumerate(utts)}
    renamed = np.array([index[utt] for utt in others.utts], dtype=np.int64)
    ours = trials.enroll.astype(np.int64) * len(utts) + trials.test
    theirs = renamed[others.enroll] * len(utts) + renamed[others.test]
    our_order, their_order = np.argsort(ours, kind="stable"), np.argsort(theirs, kind="stable")
    if len(ours) != len(theirs) or not np.array_equal(ours[our_order], theirs[their_order]):
        only = [_missing(a, b) for a, b in ((ours, theirs), (theirs, ours))]
        found = [
            f"{len(rows)} {'is' if len(rows) == 1 else 'are'} in {name} only "
            f"(first: {listing([where.name(int(row)) for row in rows], 3)})"
            for rows, name, where in zip(only, names, (trials, others), strict=True)
            if len(rows)
        ]
        raise InputError(f"{names[0]} and {names[1]} must hold the same trials: {'; '.join(found)}")
    place = np.empty_like(our_order)
    place[our_order] = their_order
    wrong = np.flatnonzero(trials.is_target != others.is_target[place])
    if wrong.size:
        i = int(wrong[0])
        labels = [LABELS[int(label)] for label in (trials.is_target[i], others.is_target[place[i]])]
        raise InputError(
            f"{names[0]} and {names[1]} disagree about {wrong.size} labels; the first: {trials.name(i)} is "
            f"{labels[0]} in {names[0]} and {labels[1]} in {names[1]}"
        )
    return place


def _missing(pairs: NDArray[np.int64], others: NDArray[np.int64]) -> NDArray[np.intp]:
    """Return the rows of ``pairs`` that others has less often, in their order; a pair that is there too often once."""
    values, first, counts = np.unique(pairs, return_index=True, return_counts=True)
    known, known_counts = np.unique(others, return_counts=True)
    at = np.minimum(np.searchsorted(known, values), len(known) - 1)
    there = np.where(known[at] == values, known_counts[at], 0)
    return np.sort(first[counts > there])


def comparison_table(comparison: Comparison) -> str:
    """Lay out a comparison for reading: a block for each system but the first; rates in %, but for costs.

    Returns:
        Lines joined by newlines, without one at the end.
    """
    first = comparison.rates[0]
    lines = [
        f"{first['num_target']:,} target and {first['num_nontarget']:,} nontarget trials "
        f"of {comparison.num_speakers:,} speakers",
        f"A: {comparison.files[0]}",
    ]
    others = zip(comparison.files[1:], comparison.rates[1:], comparison.differences, strict=True)
    for file, rates, differences in others:
        interval = f"{100 * comparison.level:g} %"
        header = f"{'':<18}  {'A':>8}  {'B':>8}  {'B - A':>8}  {interval:>18}  {'p':>6}"
        lines += [f"B: {file}", "", header, "-" * len(header)]
        lines += [_row("EER %", 100, 3, first["eer"], rates["eer"], differences["eer"])]
        for prior, cost in first["min_dcf"].items():
            lines += [_row(f"minDCF({prior})", 1, 4, cost, rates["min_dcf"][prior], differences["min_dcf"][prior])]
        for far, point in first["tar_at_far"].items():
            name = f"TAR % at FAR {100 * float(far):g} %"
            if point["resolvable"]:
                both = point["tar"], rates["tar_at_far"][far]["tar"]
                lines += [_row(name, 100, 2, *both, differences["tar_at_far"][far])]
            else:
                lines += [f"{name:<18}  not resolvable ({first['num_nontarget']:,} nontargets)"]
        lines += [""]
    drawn = f"{comparison.replicates:,} replicates, seed {comparison.seed}"
    return "\n".join([*lines, f"interval and p-value of B - A: paired bootstrap over speakers ({drawn})"])


def _row(name: str, factor: float, digits: int, first: float, other: float, difference: Difference) -> str:
    low, high = (f"{factor * end:+.{digits}f}" for end in (difference.low, difference.high))
    return (
        f"{name:<18}  {factor * first:>8.{digits}f}  {factor * other:>8.{digits}f}"
        f"  {factor * difference.value:>+8.{digits}f}  {low + ' … ' + high:>18}  {difference.p_value:>6.3f}"
    )
