"""Margins against trigonometry, and the zero-loss gap against published figures."""

import math

import pytest
import torch
from scipy.optimize import brentq

from wespeaker.losses import angular_margin, cosine_margin, log_prior_margin, zero_loss_gap, zero_loss_margin


def test_cosine_margin_subtracts():
    torch.testing.assert_close(cosine_margin(torch.tensor([0.5, -1.0]), margin=0.2), torch.tensor([0.3, -1.2]))


@pytest.mark.parametrize("margin", [0.0, 0.1, 0.5, 2.0])
def test_angular_margin_adds_to_the_angle(margin):
    angle = torch.linspace(1e-3, math.pi - 1e-3, 500, dtype=torch.float64)
    phi = angular_margin(angle.cos(), margin=margin)
    within = angle + margin < math.pi
    torch.testing.assert_close(phi[within], (angle + margin).cos()[within])
    beyond = angle.cos() - 1 - math.cos(math.pi - margin)
    torch.testing.assert_close(phi[~within], beyond[~within])
    assert (phi.diff() <= 0).all()  # falls with the angle, also across the threshold


def test_angular_margin_has_no_jump_at_its_threshold():
    threshold = math.cos(math.pi - 0.3)
    phi = angular_margin(torch.tensor([threshold - 1e-9, threshold + 1e-9], dtype=torch.float64), margin=0.3)
    torch.testing.assert_close(phi, torch.full_like(phi, -1.0), rtol=0, atol=1e-8)


def test_easy_margin_leaves_obtuse_angles():
    cosine = torch.tensor([0.5, 0.0, -0.5], dtype=torch.float64)
    expected = torch.tensor([math.cos(math.pi / 3 + 0.2), 0.0, -0.5], dtype=torch.float64)
    torch.testing.assert_close(angular_margin(cosine, margin=0.2, easy_margin=True), expected)


@pytest.mark.parametrize("easy_margin", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_angular_margin_is_finite_at_the_poles(easy_margin, dtype):
    step = torch.finfo(dtype).eps
    cosine = torch.tensor([1.0, 1.0 + step, 1.0 - step, -1.0, -1.0 - step, -1.0 + step], dtype=dtype).requires_grad_()
    phi = angular_margin(cosine, margin=0.2, easy_margin=easy_margin)
    assert phi[0].item() == pytest.approx(math.cos(0.2))
    (grad,) = torch.autograd.grad(phi.sum(), cosine)
    assert phi.isfinite().all()
    assert grad.isfinite().all()


def test_angular_margin_gradient():
    cosine = torch.tensor([0.9, 0.1, -0.6, -0.999], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda c: angular_margin(c, margin=0.2), (cosine,))


def test_log_prior_margin_is_minus_scale_times_margin():
    assert log_prior_margin(torch.zeros(2), scale=10.0, margin=0.1).tolist() == [-1.0, -1.0]


@pytest.mark.parametrize(
    ("alpha", "scale", "margin", "published"),
    [
        (1.25, 32, 0.2, 0.62),
        (1.25, 35, 0.2, 0.66),
        (1.25, 20, 0.2, 0.54),
        (1.5, 10, 0.1, 0.33),
        (1.5, 10, 0.2, 0.54),
        (1.75, 5, 0.1, 0.39),
        (2, 5, 0.1, 0.33),
        (1.25, 32, 0.5, 6.8),
        (1, 32, 0.2, math.inf),
    ],
)
def test_zero_loss_gap(alpha, scale, margin, published):
    assert zero_loss_gap(alpha, scale, margin) == pytest.approx(published, abs=0.03)


@pytest.mark.parametrize(("alpha", "scale"), [(1.25, 35.0), (1.5, 10.0), (1.75, 5.0), (2.0, 5.0), (3.0, 2.0)])
@pytest.mark.parametrize("gap", [0.33, 0.6, 1.0, 1.9])
def test_the_margin_of_a_gap_is_the_root_of_the_gap(alpha, scale, gap):
    root = brentq(lambda margin: zero_loss_gap(alpha, scale, margin) - gap, 0.0, 10.0, xtol=1e-14)
    assert zero_loss_margin(alpha, scale, gap) == pytest.approx(root, abs=1e-12)


def test_there_are_gaps_that_no_margin_has():
    with pytest.raises(ValueError, match=r"a gap of 0.19 is below the 0.2 that alpha 1.5 and scale 10 ask for"):
        zero_loss_margin(1.5, 10.0, 0.19)
    with pytest.raises(ValueError, match="with alpha 1 no sample's loss is ever zero"):
        zero_loss_margin(1.0, 32.0, 1.0)
