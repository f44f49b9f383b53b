"""The one-buffer form against the autograd one in float64."""

import math

import pytest
import torch
from torch.nn import functional as F

from wespeaker.losses import alpha_divergence, build_head, scaled_cosines
from wespeaker.losses.buffered import buffered_divergence
from wespeaker.losses.margins import angular_margin, log_prior_margin

# Where the classes are neither few nor all active, as they are used in training.
SCALES = {1.05: 32.0, 1.1: 32.0, 1.25: 32.0, 4 / 3: 16.0, 1.5: 10.0, 1.6: 8.0, 1.75: 5.0, 2.0: 5.0}
ALPHAS = [1.0, 1.0 + 2e-6, 1.001, 1.05, 1.1, 1.25, 4 / 3, 1.5, 1.6, 1.75, 2.0]


def problem(*, num_classes, dim=16, batch=6, collapsed=False):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(num_classes, dim, generator=generator, dtype=torch.float64)
    embeddings = torch.randn(batch, dim, generator=generator, dtype=torch.float64)
    if collapsed:
        weight = weight[:1].repeat(num_classes, 1)
    labels = torch.randint(num_classes, (batch,), generator=generator)
    embeddings[0] = 3.0 * weight[labels[0]]
    return embeddings, weight, labels


def placing(place, scale):
    if place == "angle":
        return lambda cosine: (scale * angular_margin(cosine, margin=0.2), None)
    return lambda cosine: (None, log_prior_margin(cosine, scale=scale, margin=0.2))


def gradients(found, embeddings, weight):
    return [found.loss.detach(), *torch.autograd.grad(found.loss.sum(), (embeddings, weight))]


def steps(embeddings, weight, labels, *, place="angle", scale=8.0, alpha, dtype):
    """Take a step of the buffered form in ``dtype`` and of the autograd form in float64; return both outputs, and
    both losses with their gradients."""
    embeddings, weight = (x.detach().double().requires_grad_() for x in (embeddings, weight))
    theta = scaled_cosines(embeddings, weight, scale)
    own = theta.gather(1, labels.unsqueeze(1)).squeeze(1)
    target, log_q = placing(place, scale)(own / scale)
    expected = alpha_divergence(theta, labels, log_q, alpha=alpha, target=target)
    reference = gradients(expected, embeddings, weight)
    embeddings, weight = (x.detach().to(dtype).requires_grad_() for x in (embeddings, weight))
    found = buffered_divergence(embeddings, weight, labels, placing(place, scale), alpha=alpha, scale=scale)
    return (found, expected), (gradients(found, embeddings, weight), reference)


def assert_equal(mine, reference, embeddings, weight, *, scale=8.0, tolerance):
    """Compare relative to the largest entry, or to what a wrong posterior would move: gradients may cancel."""
    scales = [1.0, *(scale / x.norm(dim=1).mean().item() for x in (embeddings, weight))]
    for a, b, least in zip(mine, reference, scales, strict=True):
        assert ((a - b).abs().max() / max(b.abs().max().item(), least)).item() <= tolerance


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("place", ["angle", "log_prior"])
@pytest.mark.parametrize(
    ("num_classes", "collapsed"), [(1, False), (2, False), (7, False), (1000, False), (5000, False), (5000, True)]
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-7), (torch.float32, 3e-6)])
def test_equals_the_autograd_form(alpha, place, num_classes, collapsed, dtype, tolerance):
    embeddings, weight, labels = problem(num_classes=num_classes, collapsed=collapsed)
    (found, expected), both = steps(embeddings, weight, labels, place=place, alpha=alpha, dtype=dtype)
    assert_equal(*both, embeddings, weight, tolerance=tolerance)
    assert torch.equal(found.support, expected.support)
    p_y = expected.posterior.gather(1, labels.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(found.target_posterior.double(), p_y, rtol=0.0, atol=tolerance)
    if not collapsed:
        assert torch.equal(found.correct, scaled_cosines(embeddings, weight, 8.0).argmax(1) == labels)


@pytest.mark.parametrize("batch", [1, 6])
@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("order", ["rising", "falling", "nearest last", "duplicates"])
def test_any_order_of_the_classes(alpha, order, batch):
    """A first tile of classes that are all far tells nothing of the others; e^64 of them would overflow."""
    embeddings, weight, labels = problem(num_classes=9000, dim=8, batch=batch)
    if order == "duplicates":
        labels = labels[:1].repeat(batch)
        weight[4500:] = weight[:4500].clone()
    elif order == "nearest last":
        weight = weight.abs()
        embeddings = -embeddings.abs()
        weight[-1] = embeddings[-1]
    else:
        weight = weight[(F.normalize(weight) @ embeddings[-1]).argsort(descending=order == "falling")]
    scale = SCALES.get(alpha, 64.0)
    (found, expected), both = steps(
        embeddings, weight, labels, place="log_prior", scale=scale, alpha=alpha, dtype=torch.float32
    )
    assert_equal(*both, embeddings, weight, scale=scale, tolerance=3e-6)
    assert torch.equal(found.support, expected.support)


@pytest.mark.parametrize(
    ("alpha", "scale"), [(1.05, 32), (1.25, 20), (1.5, 10), (1.75, 5), (1.75, 0.1), (2, 5), (2, 0.1)]
)
def test_active_classes_are_those_of_a_full_float64_solve(alpha, scale):
    """The rows of the gradient of one sample are the support and the label; few are active, or up to a third."""
    embeddings, weight, labels = problem(num_classes=20_000, dim=64, batch=4)
    theta = scaled_cosines(embeddings, weight, scale)
    log_q = torch.full((4,), -0.2 * scale, dtype=torch.float64)
    expected = alpha_divergence(theta, labels, log_q, alpha=alpha)
    for i in range(4):
        rows = slice(i, i + 1)
        mine = weight.float().requires_grad_()
        place = placing("log_prior", scale)
        found = buffered_divergence(embeddings[rows].float(), mine, labels[rows], place, alpha=alpha, scale=scale)
        (grad,) = torch.autograd.grad(found.loss.sum(), mine)
        active = expected.posterior[i] > 0.0
        active[labels[i]] = True
        large = active & ((expected.posterior[i] > 1e-30) | (torch.arange(20_000) == labels[i]))
        nonzero = grad.any(1)
        assert not (nonzero & ~active).any()
        assert not (large & ~nonzero).any()
        assert found.support.item() == expected.support[i].item()


@pytest.mark.parametrize("alpha", [1.0, 1.05, 1.25, 1.75, 2.0])
def test_gradcheck(alpha):
    embeddings, weight, labels = problem(num_classes=12, dim=2, batch=3)

    def loss(embeddings, weight):
        return buffered_divergence(embeddings, weight, labels, placing("angle", 4.0), alpha=alpha, scale=4.0).loss

    inputs = (embeddings[1:].requires_grad_(), weight.requires_grad_())
    labels = labels[1:]
    assert torch.autograd.gradcheck(loss, inputs)


def test_log_q_has_its_gradient():
    embeddings, weight, labels = problem(num_classes=12)
    theta = scaled_cosines(embeddings, weight, 4.0)
    log_q = torch.linspace(-1.0, 0.0, 6, dtype=torch.float64).requires_grad_()
    found = buffered_divergence(embeddings, weight, labels, lambda c: (None, log_q), alpha=1.5, scale=4.0)
    expected = alpha_divergence(theta, labels, log_q, alpha=1.5)
    torch.testing.assert_close(*(torch.autograd.grad(x.loss.sum(), log_q) for x in (found, expected)))


def test_a_target_that_is_not_of_the_cosine():
    embeddings, weight, labels = problem(num_classes=12)
    weight.requires_grad_()
    target = torch.linspace(-4.0, 4.0, 6, dtype=torch.float64)
    found = buffered_divergence(embeddings, weight, labels, lambda c: (target, None), alpha=1.5, scale=4.0)
    expected = alpha_divergence(scaled_cosines(embeddings, weight, 4.0), labels, alpha=1.5, target=target)
    torch.testing.assert_close(*(torch.autograd.grad(x.loss.sum(), weight)[0] for x in (found, expected)))


def test_one_matrix_of_classes_by_batch_is_kept():
    embeddings, weight, labels = problem(num_classes=5000, batch=64)
    weight.requires_grad_()
    kept = {}

    def pack(x):
        kept[x.data_ptr()] = max(x.nbytes, kept.get(x.data_ptr(), 0))
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        buffered_divergence(embeddings, weight, labels, placing("angle", 4.0), alpha=1.5, scale=4.0)
    kept.pop(weight.data_ptr())
    assert max(kept.values()) == 5000 * 64 * 8
    assert sum(kept.values()) < 1.1 * 5000 * 64 * 8


def test_frozen_prototypes_and_frozen_embeddings():
    embeddings, weight, labels = problem(num_classes=5000)

    def loss(embeddings, weight):
        return buffered_divergence(embeddings, weight, labels, placing("angle", 4.0), alpha=1.5, scale=4.0).loss.sum()

    both = torch.autograd.grad(loss(embeddings.requires_grad_(), weight.requires_grad_()), (embeddings, weight))
    assert torch.equal(torch.autograd.grad(loss(embeddings, weight.detach()), embeddings)[0], both[0])
    assert torch.equal(torch.autograd.grad(loss(embeddings.detach(), weight), weight)[0], both[1])
    assert not loss(embeddings.detach(), weight.detach()).requires_grad


def test_nothing_is_changed_that_a_second_backward_needs():
    embeddings, weight, labels = problem(num_classes=5000)
    weight.requires_grad_()
    loss = buffered_divergence(embeddings, weight, labels, placing("angle", 4.0), alpha=1.5, scale=4.0).loss.sum()
    first, second = (torch.autograd.grad(loss, weight, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize(("alpha", "scale"), [(1.0, 32), (1.05, 32), (1.5, 10), (1.75, 5), (2.0, 0.1)])
def test_a_nan_embedding_is_seen_in_its_row_and_zeros_have_no_gradient(alpha, scale):
    embeddings, weight, labels = problem(num_classes=5000)
    embeddings[2, 0], embeddings[3], weight[labels[4]], weight[7] = math.nan, 0.0, 0.0, 0.0
    args = {"project_type": "q_margin", "alpha": alpha, "scale": scale, "form": "dense"}
    head = build_head(args, embed_dim=16, num_classes=5000).double()
    with torch.no_grad():
        head.weight.copy_(weight)
    found = head(embeddings.requires_grad_(), labels)
    (grad,) = torch.autograd.grad(found.loss, embeddings)
    assert found.per_sample.isnan().tolist() == [i == 2 for i in range(6)]
    assert grad.isnan().any(1).tolist() == [i == 2 for i in range(6)]
    assert not grad[3].any()
    assert not found.correct[2]
    fine = [0, 1, 3, 4, 5]
    expected = alpha_divergence(
        scaled_cosines(embeddings[fine], weight, scale), labels[fine], torch.full((5,), -0.1 * scale), alpha=alpha
    )
    torch.testing.assert_close(found.per_sample[fine], expected.loss)
    assert torch.equal(found.support[fine], expected.support)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("alpha", [1.0, 1.05, 1.5, 1.75])
def test_a_bad_prototype_is_seen_in_every_row(alpha, bad):
    embeddings, weight, labels = problem(num_classes=5000)
    weight[4321, 3] = bad
    found = buffered_divergence(embeddings, weight, labels, placing("angle", 10.0), alpha=alpha, scale=10.0)
    assert found.loss.isnan().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_coarse_inputs(dtype):
    embeddings, weight, labels = problem(num_classes=5000)
    embeddings, weight = (x.to(dtype).requires_grad_() for x in (embeddings, weight))
    found = buffered_divergence(embeddings, weight, labels, placing("log_prior", 8.0), alpha=1.5, scale=8.0)
    mine = gradients(found, embeddings, weight)
    theta = scaled_cosines(embeddings, weight, 8.0)
    log_q = torch.full((6,), -1.6)
    theirs = gradients(alpha_divergence(theta, labels, log_q, alpha=1.5), embeddings, weight)
    assert [x.dtype for x in mine] == [torch.float32, dtype, dtype]
    torch.testing.assert_close(mine[0], theirs[0])
    assert F.cosine_similarity(mine[2].flatten().double(), theirs[2].flatten().double(), dim=0) > 0.9999


def test_alpha_is_checked():
    embeddings, weight, labels = problem(num_classes=7)
    with pytest.raises(ValueError, match=r"needs alpha in \[1, 2\]; found 3.0"):
        buffered_divergence(embeddings, weight, labels, placing("angle", 4.0), alpha=3.0, scale=4.0)
