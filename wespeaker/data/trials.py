"""Trial lists and score files: Kaldi's, VoxCeleb's and WeSpeaker's text formats."""

from __future__ import annotations

import logging
import math
import os
from array import array
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wespeaker.errors import InputError, listing
from wespeaker.files import replacing

logger = logging.getLogger(__name__)

LABELS = ("nontarget", "target")  # LABELS[is_target]
_BLOCK = 4096  # lines written at a time


@dataclass(frozen=True)
class Trials:
    """N pairs of utterances and whether they are of one speaker; names are stored once, pairs as their indices."""

    utts: Sequence[str]  # (U,), unique, in order of first appearance
    enroll: NDArray[np.int32]  # (N,), index into utts
    test: NDArray[np.int32]  # (N,), index into utts
    is_target: NDArray[np.bool_]  # (N,)

    def __len__(self) -> int:
        return len(self.is_target)

    def name(self, i: int) -> str:
        """Return trial i as it stands in a list: ``enroll test``."""
        return f"{self.utts[self.enroll[i]]} {self.utts[self.test[i]]}"


@dataclass(frozen=True)
class UnlabelledTrials:
    """N pairs of utterances of which nobody says whether they are of one speaker; as in `Trials` otherwise."""

    utts: Sequence[str]  # (U,)
    enroll: NDArray[np.int32]  # (N,)
    test: NDArray[np.int32]  # (N,)

    def __len__(self) -> int:
        return len(self.enroll)


AnyTrials = Trials | UnlabelledTrials


@dataclass(frozen=True)
class _Layout:
    """Where the columns of a line are."""

    text: str
    width: int
    enroll: int
    test: int
    label: int | None
    is_target: Mapping[str, bool]
    numbers: tuple[int, ...] = ()

    def fits(self, fields: list[str]) -> bool:
        return len(fields) == self.width and (self.label is None or fields[self.label] in self.is_target)


_WORDS = {"target": True, "nontarget": False}
_TRIALS = (
    _Layout("utt1 utt2 target|nontarget", 3, 0, 1, 2, _WORDS),
    _Layout("1|0 utt1 utt2", 3, 1, 2, 0, {"1": True, "0": False}),
)
_SCORES = (
    _Layout("utt1 utt2 score target|nontarget", 4, 0, 1, 3, _WORDS, numbers=(2,)),
    # Score normalisation adds four columns; the first four mean the same.
    _Layout("utt1 utt2 score target|nontarget and four numbers", 8, 0, 1, 3, _WORDS, numbers=(2,)),
)
_UNLABELLED = _Layout("utt1 utt2", 2, 0, 1, None, {})
_UNLABELLED_SCORES = _Layout("utt1 utt2 score", 3, 0, 1, None, {}, numbers=(2,))
_NORMALISED = (
    _Layout(
        "utt1 utt2 score target|nontarget norm1 norm2 cohort_mean1 cohort_mean2",
        *(8, 0, 1, 3, _WORDS),
        numbers=(2, 4, 5, 6, 7),
    ),
)


def read_trials(path: str | os.PathLike[str]) -> Trials:
    """Read a trial list in Kaldi's format (``utt1 utt2 target|nontarget``) or VoxCeleb's (``1|0 utt1 utt2``).

    The first line decides which, all others must follow. Blank lines, CRLF and a missing final newline are
    fine. Repeated trials are kept, as published lists are scored as they are, and their number is logged.

    Raises:
        InputError: with ``file:line`` for a line of another format; for a list that is empty, is not UTF-8 text,
            or gives one pair both labels.
    """
    return _read_labelled(path, _TRIALS)[0]


def read_unlabelled_trials(path: str | os.PathLike[str]) -> UnlabelledTrials:
    """Read a list of ``utt1 utt2`` lines, of which there are scores but no error rates.

    Raises:
        InputError: as `read_trials` does.
    """
    trials, _ = _read(path, [_UNLABELLED])
    assert isinstance(trials, UnlabelledTrials)
    return trials


def are_labelled(paths: Sequence[str | os.PathLike[str]], *, scores: bool = False) -> bool:
    """Whether trial lists, or score files, have labels; each is judged by its first line.

    Raises:
        InputError: some have and some have not, which no table can show together; one is missing or is no text.
    """
    unlabelled = _UNLABELLED_SCORES if scores else _UNLABELLED
    without = [path for path in paths if unlabelled.fits(next(_lines(path), (0, []))[1])]
    if without and len(without) < len(paths):
        raise InputError(f"some lists have no labels: {listing(without)}; give them in a call of their own")
    return not without


def read_scores(path: str | os.PathLike[str]) -> tuple[Trials, NDArray[np.float64]]:
    """Read a score file of WeSpeaker: ``utt1 utt2 score target|nontarget``, with or without AS-Norm's four columns.

    Returns:
        The trials and their scores, (N,) float64.

    Raises:
        InputError: as `read_trials` does, and with ``file:line`` for a score that is not a finite number.
    """
    trials, scores = _read_labelled(path, _SCORES)
    return trials, scores[:, 0]


def read_any_scores(path: str | os.PathLike[str]) -> tuple[AnyTrials, NDArray[np.float64]]:
    """Read a score file as `read_scores` does, or one without labels: ``utt1 utt2 score``."""
    trials, scores = _read(path, (*_SCORES, _UNLABELLED_SCORES))
    return trials, scores[:, 0]


def read_normalised_scores(path: str | os.PathLike[str]) -> tuple[Trials, NDArray[np.float64], NDArray[np.float64]]:
    """Read a file of normalised scores: eight columns, as `write_scores` with ``quality`` and WeSpeaker write them.

    Returns:
        The trials, their scores, (N,) float64, and their quality, the last four columns, (N, 4) float64.

    Raises:
        InputError: as `read_scores` does, also for a file of four columns.
    """
    trials, numbers = _read_labelled(path, _NORMALISED)
    return trials, numbers[:, 0], numbers[:, 1:]


def write_kaldi_trials(path: str | os.PathLike[str], trials: Trials) -> None:
    """Write ``utt1 utt2 target|nontarget`` lines; the file appears whole or not at all."""
    columns = zip(trials.enroll.tolist(), trials.test.tolist(), trials.is_target.tolist(), strict=True)
    utts = trials.utts
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{utts[e]} {utts[t]} {LABELS[label]}\n" for e, t, label in columns)


def write_scores(
    path: str | os.PathLike[str], trials: AnyTrials, scores: ArrayLike, *, quality: ArrayLike | None = None
) -> None:
    """Write ``utt1 utt2 score target|nontarget`` lines, without the label where there is none, whole or not at all.

    Numbers are written with the digits that give back the same float64. WeSpeaker's ``%.5f`` ties 82 % of the
    scores of a list of VoxCeleb1-H's size with another one, which moves every threshold.

    Args:
        path: where to.
        trials: N trials.
        scores: (N,), converted to float64.
        quality: (N, 4), norms of the two embeddings and means of their cohort scores; where it is given, each line
            ends with these four columns, as WeSpeaker writes normalised scores.
    """
    scores = np.asarray(scores, dtype=np.float64)
    quality = None if quality is None else np.asarray(quality, dtype=np.float64)
    utts = trials.utts
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
        for start in range(0, len(trials), _BLOCK):
            block = slice(start, start + _BLOCK)
            columns = [column[block].tolist() for column in (trials.enroll, trials.test, scores)]
            ends = [""] * len(columns[0])
            if isinstance(trials, Trials):
                ends = [f" {LABELS[label]}" for label in trials.is_target[block].tolist()]
            if quality is not None:
                numbers = quality[block].tolist()
                ends = [f"{end} {a!r} {b!r} {c!r} {d!r}" for end, (a, b, c, d) in zip(ends, numbers, strict=True)]
            rows = zip(*columns, ends, strict=True)
            file.write("".join([f"{utts[e]} {utts[t]} {s!r}{end}\n" for e, t, s, end in rows]))


def _read_labelled(path: str | os.PathLike[str], layouts: Sequence[_Layout]) -> tuple[Trials, NDArray[np.float64]]:
    """Read lines of layouts that all have labels."""
    trials, numbers = _read(path, layouts)
    assert isinstance(trials, Trials)
    return trials, numbers


def _read(path: str | os.PathLike[str], layouts: Sequence[_Layout]) -> tuple[AnyTrials, NDArray[np.float64]]:
    """Read lines of the first of ``layouts`` that fits the first line; return the trials and its numbers, (N, K)."""
    lines = _lines(path)
    first = next(lines, None)
    if first is None:
        raise InputError(f"{path} is empty; expected lines of {_texts(layouts)}")
    layout = next((known for known in layouts if known.fits(first[1])), None)
    if layout is None:
        raise InputError(f"{path}:{first[0]}: expected {_texts(layouts)}, found {_shortened(first[1])}")
    index: defaultdict[str, int] = defaultdict()
    index.default_factory = index.__len__  # a new name gets the next index
    enroll, test, numbers, labels = array("i"), array("i"), array("d"), bytearray()
    for number, fields in chain([first], lines):
        # What layout.fits says, spelt out: a tenth of the time of reading a list of half a million trials.
        is_target = None
        if len(fields) == layout.width:
            is_target = False if layout.label is None else layout.is_target.get(fields[layout.label])
        if is_target is None:
            expected = f"{_texts([layout])} as in the lines before"
            raise InputError(f"{path}:{number}: expected {expected}, found {_shortened(fields)}")
        enroll.append(index[fields[layout.enroll]])
        test.append(index[fields[layout.test]])
        labels.append(is_target)
        for column in layout.numbers:
            numbers.append(_finite(fields[column], column, path, number))
    trials = Trials(
        utts=list(index),
        enroll=np.array(enroll, dtype=np.int32),
        test=np.array(test, dtype=np.int32),
        is_target=np.frombuffer(bytes(labels), dtype=np.bool_),
    )
    _check_repeats(trials, path)
    values = np.array(numbers, dtype=np.float64).reshape(len(trials), len(layout.numbers))
    return UnlabelledTrials(trials.utts, trials.enroll, trials.test) if layout.label is None else trials, values


def _lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield the number (from 1) and the fields of each line that is not blank."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if fields := line.split():
                    yield number, fields
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; stage 1 makes the trial lists, stage 5 the score files") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from None


def _finite(text: str, column: int, path: str | os.PathLike[str], number: int) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        what = "the score" if column == 2 else f"column {column + 1}"
        raise InputError(f"{path}:{number}: {what} must be a finite number, found '{text}'")
    return value


def _texts(layouts: Sequence[_Layout]) -> str:
    return " or ".join(f"'{known.text}'" for known in layouts)


def _shortened(fields: list[str]) -> str:
    text = " ".join(fields)
    return f"'{text}'" if len(text) <= 120 else f"'{text[:120]}…'"


def _check_repeats(trials: Trials, path: str | os.PathLike[str]) -> None:
    """Log how many trials repeat an earlier one; refuse a pair that is both target and nontarget."""
    pair = trials.enroll.astype(np.int64) * len(trials.utts) + trials.test
    keys = np.sort(2 * pair + trials.is_target)  # a tenth of the time of np.unique, which says where each trial is
    same_pair = keys[1:] >> 1 == keys[:-1] >> 1
    if (same_pair & (keys[1:] != keys[:-1])).any():
        _, first, inverse = np.unique(pair, return_index=True, return_inverse=True)
        conflicts = np.flatnonzero(trials.is_target != trials.is_target[first][inverse])
        raise InputError(
            f"{path} lists {trials.name(int(conflicts[0]))} both as target and as nontarget "
            f"({conflicts.size} such trials); one of the labels is wrong"
        )
    repeated = int(same_pair.sum())
    if repeated:
        logger.warning("%s: %d of %d trials repeat an earlier one; each is counted", path, repeated, len(trials))
