"""What learns: network, head and optimiser, the step that they take together, and what a checkpoint has of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from wespeaker.config import TrainConfig
from wespeaker.losses import HeadOutput, build_head, forget_momentum, grad_norms
from wespeaker.losses.shards import Shards
from wespeaker.ranks import Ranks, gathered
from wespeaker.train.checkpoint import HEAD_PREFIX, load, load_backbone
from wespeaker.train.clipping import clip_grad_norm_over_ranks
from wespeaker.train.model_init import check_names, head_state
from wespeaker.train.optimizers import build_optimizer, load_states, states_by_name
from wespeaker.train.precision import autocast, grad_scaler
from wespeaker.train.resume import CHECKPOINTS, State, read_facts, read_rows
from wespeaker.train.task import Batch, Facts, Task


@dataclass(frozen=True)
class StepOutput:
    """What a step of this rank made, without gradients.

    head: what the head said. embeddings: (B, D). gradient_norms: (P,), the 2-norm of the gradient of each of the
    learner's parameters, before clipping. loss_scale: (), what fp16 multiplied the loss by and the gradients were
    divided by, 0 in other precisions.
    """

    head: HeadOutput
    embeddings: torch.Tensor
    gradient_norms: torch.Tensor
    loss_scale: torch.Tensor


class Learner:
    """Network, head and optimiser of a run; the same from the same seed.

    Args:
        config: the experiment.
        task: what is trained.
        ranks: this process among those of the run, which share the head's classes out among them.

    """

    def __init__(self, config: TrainConfig, task: Task, ranks: Ranks) -> None:
        self.ranks, self.precision, self.max_norm = ranks, config.precision, config.clip_grad_norm
        torch.manual_seed(config.seed)
        self.network = task.network().to(ranks.device).train()
        self.backbone = task.backbone(self.network)
        self.shards = Shards.of_all_ranks(task.num_classes)
        head = build_head(
            config.projection_args, embed_dim=task.embed_dim, num_classes=task.num_classes, shards=self.shards
        )
        self.head = head.to(ranks.device).train()
        torch.manual_seed(config.seed + ranks.rank)  # so that ranks drop other units, where there is dropout
        self.parameters = dict(self.backbone.named_parameters())
        self.parameters |= {HEAD_PREFIX + name: param for name, param in self.head.named_parameters()}
        self.sharded = {HEAD_PREFIX + name for name in self.head.sharded_names}
        self.optimizer = build_optimizer(config, self.parameters)
        self.scaler = grad_scaler(config.precision, ranks)
        self._parallel = self._wrapped()

    def _wrapped(self) -> nn.Module:
        if self.ranks.world_size == 1:
            return self.network
        device = self.ranks.device
        return DistributedDataParallel(self.network, device_ids=[device.index] if device.type == "cuda" else None)

    def start_epoch(self, epoch: int) -> int:
        """Let the head do what it does once an epoch; return how many prototypes of all ranks it re-initialised."""
        rows = self.head.start_epoch(epoch)
        if len(rows):
            forget_momentum(self.optimizer, self.head.weight, rows)
        return sum(gathered(len(rows), self.ranks))

    def take_step(self, batch: Batch, *, share: float, rate: float, margin: float) -> StepOutput:
        """Learn from a batch; numbers that are not finite are for the caller to find (fp16's scaler skips such a step).

        Args:
            batch: of this rank.
            share: its part of what all ranks have, times their number, see `RunSampler.share`.
            rate: learning rate.
            margin: of the head.

        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.head.update(margin=margin)
        with autocast(self.precision, self.ranks):
            embeddings = self._parallel(*batch.inputs)
        out = self.head(embeddings, batch.labels)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(out.loss * share).backward()  # averages the network's gradients over ranks
        self.scaler.unscale_(self.optimizer)
        norms = grad_norms(self.parameters.values())
        if self.max_norm:
            replicated = [param for name, param in self.parameters.items() if name not in self.sharded]
            sharded = [param for name, param in self.parameters.items() if name in self.sharded]
            clip_grad_norm_over_ranks(replicated, sharded, self.max_norm, self.ranks)
        loss_scale = self.scaler.scale(torch.full((), float(self.scaler.is_enabled()), device=self.ranks.device))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        out = replace(out, loss=out.loss.detach(), per_sample=out.per_sample.detach())  # so that the graph can go
        return StepOutput(out, embeddings.detach(), norms, loss_scale)

    def start_from(self, path: Path, *, head_init: str, facts: Facts) -> None:
        """Take the weights of a model file instead of random ones.

        Args:
            path: ``model_<epoch>.pt`` or ``avg_model.pt``.
            head_init: "keep", the prototypes too, which are of the same classes; "unperturbed", those of the speakers
                at speed 1, without the speed classes that the file may have; or "reinit", none.
            facts: of the task, which are compared with those of the file's run where it lies in a run folder.

        Raises:
            InputError: the file is not of this network, or not of this head and these classes.

        """
        weights = load(path)
        load_backbone(self.backbone, weights)
        if head_init == "reinit":
            return
        before = read_facts(path.parent / CHECKPOINTS)
        check_names(before, facts, path)
        state = head_state(self.head, weights, path, before=before, unperturbed=head_init == "unperturbed")
        self.head.load_state_dict(state)

    def own_state(self) -> State:
        """Return what this rank alone has, for `read_rows`."""
        head, optimizer = self.head.state_dict(), states_by_name(self.optimizer, self.parameters)
        return {
            "classes": (self.shards.first, self.shards.last),
            "rows": {
                "head": {name: head[name] for name in self.head.sharded_names},
                "optimizer": {name: state for name, state in optimizer.items() if name in self.sharded},
            },
        }

    def run_state(self) -> State:
        """Return what all ranks have."""
        head, optimizer = self.head.state_dict(), states_by_name(self.optimizer, self.parameters)
        return {
            "backbone": self.backbone.state_dict(),
            "head": {name: value for name, value in head.items() if name not in self.head.sharded_names},
            "optimizer": {name: state for name, state in optimizer.items() if name not in self.sharded},
            "scaler": self.scaler.state_dict(),
        }

    def load(self, run: State, folder: Path) -> None:
        """Load what `run_state` gave, and this rank's rows out of a checkpoint's folder, whoever wrote them."""
        rows = read_rows(folder, self.shards.first, self.shards.last)
        load_backbone(self.backbone, run["backbone"])
        self.head.load_state_dict({**run["head"], **rows["head"]})
        load_states(self.optimizer, self.parameters, {**run["optimizer"], **rows["optimizer"]})
        self.scaler.load_state_dict(run["scaler"])

    def model_weights(self, folder: Path) -> dict[str, Any]:
        """Return the weights under WeSpeaker's keys, with the rows of all classes, which lie in a checkpoint's folder.

        The backbone's keys are bare, the head's follow ``projection.``.
        """
        run, rows = self.run_state(), read_rows(folder, 0, self.shards.num_classes)
        head = {HEAD_PREFIX + name: value for name, value in {**run["head"], **rows["head"]}.items()}
        return {**run["backbone"], **head}
