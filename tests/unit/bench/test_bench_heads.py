"""A baseline that is wrong makes a figure worthless, so the baselines are tested as the product is."""

import subprocess
import sys

import pytest
import torch
from baselines import arc_autograd, arc_opt, entmax_loss, paper
from bench_head import FACE, OURS, SPEAKER, Case, goal, inputs
from conftest import ROOT

from wespeaker.losses import build_head


def loss_and_gradients(loss, data):
    weight, embeddings, labels = data
    weight, embeddings = weight.clone().requires_grad_(), embeddings.clone().requires_grad_()
    found = loss(embeddings, weight, labels)
    return found.detach(), *torch.autograd.grad(found, (embeddings, weight))


def assert_same(found, expected):
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=2e-5, atol=2e-6 * other.abs().max().item())


@pytest.mark.parametrize("regime", ["trained", "random"])
def test_the_optimised_arcface_is_arcface(regime):
    data = inputs(regime, 5000, 32, batch=16)
    assert_same(loss_and_gradients(arc_opt, data), loss_and_gradients(arc_autograd, data))


def q_margin(alpha, scale, margin):
    def loss(embeddings, weight, labels):
        args = {"project_type": "q_margin", "alpha": alpha, "scale": scale, "margin": margin, "form": "dense"}
        head = build_head(args, embed_dim=weight.shape[1], num_classes=len(weight))
        del head.weight
        head.weight = weight
        return head(embeddings, labels).loss

    return loss


def test_the_papers_head_is_right_where_few_classes_are_active():
    data = inputs("trained", 5000, 32, batch=16)
    expected = loss_and_gradients(q_margin(1.5, 10.0, 0.1), data)
    assert_same(loss_and_gradients(lambda *d: paper(*d, 1.5, 10.0, 0.1), data), expected)


def test_entmax_is_q_margin_without_margin():
    data = inputs("random", 500, 32, batch=8)
    found = loss_and_gradients(lambda *d: entmax_loss(*d, 1.5, 10.0), data)
    for mine, other in zip(found, loss_and_gradients(q_margin(1.5, 10.0, 0.0), data), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-3 * other.abs().max().item())  # 30 bisections


@pytest.mark.parametrize("variant", OURS)
def test_every_form_of_the_bench_gives_the_same_gradient(variant):
    data = inputs("trained", 5000, 32, batch=16)
    case, dense = Case(variant, data, FACE), Case("dense", data, FACE)
    case(), dense()
    assert case.seen()["support_max"] == dense.seen()["support_max"]
    torch.testing.assert_close(case.weight.grad.to_dense(), dense.weight.grad, rtol=1e-4, atol=1e-7)


def test_goals_are_those_of_the_cases_they_name():
    assert goal("speaker", "stream", "random", SPEAKER[0][0]) == 1.5
    assert goal("face", "entmax", "trained", FACE[0]) == 9.0
    assert goal("face", "entmax", "random", FACE[0]) is None


@pytest.mark.parametrize("script", sorted(path.name for path in (ROOT / "bench").glob("bench_*.py")))
def test_a_bench_says_what_it_does(script):
    done = subprocess.run([sys.executable, ROOT / "bench" / script, "--help"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert f"python bench/{script}" in done.stdout
