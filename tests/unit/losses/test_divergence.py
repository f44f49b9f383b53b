"""Oracles: the entmax package (q = 1), roots of eq. 10 to 40 digits by mpmath (any q), and torch's cross-entropy."""

import math

import entmax
import mpmath
import pytest
import torch
from torch.nn import functional as F

from wespeaker.losses import alpha_divergence, alpha_divergence_loss, alpha_softargmax, zero_loss_gap

ALPHAS = (1.01, 1.05, 1.2, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0)


def logits(rows, classes, *, spread=3.0, dtype=torch.float64, seed=0):
    theta = spread * torch.randn(rows, classes, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return theta.to(dtype)


# ---- q = 1: entmax ----


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("classes", [1, 5, 300, 6000])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_equals_entmax_for_uniform_q(alpha, classes, dtype, tolerance):
    theta = logits(4, classes, dtype=dtype)
    labels = torch.tensor([0, classes // 2, classes - 1, int(theta[3].argmax())])
    expected = entmax.entmax_bisect(theta.double(), alpha=alpha, n_iter=60)
    found = alpha_divergence(theta, labels, alpha=alpha)
    torch.testing.assert_close(found.posterior.double(), expected, rtol=0, atol=tolerance)
    torch.testing.assert_close(alpha_softargmax(theta, alpha=alpha)[0], found.posterior, rtol=0, atol=tolerance)
    loss = entmax.entmax_bisect_loss(theta.double(), labels, alpha=alpha, n_iter=60)
    torch.testing.assert_close(found.loss.double(), loss.clamp(min=0), rtol=tolerance, atol=tolerance)
    assert found.loss.dtype == found.posterior.dtype == dtype


@pytest.mark.parametrize(("alpha", "oracle"), [(1.5, entmax.entmax15), (2.0, entmax.sparsemax)])
def test_equals_the_closed_forms_of_entmax(alpha, oracle):
    theta = logits(8, 500)
    posterior, _ = alpha_softargmax(theta, alpha=alpha)
    torch.testing.assert_close(posterior, oracle(theta), rtol=0, atol=1e-12)


@pytest.mark.parametrize("alpha", [1.05, 1.25, 1.5, 1.75, 2.0, 3.0])
def test_support_is_that_of_a_full_solve_in_float64(alpha):
    theta = logits(8, 20_000, spread=2.0, dtype=torch.float32)
    full = entmax.entmax_bisect(theta.double(), alpha=alpha, n_iter=60).float()
    found = alpha_divergence(theta, torch.arange(8), alpha=alpha)
    if alpha > 1.1:  # at 1.05 thousands of posteriors lie at the end of float32's range
        assert torch.equal(found.posterior > 0, full > 0)
    assert torch.equal(found.support, (found.posterior > 0).sum(1))
    torch.testing.assert_close(found.posterior, full, rtol=0, atol=1e-6)


@pytest.mark.parametrize("alpha", [1.25, 1.5, 2.0])
@pytest.mark.parametrize("stride", [1, 1250], ids=["neighbours", "one block"])
def test_top_classes_that_share_a_block_are_all_found(alpha, stride):
    """The certified bound comes from one class a block: here it sees one of the 16 largest."""
    theta = logits(2, 20_000, spread=0.01)
    theta[:, 7 : 7 + 16 * stride : stride] += 4.0
    posterior, _ = alpha_softargmax(theta, alpha=alpha)
    assert (posterior > 0).sum(1).min() >= 16
    expected = entmax.entmax_bisect(theta, alpha=alpha, n_iter=60)
    torch.testing.assert_close(posterior, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("alpha", [1.0, 1.01, 1.25, 1.5, 2.0, 3.0])
def test_all_classes_equal(alpha):
    posterior, tau = alpha_softargmax(torch.full((2, 20_000), 40.0), alpha=alpha)
    torch.testing.assert_close(posterior, torch.full_like(posterior, 1 / 20_000), rtol=1e-5, atol=0)
    b = alpha - 1
    exact = 40 + (math.log(20_000) if b == 0 else -math.expm1(-b * math.log(20_000)) / b)  # u = (1/C)^b
    torch.testing.assert_close(tau, torch.full_like(tau, exact))


# ---- any q: 40 digits ----


def exact_solution(theta, log_q, label, alpha):
    """Solve eq. 10 with mpmath; return the posterior, τ, and the loss by eqs. 4-6 as they stand in the paper."""
    with mpmath.workdps(40):
        theta, q = [mpmath.mpf(x) for x in theta], [mpmath.exp(x) for x in log_q]
        b = mpmath.mpf(alpha) - 1

        def p_at(tau):
            return [w * max(mpmath.mpf(0), 1 + b * (t - tau)) ** (1 / b) for t, w in zip(theta, q, strict=True)]

        low = max(t - (w**-b - 1) / b for t, w in zip(theta, q, strict=True))
        high = max(theta) - (mpmath.fsum(q) ** -b - 1) / b
        for _ in range(130):
            middle = (low + high) / 2
            low, high = (middle, high) if mpmath.fsum(p_at(middle)) >= 1 else (low, middle)
        p = p_at(low)

        def divergence(p):
            a = mpmath.mpf(alpha)
            f = [((u / w) ** a - 1 - a * (u / w - 1)) / (a * (a - 1)) for u, w in zip(p, q, strict=True)]
            return mpmath.fsum(w * x for w, x in zip(q, f, strict=True))

        one_hot = [mpmath.mpf(j == label) for j in range(len(q))]
        softmax_f = mpmath.fsum(u * t for u, t in zip(p, theta, strict=True)) - divergence(p)
        loss = softmax_f + divergence(one_hot) - theta[label]
        return [float(x) for x in p], float(low), float(loss)


@pytest.mark.parametrize("alpha", [1 + 1e-5, 1.001, 1.05, 1.1, 1.25, 4 / 3, 1.5, 1.75, 2.0, 2.5, 4.0])
@pytest.mark.parametrize("form", ["full", "target"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 2e-6)])
def test_equals_40_digits_for_any_q(alpha, form, dtype, tolerance):
    theta, labels = logits(3, 12, dtype=dtype), torch.tensor([0, 5, 11])
    if form == "full":
        log_q = given = logits(3, 12, spread=1.0, dtype=dtype, seed=1)
    else:
        given = torch.tensor([-6.0, -0.5, 1.5], dtype=dtype)
        log_q = torch.zeros_like(theta).scatter(1, labels.unsqueeze(1), given.unsqueeze(1))
    found = alpha_divergence(theta, labels, given, alpha=alpha)
    for i in range(3):
        p, tau, loss = exact_solution(theta[i].tolist(), log_q[i].tolist(), int(labels[i]), alpha)
        torch.testing.assert_close(found.posterior[i].double(), theta.new_tensor(p).double(), rtol=0, atol=tolerance)
        assert found.tau[i].item() == pytest.approx(tau, rel=tolerance, abs=tolerance)
        assert found.loss[i].item() == pytest.approx(loss, rel=tolerance, abs=5 * tolerance)


@pytest.mark.parametrize("alpha", [1.0, 1.05, 1.5, 2.0, 3.0])
@pytest.mark.parametrize("classes", [12, 700])
def test_q_of_the_target_alone_equals_the_full_reference_measure(alpha, classes):
    theta, labels = logits(5, classes), torch.tensor([0, 3, classes // 2, classes - 2, classes - 1])
    target, log_q_y = logits(1, 5)[0], torch.tensor([-8.0, -1.0, 0.0, 0.5, -3.0], dtype=torch.float64)
    index = labels.unsqueeze(1)
    log_q = torch.zeros_like(theta).scatter(1, index, log_q_y.unsqueeze(1))
    full = alpha_divergence(theta.scatter(1, index, target.unsqueeze(1)), labels, log_q, alpha=alpha)
    for given in (log_q_y, log_q):
        found = alpha_divergence(theta, labels, given, alpha=alpha, target=target)
        for mine, expected in zip(found, full, strict=True):
            torch.testing.assert_close(mine, expected, rtol=1e-12, atol=1e-12)


def test_the_papers_proposition_1_restricting_to_the_active_set_keeps_tau():
    theta = logits(1, 3000)
    posterior, tau = alpha_softargmax(theta, alpha=1.5)
    active = posterior[0] > 0
    assert active.sum() < 100
    again, same = alpha_softargmax(theta[:, active], alpha=1.5)
    torch.testing.assert_close(same, tau, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(again[0], posterior[0, active], rtol=1e-12, atol=0)


# ---- α → 1: cross-entropy ----


@pytest.mark.parametrize("alpha", [1.0, 1.0 + 1e-7])
def test_alpha_1_is_cosface_cross_entropy(alpha):
    theta, labels = logits(6, 50).requires_grad_(), torch.arange(6)
    found = alpha_divergence(theta, labels, torch.full((6,), -6.4, dtype=torch.float64), alpha=alpha)
    cosface = theta - 6.4 * F.one_hot(labels, 50).double()
    expected = F.cross_entropy(cosface, labels, reduction="none")
    torch.testing.assert_close(found.loss, expected, rtol=1e-13, atol=1e-13)
    mine, theirs = (torch.autograd.grad(x.sum(), theta, retain_graph=True)[0] for x in (found.loss, expected))
    torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-14)
    assert found.support.tolist() == [50] * 6


def test_the_loss_goes_to_cosface_as_alpha_goes_to_1():
    theta, labels, log_q = logits(6, 50), torch.arange(6), torch.full((6,), -2.0, dtype=torch.float64)
    expected = F.cross_entropy(theta - 2.0 * F.one_hot(labels, 50).double(), labels, reduction="none")
    steps = [1e-2, 1e-3, 1e-4, 1e-5]
    gaps = [(alpha_divergence_loss(theta, labels, log_q, alpha=1 + b) - expected).abs().max() for b in steps]
    for near, far in zip(gaps[1:], gaps[:-1], strict=True):
        assert near < 0.2 * far
    assert gaps[-1] < 2e-4


# ---- gradients ----


@pytest.mark.parametrize("alpha", [1.0, 1.05, 1.25, 1.5, 1.75, 2.0, 2.6])
def test_gradients_first_and_second(alpha):
    theta, log_q, labels = logits(4, 6, spread=1.0), logits(4, 6, spread=1.0, seed=1), torch.tensor([0, 2, 2, 5])
    target, log_q_y = log_q[:, 0].clone(), theta[:, 1].clone()
    cases = [
        (lambda t: alpha_divergence_loss(t, labels, alpha=alpha), (theta,)),
        (lambda t, q: alpha_divergence_loss(t, labels, q, alpha=alpha), (theta, log_q)),
        (lambda t, q: alpha_divergence_loss(t, labels, q, alpha=alpha), (theta, log_q_y)),
        (lambda t, q, g: alpha_divergence_loss(t, labels, q, alpha=alpha, target=g), (theta, log_q_y, target)),
        (lambda t, q, g: alpha_divergence_loss(t, labels, q, alpha=alpha, target=g), (theta, log_q, target)),
        (lambda t: alpha_softargmax(t, alpha=alpha), (theta,)),
        (lambda t, q: alpha_softargmax(t, q, alpha=alpha), (theta, log_q)),
        (lambda t, q: alpha_divergence(t, labels, q, alpha=alpha)[:3], (theta, log_q_y)),
    ]
    for function, inputs in cases:
        inputs = tuple(x.clone().requires_grad_() for x in inputs)
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("classes", [10, 20_000])
def test_gradient_is_posterior_less_one_hot(classes):
    theta, labels = logits(3, classes, dtype=torch.float32).requires_grad_(), torch.tensor([1, 2, 3])
    found = alpha_divergence(theta, labels, torch.full((3,), -1.0), alpha=1.5)
    (grad,) = torch.autograd.grad(found.loss.sum(), theta)
    assert torch.equal(grad, found.posterior - F.one_hot(labels, classes))


# ---- what the paper and the derivations state ----


@pytest.mark.parametrize(("alpha", "scale", "margin"), [(1.5, 10, 0.1), (1.75, 5, 0.1), (1.25, 32, 0.2), (2, 5, 0.1)])
def test_loss_is_zero_exactly_from_the_published_gap_on(alpha, scale, margin):
    gap = zero_loss_gap(alpha, scale, margin)
    cosine = 0.2 * torch.rand(2, 1000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 0.2
    largest = cosine[:, 1:].amax(1)
    cosine[:, 0] = largest + torch.tensor([gap + 1e-6, gap - 0.01])  # the loss leaves 0 as (gap - M)^(1+1/b)
    theta = (scale * cosine).requires_grad_()
    log_q = torch.full((2,), -scale * margin, dtype=torch.float64)
    loss = alpha_divergence_loss(theta, torch.zeros(2, dtype=torch.int64), log_q, alpha=alpha)
    (grad,) = torch.autograd.grad(loss.sum(), theta)
    assert loss[0] == 0.0
    assert not grad[0].any()
    assert loss[1] > 0.0
    assert grad[1].any()


@pytest.mark.parametrize("alpha", [1.25, 1.5, 2.0, 3.0])
@pytest.mark.parametrize("classes", [160, 163])
def test_a_target_that_leaves_no_other_candidate(alpha, classes):
    theta, labels = logits(3, classes, spread=0.1), torch.tensor([0, 80, classes - 1])
    found = alpha_divergence(theta, labels, alpha=alpha, target=torch.full((3,), 50.0, dtype=torch.float64))
    assert torch.equal(found.posterior, F.one_hot(labels, classes).double())
    assert found.loss.tolist() == [0.0] * 3
    assert found.support.tolist() == [1] * 3


def test_a_target_with_posterior_zero_still_has_gradient_minus_one():
    generator = torch.Generator().manual_seed(0)
    theta = (10.0 * torch.randn(16, 18_000, generator=generator) / 16.0).requires_grad_()  # random init, d = 256
    labels = torch.randint(18_000, (16,), generator=generator)
    found = alpha_divergence(theta, labels, torch.full((16,), -1.0), alpha=1.5)
    (grad,) = torch.autograd.grad(found.loss.sum(), theta)
    index = labels.unsqueeze(1)
    dead = found.posterior.gather(1, index).squeeze(1) == 0
    assert dead.float().mean() > 0.9
    assert (grad.gather(1, index).squeeze(1)[dead] == -1).all()


@pytest.mark.parametrize(("alpha", "scale", "measured"), [(1.5, 10, 61), (1.75, 5, 32), (2.0, 5, 13)])
def test_support_at_random_init(alpha, scale, measured):
    """The share of active classes that a separate prototype measured before this code was written."""
    theta = scale * torch.randn(32, 18_000, generator=torch.Generator().manual_seed(0)) / 16.0
    support = alpha_divergence(theta, torch.arange(32), torch.full((32,), -0.1 * scale), alpha=alpha).support
    assert support.double().mean().item() == pytest.approx(measured, rel=0.15)


# ---- edges ----


@pytest.mark.parametrize("alpha", [1.0, 1.05, 1.5, 2.0, 3.0])
@pytest.mark.parametrize("classes", [6, 500])
def test_minus_infinity_leaves_a_class_out(alpha, classes):
    theta = logits(2, classes)
    theta[:, 1::2] = -math.inf
    theta.requires_grad_()
    labels = torch.tensor([0, 2])
    found = alpha_divergence(theta, labels, alpha=alpha)
    kept = alpha_divergence(theta[:, ::2], labels // 2, alpha=alpha)
    assert not found.posterior[:, 1::2].any()
    torch.testing.assert_close(found.posterior[:, ::2], kept.posterior)
    torch.testing.assert_close(found.loss, kept.loss)
    (grad,) = torch.autograd.grad(found.loss.sum(), theta)
    assert grad.isfinite().all()
    assert alpha_divergence_loss(theta, torch.tensor([1, 2]), alpha=alpha).isinf().tolist() == [True, False]
    log_q = torch.zeros_like(theta).masked_fill_(theta.isinf(), -math.inf)
    by_q = alpha_divergence(torch.where(theta.isinf(), 9.0, theta), labels, log_q, alpha=alpha)
    torch.testing.assert_close(by_q.loss, kept.loss)


@pytest.mark.parametrize("alpha", [1.0, 1.05, 1.25, 1.5, 2.0, 3.0])
@pytest.mark.parametrize("classes", [6, 500])
@pytest.mark.parametrize("prior", ["none", "target", "full"])
def test_plus_infinity_is_the_limit_of_a_growing_logit_but_nan_at_the_label(alpha, classes, prior):
    """Rows: one other class, two others, none, the label."""
    infinite, labels = [(0, 4), (1, 1), (1, 3), (3, 1)], torch.tensor([0, 5, 3, 1])
    theta = logits(4, classes)
    log_q = {
        "none": None,
        "target": torch.full((4,), -0.5, dtype=torch.float64),
        "full": logits(4, classes, spread=0.3, seed=1),
    }[prior]
    grown = theta.clone()
    for row, column in infinite:
        theta[row, column], grown[row, column] = math.inf, 1e6
    theta.requires_grad_()
    found = alpha_divergence(theta, labels, log_q, alpha=alpha)
    limit = alpha_divergence(grown, labels, log_q, alpha=alpha)
    (grad,) = torch.autograd.grad(found.loss.sum(), theta)
    assert found.loss[:2].tolist() == found.tau[:2].tolist() == [math.inf] * 2
    torch.testing.assert_close(found.posterior[:3], limit.posterior[:3], rtol=0, atol=1e-9)
    assert torch.equal(found.support[:3], limit.support[:3])
    assert torch.equal(grad[:3], (found.posterior - F.one_hot(labels, classes))[:3])
    torch.testing.assert_close(found.loss[2], limit.loss[2])
    for x in (found.loss, found.tau, found.posterior, grad):
        assert x[3].isnan().all()
    softargmax, _ = alpha_softargmax(theta, log_q if prior == "full" else None, alpha=alpha)
    assert softargmax[3].tolist() == [float(j == 1) for j in range(classes)]


@pytest.mark.parametrize("alpha", [1.0, 1.25, 2.0, 3.0])
def test_a_row_of_minus_infinities_is_nan_and_spoils_no_other(alpha):
    theta = logits(2, 300)
    theta[0] = -math.inf
    found = alpha_divergence(theta, torch.tensor([0, 1]), alpha=alpha)
    for x in (found.loss, found.tau, found.posterior):
        assert x[0].isnan().all()
        assert x[1].isfinite().all()


@pytest.mark.parametrize("alpha", [1.0, 1.01, 1.25, 1.5, 2.0, 3.0])
@pytest.mark.parametrize("classes", [6, 20_000])
@pytest.mark.parametrize("full_q", [False, True])
def test_a_nan_gives_nan_loss_and_gradient_in_its_row_only(alpha, classes, full_q):
    theta = logits(3, classes, dtype=torch.float32)
    theta[1, 4] = math.nan
    theta.requires_grad_()
    log_q = torch.zeros_like(theta) if full_q else None
    found = alpha_divergence(theta, torch.tensor([0, 1, 2]), log_q, alpha=alpha)
    (grad,) = torch.autograd.grad(found.loss.sum(), theta)
    for x in (found.loss, found.tau, found.posterior, grad):
        assert x[1].isnan().all()
        assert x[::2].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("alpha", [1.0, 1.25, 2.0])
def test_half_precision_is_computed_in_float32(alpha, dtype):
    theta, labels = logits(4, 300, dtype=dtype).requires_grad_(), torch.arange(4)
    found, fine = (alpha_divergence(x, labels, alpha=alpha) for x in (theta, theta.float()))
    assert torch.equal(found.loss, fine.loss)
    assert (found.loss.dtype, found.tau.dtype, found.posterior.dtype) == (torch.float32, torch.float32, dtype)
    (grad,) = torch.autograd.grad(found.loss.sum(), theta)
    assert grad.dtype == dtype
    assert grad.isfinite().all()


def test_inputs_stay_as_they_are():
    theta, log_q = logits(2, 400), logits(2, 400, seed=1)
    copies = theta.clone(), log_q.clone()
    alpha_divergence_loss(theta, torch.tensor([0, 1]), log_q, alpha=1.5)
    alpha_divergence_loss(theta, torch.tensor([0, 1]), log_q[:, 0], alpha=1.0, target=log_q[:, 1])
    assert torch.equal(theta, copies[0])
    assert torch.equal(log_q, copies[1])


@pytest.mark.parametrize("alpha", [0.5, 0.0, math.nan, math.inf])
def test_alpha_below_1_is_refused(alpha):
    with pytest.raises(ValueError, match="alpha must be a finite number of at least 1; found"):
        alpha_softargmax(torch.zeros(1, 2), alpha=alpha)


def test_shapes_that_do_not_fit_are_refused():
    theta, labels = torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"theta must be \(B, C\)"):
        alpha_softargmax(theta[0], alpha=2)
    with pytest.raises(ValueError, match=r"labels must be \(3,\) int64; found \(3,\) torch.int32"):
        alpha_divergence_loss(theta, labels.int(), alpha=2)
    with pytest.raises(ValueError, match=r"log_q must be \(3, 4\); found \(3,\)"):
        alpha_softargmax(theta, theta[:, 0], alpha=2)
    with pytest.raises(ValueError, match=r"log_q must be \(3,\) or \(3, 4\); found \(4,\)"):
        alpha_divergence_loss(theta, labels, theta[0], alpha=2)
    with pytest.raises(ValueError, match=r"target must be \(3,\)"):
        alpha_divergence_loss(theta, labels, alpha=2, target=theta)
