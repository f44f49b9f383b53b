"""What a training step takes of a device's memory, counted before there is a run."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from wespeaker.config import TrainConfig
from wespeaker.losses import Head, MarginHead, build_head
from wespeaker.train.optimizers import build_optimizer
from wespeaker.train.precision import DTYPES

# A head's step is taken with so many rows and classes at most: enough for the solver to meet few active classes among
# many, as in a run.
ROWS, CLASSES = 64, 16384


class LiveBytes(TorchDispatchMode):
    """Count the bytes of the tensors that operations have made and that are alive, and the most there were at a time.

    Forward and backward are both seen; on the meta device nothing is computed. What operations allocate and free
    inside themselves, such as the workspace of a convolution, is not.

    Args:
        given: tensors that were there before; they are not counted, nor are views of them.

    """

    def __init__(self, given: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._storages = {tensor.untyped_storage()._cdata for tensor in given}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call the operation and count what it made."""
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.layout == torch.strided:
                self._add(leaf.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._storages:
            return
        self._storages.add(storage._cdata)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, storage._cdata, storage.nbytes()).atexit = False

    def _drop(self, address: int, nbytes: int) -> None:
        self._storages.discard(address)
        self.now -= nbytes


def peak_of_step(module: nn.Module, loss: Callable[[], Tensor], inputs: Iterable[Tensor]) -> int:
    """Return the bytes that a forward and backward take at their peak, without weights, gradients and inputs."""
    for param in module.parameters():
        param.grad = torch.zeros_like(param)
    grads = [param.grad for param in module.parameters() if param.grad is not None]
    with LiveBytes([*module.parameters(), *module.buffers(), *grads, *inputs]) as live:
        loss().backward()
    return live.peak


def network_step(backbone: Callable[[], nn.Module], shape: tuple[int, ...], *, batch_size: int, precision: str) -> int:
    """Return the bytes that a network's forward and backward take at their peak.

    Args:
        backbone: makes the network.
        shape: of the features of an example, such as (T, F).
        batch_size: B.
        precision: of the config; with 16 bits all activations count as such, though autocast leaves some in 32.

    """
    with torch.device("meta"):
        network = backbone().to(DTYPES[precision])
        feats = torch.empty(batch_size, *shape, dtype=DTYPES[precision])
        return peak_of_step(network, lambda: network(feats).float().sum(), [feats])


def head_step(config: TrainConfig, *, embed_dim: int, num_rows: int, num_classes: int, device: str) -> int:
    """Estimate the bytes that a head's forward and backward take at their peak, from a smaller step that is taken.

    A step with 1/k of the rows and 1/k of D takes 1/k of the logits and of the prototypes, and both are in proportion
    to the classes.

    Args:
        config: the experiment.
        embed_dim: D.
        num_rows: B of all processes together, whose embeddings meet in every head.
        num_classes: C of this process.
        device: torch's type of the one to train on; heads on a CPU compute in forms that take less.

    """
    times = max(1.0, num_rows / ROWS)
    rows, dim, classes = round(num_rows / times), max(2, round(embed_dim / times)), max(2, min(num_classes, CLASSES))
    head = build_head(config.projection_args, embed_dim=dim, num_classes=classes).train()
    if isinstance(head, MarginHead) and device != "cpu" and head.form != "stream":
        head.streamable = False
    embeddings = torch.randn(rows, dim, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():  # a number that prototypes lack: cosines spread as those of D numbers do, whence the sparsity
        head.weight[:, 0], embeddings[:, 0] = 0.0, math.sqrt(embed_dim - dim + 1)
    grad = torch.zeros_like(embeddings)
    embeddings.requires_grad_().grad = grad
    labels = torch.arange(rows) % classes
    peak = peak_of_step(head, lambda: head(embeddings, labels).loss, [embeddings, grad, labels])
    return round(peak * times * num_classes / classes)


@dataclass(frozen=True)
class HeadSize:
    """How large a head is, as a function of its classes.

    params: numbers of parameters, of each class and beside. of_class: bytes in the state of each class on the process
    that holds it. of_any_class: the same on all processes. beside: bytes that do not grow with the classes.
    """

    params_of_class: int
    params_beside: int
    of_class: int
    of_any_class: int
    beside: int

    def params(self, num_classes: int) -> int:
        """Return the number of parameters of so many classes."""
        return self.params_of_class * num_classes + self.params_beside

    def nbytes(self, *, num_classes: int, here: int) -> int:
        """Return the bytes of weights and buffers on a process that holds ``here`` of so many classes."""
        return self.of_class * here + self.of_any_class * num_classes + self.beside


def head_size(config: TrainConfig, *, embed_dim: int) -> HeadSize:
    """Find the size of the head of a config out of those for two and three classes."""
    two, three = (
        _sizes(build_head(config.projection_args, embed_dim=embed_dim, num_classes=num_classes))
        for num_classes in (2, 3)
    )
    (params, of_class, of_any), (params_3, of_class_3, of_any_3) = two, three
    beside = of_any - 2 * (of_any_3 - of_any)
    return HeadSize(
        params_3 - params, params - 2 * (params_3 - params), of_class_3 - of_class, of_any_3 - of_any, beside
    )


def _sizes(head: Head) -> tuple[int, int, int]:
    """Return the number of parameters, the bytes of what is split over processes, and of what is not."""
    nbytes = {name: value.nbytes for name, value in head.state_dict().items()}
    split = sum(nbytes[name] for name in head.sharded_names)
    return sum(param.numel() for param in head.parameters()), split, sum(nbytes.values()) - split


def optimizer_copies(config: TrainConfig) -> int:
    """Return how many numbers the optimiser of a config keeps for each parameter."""
    param = nn.Parameter(torch.zeros(1000))
    param.grad = torch.ones_like(param)
    optimizer = build_optimizer(config, {"weight": param})
    optimizer.step()
    return sum(value.numel() for value in optimizer.state[param].values() if isinstance(value, Tensor)) // 1000
