"""What is true of every backbone."""

import inspect

import pytest
import torch

from wespeaker.config import MODEL_ARGS
from wespeaker.errors import InputError
from wespeaker.models import MODELS, build_model, campplus, ecapa_tdnn, pooling

SMALL = {  # the widths that make each family fast
    "ResNet": {"m_channels": 2},
    "ECAPA": {},
    "CAMPPlus": {"growth_rate": 4, "init_channels": 8, "m_channels": 2},
    "XVEC": {"hid_dim": 8, "stats_dim": 16},
}


def small(name, **model_args):
    sizes = next(args for prefix, args in SMALL.items() if name.startswith(prefix))
    return build_model(name, **{"embed_dim": 8, **sizes, **model_args})


@pytest.mark.parametrize(
    ("name", "embed_dim", "millions"),
    [
        ("XVEC", 512, 4.61),
        ("ECAPA_TDNN_GLOB_c512", 192, 6.19),
        ("ECAPA_TDNN_GLOB_c1024", 192, 14.65),
        ("ResNet34", 256, 6.63),
        ("ResNet152", 256, 19.8),
        ("ResNet221", 256, 23.79),
        ("ResNet293", 256, 28.62),
        ("CAMPPlus", 512, 7.18),
    ],
)
def test_sizes_are_those_that_wespeaker_publishes(name, embed_dim, millions):
    """The table of its VoxCeleb v2 recipe, which cuts digits off as often as it rounds."""
    model = build_model(name, feat_dim=80, embed_dim=embed_dim)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.015)


@pytest.mark.parametrize("name", MODELS)
def test_the_defaults_of_the_config_are_the_models(name):
    given = MODEL_ARGS[name]().model_dump()
    parameters = inspect.signature(MODELS[name]).parameters
    assert given == {key: parameters[key].default for key in given}


def test_a_global_context_without_an_attention_is_refused():
    with pytest.raises(InputError, match="pooling_func TSTP has no attention"):
        build_model("ECAPA_TDNN_GLOB_c512", pooling_func="TSTP")


def test_an_unknown_one_is_named():
    with pytest.raises(InputError, match=r"unknown model 'Resnet34'; did you mean 'ResNet34'"):
        build_model("Resnet34")


@pytest.mark.parametrize("name", ["ResNet10", "ECAPA_TDNN_c512", "CAMPPlus", "XVEC"])
@pytest.mark.parametrize("pooling_func", ["TAP", "TSDP", "TSTP", "ASTP"])
def test_shortest_input_is_finite_with_every_pooling(name, pooling_func):
    assert_shortest_input(small(name, pooling_func=pooling_func).eval())


def test_shortest_input_is_finite_with_a_global_context():
    assert_shortest_input(small("ECAPA_TDNN_GLOB_c512").eval())


def assert_shortest_input(model):
    """WeSpeaker returns NaN embeddings of one frame after the strides, without a word."""
    feats = torch.randn(2, model.min_frames, 80, requires_grad=True)
    embeddings = model(feats)
    embeddings.square().sum().backward()
    assert embeddings.shape == (2, 8)
    assert embeddings.isfinite().all()
    assert feats.grad.isfinite().all()
    with pytest.raises(ValueError, match=rf"at least {model.min_frames} frames, 80 bins\), found \(2, \d+, 80\)"):
        model(feats[:, :-1])
    with pytest.raises(ValueError, match=r"80 bins\), found \(2, \d+, 72\)"):
        model(feats[:, :, :72])


@pytest.mark.parametrize("name", ["ECAPA_TDNN_GLOB_c512", "CAMPPlus", "XVEC"])
def test_constant_features_have_finite_gradients(name):
    """Constant features have no deviation, whose square root has no slope at 0."""
    model = small(name)
    model(torch.ones(4, 30, 80)).square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", ["ResNet10", "ECAPA_TDNN_GLOB_c512", "CAMPPlus", "XVEC"])
def test_every_weight_learns_and_a_batch_changes_no_embedding(name):
    torch.manual_seed(0)
    model = small(name)
    feats = torch.randn(4, 50, 80)
    (model(feats) * torch.randn(4, 8)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in model.parameters())
    model.eval()
    torch.testing.assert_close(model(feats)[1:2], model(feats[1:2]))


@pytest.mark.parametrize("feat_dim", [40, 72, 83])
@pytest.mark.parametrize("name", ["ResNet10", "ECAPA_TDNN_c512", "CAMPPlus", "XVEC"])
def test_any_number_of_bins(name, feat_dim):
    """WeSpeaker sizes layers after a stride by rounding down, and fails late where 8 does not divide feat_dim."""
    assert small(name, feat_dim=feat_dim)(torch.randn(2, 30, feat_dim)).shape == (2, 8)


@pytest.mark.parametrize(
    "layer",
    [
        ecapa_tdnn.SERes2Block(8, dilation=3),
        campplus.FCM(8, 1),
        campplus.ContextAwareMasking(8, 8, dilation=2),
        pooling.ASTP(8, global_context_att=True),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_a_compiled_layer_is_one_graph_for_all_lengths(layer):
    compiled = torch.compile(layer.eval(), backend="eager", fullgraph=True, dynamic=True)  # a break would be an error
    for num_frames in (60, 250):
        x = torch.randn(2, 8, num_frames)
        torch.testing.assert_close(compiled(x), layer(x))
