"""How to take an exact SGD step when only some rows of a weight have a gradient, without the dense gradient.

Momentum and weight decay move every row at every step, so a row-sparse gradient does not make the step sparse;
it only makes the gradient small. A weight's rows are therefore taken in blocks of a few megabytes: the block's
rows of the gradient are added to a zeroed scratch block that stays in the cache, torch's own SGD kernel runs on
(weight block, scratch, momentum block), and the rows are zeroed again. The arithmetic is torch's, hence equal to
torch.optim.SGD on the dense gradient; the gradient's trip to memory and back is what is saved.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import repeat
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT
from torch.optim.sgd import sgd

# Bytes of the scratch block on a CPU. Measured with 1 MB of L2 a core and 32 MB of L3: 4 MB and 8 MB take the same
# time, 2 MB 6 % more, 1 MB 15 % more (one call of the kernel a block), 16 MB up to 25 % more (the cache).
CPU_BLOCK_BYTES = 1 << 22
# Elsewhere a block is a kernel launch or four, so few of them: no cache is aimed at. Not measured.
DEVICE_BLOCK_BYTES = 1 << 26
# Zeroing a whole block costs an eighth, a row, of zeroing single rows (12 ns and 97 ns for 256 numbers).
ROW_ZEROING_COST = 8
FUSED_DEVICES = ("cpu", "cuda")
# The rest of torch.optim.SGD's options, kept in the groups so that a state_dict fits both.
FIXED = {"dampening": 0, "maximize": False, "differentiable": False}


class RowSparseSGD(torch.optim.Optimizer):
    """SGD with momentum, Nesterov's form and weight decay, for dense and for row-sparse gradients.

    g ← g + λw;  v ← μv + g (the first step: v ← g);  w ← w - η(g + μv if nesterov else v), and w ← w - ηg without
    momentum: torch.optim.SGD with dampening 0, on every row. A row-sparse gradient is a ``sparse_coo`` tensor with
    one sparse dimension, coalesced or not; it may change from step to step whether a gradient is sparse.

    Unlike torch.optim.SGD, the fused kernel is taken wherever it can run (on CPU a tenth of the plain one's time
    for a weight of 200,000 x 256); ``fused=False`` keeps to torch's other forms. The ``state_dict`` is
    torch.optim.SGD's: each loads the other's and goes on the same way.

    Args:
        params: parameters, or groups of them with options of their own.
        lr: learning rate η ≥ 0, a number or a tensor of one element.
        momentum: μ in [0, 1].
        weight_decay: λ ≥ 0.
        nesterov: Nesterov's form; needs momentum > 0.
        fused: None chooses the fused kernel where it can run.

    Raises:
        ValueError: an option is out of its range.

    Example:
        >>> table = torch.nn.Embedding(5, 2, sparse=True)
        >>> optimizer = RowSparseSGD(table.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
        >>> table(torch.tensor([1, 3, 3])).sum().backward()
        >>> optimizer.step()
        >>> optimizer.state[table.weight]["momentum_buffer"].shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        *,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        fused: bool | None = None,
    ) -> None:
        options = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov}
        super().__init__(params, {**options, **FIXED, "foreach": None, "fused": fused})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group whose options, where it has some, replace the defaults."""
        _validate({**self.defaults, **param_group})
        super().add_param_group(param_group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state of this class or of torch.optim.SGD; a state with other options changes nothing.

        Raises:
            ValueError: the state is of an SGD with dampening, maximize or differentiable, or of another optimiser.
        """
        for group in state_dict["param_groups"]:
            missing = [name for name in ("lr", "momentum", "weight_decay", "nesterov") if name not in group]
            if missing:
                raise ValueError(f"the state must be an SGD's; its groups lack {', '.join(missing)}")
            _validate({**self.defaults, **group})
        super().load_state_dict(state_dict)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            for name, value in {**FIXED, "foreach": None, "fused": None}.items():
                group.setdefault(name, value)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step; parameters without a gradient stay as they are.

        Args:
            closure: computes the loss and the gradients anew.

        Returns:
            The closure's loss, or None.

        Raises:
            ValueError: a gradient is sparse in another way than by rows.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for param in (p for group in self.param_groups for p in group["params"]):
            if param.grad is not None and param.grad.layout is not torch.strided:
                _require_rows(param)  # before any parameter has moved
        for group in self.param_groups:
            self._step_group(group)
        return loss

    def _step_group(self, group: dict[str, Any]) -> None:
        names = ("lr", "momentum", "weight_decay", "nesterov", "dampening", "maximize")
        options = {name: group[name] for name in names}
        dense: list[tuple[Tensor, Tensor, Tensor | None]] = []
        fusible: list[tuple[Tensor, Tensor, Tensor | None]] = []
        for param in group["params"]:
            if param.grad is None:
                continue
            buffer = self._buffer(param) if group["momentum"] else None
            if param.grad.layout is torch.strided:
                fits = group["fused"] is not False and not group["foreach"] and _fusible(param, param.grad, buffer)
                (fusible if fits else dense).append((param, param.grad, buffer))
            else:
                _step_rows(param, buffer, fused=group["fused"] is not False, options=options)
        for chosen, how in ((fusible, {"fused": True}), (dense, {"foreach": group["foreach"]})):
            if chosen:
                params, grads, buffers = (list(column) for column in zip(*chosen, strict=True))
                sgd(params, grads, buffers, **how, **options)

    def _buffer(self, param: Tensor) -> Tensor:
        """Return the momentum; v = 0 before the first step gives v ← g there, as torch defines it."""
        state = self.state[param]
        if state.get("momentum_buffer") is None:
            state["momentum_buffer"] = torch.zeros_like(param)
        return state["momentum_buffer"]


def _require_rows(param: Tensor) -> Tensor:
    """Return the parameter's gradient, refusing what is not sparse by rows."""
    grad = param.grad
    if grad is None or grad.layout is not torch.sparse_coo or grad.sparse_dim() != 1:
        found = "None" if grad is None else str(grad.layout)
        if grad is not None and grad.layout is torch.sparse_coo:
            found += f" with {grad.sparse_dim()} sparse dimensions"
        raise ValueError(
            f"a sparse gradient must be torch.sparse_coo with 1 sparse dimension, the rows; found {found} for a"
            f" parameter of shape {tuple(param.shape)}"
        )
    return grad


def _step_rows(param: Tensor, buffer: Tensor | None, *, fused: bool, options: dict[str, Any]) -> None:
    """Step all rows of a parameter, block by block, for its row-sparse gradient."""
    if param.numel() == 0:
        return
    sparse = _require_rows(param)
    if buffer is None and options["weight_decay"] == 0:  # then, and only then, the other rows stay
        summed = sparse.coalesce()
        param.index_add_(0, summed.indices()[0], summed.values(), alpha=-float(options["lr"]))
        return
    rows, values = sparse._indices()[0], sparse._values()
    order = None
    if not sparse.is_coalesced():  # rows in order, duplicates kept: coalescing would take as long as the step
        rows, order = rows.sort(stable=True)
    num_rows = param.shape[0]
    row_bytes = param[0].numel() * param.element_size()
    block_bytes = CPU_BLOCK_BYTES if param.device.type == "cpu" else DEVICE_BLOCK_BYTES
    block = min(num_rows, max(1, block_bytes // row_bytes))
    edges = torch.arange(0, num_rows + block, block, device=rows.device)
    counts = torch.searchsorted(rows.contiguous(), edges).diff().tolist()
    scratch = values.new_zeros((block, *param.shape[1:]))
    fused = fused and _fusible(param, scratch, buffer)
    parts = zip(
        param.split(block),
        repeat(None) if buffer is None else buffer.split(block),
        (rows % block).split(counts),
        (values if order is None else order).split(counts),
        strict=False,
    )
    for weight, momentum, local, given in parts:
        grad = scratch[: len(weight)]
        if len(local):
            # To zeros, so duplicates add up; and faster than index_copy_.
            grad.index_add_(0, local, given if order is None else values.index_select(0, given))
        sgd([weight], [grad], [momentum], fused=fused, foreach=False, **options)
        if len(local) * ROW_ZEROING_COST > len(grad):
            grad.zero_()
        elif len(local):
            grad.index_fill_(0, local, 0.0)


def _fusible(param: Tensor, grad: Tensor, buffer: Tensor | None) -> bool:
    """Tell whether the fused kernel takes the tensors: one dtype, one layout in memory, no gaps.

    A block's ``grad`` has the parameter's order but not its number of rows, so the strides are what is compared.
    """
    return (
        param.device.type in FUSED_DEVICES
        and param.is_floating_point()
        and param.dtype == grad.dtype
        and (param.is_contiguous() or (param.ndim == 4 and param.is_contiguous(memory_format=torch.channels_last)))
        and param.stride() == grad.stride()
        and (buffer is None or (buffer.stride() == param.stride() and buffer.dtype == param.dtype))
    )


@torch.no_grad()
def grad_norm(parameters: Tensor | Iterable[Tensor], *, error_if_nonfinite: bool = False) -> Tensor:
    """Compute the 2-norm of all gradients together, dense and row-sparse, as torch does of dense ones.

    Duplicate rows of an uncoalesced gradient are added first: the norm is that of the dense gradient.

    Args:
        parameters: one or more; those without a gradient do not count.
        error_if_nonfinite: refuse a norm that is NaN or infinite.

    Returns:
        The norm, 0-dimensional, of the gradients' dtype; 0 where there is no gradient.

    Raises:
        RuntimeError: the norm is not finite and ``error_if_nonfinite`` is set.
        ValueError: a gradient is sparse in another way than by rows.
    """
    return _norm([_values(p) for p in _with_gradient(parameters)], error_if_nonfinite=error_if_nonfinite)


@torch.no_grad()
def grad_norms(parameters: Iterable[Tensor]) -> Tensor:
    """Compute the 2-norm of each gradient, dense or row-sparse.

    An uncoalesced gradient is replaced by its coalesced form, so that this is done once.

    Args:
        parameters: P of them, on one device.

    Returns:
        The norms (P,) float32; 0 for a parameter without a gradient.

    Raises:
        ValueError: a gradient is sparse in another way than by rows.
    """
    norms = []
    for param in parameters:
        if param.grad is not None and param.grad.layout is torch.sparse_coo:
            param.grad = param.grad.coalesce()
        values = param.new_zeros(1) if param.grad is None else _values(param)
        norms.append(torch.linalg.vector_norm(values).float())
    return torch.stack(norms)


@torch.no_grad()
def clip_grad_norm(
    parameters: Tensor | Iterable[Tensor], max_norm: float, *, error_if_nonfinite: bool = False
) -> Tensor:
    """Scale all gradients in place by min(1, max_norm / (norm + 1e-6)), as torch.nn.utils.clip_grad_norm_ does.

    An uncoalesced gradient is replaced by its coalesced form, so that this is done once. A norm of NaN makes every
    gradient NaN, an infinite one makes them zero (and NaN where they are infinite), as torch's does.

    Args:
        parameters: one or more; those without a gradient do not count.
        max_norm: largest norm to leave, ≥ 0.
        error_if_nonfinite: refuse a norm that is NaN or infinite, before anything is changed.

    Returns:
        The norm before clipping, 0-dimensional.

    Raises:
        RuntimeError: the norm is not finite and ``error_if_nonfinite`` is set.
        ValueError: ``max_norm`` is negative or NaN, or a gradient is sparse in another way than by rows.
    """
    if not max_norm >= 0:
        raise ValueError(f"max_norm must be a number of at least 0; found {max_norm}")
    chosen = _with_gradient(parameters)
    for param in chosen:
        if param.grad is not None and param.grad.layout is torch.sparse_coo:
            param.grad = param.grad.coalesce()
    values = [_values(p) for p in chosen]
    norm = _norm(values, error_if_nonfinite=error_if_nonfinite)
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for x in values:
        x.mul_(factor.to(x.device))
    return norm


def _with_gradient(parameters: Tensor | Iterable[Tensor]) -> list[Tensor]:
    given = [parameters] if isinstance(parameters, Tensor) else parameters
    return [p for p in given if p.grad is not None]


def _values(param: Tensor) -> Tensor:
    if param.grad is not None and param.grad.layout is torch.strided:
        return param.grad
    return _require_rows(param).coalesce().values()


def _norm(values: list[Tensor], *, error_if_nonfinite: bool) -> Tensor:
    norm = torch.nn.utils.get_total_norm(values)
    if error_if_nonfinite and not bool(norm.isfinite()):
        bad = [tuple(x.shape) for x in values if not bool(x.isfinite().all())]
        raise RuntimeError(
            f"the gradients' norm must be finite; found {norm.item()}, with NaN or infinity in {len(bad)} of"
            f" {len(values)} gradients (shapes {bad[:3]}); skip this step or lower the learning rate"
        )
    return norm


def _validate(options: dict[str, Any]) -> None:
    lr, momentum, weight_decay = options["lr"], options["momentum"], options["weight_decay"]
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ValueError(f"lr must be a number or a tensor of one element; found shape {tuple(lr.shape)}")
    if not 0 <= float(lr) < math.inf:
        raise ValueError(f"lr must be a finite number of at least 0; found {float(lr)}")
    if not 0 <= momentum <= 1:
        raise ValueError(f"momentum must be from 0 to 1; found {momentum}")
    if not 0 <= weight_decay < math.inf:
        raise ValueError(f"weight_decay must be a finite number of at least 0; found {weight_decay}")
    if options["nesterov"] and momentum == 0:
        raise ValueError("nesterov=True needs a momentum above 0; found momentum 0")
    for name, only in FIXED.items():
        if options.get(name, only) != only:
            raise ValueError(f"{name} must be {only}; found {options[name]}. Use torch.optim.SGD for it")
