"""Heads against losses written with dense one-hot tensors on torch's cross-entropy and entmax."""

import itertools
import math

import entmax
import pytest
import torch
from torch.nn import functional as F

from wespeaker.losses import PROJECT_TYPES, MarginHead, build_head, scaled_cosines, validate_projection_args

D, C, B = 8, 40, 6
TYPES = sorted(PROJECT_TYPES)


def make(project_type, *, num_classes=C, dtype=torch.float64, **args):
    torch.manual_seed(0)
    return build_head({"project_type": project_type, **args}, embed_dim=D, num_classes=num_classes).to(dtype)


def batch(*, num_classes=C, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    embeddings = torch.randn(B, D, generator=generator, dtype=torch.float64).to(dtype)
    return embeddings, torch.randint(num_classes, (B,), generator=generator)


def dense_logits(head, embeddings, labels, *, shift):
    """Return logits with the margin put in by a one-hot mask, as the classical code does."""
    cosine = F.normalize(embeddings) @ F.normalize(head.weight).T
    return head.scale * torch.where(F.one_hot(labels, C).bool(), shift(cosine), cosine)


def angle(margin):
    return lambda cosine: (cosine.acos() + margin).cos()


@pytest.mark.parametrize(
    ("project_type", "args", "shift", "oracle"),
    [
        ("add_margin", {}, lambda c: c - 0.2, F.cross_entropy),
        ("arc_margin", {}, angle(0.2), F.cross_entropy),
        ("q_margin", {"alpha": 1, "scale": 32, "margin": 0.2}, lambda c: c - 0.2, F.cross_entropy),
        ("q_margin", {"margin": 0}, lambda c: c, lambda x, y, **_: entmax.entmax_bisect_loss(x, y, 1.5)),
        ("entmax", {}, angle(0.1), lambda x, y, **_: entmax.entmax_bisect_loss(x, y, 1.75)),
        ("sparsemax", {}, angle(0.1), lambda x, y, **_: entmax.sparsemax_loss(x, y)),
    ],
    ids=["add_margin", "arc_margin", "q_margin-alpha-1", "q_margin-no-margin", "entmax", "sparsemax"],
)
def test_equals_the_loss_with_dense_one_hot(project_type, args, shift, oracle):
    head, (embeddings, labels) = make(project_type, **args), batch()
    embeddings.requires_grad_()
    expected = oracle(dense_logits(head, embeddings, labels, shift=shift), labels, reduction="none")
    found = head(embeddings, labels)
    torch.testing.assert_close(found.per_sample, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.loss, expected.mean(), rtol=1e-9, atol=1e-9)
    wanted = [embeddings, head.weight]
    theirs = torch.autograd.grad(expected.mean(), wanted)
    for mine, reference in zip(torch.autograd.grad(found.loss, wanted), theirs, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-7, atol=1e-9)


def test_softmax_is_a_linear_layer_and_cross_entropy():
    head, (embeddings, labels) = make("softmax"), batch()
    logits = F.linear(embeddings, head.weight, head.bias)
    found = head(embeddings, labels)
    torch.testing.assert_close(found.per_sample, F.cross_entropy(logits, labels, reduction="none"))
    assert torch.equal(found.correct, logits.argmax(1) == labels)
    head.update(0.2)
    assert torch.equal(head(embeddings, labels).loss, found.loss)


@pytest.mark.parametrize("project_type", TYPES)
def test_output_of_every_head(project_type):
    head, (embeddings, labels) = make(project_type, dtype=torch.float32), batch(dtype=torch.float32)
    found = head(embeddings, labels)
    assert found.loss.shape == ()
    assert (found.per_sample.shape, found.correct.shape, found.support.shape) == ((B,), (B,), (B,))
    assert (found.correct.dtype, found.support.dtype) == (torch.bool, torch.int64)
    assert (found.per_sample >= 0).all()
    assert (found.target_posterior.shape, found.target_posterior.requires_grad) == ((B,), False)
    sparse = project_type in ("q_margin", "entmax", "sparsemax", "a3m")
    assert (found.support < C).any() if sparse else (found.support == C).all()
    found.loss.backward()
    assert all(p.grad.isfinite().all() for p in head.parameters())
    assert {"weight"} <= {name for name, _ in head.named_parameters()} <= {"weight", "bias"}
    assert head.weight.shape == (C * getattr(head, "sub_centers", 1), D)


@pytest.mark.parametrize("project_type", TYPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_poles_are_finite(project_type, dtype):
    """Embeddings equal and opposite to their prototype, and zero; a prototype of zero."""
    head = make(project_type, dtype=torch.float32)
    with torch.no_grad():
        head.weight[3] = 0.0
    w = head.weight.detach()
    rows = torch.stack([w[0], -w[1], 3.0 * w[2], torch.zeros(D), w[3], 1e-20 * w[4]])
    embeddings = rows.to(dtype).requires_grad_()
    found = head(embeddings, torch.tensor([0, 1, 2, 0, 3, 4]))
    found.loss.backward()
    assert found.per_sample.isfinite().all()
    assert embeddings.grad.isfinite().all()
    assert head.weight.grad.isfinite().all()
    if project_type != "softmax":
        assert not embeddings.grad[3].any()  # no direction, no gradient (and not one of 1e12)


@pytest.mark.parametrize("project_type", ["add_margin", "arc_margin", "q_margin", "entmax", "sparsemax"])
def test_update_sets_the_margin_and_a_larger_margin_costs_more(project_type):
    head, (embeddings, labels) = make(project_type), batch()
    losses = []
    for margin in (0.0, 0.05, 0.2, 0.4):
        head.update(margin=margin)
        assert head.margin == margin
        losses.append(head(embeddings, labels).per_sample)
    for smaller, larger in itertools.pairwise(losses):
        assert (larger > smaller).all()
    with pytest.raises(ValueError, match="margin must be"):
        head.update(-0.1)


def test_correct_has_no_margin_in_it():
    head = make("add_margin", margin=0.5)
    embeddings = head.weight[:3].detach() + 1e-3
    assert head(embeddings, torch.tensor([0, 1, 5])).correct.tolist() == [True, True, False]


def test_scaled_cosines():
    torch.manual_seed(0)
    embeddings, prototypes = torch.randn(3, 5, dtype=torch.float64), torch.randn(7, 5, dtype=torch.float64)
    expected = 9.0 * F.cosine_similarity(embeddings.unsqueeze(1), prototypes.unsqueeze(0), dim=2)
    torch.testing.assert_close(scaled_cosines(embeddings, prototypes, 9.0), expected)
    inputs = embeddings.requires_grad_(), prototypes.requires_grad_()
    assert torch.autograd.gradcheck(lambda e, w: scaled_cosines(e, w, 9.0), inputs)


def test_weight_starts_as_in_wespeaker():
    """Uniform in ±sqrt(6 / (C + D)), the bound of torch's xavier_uniform_, whatever the number of classes at once."""
    head = build_head({"project_type": "softmax"}, embed_dim=64, num_classes=3000)
    bound = torch.nn.init.xavier_uniform_(torch.empty(3000, 64)).abs().max()
    assert head.weight.abs().max().item() == pytest.approx(bound.item(), rel=1e-3)
    assert head.weight.std().item() == pytest.approx(bound.item() / math.sqrt(3), rel=0.01)
    assert abs(head.weight.mean().item()) < 0.01 * bound
    assert abs(torch.corrcoef(head.weight[:20]).fill_diagonal_(0)).max() < 0.6


def test_a_few_steps_of_sgd_separate_classes():
    head, (embeddings, labels) = make("q_margin", dtype=torch.float32), batch(dtype=torch.float32)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.5)
    for _ in range(60):
        optimizer.zero_grad()
        head(embeddings, labels).loss.backward()
        optimizer.step()
    found = head(embeddings, labels)
    assert found.correct.all()
    assert found.loss < 0.05


# ---- projection_args ----


def test_defaults_are_the_speaker_settings():
    assert validate_projection_args({"project_type": "q_margin"}) == {
        "project_type": "q_margin",
        "alpha": 1.5,
        "scale": 10.0,
        "margin": 0.1,
        "form": "auto",
        "screen": "auto",
        "weight_grad": "dense",
    }
    head = build_head({"project_type": "sparsemax"}, embed_dim=4, num_classes=3)
    assert isinstance(head, MarginHead)
    assert (head.alpha, head.scale, head.margin, head.easy_margin) == (2.0, 5.0, 0.1, False)


def test_given_values_stay():
    args = {"project_type": "arc_margin", "scale": 30, "margin": 0, "easy_margin": True, "form": "dense"}
    args |= {"gradient": "straight_through", "sample_rate": 0.5}
    assert validate_projection_args(args) == args
    assert args["scale"] == 30


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ({}, "project_type is missing; valid names: softmax, add_margin"),
        ({"project_type": "q_margn"}, r"project_type 'q_margn' is not known; did you mean 'q_margin'"),
        ({"project_type": "q_margin", "scal": 3}, "'scal' is not a key of q_margin; did you mean 'scale'"),
        ({"project_type": "arc_margin", "alpha": 1.5}, "'alpha' has no meaning for arc_margin, whose alpha is 1;"),
        ({"project_type": "sparsemax", "alpha": 1.5}, "sparsemax, whose alpha is 2; it is a key of q_margin, entmax"),
        ({"project_type": "softmax", "scale": 3}, "'scale' has no meaning for softmax"),
        ({"project_type": "q_margin", "easy_margin": True}, "'easy_margin' has no meaning for q_margin"),
        ({"project_type": "q_margin", "alpha": 0.9}, "alpha must be at least 1; found 0.9"),
        ({"project_type": "q_margin", "scale": 0}, "scale must be above 0; found 0"),
        ({"project_type": "q_margin", "margin": -0.1}, "margin must be at least 0; found -0.1"),
        ({"project_type": "arc_margin", "margin": 4}, r"margin must be an angle in \[0, π\) radians; found 4"),
        ({"project_type": "q_margin", "margin": math.nan}, "margin must be finite; found nan"),
        ({"project_type": "q_margin", "margin": "1e-1"}, r"margin must be a number; found '1e-1' \(write 1.0e-4"),
        ({"project_type": "q_margin", "scale": True}, "scale must be a number; found True"),
        ({"project_type": "arc_margin", "easy_margin": 1}, "easy_margin must be true or false; found 1"),
        ({"project_type": "q_margin", "form": "steam"}, "form 'steam' is not known; valid are auto, dense, stream"),
        ({"project_type": "q_margin", "form": ["dense"]}, "form .'dense'. is not known"),
        ({"project_type": "q_margin", "screen": "int8"}, "screen 'int8' is not known; valid are auto, none, bf16"),
        (
            {"project_type": "arc_margin", "screen": "bf16"},
            "'screen' has no meaning for arc_margin; it is a key of q_m",
        ),
        ({"project_type": "q_margin", "scale": 0, "alpha": 0}, "scale must be above 0; found 0; alpha must be"),
    ],
)
def test_wrong_arguments_are_a_sentence(args, sentence):
    with pytest.raises(ValueError, match="projection_args: .*" + sentence):
        validate_projection_args(args)
    with pytest.raises(ValueError, match=sentence):
        build_head(args, embed_dim=4, num_classes=3)


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"embeddings must be \(B, 8\); found \(2, 9\)"):
        make("q_margin")(torch.zeros(2, 9), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="embed_dim and num_classes of at least 1; found 8 and 0"):
        build_head({"project_type": "q_margin"}, embed_dim=8, num_classes=0)
