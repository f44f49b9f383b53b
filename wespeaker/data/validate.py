"""Is a data folder fit for training? Each utterance is decoded, measured and judged before it costs a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np

from wespeaker.config import Config
from wespeaker.data.dataset import count_classes, shortest_sec
from wespeaker.data.manifest import read_pairs, read_scp
from wespeaker.data.measure import CLIPPED_RUN, Measurement, measure
from wespeaker.data.report import Finding, Report, TrainingPart
from wespeaker.errors import InputError
from wespeaker.progress import progress

SILENT_DB = -60.0  # RMS against full scale; speech of a usual level has about -25
DC_OFFSET = 0.01  # of full scale, 328 steps of 16-bit audio
QUANTILES = {"min": 0.0, "p01": 0.01, "median": 0.5, "p99": 0.99, "max": 1.0}
BATCH = 4096  # files under way at a time

_COLUMNS = {"int": np.int64, "float": np.float64, "bool": np.bool_}
_ROW = np.dtype([(f.name, np.uint64 if f.name == "digest" else _COLUMNS[str(f.type)]) for f in fields(Measurement)])

_error = partial(Finding, "error")
_warning = partial(Finding, "warning")


def validate_data(data_dir: Path, *, num_threads: int, config: Config | None = None) -> Report:
    """Decode and judge every utterance of a data folder.

    Args:
        data_dir: folder with wav.scp and utt2spk.
        num_threads: files decoded at a time (the codecs release the interpreter lock).
        config: for what training with it would leave out or resample.

    Raises:
        InputError: the manifest itself cannot be read, or its two files have no key in common.

    """
    paths = read_scp(data_dir / "wav.scp")
    speakers = read_pairs(data_dir / "utt2spk", "the speaker of each utterance")
    keys = [key for key in paths if key in speakers]
    if not keys:
        raise InputError(f"{data_dir}: wav.scp and utt2spk have no key in common; make the manifest anew")
    table = np.zeros(len(keys), dtype=_ROW)
    unreadable: dict[int, str] = {}
    results = _measured([paths[key] for key in keys], num_threads=num_threads)
    for i, result in enumerate(progress(results, desc=f"validating {data_dir.name}", total=len(keys))):
        if isinstance(result, str):
            unreadable[i] = result
        else:
            table[i] = tuple(getattr(result, name) for name in table.dtype.fields or ())
    good = [i for i in range(len(keys)) if i not in unreadable]
    utts = _Utterances([keys[i] for i in good], [speakers[keys[i]] for i in good], table[good])
    num_utts = Counter(speakers[key] for key in keys)
    training, training_findings = _judge_training(utts, config) if config is not None else (None, [])
    findings = [
        _error(
            "unlisted", "utterances", "in one of wav.scp and utt2spk only; make the manifest anew",
            sorted(paths.keys() ^ speakers.keys()),
        ),
        _error(
            "unreadable", "utterances", "cannot be read; get them again, or take them out of the manifest",
            [f"{keys[i]}: {reason}" for i, reason in unreadable.items()],
        ),
        *_judge_audio(utts),
        *_judge_duplicates(utts),
        _warning(
            "one_utterance", "speakers", "speakers with one utterance, which makes no target trial",
            sorted(spk for spk, count in num_utts.items() if count == 1),
        ),
        *training_findings,
    ]  # fmt: skip
    return Report(
        data_dir=str(data_dir),
        num_utts=len(keys),
        num_spks=len(num_utts),
        hours=float(utts.seconds.sum()) / 3600,
        duration_sec=_quantiles(utts.seconds),
        utts_per_spk=_quantiles(np.array(list(num_utts.values()))),
        sample_rates=_counts(utts.table["rate"]),
        channels=_counts(utts.table["channels"]),
        training=training,
        findings=[finding for finding in findings if finding.items],
    )


def _measured(paths: Sequence[str], *, num_threads: int) -> Iterator[Measurement | str]:
    """Yield the measurement of each file, or the sentence why there is none."""

    def attempt(path: str) -> Measurement | str:
        try:
            return measure(path)
        except InputError as error:
            return str(error)

    with ThreadPoolExecutor(num_threads) as pool:
        batches = (paths[first : first + BATCH] for first in range(0, len(paths), BATCH))
        yield from chain.from_iterable(pool.map(attempt, batch) for batch in batches)


class _Utterances:
    """The readable utterances: keys, speakers, and a table of measurements with a row for each."""

    def __init__(self, keys: Sequence[str], speakers: Sequence[str], table: np.ndarray) -> None:
        self.keys, self.speakers, self.table = keys, speakers, table
        self.seconds = table["num_samples"] / table["rate"]

    def where(self, mask: np.ndarray, detail: Callable[[int], str] | None = None) -> list[str]:
        """Return the keys that a mask selects, each with its detail."""
        return [self.keys[i] + (f": {detail(i)}" if detail else "") for i in np.flatnonzero(mask).tolist()]


def _judge_audio(utts: _Utterances) -> list[Finding]:
    table = utts.table
    level_db = 20 * np.log10(table["rms"], where=table["rms"] > 0, out=np.full(len(table), np.nan))
    return [
        _error("not_finite", "utterances", "NaN or infinity; make them anew", utts.where(~table["is_finite"])),
        _warning("all_zero", "utterances", "zeros only; take them out", utts.where(table["rms"] == 0)),
        _warning(
            "silent", "utterances", f"RMS below {SILENT_DB:.0f} dB of full scale",
            utts.where(level_db < SILENT_DB, lambda i: f"{level_db[i]:.0f} dB"),
        ),
        _warning(
            "clipped", "utterances", f"{CLIPPED_RUN} or more samples in a row at full scale",
            utts.where(table["is_clipped"]),
        ),
        _warning(
            "dc_offset", "utterances", f"mean above {DC_OFFSET:.0%} of full scale; the features remove it",
            utts.where(np.abs(table["mean"]) > DC_OFFSET, lambda i: f"{table['mean'][i]:+.3f}"),
        ),
        _warning(
            "cut", "utterances", "the file ends before its wav header says; get it again",
            utts.where(table["is_cut"]),
        ),
        _warning(
            "several_channels", "utterances", "more than one channel; the first is used",
            utts.where(table["channels"] > 1, lambda i: f"{table['channels'][i]} channels"),
        ),
    ]  # fmt: skip


def _judge_duplicates(utts: _Utterances) -> list[Finding]:
    """Find equal audio under several keys; audio of zeros only is equal by accident and does not count."""
    digests = utts.table["digest"]
    _, inverse, counts = np.unique(digests, return_inverse=True, return_counts=True)
    groups: dict[int, list[int]] = {}
    for i in np.flatnonzero((counts[inverse] > 1) & (utts.table["rms"] != 0)).tolist():
        groups.setdefault(int(digests[i]), []).append(i)
    same: list[str] = []
    different: list[str] = []
    for group in groups.values():
        if len({utts.speakers[i] for i in group}) == 1:
            same.append(" = ".join(utts.keys[i] for i in group))
        else:
            different.append(" = ".join(f"{utts.keys[i]} ({utts.speakers[i]})" for i in group))
    return [
        _error("two_speakers", "recordings", "the same audio under several speakers; keep the right one", different),
        _warning("duplicates", "recordings", "the same audio under several keys of one speaker; keep one", same),
    ]


def _judge_training(utts: _Utterances, config: Config) -> tuple[TrainingPart, list[Finding]]:
    args = config.dataset_args
    shortest = shortest_sec(args)
    is_kept = utts.seconds >= shortest
    speakers = {utts.speakers[i] for i in np.flatnonzero(is_kept).tolist()}
    rate = utts.table["rate"]
    part = TrainingPart(
        num_utts=int(is_kept.sum()),
        num_spks=len(speakers),
        num_classes=count_classes(len(speakers), args),
        hours=float(utts.seconds[is_kept].sum()) / 3600,
        shortest_sec=shortest,
    )
    findings = [
        _warning(
            "too_short", "utterances",
            f"shorter than {shortest:.2f} s (filter_args.min_num_frames); training leaves them out",
            utts.where(~is_kept, lambda i: f"{utts.seconds[i]:.2f} s"),
        ),
        _warning(
            "lost_speakers", "speakers", "speakers of whom training has nothing left",
            sorted(set(utts.speakers) - speakers),
        ),
        _warning(
            "higher_rate", "utterances", f"resampled to {args.resample_rate} Hz",
            utts.where(rate > args.resample_rate, lambda i: f"{rate[i]} Hz"),
        ),
        _warning(
            "lower_rate", "utterances",
            f"resampled to {args.resample_rate} Hz; the upper bands stay empty",
            utts.where(rate < args.resample_rate, lambda i: f"{rate[i]} Hz"),
        ),
    ]  # fmt: skip
    if len(speakers) < 2:
        text = "all that is left for training, which needs two; lower filter_args.min_num_frames or record more"
        findings.append(_error("too_few_speakers", "speakers", text, sorted(speakers) or ["(none)"]))
    return part, findings


def _quantiles(values: np.ndarray) -> dict[str, float]:
    return {name: float(np.quantile(values, q)) for name, q in QUANTILES.items()} if len(values) else {}


def _counts(values: np.ndarray) -> dict[int, int]:
    unique, counts = np.unique(values, return_counts=True)
    return dict(zip(unique.tolist(), counts.tolist(), strict=True))
