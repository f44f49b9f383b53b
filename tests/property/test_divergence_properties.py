"""What holds for every α ≥ 1, reference measure and batch of logits."""

import math

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from wespeaker.checks import margin_of_gap
from wespeaker.losses import (
    PROJECT_TYPES,
    alpha_divergence,
    alpha_softargmax,
    build_head,
    validate_projection_args,
    zero_loss_gap,
    zero_loss_margin,
)

FAST = settings(deadline=None, derandomize=True, max_examples=60)
alphas = st.one_of(st.sampled_from([1.0, 1.25, 1.5, 1.75, 2.0]), st.floats(1.0, 3.0), st.floats(1.0, 1.001))


@st.composite
def problems(draw, max_classes=400):
    """Logits (B, C) float64, labels and log q as (B,), (B, C) or None."""
    rows = draw(st.integers(1, 4))
    classes = draw(st.one_of(st.integers(1, 12), st.integers(120, max_classes)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    spread = draw(st.sampled_from([0.0, 0.1, 1.0, 10.0, 60.0]))
    theta = spread * torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    if draw(st.booleans()):
        theta = theta.round()  # ties
    labels = torch.randint(classes, (rows,), generator=generator)
    form = draw(st.sampled_from(["none", "target", "full"]))
    log_q = {
        "none": None,
        "target": -10.0 * torch.rand(rows, generator=generator, dtype=torch.float64),
        "full": torch.randn(rows, classes, generator=generator, dtype=torch.float64),
    }[form]
    return theta, labels, log_q


def full(theta, labels, log_q):
    if log_q is None:
        return torch.zeros_like(theta)
    if log_q.ndim == 2:
        return log_q
    return torch.zeros_like(theta).scatter(1, labels.unsqueeze(1), log_q.unsqueeze(1))


@FAST
@given(problems(), alphas)
def test_posterior_is_a_distribution_and_the_loss_its_potential(problem, alpha):
    theta, labels, log_q = problem
    theta.requires_grad_()
    found = alpha_divergence(theta, labels, log_q, alpha=alpha)
    assert (found.posterior >= 0).all()
    assert (found.posterior.sum(1) - 1.0).abs().max() <= 1e-12
    assert (found.loss >= 0).all()
    assert found.loss.isfinite().all()
    (grad,) = torch.autograd.grad(found.loss.sum(), theta)
    torch.testing.assert_close(grad, found.posterior - F.one_hot(labels, theta.shape[1]), rtol=0, atol=1e-15)
    assert (found.support <= theta.shape[1]).all()
    assert (found.support >= 1).all()


@FAST
@given(problems(), alphas)
def test_tau_lies_in_its_certified_bounds(problem, alpha):
    """max_j θ_j - f'(1/q_j) ≤ τ ≤ θ_max - f'(1/Σq), with f'(v) = (v^b - 1)/b, log v for b = 0."""
    theta, labels, log_q = problem
    found, log_q = alpha_divergence(theta, labels, log_q, alpha=alpha), full(theta, labels, log_q)
    b = alpha - 1 if alpha - 1 >= 1e-6 else 0.0
    slope = (lambda log_v: torch.expm1(b * log_v) / b) if b else (lambda log_v: log_v)
    low = (theta - slope(-log_q)).amax(1)
    high = theta.amax(1) - slope(-log_q.logsumexp(1))
    slack = 1e-10 * (1 + low.abs() + high.abs())
    assert (found.tau >= low - slack).all()
    assert (found.tau <= high + slack).all()


@FAST
@given(problems(), alphas, st.floats(-1e3, 1e3))
def test_a_shift_of_the_logits_shifts_tau_alone(problem, alpha, shift):
    theta, labels, log_q = problem
    before, after = (alpha_divergence(x, labels, log_q, alpha=alpha) for x in (theta, theta + shift))
    smooth = 1e-8 if alpha <= 2.0 else 1e-4  # for α > 2 p rises from 0 with infinite slope
    torch.testing.assert_close(after.posterior, before.posterior, rtol=0, atol=smooth)
    torch.testing.assert_close(after.loss, before.loss, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(after.tau, before.tau + shift, rtol=1e-9, atol=1e-9)


@FAST
@given(problems(), alphas, st.integers(0, 2**31))
def test_order_of_the_classes_does_not_matter(problem, alpha, seed):
    theta, labels, log_q = problem
    order = torch.randperm(theta.shape[1], generator=torch.Generator().manual_seed(seed))
    q_after = log_q[:, order] if log_q is not None and log_q.ndim == 2 else log_q
    before = alpha_divergence(theta, labels, log_q, alpha=alpha)
    after = alpha_divergence(theta[:, order], order.argsort()[labels], q_after, alpha=alpha)
    smooth = 1e-10 if alpha <= 2.0 else 1e-6
    torch.testing.assert_close(after.posterior, before.posterior[:, order], rtol=0, atol=smooth)
    torch.testing.assert_close(after.loss, before.loss, rtol=1e-10, atol=1e-10)


@FAST
@given(problems(), alphas, st.integers(0, 2**31))
def test_order_of_the_rows_does_not_matter(problem, alpha, seed):
    theta, labels, log_q = problem
    order = torch.randperm(len(theta), generator=torch.Generator().manual_seed(seed))
    before = alpha_divergence(theta, labels, log_q, alpha=alpha)
    after = alpha_divergence(theta[order], labels[order], None if log_q is None else log_q[order], alpha=alpha)
    for x, y in zip(after, before, strict=True):
        torch.testing.assert_close(x, y[order], rtol=1e-10, atol=1e-10 if alpha <= 2.0 else 1e-6)


@FAST
@given(problems(), alphas)
def test_posterior_follows_from_tau_by_equation_9(problem, alpha):
    theta, labels, log_q = problem
    log_q = full(theta, labels, log_q)
    posterior, tau = alpha_softargmax(theta, log_q, alpha=alpha)
    v = theta - tau.unsqueeze(1)
    b = alpha - 1
    log_u = v if b < 1e-6 else torch.log1p((b * v).clamp(min=-1)) / b
    tolerance = 1e-9 if alpha <= 2.0 else 1e-5
    torch.testing.assert_close(posterior, (log_u + log_q).exp(), rtol=1e-7, atol=tolerance)


@FAST
@given(problems(), alphas, st.floats(0.0, 8.0), st.floats(0.01, 4.0))
def test_a_larger_margin_is_a_larger_loss(problem, alpha, small, more):
    theta, labels, _ = problem
    rows = torch.ones(len(theta), dtype=torch.float64)
    losses = [alpha_divergence(theta, labels, -m * rows, alpha=alpha).loss for m in (small, small + more)]
    assert (losses[1] >= losses[0] * (1 - 1e-12)).all()


@FAST
@given(problems(), alphas, st.sampled_from([torch.float16, torch.bfloat16, torch.float32]))
def test_coarse_logits_are_finite_and_near_float64(problem, alpha, dtype):
    theta, labels, log_q = problem
    theta = theta.to(dtype).requires_grad_()
    log_q = None if log_q is None else log_q.to(dtype)
    found = alpha_divergence(theta, labels, log_q, alpha=alpha)
    exact = alpha_divergence(theta.double(), labels, None if log_q is None else log_q.double(), alpha=alpha)
    (grad,) = torch.autograd.grad(found.loss.sum(), theta)
    assert grad.isfinite().all()
    torch.testing.assert_close(found.loss.double(), exact.loss, rtol=1e-5, atol=1e-5)


@FAST
@given(st.integers(2, 60), alphas)
def test_a_subset_of_the_classes_bounds_tau_from_below(classes, alpha):
    theta = torch.randn(3, 60, generator=torch.Generator().manual_seed(classes), dtype=torch.float64)
    part, whole = (alpha_softargmax(x, alpha=alpha)[1] for x in (theta[:, :classes], theta))
    assert (part <= whole + 1e-12).all()


@FAST
@given(st.sampled_from(sorted(PROJECT_TYPES)), st.integers(1, 200), st.integers(0, 2**31), st.booleans())
def test_every_head_is_finite_anywhere(project_type, num_classes, seed, large):
    generator = torch.Generator().manual_seed(seed)
    head = build_head({"project_type": project_type}, embed_dim=4, num_classes=num_classes)
    with torch.no_grad():
        head.weight.copy_(torch.randn(num_classes, 4, generator=generator))
    labels = torch.randint(num_classes, (6,), generator=generator)
    away = torch.tensor([[1.0], [-1.0], [0.0], [1e-6], [1e4 if large else 1.0], [1.0 + 1e-6]])
    embeddings = (head.weight.detach()[labels] * away).requires_grad_()
    found = head(embeddings, labels)
    found.loss.backward()
    assert math.isfinite(found.loss.item())
    assert embeddings.grad.isfinite().all()
    assert head.weight.grad.isfinite().all()


@FAST
@given(st.floats(1.05, 2.5), st.floats(2.0, 64.0), st.floats(0.0, 0.6))
def test_the_gap_of_a_margin_has_that_margin(alpha, scale, margin):
    assume((alpha - 1.0) * scale * margin < 50.0)
    gap = zero_loss_gap(alpha, scale, margin)
    assert math.isclose(zero_loss_margin(alpha, scale, gap), margin, rel_tol=1e-9, abs_tol=1e-12)


@FAST
@given(
    st.sampled_from(["q_margin", "kappa", "elastic_arc"]),
    st.floats(1.2, 2.5),
    st.floats(5.0, 40.0),
    st.floats(0.3, 1.9),
)
def test_a_loss_is_zero_from_the_gap_that_its_margin_was_made_for(name, alpha, scale, gap):
    """Of Q-Margin, and of margins of each sample in log q where, as before the first epoch's end, all have the same."""
    assume((alpha - 1.0) * scale * gap > 1.0)
    args = validate_projection_args(
        {"project_type": name, "alpha": alpha, "scale": scale} | ({} if name == "q_margin" else {"place": "log_q"})
    )
    head = build_head(args, embed_dim=2, num_classes=2).double().eval()
    head.update(margin_of_gap(args, gap))
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))  # a cosine c leads by 2 c
    cosine = torch.tensor([0.5 * gap + 1e-6, 0.49 * gap], dtype=torch.float64)
    found = head(torch.stack([cosine, (1.0 - cosine.square()).sqrt()], dim=1), torch.zeros(2, dtype=torch.int64))
    assert found.per_sample[0] == 0.0
    assert found.per_sample[1] > 0.0
