"""The row-sparse optimiser against torch.optim.SGD and torch's clipping, on the dense form of the same gradients."""

import copy
import io
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wespeaker.losses import RowSparseSGD, clip_grad_norm, grad_norm, grad_norms
from wespeaker.losses import row_sparse_sgd as module

C, D = 23, 3
OPTIONS = [
    {"momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
    for momentum, nesterov, weight_decay in itertools.product((0.0, 0.9), (False, True), (0.0, 1e-4))
    if momentum or not nesterov
]
KINDS = ["dense", "sparse", "mixed", "none"]
ids = [f"momentum{o['momentum']}-nesterov{o['nesterov']:d}-decay{o['weight_decay']}" for o in OPTIONS]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Four rows a block in float64, so that a weight of 23 rows has six, the last one not full."""
    monkeypatch.setattr(module, "CPU_BLOCK_BYTES", 4 * D * 8)


def row_sparse(rows, values, *, num_rows=C, coalesced=False):
    shape = (num_rows, *values.shape[1:])
    grad = torch.sparse_coo_tensor(torch.as_tensor(rows).reshape(1, -1), values, shape, check_invariants=True)
    return grad.coalesce() if coalesced else grad


def random_rows(generator, *, dtype=torch.float64, last=19):
    """Rows below ``last`` (the rest are never touched), some twice, sometimes none; sometimes coalesced."""
    count = int(torch.randint(0, 9, (), generator=generator))
    rows = torch.randint(last, (count,), generator=generator)
    coalesced = bool(torch.rand((), generator=generator) < 0.5)
    return row_sparse(rows, torch.randn(count, D, generator=generator, dtype=dtype), coalesced=coalesced)


def gradient(kind, step, generator, dtype=torch.float64):
    if kind == "mixed":
        kind = ("sparse", "dense", "sparse", "none", "none", "sparse")[step % 6]
    elif kind == "none":
        kind = "none" if step < 5 or step % 3 else "sparse"
    if kind == "none":
        return None
    if kind == "sparse":
        return random_rows(generator, dtype=dtype)
    return torch.randn(C, D, generator=generator, dtype=dtype)


def dense(grad):
    return grad.to_dense() if grad is not None and grad.is_sparse else grad


def weights(dtype=torch.float64):
    generator = torch.Generator().manual_seed(7)
    return [torch.nn.Parameter(torch.randn(C, D, generator=generator, dtype=dtype)) for _ in range(len(KINDS))]


def take_steps(optimizer, steps, *, sparse, seed=0, dtype=torch.float64):
    """Step with the same gradients, one kind a parameter, at a learning rate that changes."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for step in steps:
        generator = torch.Generator().manual_seed(1000 * seed + step)
        for kind, param in zip(KINDS, params, strict=True):
            grad = gradient(kind, step, generator, dtype)
            param.grad = grad if sparse else dense(grad)
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * (1 + step % 7) / (1 + 0.02 * step)
        optimizer.step()
    return params


def difference(mine, theirs):
    return max(float((a - b).detach().abs().max() / b.detach().abs().max()) for a, b in zip(mine, theirs, strict=True))


def buffers(optimizer):
    return [state["momentum_buffer"] for state in optimizer.state.values()]


@pytest.mark.parametrize("fused", [None, False])
@pytest.mark.parametrize("options", OPTIONS, ids=ids)
def test_300_steps_equal_torch_sgd_on_dense_gradients(options, fused):
    mine, theirs = RowSparseSGD(weights(), fused=fused, **options), torch.optim.SGD(weights(), **options)
    found = take_steps(mine, range(300), sparse=True)
    expected = take_steps(theirs, range(300), sparse=False)
    assert difference(found, expected) < 1e-12
    assert len(mine.state) == len(theirs.state)
    if options["momentum"]:
        assert difference(buffers(mine), buffers(theirs)) < 1e-12


@pytest.mark.parametrize("options", OPTIONS, ids=ids)
def test_float32_stays_with_torch_sgd(options):
    found = take_steps(RowSparseSGD(weights(torch.float32), **options), range(100), sparse=True, dtype=torch.float32)
    theirs = torch.optim.SGD(weights(torch.float32), **options)
    expected = take_steps(theirs, range(100), sparse=False, dtype=torch.float32)
    assert difference(found, expected) < 2e-6
    assert found[0].dtype == torch.float32


@pytest.mark.parametrize("options", OPTIONS, ids=ids)
def test_is_bitwise_the_fused_torch_sgd(options):
    mine, theirs = weights(torch.float32)[0], weights(torch.float32)[0]
    ours, reference = RowSparseSGD([mine], 0.1, **options), torch.optim.SGD([theirs], 0.1, fused=True, **options)
    generator = torch.Generator().manual_seed(3)
    for _ in range(20):
        mine.grad = random_rows(generator, dtype=torch.float32).coalesce()
        theirs.grad = mine.grad.to_dense()
        ours.step()
        reference.step()
    assert torch.equal(mine, theirs)


def test_first_step_starts_the_momentum_with_the_gradient_and_its_decay():
    weight = torch.nn.Parameter(torch.full((4, 2), 2.0))
    weight.grad = row_sparse([1], torch.ones(1, 2), num_rows=4)
    optimizer = RowSparseSGD([weight], 0.5, momentum=0.9, weight_decay=0.1)
    optimizer.step()
    expected = torch.tensor([[0.2], [1.2], [0.2], [0.2]]).expand(4, 2)
    torch.testing.assert_close(optimizer.state[weight]["momentum_buffer"], expected)
    torch.testing.assert_close(weight.detach(), 2.0 - 0.5 * expected)


def test_rows_without_gradient_rest_only_without_momentum_and_decay():
    weight = weights()[0]
    before = weight.detach().clone()
    weight.grad = row_sparse([5, 5, 2], torch.ones(3, D, dtype=torch.float64))
    RowSparseSGD([weight], 0.1).step()
    before[5] -= 0.2
    before[2] -= 0.1
    torch.testing.assert_close(weight.detach(), before, rtol=0, atol=1e-15)


@pytest.mark.parametrize("shape", [(C,), (C, 2, 3), (1, 4), (0, 3)])
def test_other_shapes(shape):
    values = torch.randn(min(2, shape[0]), *shape[1:], dtype=torch.float64)
    grad = row_sparse(list(range(len(values))), values, num_rows=shape[0])
    start = torch.randn(shape, dtype=torch.float64)
    mine, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    mine.grad, theirs.grad = grad, grad.to_dense()
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}
    RowSparseSGD([mine], **options).step()
    torch.optim.SGD([theirs], **options).step()
    torch.testing.assert_close(mine, theirs, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("sparse", [True, False])
def test_weight_whose_rows_lie_apart_in_memory(sparse):
    start = torch.randn(D, C, dtype=torch.float64)
    mine, theirs = (torch.nn.Parameter(start.clone().T) for _ in range(2))
    grad = row_sparse([1, 20], torch.randn(2, D, dtype=torch.float64))
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}
    for param, cls in ((mine, RowSparseSGD), (theirs, torch.optim.SGD)):
        param.grad = grad if sparse and param is mine else grad.to_dense()
        cls([param], **options).step()
    torch.testing.assert_close(mine, theirs, rtol=1e-14, atol=1e-14)


def test_groups_have_options_of_their_own_and_the_rate_may_be_a_tensor():
    def groups():
        first, second, *_ = weights()
        return [{"params": [first], "lr": torch.tensor(0.3)}, {"params": [second], "momentum": 0.9, "nesterov": True}]

    mine, theirs = RowSparseSGD(groups(), 0.1, weight_decay=0.01), torch.optim.SGD(groups(), 0.1, weight_decay=0.01)
    for step in range(5):
        for optimizer in (mine, theirs):
            generator = torch.Generator().manual_seed(step)
            for group in optimizer.param_groups:
                grad = random_rows(generator)
                group["params"][0].grad = grad if optimizer is mine else grad.to_dense()
            optimizer.step()
    for a, b in zip(mine.param_groups, theirs.param_groups, strict=True):
        torch.testing.assert_close(a["params"], b["params"], rtol=1e-12, atol=1e-12)


def test_closure_and_scheduler():
    table = torch.nn.Embedding(6, 2, sparse=True)
    optimizer = RowSparseSGD(table.parameters(), 1.0, momentum=0.9)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)

    def closure():
        optimizer.zero_grad()
        loss = table(torch.tensor([0, 4])).sum()
        loss.backward()
        return loss

    before = table.weight.detach().clone()
    loss = optimizer.step(closure)
    schedule.step()
    torch.testing.assert_close(loss.detach(), before[[0, 4]].sum())
    torch.testing.assert_close(table.weight.detach()[[0, 4]], before[[0, 4]] - 1)
    assert optimizer.param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize("options", OPTIONS, ids=ids)
@pytest.mark.parametrize("to_torch", [True, False], ids=["mine-to-torch", "torch-to-mine"])
def test_state_is_torch_sgds_in_both_directions(options, to_torch):
    classes = (RowSparseSGD, torch.optim.SGD) if to_torch else (torch.optim.SGD, RowSparseSGD)
    first = classes[0](weights(), **options)
    params = take_steps(first, range(20), sparse=to_torch)
    second = classes[1](copy.deepcopy(params), 1.0)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert second.state_dict()["param_groups"] == first.state_dict()["param_groups"]
    assert first.param_groups[0].keys() == classes[1](weights()).param_groups[0].keys()
    going = take_steps(first, range(20, 40), sparse=to_torch)
    resumed = take_steps(second, range(20, 40), sparse=not to_torch)
    assert difference(resumed, going) < 1e-12


@pytest.mark.parametrize("options", OPTIONS, ids=ids)
def test_resumed_equals_uninterrupted_bit_for_bit(options):
    whole = take_steps(RowSparseSGD(weights(), **options), range(40), sparse=True)
    optimizer = RowSparseSGD(weights(), **options)
    params = take_steps(optimizer, range(17), sparse=True)
    file = io.BytesIO()
    torch.save({"params": params, "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    fresh = RowSparseSGD(saved["params"], 0.5)
    fresh.load_state_dict(saved["optimizer"])
    for a, b in zip(take_steps(fresh, range(17, 40), sparse=True), whole, strict=True):
        assert torch.equal(a, b)


def test_survives_a_deep_copy():
    optimizer = RowSparseSGD(weights(), **OPTIONS[-1])
    take_steps(optimizer, range(5), sparse=True)
    twin = copy.deepcopy(optimizer)
    going, copied = (take_steps(o, range(5, 9), sparse=True) for o in (optimizer, twin))
    for a, b in zip(copied, going, strict=True):
        assert torch.equal(a, b)


@settings(max_examples=60, deadline=None)
@given(
    patterns=st.lists(st.lists(st.integers(0, 11), max_size=15), min_size=1, max_size=6),
    num_rows=st.integers(12, 17),
    options=st.sampled_from(OPTIONS),
    seed=st.integers(0, 2**16),
)
def test_any_pattern_of_rows_equals_the_dense_step(patterns, num_rows, options, seed):
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(num_rows, D, generator=generator, dtype=torch.float64)
    mine, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    ours, reference = RowSparseSGD([mine], 0.2, **options), torch.optim.SGD([theirs], 0.2, **options)
    for rows in patterns:
        values = torch.randn(len(rows), D, generator=generator, dtype=torch.float64)
        mine.grad = row_sparse(torch.tensor(rows, dtype=torch.int64), values, num_rows=num_rows)
        theirs.grad = mine.grad.to_dense()
        torch.testing.assert_close(grad_norm([mine]), theirs.grad.norm(), rtol=1e-12, atol=1e-14)
        ours.step()
        reference.step()
    torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def test_makes_no_dense_gradient(monkeypatch):
    weight = torch.nn.Parameter(torch.randn(1000, D, dtype=torch.float64))
    weight.grad = row_sparse([3, 700, 3], torch.randn(3, D, dtype=torch.float64), num_rows=1000)

    def refuse(*_, **__):
        raise AssertionError("a dense gradient was made")

    monkeypatch.setattr(torch.Tensor, "to_dense", refuse)
    largest = []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.layout is torch.strided and out._base is None:
                largest.append((out.numel(), out.data_ptr()))
            return out

    options = {"momentum": 0.9, "weight_decay": 1e-4, "nesterov": True}
    optimizer = RowSparseSGD([weight], 0.1, **options)
    optimizer.step()  # makes the momentum
    own = {weight.data_ptr(), optimizer.state[weight]["momentum_buffer"].data_ptr()}
    with Sizes():
        clip_grad_norm([weight], 1e-3)
        optimizer.step()
    assert max(size for size, pointer in largest if pointer not in own) <= 1001  # the blocks' bounds


def several(coalesced=True):
    """Two dense gradients, two sparse ones and a parameter without any; and the same all dense."""
    generator = torch.Generator().manual_seed(5)
    mine = [*weights(), torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))]
    for param, kind in zip(mine, ("dense", "sparse", "dense", "sparse"), strict=False):
        if kind == "dense":
            param.grad = torch.randn(C, D, generator=generator, dtype=torch.float64)
        else:
            values = torch.randn(4, D, generator=generator, dtype=torch.float64)
            param.grad = row_sparse([3, 9, 3, 0], values, coalesced=coalesced)
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in mine]
    for a, b in zip(mine, theirs, strict=True):
        b.grad = None if a.grad is None else dense(a.grad).clone()
    return mine, theirs


@pytest.mark.parametrize("coalesced", [True, False])
@pytest.mark.parametrize("max_norm", [0.0, 0.5, 1e6])
def test_clipping_equals_torchs_on_dense_gradients(coalesced, max_norm):
    mine, theirs = several(coalesced)
    torch.testing.assert_close(grad_norm(mine), torch.nn.utils.get_total_norm([p.grad for p in theirs[:-1]]))
    found = clip_grad_norm(iter(mine), max_norm)
    expected = torch.nn.utils.clip_grad_norm_(theirs, max_norm)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=0)
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(dense(a.grad), b.grad, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(grad_norm(mine), torch.clamp(expected, max=max_norm), rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("coalesced", [True, False])
def test_the_norms_of_each_gradient_are_torchs(coalesced):
    mine, theirs = several(coalesced)
    expected = [0.0 if p.grad is None else float(torch.nn.utils.get_total_norm([p.grad])) for p in theirs]
    assert grad_norms(mine).tolist() == pytest.approx(expected, rel=1e-6)


def test_norm_of_nothing_is_zero_and_of_one_is_its_own():
    assert grad_norm([torch.nn.Parameter(torch.ones(2))]) == 0
    assert clip_grad_norm([], 1.0) == 0
    weight = weights()[0]
    weight.grad = row_sparse([], torch.zeros(0, D, dtype=torch.float64))
    assert clip_grad_norm(weight, 1.0) == 0
    weight.grad = row_sparse([2, 2], torch.tensor([[3.0, 0, 0], [0, 4.0, 0]], dtype=torch.float64))
    assert grad_norm(weight) == 5
    assert weight.grad._nnz() == 2  # the norm leaves the gradient alone


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_norm_that_is_not_finite_is_as_torchs(bad):
    mine, theirs = several()
    mine[1].grad.values()[0, 0] = bad
    theirs[1].grad = mine[1].grad.to_dense()
    with pytest.raises(RuntimeError, match=r"must be finite; found (nan|inf), with NaN or infinity in 1 of 4"):
        grad_norm(mine, error_if_nonfinite=True)
    before = mine[0].grad.clone()
    with pytest.raises(RuntimeError, match="skip this step"):
        clip_grad_norm(mine, 1.0, error_if_nonfinite=True)
    assert torch.equal(mine[0].grad, before)
    torch.testing.assert_close(clip_grad_norm(mine, 1.0), torch.nn.utils.clip_grad_norm_(theirs, 1.0), equal_nan=True)
    torch.testing.assert_close(mine[0].grad, theirs[0].grad, equal_nan=True)
    rows = mine[1].grad.indices()[0]
    torch.testing.assert_close(mine[1].grad.values(), theirs[1].grad[rows], equal_nan=True)


@pytest.mark.parametrize("overflow", [False, True])
def test_grad_scaler_unscales_sparse_gradients_and_skips_overflows(overflow):
    table = torch.nn.Embedding(9, 2, sparse=True)
    twin = torch.nn.Parameter(table.weight.detach().clone())
    optimizer, reference = (
        RowSparseSGD(table.parameters(), 0.1, momentum=0.9),
        torch.optim.SGD([twin], 0.1, momentum=0.9),
    )
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    ids = torch.tensor([1, 7, 1])
    for optimiser, weight in ((optimizer, table.weight), (reference, twin)):
        optimiser.zero_grad()
        sparse = weight is table.weight
        loss = torch.nn.functional.embedding(ids, weight, sparse=sparse).square().sum()
        if overflow:
            loss = loss * float("inf")
        if sparse:
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            clip_grad_norm([weight], 1e3)
            scaler.step(optimizer)
            scaler.update()
        elif not overflow:
            loss.backward()
            optimiser.step()
    torch.testing.assert_close(table.weight.detach(), twin.detach())
    assert scaler.get_scale() == (512 if overflow else 1024)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -0.1}, r"lr must be a finite number of at least 0; found -0\.1"),
        ({"lr": float("nan")}, "lr must be a finite number"),
        ({"lr": torch.ones(2)}, r"a tensor of one element; found shape \(2,\)"),
        ({"momentum": 1.5}, r"momentum must be from 0 to 1; found 1\.5"),
        ({"weight_decay": -1}, "weight_decay must be a finite number of at least 0; found -1"),
        ({"nesterov": True}, "nesterov=True needs a momentum above 0"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        RowSparseSGD(weights(), **options)
    with pytest.raises(ValueError, match=message):
        RowSparseSGD([{"params": weights(), **options}])


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda p: torch.optim.SGD(p, momentum=0.9, dampening=0.1), r"dampening must be 0; found 0\.1"),
        (lambda p: torch.optim.SGD(p, maximize=True), "maximize must be False; found True"),
        (lambda p: torch.optim.AdamW(p), "must be an SGD's; its groups lack momentum, nesterov"),
    ],
)
def test_states_that_do_not_fit_change_nothing(other, message):
    optimizer = RowSparseSGD(weights(), 0.3)
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(other(weights()).state_dict())
    assert optimizer.param_groups[0]["lr"] == 0.3


def test_gradients_that_are_not_sparse_by_rows_move_nothing():
    first, second, *_ = weights()
    before = first.detach().clone()
    first.grad = torch.ones_like(first)
    second.grad = torch.ones(C, D, dtype=torch.float64).to_sparse()
    with pytest.raises(
        ValueError, match=r"found torch\.sparse_coo with 2 sparse dimensions for a parameter of shape \(23, 3"
    ):
        RowSparseSGD([first, second], 0.1).step()
    assert torch.equal(first, before)
    with pytest.raises(ValueError, match=r"must be torch\.sparse_coo with 1 sparse dimension"):
        grad_norm([second])
    with pytest.raises(ValueError, match="max_norm must be a number of at least 0; found nan"):
        clip_grad_norm([first], float("nan"))
