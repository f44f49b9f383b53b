"""Utterances that training cannot use: counted, listed in the run's folder, and above a share the end of the run."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from wespeaker.errors import InputError, listing
from wespeaker.files import write_lines
from wespeaker.train.distributed import Ranks, gathered

logger = logging.getLogger(__name__)


class BadUtts:
    """The unusable utterances of a run, each counted once however often it is met.

    Args:
        path: ``bad_utts.txt``, a key, a tab and the reason a line; what an interrupted run wrote counts.
        max_share: of the utterances, how many may be unusable.
        num_utts: of the training set.
        ranks: this process among those of the run.

    """

    def __init__(self, path: Path, *, max_share: float, num_utts: int, ranks: Ranks) -> None:
        self.path, self.max_share, self.num_utts, self.ranks = path, max_share, num_utts, ranks
        self._limit = int(max_share * num_utts)
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self.reasons = {key: reason for key, _, reason in (line.partition("\t") for line in lines)}
        self._told = len(self.reasons)

    def add(self, bad: Iterable[tuple[str, str]]) -> None:
        """Take note of the keys and reasons of a batch.

        Raises:
            InputError: there are more than may be; all that are known are in the file.

        """
        self.reasons.update(bad)
        if len(self.reasons) > self._limit:
            self._write()
            reasons = [f"{key} ({reason})" for key, reason in sorted(self.reasons.items())]
            raise InputError(
                f"{len(reasons)} of {self.num_utts} training utterances cannot be used, more than "
                f"dataset_args.max_bad_utts ({self.max_share:g}) allows: {listing(reasons, 3)}; mend or remove them, "
                f"or allow more; {self.path} lists those found so far"
            )

    def gather(self, epoch: float) -> None:
        """Bring together what the processes found, write the file, and warn of new ones; all ranks call it.

        Args:
            epoch: how far the run is, for the warning.

        """
        for found in gathered(self.reasons, self.ranks):
            self.add(found.items())
        if len(self.reasons) > self._told:
            self._write()
            logger.warning(
                "epoch %g: %d of %d utterances could not be used so far, others took their place (see %s): %s",
                round(epoch, 2), len(self.reasons), self.num_utts, self.path, listing(sorted(self.reasons), 3),
            )  # fmt: skip
            self._told = len(self.reasons)

    def _write(self) -> None:
        if self.ranks.first:
            write_lines(self.path, (f"{key}\t{reason}" for key, reason in sorted(self.reasons.items())))
