"""The Q-Margin paper solves over the 5 % largest logits. Where more classes are active, its posterior is another one.

Random directions, as at the start of training, with α = 1.25, s = 10, m = 0.2 and 1000 classes. The reference is
eq. 10 by scipy's root finder, and the loss of eqs. 4-6 with all its terms, in float64.
"""

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from torch.nn import functional as F

from wespeaker.losses import build_head

ALPHA, SCALE, MARGIN, C, B = 1.25, 10.0, 0.2, 1000, 4
TOP = C // 20


def solve(theta, q, classes):
    """Return the posterior (C,) of eqs. 9 and 10 over some of the classes."""
    b = ALPHA - 1

    def posterior(tau):
        return q[classes] * np.maximum(0, 1 + b * (theta[classes] - tau)) ** (1 / b)

    tau = brentq(lambda t: posterior(t).sum() - 1, theta.min() - 10 / b, theta.max() + 10 / b, xtol=1e-14)
    p = np.zeros_like(theta)
    p[classes] = posterior(tau)
    return p


def loss_of(p, theta, q, label):
    """Return softmax_f(θ) + D_f(e_y:q) - θ_y, eqs. 4-6, at a posterior."""

    def divergence(p):
        u = p / q
        return (q * (u**ALPHA - 1 - ALPHA * (u - 1))).sum() / (ALPHA * (ALPHA - 1))

    return p @ theta - divergence(p) + divergence(np.eye(C)[label]) - theta[label]


def problem(dim):
    generator = torch.Generator().manual_seed(0)
    weight, embeddings = torch.randn(C, dim, generator=generator), torch.randn(B, dim, generator=generator)
    return weight, embeddings, torch.randint(C, (B,), generator=generator)


def full_and_truncated(weight, embeddings, labels):
    """Return (posteriors (B, C), losses (B,)) over all classes, and over the 5 % with the largest logits."""
    theta = SCALE * (F.normalize(embeddings.double()) @ F.normalize(weight.double()).T).numpy()
    found = []
    for count in (C, TOP):
        p, losses = [], []
        for row, label in zip(theta, labels.tolist(), strict=True):
            q = np.where(np.arange(C) == label, np.exp(-SCALE * MARGIN), 1.0)
            p.append(solve(row, q, np.argsort(-row)[:count]))
            losses.append(loss_of(p[-1], row, q, label))
        found.append((np.array(p), np.array(losses)))
    return found


@pytest.mark.parametrize(
    ("dim", "active_share", "moved", "too_small"), [(128, 0.29, 0.11, 0.02), (512, 0.79, 0.47, 0.14)]
)
def test_size_of_the_error_of_truncation(dim, active_share, moved, too_small):
    """The share of the posterior that goes to the wrong classes, and by how much the loss is too small."""
    (p, losses), (p_top, losses_top) = full_and_truncated(*problem(dim))
    assert (p > 0).mean() == pytest.approx(active_share, rel=0.1)
    assert 0.5 * np.abs(p - p_top).sum(1).mean() == pytest.approx(moved, rel=0.1)
    assert (losses - losses_top).mean() == pytest.approx(too_small, rel=0.2)


@pytest.mark.parametrize("form", ["dense", "stream"])
@pytest.mark.parametrize("dim", [128, 512])
def test_the_head_is_right_there(form, dim):
    weight, embeddings, labels = problem(dim)
    args = {"project_type": "q_margin", "alpha": ALPHA, "scale": SCALE, "margin": MARGIN, "form": form}
    head = build_head(args, embed_dim=dim, num_classes=C)
    head.weight = torch.nn.Parameter(weight)
    out = head(embeddings.requires_grad_(), labels)
    (p, losses), (p_top, losses_top) = full_and_truncated(weight.detach(), embeddings.detach(), labels)
    assert out.path == form
    np.testing.assert_allclose(out.per_sample.detach(), losses, rtol=3e-6)
    assert (np.abs(out.per_sample.detach().numpy() - losses_top) > 0.01).all()
    assert (out.support.numpy() == (p > 0).sum(1)).all()

    mine = torch.autograd.grad(out.loss, (embeddings, head.weight))
    full, truncated = (gradients(x, weight, embeddings, labels) for x in (p, p_top))
    for found, right, wrong in zip(mine, full, truncated, strict=True):
        size = right.abs().max()
        assert (found - right).abs().max() <= 3e-6 * size
        assert (wrong - right).abs().max() > 0.01 * size


def gradients(posterior, weight, embeddings, labels):
    """Return the gradients of embeddings and prototypes, the chain rule on (p - e_y) / B, in float64."""
    leaves = [x.detach().double().requires_grad_() for x in (embeddings, weight)]
    theta = SCALE * F.normalize(leaves[0]) @ F.normalize(leaves[1]).T
    residual = torch.from_numpy(posterior) - F.one_hot(labels, C)
    return torch.autograd.grad((theta * residual).sum() / B, leaves)
