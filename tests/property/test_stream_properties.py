"""The streaming form against a float64 solve over all classes: any shape, α, scale, margin and order of the classes."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wespeaker.losses import alpha_divergence, build_head, scaled_cosines

FAST = settings(deadline=None, derandomize=True, max_examples=60)
# The classes come in chunks of 1024, then 2048: sizes at, below and above the edges.
sizes = st.one_of(st.integers(1, 40), st.sampled_from([1023, 1024, 1025, 3071, 3072, 3073]), st.integers(41, 3500))


@st.composite
def problems(draw):
    """Draw projection_args, prototypes (C, D), embeddings (B, D), labels, in float64, some of them equal or aligned."""
    alpha = draw(st.one_of(st.sampled_from([1.25, 1.5, 2.0, 3.0]), st.floats(1.02, 3.0)))
    scale = draw(st.floats(0.5, 40.0))
    margin = draw(st.floats(0.0, min(0.6, 8.0 / (scale * (alpha - 1.0)))))  # the loss grows as e^{(α-1) s m}
    args = {"alpha": alpha, "scale": scale, "margin": margin, "screen": draw(st.sampled_from(["none", "bf16"]))}
    num_classes, dim, batch = draw(sizes), draw(st.integers(1, 12)), draw(st.integers(1, 5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    weight = torch.randn(num_classes, dim, generator=generator, dtype=torch.float64)
    labels = torch.randint(num_classes, (batch,), generator=generator)
    embeddings = torch.randn(batch, dim, generator=generator, dtype=torch.float64)
    embeddings = embeddings + draw(st.sampled_from([0.0, 1.0, 30.0])) * weight[labels]
    if draw(st.booleans()):
        weight = weight[torch.randint(num_classes, (num_classes,), generator=generator) // 3]
    return args, weight, embeddings, labels


def streamed(args, weight, embeddings, labels):
    """Return the output and the gradients of embeddings and prototypes, as `in_units` gives them."""
    head = build_head(
        {"project_type": "q_margin", "form": "stream", **args}, embed_dim=weight.shape[1], num_classes=len(weight)
    )
    head.weight = torch.nn.Parameter(weight.clone())
    leaf = embeddings.clone().requires_grad_()
    out = head(leaf, labels)
    return out, *in_units(out.per_sample.sum(), leaf, head.weight, args["scale"])


def solved_in_full(args, weight, embeddings, labels):
    """Return the same by autograd over all classes with a reference measure (B, C), which takes no shortcut."""
    weight, embeddings = weight.clone().requires_grad_(), embeddings.clone().requires_grad_()
    theta = scaled_cosines(embeddings, weight, args["scale"])
    log_q = torch.zeros_like(theta).scatter(1, labels.unsqueeze(1), -args["scale"] * args["margin"])
    found = alpha_divergence(theta, labels, log_q, alpha=args["alpha"])
    return (found, theta), *in_units(found.loss.sum(), embeddings, weight, args["scale"])


def in_units(loss, embeddings, weight, scale):
    """Return the gradients, each row times its length over the scale: posteriors move them by as much as themselves."""
    leaves = embeddings, weight
    grads = torch.autograd.grad(loss, leaves)
    return [(g * x.detach().norm(dim=1, keepdim=True) / scale).double() for g, x in zip(grads, leaves, strict=True)]


def assert_near(mine, theirs, *, tolerance):
    """Compare relative to the largest entry, or to 1."""
    assert (mine - theirs).abs().max() <= tolerance * max(1.0, theirs.abs().max().item())


def tolerance_of(args):
    """Above α = 2 the posterior is a root of a class's distance from the threshold: half of the digits."""
    return 1e-10 if args["alpha"] <= 2.0 else 1e-6


@FAST
@given(problems())
def test_equals_the_full_solve(problem):
    args, weight, _, labels = problem
    found, *mine = streamed(*problem)
    (full, theta), *theirs = solved_in_full(*problem)
    assert_near(found.per_sample, full.loss, tolerance=1e-10)
    for a, b in zip(mine, theirs, strict=True):
        assert_near(a, b, tolerance=tolerance_of(args))
    threshold = full.tau - 1.0 / (args["alpha"] - 1.0)
    surely, maybe = (full.posterior > 1e-9).sum(1), (theta > threshold.unsqueeze(1) - 1e-9).sum(1)
    assert (surely <= found.support).all()
    assert (found.support <= maybe).all()
    assert found.scanned <= len(weight) * len(labels)


@FAST
@given(problems(), st.integers(0, 2**31))
def test_order_of_classes_and_rows_does_not_matter(problem, seed):
    args, weight, embeddings, labels = problem
    generator = torch.Generator().manual_seed(seed)
    classes, rows = (torch.randperm(len(x), generator=generator) for x in (weight, labels))
    before, of_embeddings, of_weight = streamed(*problem)
    after = streamed(args, weight[classes], embeddings[rows], classes.argsort()[labels[rows]])
    assert_near(after[0].per_sample, before.per_sample[rows], tolerance=1e-10)
    assert_near(after[1], of_embeddings[rows], tolerance=tolerance_of(args))
    assert_near(after[2], of_weight[classes], tolerance=tolerance_of(args))


@FAST
@given(problems())
def test_float32_is_near_the_full_solve_in_float64(problem):
    args, weight, embeddings, labels = problem
    found, *mine = streamed(args, weight.float(), embeddings.float(), labels)
    (full, _), *theirs = solved_in_full(args, weight.float().double(), embeddings.float().double(), labels)
    rounding = 3e-6 * (1.0 + args["scale"])  # of the logits; the loss moves by no more than twice as much
    torch.testing.assert_close(found.per_sample.double(), full.loss, rtol=3e-6, atol=rounding)
    if args["alpha"] <= 2.0:
        for a, b in zip(mine, theirs, strict=True):
            assert_near(a, b, tolerance=rounding)
