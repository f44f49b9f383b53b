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
    permutation, and rank ``r`` the ``r``-th part of it. No utterance comes twice in an epoch; the fewer than
    ``world_size * batch_size`` left over at its end are other ones in each epoch. One loader lives for the whole
    run, so its workers are never restarted and there is no pause between epochs.

    Args:
        num_utts: size of the training set.
        batch_size: utterances per rank and step.
        num_epochs: epochs of the run.
        seed: of the permutations.
        rank: this process.
        world_size: number of processes.
        start_step: steps already taken.

    Raises:
        InputError: there are fewer utterances than one step takes.

    """

    def __init__(
        self,
        num_utts: int,
        *,
        batch_size: int,
        num_epochs: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        start_step: int = 0,
    ) -> None:
        self.steps_per_epoch = num_utts // (batch_size * world_size)
        if self.steps_per_epoch == 0:
            raise InputError(
                f"{num_utts} training utterances are fewer than one step takes "
                f"(batch_size {batch_size} x {world_size} processes); lower dataloader_args.batch_size"
            )
        self.num_utts, self.batch_size, self.num_epochs, self.seed = num_utts, batch_size, num_epochs, seed
        self.rank, self.world_size, self.start_step = rank, world_size, start_step

    def __len__(self) -> int:
        return self.steps_per_epoch * self.num_epochs - self.start_step

    def __iter__(self) -> Iterator[list[Item]]:
        first_epoch, first_step = divmod(self.start_step, self.steps_per_epoch)
        for epoch in range(first_epoch + 1, self.num_epochs + 1):
            order = generator(self.seed, "epoch", epoch).permutation(self.num_utts)
            for step in range(first_step, self.steps_per_epoch):
                start = (step * self.world_size + self.rank) * self.batch_size
                yield [(epoch, int(i)) for i in order[start : start + self.batch_size]]
            first_step = 0
