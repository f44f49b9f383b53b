import pytest
import torch
from written_out import Graph, layer, norm, shapes, trained_a_little

from wespeaker.models import build_model


def conv_norm(name, out_channels, in_channels, kernel):
    return layer(f"{name}.conv", out_channels, in_channels, kernel) | norm(f"{name}.bn", out_channels)


@pytest.mark.parametrize("channels", [512, 1024])
@pytest.mark.parametrize("context", [False, True])
def test_keys_and_shapes_are_wespeakers(channels, context):
    expected = conv_norm("layer1", channels, 80, 5)
    for number in (2, 3, 4):
        block = f"layer{number}.se_res2block"
        expected |= conv_norm(f"{block}.0", channels, channels, 1) | conv_norm(f"{block}.2", channels, channels, 1)
        for part in range(7):
            expected |= layer(f"{block}.1.convs.{part}", channels // 8, channels // 8, 3)
            expected |= norm(f"{block}.1.bns.{part}", channels // 8)
        expected |= layer(f"{block}.3.linear1", 128, channels) | layer(f"{block}.3.linear2", channels, 128)
    expected |= layer("conv", 1536, 3 * channels, 1)
    expected |= layer("pool.linear1", 128, 4608 if context else 1536, 1) | layer("pool.linear2", 1536, 128, 1)
    expected |= norm("bn", 3072) | layer("linear", 192, 3072)
    name = f"ECAPA_TDNN_{'GLOB_' if context else ''}c{channels}"
    assert shapes(build_model(name, feat_dim=80, embed_dim=192, pooling_func="ASTP")) == expected
    with_bn = build_model(name, feat_dim=80, embed_dim=192, pooling_func="ASTP", emb_bn=True)
    assert shapes(with_bn) == expected | norm("bn2", 192)


def conv_relu_norm(g, x, name, **options):
    return g.norm(g.conv1d(x, f"{name}.conv", **options).relu(), f"{name}.bn")


def attentive_statistics(g, x, *, context):
    """Equations 1 to 4 of the ECAPA-TDNN paper with the variance as the difference of two moments."""
    seen = x
    if context:
        mean, std = x.mean(-1, keepdim=True), (x.var(-1, keepdim=True) + 1e-7).sqrt()
        seen = torch.cat([x, mean.expand_as(x), std.expand_as(x)], dim=1)
    weights = g.conv1d(g.conv1d(seen, "pool.linear1").tanh(), "pool.linear2").softmax(-1)
    mean = (weights * x).sum(-1)
    return torch.cat([mean, ((weights * x**2).sum(-1) - mean**2).clamp(min=1e-7).sqrt()], dim=1)


@pytest.mark.parametrize(("context", "emb_bn"), [(False, False), (True, False), (True, True)])
def test_output_is_the_written_out_network(context, emb_bn):
    torch.manual_seed(0)
    feats = torch.randn(3, 30, 80, dtype=torch.float64)
    size = {"channels": 32, "out_channels": 24, "embed_dim": 6}
    model = build_model("ECAPA_TDNN", **size, global_context_att=context, emb_bn=emb_bn)
    g = Graph(trained_a_little(model, feats).state_dict())
    x, blocks = conv_relu_norm(g, feats.mT, "layer1", padding=2), []
    for number in (2, 3, 4):
        name = f"layer{number}.se_res2block"
        parts = list(conv_relu_norm(g, x, f"{name}.0").split(4, dim=1))
        for i in range(7):
            before = parts[i] + parts[i - 1] if i else parts[i]
            y = g.conv1d(before, f"{name}.1.convs.{i}", padding=number, dilation=number)
            parts[i] = g.norm(y.relu(), f"{name}.1.bns.{i}")
        y = conv_relu_norm(g, torch.cat(parts, dim=1), f"{name}.2")
        scale = g.linear(g.linear(y.mean(-1), f"{name}.3.linear1").relu(), f"{name}.3.linear2").sigmoid()
        x = x + y * scale[..., None]
        blocks.append(x)
    x = g.conv1d(torch.cat(blocks, dim=1), "conv").relu()
    expected = g.linear(g.norm(attentive_statistics(g, x, context=context), "bn"), "linear")
    if emb_bn:
        expected = g.norm(expected, "bn2")
    torch.testing.assert_close(model(feats), expected, rtol=1e-9, atol=1e-9)
