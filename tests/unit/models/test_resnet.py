import pytest
import torch
from written_out import resnet, resnet_keys, shapes

from wespeaker.models import build_model


@pytest.mark.parametrize(
    ("name", "num_blocks", "expansion"),
    [("ResNet18", (2, 2, 2, 2), 1), ("ResNet34", (3, 4, 6, 3), 1), ("ResNet50", (3, 4, 6, 3), 4)],
)
@pytest.mark.parametrize("two", [False, True])
def test_keys_and_shapes_are_wespeakers(name, num_blocks, expansion, two):
    expected = resnet_keys(num_blocks, expansion=expansion, two_emb_layer=two)
    assert shapes(build_model(name, two_emb_layer=two)) == expected


def test_the_size_is_the_published_one():
    """WeSpeaker's README: ResNet34-TSTP-emb256 has 6.63 M parameters."""
    assert round(sum(parameter.numel() for parameter in build_model("ResNet34").parameters()) / 1e6, 2) == 6.63


@pytest.mark.parametrize(
    ("name", "num_blocks", "two"),
    [("ResNet18", (2, 2, 2, 2), False), ("ResNet34", (3, 4, 6, 3), True), ("ResNet50", (3, 4, 6, 3), False)],
)
def test_output_is_the_written_out_network(name, num_blocks, two):
    torch.manual_seed(0)
    model = build_model(name, m_channels=4, embed_dim=16, two_emb_layer=two).double()
    for _ in range(2):
        model(torch.randn(4, 50, 80, dtype=torch.float64))  # moves the running statistics off their start
    model.eval()
    feats = torch.randn(2, 47, 80, dtype=torch.float64)
    expected = resnet(model.state_dict(), feats, num_blocks=num_blocks, strides=(1, 2, 2, 2), two_emb_layer=two)
    torch.testing.assert_close(model(feats), expected, rtol=1e-10, atol=1e-10)
