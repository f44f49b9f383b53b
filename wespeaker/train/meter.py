"""What metrics.jsonl says about the steps since its last row."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from wespeaker.losses import HeadOutput
from wespeaker.train.distributed import Ranks, max_over_ranks, sum_over_ranks

SUMS = ("loss", "accuracy", "support", "zero_target", "zero_loss")  # over samples
COUNTS = ("examples", "scanned", "steps", "streamed")


class Meter:
    """Running figures between two rows; nothing is copied from the device before the row is due.

    Args:
        ranks: this process among those of the run.

    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._clear()

    def _clear(self) -> None:
        self._sums = torch.zeros(len(SUMS), dtype=torch.float64, device=self._ranks.device)
        self._support_max = torch.zeros((), dtype=torch.int64, device=self._ranks.device)
        self._counts = dict.fromkeys(COUNTS, 0)
        self._waited, self._started = 0.0, time.perf_counter()

    def update(self, out: HeadOutput, waited: float) -> None:
        """Take note of one step: the head's output, and the seconds that were waited for the batch."""
        loss = out.per_sample.detach()
        columns = (loss, out.correct, out.support, out.target_posterior == 0.0, loss == 0.0)
        self._sums += torch.stack([column.double().sum() for column in columns])
        self._support_max = torch.maximum(self._support_max, out.support.max())
        for name, count in zip(COUNTS, (len(loss), out.scanned, 1, out.path == "stream"), strict=True):
            self._counts[name] += count
        self._waited += waited

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out time in which nothing is trained, as for a checkpoint."""
        started = time.perf_counter()
        yield
        self._started += time.perf_counter() - started

    def state(self) -> dict[str, Any]:
        """Return the sums of this rank, without the clock."""
        return {"sums": self._sums.cpu(), "support_max": self._support_max.cpu(), "counts": dict(self._counts)}

    def load(self, states: Sequence[dict[str, Any]]) -> None:
        """Go on from the sums of one or more ranks; the clock starts now."""
        self._clear()
        for state in states:
            self._sums += state["sums"].to(self._sums.device)
            self._support_max = torch.maximum(self._support_max, state["support_max"].to(self._support_max.device))
            for name in COUNTS:
                self._counts[name] += state["counts"][name]

    @property
    def empty(self) -> bool:
        """Whether there was no step since the last row."""
        return self._counts["steps"] == 0

    def mean_loss(self) -> float:
        """Return the mean loss of all ranks since the last row; there was at least one step, and all ranks call it."""
        return self._means()["loss"]

    def row(self) -> dict[str, float]:
        """Return the figures of all ranks since the last call; there was at least one step.

        loss, accuracy (without margin) and support (classes with non-zero posterior): means over the samples.
        support_max: of all samples. zero_target: share of samples whose label's posterior is 0. zero_loss: share
        of samples whose loss is 0. streamed: share of the steps on the streaming path. scanned: logits a sample
        that were looked at one by one, the number of classes on the dense path. samples_per_sec: of all ranks.
        data_wait: share of the time that was spent waiting for batches.
        """
        means = self._means()
        seconds = time.perf_counter() - self._started
        row = {
            **{name: means[name] for name in SUMS},
            "support_max": int(max_over_ranks(self._support_max, self._ranks)),
            "streamed": means["streamed"],
            "scanned": means["scanned"],
            "samples_per_sec": means["examples"] / seconds,
            "data_wait": self._waited / seconds,
        }
        self._clear()
        return row

    def _means(self) -> dict[str, float]:
        """Return means over samples, of streamed the mean over steps, and of examples the sum; of all ranks."""
        counts = torch.tensor([self._counts[name] for name in COUNTS], dtype=torch.float64)
        *sums, examples, scanned, steps, streamed = sum_over_ranks(
            torch.cat([self._sums, counts.to(self._sums.device)]), self._ranks
        ).tolist()
        per_sample = zip((*SUMS, "scanned"), (*sums, scanned), strict=True)
        return {name: value / examples for name, value in per_sample} | {
            "streamed": streamed / steps,
            "examples": examples,
        }
