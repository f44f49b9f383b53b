"""What is trained: all that the trainer is told of speakers, of faces, or of anything else that has classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from wespeaker.errors import InputError, listing

Facts = Mapping[str, int | list[str]]


class Batch(Protocol):
    """B training examples."""

    labels: torch.Tensor  # (B,) int64
    bad: list[tuple[str, str]]  # keys and reasons of unusable examples, which others came instead of

    @property
    def inputs(self) -> tuple[torch.Tensor, ...]:
        """What the network is called with."""

    def to(self, device: torch.device) -> Batch:
        """Move to a device."""


class Examples(Protocol):
    """A training set; every item is a function of (epoch, index) and the run's seed alone."""

    def __len__(self) -> int:
        """Return how many examples an epoch has."""

    def __getitem__(self, item: tuple[int, int]) -> Any:
        """Return the example of (epoch, index), epochs from 1."""


@dataclass(frozen=True)
class Task:
    """One task of recognition.

    dataset, collate: give the batches; an InputError instead of a batch stops the run. num_classes, embed_dim: C and
    D. network: makes the module whose call with a batch's ``inputs`` gives embeddings (B, D). backbone: the part of
    the network that has weights; model files have its keys. about: a line of the log. facts: what must be the same
    when a run goes on, by names that fit a sentence: counts, and names such as the speakers, since labels are
    positions in their list. evaluate: figures of the network, in evaluation mode, for ``metrics.jsonl`` (first
    process only). max_bad_utts: the share of the examples that may be unusable before the run stops.
    """

    dataset: Examples
    collate: Callable[[Sequence[Any]], Batch | InputError]
    num_classes: int
    embed_dim: int
    network: Callable[[], nn.Module]
    about: str
    facts: Facts
    backbone: Callable[[nn.Module], nn.Module] = lambda network: network
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None
    max_bad_utts: float = 1.0


def changes(before: Facts, now: Facts) -> list[str]:
    """Say which facts have changed.

    >>> changes({"utterances": 24, "speakers": ["ann", "bob"]}, {"utterances": 20, "speakers": ["ann"]})
    ['24 utterances then, 20 now', 'speakers that are no longer there: bob']
    """
    sentences = []
    for name, value in now.items():
        old = before.get(name)
        if isinstance(value, list) and isinstance(old, list):
            gone, new = sorted(set(old) - set(value)), sorted(set(value) - set(old))
            sentences += [f"{name} that are no longer there: {listing(gone, 5)}"] if gone else []
            sentences += [f"{name} that were not there: {listing(new, 5)}"] if new else []
            sentences += [f"{name} in another order"] if old != value and not gone and not new else []
        elif old != value:
            sentences.append(f"{old} {name} then, {value} now")
    return sentences
