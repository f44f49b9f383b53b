"""Every project type in every form it has: its gradient against finite differences in float64."""

import copy
import itertools
import math

import pytest
import torch
from torch.func import functional_call
from torch.nn import functional as F

from wespeaker.losses import (
    PROJECT_TYPES,
    MarginHead,
    Shards,
    angular_margin,
    build_head,
    heads,
    multiplicative_margin,
    validate_projection_args,
)

D, C, B = 2, 5, 3
# Margins whose dφ/dc is taken as 1, and types whose margin follows the embedding without a gradient.
STRAIGHT_THROUGH = {"arc_margin": angular_margin, "sphere": multiplicative_margin}
DETACHED = {"ada_margin"}


def variants():
    """Return (form, projection_args) of every type, with each value of the keys that change its gradient."""
    values = {
        "alpha": (1.0, 1.5),
        "place": ("logit", "log_q"),
        "gradient": ("exact", "straight_through"),
        "easy_margin": (False, True),
    }
    found = []
    for name, kind in PROJECT_TYPES.items():
        keys = [key for key in values if key in kind.defaults]
        for choice in itertools.product(*(values[key] for key in keys)):
            args = {"project_type": name, **dict(zip(keys, choice, strict=True))}
            found += [(form, args) for form in forms(args)]
    return found


def forms(args):
    """Return the forms that these arguments can take; "buffered" is what "dense" becomes where C is large."""
    yield "dense"
    try:
        validate_projection_args({**args, "form": "stream"})
    except ValueError:
        return
    yield "stream"
    if 1.1 <= args.get("alpha", PROJECT_TYPES[args["project_type"]].alpha) <= 2.0:
        yield "buffered"


def make(form, args):
    """Return a head in evaluation mode whose state, if it has one, is that after an epoch of one batch."""
    torch.manual_seed(0)
    scale = {"scale": 5.0} if "scale" in PROJECT_TYPES[args["project_type"]].defaults else {}
    form = {"form": "dense" if form == "buffered" else form}
    head = build_head({**args, **scale, **form}, embed_dim=D, num_classes=C).double()
    head.start_epoch(1)
    head(*batch(seed=2))
    head.start_epoch(2)
    return head.eval()


def batch(*, seed):
    generator = torch.Generator().manual_seed(seed)
    length = torch.linspace(4.0, 60.0, B, dtype=torch.float64).unsqueeze(1)
    embeddings = length * F.normalize(torch.randn(B, D, generator=generator, dtype=torch.float64))
    return embeddings, torch.randint(C, (B,), generator=generator)


class Constant(torch.nn.Module):
    """Margins (B,) that stay what they were."""

    def __init__(self, margins):
        super().__init__()
        self.margins = margins

    def forward(self, *_):
        return self.margins


def with_constants(head, args, embeddings, labels):
    """Return a head of equal loss whose true gradient is the documented one of ``head``.

    Straight through, φ(c) is c + constant; a detached margin is a constant.
    """
    cosine = F.cosine_similarity(embeddings, head.weight[labels]).detach()
    twin = copy.deepcopy(head)
    if args.get("gradient") == "straight_through":
        easy = {"easy_margin": head.easy_margin} if "easy_margin" in args else {}
        phi = STRAIGHT_THROUGH[args["project_type"]](cosine, margin=head.margin, **easy)
        twin = MarginHead(
            Shards(C), D, place="cosine", alpha=head.alpha, scale=head.scale, margin=0.0, adapt=Constant(cosine - phi)
        )
        twin.weight = head.weight
    elif args["project_type"] in DETACHED:
        twin.adapt = Constant(head.adapt(embeddings, cosine, labels, head.margin))
    return twin


@pytest.fixture(params=variants(), ids=lambda variant: "-".join([variant[0], *map(str, variant[1].values())]))
def variant(request, monkeypatch):
    if request.param[0] == "buffered":
        monkeypatch.setattr(heads, "FEW_CLASSES", 1)
    return request.param


def test_gradient_is_that_of_finite_differences(variant):
    form, args = variant
    head, (embeddings, labels) = make(form, args), batch(seed=1)
    embeddings.requires_grad_()
    out = head(embeddings, labels)
    assert out.path == ("stream" if form == "stream" else "dense")
    names, values = zip(*head.named_parameters(), strict=True)
    smooth = with_constants(head, args, embeddings, labels)

    def loss(x, *parameters):
        return functional_call(smooth, dict(zip(names, parameters, strict=True)), (x, labels)).per_sample

    copies = [value.detach().clone().requires_grad_() for value in (embeddings, *values)]
    assert torch.autograd.gradcheck(loss, copies, atol=1e-6)
    theirs = loss(*copies)
    torch.testing.assert_close(out.per_sample, theirs)
    mine, theirs = torch.autograd.grad(out.loss, (embeddings, *values)), torch.autograd.grad(theirs.mean(), copies)
    torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_embedding_is_seen_in_its_own_loss_and_gradient_and_in_no_other(variant, bad):
    head, (embeddings, labels) = make(*variant), batch(seed=1)
    clean = embeddings.clone().requires_grad_()
    embeddings[1, 0] = bad
    embeddings.requires_grad_()
    outs = [head(x, labels).per_sample for x in (embeddings, clean)]
    grads = [torch.autograd.grad(out.sum(), x)[0] for out, x in zip(outs, (embeddings, clean), strict=True)]
    assert not outs[0][1].isfinite()  # plain softmax has no cosine that makes NaN of an infinity
    if math.isnan(bad):
        assert outs[0][1].isnan()
        assert grads[0][1].isnan().all()
    for mine, theirs in (outs, grads):
        torch.testing.assert_close(mine[::2], theirs[::2])


def test_every_form_is_among_the_variants():
    found = {(args["project_type"], form) for form, args in variants()}
    assert {name for name, form in found if form == "dense"} == set(PROJECT_TYPES)
    assert {"q_margin", "entmax", "sparsemax", "a3m"} <= {name for name, form in found if form == "stream"}
    assert {name for name, form in found if form == "stream"} == {name for name, form in found if form == "buffered"}
