import pytest
import torch

from wespeaker.models.pooling import ASTP, build_pooling

X = torch.tensor([[[1.0, 3.0, 5.0], [2.0, 2.0, 2.0]]])  # means 3 and 2, unbiased variances 4 and 0


@pytest.mark.parametrize(
    ("name", "expected"),
    [("TAP", [3.0, 2.0]), ("TSDP", [2.0, 1e-7**0.5]), ("TSTP", [3.0, 2.0, 2.0, 1e-7**0.5])],
)
def test_by_hand(name, expected):
    pool, out_dim = build_pooling(name, 2)
    torch.testing.assert_close(pool(X), torch.tensor([expected]))
    assert out_dim == len(expected)


@pytest.mark.parametrize("context", [False, True])
def test_an_attention_that_sees_nothing_gives_mean_and_biased_deviation(context):
    pool, out_dim = build_pooling("ASTP", 2, global_context_att=context)
    torch.nn.init.zeros_(pool.linear2.weight)
    torch.testing.assert_close(pool(X), torch.tensor([[3.0, 2.0, (8 / 3) ** 0.5, 1e-7**0.5]]))
    assert out_dim == 4


def test_an_attention_on_one_frame_gives_that_frame():
    pool = ASTP(1)
    with torch.no_grad():
        pool.linear1.weight.fill_(1.0)
        pool.linear1.bias.zero_()
        pool.linear2.weight.fill_(1e3)  # tanh(-9) and tanh(9) are -1 and 1: weights e^-1000 and 1
    torch.testing.assert_close(pool(torch.tensor([[[-9.0, 9.0]]])), torch.tensor([[9.0, 1e-7**0.5]]))


def test_a_small_deviation_beside_a_large_mean_is_kept():
    """The difference of second moment and squared mean, as WeSpeaker takes it, is 0 here, or far off, in float32."""
    pool = ASTP(1)
    torch.nn.init.zeros_(pool.linear2.weight)
    x = 1000.0 + 0.01 * torch.randn(1, 1, 500, generator=torch.Generator().manual_seed(0))
    expected = x.double().std(dim=-1, unbiased=False)
    assert pool(x)[0, 1].item() == pytest.approx(expected.item(), rel=1e-2)
    assert (x.square().mean() - x.mean().square()).item() != pytest.approx(expected.item() ** 2, rel=1)


@pytest.mark.parametrize("name", ["TAP", "TSDP", "TSTP", "ASTP"])
def test_all_dimensions_before_time_are_values_of_a_frame(name):
    torch.manual_seed(0)
    pool, out_dim = build_pooling(name, 12, global_context_att=name == "ASTP")
    x = torch.randn(2, 3, 4, 5)
    assert pool(x).shape == (2, out_dim)
    assert torch.equal(pool(x), pool(x.flatten(1, 2)))


@pytest.mark.parametrize(("name", "context"), [("TSDP", False), ("TSTP", False), ("ASTP", True)])
def test_one_frame_has_no_deviation(name, context):
    with pytest.raises(ValueError, match="at least 2 frames, found 1"):
        build_pooling(name, 3, global_context_att=context)[0](torch.randn(2, 3, 1))


@pytest.mark.parametrize("name", ["TAP", "TSDP", "TSTP", "ASTP"])
def test_statistics_are_in_float32_under_autocast(name):
    """In float16 a deviation below 3e-4 is lost beside 1e-7, and a sum of thousands of frames overflows."""
    torch.manual_seed(0)
    pooling, _ = build_pooling(name, 3)
    x = (100.0 + 0.1 * torch.randn(1, 3, 2000)).half()
    with torch.autocast("cpu", dtype=torch.float16):
        found = pooling(x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, pooling(x.float()), rtol=2e-3, atol=1e-3)
