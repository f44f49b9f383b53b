"""What a run folder holds of a run: config, environment, training log, error rates and scores."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, Field, ValidationError

from wespeaker.data.trials import read_scores
from wespeaker.documents import parse_json, parse_yaml
from wespeaker.errors import InputError, listing
from wespeaker.eval.fingerprint import trials_sha256
from wespeaker.eval.metrics import ErrorTradeoff, error_tradeoff


def _is_rate(text: str) -> str:
    if not 0 < float(text) <= 1:
        raise ValueError("must be above 0 and at most 1")
    return text


_Far = Annotated[str, AfterValidator(_is_rate)]  # such as "0.01"
_Interval = Annotated[list[float], Field(min_length=2, max_length=2)]


class _Point(BaseModel):
    tar: float


class _Intervals(BaseModel):
    level: float
    replicates: int
    eer: _Interval | None = None
    min_dcf: dict[str, _Interval] = {}
    tar_at_far: dict[_Far, _Interval | None] = {}


class _Rates(BaseModel):
    """What the report shows of a list in results.json; there may be more."""

    num_target: int
    num_nontarget: int
    eer: float
    min_dcf: dict[str, float] = Field(min_length=1)
    tar_at_far: dict[_Far, _Point]
    interval: _Intervals | None = None


@dataclass(frozen=True)
class Scores:
    """The scores of one run on one trial list."""

    file: Path
    tradeoff: ErrorTradeoff
    trials_sha256: str


@dataclass(frozen=True)
class Run:
    """A run folder as read; a file that it lacks is None."""

    name: str  # unique among the runs that are compared
    folder: Path
    config: Mapping[str, Any] | None  # config.yaml
    environment: Mapping[str, Any] | None  # env.json
    metrics: Sequence[Mapping[str, Any]] | None  # the rows of metrics.jsonl
    results: Mapping[str, Any] | None  # scores/results.json
    scores: Mapping[str, Scores]  # by the names of the lists in results

    @property
    def rates(self) -> Mapping[str, Mapping[str, Any]]:
        """The error rates of each trial list, as in results.json."""
        return self.results["trials"] if self.results else {}


@dataclass(frozen=True)
class TrialList:
    """A trial list and the runs that were scored on these very trials."""

    name: str
    num_target: int
    num_nontarget: int
    trials_sha256: str | None  # None: no run left its scores
    runs: tuple[Run, ...]

    @property
    def counts(self) -> tuple[int, int]:
        """Number of target and of nontarget trials."""
        return self.num_target, self.num_nontarget


def read_runs(folders: Sequence[str | os.PathLike[str]]) -> list[Run]:
    """Read run folders; each is called by its own name, or by its path where two have the same name.

    Raises:
        InputError: if there is no folder, one is not there or is given twice, none has scores, or a file is damaged.
    """
    runs = [_read_run(path, name) for name, path in name_runs(folders).items()]
    if not any(run.rates for run in runs):
        raise InputError(
            f"no scores to report: none of {listing([str(run.folder) for run in runs])} has scores/results.json; "
            "run stage 5 of run.sh, or tools/score.py with --output_dir RUN/scores"
        )
    return runs


def name_runs(folders: Sequence[str | os.PathLike[str]]) -> dict[str, Path]:
    """Return run folders by what to call them: their own names, or their paths where two have the same name.

    Raises:
        InputError: one is no folder or is given twice.
    """
    paths = [Path(folder) for folder in folders]
    for path in paths:
        if not path.is_dir():
            raise InputError(f"{path} is not a folder; give run folders such as exp/mini_qmargin")
    resolved = [path.resolve() for path in paths]
    repeated = sorted({str(path) for path, real in zip(paths, resolved, strict=True) if resolved.count(real) > 1})
    if repeated:
        raise InputError(f"these are one run folder, which is compared with others once: {listing(repeated)}")
    named = {real.name: path for real, path in zip(resolved, paths, strict=True)}
    return named if len(named) == len(paths) else {str(path): path for path in paths}


def trial_lists(runs: Sequence[Run]) -> list[TrialList]:
    """Gather runs by the trial lists they were scored on, in order of first appearance.

    Two lists are the same if name, counts and trials are; of a run without score files name and counts decide.
    """
    lists: list[TrialList] = []
    for run in runs:
        for name, rates in run.rates.items():
            sha256 = run.scores[name].trials_sha256 if name in run.scores else None
            found = TrialList(name, rates["num_target"], rates["num_nontarget"], sha256, (run,))
            same = next((i for i, known in enumerate(lists) if _same_trials(known, found)), None)
            if same is None:
                lists.append(found)
                continue
            known = lists[same]
            sha256 = known.trials_sha256 if sha256 is None else sha256
            lists[same] = replace(known, trials_sha256=sha256, runs=(*known.runs, run))
    return lists


def _same_trials(one: TrialList, other: TrialList) -> bool:
    hashes = {one.trials_sha256, other.trials_sha256} - {None}
    return (one.name, one.counts) == (other.name, other.counts) and len(hashes) < 2


def _read_run(folder: Path, name: str) -> Run:
    results = read_results(folder / "scores" / "results.json")
    scores = {}
    for trial_list in results["trials"] if results else ():
        # tools/score.py names a score file after the file of the list.
        files = [folder / "scores" / f"{trial_list}{suffix}.score" for suffix in (".kaldi", ".txt", "")]
        if existing := [file for file in files if file.exists()]:
            scores[trial_list] = _read_scores(existing[0])
    return Run(
        name=name,
        folder=folder,
        config=read_yaml(folder / "config.yaml"),
        environment=_read_json(folder / "env.json"),
        metrics=_read_metrics(folder / "metrics.jsonl"),
        results=results,
        scores=scores,
    )


def _read_scores(file: Path) -> Scores:
    trials, scores = read_scores(file)
    try:
        tradeoff = error_tradeoff(scores, trials.is_target, trial_name=trials.name)
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    return Scores(file, tradeoff, trials_sha256(trials))


def read_text(path: Path) -> str | None:
    """Return the contents, or None where there is no such file.

    Raises:
        InputError: it is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from None


def _read_json(path: Path) -> Mapping[str, Any] | None:
    text = read_text(path)
    return None if text is None else _json_object(text, path)


def _json_object(text: str, where: object) -> Mapping[str, Any]:
    value = parse_json(text, where)
    if not isinstance(value, dict):
        raise InputError(f"{where} must hold a JSON object, found {type(value).__name__}")
    return value


def read_yaml(path: Path) -> Mapping[str, Any] | None:
    """Return a mapping, such as a config, or None where there is no such file.

    Raises:
        InputError: it is no YAML, or no mapping.
    """
    text = read_text(path)
    if text is None:
        return None
    value = parse_yaml(text, path)
    if not isinstance(value, dict):
        raise InputError(f"{path} must be a mapping of keys to values, found {type(value).__name__}")
    return value


def _read_metrics(path: Path) -> list[Mapping[str, Any]] | None:
    text = read_text(path)
    return None if text is None else metrics_rows(text, path)


def metrics_rows(text: str, path: Path) -> list[Mapping[str, Any]]:
    """Return the whole rows of the text of metrics.jsonl; a run that is going on may be writing the last one.

    Raises:
        InputError: a row is damaged, or has no step or no epoch.
    """
    whole = text[: text.rfind("\n") + 1].splitlines()
    rows = [_json_object(line, f"{path}:{number}") for number, line in enumerate(whole, 1)]
    for number, row in enumerate(rows, 1):
        for key in ("step", "epoch"):
            if not isinstance(row.get(key), int | float):
                found = listing(list(row))
                raise InputError(f"{path}:{number}: a row must have '{key}', a number; found the keys {found}")
    return rows


def read_results(path: Path) -> Mapping[str, Any] | None:
    """Return the contents of results.json, or None where there is no such file.

    Raises:
        InputError: something that is shown of it is missing or of another type.
    """
    results = _read_json(path)
    if results is None:
        return None
    trials = results.get("trials")
    if not isinstance(trials, dict) or not all(isinstance(rates, dict) for rates in trials.values()):
        raise InputError(f"{path} has no mapping 'trials' of lists to their error rates; score again")
    for name, rates in trials.items():
        needed = ("num_target", "num_nontarget", "eer", "min_dcf", "tar_at_far")
        if missing := [key for key in needed if key not in rates]:
            raise InputError(f"{path}: list {name} lacks {listing(missing)}; score again")
        try:
            _Rates.model_validate(rates, strict=True)
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(map(str, problem["loc"]))
            raise InputError(f"{path}: list {name}: {where}: {problem['msg']}; score again") from None
    return results
