import pytest
import torch
from written_out import Graph, layer, norm, shapes, trained_a_little

from wespeaker.models import build_model
from wespeaker.models.campplus import segment_means


def test_keys_and_shapes_are_wespeakers():
    expected = layer("head.conv1", 32, 1, 3, 3, bias=False) | norm("head.bn1", 32)
    for stage in ("head.layer1", "head.layer2"):
        for block in (f"{stage}.0", f"{stage}.1"):
            for number in (1, 2):
                expected |= layer(f"{block}.conv{number}", 32, 32, 3, 3, bias=False) | norm(f"{block}.bn{number}", 32)
        expected |= layer(f"{stage}.0.shortcut.0", 32, 32, 1, 1, bias=False) | norm(f"{stage}.0.shortcut.1", 32)
    expected |= layer("head.conv2", 32, 32, 3, 3, bias=False) | norm("head.bn2", 32)
    expected |= layer("xvector.tdnn.linear", 128, 320, 5, bias=False) | norm("xvector.tdnn.nonlinear.batchnorm", 128)
    for number, (count, first, last) in enumerate(((12, 128, 512), (24, 256, 1024), (16, 512, 1024)), 1):
        for i in range(count):
            name = f"xvector.block{number}.tdnnd{i + 1}"
            expected |= norm(f"{name}.nonlinear1.batchnorm", first + 32 * i)
            expected |= layer(f"{name}.linear1", 128, first + 32 * i, 1, bias=False)
            expected |= norm(f"{name}.nonlinear2.batchnorm", 128)
            expected |= layer(f"{name}.cam_layer.linear_local", 32, 128, 3, bias=False)
            expected |= layer(f"{name}.cam_layer.linear1", 64, 128, 1) | layer(f"{name}.cam_layer.linear2", 32, 64, 1)
        expected |= norm(f"xvector.transit{number}.nonlinear.batchnorm", last)
        expected |= layer(f"xvector.transit{number}.linear", last // 2, last, 1, bias=False)
    expected |= norm("xvector.out_nonlinear.batchnorm", 512)
    expected |= layer("xvector.dense.linear", 512, 1024, 1, bias=False)
    expected |= norm("xvector.dense.nonlinear.batchnorm", 512, affine=False)
    assert shapes(build_model("CAMPPlus", feat_dim=80, embed_dim=512, pooling_func="TSTP")) == expected


def residual_block(g, x, name, stride):
    y = g.norm(g.conv2d(x, f"{name}.conv1", stride=(stride, 1), padding=1), f"{name}.bn1").relu()
    y = g.norm(g.conv2d(y, f"{name}.conv2", padding=1), f"{name}.bn2")
    if stride == 2:
        x = g.norm(g.conv2d(x, f"{name}.shortcut.0", stride=(2, 1)), f"{name}.shortcut.1")
    return (x + y).relu()


def norm_relu(g, x, name):
    return g.norm(x, f"{name}.batchnorm").relu()


@pytest.mark.parametrize("num_frames", [50, 200, 431])  # less than a segment of the context, one, three with a rest
def test_output_is_the_written_out_network(num_frames):
    torch.manual_seed(0)
    feats = torch.randn(2, num_frames, 40, dtype=torch.float64)
    size = {"feat_dim": 40, "embed_dim": 6, "growth_rate": 4, "bn_size": 2, "init_channels": 8, "m_channels": 4}
    model = trained_a_little(build_model("CAMPPlus", **size), feats)
    g = Graph(model.state_dict())
    x = g.norm(g.conv2d(feats.mT[:, None], "head.conv1", padding=1), "head.bn1").relu()
    for stage in ("head.layer1", "head.layer2"):
        x = residual_block(g, residual_block(g, x, f"{stage}.0", 2), f"{stage}.1", 1)
    x = g.norm(g.conv2d(x, "head.conv2", stride=(2, 1), padding=1), "head.bn2").relu()
    x = g.conv1d(x.reshape(2, 20, num_frames), "xvector.tdnn.linear", stride=2, padding=2)
    x = norm_relu(g, x, "xvector.tdnn.nonlinear")
    for number, (count, dilation) in enumerate(((12, 1), (24, 2), (16, 2)), 1):
        for i in range(1, count + 1):
            name = f"xvector.block{number}.tdnnd{i}"
            y = g.conv1d(norm_relu(g, x, f"{name}.nonlinear1"), f"{name}.linear1")
            y = norm_relu(g, y, f"{name}.nonlinear2")
            segments = [part.mean(-1, keepdim=True).expand_as(part) for part in y.split(100, dim=-1)]
            context = y.mean(-1, keepdim=True) + torch.cat(segments, dim=-1)
            context = g.conv1d(context, f"{name}.cam_layer.linear1").relu()
            mask = g.conv1d(context, f"{name}.cam_layer.linear2").sigmoid()
            local = g.conv1d(y, f"{name}.cam_layer.linear_local", padding=dilation, dilation=dilation)
            x = torch.cat([x, local * mask], dim=1)
        x = g.conv1d(norm_relu(g, x, f"xvector.transit{number}.nonlinear"), f"xvector.transit{number}.linear")
    x = norm_relu(g, x, "xvector.out_nonlinear")
    stats = torch.cat([x.mean(-1), (x.var(-1, unbiased=True) + 1e-7).sqrt()], dim=1)
    expected = g.conv1d(stats[..., None], "xvector.dense.linear")
    expected = g.norm(expected, "xvector.dense.nonlinear.batchnorm")[..., 0]
    torch.testing.assert_close(model(feats), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("frames", [2, 99, 100, 101, 250, 300])
def test_segments_have_the_means_of_their_frames_in_a_graph_too(monkeypatch, frames):
    x = torch.randn(2, 3, frames, dtype=torch.float64)
    expected = torch.stack([part.mean(dim=-1) for part in x.split(100, dim=-1)], dim=-1)
    torch.testing.assert_close(segment_means(x), expected)
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    torch.testing.assert_close(segment_means(x), expected)
