"""Two million classes in float32 against 40 digits: eq. 5 as it stands holds sums of C/α whose difference is lost."""

import mpmath
import numpy as np
import pytest
import torch
from scipy.optimize import brentq

from wespeaker.losses import alpha_divergence, build_head, scaled_cosines

C, D = 2_000_000, 16
SETTINGS = [(1.25, 32.0, 0.2), (1.5, 10.0, 0.1)]  # α, s, m: the paper's for faces and for speakers


@pytest.fixture(scope="module")
def directions():
    """Prototypes (C, D), two embeddings of which the first is near its prototype, labels, and cosines in float64."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(C, D, generator=generator)
    labels = torch.tensor([C // 3, C - 1])
    embeddings = torch.randn(2, D, generator=generator)
    embeddings[0] = weight[labels[0]] + 0.4 * embeddings[0]
    parts = [scaled_cosines(embeddings.double(), part.double(), 1.0) for part in weight.split(100_000)]
    return weight, embeddings, labels, torch.cat(parts, dim=1)


def exact_solution(theta, label, alpha, log_q_y):
    """Return the loss of eqs. 4-6 for logits (C,), and the posterior (C,).

    Solved over a few of the classes, found by scipy in float64; then all others are certified to be inactive. They
    count 1/α each in D_f(p:q), and all but the label do in D_f(e_y:q).
    """

    def total(tau):
        x = np.maximum(0.0, 1.0 + (alpha - 1.0) * (near.numpy() - tau))
        x_y = max(0.0, 1.0 + (alpha - 1.0) * (theta[label].item() - tau))
        return (x ** (1.0 / (alpha - 1.0))).sum() + np.exp(log_q_y) * x_y ** (1.0 / (alpha - 1.0)) - 1.0

    others = torch.cat([theta[:label], theta[label + 1 :]])
    near = others[others > others.max() - 1.0 / (alpha - 1.0)]
    tau = brentq(total, others.max().item(), theta.max().item() + 100.0)
    few = sorted({*(theta > tau - 1.0 / (alpha - 1.0) - 1e-9).nonzero().flatten().tolist(), label})

    with mpmath.workdps(40):
        a, q_y = mpmath.mpf(alpha), mpmath.exp(mpmath.mpf(log_q_y))
        b = a - 1
        logits = [mpmath.mpf(theta[j].item()) for j in few]
        q = [q_y if j == label else mpmath.mpf(1) for j in few]

        def posterior(tau):
            return [w * max(mpmath.mpf(0), 1 + b * (t - tau)) ** (1 / b) for t, w in zip(logits, q, strict=True)]

        ends = tau - 1e-6, tau + 1e-6
        tau = mpmath.findroot(lambda t: mpmath.fsum(posterior(t)) - 1, ends, solver="anderson", maxsteps=99)
        p = posterior(tau)
        left_out = theta.index_fill(0, torch.tensor(few), -torch.inf).max().item()
        assert left_out <= tau - 1 / b

        def f(u):
            return (u**a - 1 - a * (u - 1)) / (a * b)

        inactive = (C - len(few)) / a
        softmax_f = mpmath.fdot(p, logits) - mpmath.fsum(w * f(u / w) for u, w in zip(p, q, strict=True)) - inactive
        loss = softmax_f + q_y * f(1 / q_y) + (C - 1) / a - mpmath.mpf(theta[label].item())
    values = theta.new_tensor([float(x) for x in p])
    return float(loss), torch.zeros_like(theta).index_put((torch.tensor(few),), values)


def as_it_stands(theta, posterior, label, alpha, log_q_y):
    """Return the loss of eqs. 4-6 of one row, every term in float32."""
    q, one_hot = torch.ones_like(theta), torch.zeros_like(theta)
    q[label], one_hot[label] = torch.tensor(log_q_y).exp(), 1.0

    def divergence(p):
        u = p / q
        return (q * (u**alpha - 1.0 - alpha * (u - 1.0)) / (alpha * (alpha - 1.0))).sum()

    return ((posterior * theta).sum() - divergence(posterior) + divergence(one_hot) - theta[label]).item()


@pytest.mark.parametrize(("alpha", "scale", "margin"), SETTINGS)
def test_loss_and_posterior_of_given_logits(directions, alpha, scale, margin):
    _, _, labels, cosines = directions
    theta, log_q_y = (scale * cosines).float(), -scale * margin
    found = alpha_divergence(theta, labels, torch.full((2,), log_q_y), alpha=alpha)
    for i, label in enumerate(labels.tolist()):
        loss, posterior = exact_solution(theta[i].double(), label, alpha, log_q_y)
        assert found.loss[i].item() == pytest.approx(loss, rel=1e-6)
        assert (found.posterior[i] - posterior).abs().max() <= 1e-6
        assert torch.equal(found.posterior[i] > 0.0, posterior > 0.0)
        assert abs(as_it_stands(theta[i], found.posterior[i], label, alpha, log_q_y) - loss) > 1e-3


@pytest.mark.parametrize(("alpha", "scale", "margin"), SETTINGS)
def test_loss_of_both_forms_of_the_head(directions, alpha, scale, margin):
    weight, embeddings, labels, cosines = directions
    expected = [exact_solution(scale * cosines[i], y, alpha, -scale * margin) for i, y in enumerate(labels.tolist())]
    for form in ("dense", "stream"):
        args = {"project_type": "q_margin", "alpha": alpha, "scale": scale, "margin": margin, "form": form}
        with torch.device("meta"):
            head = build_head(args, embed_dim=D, num_classes=C)
        head.weight = torch.nn.Parameter(weight, requires_grad=False)
        out = head(embeddings, labels)
        assert out.path == form
        for i, (loss, posterior) in enumerate(expected):
            assert out.per_sample[i].item() == pytest.approx(loss, rel=2e-6)
            assert out.support[i].item() == (posterior > 0.0).sum()
            assert out.target_posterior[i].item() == pytest.approx(posterior[labels[i]].item(), abs=3e-6)
