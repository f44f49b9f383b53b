"""Every margin beyond the classic three, against logits written out in scalar arithmetic, and torch's own losses."""

import copy
import math

import entmax
import pytest
import torch
from torch.nn import functional as F

from wespeaker.losses import (
    PROJECT_TYPES,
    Shards,
    alpha_divergence_loss,
    angular_margin,
    build_head,
    multiplicative_margin,
    validate_projection_args,
)
from wespeaker.losses.divergence import at_label
from wespeaker.losses.shards import RankRows

D, C, B = 6, 9, 12
TYPES = sorted(PROJECT_TYPES)
ADAPTIVE = sorted(name for name, kind in PROJECT_TYPES.items() if "place" in kind.defaults)
KL = {"reduction": "none"}


def make(project_type, *, num_classes=C, dtype=torch.float64, **args):
    torch.manual_seed(0)
    return build_head({"project_type": project_type, **args}, embed_dim=D, num_classes=num_classes).to(dtype)


def batch(seed=1, *, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    length = torch.linspace(0.2, 60.0, B, dtype=torch.float64).unsqueeze(1)
    embeddings = F.normalize(torch.randn(B, D, generator=generator, dtype=torch.float64)) * length
    return embeddings.to(dtype), torch.randint(C, (B,), generator=generator)


def cosines_of(head, embeddings):
    return F.normalize(embeddings) @ F.normalize(head.weight.detach()).T


def logits_of(head, embeddings, labels, *, target=None, negative=lambda c, c_y: c):
    """Return scaled logits (B, C), each entry by a function of numbers: target(c_y, z, i), negative(c_j, c_y)."""
    rows = []
    cosines, lengths = cosines_of(head, embeddings).tolist(), embeddings.norm(dim=1).tolist()
    for i, (row, z, y) in enumerate(zip(cosines, lengths, labels.tolist(), strict=True)):
        rows.append([target(row[y], z, i) if j == y else negative(c, row[y]) for j, c in enumerate(row)])
    return head.scale * torch.tensor(rows, dtype=torch.float64)


def turn(c, m):
    """Return cos(angle + m), and what continues it where the angle would exceed π."""
    angle = math.acos(c) + m
    return math.cos(angle) if angle <= math.pi else c - 1 + math.cos(m)


def quality(z, mean, std, h=0.333):
    return min(1.0, max(-1.0, h * (min(z, 100.0) - mean) / (std + 1e-3)))


def adaface(c, z, mean, std, m=0.4):
    angle = math.acos(min(1 - 1e-3, max(-1 + 1e-3, c))) - m * quality(z, mean, std)
    return math.cos(min(math.pi - 1e-4, max(1e-4, angle))) - (m + m * quality(z, mean, std))


def magnitude(z):
    return 0.45 + (0.8 - 0.45) * (min(110.0, max(10.0, z)) - 10.0) / 100.0


# ---- each loss ----


@pytest.mark.parametrize("alpha", [1.0, 1.5])
def test_adaface(alpha):
    head, (embeddings, labels) = make("ada_margin", alpha=alpha, scale=8).eval(), batch()
    head.adapt.mean.fill_(30.0)
    head.adapt.std.fill_(5.0)
    logits = logits_of(head, embeddings, labels, target=lambda c, z, i: adaface(c, z, 30.0, 5.0))
    expected = F.cross_entropy(logits, labels, **KL) if alpha == 1 else entmax.entmax_bisect_loss(logits, labels, alpha)
    torch.testing.assert_close(head(embeddings, labels).per_sample, expected, rtol=1e-9, atol=1e-9)


def test_adaface_follows_the_norms():
    head = make("ada_margin", t_alpha=0.25)
    mean, std = 20.0, 100.0
    for seed in range(3):
        embeddings, labels = batch(seed)
        embeddings = embeddings * (1 + seed)
        z = embeddings.norm(dim=1).clamp(1e-3, 100.0)
        mean, std = 0.75 * mean + 0.25 * z.mean().item(), 0.75 * std + 0.25 * z.std().item()
        logits = logits_of(head, embeddings, labels, target=lambda c, z, i, a=mean, b=std: adaface(c, z, a, b))
        found = head(embeddings, labels).per_sample
        torch.testing.assert_close(found, F.cross_entropy(logits, labels, **KL), rtol=1e-9, atol=1e-9)
    assert (head.adapt.mean.item(), head.adapt.std.item()) == pytest.approx((mean, std))
    head(embeddings[:1], labels[:1])  # one sample has no spread
    assert head.adapt.std.item() == pytest.approx(std)
    head(torch.full((2, D), math.nan, dtype=torch.float64), labels[:2])
    assert head.adapt.mean.isfinite()


def test_adaface_is_arcface_for_the_worst_and_cosface_for_average_samples():
    head, (embeddings, labels) = make("ada_margin", margin=0.3, scale=10).eval(), batch()
    head.adapt.mean.fill_(1e6)
    head.adapt.std.fill_(1.0)
    arc = make("arc_margin", margin=0.3, scale=10)
    inside = cosines_of(head, embeddings).gather(1, labels.unsqueeze(1)).squeeze(1).acos() + 0.3 < math.pi - 0.01
    found, expected = head(embeddings, labels).per_sample, arc(embeddings, labels).per_sample
    torch.testing.assert_close(found[inside], expected[inside])
    head.adapt.std.fill_(1e12)
    cos = make("add_margin", margin=0.3, scale=10)
    torch.testing.assert_close(
        head(embeddings, labels).per_sample, cos(embeddings, labels).per_sample, rtol=1e-5, atol=1e-5
    )


def test_magface():
    head, (embeddings, labels) = make("mag_margin"), batch()
    embeddings = 2.5 * embeddings  # norms on both sides of [10, 110]
    logits = logits_of(
        head, embeddings, labels, target=lambda c, z, i: math.cos(math.acos(c) + magnitude(z)) if c > 0 else c
    )
    a = embeddings.norm(dim=1).clamp(10, 110)
    expected = F.cross_entropy(logits, labels, **KL) + 35 * (a / 110**2 + 1 / a)
    found = head(embeddings, labels)
    torch.testing.assert_close(found.per_sample, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.loss, expected.mean(), rtol=1e-9, atol=1e-9)
    head.update(0.225)  # half of both margins
    halved = logits_of(
        head, embeddings, labels, target=lambda c, z, i: math.cos(math.acos(c) + magnitude(z) / 2) if c > 0 else c
    )
    expected = F.cross_entropy(halved, labels, **KL) + 35 * (a / 110**2 + 1 / a)
    torch.testing.assert_close(head(embeddings, labels).per_sample, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("project_type", "classic"), [("elastic_arc", "arc_margin"), ("elastic_cos", "add_margin")])
def test_elastic_without_spread_or_in_evaluation_is_the_classic_loss(project_type, classic):
    embeddings, labels = batch()
    expected = make(classic, scale=64, margin=0.3)(embeddings, labels).per_sample
    still = make(project_type, margin=0.3, sigma=0)(embeddings, labels).per_sample
    evaluated = make(project_type, margin=0.3).eval()(embeddings, labels).per_sample
    torch.testing.assert_close(still, expected)
    assert torch.equal(evaluated, expected)


def elastic_margins(head, embeddings, labels):
    cosine = cosines_of(head, embeddings).gather(1, labels.unsqueeze(1)).squeeze(1)
    return head.adapt(embeddings, cosine, labels, head.margin), cosine


def test_elastic_draws_are_normal_and_follow_torchs_seed():
    head = make("elastic_cos", margin=0.35, sigma=0.05)
    cosine = torch.zeros(20_000, dtype=torch.float64)
    drawn = head.adapt(cosine.unsqueeze(1), cosine, cosine, 0.35)
    assert drawn.mean().item() == pytest.approx(0.35, abs=0.002)
    assert drawn.std().item() == pytest.approx(0.05, abs=0.002)
    assert torch.equal(drawn, make("elastic_cos").adapt(cosine.unsqueeze(1), cosine, cosine, 0.35))
    assert not torch.equal(drawn, head.adapt(cosine.unsqueeze(1), cosine, cosine, 0.35))


def test_elastic_leaves_torchs_generator_alone():
    head, (embeddings, labels) = make("elastic_arc"), batch()
    before = torch.get_rng_state()
    head(embeddings, labels)
    assert torch.equal(torch.get_rng_state(), before)


def test_elastic_margin_is_what_the_loss_gets():
    embeddings, labels = batch()
    drawn, _ = elastic_margins(make("elastic_arc"), embeddings, labels)
    head = make("elastic_arc")
    logits = logits_of(head, embeddings, labels, target=lambda c, z, i: turn(c, drawn[i].item()))
    found = head(embeddings, labels).per_sample
    torch.testing.assert_close(found, F.cross_entropy(logits, labels, **KL), rtol=1e-9, atol=1e-9)


def test_elastic_plus_hands_out_the_draws_by_rank():
    embeddings, labels = batch()
    plain, cosine = elastic_margins(make("elastic_cos", sigma=0.0175), embeddings, labels)
    by_rank, _ = elastic_margins(make("elastic_cos", sigma=0.0175, plus="rank"), embeddings, labels)
    official, _ = elastic_margins(make("elastic_cos", sigma=0.0175, plus="official"), embeddings, labels)
    ascending = sorted(plain.tolist())
    descending_cosines = sorted(cosine.tolist(), reverse=True)
    for i in range(B):
        assert by_rank[i] == ascending[descending_cosines.index(cosine[i].item())]
        assert official[i] == ascending[cosine.tolist().index(descending_cosines[i])]
    assert not torch.equal(by_rank, official)


def test_elastic_plus_has_its_own_sigma():
    for name, sigma in (("elastic_arc", 0.0175), ("elastic_cos", 0.02)):
        assert validate_projection_args({"project_type": name})["sigma"] == 0.05
        assert validate_projection_args({"project_type": name, "plus": "rank"})["sigma"] == sigma
        assert validate_projection_args({"project_type": name, "plus": "rank", "sigma": 0.1})["sigma"] == 0.1


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_curricularface(t):
    head, (embeddings, labels) = make("curricular", scale=8).eval(), batch()
    head.negatives.t.fill_(t)
    logits = logits_of(
        head,
        embeddings,
        labels,
        target=lambda c, z, i: turn(c, 0.5),
        negative=lambda c, c_y: c * (t + c) if c > math.cos(math.acos(c_y) + 0.5) else c,
    )
    found = head(embeddings, labels).per_sample
    torch.testing.assert_close(found, F.cross_entropy(logits, labels, **KL), rtol=1e-9, atol=1e-9)


def test_curricularface_without_hard_negatives_is_arcface():
    head, arc = make("curricular", scale=8).eval(), make("arc_margin", scale=8, margin=0.5)
    with torch.no_grad():
        for module in (head, arc):
            module.weight.copy_(-torch.ones(C, D) + 2 * torch.eye(C)[:, :D])
    embeddings, labels = arc.weight.detach()[:5].clone(), torch.arange(5)
    torch.testing.assert_close(head(embeddings, labels).per_sample, arc(embeddings, labels).per_sample)


def test_curriculum_is_a_running_mean_of_the_labels_cosines():
    head, (embeddings, labels) = make("curricular", t_weight=0.1), batch()
    mean = cosines_of(head, embeddings).gather(1, labels.unsqueeze(1)).mean().item()
    head(embeddings, labels)
    assert head.negatives.t.item() == pytest.approx(0.1 * mean)
    head(embeddings, labels)
    assert head.negatives.t.item() == pytest.approx(0.19 * mean)
    head(torch.full((2, D), math.nan, dtype=torch.float64), labels[:2])
    assert head.negatives.t.item() == pytest.approx(0.19 * mean)


def test_kappaface_takes_its_margins_from_the_epoch_before():
    head = make("kappa", scale=8)
    arc = make("arc_margin", scale=8, margin=0.8)
    head.start_epoch(1)
    embeddings, labels = batch()
    labels[labels == 3] = 4  # a class that is never seen
    torch.testing.assert_close(head(embeddings, labels).per_sample, arc(embeddings, labels).per_sample)
    means = None
    for epoch, seed in ((2, 5), (3, 6)):
        batches = [(embeddings, labels)] if epoch == 2 else [batch(seed), batch(seed + 10)]
        if epoch == 3:
            batches = [(e, torch.where(y == 3, 4, y)) for e, y in batches]
            for e, y in batches:
                head(e, y)
        head.start_epoch(epoch)
        head.start_epoch(epoch)  # harmless
        means, psi = kappa_oracle(batches, means)
        torch.testing.assert_close(head.adapt.psi, torch.tensor(psi, dtype=torch.float64), rtol=1e-9, atol=1e-9)
    test_embeddings, test_labels = batch(9)
    logits = logits_of(head, test_embeddings, test_labels, target=lambda c, z, i: turn(c, 0.8 * psi[test_labels[i]]))
    found = head.eval()(test_embeddings, test_labels).per_sample
    torch.testing.assert_close(found, F.cross_entropy(logits, test_labels, **KL), rtol=1e-9, atol=1e-9)


def kappa_oracle(batches, means):
    """Return class means and ψ, class by class."""
    means = dict(means or {})
    counts = dict.fromkeys(range(C), 0)
    for c in range(C):
        units = [F.normalize(e[i], dim=0) for e, y in batches for i in range(len(y)) if y[i] == c]
        counts[c] = len(units)
        if units:
            newest = torch.stack(units).mean(0)
            means[c] = 0.9 * means[c] + 0.1 * newest if c in means else newest
    kappa = {}
    for c, mean in means.items():
        r = min(0.999, mean.norm().item())
        kappa[c] = r * (D - r * r) / (1 - r * r)
    average = sum(kappa.values()) / len(kappa)
    std = math.sqrt(sum((k - average) ** 2 for k in kappa.values()) / len(kappa))
    psi = []
    for c in range(C):
        z = (kappa[c] - average) / std if c in kappa else 0.0
        w_k = 1 - 1 / (1 + math.exp(-0.4 * z))
        w_s = (math.cos(math.pi * counts[c] / (1.05 * max(counts.values()))) + 1) / 2
        psi.append(0.7 * w_k + 0.3 * w_s)
    return means, psi


@pytest.mark.parametrize("margin", [1.0, 1.7, 4.0])
def test_sphereface(margin):
    head, (embeddings, labels) = make("sphere", margin=margin, scale=8), batch()

    def psi(c, z, i):
        k = math.floor(margin * math.acos(c) / math.pi)
        return (-1) ** k * math.cos(margin * math.acos(c)) - 2 * k

    logits = logits_of(head, embeddings, labels, target=psi)
    found = head(embeddings, labels).per_sample
    torch.testing.assert_close(found, F.cross_entropy(logits, labels, **KL), rtol=1e-9, atol=1e-9)
    if margin == 1.0:  # the softmax of scaled cosines
        torch.testing.assert_close(found, F.cross_entropy(8 * cosines_of(head, embeddings), labels, **KL))


def test_multiplicative_margin_falls_and_its_gradient():
    cosine = torch.linspace(1, -1, 1001, dtype=torch.float64)
    assert (multiplicative_margin(cosine, margin=3.3).diff() < 0).all()
    cosine = torch.tensor([0.9, 0.1, -0.6, -0.99], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda c: multiplicative_margin(c, margin=1.7, gradient="exact"), (cosine,))
    (grad,) = torch.autograd.grad(multiplicative_margin(cosine, margin=1.7).sum(), cosine)
    assert grad.tolist() == [1.0] * 4


def test_straight_through_arcface_has_the_gradient_of_the_cosine():
    """At cos = .3, m = .5, s = 64: 64.0 straight through, 65.8 exact, as measured on InsightFace's code."""
    cosine = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)
    values, grads = [], []
    for gradient in ("exact", "straight_through"):
        logit = 64 * angular_margin(cosine, margin=0.5, gradient=gradient)
        values.append(logit.item())
        grads.append(torch.autograd.grad(logit, cosine)[0].item())
    assert values[0] == pytest.approx(values[1])
    assert grads == pytest.approx([65.8, 64.0], abs=0.05)
    head, (embeddings, labels) = make("arc_margin", gradient="straight_through"), batch()
    exact = make("arc_margin")
    torch.testing.assert_close(head(embeddings, labels).per_sample, exact(embeddings, labels).per_sample)


def test_sphereface2():
    head, (embeddings, labels) = make("sphereface2", scale=10), batch()
    cosines, own = cosines_of(head, embeddings), F.one_hot(labels, C).double()
    similarity = 2 * ((cosines + 1) / 2) ** 3 - 1
    logits = 10 * (similarity - 0.4 * (2 * own - 1)) + head.bias
    weight = 50 * C / 10 * (0.7 * own + 0.3 * (1 - own))
    expected = F.binary_cross_entropy_with_logits(logits, own, weight=weight, reduction="none").mean(1)
    found = head(embeddings, labels)
    torch.testing.assert_close(found.per_sample, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.target_posterior, logits.gather(1, labels.unsqueeze(1)).squeeze(1).sigmoid())
    wanted = [head.weight, head.bias]
    assert all(g.isfinite().all() for g in torch.autograd.grad(found.loss, wanted))


@pytest.mark.parametrize("num_classes", [1, 2, 3, 1000])
def test_sphereface2_bias_minimises_the_loss_at_cosine_zero(num_classes):
    head = make("sphereface2", num_classes=num_classes)
    embeddings = torch.zeros(1, D, dtype=torch.float64)
    if num_classes > 1:
        (slope,) = torch.autograd.grad(head(embeddings, torch.tensor([0])).loss, head.bias)
        assert abs(slope.item()) < 1e-6  # the bias started in float32
    assert head.bias.isfinite()


def test_uniface():
    head, (embeddings, labels) = make("uniface", negative_weight=0.5), batch()
    assert head.bias.item() == pytest.approx(math.log(10 * C))
    cosines, own = cosines_of(head, embeddings), F.one_hot(labels, C).double()
    logits = (64 * (cosines - 0.4 * own) - head.bias).clamp(-64, 64)
    weight = own + 0.5 * (1 - own)
    expected = F.binary_cross_entropy_with_logits(logits, own, weight=weight, reduction="none").sum(1)
    torch.testing.assert_close(head(embeddings, labels).per_sample, expected, rtol=1e-9, atol=1e-9)


def test_sub_centers_and_inter_topk_penalty():
    head, (embeddings, labels) = make("arc_margin_intertopk_subcenter", scale=8, K=3, k_top=2, mp=0.1), batch()
    head.update(0.1)  # half of the final margin, so half of mp
    cosines = (F.normalize(embeddings) @ F.normalize(head.weight.detach()).T).tolist()
    rows = []
    for cosine, y in zip(cosines, labels.tolist(), strict=True):
        row = [max(cosine[3 * j : 3 * j + 3]) for j in range(C)]
        nearest = sorted((j for j in range(C) if j != y), key=lambda j: -row[j])[:2]
        rows.append(
            [
                turn(c, 0.1) if j == y else math.cos(math.acos(c) - 0.05) if j in nearest else c
                for j, c in enumerate(row)
            ]
        )
    expected = F.cross_entropy(8 * torch.tensor(rows, dtype=torch.float64), labels, **KL)
    torch.testing.assert_close(head(embeddings, labels).per_sample, expected, rtol=1e-9, atol=1e-9)


def test_one_sub_center_without_penalty_is_arcface():
    embeddings, labels = batch()
    expected = make("arc_margin")(embeddings, labels).per_sample
    for args in ({"k_top": 0}, {"mp": 0}):
        head = make("arc_margin_intertopk_subcenter", K=1, **args)
        torch.testing.assert_close(head(embeddings, labels).per_sample, expected)


@pytest.mark.parametrize("num_classes", [1, 2])
def test_inter_topk_with_fewer_classes_than_k(num_classes):
    head = make("arc_margin_intertopk_subcenter", num_classes=num_classes)
    assert head(batch()[0], torch.zeros(B, dtype=torch.int64)).loss.isfinite()


# ---- adaptive margins in log q ----


def per_sample_margin(head, embeddings, labels):
    if head.adapt is None:
        return torch.full((B,), head.margin, dtype=torch.float64)
    return head.adapt(embeddings, torch.zeros(B, dtype=torch.float64), labels, head.margin)


@pytest.mark.parametrize("project_type", ADAPTIVE)
@pytest.mark.parametrize("alpha", [1.0, 1.5])
def test_margin_in_log_q(project_type, alpha):
    """At α = 1 the margin in log q is one on the cosine; at any α it is eq. 7 with one m a sample."""
    head, (embeddings, labels) = make(project_type, alpha=alpha, scale=9, place="log_q").eval(), batch()
    if project_type == "kappa":
        head.adapt.psi.uniform_(0.3, 1.0)
    m = per_sample_margin(head, embeddings, labels)
    own = F.one_hot(labels, C)
    theta = 9 * cosines_of(head, embeddings)
    if project_type == "curricular":
        head.negatives.t.fill_(0.2)
        rows = RankRows([len(labels)], 0)
        theta = head.negatives(theta, at_label(theta, labels), labels, Shards(C), rows, scale=9, margin=0.5)
    if alpha == 1:
        expected = F.cross_entropy(theta - 9 * m.unsqueeze(1) * own, labels, **KL)
    else:
        expected = alpha_divergence_loss(theta, labels, -9 * m.unsqueeze(1) * own, alpha=alpha)
    if project_type == "mag_margin":
        expected = expected + head.adapt.penalty(embeddings)
    torch.testing.assert_close(head(embeddings, labels).per_sample, expected, rtol=1e-8, atol=1e-8)


def test_margin_in_log_q_of_elastic_cos_at_alpha_1_is_elastic_cos():
    embeddings, labels = batch()
    expected = make("elastic_cos")(embeddings, labels).per_sample
    torch.testing.assert_close(make("elastic_cos", place="log_q")(embeddings, labels).per_sample, expected)


STREAMED = [("a3m", {}), ("kappa", {}), ("mag_margin", {}), ("kappa", {"place": "log_q"})]
STREAMED += [("mag_margin", {"place": "log_q"}), ("ada_margin", {"place": "log_q"})]


@pytest.mark.parametrize(("project_type", "args"), STREAMED)
def test_streamed_equals_dense_in_training(project_type, args):
    """Also in what the head remembers: each form takes note of a batch once."""
    outs, grads, states = [], [], []
    for form in ("dense", "stream", "auto"):
        args = {"alpha": 1.5, "scale": 12, "margin": 0.1, **args}
        head = make(project_type, num_classes=5000, dtype=torch.float32, form=form, **args)
        head.start_epoch(1)
        if project_type == "a3m":
            head.reinit.at_epoch = 2
        embeddings, labels = batch(dtype=torch.float32)
        for _ in range(2):
            out = head(embeddings.requires_grad_(), labels)
        outs.append(out)
        grads.append(torch.autograd.grad(out.loss, [embeddings, head.weight]))
        states.append(head.state_dict())
    assert [out.path for out in outs[:2]] == ["dense", "stream"]
    for out, grad, state in zip(outs[1:], grads[1:], states[1:], strict=True):
        torch.testing.assert_close(out.per_sample, outs[0].per_sample, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(out.target_posterior, outs[0].target_posterior, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(grad, grads[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(state, states[0])


def test_margins_that_lift_a_logit_or_change_others_stay_dense():
    for project_type in ("elastic_cos", "ada_margin", "curricular"):
        head = make(project_type, num_classes=5000, dtype=torch.float32, alpha=1.5, scale=12, margin=0.1)
        assert head(*batch(dtype=torch.float32)).path == "dense"


# ---- properties of every head ----

SMOOTH = {"sphere": {"gradient": "exact"}}
VARIANTS = [(name, SMOOTH.get(name, {})) for name in TYPES]
VARIANTS += [(name, {"alpha": 1.5, "place": place}) for name in ADAPTIVE for place in ("logit", "log_q")]


@pytest.mark.parametrize(("project_type", "args"), VARIANTS[len(TYPES) :])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_poles_with_alpha_and_log_q(project_type, args, dtype):
    head = make(project_type, dtype=torch.float32, scale=10, **args)  # e^{(α-1) s m} grows fast: float16 ends at e^11
    w = head.weight.detach()
    embeddings = torch.stack([w[0], -w[1], 30.0 * w[2], torch.zeros(D), 1e-20 * w[4]]).to(dtype).requires_grad_()
    found = head(embeddings, torch.tensor([0, 1, 2, 0, 4]))
    found.loss.backward()
    assert found.per_sample.isfinite().all()
    assert embeddings.grad.isfinite().all()
    assert head.weight.grad.isfinite().all()


STATEFUL = {"ada_margin", "elastic_arc", "elastic_cos", "curricular", "kappa", "a3m"}


@pytest.mark.parametrize("project_type", TYPES)
def test_state_changes_in_training_mode_only(project_type):
    head, (embeddings, labels) = make(project_type, **({"reinit_epoch": 2} if project_type == "a3m" else {})), batch()
    head.start_epoch(1)
    before = copy.deepcopy(head.state_dict())
    head.eval()(embeddings, labels)
    assert all(torch.equal(value, before[key]) for key, value in head.state_dict().items())
    head.train()(embeddings, labels)
    changed = any(not torch.equal(value, before[key]) for key, value in head.state_dict().items())
    assert changed == (project_type in STATEFUL)


@pytest.mark.parametrize("project_type", TYPES)
def test_a_head_goes_on_from_its_state_dict(project_type):
    args = {"reinit_epoch": 3} if project_type == "a3m" else {}
    first = make(project_type, **args)

    def epochs(head, numbers):
        losses = []
        for epoch in numbers:
            head.start_epoch(epoch)
            for step in range(2):
                out = head(*batch(10 * epoch + step))
                head.zero_grad()
                out.loss.backward()
                with torch.no_grad():
                    for parameter in head.parameters():
                        parameter -= 1e-3 * parameter.grad
                losses.append(out.loss.item())
        return losses

    epochs(first, (1, 2))
    torch.manual_seed(99)
    second = build_head({"project_type": project_type, **args}, embed_dim=D, num_classes=C).double()
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert epochs(second, (3, 4)) == epochs(first, (3, 4))


@pytest.mark.parametrize("project_type", TYPES)
def test_a_nan_embedding_does_not_spoil_the_next_batch(project_type):
    args = {"reinit_epoch": 2} if project_type == "a3m" else {}
    head, (embeddings, labels) = make(project_type, **args), batch()
    embeddings[3] = math.nan
    embeddings[4] = math.inf
    head.start_epoch(1)
    head(embeddings, labels)
    head.start_epoch(2)
    assert head(*batch(2)).per_sample.isfinite().all()
    assert all(value.double().isfinite().all() for value in head.state_dict().values())


@pytest.mark.parametrize(("project_type", "args"), VARIANTS)
def test_every_head_learns_to_tell_classes_apart(project_type, args):
    if "alpha" in args:
        args = {**args, "scale": 10, "margin": 0.1}
    head = make(project_type, dtype=torch.float32, **args)
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(C).repeat(4)
    centres = 20 * F.normalize(torch.randn(C, D, generator=generator))
    embeddings = (centres[labels] + torch.randn(4 * C, D, generator=generator)).requires_grad_()
    optimizer = torch.optim.Adam([*head.parameters(), embeddings], lr=0.02)
    for epoch in (1, 2):
        head.start_epoch(epoch)
        for _ in range(60):
            out = head(embeddings, labels)
            optimizer.zero_grad()
            out.loss.backward()
            optimizer.step()
    assert out.correct.all()


def test_two_forward_passes_before_their_backward():
    """Gradient accumulation: the state of the second pass must not spoil the first one's graph."""
    for project_type in sorted(STATEFUL):
        head = make(project_type)
        losses = [head(*batch(seed)).loss for seed in (1, 2)]
        sum(losses).backward()


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ({"project_type": "adamargin"}, "did you mean 'ada_margin'"),
        ({"project_type": "sphere", "margin": 0.2}, "margin must be a factor on the angle of at least 1; found 0.2"),
        ({"project_type": "arc_margin", "gradient": "exakt"}, "gradient 'exakt' is not known; valid are exact"),
        ({"project_type": "elastic_arc", "plus": "sort"}, "plus 'sort' is not known; .*none, rank, official"),
        ({"project_type": "ada_margin", "place": "angle"}, "place 'angle' is not known; .*logit, log_q"),
        ({"project_type": "arc_margin", "place": "log_q"}, "'place' has no meaning for arc_margin; it is a key of ada"),
        ({"project_type": "uniface", "alpha": 1.5}, "'alpha' has no meaning for uniface"),
        ({"project_type": "a3m", "reinit_epoch": 1}, "reinit_epoch must be an epoch from 2 on, or 0 for never"),
        ({"project_type": "a3m", "reinit_epoch": 2.5}, "reinit_epoch must be a whole number; found 2.5"),
        ({"project_type": "a3m", "reinit_zero_share": 1.5}, r"reinit_zero_share must be in \[0, 1\]; found 1.5"),
        ({"project_type": "arc_margin_intertopk_subcenter", "K": 0}, "K must be at least 1; found 0"),
        ({"project_type": "kappa", "memory": 1.0}, r"memory must be in \[0, 1\); found 1.0"),
        ({"project_type": "mag_margin", "lower_norm": 120}, r"lower_norm \(120\) must be below upper_norm \(110.0\)"),
        ({"project_type": "mag_margin", "margin": 0.9}, r"margin \(0.9\) must be above 0 and at most upper_margin"),
        ({"project_type": "sphereface2", "positive_weight": 1}, "positive_weight must be between 0 and 1; found 1"),
        ({"project_type": "curricular", "t_weigth": 1}, "did you mean 't_weight'"),
        ({"project_type": "curricular", "alpha": 1.5, "form": "stream"}, "form 'stream' is not for curricular"),
        ({"project_type": "ada_margin", "alpha": 1.5, "form": "stream"}, "form 'stream' is not for ada_margin"),
        ({"project_type": "kappa", "form": "stream"}, "form 'stream' needs alpha above 1; kappa has alpha 1"),
    ],
)
def test_wrong_arguments_of_the_new_heads_are_a_sentence(args, sentence):
    with pytest.raises(ValueError, match=sentence):
        validate_projection_args(args)
