"""What the command line says of scores and people: lines to read, and values for JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from wespeaker.deploy.card import Card, Decision, MeasuredPoint
from wespeaker.deploy.recording import Recording
from wespeaker.deploy.store import Person
from wespeaker.deploy.verification import HOW_TO_DECIDE, Candidate, Verdict, resolvable_fars

DECISIONS = {True: "accept", False: "reject", None: None}


def percent(share: float, digits: int = 3) -> str:
    """Return a share in per cent with so many significant digits.

    >>> percent(1e-4), percent(0.8565, 4)
    ('0.01 %', '85.65 %')
    """
    return f"{100 * share:.{digits}g} %"


def verdict_lines(verdict: Verdict, card: Card, *, chosen: bool, num_files: int = 1) -> list[str]:
    """Say what the score of two sides means.

    Args:
        verdict: of the score.
        card: of the model.
        chosen: whether the user named the FAR.
        num_files: recordings on the enrolment side.

    """
    lines = [_line("score", f"{verdict.score:.5f}", score_kind(card))]
    if card.decision is not None and (evidence := verdict.evidence) is not None:
        lines.append(
            _line(
                "LLR",
                f"{evidence.llr:+.2f}",
                f"calibrated on {card.decision.trials}; one speaker with a probability of "
                f"{percent(evidence.posterior)} where {percent(evidence.p_target)} of all pairs are (--p_target)",
            )
        )
    if card.decision is None or verdict.far is None or verdict.point is None:
        return [*lines, _line("decision", "none", _undecided(card))]
    point = verdict.point
    lines.append(
        _line(
            "decision",
            str(DECISIONS[verdict.accepted]),
            f"the score {'reaches' if verdict.accepted else 'is below'} {point.threshold:.5f}, the threshold for FAR "
            f"{percent(verdict.far)}{'' if chosen else ' (the lowest that these trials show; --far names another)'}",
        )
    )
    lines += _measured(point, card.decision, num_files)
    others = [
        f"{percent(far)} at {other.threshold:.5f}: {DECISIONS[verdict.score >= other.threshold]}"
        for far, other in resolvable_fars(card.decision).items()
        if far != verdict.far
    ]
    return [*lines, *([_line("others", "", "; ".join(others))] if others else [])]


def _undecided(card: Card) -> str:
    """Return why there is no decision, and how to get one."""
    if card.decision is None:
        return f"no threshold was measured for this model; {HOW_TO_DECIDE}"
    return (
        f"the {card.decision.num_nontarget:,} nontarget trials of {card.decision.trials} are too few for any FAR of "
        f"the card; measure a higher one with --target_far (stage 5) and export again (stage 8)"
    )


def score_kind(card: Card) -> str:
    """Return what the score is."""
    return "cosine" if card.mean_vec is None else "cosine after mean subtraction"


def _measured(point: MeasuredPoint, decision: Decision, num_files: int) -> list[str]:
    """Say what the threshold gave, how sure that is, and on what."""
    level, interval = percent(decision.level), point.interval
    bound = max(point.far_upper.clopper_pearson, point.far_upper.bootstrap or 0)
    sure = f"at most {percent(bound)} with {level} confidence"
    if interval is not None and interval.far is not None:
        sure = f"{level}: {_range(interval.far)}; {sure}"
    of_tar = f" ({level}: {_range(interval.tar, 4)})" if interval else ""
    speakers = f", {decision.num_speakers:,} speakers" if decision.num_speakers else ""
    return [
        _line(
            "FAR",
            percent(point.far),
            f"of {decision.num_nontarget:,} trials of different speakers, {point.num_false_accepts:,} were accepted "
            f"({sure})",
        ),
        _line(
            "TAR",
            percent(point.tar, 4),
            f"of {decision.num_target:,} trials of one speaker, {point.num_true_accepts:,} were accepted{of_tar}",
        ),
        _line(
            "",
            "",
            f"measured on {decision.trials}{speakers}, one file on each side"
            + (f"; of {num_files} enrolled files, as here, it may differ" if num_files > 1 else ""),
        ),
        *([_line("", "", decision.note)] if decision.note else []),
    ]


def _line(name: str, value: str, text: str) -> str:
    return f"{name:<9} {value:<8} {text}".rstrip()


def _range(interval: tuple[float, float], digits: int = 3) -> str:
    return f"{100 * interval[0]:.{digits}g}–{percent(interval[1], digits)}"


def candidate_lines(candidates: Sequence[Candidate], *, num_people: int, card: Card, num_files: int = 1) -> list[str]:
    """Say who it may be, and how much more often a stranger is taken for somebody among many.

    Args:
        candidates: those to show, best first.
        num_people: how many are enrolled.
        card: of the model.
        num_files: the most recordings that one of them is enrolled with.

    """
    width = max([4, *(len(candidate.name) for candidate in candidates)])
    lines = [f"{'name':<{width}}     score     LLR  decision"]
    for candidate in candidates:
        verdict = candidate.verdict
        llr = "–" if verdict.evidence is None else f"{verdict.evidence.llr:+.2f}"
        lines.append(
            f"{candidate.name:<{width}}  {verdict.score:8.5f}  {llr:>6}  {DECISIONS[verdict.accepted] or 'none'}"
        )
    verdict = candidates[0].verdict
    if card.decision is None or verdict.far is None or verdict.point is None:
        return [*lines, "", _undecided(card)]
    few = 1.0 if num_people * verdict.far > 1 else num_people * verdict.far
    lines += [
        "",
        f"threshold {verdict.point.threshold:.5f}, for FAR {percent(verdict.far)} in one comparison; with {num_people} "
        f"enrolled a stranger is accepted as one of them in up to {num_people} × {percent(verdict.far)} = "
        f"{percent(few)} of the cases",
        *_measured(verdict.point, card.decision, num_files),
    ]
    return lines


def verdict_json(verdict: Verdict, card: Card) -> dict[str, Any]:
    """Return a verdict as plain values; rates and probabilities in [0, 1], None where nothing was measured."""
    decision = card.decision
    measured = None
    if verdict.point is not None and decision is not None:
        on = decision.model_dump(
            include={"trials", "note", "trials_sha256", "num_target", "num_nontarget", "num_speakers", "level"}
        )
        measured = {**on, **verdict.point.model_dump(mode="json")}
    return {
        "score": verdict.score,
        "score_kind": score_kind(card),
        **dict.fromkeys(("llr", "p_target", "posterior")),
        **(vars(verdict.evidence) if verdict.evidence else {}),
        "far": verdict.far,
        "threshold": verdict.point.threshold if verdict.point else None,
        "decision": DECISIONS[verdict.accepted],
        "measured": measured,
    }


def model_json(card: Card) -> dict[str, str]:
    """Return which model it was."""
    return {"model": card.model, "fingerprint": card.fingerprint, "wespeaker_q": card.wespeaker_q}


def recording_json(recording: Recording) -> dict[str, Any]:
    """Return what was read, but for its samples."""
    return {"file": recording.path, "seconds": recording.seconds, "warnings": list(recording.warnings)}


def person_json(person: Person) -> dict[str, Any]:
    """Return who is enrolled, but for the voiceprint."""
    return {name: value for name, value in vars(person).items() if name != "voiceprint"}


def people_lines(people: Sequence[Person]) -> list[str]:
    """Return a table of who is enrolled."""
    width = max([4, *(len(person.name) for person in people)])
    return [
        f"{'name':<{width}}  {'enrolled at (UTC)':<19}  files  seconds",
        *(
            f"{person.name:<{width}}  {person.enrolled_at[:19]:<19}  {person.num_files:>5}  {person.seconds:7.1f}"
            for person in people
        ),
    ]


def kaldi_text(embeddings: Mapping[str, Iterable[float]]) -> list[str]:
    """Return embeddings as Kaldi writes vectors in text: ``key  [ 0.1 0.2 ]``, float32 without loss."""
    return [f"{key}  [ {' '.join(f'{value:.9g}' for value in row)} ]" for key, row in embeddings.items()]
