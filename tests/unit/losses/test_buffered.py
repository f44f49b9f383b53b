"""The one-buffer form against the autograd one in float64."""

import math

import pytest
import torch
from torch.nn import functional as F

from wespeaker.losses import alpha_divergence, build_head, scaled_cosines
from wespeaker.losses.buffered import buffered_divergence
from wespeaker.losses.margins import angular_margin, log_prior_margin

ALPHAS = [1.1, 1.25, 4 / 3, 1.5, 1.75, 2.0]


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


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("place", ["angle", "log_prior"])
@pytest.mark.parametrize(
    ("num_classes", "collapsed"), [(1, False), (7, False), (1500, False), (5000, False), (5000, True)]
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-7), (torch.float32, 3e-6)])
def test_equals_the_autograd_form(alpha, place, num_classes, collapsed, dtype, tolerance):
    embeddings, weight, labels = (
        x.requires_grad_(x.is_floating_point()) for x in problem(num_classes=num_classes, collapsed=collapsed)
    )
    theta = scaled_cosines(embeddings, weight, 8.0)
    target, log_q = placing(place, 8.0)(theta.gather(1, labels.unsqueeze(1)).squeeze(1) / 8.0)
    expected = alpha_divergence(theta, labels, log_q, alpha=alpha, target=target)
    reference = gradients(expected, embeddings, weight)
    embeddings, weight = (x.detach().to(dtype).requires_grad_() for x in (embeddings, weight))
    found = buffered_divergence(embeddings, weight, labels, placing(place, 8.0), alpha=alpha, scale=8.0)
    for mine, theirs in zip(gradients(found, embeddings, weight), reference, strict=True):
        assert ((mine - theirs).abs().max() / max(theirs.abs().max().item(), 1.0)).item() <= tolerance
    off_by = 0 if dtype == torch.float64 else 2  # 1e-5 to the tenth power is 0 in float32
    assert ((found.support - expected.support).abs() <= off_by).all()
    if not collapsed:
        assert torch.equal(found.correct, theta.argmax(1) == labels)


@pytest.mark.parametrize("alpha", ALPHAS)
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


def test_nothing_is_changed_that_a_second_backward_needs():
    embeddings, weight, labels = problem(num_classes=5000)
    weight.requires_grad_()
    loss = buffered_divergence(embeddings, weight, labels, placing("angle", 4.0), alpha=1.5, scale=4.0).loss.sum()
    first, second = (torch.autograd.grad(loss, weight, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_a_nan_embedding_is_seen_in_its_row_and_zeros_have_no_gradient():
    embeddings, weight, labels = problem(num_classes=5000)
    embeddings[2, 0], embeddings[3], weight[labels[4]] = math.nan, 0.0, 0.0
    head = build_head({"project_type": "q_margin", "form": "dense"}, embed_dim=16, num_classes=5000).double()
    with torch.no_grad():
        head.weight.copy_(weight)
    found = head(embeddings.requires_grad_(), labels)
    (grad,) = torch.autograd.grad(found.loss, embeddings)
    assert found.per_sample.isnan().tolist() == [i == 2 for i in range(6)]
    assert grad.isnan().any(1).tolist() == [i == 2 for i in range(6)]
    assert not grad[3].any()
    assert not found.correct[2]


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
    with pytest.raises(ValueError, match=r"needs alpha in \[1.1, 2\]; found 3.0"):
        buffered_divergence(embeddings, weight, labels, placing("angle", 4.0), alpha=3.0, scale=4.0)
