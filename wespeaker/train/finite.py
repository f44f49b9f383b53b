"""Numbers that are not finite end the run at the step that made them, on all ranks, with a sentence and a dump.

A process on a CPU looks at a step's figures at once. One on a GPU must not wait for it: the figures are copied while
the GPU works on, and looked at when they are there, `LATEST` steps later at most, and in any case before a row or a
checkpoint is written. What a step made is kept until then, so that the step that is named is the very one.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from wespeaker.errors import InputError, listing
from wespeaker.ranks import Ranks, gathered
from wespeaker.train import checkpoint
from wespeaker.train.learner import StepOutput
from wespeaker.train.task import Batch

logger = logging.getLogger(__name__)

LATEST = 2
# Of fp16: torch's scaler starts at 2^16, and where a gradient overflows it skips the step and halves the scale. Where
# it has halved that 26 times, it is not the scale that makes gradients overflow. Embeddings and losses come before the
# scale: where they are not finite, running statistics may be damaged already, and the run stops in any precision.
SMALLEST_SCALE = 2.0**-10
STAGES = ("input", "embedding", "loss", "gradient", "weight")  # in the order in which one damages the next


@dataclass(frozen=True)
class Taken:
    """A step that was taken.

    number: of the step, from 1. epoch: epochs taken after it. learning_rate, margin: those of the step.
    """

    number: int
    epoch: float
    learning_rate: float
    margin: float
    batch: Batch
    output: StepOutput


@dataclass(frozen=True)
class Figures:
    """What is told of the last finite step: mean loss, norm of this rank's gradients, norms of its embeddings."""

    step: int
    loss: float
    gradient_norm: float
    embedding_norm_min: float
    embedding_norm_mean: float
    embedding_norm_max: float

    def __str__(self) -> str:
        return (
            f"loss {self.loss:.4g}, gradient norm {self.gradient_norm:.4g} and embedding norms "
            f"{self.embedding_norm_min:.4g} to {self.embedding_norm_max:.4g} (mean {self.embedding_norm_mean:.4g}) "
            f"in step {self.step}"
        )


@dataclass(frozen=True)
class _Finding:
    """What is not finite in a step of one rank."""

    step: int
    stage: int  # of STAGES
    when: str  # of the step
    what: str


class FiniteCheck:
    """Looks at the numbers of each step.

    Args:
        folder: of the run, where the dump goes.
        parameters: of the learner, by name, in the order from the network's input to the loss.
        ranks: this process among those of the run.

    """

    def __init__(self, folder: Path, parameters: Mapping[str, Tensor], ranks: Ranks) -> None:
        self._folder, self._parameters, self._ranks = folder, parameters, ranks
        self._waiting: deque[tuple[Taken, _Copy]] = deque()
        self._last: Taken | None = None
        self._last_finite: Figures | None = None
        self._failed: tuple[Taken, _Finding] | None = None

    def add(self, taken: Taken) -> None:
        """Take note of a step."""
        self._last = taken
        self._waiting.append((taken, _Copy(_figures(taken.output))))

    def failed(self, *, wait: bool) -> bool:
        """Tell whether this rank has found a number that is not finite.

        Args:
            wait: look at all steps so far; otherwise at those whose figures are there.

        """
        while self._failed is None and self._waiting:
            taken, figures = self._waiting[0]
            if not (wait or len(self._waiting) > LATEST or figures.is_there()):
                break
            self._waiting.popleft()
            self._look(taken, figures.values())
        return self._failed is not None

    def weights_failed(self) -> bool:
        """Tell whether a weight of this rank is not finite after the last step, though all that led to it was."""
        if self._failed is None and self._last is not None:
            names = [name for name, weight in self._parameters.items() if not bool(weight.isfinite().all())]
            if names:
                self._fail(self._last, "weight", f"the update made {listing(names, 3)} not finite")
        return self._failed is not None

    def error(self) -> InputError:
        """Return what was found first, and dump the step where it was; all ranks call it when one has found any."""
        self.failed(wait=True)
        findings = gathered(None if self._failed is None else self._failed[1], self._ranks)
        found = {rank: finding for rank, finding in enumerate(findings) if finding is not None}
        first = min((finding.step, finding.stage) for finding in found.values())
        origins = [rank for rank, finding in found.items() if (finding.step, finding.stage) == first]
        if self._failed is not None and self._ranks.rank in origins:
            self._dump(*self._failed)
        also = f" (and on rank {listing(origins[1:], 5)})" if origins[1:] else ""
        finding = found[origins[0]]
        return InputError(f"{finding.when}, rank {origins[0]}{also}: {finding.what}")

    def _look(self, taken: Taken, values: list[float]) -> None:
        """Judge a step by the values of `_figures`."""
        bad_embeddings, bad_losses, scale, loss, gradient_norm, *norms = values
        keys, output = taken.batch.keys, taken.output
        if bad_embeddings:
            inputs = [_bad_rows(x) for x in taken.batch.inputs if x.is_floating_point() and len(x) == len(keys)]
            bad_inputs = torch.stack(inputs).any(0) if inputs else torch.zeros(len(keys), dtype=torch.bool)
            if bad_inputs.any():
                self._fail(taken, "input", f"the input of {_chosen(keys, bad_inputs)} is not finite")
            else:
                bad = _chosen(keys, _bad_rows(output.embeddings))
                self._fail(taken, "embedding", f"the embedding of {bad} is not finite, though all inputs are")
        elif bad_losses:
            bad = _chosen(keys, _bad_rows(output.head.per_sample))
            self._fail(taken, "loss", f"the loss of {bad} is not finite, though all embeddings are")
        elif math.isfinite(gradient_norm):
            self._last_finite = Figures(taken.number, loss, gradient_norm, *norms)
        elif scale <= SMALLEST_SCALE:  # above it the step was skipped, and the next one has a smaller scale
            norms_by_name = zip(self._parameters, output.gradient_norms.tolist(), strict=True)
            nearest = [name for name, norm in norms_by_name if not math.isfinite(norm)][-1]
            scaled = f" at a loss scale of {scale:g}" if scale else ""
            what = f"the gradient of {nearest} (of those concerned the nearest to the loss) is not finite{scaled}"
            self._fail(taken, "gradient", f"{what}, though all losses are; the batch is {listing(keys, 3)}")

    def _fail(self, taken: Taken, stage: str, what: str) -> None:
        before = "no step of this start was finite before"
        if self._last_finite is not None:
            before = f"the last finite figures are {self._last_finite}"
        advice = (
            "mend or remove it" if stage == "input" else "lower scheduler_args.initial_lr, or look for damaged data"
        )
        when = (
            f"step {taken.number} (epoch {taken.epoch:.2f}, learning rate {taken.learning_rate:.4g}, "
            f"margin {taken.margin:.3g})"
        )
        what = f"{what}; {before}; no checkpoint was written since, {self._path(taken)} holds the step; {advice}"
        self._failed = taken, _Finding(taken.number, STAGES.index(stage), when, what)
        self._waiting.clear()

    def _path(self, taken: Taken) -> Path:
        return self._folder / f"nonfinite_step{taken.number}_rank{self._ranks.rank}.pt"

    def _dump(self, taken: Taken, finding: _Finding) -> None:
        """Write the step as tensors and plain values, for ``torch.load`` with ``weights_only``."""
        norms = zip(self._parameters, taken.output.gradient_norms.tolist(), strict=True)
        content = {
            "reason": f"{finding.when}: {finding.what}",
            "stage": STAGES[finding.stage],
            **{name: getattr(taken, name) for name in ("epoch", "learning_rate", "margin")},
            "step": taken.number,
            "rank": self._ranks.rank,
            "keys": list(taken.batch.keys),
            "inputs": [x.cpu() for x in taken.batch.inputs],
            "labels": taken.batch.labels.cpu(),
            "embeddings": taken.output.embeddings.cpu(),
            "per_sample": taken.output.head.per_sample.cpu(),
            "gradient_norms": dict(norms),
            "last_finite": None if self._last_finite is None else asdict(self._last_finite),
        }
        try:
            checkpoint.save(content, self._path(taken))
        except OSError as error:  # the reason is worth more than the dump
            logger.warning("%s cannot be written: %s", self._path(taken), error)


class _Copy:
    """A vector on its way from its device, without anyone waiting for it."""

    def __init__(self, vector: Tensor) -> None:
        self._vector = vector.to("cpu", non_blocking=True)  # from a GPU into page-locked memory
        self._event: torch.cuda.Event | None = None
        if vector.is_cuda:
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(vector.device))

    def is_there(self) -> bool:
        """Whether no one need wait for it any more."""
        return self._event is None or self._event.query()

    def values(self) -> list[float]:
        """Wait for it."""
        if self._event is not None:
            self._event.synchronize()
        return self._vector.tolist()


@torch.no_grad()
def _figures(output: StepOutput) -> Tensor:
    """Return, on the device, what `FiniteCheck` judges a step by: (8,) float64."""
    losses, embeddings = output.head.per_sample, output.embeddings
    norms = torch.linalg.vector_norm(embeddings, dim=1, dtype=torch.float64)
    gradient_norm = torch.linalg.vector_norm(output.gradient_norms, dtype=torch.float64)  # of finite ones it is finite
    figures = (
        _bad_rows(embeddings).any(), _bad_rows(losses).any(), output.loss_scale, losses.double().mean(), gradient_norm,
        norms.min(), norms.mean(), norms.max(),
    )  # fmt: skip
    return torch.stack([figure.double() for figure in figures])


def _bad_rows(values: Tensor) -> Tensor:
    """Return which rows (B,) have a number that is not finite."""
    return ~values.isfinite().reshape(len(values), -1).all(1)


def _chosen(keys: Sequence[str], rows: Tensor) -> str:
    """Name the examples of some rows (B,) bool."""
    return listing([key for key, chosen in zip(keys, rows.tolist(), strict=True) if chosen], 3)
