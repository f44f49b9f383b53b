import pytest
import torch
from torch import nn
from toy_task import run_ranks

from wespeaker.train.clipping import clip_grad_norm_over_ranks
from wespeaker.train.distributed import Ranks

ONE = Ranks(0, 1, torch.device("cpu"))


def with_grad(grad):
    param = nn.Parameter(torch.zeros(grad.shape))
    param.grad = grad.clone()
    return param


@pytest.mark.parametrize("max_norm", [0.5, 1e3])
def test_it_is_torchs_on_all_gradients_together(max_norm):
    grads = [torch.randn(3, 4), torch.randn(5), torch.randn(7, 2)]
    mine, theirs = [with_grad(grad) for grad in grads], [with_grad(grad) for grad in grads]
    norm = clip_grad_norm_over_ranks(mine[:2], mine[2:], max_norm, ONE)
    torch.testing.assert_close(norm, nn.utils.clip_grad_norm_(theirs, max_norm))
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_repeated_rows_of_a_sparse_gradient_are_added_first():
    rows, values = torch.tensor([[1, 3, 3]]), torch.tensor([[1.0, 0.0], [1.0, 2.0], [1.0, 2.0]])
    param = nn.Parameter(torch.zeros(5, 2))
    param.grad = torch.sparse_coo_tensor(rows, values, (5, 2), check_invariants=True)
    norm = clip_grad_norm_over_ranks([], [param], 1.0, ONE)
    assert norm == pytest.approx((1 + 2**2 + 4**2) ** 0.5)
    torch.testing.assert_close(param.grad.to_dense()[3], torch.tensor([2.0, 4.0]) / 21**0.5)


def test_the_norm_is_that_of_all_ranks_rows(tmp_path):
    """A 3-4-12 triangle: the backbone's gradient counts once, the rows of both ranks count."""

    def go(ranks):
        backbone = with_grad(torch.tensor([3.0]))
        mine = with_grad(torch.tensor([[4.0], [12.0]][ranks.rank]))
        assert clip_grad_norm_over_ranks([backbone], [mine], 6.5, ranks) == pytest.approx(13.0)
        assert backbone.grad.item() == pytest.approx(1.5, rel=1e-5)
        assert mine.grad.item() == pytest.approx([2.0, 6.0][ranks.rank], rel=1e-5)

    run_ranks(2, tmp_path, go)
