"""Which utterance is seen when: a permutation of (seed, epoch), cut into batches over ranks."""

from __future__ import annotations

from collections.abc import Iterator

from torch.utils.data import Sampler

from wespeaker.data.randomness import generator
from wespeaker.errors import InputError

Item = tuple[int, int]  # epoch (from 1), index of the utterance


class RunSampler(Sampler[list[Item]]):
    """Yield the batches of one rank from any step to the end of the run.

    Step ``t`` of an epoch takes the ``t``-th slice of ``world_size * batch_size`` utterances of that epoch's
    permutation, and rank ``r`` the ``r``-th part of it. Where the utterances do not fill the last step, the last two
    steps share what there is for both, so that no step is a very small one: it would have noisy statistics and the
    learning rate of a large one. Every utterance then comes exactly once an epoch, all ranks take the same number of
    steps, their parts of a step differ by at most one utterance, and no part is smaller than half of ``batch_size``,
    rounded down: from ``batch_size: 4`` on never 1, of which batch normalisation knows no variance. ``drop_last``
    takes whole steps only, as WeSpeaker does; what is left over is other utterances in each epoch.

    One loader lives for the whole run, so its workers are never restarted and there is no pause between epochs.

    Args:
        num_utts: size of the training set.
        batch_size: utterances per rank and step.
        num_epochs: epochs of the run.
        seed: of the permutations.
        drop_last: leave out what does not fill a step.
        rank: this process.
        world_size: number of processes.
        start_step: steps already taken, also in the middle of an epoch.

    Raises:
        InputError: there are fewer utterances than one step takes, or with a ``batch_size`` of 1 the last step has
            none for some rank.

    """

    def __init__(
        self,
        num_utts: int,
        *,
        batch_size: int,
        num_epochs: int,
        seed: int,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
        start_step: int = 0,
    ) -> None:
        whole = batch_size * world_size
        if num_utts < whole:
            raise InputError(
                f"{num_utts} training utterances are fewer than one step takes "
                f"(batch_size {batch_size} x {world_size} processes); lower dataloader_args.batch_size"
            )
        self.num_seen = num_utts // whole * whole if drop_last else num_utts
        self.steps_per_epoch = -(-self.num_seen // whole)
        shared = (
            self.num_seen - (self.steps_per_epoch - 2) * whole
        )  # by the last two steps; of one step, twice its size
        self._last_start = self.num_seen - shared // 2
        self.num_utts, self.batch_size, self.num_epochs, self.seed = num_utts, batch_size, num_epochs, seed
        self.rank, self.world_size, self.start_step = rank, world_size, start_step
        if self.step_size(self.steps_per_epoch - 1) < world_size:
            raise InputError(
                f"{num_utts} training utterances cannot be dealt to {world_size} processes one at a time: the last "
                f"step has none for some; give dataloader_args.batch_size=2 or dataloader_args.drop_last=true"
            )

    def __len__(self) -> int:
        return self.steps_per_epoch * self.num_epochs - self.start_step

    def __iter__(self) -> Iterator[list[Item]]:
        first_epoch, first_step = divmod(self.start_step, self.steps_per_epoch)
        for epoch in range(first_epoch + 1, self.num_epochs + 1):
            order = generator(self.seed, "epoch", epoch).permutation(self.num_utts)
            for step in range(first_step, self.steps_per_epoch):
                start, end = self._part(step)
                yield [(epoch, int(i)) for i in order[start:end]]
            first_step = 0

    def step_size(self, step: int) -> int:
        """Return how many utterances a step of the run takes over all ranks."""
        step %= self.steps_per_epoch
        return self._start(step + 1) - self._start(step)

    def share(self, step: int) -> float:
        """Return this rank's part of a step of the run, times the number of ranks: 1 but for unequal parts.

        The mean over ranks of (share x mean loss of the rank) is the mean loss of the step's utterances.
        """
        start, end = self._part(step % self.steps_per_epoch)
        return (end - start) * self.world_size / self.step_size(step)

    def _part(self, step: int) -> tuple[int, int]:
        """Return where in the permutation this rank's utterances of a step of the epoch start and end."""
        first, size = self._start(step), self.step_size(step)
        return first + self.rank * size // self.world_size, first + (self.rank + 1) * size // self.world_size

    def _start(self, step: int) -> int:
        """Return where in the permutation a step of the epoch starts; the step after the last: where the epoch ends."""
        if step >= self.steps_per_epoch - 1:
            return self._last_start if step == self.steps_per_epoch - 1 else self.num_seen
        return step * self.batch_size * self.world_size
