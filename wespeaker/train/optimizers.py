"""Optimisers by name, and their state by the names of the parameters, which outlive their order and their ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from wespeaker.config import TrainConfig
from wespeaker.losses import RowSparseSGD

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"SGD": RowSparseSGD, "AdamW": torch.optim.AdamW}


def build_optimizer(config: TrainConfig, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
    """Return the optimiser that a config names, of one group; its rate is the schedule's from step to step."""
    optimizer = OPTIMIZERS[config.optimizer]
    return optimizer(parameters.values(), lr=config.scheduler_args.initial_lr, **config.optimizer_args)


def states_by_name(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]
) -> dict[str, dict[str, Any]]:
    """Return the state of each parameter that has one."""
    return {name: dict(optimizer.state[param]) for name, param in parameters.items() if param in optimizer.state}


def load_states(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    states: Mapping[str, Mapping[str, Any]],
) -> None:
    """Load what `states_by_name` gave; ``parameters`` are those that the optimiser was built with, in their order."""
    by_position = {i: states[name] for i, name in enumerate(parameters) if name in states}
    optimizer.load_state_dict({"state": by_position, "param_groups": optimizer.state_dict()["param_groups"]})
