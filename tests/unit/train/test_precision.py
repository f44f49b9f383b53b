from itertools import count

import pytest
import torch
from torch import nn
from toy_task import rows, run_ranks, train_toy, weights

from wespeaker.train import learner
from wespeaker.train.distributed import Ranks
from wespeaker.train.precision import grad_scaler


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_the_network_is_under_autocast_and_the_head_is_not(tmp_path, monkeypatch, precision, dtype):
    seen, real = [], learner.build_head

    def watched(*args, **kwargs):
        head = real(*args, **kwargs)
        head.register_forward_pre_hook(
            lambda module, inputs: seen.append((inputs[0].dtype, torch.is_autocast_enabled()))
        )
        head.register_forward_hook(lambda module, inputs, out: seen.append(out.loss.dtype))
        return head

    monkeypatch.setattr(learner, "build_head", watched)
    full = rows(train_toy(tmp_path / "full"))
    assert set(seen) == {(torch.float32, False), torch.float32}
    seen.clear()
    half = rows(train_toy(tmp_path / "half", precision=precision))
    assert set(seen) == {(dtype, False), torch.float32}
    assert all(value.dtype == torch.float32 for value in weights(tmp_path / "half").values())
    assert ("grad_scale" in half[0]) == (precision == "fp16")
    assert full[0]["loss"] != half[0]["loss"]
    assert full[0]["loss"] == pytest.approx(half[0]["loss"], rel=0.01)  # of the same weights, rounded


def test_all_ranks_skip_a_step_in_which_one_has_an_infinite_gradient(tmp_path):
    def go(ranks):
        scaler = grad_scaler("fp16", ranks)
        param = nn.Parameter(torch.ones(2))
        optimizer = torch.optim.SGD([param], lr=1.0)
        for infinite in (True, False):
            scaler.scale((param * (torch.inf if infinite and ranks.rank == 1 else 1.0)).sum()).backward()
            scaler.step(optimizer)
            scaler.update()
            assert torch.equal(param.data, torch.full((2,), 1.0 if infinite else 0.0))
            assert scaler.get_scale() == 2.0**15
            optimizer.zero_grad()

    run_ranks(2, tmp_path, go)


def test_an_infinity_in_one_ranks_rows_of_the_head_changes_no_weight_of_any(tmp_path, monkeypatch):
    """In step 9, when the scale has found its place: on its way there steps of the undamaged run are skipped too."""

    def go(ranks):
        changed = {"precision": "fp16", "clip_grad_norm": 5.0, "dataloader_args": {"batch_size": 3, "num_workers": 0}}
        train_toy(tmp_path / "whole", ranks=ranks, **changed)
        real, step = learner.Learner.take_step, count(1)

        def damaged(self, *args, **kwargs):
            if next(step) != 9:
                return real(self, *args, **kwargs)
            before = [param.detach().clone() for param in self.parameters.values()]
            hook = self.head.weight.register_hook(lambda grad: grad * (torch.inf if ranks.rank == 1 else 1.0))
            out = real(self, *args, **kwargs)
            hook.remove()
            assert all(torch.equal(a, b) for a, b in zip(before, self.parameters.values(), strict=True))
            return out

        with monkeypatch.context() as patch:
            patch.setattr(learner.Learner, "take_step", damaged)
            train_toy(tmp_path / "damaged", ranks=ranks, **changed)

    run_ranks(2, tmp_path, go)
    scales = [[row["grad_scale"] for row in rows(tmp_path / name)] for name in ("whole", "damaged")]
    assert scales[0][7:] == [scales[0][7]] * 5
    assert scales[1] == scales[0][:8] + [scales[0][7] / 2] * 4


def test_a_precision_without_a_scaler_passes_through():
    scaler = grad_scaler("bf16", Ranks(0, 1, torch.device("cpu")))
    assert not scaler.is_enabled()
    assert scaler.scale(torch.tensor(3.0)) == 3.0
