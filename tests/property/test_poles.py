"""No head gives a NaN or an infinite gradient for a finite batch, however the embeddings lie to the prototypes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wespeaker.losses import PROJECT_TYPES, build_head, heads

C, D = 9, 4
# Where a row lies: at its prototype, opposite to it, nowhere, and at lengths near the ends of the number formats.
PLACES = ("equal", "opposite", "zero", "tiny", "huge", "between two", "of another class", "anywhere")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CASES = [({"project_type": name}, form) for name in PROJECT_TYPES for form in ("dense", "stream", "buffered")]
CASES += [({"project_type": "q_margin", "alpha": alpha}, form) for alpha in (1.05, 1.25, 2.0, 3.0)
          for form in ("dense", "stream", "buffered")]  # fmt: skip
CASES += [({"project_type": name, "gradient": "exact"}, "dense") for name in ("sphere", "arc_margin")]
CASES += [
    ({"project_type": name, "alpha": 1.5}, "dense") for name in PROJECT_TYPES if "place" in PROJECT_TYPES[name].defaults
]
DENSE_ONLY = ("curricular", "elastic_arc", "elastic_cos", "ada_margin", "arc_margin_intertopk_subcenter")


def is_possible(args, form):
    kind = PROJECT_TYPES[args["project_type"]]
    alpha = args.get("alpha", kind.alpha or kind.defaults.get("alpha", 1.0))
    if form == "stream":
        return alpha > 1.0 and args["project_type"] not in DENSE_ONLY
    return form == "dense" or (alpha <= 2.0 and kind.place not in ("none", "binary"))


def placed(place, own, other, dtype):
    small, large = torch.finfo(dtype).tiny, min(1e18, 0.5 * torch.finfo(dtype).max)  # squares overflow from 1.8e19 on
    largest = own.abs().max().clamp(min=1e-9)
    return {
        "equal": 8.0 * own / largest,
        "opposite": -8.0 * own / largest,
        "zero": 0.0 * own,
        "tiny": own / largest * small,
        "huge": own / largest * large,
        "between two": own / own.norm().clamp(min=1e-9) + other / other.norm(),
        "of another class": other / other.norm(),
        "anywhere": torch.linspace(-1.0, 2.0, D),
    }[place].to(dtype)


@pytest.mark.parametrize(
    ("args", "form"),
    [case for case in CASES if is_possible(*case)],
    ids=["-".join([*map(str, args.values()), form]) for args, form in CASES if is_possible(args, form)],
)
@given(
    places=st.lists(st.sampled_from(PLACES), min_size=1, max_size=6),
    dtype=st.sampled_from(DTYPES),
    margin=st.sampled_from((0.0, 0.2, 0.5)),
    scale=st.sampled_from((1.0, 30.0, 64.0)),
    odd_prototype=st.sampled_from(("none", "zero", "twin", "opposite twin", "long")),
)
@settings(max_examples=25, deadline=None)
def test_every_gradient_is_finite(args, form, places, dtype, margin, scale, odd_prototype):
    torch.manual_seed(0)
    kind = PROJECT_TYPES[args["project_type"]]
    options = {"scale": scale} if "scale" in kind.defaults else {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heads, "FEW_CLASSES", 1 if form == "buffered" else 4096)
        head = build_head(
            {**args, **options, "form": "stream" if form == "stream" else "dense"}, embed_dim=D, num_classes=C
        )
        with torch.no_grad():
            first = head.weight[0]
            if odd_prototype != "none":
                changed = {"zero": 0.0, "twin": 1.0, "opposite twin": -1.0, "long": 1e12}[odd_prototype]
                head.weight[1] = changed * first
        head.update(margin + (1.0 if kind.place == "factor" else 0.0))
        head.start_epoch(1)
        labels = torch.arange(len(places)) % C
        per_class = len(head.weight) // C
        own = head.weight.detach()[labels * per_class]
        rows = [placed(place, own[i], head.weight.detach()[3], dtype) for i, place in enumerate(places)]
        embeddings = torch.stack(rows).requires_grad_()
        out = head(embeddings, labels)
        assert out.per_sample.isfinite().all()
        out.loss.backward()
    # Longer than float16 can hold may be the gradient of a very short embedding, and of one that meets a very long
    # prototype without a cosine between them.
    too_long = "tiny" in places or (kind.place == "none" and odd_prototype == "long")
    assert embeddings.grad.isfinite().all() or (dtype == torch.float16 and too_long)
    for parameter in head.parameters():
        assert parameter.grad.isfinite().all()
