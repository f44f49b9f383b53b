"""The streaming form against the dense one, entmax and mpmath, on easy and on adversarial classes."""

import math

import entmax
import mpmath
import pytest
import torch
from torch.nn import functional as F

from wespeaker.losses import (
    MarginHead,
    Shards,
    alpha_divergence,
    build_head,
    scaled_cosines,
    validate_projection_args,
)
from wespeaker.losses.stream import stream_divergence

ALPHAS = [1.05, 1.25, 4 / 3, 1.5, 1.75, 2.0, 3.0]
SCALES = {1.05: 32.0, 1.25: 32.0, 4 / 3: 16.0, 1.5: 10.0, 1.75: 5.0, 2.0: 5.0, 3.0: 3.0}
REGIMES = ["trained", "random", "collapsed", "duplicates"]


def problem(regime, *, num_classes, dim=16, batch=6, seed=0):
    """Return prototypes (C, D), embeddings (B, D) and labels (B,), in float32."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(num_classes, dim, generator=generator)
    labels = torch.randint(num_classes, (batch,), generator=generator)
    embeddings = torch.randn(batch, dim, generator=generator)
    if regime == "trained":
        embeddings = weight[labels] + 0.5 * embeddings
    elif regime == "collapsed":  # all cosines equal: every class is active
        weight, embeddings = weight[:1].repeat(num_classes, 1), embeddings[:1].repeat(batch, 1)
    elif regime == "duplicates":
        labels = labels[:1].repeat(batch)
        weight[num_classes // 2 :] = weight[: num_classes - num_classes // 2].clone()
    return weight, embeddings, labels


def make(weight, *, place="log_prior", alpha=1.5, margin=0.1, scale=None, form="stream", **options):
    num_classes, dim = weight.shape
    scale = SCALES[alpha] if scale is None else scale
    head = MarginHead(
        Shards(num_classes), dim, place=place, alpha=alpha, scale=scale, margin=margin, form=form, **options
    ).to(weight.dtype)  # fmt: skip
    with torch.no_grad():
        head.weight.copy_(weight)
    return head


def step(head, embeddings, labels):
    """Return the output, and the gradients of embeddings and weight."""
    embeddings = embeddings.clone().requires_grad_()
    found = head(embeddings, labels)
    found.loss.backward()
    grad = head.weight.grad
    return found, embeddings.grad, grad.to_dense() if grad.is_sparse else grad


def assert_equal_steps(mine, reference, scales, *, tolerance=3e-6):
    """Compare losses, and gradients relative to their largest entry or to what a wrong posterior would move.

    Where p is nearly e_y, or all prototypes point where the embedding does, the terms of a gradient cancel, and
    no float32 form holds 3e-6 of what is left.
    """
    for name in ("loss", "per_sample"):
        a, b = getattr(mine[0], name), getattr(reference[0], name).to(getattr(mine[0], name).dtype)
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
    for a, b, scale in zip(mine[1:], reference[1:], scales, strict=True):
        assert ((a - b).abs().max() / max(b.abs().max().item(), scale)).item() <= tolerance


def compare(weight, embeddings, labels, *, screen="none", tolerance=3e-6, **options):
    """Take a step of the streaming form in float32 and of the dense one in float64; compare; return the outputs."""
    head = make(weight, screen=screen, **options)
    mine = step(head, embeddings, labels)
    reference = step(make(weight.double(), form="dense", **options), embeddings.double(), labels)
    scales = [head.scale / len(labels) / x.norm(dim=1).mean().item() for x in (embeddings, weight)]
    assert_equal_steps(mine, reference, scales, tolerance=tolerance)
    assert (mine[0].path, reference[0].path) == ("stream", "dense")
    assert mine[0].scanned <= len(weight) * len(labels)
    return mine[0], reference[0]


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("num_classes", [1, 2, 7, 60, 1000])
def test_equals_the_dense_form(alpha, regime, num_classes):
    weight, embeddings, labels = problem(regime, num_classes=num_classes)
    for place in ("log_prior", "angle"):
        # For α = 3, p = sqrt(x): rounding a logit by 1e-7 among a thousand equal ones moves p by 3e-4 of itself.
        tolerance = 1e-4 if alpha > 2.0 and regime == "collapsed" else 3e-6
        mine, reference = compare(weight, embeddings, labels, place=place, alpha=alpha, tolerance=tolerance)
        if regime in ("trained", "random"):  # where all are equal, rounding decides who is first
            assert torch.equal(mine.correct, reference.correct)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("regime", ["trained", "random", "duplicates"])
def test_equals_the_dense_form_with_many_classes(alpha, regime):
    weight, embeddings, labels = problem(regime, num_classes=100_000, dim=16)
    for screen in ("none", "bf16"):
        mine, reference = compare(weight, embeddings, labels, alpha=alpha, screen=screen)
        assert torch.equal(mine.support, reference.support)
        assert torch.equal(mine.correct, reference.correct)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_equals_the_dense_form_with_many_equal_classes(alpha):
    weight, embeddings, labels = problem("collapsed", num_classes=100_000, dim=8, batch=2)
    mine, reference = compare(weight, embeddings, labels, alpha=alpha, tolerance=1e-4 if alpha > 2.0 else 3e-6)
    assert torch.equal(mine.support, reference.support)
    assert (mine.support >= 99_999).all()  # with its small q the label's own posterior may be 0


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("screen", ["none", "bf16"])
def test_active_classes_are_those_of_a_full_float64_solve(alpha, screen):
    """The rows of the sparse gradient of one sample are the support and the label."""
    weight, embeddings, labels = problem("random", num_classes=9000, dim=64)
    theta = scaled_cosines(embeddings.double(), weight.double(), SCALES[alpha])
    log_q = torch.full((len(labels),), -0.1 * SCALES[alpha], dtype=torch.float64)
    posterior = alpha_divergence(theta, labels, log_q, alpha=alpha).posterior
    head = make(weight, alpha=alpha, screen=screen, weight_grad="sparse")
    for i, label in enumerate(labels.tolist()):
        head.zero_grad()
        found = head(embeddings[i : i + 1], labels[i : i + 1])
        found.loss.backward()
        assert head.weight.grad.is_sparse
        assert (head.weight.grad._indices().diff() > 0).all()  # autograd drops the flag; coalesced it is
        rows = set(head.weight.grad._indices()[0].tolist())
        active, large = ({*(posterior[i] > x).nonzero().flatten().tolist(), label} for x in (0.0, 1e-30))
        assert large <= rows <= active  # a gradient of 1e-46 is 0 in float32
        assert found.support.item() == (posterior[i] > 0.0).sum()


@pytest.mark.parametrize("alpha", [1.25, 1.5, 2.0])
def test_equals_entmax_without_a_prior(alpha):
    weight, embeddings, labels = problem("random", num_classes=5000)
    embeddings = embeddings.double().requires_grad_()
    head = make(weight.double(), alpha=alpha, margin=0.0)
    found = head(embeddings, labels)
    theta = SCALES[alpha] * F.normalize(embeddings) @ F.normalize(head.weight).T
    expected = entmax.entmax_bisect_loss(theta, labels, alpha, n_iter=100)
    torch.testing.assert_close(found.per_sample, expected, rtol=1e-9, atol=1e-9)
    wanted = [embeddings, head.weight]
    theirs = torch.autograd.grad(expected.mean(), wanted)
    for mine, reference in zip(torch.autograd.grad(found.loss, wanted), theirs, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("alpha", [1.25, 1.5, 1.75, 2.0, 3.0])
def test_equals_the_paper_s_equations_in_forty_digits(alpha):
    """Eqs. 5, 9 and 10 by bisection in mpmath, with every constant that the code cancels."""
    weight, embeddings, labels = problem("random", num_classes=600, batch=1)
    scale, margin = SCALES[alpha], 0.2
    found = make(weight.double(), alpha=alpha, margin=margin)(embeddings.double(), labels)
    cosine = scaled_cosines(embeddings.double(), weight.double(), 1.0)[0]
    with mpmath.workdps(40):
        b = mpmath.mpf(alpha) - 1
        theta = [scale * mpmath.mpf(c) for c in cosine.tolist()]
        label = int(labels)
        q_y = mpmath.exp(-mpmath.mpf(scale) * mpmath.mpf(margin))

        def posterior(tau):
            return [
                (q_y if j == label else 1) * (1 + b * (t - tau)) ** (1 / b)
                for j, t in enumerate(theta)
                if 1 + b * (t - tau) > 0
            ]

        low, high = min(theta) - 1 / b, max(theta) + 3000 / b
        for _ in range(110):
            middle = (low + high) / 2
            low, high = (middle, high) if sum(posterior(middle)) >= 1 else (low, middle)
        tau = (low + high) / 2

        def f(p, q):  # q f(p/q), the α-divergence's generator, f(u) = (u^α - αu + α - 1) / (α (α - 1))
            u = p / q
            return q * (u ** (b + 1) - (b + 1) * u + b) / ((b + 1) * b)

        p = [(q_y if j == label else 1) * max(mpmath.mpf(0), 1 + b * (t - tau)) ** (1 / b) for j, t in enumerate(theta)]
        q = [q_y if j == label else mpmath.mpf(1) for j in range(len(theta))]
        conjugate = sum(pj * t for pj, t in zip(p, theta, strict=True)) - sum(map(f, p, q))
        divergence = sum(f(mpmath.mpf(j == label), q[j]) for j in range(len(theta)))
        expected = float(conjugate + divergence - theta[label])
    assert found.per_sample.item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("place", ["log_prior", "angle"])
@pytest.mark.parametrize("alpha", [1.05, 1.25, 1.5, 1.75, 2.0, 3.0])
def test_gradcheck(place, alpha):
    weight, embeddings, labels = problem("random", num_classes=20, dim=2, batch=3)
    head = make(weight.double(), place=place, alpha=alpha, scale=4.0)

    def loss(embeddings, weight):
        found = stream_divergence(embeddings, weight, labels, head._place_margin, alpha=alpha, scale=4.0)
        return found.loss

    inputs = embeddings.double().requires_grad_(), weight.double().requires_grad_()
    assert torch.autograd.gradcheck(loss, inputs)


def test_classes_in_the_worst_order():
    """Classes sorted from far to near: every threshold of the early chunks is too low."""
    weight, embeddings, labels = problem("random", num_classes=12_000, dim=32, batch=4)
    order = scaled_cosines(embeddings[:1], weight, 1.0)[0].argsort()
    weight, labels = weight[order], order.argsort()[labels]
    for screen in ("none", "bf16"):
        mine, _ = compare(weight, embeddings, labels, alpha=1.25, screen=screen)
        assert mine.scanned > 4 * int(mine.support.sum())


# ---- what can go wrong in the inputs ----


@pytest.mark.parametrize("screen", ["none", "bf16"])
def test_a_nan_embedding_is_seen_in_its_row_only(screen):
    weight, embeddings, labels = problem("random", num_classes=5000)
    embeddings[2, 0] = math.nan
    found, grad, _ = step(make(weight, screen=screen), embeddings, labels)
    assert found.per_sample.isnan().tolist() == [i == 2 for i in range(6)]
    assert grad.isnan().any(1).tolist() == [i == 2 for i in range(6)]
    assert not found.correct[2]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_prototype_is_seen_in_every_row(bad):
    weight, embeddings, labels = problem("random", num_classes=5000)
    weight[4321, 3] = bad
    found, grad, _ = step(make(weight), embeddings, labels)
    assert found.per_sample.isnan().all()
    assert grad.isnan().any(1).all()


@pytest.mark.parametrize("screen", ["none", "bf16"])
def test_zero_embedding_and_zero_prototype(screen):
    weight, embeddings, labels = problem("random", num_classes=5000)
    embeddings[1] = 0.0
    weight[labels[0]] = 0.0
    weight[17] = 0.0
    compare(weight, embeddings, labels, alpha=1.25, screen=screen)
    assert not step(make(weight, alpha=1.25, screen=screen), embeddings, labels)[1][1].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("screen", ["none", "bf16"])
def test_coarse_inputs_are_widened_and_gradients_come_back_in_their_dtype(dtype, screen):
    weight, embeddings, labels = problem("random", num_classes=5000)
    weight, embeddings = weight.to(dtype), embeddings.to(dtype)
    found, grad, grad_weight = step(make(weight, screen=screen), embeddings, labels)
    reference = step(make(weight.float(), form="dense"), embeddings.float(), labels)
    assert (found.loss.dtype, grad.dtype, grad_weight.dtype) == (torch.float32, dtype, dtype)
    torch.testing.assert_close(found.per_sample, reference[0].per_sample, rtol=3e-6, atol=3e-6)
    torch.testing.assert_close(grad, reference[1].to(dtype))
    torch.testing.assert_close(grad_weight, reference[2].to(dtype))


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("regime", ["trained", "random"])
def test_one_sample(alpha, regime):
    weight, embeddings, labels = problem(regime, num_classes=5000, batch=1)
    compare(weight, embeddings, labels, alpha=alpha)


def test_sparse_and_dense_weight_gradients_are_equal():
    weight, embeddings, labels = problem("duplicates", num_classes=5000)
    dense = step(make(weight, weight_grad="dense"), embeddings, labels)
    sparse = step(make(weight, weight_grad="sparse"), embeddings, labels)
    assert all(torch.equal(a, b) for a, b in zip(dense[1:], sparse[1:], strict=True))


def test_frozen_prototypes_and_frozen_embeddings():
    weight, embeddings, labels = problem("random", num_classes=5000)
    _, grad, grad_weight = step(make(weight), embeddings, labels)
    head = make(weight)
    head(embeddings, labels).loss.backward()
    assert torch.equal(head.weight.grad, grad_weight)
    head = make(weight).requires_grad_(False)
    leaf = embeddings.clone().requires_grad_()
    head(leaf, labels).loss.backward()
    assert torch.equal(leaf.grad, grad)


def test_correct_is_the_argmax_of_the_cosines_and_the_first_of_equals():
    weight, embeddings, labels = problem("trained", num_classes=5000, dim=4, batch=64)
    expected = scaled_cosines(embeddings, weight, 1.0).argmax(1) == labels
    assert 0 < expected.sum() < 64
    for place in ("log_prior", "angle"):
        head = make(weight, place=place, margin=0.3)
        assert torch.equal(head(embeddings, labels).correct, expected)
    weight[3000:4000] = weight[1]
    found = make(weight)(weight[[1, 1, 1]], torch.tensor([1, 3500, 2]))
    assert found.correct.tolist() == [True, False, False]


# ---- which form is taken ----


@pytest.mark.parametrize(
    ("args", "num_classes", "dim", "path"),
    [
        ({"alpha": 1.5, "scale": 10}, 9000, 64, "stream"),
        ({"alpha": 1.25, "scale": 4}, 9000, 64, "dense"),  # found out after two chunks
        ({"alpha": 1.5, "scale": 10}, 600, 64, "dense"),  # few classes
        ({"alpha": 1.01, "scale": 32}, 9000, 64, "dense"),  # nearly KL
        ({"alpha": 1, "scale": 32}, 9000, 64, "dense"),
    ],
)
def test_auto_takes_the_form_that_the_sparsity_calls_for(args, num_classes, dim, path):
    weight, embeddings, labels = problem("random", num_classes=num_classes, dim=dim)
    heads = [
        build_head({"project_type": "q_margin", **args, "form": form}, embed_dim=dim, num_classes=num_classes)
        for form in ("auto", "dense")
    ]
    for head in heads:
        with torch.no_grad():
            head.weight.copy_(weight)
    mine, reference = (step(head, embeddings, labels) for head in heads)
    assert (mine[0].path, reference[0].path) == (path, "dense")
    assert_equal_steps(mine, reference, (1e-3, 1e-3))


def test_the_screen_is_used_where_it_pays():
    """Where a third of the classes would survive each chunk's product is cheaper than the gathers."""
    weight, embeddings, labels = problem("random", num_classes=20_000, dim=64)
    options = {"scale": 32.0, "screen": "bf16"}
    place = make(weight, alpha=1.25)._place_margin
    assert stream_divergence(embeddings, weight, labels, place, alpha=1.1, **options).screened == 0
    assert stream_divergence(embeddings, weight, labels, place, alpha=2.0, **options).screened == 20_000 - 1024


@pytest.mark.parametrize(("capability", "screened"), [("avx512_bf16", True), ("amx_bf16", True), ("avx2", False)])
def test_auto_screens_where_the_cpu_multiplies_bfloat16(monkeypatch, capability, screened):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {capability: True}, raising=False)
    weight, embeddings, labels = problem("random", num_classes=20_000, dim=64)
    found = stream_divergence(embeddings, weight, labels, make(weight)._place_margin, alpha=2.0, scale=32.0)
    assert (found.screened > 0) == screened


def test_wrong_options_are_a_sentence():
    weight, embeddings, labels = problem("random", num_classes=7)
    place = make(weight)._place_margin
    with pytest.raises(ValueError, match=r"needs alpha above 1, where posteriors are sparse; found 1.0"):
        stream_divergence(embeddings, weight, labels, place, alpha=1.0, scale=10.0)
    with pytest.raises(
        ValueError, match="screen is one of auto, none, bf16, weight_grad dense or sparse; found int8 and dense"
    ):
        stream_divergence(embeddings, weight, labels, place, alpha=1.5, scale=10.0, screen="int8")
    with pytest.raises(ValueError, match="form 'stream' needs alpha above 1; q_margin has alpha 1"):
        validate_projection_args({"project_type": "q_margin", "alpha": 1, "form": "stream"})
    with pytest.raises(ValueError, match="form 'stream' needs alpha above 1; arc_margin has alpha 1"):
        validate_projection_args({"project_type": "arc_margin", "form": "stream"})
