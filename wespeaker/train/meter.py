"""What metrics.jsonl says about the steps since its last row."""

from __future__ import annotations

import time

import torch

from wespeaker.losses import HeadOutput
from wespeaker.ranks import Ranks, max_over_ranks, mean_over_ranks


class Meter:
    """Running figures between two rows; nothing is copied from the device before the row is due.

    Args:
        ranks: this process among those of the run.

    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._clear()

    def _clear(self) -> None:
        self._sums = torch.zeros(5, dtype=torch.float64, device=self._ranks.device)
        self._support_max = torch.zeros((), dtype=torch.int64, device=self._ranks.device)
        self._steps, self._examples, self._streamed, self._scanned = 0, 0, 0, 0
        self._waited, self._started = 0.0, time.perf_counter()

    def update(self, out: HeadOutput, waited: float) -> None:
        """Take note of one step: the head's output, and the seconds that were waited for the batch."""
        loss = out.per_sample.detach()
        columns = (loss, out.correct, out.support, out.target_posterior == 0.0, loss == 0.0)
        self._sums += torch.stack([column.double().sum() for column in columns])
        self._support_max = torch.maximum(self._support_max, out.support.max())
        self._steps += 1
        self._examples += len(loss)
        self._streamed += out.path == "stream"
        self._scanned += out.scanned
        self._waited += waited

    def row(self) -> dict[str, float]:
        """Return the figures of all ranks since the last call; there was at least one step.

        loss, accuracy (without margin) and support (classes with non-zero posterior): means over the samples.
        support_max: of all samples. zero_target: share of samples whose label's posterior is 0. zero_loss: share
        of samples whose loss is 0. streamed: share of the steps on the streaming path. scanned: logits a sample
        that were looked at one by one, the number of classes on the dense path. utt_per_sec: samples a second.
        data_wait: share of the time that was spent waiting for batches.
        """
        counts = torch.tensor([self._examples, self._streamed, self._scanned, self._steps], dtype=torch.float64)
        totals = mean_over_ranks(torch.cat([self._sums, counts.to(self._sums.device)]), self._ranks).tolist()
        *sums, examples, streamed, scanned, steps = totals
        names = ("loss", "accuracy", "support", "zero_target", "zero_loss")
        seconds = time.perf_counter() - self._started
        row = {
            **{name: value / examples for name, value in zip(names, sums, strict=True)},
            "support_max": int(max_over_ranks(self._support_max, self._ranks)),
            "streamed": streamed / steps,
            "scanned": scanned / examples,
            "utt_per_sec": examples * self._ranks.world_size / seconds,
            "data_wait": self._waited / seconds,
        }
        self._clear()
        return row
