import torch
from written_out import Graph, layer, norm, shapes, trained_a_little

from wespeaker.models import build_model


def test_keys_and_shapes_are_wespeakers():
    expected = layer("frame_1.conv_1d", 512, 80, 5) | norm("frame_1.bn", 512, affine=False)
    expected |= layer("frame_2.conv_1d", 512, 512, 3) | norm("frame_2.bn", 512, affine=False)
    expected |= layer("frame_3.conv_1d", 512, 512, 3) | norm("frame_3.bn", 512, affine=False)
    expected |= layer("frame_4.conv_1d", 512, 512, 1) | norm("frame_4.bn", 512, affine=False)
    expected |= layer("frame_5.conv_1d", 1500, 512, 1) | norm("frame_5.bn", 1500, affine=False)
    expected |= layer("seg_1", 512, 3000) | norm("seg_bn_1", 512, affine=False) | layer("seg_2", 512, 512)
    assert shapes(build_model("XVEC", feat_dim=80, embed_dim=512, pooling_func="TSTP")) == expected


def test_output_is_the_written_out_network():
    torch.manual_seed(0)
    feats = torch.randn(3, 40, 80, dtype=torch.float64)
    model = trained_a_little(build_model("XVEC", hid_dim=8, stats_dim=12, embed_dim=6), feats)
    g = Graph(model.state_dict())
    x = feats.mT
    for number, dilation in enumerate((1, 2, 3, 1, 1), 1):
        x = g.norm(g.conv1d(x, f"frame_{number}.conv_1d", dilation=dilation).relu(), f"frame_{number}.bn")
    assert x.shape == (3, 12, 40 - 14)
    stats = torch.cat([x.mean(-1), (x.var(-1, unbiased=True) + 1e-7).sqrt()], dim=1)
    expected = g.linear(g.norm(g.linear(stats, "seg_1").relu(), "seg_bn_1"), "seg_2")
    torch.testing.assert_close(model(feats), expected, rtol=1e-10, atol=1e-10)
