"""Mixed precision: the network under autocast, and for fp16 a scaled loss whose bad steps all ranks skip together."""

from __future__ import annotations

import torch
from torch import distributed

from wespeaker.train.distributed import Ranks

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(precision: str, ranks: Ranks) -> torch.autocast:
    """Return the context for a network's call; without effect for ``float32``."""
    return torch.autocast(ranks.device.type, dtype=DTYPES[precision], enabled=precision != "float32")


def grad_scaler(precision: str, ranks: Ranks) -> torch.amp.GradScaler:
    """Return the scaler of the loss, which passes everything through unless the precision is ``fp16``.

    torch's GradScaler looks for infinities in the gradients of its own process. Where each rank has the gradients
    of other classes, one of them would skip a step that the others take; FSDP's scaler asks all ranks.
    """
    enabled = precision == "fp16"
    if not enabled or ranks.world_size == 1:
        return torch.amp.GradScaler(ranks.device.type, enabled=enabled)
    from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler  # here, since it takes a second

    return ShardedGradScaler(ranks.device.type, process_group=distributed.group.WORLD)
